//! Vectorised functions: as many floats at once as a register holds.

use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

use pulp::Simd;

use selfrepair_model::Activation;

/// A polynomial, the coefficient of the highest power first.
#[inline(always)]
fn polynomial<S: Simd>(simd: S, x: S::f32s, coefficients: &[f32]) -> S::f32s {
    let mut sum = simd.splat_f32s(coefficients[0]);
    for c in &coefficients[1..] {
        sum = simd.mul_add_e_f32s(sum, x, simd.splat_f32s(*c));
    }
    sum
}

/// eˣ (Cephes' `expf`: 2ⁿ times a polynomial of what is left), to two units in the last place; 0 below −87.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let all = |c| simd.splat_f32s(c);
    // 1.5 · 2²³: added to a number, it leaves the nearest integer in the last bits.
    let round = all(12_582_912.0);
    let within = simd.min_f32s(simd.max_f32s(x, all(-87.0)), all(88.0));
    let shifted = simd.mul_add_e_f32s(within, all(LOG2_E), round);
    let n = simd.sub_f32s(shifted, round);
    // x − n ln 2, of x itself: NaN stays NaN. The first part of ln 2 has few bits, so that n times it is
    // exact.
    let r = simd.mul_add_e_f32s(n, all(-0.693_359_4), x);
    let r = simd.mul_add_e_f32s(n, all(2.121_944_4e-4), r);
    let p = polynomial(simd, r, &[1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]);
    let p = simd.mul_add_e_f32s(p, simd.mul_f32s(r, r), simd.add_f32s(r, all(1.0)));
    let exponent = simd.add_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(127));
    let power = simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(exponent, simd.splat_u32s(23)));
    simd.select_f32s(simd.less_than_f32s(x, all(-87.0)), all(0.0), simd.mul_f32s(p, power))
}

/// erf x, to a unit in the last place (minimax polynomials by N. Juffa).
#[inline(always)]
fn erf<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let (t, s) = (simd.abs_f32s(x), simd.mul_f32s(x, x));
    let near = polynomial(
        simd,
        s,
        &[-5.967_617e-4, 4.991_194_2e-3, -2.676_813_5e-2, 1.128_199_2e-1, -3.761_253_4e-1, 1.283_791_7e-1],
    );
    let near = simd.mul_add_e_f32s(near, x, x);
    let far = [
        -1.728_534_7e-5,
        3.831_971_3e-4,
        -3.883_964_4e-3,
        2.425_462_2e-2,
        -1.067_778_8e-1,
        -6.348_468_7e-1,
        -1.287_175_1e-1,
    ];
    let far = polynomial(simd, t, &far);
    let far = exp(simd, simd.mul_add_e_f32s(far, t, simd.neg_f32s(t)));
    let far = simd.sub_f32s(simd.splat_f32s(1.0), far);
    let is_negative = simd.less_than_f32s(x, simd.splat_f32s(0.0));
    let far = simd.select_f32s(is_negative, simd.neg_f32s(far), far);
    simd.select_f32s(simd.greater_than_f32s(t, simd.splat_f32s(0.927_734_4)), far, near)
}

/// x / (1 + e⁻ʸ).
#[inline(always)]
fn times_sigmoid<S: Simd>(simd: S, x: S::f32s, y: S::f32s) -> S::f32s {
    let e = exp(simd, simd.neg_f32s(y));
    simd.div_f32s(x, simd.add_f32s(e, simd.splat_f32s(1.0)))
}

/// max(x, 0). NaN is not below 0.
#[inline(always)]
fn relu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let zero = simd.splat_f32s(0.0);
    simd.select_f32s(simd.less_than_f32s(x, zero), zero, x)
}

/// tanh x, to three units in the last place.
#[inline(always)]
pub fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let all = |c| simd.splat_f32s(c);
    let squared = simd.mul_f32s(x, x);
    // The series, where the difference from 1 would leave few digits.
    let series = polynomial(
        simd,
        squared,
        &[3.592_128e-3, -8.863_236e-3, 2.186_949e-2, -5.396_825e-2, 1.333_333_3e-1, -3.333_333_4e-1, 1.0],
    );
    let near = simd.mul_f32s(x, series);
    // 1 − 2 / (1 + e²ˣ)
    let one = all(1.0);
    let share = simd.div_f32s(all(2.0), simd.add_f32s(exp(simd, simd.add_f32s(x, x)), one));
    let far = simd.sub_f32s(one, share);
    simd.select_f32s(simd.less_than_f32s(simd.abs_f32s(x), all(0.4)), near, far)
}

