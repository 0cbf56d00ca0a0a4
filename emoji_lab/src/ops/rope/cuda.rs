//! Norm and rotation of queries and keys on a GPU.

use crate::cuda::Gpu;
use crate::cuda::launch::{Grid, launch};
use crate::cuda::shared;
use crate::error::Result;

/// Where the heads come from and go to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) qkv: u64,
    pub(crate) q: u64,
    pub(crate) k: u64,
    pub(crate) rstd: u64,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dim: usize,
}

/// Every head normalised for itself and rotated by its token's position.
///
/// # Safety
/// Pointers must be to `tokens` rows; positions must be within the tables.
pub(crate) unsafe fn qk_norm_rope(
    gpu: &Gpu,
    h: Heads,
    (w_q, w_k): (u64, u64),
    (cos, sin): (u64, u64),
    positions: u64,
    tokens: usize,
    eps: f32,
) -> Result<()> {
    let warps = h.heads + h.kv_heads;
    let grid = Grid {
        blocks: (tokens as u32, 1),
        threads: (32, warps as u32),
        shared_bytes: shared::qk_norm_rope(warps * h.dim),
        early: true,
    };
    // SAFETY: the caller's.
    unsafe {
        launch!(
            gpu, typed "qk_norm_rope", grid, h.qkv, w_q, w_k, cos, sin, positions, h.q, h.k, h.rstd, h.heads as i32,
            h.kv_heads as i32, h.dim as i32, eps
        )
    }
}
