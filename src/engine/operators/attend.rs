//! Causal attention, a few queries at a time and only over what they see, and heads' dot products with directions.

use std::array::from_fn;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::functions::{dot, each, exp};

/// Heads of an attention.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub heads: usize,
    /// Each is read by heads / kv_heads heads.
    pub kv_heads: usize,
    pub d_head: usize,
    /// Of the scores; positive.
    pub scale: f32,
}

/// Attention in one prompt: z, each head's values mixed by the softmax of its scores of what its query sees.
pub struct Attend<'a> {
    pub heads: Heads,
    /// [S, heads · d_head].
    pub queries: &'a [f32],
    /// [S, kv_heads · d_head].
    pub keys: &'a [f32],
    /// As keys.
    pub values: &'a [f32],
    pub scratch: &'a mut Scratch,
    /// As queries.
    pub z: &'a mut [f32],
}

/// Each head's dot product with its direction.
pub struct MeetDirections<'a> {
    pub d_head: usize,
    /// Rows of d_head numbers.
    pub z: &'a [f32],
    /// As z, or a part of it that is repeated.
    pub directions: &'a [f32],
    /// A number a row.
    pub effects: &'a mut [f32],
}

impl WithSimd for MeetDirections<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (row, (z, effect)) in self.z.chunks_exact(self.d_head).zip(self.effects).enumerate() {
            let at = row * self.d_head % self.directions.len();
            *effect = dot(simd, z, &self.directions[at..at + self.d_head]);
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
    /// Of a few queries, [ROWS, S].
    scores: Vec<f32>,
    /// What they mix, [ROWS, d_head].
    mixed: Vec<f32>,
}

