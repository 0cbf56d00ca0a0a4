//! The gradients' norm on a GPU.

use crate::cuda::Gpu;
use crate::cuda::launch::{Grid, launch};
use crate::error::Result;

/// Partial sums there is room for: blocks of the first of the two steps.
pub(crate) const PARTIALS: usize = 1056;

/// The norm of `gradients` (f32 `[len]`), the factor of clipping, and whether all is finite, into
/// `result`.
///
/// # Safety
/// `partials` must be f64 `[PARTIALS]`, `loss` one f64, `result` a `StepResult`.
pub(crate) unsafe fn norm(
    gpu: &Gpu,
    (gradients, len): (u64, usize),
    partials: u64,
    loss: u64,
    step: u64,
    result: u64,
) -> Result<()> {
    // SAFETY: the caller's.
    unsafe {
        launch!(gpu, plain "sum_of_squares", Grid::new(PARTIALS, 256), gradients, len, partials)?;
        launch!(gpu, plain "finish_norm", Grid::new(1, 256), partials, PARTIALS as i32, loss, step, result)
    }
}

/// Partial sums a slot.
pub(crate) const SLOT_PARTIALS: usize = 64;

/// Sums of squares of `count` ranges (first, length) of `gradients`, in `SLOT_PARTIALS` parts each.
///
/// # Safety
/// `ranges` must be u64 `[count, 2]` within the gradients, `partials` f64 `[count, SLOT_PARTIALS]`.
pub(crate) unsafe fn squares_by_slot(
    gpu: &Gpu,
    gradients: u64,
    ranges: u64,
    count: usize,
    partials: u64,
) -> Result<()> {
    let grid = Grid { blocks: (SLOT_PARTIALS as u32, count as u32), threads: (256, 1), shared_bytes: 0 };
    // SAFETY: the caller's.
    unsafe { launch!(gpu, plain "squares_by_slot", grid, gradients, ranges, partials) }
}
