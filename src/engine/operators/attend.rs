//! Causal attention over unmasked keys only, a few queries at a time, and dot products of heads with directions.

use std::array::from_fn;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::functions::{dot, each, exp, tanh};

/// Heads of an attention.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub heads: usize,
    /// Each is read by heads / kv_heads heads.
    pub kv_heads: usize,
    pub d_head: usize,
    /// Of the scores; positive.
    pub scale: f32,
    /// Scores, scaled, become c · tanh(score / c).
    pub softcap: Option<f32>,
}

/// Attention in one prompt: z, each head's values mixed by the softmax of its scores of what its query sees.
pub struct Attend<'a> {
    pub heads: Heads,
    /// Of heads, [S, heads · d_head].
    pub queries: Projected<'a>,
    /// Of kv_heads, [S, kv_heads · d_head].
    pub keys: Projected<'a>,
    /// [S, kv_heads · d_head].
    pub values: &'a [f32],
    pub scratch: &'a mut Scratch,
    /// Zeros behind a row of `z`.
    pub padding: usize,
    /// [S, heads · d_head + padding].
    pub z: &'a mut [f32],
}

/// What a projection gave, to be read by head, with its bias and turned by its position.
#[derive(Clone, Copy)]
pub struct Projected<'a> {
    /// [S, heads · d_head].
    pub product: &'a [f32],
    /// [heads · d_head].
    pub bias: Option<&'a [f32]>,
    pub rotary: Option<Rotary<'a>>,
}

/// cos and sin of the angles by which a position turns pairs of a head's dimensions: each of the first `pairs` with that
/// one which lies `pairs` behind it.
#[derive(Clone, Copy)]
pub struct Rotary<'a> {
    pub pairs: usize,
    /// [S or more, pairs].
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

impl Projected<'_> {
    /// One of `heads` heads at one position, d_head numbers.
    #[inline(always)]
    fn take<S: Simd>(&self, simd: S, heads: usize, head: usize, position: usize, to: &mut [f32]) {
        let d_head = to.len();
        let of_head = &self.product[(position * heads + head) * d_head..][..d_head];
        match self.bias {
            None => to.copy_from_slice(of_head),
            Some(bias) => each(
                simd,
                of_head,
                &bias[head * d_head..][..d_head],
                to,
                #[inline(always)]
                |x, b| simd.add_f32s(x, b),
            ),
        }
        if let Some(Rotary { pairs, cos, sin }) = self.rotary {
            let at = position * pairs..(position + 1) * pairs;
            let (first, second) = to[..2 * pairs].split_at_mut(pairs);
            rotate(simd, first, second, &cos[at.clone()], &sin[at]);
        }
    }
}

/// x cos − y sin and y cos + x sin.
#[inline(always)]
fn rotate<S: Simd>(simd: S, x: &mut [f32], y: &mut [f32], cos: &[f32], sin: &[f32]) {
    #[inline(always)]
    fn turned<S: Simd>(simd: S, [x, y, cos, sin]: [S::f32s; 4]) -> [S::f32s; 2] {
        let (x_sin, y_sin) = (simd.mul_f32s(x, sin), simd.mul_f32s(y, sin));
        [simd.sub_f32s(simd.mul_f32s(x, cos), y_sin), simd.add_f32s(simd.mul_f32s(y, cos), x_sin)]
    }
    let ((x, x_rest), (y, y_rest)) = (S::as_mut_simd_f32s(x), S::as_mut_simd_f32s(y));
    let ((cos, cos_rest), (sin, sin_rest)) = (S::as_simd_f32s(cos), S::as_simd_f32s(sin));
    for (((x, y), cos), sin) in x.iter_mut().zip(y).zip(cos).zip(sin) {
        [*x, *y] = turned(simd, [*x, *y, *cos, *sin]);
    }
    if !x_rest.is_empty() {
        let read = [&*x_rest, &*y_rest, cos_rest, sin_rest].map(|rest| simd.partial_load_f32s(rest));
        let [x, y] = turned(simd, read);
        simd.partial_store_f32s(x_rest, x);
        simd.partial_store_f32s(y_rest, y);
    }
}

