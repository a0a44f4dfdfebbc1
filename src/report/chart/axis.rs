//! Axes: their ranges and ticks.

/// One axis of a panel.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What is measured, with its unit in brackets.
    pub label: String,
    pub range: (f64, f64),
    pub ticks: Ticks,
}

#[derive(Debug, Clone)]
pub enum Ticks {
    Numbers,
    /// At whole numbers only, for layers and heads.
    Whole,
    /// Powers of ten on a logarithmic axis; the range is of the values, above 0.
    Log,
    /// Given names at given places.
    Names(Vec<(f64, String)>),
}

impl Axis {
    /// Numbers over a range.
    pub fn numbers(label: impl Into<String>, range: (f64, f64)) -> Self {
        Self { label: label.into(), range, ticks: Ticks::Numbers }
    }

    /// Whole numbers with half a step of room on both sides.
    pub fn whole(label: impl Into<String>, values: &[f64]) -> Self {
        let (low, high) = extent(values.iter().copied()).unwrap_or((0.0, 0.0));
        Self { label: label.into(), range: (low - 0.6, high + 0.6), ticks: Ticks::Whole }
    }

    pub fn log(label: impl Into<String>, range: (f64, f64)) -> Self {
        Self { label: label.into(), range, ticks: Ticks::Log }
    }

    /// One name a row or column, the first at 0.
    pub fn names(label: impl Into<String>, names: impl IntoIterator<Item = String>) -> Self {
        let names: Vec<(f64, String)> = names.into_iter().enumerate().map(|(i, n)| (i as f64, n)).collect();
        let last = names.len() as f64 - 0.5;
        Self { label: label.into(), range: (-0.5, last), ticks: Ticks::Names(names) }
    }

    /// Where a value lies between the ends of the axis, 0 to 1.
    pub fn place(&self, value: f64) -> f64 {
        let (low, high) = self.range;
        match self.ticks {
            Ticks::Log => (value.max(f64::MIN_POSITIVE).ln() - low.ln()) / (high.ln() - low.ln()),
            _ => (value - low) / (high - low),
        }
    }

    /// Value and label of every tick, of about `count` at most.
    pub fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        let (low, high) = self.range;
        match &self.ticks {
            Ticks::Names(names) => names.clone(),
            Ticks::Numbers => stepped(low, high, nice_step((high - low) / count.max(1) as f64)),
            Ticks::Whole => stepped(low, high, nice_step((high - low) / count.max(1) as f64).max(1.0).round()),
            Ticks::Log => (low.log10().ceil() as i32..=(high * 1.000_001).log10().floor() as i32)
                .map(|power| (10f64.powi(power), plain(10f64.powi(power))))
                .collect(),
        }
    }
}

/// 1, 2 or 5 times a power of ten, the next above.
fn nice_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.max(1e-12).log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|step| *step >= rough * 0.999_999).unwrap_or(10.0 * power)
}

fn stepped(low: f64, high: f64, step: f64) -> Vec<(f64, String)> {
    let digits = (-step.log10().floor()).max(0.0) as usize;
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last)
        .map(|i| {
            let value = i as f64 * step;
            (value, format!("{value:.digits$}").replace('-', "−"))
        })
        .collect()
}

/// A number as one writes it: no exponent, no trailing zeros, three significant digits after the point.
pub fn plain(value: f64) -> String {
    let digits = if value == 0.0 { 0 } else { (2 - value.abs().log10().floor() as i32).clamp(0, 6) as usize };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".into() } else { text.replace('-', "−") }
}

/// Smallest and largest of the finite values.
pub fn extent(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values.into_iter().filter(|v| v.is_finite()).fold(None, |found, v| match found {
        None => Some((v, v)),
        Some((low, high)) => Some((v.min(low), v.max(high))),
    })
}

/// The range of some numbers and zero, with a little room.
pub fn with_zero(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    roomy(values.into_iter().chain([0.0]))
}

/// The range of some numbers with a little room.
pub fn roomy(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let (low, high) = extent(values).unwrap_or((0.0, 1.0));
    // Values that are all equal still need a range that ticks can be read on.
    let room = if high > low { 0.06 * (high - low) } else { (0.05 * high.abs()).max(1e-3) };
    (low - room, high + room)
}

/// One range for both axes of a chart with the line y = x.
pub fn common(x: &[f64], y: &[f64]) -> (f64, f64) {
    with_zero(x.iter().chain(y).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis, count: usize) -> Vec<String> {
        axis.ticks(count).into_iter().map(|t| t.1).collect()
    }

    #[test]
    fn ticks_are_round_numbers_inside_the_range() {
        assert_eq!(labels(&Axis::numbers("", (-0.31, 0.52)), 5), ["−0.2", "0.0", "0.2", "0.4"]);
        assert_eq!(labels(&Axis::numbers("", (0.0, 30.0)), 3), ["0", "10", "20", "30"]);
        assert_eq!(labels(&Axis::whole("", &[3.0, 5.0]), 20), ["3", "4", "5"]);
        assert_eq!(labels(&Axis::whole("", &[0.0, 29.0]), 6), ["0", "10", "20"]);
        assert_eq!(labels(&Axis::log("", (1.0, 3072.0)), 5), ["1", "10", "100", "1000"]);
        assert_eq!(labels(&Axis::names("", ["a".into(), "b".into()]), 1), ["a", "b"]);
    }

    #[test]
    fn values_have_their_place() {
        assert!((Axis::numbers("", (-1.0, 3.0)).place(1.0) - 0.5).abs() < 1e-12);
        assert!((Axis::log("", (1.0, 100.0)).place(10.0) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn ranges_ignore_what_is_no_number() {
        assert_eq!(extent([f64::NAN, 2.0, -1.0, f64::INFINITY]), Some((-1.0, 2.0)));
        let (low, high) = with_zero([2.0, f64::NAN]);
        assert!(low < 0.0 && high > 2.0);
        let (low, high) = roomy([5.0, 5.0]);
        assert!(low < 5.0 && high > 5.0);
    }

    #[test]
    fn numbers_are_written_plainly() {
        assert_eq!(
            [0.0, 1.0, -0.25, 1234.5, 0.012_345, -0.000_000_1].map(plain),
            ["0", "1", "−0.25", "1234", "0.0123", "0"]
        );
    }
}
