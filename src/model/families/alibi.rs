//! Slopes of ALiBi (arXiv 2108.12409), in the two orders that models have for numbers of heads that are no power of two.

/// As BLOOM and Falcon: those of the next smaller power of two, then every other one of twice as many.
pub fn slopes(heads: usize) -> Vec<f32> {
    let powers = 1 << heads.max(1).ilog2();
    let more = (1..).step_by(2).map(|i| slope(i, 2 * powers));
    (1..=powers).map(|i| slope(i, powers)).chain(more).take(heads).collect()
}

/// As MPT: every other one of the next larger power of two, then the others.
pub fn slopes_of_mpt(heads: usize) -> Vec<f32> {
    let powers = heads.next_power_of_two();
    if powers == heads {
        return (1..=powers).map(|i| slope(i, powers)).collect();
    }
    (2..=powers).step_by(2).chain((1..=powers).step_by(2)).map(|i| slope(i, powers)).take(heads).collect()
}

/// Of head i, counted from 1.
fn slope(i: usize, heads: usize) -> f32 {
    (-8.0 * i as f64 / heads as f64).exp2() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_fill_up_to_any_number_of_heads() {
        let of_4 = [0.25, 0.0625, 1.0 / 64.0, 1.0 / 256.0];
        assert_eq!(slopes(4), of_4);
        assert_eq!(slopes_of_mpt(4), of_4);
        assert_eq!(slopes(6), [&of_4[..], &[0.5, 0.125]].concat());
        assert_eq!(slopes_of_mpt(6), [&of_4[..], &[0.5, 0.125]].concat());
        // (8 heads have 1/2, 1/4, …, 1/256.)
        assert_eq!(slopes_of_mpt(5), [&of_4[..], &[0.5]].concat());
        assert_eq!(slopes(1), [1.0 / 256.0]);
    }
}
