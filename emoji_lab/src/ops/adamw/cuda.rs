//! AdamW on a GPU: one launch over the arena.

use crate::cuda::Gpu;
use crate::cuda::launch::{Grid, launch};
use crate::error::Result;

/// Blocks of 256 threads: eight on each of the H100's 132 multiprocessors.
const BLOCKS: usize = 1056;

/// The arena's buffers, the head's range of elements (its gradients are of the compute type and lie
/// apart), and the head's copy in bf16, 0 in f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffers {
    pub(crate) values: u64,
    pub(crate) gradients: u64,
    pub(crate) head_gradients: u64,
    pub(crate) exp_avg: u64,
    pub(crate) exp_avg_sq: u64,
    pub(crate) len: usize,
    pub(crate) copy: u64,
    pub(crate) head: (usize, usize),
}

/// One step; none if `result` says that it is not finite.
///
/// # Safety
/// The buffers must be f32 `[len]`, the head's of the range's length (an empty range for none).
pub(crate) unsafe fn step(gpu: &Gpu, b: Buffers, step: u64, result: u64) -> Result<()> {
    let (first, last) = b.head;
    // SAFETY: the caller's.
    unsafe {
        launch!(
            gpu, typed "adamw", Grid::new(BLOCKS, 256), b.values, b.gradients, b.head_gradients, b.exp_avg, b.exp_avg_sq,
            b.len, b.copy, first, last, step, result
        )
    }
}

/// The head's copy made anew, after its values have been put in from outside.
///
/// # Safety
/// `values` must be f32 `[len]`, `copy` bf16 `[len]`.
pub(crate) unsafe fn round_to_bf16(gpu: &Gpu, values: u64, copy: u64, len: usize) -> Result<()> {
    // SAFETY: the caller's.
    unsafe { launch!(gpu, plain "round_to_bf16", Grid::new(BLOCKS, 256), values, copy, len) }
}