/// Each head's dot product with its direction.
pub struct MeetDirections<'a> {
    pub heads: usize,
    /// What lies behind a row of z.
    pub padding: usize,
    /// [rows, heads · d_head + padding].
    pub z: &'a [f32],
    /// [rows, heads · d_head] or a part of it that is repeated.
    pub directions: &'a [f32],
    /// [rows, heads].
    pub effects: &'a mut [f32],
}

impl WithSimd for MeetDirections<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { heads, padding, z, directions, effects } = self;
        let padded = heads * z.len() / effects.len();
        let (width, d_head) = (padded - padding, (padded - padding) / heads);
        for (row, (z, effects)) in z.chunks_exact(padded).zip(effects.chunks_exact_mut(heads)).enumerate() {
            let directions = &directions[row * width % directions.len()..][..width];
            for ((effect, z), u) in effects.iter_mut().zip(z.chunks_exact(d_head)).zip(directions.chunks_exact(d_head))
            {
                *effect = dot(simd, z, u);
            }
        }
    }
}

/// Memory that calls share. Rows are padded to whole registers: those of `values` with zeros, the others with what nobody
/// reads.
#[derive(Default)]
pub struct Scratch {
    /// Of one head, [d_head, S].
    keys: Vec<f32>,
    /// Of one head, [S, d_head].
    values: Vec<f32>,
    /// Queries, or keys on their way, [COLUMNS or fewer, d_head] without padding.
    taken: Vec<f32>,
    /// Of a few queries, [ROWS, S].
    scores: Vec<f32>,
    /// What they mix, [ROWS, d_head].
    mixed: Vec<f32>,
}

/// Queries that are computed together: with four registers of columns (two, where a processor has but 16 registers), their
/// sums fill the registers.
const ROWS: usize = 6;
/// Keys that become columns together, so that what is read and what is written stays in the nearest cache.
const COLUMNS: usize = 16;

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Heads { heads, kv_heads, d_head, .. } = self.heads;
        if self.padding > 0 {
            let rows = self.z.chunks_exact_mut(heads * d_head + self.padding);
            rows.for_each(|row| row[heads * d_head..].fill(0.0));
        }
        let positions = self.queries.product.len() / (heads * d_head);
        let (padded, d_padded) = (positions.next_multiple_of(S::F32_LANES), d_head.next_multiple_of(S::F32_LANES));
        self.scratch.fit([d_head * padded, positions * d_padded, COLUMNS * d_head, ROWS * padded, ROWS * d_padded]);
        for kv in 0..kv_heads {
            self.take_keys_and_values(simd, kv, positions, padded, d_padded);
            let group = heads / kv_heads;
            for head in kv * group..(kv + 1) * group {
                for first in (0..positions).step_by(ROWS) {
                    self.attend_rows(simd, head, first..positions.min(first + ROWS), padded, d_padded);
                }
            }
        }
    }
}

