//! Attention over packed sequences on a GPU.

use crate::cuda::Gpu;
use crate::cuda::launch::{Grid, launch};
use crate::cuda::shared;
use crate::error::Result;
use crate::ops::lora_linear::cuda::Adapters;
use crate::ops::rope::cuda::Heads;

/// The most query heads: a block has a warp for each, and 512 threads.
pub(crate) const MAX_HEADS: usize = 16;

/// Warps that share a head's keys. Rows of emoji data have about thirty: with four warps, each looks at
/// its keys once or twice.
pub(crate) fn parts(heads: usize) -> usize {
    (MAX_HEADS / heads).clamp(1, 4)
}

/// `AttentionSizes` of `kernel.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct AttentionSizes {
    heads: i32,
    kv_heads: i32,
    dim: i32,
    window: i32,
    scale: f32,
}

impl AttentionSizes {
    /// `window` 0 is none.
    pub(crate) fn new(h: &Heads, window: i32, scale: f32) -> Self {
        Self { heads: h.heads as i32, kv_heads: h.kv_heads as i32, dim: h.dim as i32, window, scale }
    }

    fn width(&self) -> usize {
        (self.heads * self.dim) as usize
    }

    fn parts(&self) -> usize {
        parts(self.heads as usize)
    }

    fn grid(&self, tokens: usize, shared_bytes: usize) -> Grid {
        let warps = self.heads * self.parts() as i32;
        Grid { blocks: (tokens as u32, 1), threads: (32, warps as u32), shared_bytes, early: true }
    }
}

/// `QkNorm` of `kernel.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct QkNorm {
    pub(crate) w_q: u64,
    pub(crate) w_k: u64,
    pub(crate) rstd: u64,
    pub(crate) cos: u64,
    pub(crate) sin: u64,
    pub(crate) positions: u64,
}

/// Attention's output, the adapter's u behind it, and the log-sum-exp of every row.
///
/// # Safety
/// Pointers must be to `tokens` rows of the widths `kernel.cu` names.
#[expect(clippy::too_many_arguments, reason = "they are the kernel's")]
pub(crate) unsafe fn forward(
    gpu: &Gpu,
    h: Heads,
    start: u64,
    (y, ldy): (u64, usize),
    lse: u64,
    adapters: Adapters,
    step: u64,
    sizes: AttentionSizes,
    tokens: usize,
) -> Result<()> {
    let bytes = shared::attention_forward(sizes.width(), sizes.parts(), adapters.group());
    let grid = sizes.grid(tokens, bytes);
    // SAFETY: the caller's.
    unsafe {
        launch!(
            gpu, typed "attention_forward", grid, h.q, h.k, h.qkv, start, y, ldy as i32, lse, adapters, step, sizes
        )
    }
}

/// Completes the gradient of the output in `d_y`, and makes the backward pass' `delta`.
///
/// # Safety
/// As [`forward`].
#[expect(clippy::too_many_arguments, reason = "they are the kernel's")]
pub(crate) unsafe fn delta(
    gpu: &Gpu,
    d_y: u64,
    (y, ldy): (u64, usize),
    adapters: Adapters,
    step: u64,
    delta: u64,
    sizes: AttentionSizes,
    tokens: usize,
) -> Result<()> {
    let grid = sizes.grid(tokens, shared::attention_delta(sizes.width(), adapters.group()));
    // SAFETY: the caller's.
    unsafe { launch!(gpu, typed "attention_delta", grid, d_y, y, ldy as i32, adapters, step, delta, sizes) }
}

/// The gradient of queries, keys and values before norm and rotation.
///
/// # Safety
/// As [`forward`].
#[expect(clippy::too_many_arguments, reason = "they are the kernel's")]
pub(crate) unsafe fn backward(
    gpu: &Gpu,
    (d_y, ldy): (u64, usize),
    h: Heads,
    (lse, delta): (u64, u64),
    (start, end): (u64, u64),
    norm: QkNorm,
    d_qkv: u64,
    sizes: AttentionSizes,
    tokens: usize,
) -> Result<()> {
    let mut grid = sizes.grid(tokens, shared::attention_backward(sizes.width(), sizes.parts()));
    grid.blocks.1 = 2;
    // SAFETY: the caller's.
    unsafe {
        launch!(
            gpu, typed "attention_backward", grid, d_y, ldy as i32, h.q, h.k, h.qkv, lse, delta, start, end, norm,
            d_qkv, sizes
        )
    }
}
