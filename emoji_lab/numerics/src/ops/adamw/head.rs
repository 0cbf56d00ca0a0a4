//! AdamW of a head whose gradient is never in memory, on a GPU in bf16: made of the logits' gradients and the
//! hidden states where it is used, and of the rows looked up. A step of one batch then neither writes nor reads
//! `[vocab, width]` gradients.

use half::bf16;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::mirrored;
use crate::gpu::pointer::{DevicePtr, Moment};
use crate::ops::step::{Step, StepResult};

/// The most tokens of a batch: their hidden states are in a block's registers.
pub const HEAD_TOKENS: usize = 192;

/// Shared memory that a block has on Hopper and later GPUs; with less the gradient is kept.
const SHARED: usize = 227 << 10;
/// What the kernel declares for itself, rounded up.
#[cfg(test)]
const DECLARED: usize = 1 << 10;
/// Stages of eight rows that are on their way or in work: `HEAD_STAGES` of `head.cu`.
const STAGES: usize = 3;

/// Shared memory of a block that makes so many columns for up to `tokens` tokens: `HeadStage` of `head.cu`.
fn stages(columns: usize, tokens: usize, bf16_moments: bool) -> usize {
    let moment = if bf16_moments { 2 } else { 4 };
    STAGES * (8 * (2 * (columns * moment + 16) + 2 * (columns * 2 + 16)) + tokens * 16)
}

/// Whether the GPU computes in bf16 and has as much shared memory.
pub fn fits(gpu: &Gpu) -> bool {
    gpu.bf16() && gpu.limits().shared_bytes >= SHARED
}

/// One step.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct AdamwHead {
    /// `[vocab, width]`: the values' higher halves ([`split`](super::cuda::split)).
    pub high: DevicePtr<bf16>,
    /// As `high`, the lower ones.
    pub low: DevicePtr<i16>,
    /// `[vocab, width]`.
    pub exp_avg: DevicePtr<Moment>,
    /// As `exp_avg`.
    pub exp_avg_sq: DevicePtr<Moment>,
    /// `[tokens, vocab]`.
    pub d_logits: DevicePtr<bf16>,
    /// `[tokens, width]`.
    pub hidden: DevicePtr<bf16>,
    /// `[tokens, width]`: the gradient of the vectors that were looked up in the head, where it is the table.
    pub dx: Option<DevicePtr<f32>>,
    /// `[tokens]`, with `order` and `runs` as [`by_id`](crate::ops::embedding::cuda::by_id) has them.
    pub ids: DevicePtr<i32>,
    pub order: DevicePtr<i32>,
    pub runs: DevicePtr<i32>,
    pub step: DevicePtr<Step>,
    pub result: DevicePtr<StepResult>,
    /// The head's first element among all that is trained: rounding is drawn by it.
    pub first: u64,
    /// Factor on what is looked up.
    pub scale: f32,
    pub tokens: i32,
    pub vocab: i32,
    pub width: i32,
    /// Of the width that a block makes; [`Self::launch`] sets it.
    pub columns: i32,
    /// 1 where weight decay applies, else 0.
    pub decays: i32,
}

mirrored! {
    AdamwHead: 128 {
        high: 0, low: 8, exp_avg: 16, exp_avg_sq: 24, d_logits: 32, hidden: 40, dx: 48, ids: 56, order: 64, runs: 72,
        step: 80, result: 88, first: 96, scale: 104, tokens: 108, vocab: 112, width: 116, columns: 120, decays: 124,
    }
}

const SHORT: Kernel<AdamwHead> = Kernel::plain("adamw_head_128_f32");
const LONG: Kernel<AdamwHead> = Kernel::plain("adamw_head_192_f32");
const SHORT_BF16: Kernel<AdamwHead> = Kernel::plain("adamw_head_128_bf16");
const LONG_BF16: Kernel<AdamwHead> = Kernel::plain("adamw_head_192_bf16");

/// Columns that a block makes, a multiple of 32: all of them where they are at most `most`, else equal parts.
fn columns(width: usize, most: usize) -> usize {
    width.div_ceil(width.div_ceil(most).max(1)).next_multiple_of(32)
}

impl AdamwHead {
    /// For at most [`HEAD_TOKENS`] tokens, where [`fits`] says so; none if `result` says that the step is not finite.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name, and the GPU compute in bf16.
    pub unsafe fn launch(self, gpu: &Gpu, bf16_moments: bool) -> Result<()> {
        let (tokens, width) = (self.tokens as usize, self.width as usize);
        // A warp for every 32 columns, as many as there are registers for.
        let (rows, most) = if tokens <= 128 { (128, 640) } else { (HEAD_TOKENS, 320) };
        let columns = columns(width, most);
        let kernel = match (rows, bf16_moments) {
            (128, false) => &SHORT,
            (128, true) => &SHORT_BF16,
            (_, false) => &LONG,
            (_, true) => &LONG_BF16,
        };
        // One block a multiprocessor, whatever their number.
        let parts = width.div_ceil(columns);
        let blocks = (gpu.multiprocessors() / parts).max(1);
        let grid = Grid::new(blocks, columns).rows(parts).shared(stages(columns, rows, bf16_moments));
        // SAFETY: the caller's.
        unsafe { kernel.launch(gpu, grid, Self { columns: columns as i32, ..self }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_into_shared_memory() {
        let of = |width, (tokens, most), bf16| {
            let columns = columns(width, most);
            let bytes = stages(columns, tokens, bf16);
            assert!(columns.is_multiple_of(32) && columns <= most, "{width}, {tokens}: {columns}");
            assert!(bytes + DECLARED <= SHARED, "{width}, {tokens}: {columns}, {bytes}");
            (columns, width.div_ceil(columns))
        };
        let (short, long) = ((128, 640), (HEAD_TOKENS, 320));
        // Gemma 3's 270M, 1B and 4B.
        assert_eq!(of(640, short, false), (640, 1));
        assert_eq!(of(640, long, true), (320, 2));
        assert_eq!(of(1152, short, false), (576, 2));
        assert_eq!(of(1152, long, false), (288, 4));
        assert_eq!(of(2560, short, true), (640, 4));
        assert_eq!(of(40, long, false), (64, 1));
    }
}
