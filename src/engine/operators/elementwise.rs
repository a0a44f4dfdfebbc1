//! The elementwise operations between a block's matrix products, each fused into one pass over memory.

use pulp::{Simd, WithSimd};

use super::functions::{activated, dot, each, squares, sum};
use selfrepair_model::Activation;

/// post = activation(x + bias), or activation(x) ⊙ up.
pub struct Activate<'a> {
    pub activation: Activation,
    /// Numbers in a row, M.
    pub columns: usize,
    /// Zeros behind a row of `post`.
    pub padding: usize,
    /// [rows, M].
    pub x: &'a [f32],
    /// \[M\].
    pub bias: Option<&'a [f32]>,
    /// [rows, M].
    pub up: Option<&'a [f32]>,
    /// [rows, M + padding].
    pub post: &'a mut [f32],
}

impl WithSimd for Activate<'_> {
    type Output = ();

    // A function that is not inlined into this one is compiled without the processor's registers.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { activation, columns, padding, x, bias, up, post } = self;
        for (row, (x, post)) in x.chunks_exact(columns).zip(post.chunks_exact_mut(columns + padding)).enumerate() {
            let (post, padding) = post.split_at_mut(columns);
            padding.fill(0.0);
            match (up, bias) {
                (Some(up), _) => each(
                    simd,
                    x,
                    &up[row * columns..][..columns],
                    post,
                    #[inline(always)]
                    |x, up| simd.mul_f32s(activated(simd, activation, x), up),
                ),
                (None, None) => each(
                    simd,
                    x,
                    x,
                    post,
                    #[inline(always)]
                    |x, _| activated(simd, activation, x),
                ),
                (None, Some(bias)) => each(
                    simd,
                    x,
                    bias,
                    post,
                    #[inline(always)]
                    |x, bias| activated(simd, activation, simd.add_f32s(x, bias)),
                ),
            }
        }
    }
}

/// What a component writes to the stream: written = product + bias (the product, if there is no bias), sum = stream +
/// written, and, if there are directions, effects \[rows\] = written · direction.
pub struct Add<'a> {
    /// Numbers in a row.
    pub d_model: usize,
    /// [rows, D].
    pub product: &'a [f32],
    /// \[D\].
    pub bias: Option<&'a [f32]>,
    /// [rows, D].
    pub stream: &'a [f32],
    /// [rows, D] or a part of it that is repeated, with where to leave `effects`.
    pub directions: Option<(&'a [f32], &'a mut [f32])>,
    pub sum: &'a mut [f32],
    /// Room for one row with its bias, so that what is written need not go through memory.
    pub written: &'a mut Vec<f32>,
}

impl WithSimd for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let d = self.d_model;
        self.written.resize(d, 0.0);
        for (row, sum) in self.sum.chunks_exact_mut(d).enumerate() {
            let at = row * d..(row + 1) * d;
            let mut written = &self.product[at.clone()];
            if let Some(bias) = self.bias {
                each(
                    simd,
                    written,
                    bias,
                    self.written,
                    #[inline(always)]
                    |w, b| simd.add_f32s(w, b),
                );
                written = self.written;
            }
            each(
                simd,
                &self.stream[at],
                written,
                sum,
                #[inline(always)]
                |s, w| simd.add_f32s(s, w),
            );
            if let Some((u, effects)) = &mut self.directions {
                effects[row] = dot(simd, written, &u[row * d % u.len()..][..d]);
            }
        }
    }
}

/// A norm's scale is √(mean x² + ε), under layer norm of what is left when the mean is taken away.
#[derive(Clone, Copy)]
pub struct NormKind {
    pub epsilon: f32,
    pub is_centred: bool,
}

impl NormKind {
    /// A row's mean (0 where it is not taken away) and scale.
    #[inline(always)]
    fn measure<S: Simd>(self, simd: S, x: &[f32]) -> (f32, f32) {
        let mean = if self.is_centred { sum(simd, x) / x.len() as f32 } else { 0.0 };
        (mean, (squares(simd, x, mean) / x.len() as f32 + self.epsilon).sqrt())
    }
}

/// Rows divided by their scale and multiplied by γ; under layer norm, less their mean first.
pub struct Normalize<'a> {
    pub norm: NormKind,
    /// Zeros behind a row of `normed`.
    pub padding: usize,
    /// [rows, D].
    pub x: &'a [f32],
    /// \[D\].
    pub gamma: &'a [f32],
    /// [rows, D + padding].
    pub normed: &'a mut [f32],
}

