//! GeGLU's kernels against the CPU's, adapters included.

use super::cuda::{GegluBackward, GegluForward};
use crate::gpu::pointer::Compute;
use crate::ops::testing::adapters::{SomeAdapters, split};
use crate::ops::testing::{Bar, OnGpu, on_every_gpu, tensor, values};

/// Sizes, and gates of which some are far out, where a gelu without care is NaN.
fn case(t: &mut OnGpu) -> (usize, usize, usize, Vec<f32>, SomeAdapters) {
    let (tokens, width, a_block) = (t.between(1, 60), 8 * t.between(1, 100), t.pick(&[1, 2, 4]));
    let tokens = tokens.next_multiple_of(if t.one_in(4) { 1 } else { a_block });
    let adapters = SomeAdapters::random(t, width);
    let mut gate_up = t.values(tokens * 2 * width, 4.0);
    for _ in 0..t.between(0, 9) {
        let at = t.between(0, tokens - 1) * 2 * width + t.between(0, width - 1);
        gate_up[at] = t.pick(&[-30.0, -1e4, 40.0, 50.0, 0.0]);
    }
    (tokens, a_block, width, t.round(gate_up), adapters)
}

/// The CPU's gate and up, from rows of both.
fn halves(gate_up: &[f32], width: usize) -> (candle_core::Tensor, candle_core::Tensor) {
    let (gate, up) = split(gate_up, width, width);
    let shape = (gate.len() / width, width);
    (tensor(&gate, shape), tensor(&up, shape))
}

#[test]
fn forward() {
    on_every_gpu("geglu forward", 40, |t| {
        let (tokens, a_block, width, gate_up, adapters) = case(t);
        let tail = adapters.tail();
        let ldy = t.ld(width + tail);
        t.sizes((tokens, a_block, width, ldy, adapters.sizes()));
        let (from, kind) = (t.put_typed(&gate_up), t.kind());
        let y = t.room::<Compute>(tokens, width + tail, ldy);
        let geglu = GegluForward {
            gate_up: from.ptr(),
            y: y.ptr(),
            step: adapters.step.ptr(),
            adapters: adapters.on_gpu,
            ldy: y.ld(),
            width: width as i32,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { geglu.launch(&t.gpu, tokens, a_block).unwrap() };
        let (gate, up) = halves(&gate_up, width);
        let (ours, u) = split(&t.read("y", &y), width, tail);
        t.check("y", &ours, &values(&super::forward(&gate, &up).unwrap()), width, Bar::of(kind));
        t.check("u", &u, &adapters.u(&ours), tail, Bar::of(kind).at_least(adapters.scale()));
    });
}

#[test]
fn backward() {
    on_every_gpu("geglu backward", 40, |t| {
        let (tokens, a_block, width, gate_up, adapters) = case(t);
        let tail = adapters.tail();
        let ldy = t.ld(width + tail);
        t.sizes((tokens, a_block, width, ldy, adapters.sizes()));
        let dy = t.values(tokens * (width + tail), 1.0);
        let from = t.put::<f32>(&dy, width + tail, ldy);
        let (at, kind) = (t.put_typed(&gate_up), t.kind());
        let d_gate_up = t.room::<Compute>(tokens, 2 * width, 2 * width);
        let geglu = GegluBackward {
            dy: from.ptr(),
            gate_up: at.ptr(),
            d_gate_up: d_gate_up.ptr(),
            step: adapters.step.ptr(),
            adapters: adapters.on_gpu,
            ldy: from.ld(),
            width: width as i32,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { geglu.launch(&t.gpu, tokens, a_block).unwrap() };
        let (dy, du) = split(&dy, width, tail);
        let dy: Vec<f32> = dy.iter().zip(adapters.back(&du, tokens)).map(|(a, b)| a + b).collect();
        let (gate, up) = halves(&gate_up, width);
        let dy = tensor(&dy, (tokens, width));
        let (d_gate, d_up) = super::backward(&dy, &gate, &up).unwrap();
        let (our_gate, our_up) = split(&t.read("d_gate_up", &d_gate_up), width, width);
        t.check("d_gate", &our_gate, &values(&d_gate), width, Bar::of(kind));
        t.check("d_up", &our_up, &values(&d_up), width, Bar::of(kind));
    });
}