impl Attend<'_> {
    /// One head's keys, a column each, and its values.
    #[inline(always)]
    fn take_keys_and_values<S: Simd>(&mut self, simd: S, kv: usize, positions: usize, padded: usize, d_padded: usize) {
        let Heads { kv_heads, d_head, .. } = self.heads;
        let Scratch { keys, values, taken, .. } = &mut *self.scratch;
        for (row, to) in values.chunks_exact_mut(d_padded).enumerate() {
            to[..d_head].copy_from_slice(&self.values[(row * kv_heads + kv) * d_head..][..d_head]);
        }
        for first in (0..positions).step_by(COLUMNS) {
            let count = COLUMNS.min(positions - first);
            for (key, position) in taken.chunks_exact_mut(d_head).zip(first..first + count) {
                self.keys.take(simd, kv_heads, kv, position, key);
            }
            for (d, to) in keys.chunks_exact_mut(padded).enumerate() {
                for (key, to) in to[first..first + count].iter_mut().enumerate() {
                    *to = taken[key * d_head + d];
                }
            }
        }
    }

    /// One head's output at a few positions.
    #[inline(always)]
    fn attend_rows<S: Simd>(&mut self, simd: S, head: usize, rows: Range<usize>, padded: usize, d_padded: usize) {
        let Heads { heads, d_head, scale, softcap, .. } = self.heads;
        let of_head = |row: usize| row * (heads * d_head + self.padding) + head * d_head;
        let Scratch { keys, values, taken, scores, mixed } = &mut *self.scratch;
        for (query, position) in taken.chunks_exact_mut(d_head).zip(rows.clone()) {
            self.queries.take(simd, heads, head, position, query);
        }
        // Where there are fewer than ROWS left, the last one is computed again and left out.
        let queries: [&[f32]; ROWS] = from_fn(|i| &taken[i.min(rows.len() - 1) * d_head..][..d_head]);
        multiply(simd, queries, keys, padded, rows.end, scores);
        let mut sums = [1.0; ROWS];
        for ((sum, scores), row) in sums.iter_mut().zip(scores.chunks_exact_mut(padded)).zip(rows.clone()) {
            let scores = &mut scores[..rows.end.next_multiple_of(S::F32_LANES)];
            let scale = match softcap {
                None => scale,
                Some(cap) => {
                    soft_cap(simd, scores, scale, cap);
                    1.0
                }
            };
            *sum = exponentials(simd, scores, row + 1, scale);
        }
        let weights: [&[f32]; ROWS] = from_fn(|i| &scores[i * padded..][..rows.end]);
        multiply(simd, weights, values, d_padded, d_head, mixed);
        for ((mixed, sum), row) in mixed.chunks_exact(d_padded).zip(sums).zip(rows) {
            let (z, mixed) = (&mut self.z[of_head(row)..][..d_head], &mixed[..d_head]);
            let share = simd.splat_f32s(1.0 / sum);
            each(
                simd,
                mixed,
                mixed,
                z,
                #[inline(always)]
                |mixed, _| simd.mul_f32s(mixed, share),
            );
        }
    }
}

impl Scratch {
    fn fit(&mut self, sizes: [usize; 5]) {
        let Self { keys, values, taken, scores, mixed } = self;
        for (buffer, size) in [keys, values, taken, scores, mixed].into_iter().zip(sizes) {
            if buffer.len() != size {
                buffer.clear();
                buffer.resize(size, 0.0);
            }
        }
    }
}

/// a [ROWS, inner] times the first `columns` of b [inner, stride], rounded up to whole registers, into rows of `out` that
/// are as long as b's.
#[inline(always)]
fn multiply<S: Simd>(simd: S, a: [&[f32]; ROWS], b: &[f32], stride: usize, columns: usize, out: &mut [f32]) {
    let lanes = S::F32_LANES;
    let has_32_registers = lanes == 16;
    let mut column = 0;
    while has_32_registers && column + 3 * lanes < columns {
        multiply_tile::<S, 4>(simd, a, &b[column..], stride, &mut out[column..]);
        column += 4 * lanes;
    }
    while column + lanes < columns {
        multiply_tile::<S, 2>(simd, a, &b[column..], stride, &mut out[column..]);
        column += 2 * lanes;
    }
    if column < columns {
        multiply_tile::<S, 1>(simd, a, &b[column..], stride, &mut out[column..]);
    }
}

/// As [`multiply`], of as many columns as C registers hold.
#[inline(always)]
fn multiply_tile<S: Simd, const C: usize>(simd: S, a: [&[f32]; ROWS], b: &[f32], stride: usize, out: &mut [f32]) {
    let inner = a[0].len();
    let a = a.map(|row| &row[..inner]);
    let width = C * S::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); C]; ROWS];
    for l in 0..inner {
        let b = S::as_simd_f32s(&b[l * stride..][..width]).0;
        let b: [S::f32s; C] = from_fn(|c| b[c]);
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = simd.splat_f32s(a[l]);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add_e_f32s(a, b, *sum);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        S::as_mut_simd_f32s(&mut out[row * stride..][..width]).0.copy_from_slice(sums);
    }
}