impl WithSimd for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let d = self.gamma.len();
        for (x, normed) in self.x.chunks_exact(d).zip(self.normed.chunks_exact_mut(d + self.padding)) {
            let (normed, padding) = normed.split_at_mut(d);
            padding.fill(0.0);
            let (mean, scale) = self.norm.measure(simd, x);
            let (shift, share) = (simd.splat_f32s(mean), simd.splat_f32s(1.0 / scale));
            each(
                simd,
                x,
                self.gamma,
                normed,
                #[inline(always)]
                |x, gamma| simd.mul_f32s(simd.mul_f32s(simd.sub_f32s(x, shift), share), gamma),
            );
        }
    }
}

/// The scale of each row.
pub struct MeasureNorm<'a> {
    pub norm: NormKind,
    /// [rows, D].
    pub x: &'a [f32],
    /// [rows].
    pub scale: &'a mut [f32],
}

impl WithSimd for MeasureNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let d = self.x.len() / self.scale.len();
        for (x, scale) in self.x.chunks_exact(d).zip(self.scale) {
            *scale = self.norm.measure(simd, x).1;
        }
    }
}

/// read = ratio ⊙ clean + change: what a projection reads of a stream that one head changed (`export::readers`).
pub struct ReadChange<'a> {
    /// [rows, N] or a part of it that is repeated.
    pub clean: &'a [f32],
    /// [rows].
    pub ratio: &'a [f32],
    /// [rows, N].
    pub change: &'a [f32],
    pub read: &'a mut [f32],
}