/// Queries that are computed together: with four registers of columns (two, where a processor has but 16 registers), their
/// sums fill the registers.
const ROWS: usize = 6;

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Heads { heads, kv_heads, d_head, .. } = self.heads;
        let positions = self.queries.len() / (heads * d_head);
        let (padded, d_padded) = (positions.next_multiple_of(S::F32_LANES), d_head.next_multiple_of(S::F32_LANES));
        self.scratch.fit([d_head * padded, positions * d_padded, ROWS * padded, ROWS * d_padded]);
        for kv in 0..kv_heads {
            self.take_keys_and_values(kv, padded, d_padded);
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
    fn take_keys_and_values(&mut self, kv: usize, padded: usize, d_padded: usize) {
        let Heads { kv_heads, d_head, .. } = self.heads;
        let of_head = |row: usize| row * kv_heads * d_head + kv * d_head;
        for (row, to) in self.scratch.values.chunks_exact_mut(d_padded).enumerate() {
            to[..d_head].copy_from_slice(&self.values[of_head(row)..][..d_head]);
        }
        let positions = self.queries.len() / (self.heads.heads * d_head);
        for (d, to) in self.scratch.keys.chunks_exact_mut(padded).enumerate() {
            for (row, key) in to[..positions].iter_mut().enumerate() {
                *key = self.keys[of_head(row) + d];
            }
        }
    }

    /// One head's output at a few positions.
    #[inline(always)]
    fn attend_rows<S: Simd>(&mut self, simd: S, head: usize, rows: Range<usize>, padded: usize, d_padded: usize) {
        let Heads { heads, d_head, scale, .. } = self.heads;
        let of_head = |row: usize| (row * heads + head) * d_head..(row * heads + head + 1) * d_head;
        let Scratch { keys, values, scores, mixed } = &mut *self.scratch;
        // Where there are fewer than ROWS left, the last one is computed again and left out.
        let queries: [&[f32]; ROWS] = from_fn(|i| &self.queries[of_head((rows.start + i).min(rows.end - 1))]);
        multiply(simd, queries, keys, padded, rows.end, scores);
        let mut sums = [1.0; ROWS];
        for ((sum, scores), row) in sums.iter_mut().zip(scores.chunks_exact_mut(padded)).zip(rows.clone()) {
            *sum = exponentials(simd, &mut scores[..rows.end.next_multiple_of(S::F32_LANES)], row + 1, scale);
        }
        let weights: [&[f32]; ROWS] = from_fn(|i| &scores[i * padded..][..rows.end]);
        multiply(simd, weights, values, d_padded, d_head, mixed);
        for ((mixed, sum), row) in mixed.chunks_exact(d_padded).zip(sums).zip(rows) {
            let (z, mixed) = (&mut self.z[of_head(row)], &mixed[..d_head]);
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
    fn fit(&mut self, sizes: [usize; 4]) {
        for (buffer, size) in
            [&mut self.keys, &mut self.values, &mut self.scores, &mut self.mixed].into_iter().zip(sizes)
        {
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

    use super::super::functions::{noise, with_every_width};
    use super::*;

    /// What a prompt's attention reads.
    #[derive(Clone, Copy)]
    struct Read<'a> {
        queries: &'a [f32],
        keys: &'a [f32],
        values: &'a [f32],
        directions: &'a [f32],
    }

    /// [`Attend`], with memory of its own for z and the effects.
    struct Attended<'a>(Heads, Read<'a>, &'a RefCell<Scratch>);

    impl WithSimd for Attended<'_> {
        type Output = (Vec<f32>, Vec<f32>);

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            let Self(heads, Read { queries, keys, values, directions }, scratch) = self;
            let mut z = vec![f32::NAN; queries.len()];
            let mut effects = vec![f32::NAN; queries.len() / heads.d_head];
            let (scratch, z_of, effects_of) = (&mut scratch.borrow_mut(), &mut z[..], &mut effects[..]);
            Attend { heads, queries, keys, values, scratch, z: z_of }.with_simd(simd);
            MeetDirections { d_head: heads.d_head, z: &z, directions, effects: effects_of }.with_simd(simd);
            (z, effects)
        }
    }

    /// z by the definition, in float64.
    fn expected(heads: Heads, read: Read, positions: usize) -> Vec<f64> {
        let Heads { heads, kv_heads, d_head, scale } = heads;
        let kv = |head: usize| head / (heads / kv_heads);
        let mut z = vec![0.0; positions * heads * d_head];
        for head in 0..heads {
            for i in 0..positions {
                let query = &read.queries[(i * heads + head) * d_head..][..d_head];
                let of = |x: &[f32], j: usize, d: usize| f64::from(x[(j * kv_heads + kv(head)) * d_head + d]);
                let score = |j| -> f64 { (0..d_head).map(|d| f64::from(query[d]) * of(read.keys, j, d)).sum() };
                let weights: Vec<f64> = (0..=i).map(|j| (score(j) * f64::from(scale)).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..d_head {
                    let mixed: f64 = weights.iter().enumerate().map(|(j, w)| w * of(read.values, j, d)).sum();
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
        for (positions, heads, kv_heads, d_head) in shapes {
            let of = Heads { heads, kv_heads, d_head, scale: 1.0 / (d_head as f32).sqrt() };
            let (wide, narrow) = (positions * heads * d_head, positions * kv_heads * d_head);
            let [q, u, k, v] = [noise(wide, 1), noise(wide, 2), noise(narrow, 3), noise(narrow, 4)];
            let read = Read { queries: &q, keys: &k, values: &v, directions: &u };
            let expected = expected(of, read, positions);
            for (z, effects) in with_every_width(|| Attended(of, read, &scratch)) {
                for (i, (found, expected)) in z.iter().zip(&expected).enumerate() {
                    let place = format!("{positions} positions of {of:?}, number {i}");
                    assert!((f64::from(*found) - expected).abs() < 1e-5, "{place}: {found} is not {expected}");
                }
                let products = expected.iter().zip(&u).map(|(z, u)| z * f64::from(*u)).collect::<Vec<_>>();
                for (found, expected) in effects.iter().zip(products.chunks(d_head).map(|p| p.iter().sum::<f64>())) {
                    // As far off as every number of z may be, times directions of 2.
                    assert!((f64::from(*found) - expected).abs() < 2e-5 * d_head as f64, "{found} is not {expected}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_reaches_who_sees_it() {
        let of = Heads { heads: 1, kv_heads: 1, d_head: 4, scale: 0.5 };
        let [q, k, u] = [noise(40, 1), noise(40, 2), noise(40, 3)];
        let mut v = noise(40, 4);
        v[5 * 4] = f32::NAN;
        let read = Read { queries: &q, keys: &k, values: &v, directions: &u };
        let scratch = RefCell::default();
        for (_, effects) in with_every_width(|| Attended(of, read, &scratch)) {
            // And the queries computed with it: none times no number is no number.
            assert!(effects[5..].iter().all(|e| e.is_nan()), "{effects:?}");
        }
    }
}
