//! The gradients' norm on a GPU.

use crate::cuda::Gpu;
use crate::cuda::launch::{Grid, launch};
use crate::error::Result;

/// Partial sums there is room for: blocks of the first of the two steps.
pub(crate) const PARTIALS: usize = 1056;

/// The norm of the head's gradients (compute type) and the others' (f32), the factor of clipping, and whether all is finite, into
/// `result`.
///
/// # Safety
/// `partials` must be f64 `[PARTIALS]`, `loss` one f64, `result` a `StepResult`.
pub(crate) unsafe fn norm(
    gpu: &Gpu,
    (head, head_len): (u64, usize),
    (others, len): (u64, usize),
    partials: u64,
    loss: u64,
    step: u64,
    result: u64,
) -> Result<()> {
    // SAFETY: the caller's.
    unsafe {
        launch!(gpu, typed "sum_of_squares", Grid::new(PARTIALS, 256), head, head_len, others, len, partials)?;
        launch!(gpu, plain "finish_norm", Grid::new(1, 256), partials, PARTIALS as i32, loss, step, result)
    }
}

/// Partial sums a range.
pub(crate) const RANGE_PARTIALS: usize = 64;

/// Sums of squares of `count` ranges (first, length) of gradients, f32 or of the compute type, in
/// `RANGE_PARTIALS` parts each.
///
/// # Safety
/// `ranges` must be u64 `[count, 2]` within the gradients, `partials` f64 `[count, RANGE_PARTIALS]`.
pub(crate) unsafe fn squares_by_range(
    gpu: &Gpu,
    (gradients, is_f32): (u64, bool),
    ranges: u64,
    count: usize,
    partials: u64,
) -> Result<()> {
    let grid = Grid {
        blocks: (RANGE_PARTIALS as u32, count as u32),
        threads: (256, 1),
        shared_bytes: 0,
        early: false,
    };
    let kernel = if is_f32 { "squares_by_range_f32" } else { "squares_by_range_bf16" };
    // SAFETY: the caller's.
    unsafe { launch!(gpu, plain kernel, grid, gradients, ranges, partials) }
}
