//! Norm and rotation of queries and keys on a GPU.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::mirrored;
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::gpu::shared;

/// Every head normalised by itself and rotated by its token's position.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct QkNormRope {
    /// `[tokens, (heads + 2 · kv_heads) · dim]`.
    pub qkv: DevicePtr<Compute>,
    /// `[dim]`.
    pub weight_q: DevicePtr<f32>,
    /// `[dim]`.
    pub weight_k: DevicePtr<f32>,
    /// `[positions, dim / 2]`, for all positions there are.
    pub cos: DevicePtr<f32>,
    /// As `cos`.
    pub sin: DevicePtr<f32>,
    /// `[tokens]`.
    pub positions: DevicePtr<i32>,
    /// `[tokens, heads · dim]`.
    pub q: DevicePtr<Compute>,
    /// `[tokens, kv_heads · dim]`.
    pub k: DevicePtr<Compute>,
    /// `[tokens, heads + kv_heads]`.
    pub rstd: DevicePtr<f32>,
    pub heads: i32,
    pub kv_heads: i32,
    pub dim: i32,
    pub eps: f32,
}

mirrored! {
    QkNormRope: 88 {
        qkv: 0, weight_q: 8, weight_k: 16, cos: 24, sin: 32, positions: 40, q: 48, k: 56, rstd: 64, heads: 72,
        kv_heads: 76, dim: 80, eps: 84,
    }
}

const QK_NORM_ROPE: Kernel<QkNormRope> = Kernel::typed("qk_norm_rope");

impl QkNormRope {
    /// For `tokens` rows.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name, and positions be within the tables.
    pub unsafe fn launch(self, gpu: &Gpu, tokens: usize) -> Result<()> {
        let warps = self.heads + self.kv_heads;
        let grid = Grid {
            blocks: (tokens as u32, 1),
            threads: (32, warps as u32),
            shared_bytes: shared::qk_norm_rope((warps * self.dim) as usize),
            early: true,
        };
        // SAFETY: the caller's.
        unsafe { QK_NORM_ROPE.launch(gpu, grid, self) }
    }
}
