//! The launches of decoding.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::{mirrored, mirrored_in_memory};
use crate::gpu::pointer::{Compute, DevicePtr, Number};
use crate::gpu::shared;

/// Where generation stands.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct DecodeState {
    /// The one to be read.
    pub token: i32,
    /// Its place in the sequence.
    pub position: i32,
    /// Tokens written so far.
    pub count: i32,
    /// How many may be written.
    pub limit: i32,
}

mirrored_in_memory! {
    DecodeState: 16 { token: 0, position: 4, count: 8, limit: 12 }
}

// SAFETY: four numbers.
unsafe impl Number for DecodeState {}

impl DecodeState {
    /// Where a state on the GPU has its token.
    pub fn token_of(state: DevicePtr<Self>) -> DevicePtr<i32> {
        // It is the first field, as is asserted above.
        state.cast()
    }
}

/// Rows a block makes, one per warp.
const WARPS: usize = 8;
/// Blocks of the head: as many partial bests.
pub const HEAD_BLOCKS: usize = 1056;

fn grid(rows: i32) -> Grid {
    Grid::new((rows as usize).div_ceil(WARPS), WARPS * 32).begins_early()
}

/// `y = W · norm(x + branch)`; in GeGLU's form `W` is gate above up, and y is half as long.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct DecodeNormLinear {
    /// `[width]`.
    pub x: DevicePtr<f32>,
    /// `[width]`: what joins the stream, after a norm of its own.
    pub branch: Option<DevicePtr<Compute>>,
    /// `[width]`.
    pub branch_weight: Option<DevicePtr<f32>>,
    /// `[width]`: x and the branch.
    pub stream: DevicePtr<f32>,
    /// `[width]`.
    pub weight: DevicePtr<f32>,
    /// `[rows, ld]`; of GeGLU `[2 · rows, ld]`.
    pub matrix: DevicePtr<Compute>,
    /// `[rows]`.
    pub y: DevicePtr<Compute>,
    pub ld: i32,
    pub rows: i32,
    pub width: i32,
    pub eps: f32,
}

mirrored! {
    DecodeNormLinear: 72 {
        x: 0, branch: 8, branch_weight: 16, stream: 24, weight: 32, matrix: 40, y: 48, ld: 56, rows: 60, width: 64,
        eps: 68,
    }
}

const NORM_LINEAR: Kernel<DecodeNormLinear> = Kernel::typed("decode_norm_linear");
const NORM_GEGLU: Kernel<DecodeNormLinear> = Kernel::typed("decode_norm_geglu");

impl DecodeNormLinear {
    /// The product alone.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { NORM_LINEAR.launch(gpu, self.grid(), self) }
    }

    /// `y = gelu(W_gate · n) · (W_up · n)`, `n` being the norm.
    ///
    /// # Safety
    /// As [`Self::launch`].
    pub unsafe fn launch_geglu(self, gpu: &Gpu) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { NORM_GEGLU.launch(gpu, self.grid(), self) }
    }

    fn grid(&self) -> Grid {
        grid(self.rows).shared(shared::decode(self.width as usize))
    }
}

/// `y = W · x`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct DecodeLinear {
    /// `[width]`.
    pub x: DevicePtr<Compute>,
    /// `[rows, ld]`.
    pub matrix: DevicePtr<Compute>,
    /// `[rows]`.
    pub y: DevicePtr<Compute>,
    pub ld: i32,
    pub rows: i32,
    pub width: i32,
}

mirrored! {
    DecodeLinear: 40 { x: 0, matrix: 8, y: 16, ld: 24, rows: 28, width: 32 }
}

const LINEAR: Kernel<DecodeLinear> = Kernel::typed("decode_linear");

impl DecodeLinear {
    /// A warp per row.
    ///
    /// # Safety
    /// As [`DecodeNormLinear::launch`].
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { LINEAR.launch(gpu, grid(self.rows), self) }
    }
}

/// Heads, and a layer's cache.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct DecodeHeads {
    pub heads: i32,
    pub kv_heads: i32,
    pub dim: i32,
    /// Keys the cache holds; a ring for a sliding window.
    pub capacity: i32,
    pub scale: f32,
    pub eps: f32,
}

mirrored! {
    DecodeHeads: 24 { heads: 0, kv_heads: 4, dim: 8, capacity: 12, scale: 16, eps: 20 }
}

