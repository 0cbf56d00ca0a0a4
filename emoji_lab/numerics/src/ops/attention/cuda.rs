//! Attention over packed sequences on a GPU.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::mirrored;
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::gpu::shared;
use crate::ops::lora_linear::cuda::Adapters;
use crate::ops::step::Step;

/// The most query heads: a block has a warp for each, and 512 threads.
pub const MAX_HEADS: usize = 16;

/// Warps that share a head's keys. Rows of emoji data have about thirty: with four warps, each looks at
/// its keys once or twice.
pub fn parts(heads: usize) -> usize {
    (MAX_HEADS / heads).clamp(1, 4)
}

/// Heads, and what they see.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct AttentionSizes {
    pub heads: i32,
    pub kv_heads: i32,
    pub dim: i32,
    /// 0 for none.
    pub window: i32,
    pub scale: f32,
}

mirrored! {
    AttentionSizes: 20 { heads: 0, kv_heads: 4, dim: 8, window: 12, scale: 16 }
}

/// Tokens of a tile.
const TILE: usize = 16;

impl AttentionSizes {
    /// Query heads of a key/value head.
    fn group(&self) -> usize {
        (self.heads / self.kv_heads) as usize
    }

    /// Whether `tokens` rows can be taken sixteen at a time: in bf16, heads of 256 values, two or four to a
    /// key/value head, as Gemma 3's are.
    pub fn fits_tiles(&self, gpu: &Gpu, tokens: usize) -> bool {
        let heads = self.dim == 256 && matches!(self.group(), 2 | 4) && self.heads % self.kv_heads == 0;
        let fits = shared::attention_tiles_backward(self.group()) <= gpu.limits().shared_bytes;
        gpu.bf16() && heads && fits && tokens.is_multiple_of(TILE)
    }

    fn tiles(&self, tokens: usize, rows: usize, shared_bytes: usize) -> Grid {
        Grid::new(tokens / TILE, 512).rows(rows).shared(shared_bytes).begins_early()
    }

    /// Parts per head backward, at most `parts`: a multiprocessor has registers for 16 warps, and blocks of all of these
    /// would follow each other where there are more blocks, two a token, than multiprocessors.
    fn backward_parts(&self, tokens: usize, parts: usize, multiprocessors: usize) -> usize {
        let at_once = |parts: &usize| multiprocessors * (16 / (self.heads as usize * parts).max(1)).max(1);
        let mut fewer =
            std::iter::successors(Some(parts), |parts| Some(parts / 2).filter(|parts| *parts > 0));
        fewer.find(|parts| 2 * tokens <= at_once(parts)).unwrap_or(parts)
    }

    fn width(&self) -> usize {
        (self.heads * self.dim) as usize
    }

    fn grid(&self, tokens: usize, parts: usize, shared_bytes: usize) -> Grid {
        let warps = self.heads * parts as i32;
        Grid { blocks: (tokens as u32, 1), threads: (32, warps as u32), shared_bytes, early: true }
    }
}

/// Attention's output, the adapter's u after each row of it, and the log-sum-exp of every row.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct AttentionForward {
    /// `[tokens, heads · dim]`.
    pub q: DevicePtr<Compute>,
    /// `[tokens, kv_heads · dim]`.
    pub k: DevicePtr<Compute>,
    /// `[tokens, (heads + 2 · kv_heads) · dim]`, of which the values are read.
    pub qkv: DevicePtr<Compute>,
    /// `[tokens]`: where each token's sequence begins.
    pub start: DevicePtr<i32>,
    /// `[tokens, ldy]`.
    pub y: DevicePtr<Compute>,
    /// `[tokens, heads]`.
    pub lse: DevicePtr<f32>,
    pub step: DevicePtr<Step>,
    pub adapters: Adapters,
    pub sizes: AttentionSizes,
    pub ldy: i32,
}

mirrored! {
    AttentionForward: 136 {
        q: 0, k: 8, qkv: 16, start: 24, y: 32, lse: 40, step: 48, adapters: 56, sizes: 112, ldy: 132,
    }
}

const FORWARD: Kernel<AttentionForward> = Kernel::typed("attention_forward");
const TILES_2: Kernel<AttentionForward> = Kernel::plain("attention_tiles_2_bf16");
const TILES_4: Kernel<AttentionForward> = Kernel::plain("attention_tiles_4_bf16");

impl AttentionForward {
    /// For `tokens` rows, in `parts` per head: no more than [`parts`] says.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn launch(self, gpu: &Gpu, tokens: usize, parts: usize) -> Result<()> {
        let s = &self.sizes;
        let bytes = shared::attention_forward(s.width(), parts, self.adapters.group());
        // SAFETY: the caller's.
        unsafe { FORWARD.launch(gpu, s.grid(tokens, parts, bytes), self) }
    }

    /// For `tokens` rows, sixteen a block, where [`AttentionSizes::fits_tiles`] says so. u is not made.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn launch_tiles(self, gpu: &Gpu, tokens: usize) -> Result<()> {
        let s = &self.sizes;
        let grid = s.tiles(tokens, s.kv_heads as usize, shared::attention_tiles(s.group()));
        let kernel = if s.group() == 2 { &TILES_2 } else { &TILES_4 };
        // SAFETY: the caller's.
        unsafe { kernel.launch(gpu, grid, self) }
    }
}

/// Completes the gradient of the output in `d_y`, and makes the backward pass' `delta`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct AttentionDelta {
    /// `[tokens, ldy]`: what came through the base weight, and after each row the gradient of u.
    pub d_y: DevicePtr<f32>,
    /// `[tokens, ldy]`.
    pub y: DevicePtr<Compute>,
    /// `[tokens, heads]`.
    pub delta: DevicePtr<f32>,
    pub step: DevicePtr<Step>,
    pub adapters: Adapters,
    pub sizes: AttentionSizes,
    pub ldy: i32,
}

