use rayon::prelude::*;

use super::AdamW;
use crate::rng::Philox;

/// Elements a task takes.
const CHUNK: usize = 64 * 1024;

/// What is the same for every element of a step, clipping aside. Kernels read it as it lies in
/// memory (`Step` in `ops/common.cuh`).
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Factors {
    decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    eps: f32,
    step_size: f32,
    root_of_correction2: f32,
}

impl Factors {
    pub(crate) fn new(s: &AdamW, learning_rate: f64, step: usize) -> Self {
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

pub(super) fn step(
    values: &mut [f32],
    gradients: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    f: &Factors,
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
            for (((p, g), m), v) in values.iter_mut().zip(gradients).zip(&mut *m).zip(&mut *v) {
                let g = g * gradient_scale;
                *m += f.one_minus_beta1 * (g - *m);
                *v = f.beta2 * *v + f.one_minus_beta2 * g * g;
                let denominator = v.sqrt() / f.root_of_correction2 + f.eps;
                *p = *p * f.decay - f.step_size * *m / denominator;
            }
            let Some(rounding) = rounding else { return };
            for (i, (m, v)) in m.chunks_mut(4).zip(v.chunks_mut(4)).enumerate() {
                let words = rounding.at((chunk * CHUNK / 4 + i) as u64);
                for ((m, v), word) in m.iter_mut().zip(v).zip(words) {
                    *m = rounded_to_bf16(*m, word & 0xffff);
                    *v = rounded_to_bf16(*v, word >> 16);
                }
            }
        });
}

/// Rounded away from zero if `random`, of 65,536, is large enough: on average it stays what it was.
fn rounded_to_bf16(x: f32, random: u32) -> f32 {
    f32::from_bits(x.to_bits().wrapping_add(random) & 0xffff_0000)
}
