//! RMSNorm with what stands around it, on a GPU.

use crate::cuda::Gpu;
use crate::cuda::launch::{Grid, launch};
use crate::cuda::shared;
use crate::error::Result;
use crate::ops::lora_linear::cuda::Adapters;

const THREADS: usize = 512;

/// A branch that joins the stream before the norm: its rows, its norm's weight, its `rstd`, and
/// where the sum goes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Branch {
    pub(crate) rows: u64,
    pub(crate) weight: u64,
    pub(crate) rstd: u64,
    pub(crate) stream: u64,
}

/// `x += rms(branch) · (1 + w_post)`, `y = rms(x) · (1 + w)`, `u = dropout(y) Aᵀ` behind y.
///
/// # Safety
/// Pointers must be to `tokens` rows of the widths `kernel.cu` names.
#[expect(clippy::too_many_arguments, reason = "they are the kernel's")]
pub(crate) unsafe fn forward(
    gpu: &Gpu,
    x: u64,
    branch: Branch,
    (weight, rstd): (u64, u64),
    (y, ldy): (u64, usize),
    adapters: Adapters,
    step: u64,
    (tokens, width): (usize, usize),
    eps: f32,
) -> Result<()> {
    let grid =
        Grid::new(tokens, THREADS).shared(shared::norm_forward(width, adapters.group())).begins_early();
    let (ldy, width) = (ldy as i32, width as i32);
    // SAFETY: the caller's.
    unsafe {
        launch!(
            gpu, typed "norm_forward", grid, x, branch.rows, branch.weight, branch.stream, branch.rstd, weight, rstd,
            y, ldy, adapters, step, width, eps
        )
    }
}

/// The gradient of [`forward`]: of the stream into `d_out` (on top of `d_in`, unless that is 0), and
/// of the branch, if `branch.rows` is not 0, into `d_branch`.
///
/// # Safety
/// As [`forward`].
#[expect(clippy::too_many_arguments, reason = "they are the kernel's")]
pub(crate) unsafe fn backward(
    gpu: &Gpu,
    (dy, ldy): (u64, usize),
    adapters: Adapters,
    step: u64,
    (x, weight, rstd): (u64, u64, u64),
    (d_in, d_out): (u64, u64),
    branch: Branch,
    d_branch: u64,
    (tokens, width): (usize, usize),
) -> Result<()> {
    let grid = Grid::new(tokens, THREADS).shared(shared::norm_backward(width, adapters.group()));
    let (ldy, width) = (ldy as i32, width as i32);
    // SAFETY: the caller's.
    unsafe {
        launch!(
            gpu, typed "norm_backward", grid, dy, ldy, adapters, step, x, weight, rstd, d_in, d_out, branch.rows,
            branch.weight, branch.rstd, d_branch, width
        )
    }
}