/// What a neuron does with what it reads.
#[inline(always)]
pub fn activated<S: Simd>(simd: S, activation: Activation, x: S::f32s) -> S::f32s {
    let all = |c| simd.splat_f32s(c);
    match activation {
        Activation::Silu => times_sigmoid(simd, x, x),
        Activation::Gelu => {
            let erf = erf(simd, simd.mul_f32s(x, all(FRAC_1_SQRT_2)));
            simd.mul_f32s(simd.mul_f32s(x, all(0.5)), simd.add_f32s(erf, all(1.0)))
        }
        // ½ x (1 + tanh y) = x / (1 + e⁻²ʸ) with y = √(2/π) (x + 0.044715 x³)
        Activation::GeluTanh => {
            let cubed = simd.mul_f32s(simd.mul_f32s(x, x), x);
            let y = simd.mul_add_e_f32s(cubed, all(0.044_715), x);
            times_sigmoid(simd, x, simd.mul_f32s(y, all(1.595_769)))
        }
        Activation::Relu => relu(simd, x),
        Activation::ReluSquared => {
            let relu = relu(simd, x);
            simd.mul_f32s(relu, relu)
        }
    }
}

/// Applies `f` to every number of x and y, which are as long as `out`.
#[inline(always)]
pub fn each<S: Simd>(simd: S, x: &[f32], y: &[f32], out: &mut [f32], f: impl Fn(S::f32s, S::f32s) -> S::f32s) {
    let (out, out_rest) = S::as_mut_simd_f32s(out);
    let ((x, x_rest), (y, y_rest)) = (S::as_simd_f32s(x), S::as_simd_f32s(y));
    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
        *out = f(*x, *y);
    }
    if !out_rest.is_empty() {
        let rest = f(simd.partial_load_f32s(x_rest), simd.partial_load_f32s(y_rest));
        simd.partial_store_f32s(out_rest, rest);
    }
}

/// Sums of what `add` adds of a and b, which are as long as each other: several at a time, as an addition takes longer than
/// it takes to begin the next.
#[inline(always)]
fn accumulate<S: Simd>(
    simd: S,
    a: &[S::f32s],
    b: &[S::f32s],
    add: impl Fn(S::f32s, S::f32s, S::f32s) -> S::f32s,
) -> S::f32s {
    let mut sums = [simd.splat_f32s(0.0); 4];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = add(*sum, *a, *b);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum = add(*sum, *a, *b);
    }
    let [a, b, c, d] = sums;
    simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d))
}

/// Σ a.
#[inline(always)]
pub fn sum<S: Simd>(simd: S, a: &[f32]) -> f32 {
    let (a, rest) = S::as_simd_f32s(a);
    let sum = accumulate::<S>(
        simd,
        a,
        a,
        #[inline(always)]
        |sum, a, _| simd.add_f32s(sum, a),
    );
    simd.reduce_sum_f32s(simd.add_f32s(sum, simd.partial_load_f32s(rest)))
}

/// a · b.
#[inline(always)]
pub fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let sum = accumulate::<S>(
        simd,
        a,
        b,
        #[inline(always)]
        |sum, a, b| simd.mul_add_e_f32s(a, b, sum),
    );
    let rest = simd.mul_f32s(simd.partial_load_f32s(a_rest), simd.partial_load_f32s(b_rest));
    simd.reduce_sum_f32s(simd.add_f32s(sum, rest))
}

/// Σ (a − shift)².
#[inline(always)]
pub fn squares<S: Simd>(simd: S, a: &[f32], shift: f32) -> f32 {
    let (a, rest) = S::as_simd_f32s(a);
    let all = simd.splat_f32s(shift);
    let sum = accumulate::<S>(
        simd,
        a,
        a,
        #[inline(always)]
        |sum, a, _| {
            let centred = simd.sub_f32s(a, all);
            simd.mul_add_e_f32s(centred, centred, sum)
        },
    );
    simd.reduce_sum_f32s(sum) + rest.iter().map(|a| (a - shift) * (a - shift)).sum::<f32>()
}

/// Numbers from −2 to 2 for tests.
#[cfg(test)]
pub fn noise(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 252.0 - 2.0).collect()
}

/// Zeros that tests have behind each row.
#[cfg(test)]
pub const PADDING: usize = 3;

/// Rows without the zeros behind them.
#[cfg(test)]
pub fn unpadded(padded: &[f32], columns: usize) -> Vec<f32> {
    let rows = padded.chunks_exact(columns + PADDING).map(|row| row.split_at(columns));
    rows.flat_map(|(row, padding)| {
        assert_eq!(padding, [0.0; PADDING]);
        row.iter().copied()
    })
    .collect()
}