mirrored! {
    AttentionDelta: 112 { d_y: 0, y: 8, delta: 16, step: 24, adapters: 32, sizes: 88, ldy: 108 }
}

const DELTA: Kernel<AttentionDelta> = Kernel::typed("attention_delta");

impl AttentionDelta {
    /// As [`AttentionForward::launch`].
    ///
    /// # Safety
    /// As [`AttentionForward::launch`].
    pub unsafe fn launch(self, gpu: &Gpu, tokens: usize, parts: usize) -> Result<()> {
        let s = &self.sizes;
        let bytes = shared::attention_delta(s.width(), self.adapters.group());
        // SAFETY: the caller's.
        unsafe { DELTA.launch(gpu, s.grid(tokens, parts, bytes), self) }
    }
}

/// The gradient of queries, keys and values before norm and rotation.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct AttentionBackward {
    /// `[tokens, ldy]`, as [`AttentionDelta`] leaves it.
    pub d_y: DevicePtr<f32>,
    /// `[tokens, heads · dim]`.
    pub q: DevicePtr<Compute>,
    /// `[tokens, kv_heads · dim]`.
    pub k: DevicePtr<Compute>,
    /// `[tokens, (heads + 2 · kv_heads) · dim]`.
    pub qkv: DevicePtr<Compute>,
    /// `[tokens, heads]`.
    pub lse: DevicePtr<f32>,
    /// `[tokens, heads]`.
    pub delta: DevicePtr<f32>,
    /// `[tokens]`: where each token's sequence begins.
    pub start: DevicePtr<i32>,
    /// `[tokens]`: the place after its last token.
    pub end: DevicePtr<i32>,
    /// `[dim]`.
    pub weight_q: DevicePtr<f32>,
    /// `[dim]`.
    pub weight_k: DevicePtr<f32>,
    /// `[tokens, heads + kv_heads]`.
    pub rstd: DevicePtr<f32>,
    /// `[positions, dim / 2]`, for all positions there are.
    pub cos: DevicePtr<f32>,
    /// As `cos`.
    pub sin: DevicePtr<f32>,
    /// `[tokens]`.
    pub positions: DevicePtr<i32>,
    /// As `qkv`.
    pub d_qkv: DevicePtr<Compute>,
    /// `[tokens, heads · dim]`: terms of the gradient of `weight_q`, where that is trained.
    pub terms_q: Option<DevicePtr<f32>>,
    /// `[tokens, kv_heads · dim]`: as `terms_q`.
    pub terms_k: Option<DevicePtr<f32>>,
    /// `[tokens, ldy]`: of it sixteen tokens a block make what `delta` is to others.
    pub y: DevicePtr<Compute>,
    pub sizes: AttentionSizes,
    pub ldy: i32,
}

mirrored! {
    AttentionBackward: 168 {
        d_y: 0, q: 8, k: 16, qkv: 24, lse: 32, delta: 40, start: 48, end: 56, weight_q: 64, weight_k: 72, rstd: 80,
        cos: 88, sin: 96, positions: 104, d_qkv: 112, terms_q: 120, terms_k: 128,
        y: 136, sizes: 144, ldy: 164,
    }
}

const BACKWARD: Kernel<AttentionBackward> = Kernel::typed("attention_backward");
const TILES_BACKWARD_2: Kernel<AttentionBackward> = Kernel::plain("attention_tiles_backward_2_bf16");
const TILES_BACKWARD_4: Kernel<AttentionBackward> = Kernel::plain("attention_tiles_backward_4_bf16");

impl AttentionBackward {
    /// As [`AttentionForward::launch`].
    ///
    /// # Safety
    /// As [`AttentionForward::launch`]; positions must be within the tables.
    pub unsafe fn launch(self, gpu: &Gpu, tokens: usize, parts: usize) -> Result<()> {
        let s = &self.sizes;
        let parts = s.backward_parts(tokens, parts, gpu.multiprocessors());
        // One row of blocks for the queries, one for keys and values.
        let grid = s.grid(tokens, parts, shared::attention_backward(s.width(), parts)).rows(2);
        // SAFETY: the caller's.
        unsafe { BACKWARD.launch(gpu, grid, self) }
    }

    /// As [`AttentionForward::launch_tiles`]; `d_y` must be complete, and `delta` is not read.
    ///
    /// # Safety
    /// As [`Self::launch`].
    pub unsafe fn launch_tiles(self, gpu: &Gpu, tokens: usize) -> Result<()> {
        let s = &self.sizes;
        // One half of the rows of blocks for the queries, one for keys and values.
        let bytes = shared::attention_tiles_backward(s.group());
        let grid = s.tiles(tokens, 2 * s.kv_heads as usize, bytes);
        let kernel = if s.group() == 2 { &TILES_BACKWARD_2 } else { &TILES_BACKWARD_4 };
        // SAFETY: the caller's.
        unsafe { kernel.launch(gpu, grid, self) }
    }
}

#[cfg(test)]
mod tests {
    use super::AttentionSizes;

    #[test]
    fn backward_all_blocks_run_at_once_where_they_can() {
        let of = |heads, tokens| {
            let sizes = AttentionSizes { heads, kv_heads: 1, dim: 256, window: 0, scale: 1.0 };
            sizes.backward_parts(tokens, super::parts(heads as usize), 132)
        };
        assert_eq!(of(4, 60), 4);
        assert_eq!(of(4, 116), 2);
        assert_eq!(of(4, 200), 1);
        // Where they cannot, there are as many as ever.
        assert_eq!(of(4, 1000), 4);
        assert_eq!(of(16, 116), 1);
    }
}