/// Attention of one token in each of several rows (sequences) on the row's cache, which takes up its key
/// and value.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct DecodeAttention {
    /// `[rows, (heads + 2 · kv_heads) · dim]`.
    pub qkv: DevicePtr<Compute>,
    /// `[dim]`.
    pub weight_q: DevicePtr<f32>,
    /// `[dim]`.
    pub weight_k: DevicePtr<f32>,
    /// `[positions, dim / 2]`, for all positions there are.
    pub cos: DevicePtr<f32>,
    /// As `cos`.
    pub sin: DevicePtr<f32>,
    /// `[rows, capacity, kv_heads, dim]`.
    pub keys: DevicePtr<Compute>,
    /// As `keys`.
    pub values: DevicePtr<Compute>,
    /// `[rows, heads · dim]`.
    pub y: DevicePtr<Compute>,
    /// `[rows]`.
    pub state: DevicePtr<DecodeState>,
    pub heads: DecodeHeads,
}

mirrored! {
    DecodeAttention: 96 {
        qkv: 0, weight_q: 8, weight_k: 16, cos: 24, sin: 32, keys: 40, values: 48, y: 56, state: 64, heads: 72,
    }
}

const ATTENTION: Kernel<DecodeAttention> = Kernel::typed("decode_attention");

impl DecodeAttention {
    /// A block per query head and row.
    ///
    /// # Safety
    /// As [`DecodeNormLinear::launch`]; the states' positions must be within the tables.
    pub unsafe fn launch(self, gpu: &Gpu, rows: usize) -> Result<()> {
        let grid = Grid::new(self.heads.heads as usize, WARPS * 32).rows(rows).begins_early();
        // SAFETY: the caller's.
        unsafe { ATTENTION.launch(gpu, grid, self) }
    }
}

/// A prompt's keys and values into the cache.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct FillCache {
    /// `[tokens, kv_heads · dim]`.
    pub k: DevicePtr<Compute>,
    /// `[tokens, (heads + 2 · kv_heads) · dim]`.
    pub qkv: DevicePtr<Compute>,
    /// `[capacity, kv_heads, dim]`.
    pub keys: DevicePtr<Compute>,
    /// As `keys`.
    pub values: DevicePtr<Compute>,
    pub heads: DecodeHeads,
    pub tokens: i32,
}

mirrored! {
    FillCache: 64 { k: 0, qkv: 8, keys: 16, values: 24, heads: 32, tokens: 56 }
}

const FILL_CACHE: Kernel<FillCache> = Kernel::typed("fill_cache");

impl FillCache {
    /// A block per token.
    ///
    /// # Safety
    /// As [`DecodeNormLinear::launch`].
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { FILL_CACHE.launch(gpu, Grid::new(self.tokens as usize, 256), self) }
    }
}

/// Logits, and the best of every block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct DecodeHead {
    /// `[width]`.
    pub hidden: DevicePtr<Compute>,
    /// `[rows, width]`.
    pub matrix: DevicePtr<Compute>,
    /// `[rows]`.
    pub logits: DevicePtr<f32>,
    /// `[HEAD_BLOCKS]`.
    pub best: DevicePtr<f32>,
    /// `[HEAD_BLOCKS]`.
    pub best_row: DevicePtr<i32>,
    pub rows: i32,
    pub width: i32,
}

mirrored! {
    DecodeHead: 48 { hidden: 0, matrix: 8, logits: 16, best: 24, best_row: 32, rows: 40, width: 44 }
}

const HEAD: Kernel<DecodeHead> = Kernel::typed("decode_head");

impl DecodeHead {
    /// In [`HEAD_BLOCKS`] blocks.
    ///
    /// # Safety
    /// As [`DecodeNormLinear::launch`].
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        let bytes = shared::decode(self.width as usize);
        let grid = Grid::new(HEAD_BLOCKS, WARPS * 32).shared(bytes).begins_early();
        // SAFETY: the caller's.
        unsafe { HEAD.launch(gpu, grid, self) }
    }
}

/// The best of all becomes the next token.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct DecodePick {
    /// `[count]`.
    pub best: DevicePtr<f32>,
    /// `[count]`.
    pub best_row: DevicePtr<i32>,
    /// `[limit]`, of the state.
    pub written: DevicePtr<i32>,
    pub state: DevicePtr<DecodeState>,
    pub count: i32,
}

mirrored! {
    DecodePick: 40 { best: 0, best_row: 8, written: 16, state: 24, count: 32 }
}

const PICK: Kernel<DecodePick> = Kernel::plain("decode_pick");

impl DecodePick {
    /// In one block.
    ///
    /// # Safety
    /// As [`DecodeNormLinear::launch`].
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { PICK.launch(gpu, Grid::new(1, 1024), self) }
    }
}
