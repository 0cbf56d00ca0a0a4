use rayon::prelude::*;

use crate::ops::math::{exp, wide};

/// √(2/π) and the cubic term of GELU's tanh form.
const C: f32 = 0.797_884_6;
const A: f32 = 0.044_715;
/// Elements a task takes.
const CHUNK: usize = 16 * 1024;

/// gelu_tanh(g) = g · σ(2u), u = C (g + A g³): the logistic form of ½ g (1 + tanh u), which
/// loses no digits where tanh is near −1.
#[inline(always)]
fn sigmoid_2u(g: f32) -> f32 {
    let u = C * (g + A * g * g * g);
    1.0 / (1.0 + exp(-2.0 * u))
}

wide! {
    /// [`forward`](super::forward) of slices, on the calling thread.
    pub fn gate(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &g), up) in y.iter_mut().zip(gate).zip(up) {
            *y = g * sigmoid_2u(g) * up;
        }
    }
}

wide! {
    /// [`backward`] of slices.
    fn gate_backward(dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for ((((dgate, dup), dy), &g), up) in dgate.iter_mut().zip(dup).zip(dy).zip(gate).zip(up) {
            let s = sigmoid_2u(g);
            // Past |g| = 30 the slope's second term is zero; clamping keeps g³ finite.
            let t = g.clamp(-30.0, 30.0);
            let slope = s + t * s * (1.0 - s) * 2.0 * C * (1.0 + 3.0 * A * t * t);
            *dgate = dy * up * slope;
            *dup = dy * g * s;
        }
    }
}

pub(super) fn forward(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; gate.len()];
    y.par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .for_each(|((y, g), up)| self::gate(g, up, y));
    y
}

pub(super) fn backward(dy: &[f32], gate: &[f32], up: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut dgate = vec![0.0; gate.len()];
    let mut dup = vec![0.0; gate.len()];
    dgate
        .par_chunks_mut(CHUNK)
        .zip(dup.par_chunks_mut(CHUNK))
        .zip(dy.par_chunks(CHUNK))
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .for_each(|((((dgate, dup), dy), gate), up)| gate_backward(dy, gate, up, dgate, dup));
    (dgate, dup)
}
