//! Bins and counts values: here for a few thousand values, in SQL for millions.

use super::chart::{Colour, Mark, extent};

/// Shares, in percent, of the values in bins of equal width.
pub struct Histogram {
    pub starts: Vec<f64>,
    pub width: f64,
    pub shares: Vec<f64>,
}

impl Histogram {
    /// Bins over all finite values.
    pub fn of(values: &[f64], bins: usize) -> Self {
        let values: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        let (low, high) = extent(values.iter().copied()).unwrap_or((0.0, 1.0));
        // Values that are all equal fill one bin around them.
        let width = if high > low { (high - low) / bins as f64 } else { (0.02 * low.abs()).max(1e-6) };
        let mut counts = vec![0.0; bins];
        for value in &values {
            let bin = ((value - low) / width) as usize;
            counts[bin.min(bins - 1)] += 1.0;
        }
        let shares = counts.iter().map(|c| 100.0 * c / values.len().max(1) as f64).collect();
        Self { starts: (0..bins).map(|i| low + i as f64 * width).collect(), width, shares }
    }

    /// From bins that a query counted: number of each bin (from `low`, `width` wide) and its rows. What lies outside the
    /// bins is not drawn, but counts.
    pub fn counted(low: f64, width: f64, bins: usize, bin: &[f64], rows: &[f64]) -> Self {
        let total: f64 = rows.iter().sum();
        let mut shares = vec![0.0; bins];
        for (&bin, &rows) in bin.iter().zip(rows) {
            if bin >= 0.0 && bin < bins as f64 {
                shares[bin as usize] += 100.0 * rows / total;
            }
        }
        Self { starts: (0..bins).map(|i| low + i as f64 * width).collect(), width, shares }
    }

    /// Both ends of the drawn range.
    pub fn ends(&self) -> [f64; 2] {
        let first = self.starts.first().copied().unwrap_or(0.0);
        [first, first + self.width * self.starts.len() as f64]
    }

    pub fn mark(&self, colour: Colour, opacity: f64) -> Mark {
        Mark::histogram(&self.starts, self.width, &self.shares, colour, opacity)
    }

    /// The outline as a line of steps, so that several can be overlaid.
    pub fn outline(&self, colour: Colour) -> Mark {
        let mut at = Vec::with_capacity(2 * self.starts.len() + 2);
        at.push((self.starts.first().copied().unwrap_or(0.0), 0.0));
        for (&x, &share) in self.starts.iter().zip(&self.shares) {
            at.extend([(x, share), (x + self.width, share)]);
        }
        at.push((self.ends()[1], 0.0));
        Mark::Line { at, colour, width: 1.8, dashed: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_where_they_lie() {
        let h = Histogram::of(&[0.0, 0.1, 0.9, 1.0, f64::NAN], 2);
        assert_eq!((h.starts.clone(), h.shares.clone()), (vec![0.0, 0.5], vec![50.0, 50.0]));
        assert_eq!(h.ends(), [0.0, 1.0]);
        assert_eq!(Histogram::of(&[3.0, 3.0], 4).shares, [100.0, 0.0, 0.0, 0.0]);
        assert_eq!(Histogram::of(&[], 2).shares, [0.0, 0.0]);
    }

    #[test]
    fn what_lies_outside_counts_without_being_drawn() {
        let h = Histogram::counted(1.0, 0.5, 2, &[-1.0, 0.0, 1.0, 7.0], &[1.0, 2.0, 4.0, 1.0]);
        assert_eq!((h.starts, h.shares), (vec![1.0, 1.5], vec![25.0, 50.0]));
    }
}