/// c · tanh(scale · score / c) of each score. There are whole registers of them.
#[inline(always)]
fn soft_cap<S: Simd>(simd: S, scores: &mut [f32], scale: f32, cap: f32) {
    let (share, cap) = (simd.splat_f32s(scale / cap), simd.splat_f32s(cap));
    for score in S::as_mut_simd_f32s(scores).0 {
        *score = simd.mul_f32s(cap, tanh(simd, simd.mul_f32s(*score, share)));
    }
}

/// e^(scale · (score − the largest)) of the first `seen` scores, and 0 for the rest; returns the sum.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, scores: &mut [f32], seen: usize, scale: f32) -> f32 {
    scores[seen..].fill(f32::NEG_INFINITY);
    let scores = S::as_mut_simd_f32s(scores).0;
    let mut largest = simd.splat_f32s(f32::NEG_INFINITY);
    for score in scores.iter() {
        largest = simd.max_f32s(largest, *score);
    }
    let shift = simd.splat_f32s(-scale * simd.reduce_max_f32s(largest));
    let scale = simd.splat_f32s(scale);
    let mut sum = simd.splat_f32s(0.0);
    for score in scores {
        *score = exp(simd, simd.mul_add_e_f32s(*score, scale, shift));
        sum = simd.add_f32s(sum, *score);
    }
    simd.reduce_sum_f32s(sum)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::functions::{PADDING, noise, unpadded, with_every_width};
    use super::*;

    /// What a prompt's attention reads.
    #[derive(Clone, Copy)]
    struct Read<'a> {
        queries: Projected<'a>,
        keys: Projected<'a>,
        values: &'a [f32],
        directions: &'a [f32],
    }

    fn plain(product: &[f32]) -> Projected<'_> {
        Projected { product, bias: None, rotary: None }
    }

    /// [`Attend`], with memory of its own for z and the effects.
    struct Attended<'a>(Heads, Read<'a>, &'a RefCell<Scratch>);

    impl WithSimd for Attended<'_> {
        type Output = (Vec<f32>, Vec<f32>);

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            let Self(heads, Read { queries, keys, values, directions }, scratch) = self;
            let (scratch, size) = (&mut scratch.borrow_mut(), queries.product.len());
            let width = heads.heads * heads.d_head;
            let mut z = vec![f32::NAN; size + size / width * PADDING];
            let mut effects = vec![f32::NAN; size / heads.d_head];
            Attend { heads, queries, keys, values, scratch, padding: PADDING, z: &mut z }.with_simd(simd);
            let met = MeetDirections { heads: heads.heads, padding: PADDING, z: &z, directions, effects: &mut effects };
            met.with_simd(simd);
            (unpadded(&z, width), effects)
        }
    }

    /// A head at a position as attention reads it, in float64: with its bias, each pair of dimensions turned.
    fn taken(of: Projected, heads: usize, d_head: usize, head: usize, position: usize) -> Vec<f64> {
        let product = &of.product[(position * heads + head) * d_head..][..d_head];
        let bias = |d| of.bias.map_or(0.0, |b| f64::from(b[head * d_head + d]));
        let mut x: Vec<f64> = (0..d_head).map(|d| f64::from(product[d]) + bias(d)).collect();
        if let Some(Rotary { pairs, cos, sin }) = of.rotary {
            for i in 0..pairs {
                let [cos, sin] = [cos, sin].map(|table| f64::from(table[position * pairs + i]));
                (x[i], x[i + pairs]) = (x[i] * cos - x[i + pairs] * sin, x[i + pairs] * cos + x[i] * sin);
            }
        }
        x
    }

    /// z by the definition, in float64.
    fn expected(heads: Heads, read: Read, positions: usize) -> Vec<f64> {
        let Heads { heads, kv_heads, d_head, scale, softcap } = heads;
        let kv = |head: usize| head / (heads / kv_heads);
        let mut z = vec![0.0; positions * heads * d_head];
        for head in 0..heads {
            for i in 0..positions {
                let query = taken(read.queries, heads, d_head, head, i);
                let value = |j: usize, d: usize| f64::from(read.values[(j * kv_heads + kv(head)) * d_head + d]);
                let score = |j| -> f64 {
                    let key = taken(read.keys, kv_heads, d_head, kv(head), j);
                    query.iter().zip(key).map(|(q, k)| q * k).sum()
                };
                let scaled = |j| score(j) * f64::from(scale);
                let capped = |x: f64| softcap.map_or(x, |c| f64::from(c) * (x / f64::from(c)).tanh());
                let weights: Vec<f64> = (0..=i).map(|j| capped(scaled(j)).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..d_head {
                    let mixed: f64 = weights.iter().enumerate().map(|(j, w)| w * value(j, d)).sum();
                    z[(i * heads + head) * d_head + d] = mixed / total;
                }
            }
        }
        z
    }

    #[test]
    fn attention_is_right_for_every_shape_and_processor() {
        let shapes = [(1, 4, 4, 16), (7, 2, 1, 5), (33, 6, 2, 64), (50, 3, 3, 80), (127, 2, 1, 32)];
        // Memory is shared between calls: what one leaves must not reach the next.
        let scratch = RefCell::default();
        let capped = shapes.into_iter().flat_map(|shape| [None, Some(3.0)].map(|softcap| (shape, softcap)));
        for ((positions, heads, kv_heads, d_head), softcap) in capped {
            let of = Heads { heads, kv_heads, d_head, scale: 1.0 / (d_head as f32).sqrt(), softcap };
            let (wide, narrow) = (positions * heads * d_head, positions * kv_heads * d_head);
            let [q, u, k, v] = [noise(wide, 1), noise(wide, 2), noise(narrow, 3), noise(narrow, 4)];
            let (q_bias, k_bias) = (noise(heads * d_head, 5), noise(kv_heads * d_head, 6));
            // All dimensions but one or two, of one position more than there is.
            let pairs = (d_head - 1) / 2;
            let angles = (0..(positions + 1) * pairs).map(|i| 0.7 * i as f32);
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
            let rotary = Some(Rotary { pairs, cos: &cos, sin: &sin });
            let prepared = [
                (plain(&q), plain(&k)),
                (Projected { bias: Some(&q_bias), ..plain(&q) }, Projected { bias: Some(&k_bias), ..plain(&k) }),
                (Projected { rotary, ..plain(&q) }, Projected { rotary, bias: Some(&k_bias), ..plain(&k) }),
            ];
            for (queries, keys) in prepared {
                let read = Read { queries, keys, values: &v, directions: &u };
                let expected = expected(of, read, positions);
                for (z, effects) in with_every_width(|| Attended(of, read, &scratch)) {
                    for (i, (found, expected)) in z.iter().zip(&expected).enumerate() {
                        let place = format!("{positions} positions of {of:?}, number {i}");
                        assert!((f64::from(*found) - expected).abs() < 3e-5, "{place}: {found} is not {expected}");
                    }
                    let products = expected.iter().zip(&u).map(|(z, u)| z * f64::from(*u)).collect::<Vec<_>>();
                    let expected = products.chunks(d_head).map(|p| p.iter().sum::<f64>());
                    for (found, expected) in effects.iter().zip(expected) {
                        // As far off as every number of z may be, times directions of 2.
                        let error = (f64::from(*found) - expected).abs();
                        assert!(error < 6e-5 * d_head as f64, "{found} is not {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_reaches_who_sees_it() {
        let of = Heads { heads: 1, kv_heads: 1, d_head: 4, scale: 0.5, softcap: None };
        let [q, k, u] = [noise(40, 1), noise(40, 2), noise(40, 3)];
        let mut v = noise(40, 4);
        v[5 * 4] = f32::NAN;
        let read = Read { queries: plain(&q), keys: plain(&k), values: &v, directions: &u };
        let scratch = RefCell::default();
        for (_, effects) in with_every_width(|| Attended(of, read, &scratch)) {
            // And the queries computed with it: zero times NaN is NaN.
            assert!(effects[5..].iter().all(|e| e.is_nan()), "{effects:?}");
        }
    }
}
