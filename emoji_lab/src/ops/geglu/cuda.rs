//! GeGLU on a GPU, gate and up in one row.

use crate::cuda::Gpu;
use crate::cuda::launch::{Grid, launch};
use crate::cuda::shared;
use crate::error::Result;
use crate::ops::lora_linear::cuda::Adapters;

const THREADS: usize = 512;

/// `y = gelu(gate) · up`, and the adapter's u behind it.
///
/// # Safety
/// `gate_up` must be `[tokens, 2 · width]`, `y` `[tokens, ldy]`.
pub(crate) unsafe fn forward(
    gpu: &Gpu,
    gate_up: u64,
    (y, ldy): (u64, usize),
    adapters: Adapters,
    step: u64,
    (tokens, width): (usize, usize),
) -> Result<()> {
    let grid =
        Grid::new(tokens, THREADS).shared(shared::geglu_forward(width, adapters.group())).begins_early();
    let (ldy, width) = (ldy as i32, width as i32);
    // SAFETY: the caller's.
    unsafe { launch!(gpu, typed "geglu_forward", grid, gate_up, y, ldy, adapters, step, width) }
}

/// The gradient of gate and up, given that of `y` and of the adapter's u.
///
/// # Safety
/// As [`forward`]; `dy` is f32 `[tokens, ldy]`.
pub(crate) unsafe fn backward(
    gpu: &Gpu,
    (dy, ldy): (u64, usize),
    adapters: Adapters,
    step: u64,
    gate_up: u64,
    d_gate_up: u64,
    (tokens, width): (usize, usize),
) -> Result<()> {
    let grid =
        Grid::new(tokens, THREADS).shared(shared::geglu_backward(width, adapters.group())).begins_early();
    let (ldy, width) = (ldy as i32, width as i32);
    // SAFETY: the caller's.
    unsafe { launch!(gpu, typed "geglu_backward", grid, dy, ldy, adapters, step, gate_up, d_gate_up, width) }
}
