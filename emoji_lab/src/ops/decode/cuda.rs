//! The launches of decoding.

use crate::cuda::Gpu;
use crate::cuda::launch::{Grid, launch};
use crate::cuda::shared;
use crate::error::Result;
use crate::ops::rms_norm::cuda::Branch;

/// `DecodeState` of `kernel.cu`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct DecodeState {
    pub(crate) token: i32,
    pub(crate) position: i32,
    pub(crate) count: i32,
    pub(crate) limit: i32,
}

/// `DecodeHeads` of `kernel.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct DecodeHeads {
    pub(crate) heads: i32,
    pub(crate) kv_heads: i32,
    pub(crate) dim: i32,
    pub(crate) capacity: i32,
    pub(crate) scale: f32,
    pub(crate) eps: f32,
}

/// A matrix `[rows, width]` with rows `ld` apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) matrix: u64,
    pub(crate) ld: usize,
    pub(crate) rows: usize,
    pub(crate) width: usize,
}

/// Rows a block makes, one a warp.
const WARPS: usize = 8;
/// Blocks of the head: as many partial bests.
pub(crate) const HEAD_BLOCKS: usize = 1056;

fn grid(m: &Rows) -> Grid {
    Grid::new(m.rows.div_ceil(WARPS), WARPS * 32).begins_early()
}

/// `y = W · norm(x + branch)`; with `geglu`, `W` is gate above up, and y is half as long. The stream
/// with its branch goes to `branch.stream`.
///
/// # Safety
/// Pointers must be to vectors of the matrix' sizes.
#[expect(clippy::too_many_arguments, reason = "they are the kernel's")]
pub(crate) unsafe fn norm_linear(
    gpu: &Gpu,
    geglu: bool,
    x: u64,
    branch: Branch,
    weight: u64,
    m: Rows,
    y: u64,
    eps: f32,
) -> Result<()> {
    let kernel = if geglu { "decode_norm_geglu" } else { "decode_norm_linear" };
    let grid = grid(&m).shared(shared::decode(m.width));
    // SAFETY: the caller's.
    unsafe {
        launch!(
            gpu, typed kernel, grid, x, branch.rows, branch.weight, branch.stream, weight, m.matrix, m.ld as i32, y,
            m.rows as i32, m.width as i32, eps
        )
    }
}

/// `y = W · x`.
///
/// # Safety
/// As [`norm_linear`].
pub(crate) unsafe fn linear(gpu: &Gpu, x: u64, m: Rows, y: u64) -> Result<()> {
    // SAFETY: the caller's.
    unsafe {
        launch!(gpu, typed "decode_linear", grid(&m), x, m.matrix, m.ld as i32, y, m.rows as i32, m.width as i32)
    }
}

/// Attention of one token on the cache, which takes up its key and value.
///
/// # Safety
/// The cache must be `[capacity, kv_heads, dim]` twice; the state's position within the tables.
#[expect(clippy::too_many_arguments, reason = "they are the kernel's")]
pub(crate) unsafe fn attention(
    gpu: &Gpu,
    qkv: u64,
    (w_q, w_k): (u64, u64),
    (cos, sin): (u64, u64),
    (keys, values): (u64, u64),
    y: u64,
    state: u64,
    h: DecodeHeads,
) -> Result<()> {
    let grid = Grid::new(h.heads as usize, WARPS * 32).begins_early();
    // SAFETY: the caller's.
    unsafe {
        launch!(gpu, typed "decode_attention", grid, qkv, w_q, w_k, cos, sin, keys, values, y, state, h)
    }
}

/// A prompt's keys and values into the cache.
///
/// # Safety
/// As [`attention`]; `k` is `[tokens, kv_heads, dim]`, `qkv` has a row a token.
pub(crate) unsafe fn fill_cache(
    gpu: &Gpu,
    (k, qkv): (u64, u64),
    (keys, values): (u64, u64),
    tokens: usize,
    h: DecodeHeads,
) -> Result<()> {
    // SAFETY: the caller's.
    unsafe {
        launch!(
            gpu, typed "fill_cache", Grid::new(tokens, 256), k, qkv, keys, values, tokens as i32, h.heads, h.kv_heads,
            h.dim, h.capacity
        )
    }
}

/// Logits, and the best of every block.
///
/// # Safety
/// `logits` must be f32 `[rows]`, `best` f32 and `best_rows` i32 `[HEAD_BLOCKS]`.
pub(crate) unsafe fn head(
    gpu: &Gpu,
    hidden: u64,
    m: Rows,
    logits: u64,
    (best, best_rows): (u64, u64),
) -> Result<()> {
    let grid = Grid::new(HEAD_BLOCKS, WARPS * 32).shared(shared::decode(m.width)).begins_early();
    // SAFETY: the caller's.
    unsafe {
        launch!(
            gpu, typed "decode_head", grid, hidden, m.matrix, logits, best, best_rows, m.rows as i32, m.width as i32
        )
    }
}

/// The best of all becomes the next token.
///
/// # Safety
/// As [`head`]; `written` must have the state's room.
pub(crate) unsafe fn pick(gpu: &Gpu, (best, best_rows): (u64, u64), written: u64, state: u64) -> Result<()> {
    let grid = Grid::new(1, 1024);
    // SAFETY: the caller's.
    unsafe { launch!(gpu, plain "decode_pick", grid, best, best_rows, HEAD_BLOCKS as i32, written, state) }
}
