//! Loss and gradient over rows of logits on a GPU.

use crate::cuda::Gpu;
use crate::cuda::launch::{Grid, launch};
use crate::error::Result;

/// Losses of rows of logits, and, with `gradient`, the rows' gradients in their place.
///
/// # Safety
/// `logits` must be `[rows, vocab]` of the compute type, targets and losses `[rows]`.
pub(crate) unsafe fn cross_entropy(
    gpu: &Gpu,
    (logits, rows, vocab): (u64, usize, usize),
    targets: u64,
    losses: u64,
    step: u64,
    gradient: bool,
) -> Result<()> {
    let grid = Grid::new(rows, 1024);
    // SAFETY: the caller's.
    unsafe {
        launch!(gpu, typed "cross_entropy", grid, logits, targets, losses, step, vocab as i32, i32::from(gradient))
    }
}

/// Adds the losses of a micro-batch to the step's.
///
/// # Safety
/// `losses` must be f32 `[rows]`, `total` one f64.
pub(crate) unsafe fn sum_losses(gpu: &Gpu, losses: u64, rows: usize, total: u64, step: u64) -> Result<()> {
    // SAFETY: the caller's.
    unsafe { launch!(gpu, plain "sum_losses", Grid::new(1, 256), losses, rows as i32, total, step) }
}