impl WithSimd for ReadChange<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let n = self.read.len() / self.ratio.len();
        for ((row, read), ratio) in self.read.chunks_exact_mut(n).enumerate().zip(self.ratio) {
            let ratio = simd.splat_f32s(*ratio);
            each(
                simd,
                &self.clean[row * n % self.clean.len()..][..n],
                &self.change[row * n..][..n],
                read,
                #[inline(always)]
                |clean, change| simd.mul_add_e_f32s(clean, ratio, change),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::functions::{PADDING, noise, unpadded, with_every_width};
    use super::*;

    /// [`Activate`], with memory of its own for what it writes.
    struct Activated<'a>(Activation, usize, &'a [f32], Option<&'a [f32]>, Option<&'a [f32]>);

    impl WithSimd for Activated<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
            let Self(activation, columns, x, bias, up) = self;
            let mut post = vec![f32::NAN; x.len() / columns * (columns + PADDING)];
            Activate { activation, columns, padding: PADDING, x, bias, up, post: &mut post }.with_simd(simd);
            unpadded(&post, columns)
        }
    }

    #[test]
    fn neurons_read_a_bias_or_are_gated() {
        let (rows, width) = (3, 37);
        let [x, up, bias] = [noise(rows * width, 1), noise(rows * width, 2), noise(width, 3)];
        let silu = |x: f32| x / (1.0 + (-x).exp());
        let check = |activation, bias, up, expected: &dyn Fn(usize) -> f32| {
            for found in with_every_width(|| Activated(activation, width, &x, bias, up)) {
                let close = |(i, y): (usize, &f32)| (y - expected(i)).abs() < 1e-6;
                assert!(found.iter().enumerate().all(close), "{activation:?}: {found:?}");
            }
        };
        check(Activation::Silu, None, None, &|i| silu(x[i]));
        check(Activation::Silu, Some(&bias), None, &|i| silu(x[i] + bias[i % width]));
        check(Activation::Relu, None, Some(&up), &|i| x[i].max(0.0) * up[i]);
        check(Activation::ReluSquared, Some(&bias), None, &|i| (x[i] + bias[i % width]).max(0.0).powi(2));
    }

    /// [`Add`], likewise: `sum` and `effects`.
    struct Added<'a>(usize, &'a [f32], Option<&'a [f32]>, &'a [f32], &'a [f32]);

    impl WithSimd for Added<'_> {
        type Output = [Vec<f32>; 2];

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> [Vec<f32>; 2] {
            let Self(d_model, product, bias, stream, u) = self;
            let (mut sum, mut effects) = (vec![f32::NAN; product.len()], vec![f32::NAN; product.len() / d_model]);
            let directions = Some((u, &mut effects[..]));
            let written = &mut vec![];
            Add { d_model, product, bias, stream, directions, sum: &mut sum, written }.with_simd(simd);
            [sum, effects]
        }
    }

    #[test]
    fn an_addition_adds_its_bias_and_meets_its_direction() {
        let (rows, d) = (6, 21);
        let [product, stream, bias, u] = [noise(rows * d, 1), noise(rows * d, 2), noise(d, 3), noise(3 * d, 4)];
        for bias in [Some(&bias[..]), None] {
            let expected: Vec<f32> = (0..rows * d).map(|i| product[i] + bias.map_or(0.0, |b| b[i % d])).collect();
            for [sum, effects] in with_every_width(|| Added(d, &product, bias, &stream, &u)) {
                assert_eq!(sum, stream.iter().zip(&expected).map(|(s, w)| s + w).collect::<Vec<_>>());
                for (row, effect) in effects.iter().enumerate() {
                    // The directions of three rows serve the next three, too.
                    let of = |i: usize| f64::from(expected[row * d + i]) * f64::from(u[row % 3 * d + i]);
                    assert!((f64::from(*effect) - (0..d).map(of).sum::<f64>()).abs() < 1e-4, "row {row}: {effect}");
                }
            }
        }
    }

    /// [`Normalize`], and the scales by [`MeasureNorm`], likewise.
    struct Normed<'a>(&'a [f32], &'a [f32], bool);

    impl WithSimd for Normed<'_> {
        type Output = [Vec<f32>; 2];

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> [Vec<f32>; 2] {
            let Self(x, gamma, is_centred) = self;
            let norm = NormKind { epsilon: 1e-5, is_centred };
            let (d, rows) = (gamma.len(), x.len() / gamma.len());
            let (mut normed, mut scale) = (vec![f32::NAN; rows * (d + PADDING)], vec![f32::NAN; rows]);
            Normalize { norm, padding: PADDING, x, gamma, normed: &mut normed }.with_simd(simd);
            MeasureNorm { norm, x, scale: &mut scale }.with_simd(simd);
            [unpadded(&normed, d), scale]
        }
    }

    #[test]
    fn norms_are_right_to_rounding() {
        let rows = 4;
        // Whole registers, a part of one, and both.
        for d in [37, 7, 160, 571] {
            let gamma = noise(d, 2);
            // Rows far from 0, where squares less the square of the mean would lose what counts.
            let x: Vec<f32> = noise(rows * d, 1).iter().map(|x| x + 300.0).collect();
            for is_centred in [false, true] {
                for [normed, scales] in with_every_width(|| Normed(&x, &gamma, is_centred)) {
                    for ((x, found), found_scale) in x.chunks(d).zip(normed.chunks(d)).zip(scales) {
                        let mean = |f: &dyn Fn(f64) -> f64| x.iter().map(|x| f(f64::from(*x))).sum::<f64>() / d as f64;
                        let centre = if is_centred { mean(&|x| x) } else { 0.0 };
                        let scale = (mean(&|x| (x - centre).powi(2)) + 1e-5).sqrt();
                        let error = (f64::from(found_scale) / scale - 1.0).abs();
                        assert!(error < 1e-6, "{found_scale} is not {scale}");
                        for ((x, gamma), found) in x.iter().zip(&gamma).zip(found) {
                            let expected = (f64::from(*x) - centre) / scale * f64::from(*gamma);
                            assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} is not {expected}");
                        }
                    }
                }
            }
        }
    }

    /// [`ReadChange`], likewise.
    struct Read<'a>(&'a [f32], &'a [f32], &'a [f32]);

    impl WithSimd for Read<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
            let Self(clean, ratio, change) = self;
            let mut read = vec![f32::NAN; change.len()];
            ReadChange { clean, ratio, change, read: &mut read }.with_simd(simd);
            read
        }
    }

    #[test]
    fn a_change_is_read_beside_the_clean_stream_of_all_runs() {
        let (rows, n) = (6, 37);
        let [clean, ratio, change] = [noise(2 * n, 1), noise(rows, 2), noise(rows * n, 3)];
        for read in with_every_width(|| Read(&clean, &ratio, &change)) {
            for (i, read) in read.iter().enumerate() {
                // The clean stream's two rows serve every run.
                let expected = f64::from(ratio[i / n]) * f64::from(clean[i % (2 * n)]) + f64::from(change[i]);
                assert!((f64::from(*read) - expected).abs() < 1e-6, "number {i}: {read} is not {expected}");
            }
        }
    }
}
