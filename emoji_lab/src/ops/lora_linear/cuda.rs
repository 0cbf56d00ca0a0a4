//! The group of linear layers on a GPU: what `kernel.cu` is given.

use crate::cuda::Gpu;
use crate::cuda::launch::{Grid, launch};
use crate::cuda::shared::Group;
use crate::error::Result;

/// `Adapters` of `common.cuh`: the adapters that read one activation.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Adapters {
    pub(crate) a: [u64; 3],
    pub(crate) linear: [i32; 3],
    pub(crate) count: i32,
    pub(crate) rank: i32,
    pub(crate) padded: i32,
    threshold: u32,
    keep_scale: f32,
}

impl Adapters {
    /// Drops with probability `p` in training, in steps of 1/65,536 as on the CPU.
    pub(crate) fn set_dropout(&mut self, p: f64) {
        self.threshold = (p * 65_536.0) as u32;
        self.keep_scale = (1.0 / (1.0 - p)) as f32;
    }

    /// The same outside training.
    pub(crate) fn without_dropout(self) -> Self {
        Self { threshold: 0, ..self }
    }

    /// What shared memory depends on.
    pub(crate) fn group(&self) -> Group {
        Group { count: self.count as usize, padded: self.padded as usize, dropout: self.threshold > 0 }
    }

    pub(crate) fn dropout(&self) -> (u32, f32) {
        (self.threshold, self.keep_scale)
    }
}

/// `Unpack` of `kernel.cu`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Unpack {
    pub(crate) packed: u64,
    pub(crate) absmax: u64,
    pub(crate) out: u64,
    pub(crate) b: u64,
    pub(crate) rows: i32,
    pub(crate) width: i32,
    pub(crate) ld: i32,
    pub(crate) block_size: i32,
    pub(crate) b_at: i32,
    pub(crate) rank: i32,
    pub(crate) scale: f32,
    /// The struct is a multiple of eight bytes long.
    pub(crate) _padding: i32,
}

/// Puts together the matrices `[W | scale · B]` of `count` linear layers, of at most `units` units
/// of work each (eight values of W, or one of B).
///
/// # Safety
/// `layers` must be `Unpack[count]` on the card, with pointers that fit its sizes.
pub(crate) unsafe fn unpack_weights(gpu: &Gpu, layers: u64, count: usize, units: usize) -> Result<()> {
    let blocks = units.div_ceil(256).clamp(1, 512) as u32;
    let grid = Grid { blocks: (blocks, count as u32), threads: (256, 1), shared_bytes: 0, early: false };
    // SAFETY: the caller's.
    unsafe { launch!(gpu, typed "unpack_weights", grid, layers) }
}

/// `AdapterGradient` of `kernel.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct AdapterGradient {
    pub(crate) x: u64,
    pub(crate) u: u64,
    pub(crate) dy: u64,
    pub(crate) du: u64,
    pub(crate) da: u64,
    pub(crate) db: u64,
    pub(crate) ins: i32,
    pub(crate) outs: i32,
    pub(crate) rank: i32,
    pub(crate) ldx: i32,
    pub(crate) ldy: i32,
    pub(crate) ldu: i32,
    pub(crate) linear: i32,
    pub(crate) scale: f32,
}

/// Columns a block makes: `TILE` of `kernel.cu`.
const TILE: usize = 64;
/// The highest rank: `adapters_down` (`ops/common.cuh`) has room for three adapters of it.
pub(crate) const MAX_RANK: usize = 64;

impl AdapterGradient {
    /// Blocks for dA and dB.
    pub(crate) fn tiles(&self) -> usize {
        (self.ins as usize).div_ceil(TILE) + (self.outs as usize).div_ceil(TILE)
    }
}

/// dA and dB of `count` adapters, in `tiles` blocks.
///
/// # Safety
/// `adapters` must be `AdapterGradient[count]` on the card, with pointers to `tokens` rows.
pub(crate) unsafe fn adapter_gradients(
    gpu: &Gpu,
    (adapters, count, tiles): (u64, usize, usize),
    rank: usize,
    step: u64,
    tokens: usize,
    (threshold, keep_scale): (u32, f32),
) -> Result<()> {
    let kernel = match (gpu.dtype() == candle_core::DType::BF16, rank <= 16) {
        (false, true) => "adapter_gradients_f32_r16",
        (false, false) => "adapter_gradients_f32_r64",
        (true, true) => "adapter_gradients_bf16_r16",
        (true, false) => "adapter_gradients_bf16_r64",
    };
    let (count, tokens) = (count as i32, tokens as i32);
    // SAFETY: the caller's.
    unsafe {
        launch!(gpu, plain kernel, Grid::new(tiles, 256), adapters, count, step, tokens, threshold, keep_scale)
    }
}