/// What a test runs with every processor's registers that this one has, and without any.
#[cfg(test)]
pub fn with_every_width<Op: pulp::WithSimd>(op: impl Fn() -> Op) -> Vec<Op::Output> {
    let mut outputs = vec![Simd::vectorize(pulp::Scalar::new(), op())];
    #[cfg(target_arch = "x86_64")]
    {
        outputs.extend(pulp::x86::V3::try_new().map(|simd| Simd::vectorize(simd, op())));
        outputs.extend(pulp::x86::V4::try_new().map(|simd| Simd::vectorize(simd, op())));
    }
    outputs.push(pulp::Arch::new().dispatch(op()));
    outputs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from −`to` to `to`.
    fn line(to: f32) -> Vec<f32> {
        (-100_000..=100_000).map(|i| i as f32 * to / 100_000.0).collect()
    }

    enum Function {
        Exp,
        Tanh,
        Activated(Activation),
    }

    struct Of<'a>(&'a Function, &'a [f32]);

    impl pulp::WithSimd for Of<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
            let mut out = vec![0.0; self.1.len()];
            each(
                simd,
                self.1,
                self.1,
                &mut out,
                #[inline(always)]
                |x, _| match self.0 {
                    Function::Exp => exp(simd, x),
                    Function::Tanh => tanh(simd, x),
                    Function::Activated(activation) => activated(simd, *activation, x),
                },
            );
            out
        }
    }

    #[test]
    fn exponentials_are_right_to_two_units_in_the_last_place() {
        let x = line(86.9);
        for found in with_every_width(|| Of(&Function::Exp, &x)) {
            for (x, found) in x.iter().zip(found) {
                let expected = f64::from(*x).exp();
                assert!((f64::from(found) - expected).abs() <= 2.5e-7 * expected, "e^{x}: {found} is not {expected}");
            }
        }
        for found in with_every_width(|| Of(&Function::Exp, &[0.0, -87.1, f32::NEG_INFINITY, 100.0, f32::NAN])) {
            assert_eq!(found[..4], [1.0, 0.0, 0.0, f32::INFINITY]);
            assert!(found[4].is_nan());
        }
    }

    #[test]
    fn hyperbolic_tangents_are_right_to_three_units_in_the_last_place() {
        let x = [line(0.5), line(12.0), line(1e4)].concat();
        for found in with_every_width(|| Of(&Function::Tanh, &x)) {
            for (x, found) in x.iter().zip(found) {
                let expected = f64::from(*x).tanh();
                assert!(
                    (f64::from(found) - expected).abs() <= 4e-7 * expected.abs(),
                    "tanh {x}: {found} is not {expected}"
                );
            }
        }
        for found in with_every_width(|| Of(&Function::Tanh, &[f32::INFINITY, f32::NEG_INFINITY, f32::NAN])) {
            assert_eq!(found[..2], [1.0, -1.0]);
            assert!(found[2].is_nan());
        }
    }

    /// erf by its series and, farther out, by the continued fraction of its complement, in float64.
    fn erf_expected(x: f64) -> f64 {
        let t = x.abs();
        if t < 2.5 {
            let (mut term, mut sum) = (t, t);
            for n in 1..60 {
                term *= -t * t / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return (sum * 2.0 / std::f64::consts::PI.sqrt()).copysign(x);
        }
        let fraction = (1..80).rev().fold(t, |f, k| t + f64::from(k) / 2.0 / f);
        (1.0 - (-t * t).exp() / (fraction * std::f64::consts::PI.sqrt())).copysign(x)
    }

    fn expected(activation: Activation, x: f64) -> f64 {
        let y = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => 0.5 * x * (1.0 + erf_expected(x / std::f64::consts::SQRT_2)),
            Activation::GeluTanh => 0.5 * x * (1.0 + y.tanh()),
            Activation::Relu => x.max(0.0),
            Activation::ReluSquared => x.max(0.0) * x.max(0.0),
        }
    }

    #[test]
    fn activations_are_right_to_rounding() {
        // Abramowitz and Stegun, table 7.1.
        for (x, erf) in [(0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0), (3.0, 0.999_977_909_5)]
        {
            assert!((erf_expected(x) - erf).abs() < 1e-10, "{x}");
        }
        let x: Vec<f32> = [line(12.0), line(0.01), vec![-200.0, 200.0]].concat();
        let all = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::ReluSquared];
        for activation in all {
            let function = Function::Activated(activation);
            for found in with_every_width(|| Of(&function, &x)) {
                for (x, found) in x.iter().zip(found) {
                    let expected = expected(activation, f64::from(*x));
                    let error = (f64::from(found) - expected).abs();
                    assert!(
                        error <= 3e-7 * f64::from(x.abs()).max(expected),
                        "{activation:?} of {x}: {found} is not {expected}"
                    );
                }
            }
            for found in with_every_width(|| Of(&function, &[f32::NAN])) {
                assert!(found[0].is_nan(), "{activation:?} of NaN");
            }
        }
    }
}
