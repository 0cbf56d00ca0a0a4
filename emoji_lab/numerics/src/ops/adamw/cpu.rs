use std::ops::Range;

use rayon::prelude::*;

use super::AdamW;
use crate::ops::math::wide;
use crate::rng::Philox;

/// Elements a task takes.
const CHUNK: usize = 64 * 1024;

/// What is the same for every element of a step, clipping aside. Kernels read it as it lies in
/// memory (`Factors` in `ops/common.cuh`).
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Factors {
    /// What a weight is multiplied by: `1 − learning_rate · weight_decay`.
    pub decay: f32,
    pub(super) one_minus_beta1: f32,
    pub(super) beta2: f32,
    pub(super) one_minus_beta2: f32,
    pub(super) eps: f32,
    /// The learning rate, corrected for the first moment's bias.
    pub step_size: f32,
    pub(super) root_of_correction2: f32,
}

impl Factors {
    /// Those of step number `step`, counted from 1.
    pub fn new(s: &AdamW, learning_rate: f64, step: usize) -> Self {
        let step = i32::try_from(step).unwrap_or(i32::MAX);
        Self {
            decay: (1.0 - learning_rate * s.weight_decay) as f32,
            // Subtracted in f64: 1 − 0.999 in f32 is off by 1.7e-5.
            one_minus_beta1: (1.0 - s.beta1) as f32,
            beta2: s.beta2 as f32,
            one_minus_beta2: (1.0 - s.beta2) as f32,
            eps: s.eps as f32,
            step_size: (learning_rate / (1.0 - s.beta1.powi(step))) as f32,
            root_of_correction2: (1.0 - s.beta2.powi(step)).sqrt() as f32,
        }
    }
}

/// The elements are those from number `at` on. `first` are how many from the first of all on have factors of their own,
/// and these.
#[expect(clippy::too_many_arguments, reason = "the formula has as many")]
pub(super) fn step(
    at: usize,
    values: &mut [f32],
    gradients: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    (others, first): (&Factors, &(usize, Factors)),
    no_decay: &[Range<usize>],
    gradient_scale: f32,
    rounding: Option<&Philox>,
) {
    values
        .par_chunks_mut(CHUNK)
        .zip(gradients.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK))
        .zip(v.par_chunks_mut(CHUNK))
        .enumerate()
        .for_each(|(chunk, (((values, gradients), m), v))| {
            let start = at + chunk * CHUNK;
            for (piece, decays) in pieces(start..start + values.len(), no_decay, first.0) {
                let f = if piece.start < first.0 { &first.1 } else { others };
                let piece = piece.start - start..piece.end - start;
                let decay = if decays { f.decay } else { 1.0 };
                let (values, gradients) = (&mut values[piece.clone()], &gradients[piece.clone()]);
                let (m, v) = (&mut m[piece.clone()], &mut v[piece]);
                moved(values, gradients, m, v, f, decay, gradient_scale);
            }
            let Some(rounding) = rounding else { return };
            let mut words = [0; 4];
            for (i, (m, v)) in (start..).zip(m.iter_mut().zip(v)) {
                if i % 4 == 0 || i == start {
                    words = rounding.at(i as u64 / 4);
                }
                let word = words[i % 4];
                *m = rounded_to_bf16(*m, word & 0xffff);
                *v = rounded_to_bf16(*v, word >> 16);
            }
        });
}

wide! {
    /// Elements that have their factors in common.
    fn moved(
        values: &mut [f32],
        gradients: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        f: &Factors,
        decay: f32,
        gradient_scale: f32,
    ) {
        for ((p, g), (m, v)) in values.iter_mut().zip(gradients).zip(m.iter_mut().zip(v)) {
            let g = g * gradient_scale;
            *m += f.one_minus_beta1 * (g - *m);
            *v = f.beta2 * *v + f.one_minus_beta2 * g * g;
            let denominator = v.sqrt() / f.root_of_correction2 + f.eps;
            *p = *p * decay - f.step_size * *m / denominator;
        }
    }
}

/// `range` in pieces that decay as a whole or not at all, and lie before `cut` or behind it.
fn pieces(range: Range<usize>, no_decay: &[Range<usize>], cut: usize) -> Vec<(Range<usize>, bool)> {
    if range.start < cut && cut < range.end {
        let (before, behind) = (range.start..cut, cut..range.end);
        return [pieces(before, no_decay, 0), pieces(behind, no_decay, 0)].concat();
    }
    let (mut pieces, mut at) = (vec![], range.start);
    for none in no_decay.iter().filter(|none| none.start < range.end && none.end > range.start) {
        let (start, end) = (none.start.max(at), none.end.min(range.end));
        if at < start {
            pieces.push((at..start, true));
        }
        pieces.push((start..end, false));
        at = end;
    }
    if at < range.end {
        pieces.push((at..range.end, true));
    }
    pieces
}

/// Rounded away from zero if `random`, of 65,536, is large enough: on average it stays what it was.
fn rounded_to_bf16(x: f32, random: u32) -> f32 {
    f32::from_bits(x.to_bits().wrapping_add(random) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_cut_where_decay_begins_and_ends() {
        let none = [3..5, 5..6, 10..20];
        assert_eq!(pieces(0..4, &none, 0), [(0..3, true), (3..4, false)]);
        assert_eq!(pieces(4..12, &none, 4), [(4..5, false), (5..6, false), (6..10, true), (10..12, false)]);
        assert_eq!(pieces(12..16, &none, 30), [(12..16, false)]);
        assert_eq!(pieces(18..30, &none, 30), [(18..20, false), (20..30, true)]);
        assert_eq!(pieces(18..30, &none, 19), [(18..19, false), (19..20, false), (20..30, true)]);
        assert_eq!(pieces(18..30, &none, 25), [(18..20, false), (20..25, true), (25..30, true)]);
        assert_eq!(pieces(7..9, &[], 9), [(7..9, true)]);
    }
}
