//! The definition of a quantile that all code uses.

use polars::prelude::{ChunkQuantile, Float64Chunked, NamedFrom, QuantileMethod};
use polars::series::IsSorted;

/// The quantiles of some numbers, each from 0 to 1, interpolated between the two values beside it; NaN of no numbers.
pub fn quantiles(mut values: Vec<f64>, shares: &[f64]) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let mut values = Float64Chunked::new("values".into(), values);
    // Then a quantile is a look-up.
    values.set_sorted_flag(IsSorted::Ascending);
    let at = |&share: &f64| values.quantile(share, QuantileMethod::Linear).ok().flatten().unwrap_or(f64::NAN);
    shares.iter().map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::quantiles;

    #[test]
    fn they_lie_between_the_values() {
        assert_eq!(quantiles(vec![4.0, 1.0, 2.0], &[0.0, 0.25, 0.75, 1.0]), [1.0, 1.5, 3.0, 4.0]);
        assert_eq!(quantiles(vec![5.0], &[0.3]), [5.0]);
        assert!(quantiles(Vec::new(), &[0.5])[0].is_nan());
    }
}
