//! The group of linear layers on a GPU: what `kernel.cu` is given.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::{mirrored, mirrored_in_memory};
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::gpu::shared::Group;
use crate::ops::step::Step;

/// Dropout, as the kernels compute it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct DropoutFactors {
    /// The probability to drop in 1/65,536.
    pub threshold: u32,
    pub(crate) keep_scale: f32,
}

mirrored! {
    DropoutFactors: 8 { threshold: 0, keep_scale: 4 }
}

impl DropoutFactors {
    /// No dropout.
    pub const NONE: Self = Self { threshold: 0, keep_scale: 1.0 };

    /// Drops with probability `p`, in steps of 1/65,536 as on the CPU.
    pub fn new(p: f64) -> Self {
        Self { threshold: (p * 65_536.0) as u32, keep_scale: (1.0 / (1.0 - p)) as f32 }
    }
}

/// The adapters that read one activation.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Adapters {
    /// `[rank, width]` each, of linear layers that have one.
    pub a: [Option<DevicePtr<f32>>; 3],
    /// The layers' numbers, for dropout.
    pub linear: [i32; 3],
    pub count: i32,
    pub rank: i32,
    /// The rank as it is laid out.
    pub padded: i32,
    pub dropout: DropoutFactors,
}

mirrored! {
    Adapters: 56 { a: 0, linear: 24, count: 36, rank: 40, padded: 44, dropout: 48 }
}

impl Adapters {
    /// No adapters.
    pub const NONE: Self =
        Self { a: [None; 3], linear: [0; 3], count: 0, rank: 0, padded: 0, dropout: DropoutFactors::NONE };

    /// The same outside training.
    pub fn without_dropout(self) -> Self {
        Self { dropout: DropoutFactors::NONE, ..self }
    }

    /// What shared memory depends on.
    pub fn group(&self) -> Group {
        Group {
            count: self.count as usize,
            padded: self.padded as usize,
            dropout: self.dropout.threshold > 0,
        }
    }
}

/// One linear layer within its group's matrix.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Unpack {
    /// NF4; none where the base weight is in its place already.
    pub packed: Option<DevicePtr<u8>>,
    /// One per block of `block_size` values.
    pub absmax: Option<DevicePtr<f32>>,
    /// The layer's first row in the group's matrix.
    pub out: DevicePtr<Compute>,
    /// `[rows, rank]`, of a layer with an adapter.
    pub b: Option<DevicePtr<f32>>,
    pub rows: i32,
    pub width: i32,
    pub ld: i32,
    pub block_size: i32,
    /// B's first column, of `ld`.
    pub b_at: i32,
    pub rank: i32,
    pub scale: f32,
    /// The struct is a multiple of eight bytes long.
    pub padding: i32,
}

mirrored_in_memory! {
    Unpack: 64 {
        packed: 0, absmax: 8, out: 16, b: 24, rows: 32, width: 36, ld: 40, block_size: 44, b_at: 48, rank: 52,
        scale: 56, padding: 60,
    }
}

/// Puts together the matrices `[W | scale · B]` of linear layers.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct UnpackWeights {
    /// `[count]`.
    pub layers: DevicePtr<Unpack>,
}

mirrored! {
    UnpackWeights: 8 { layers: 0 }
}

const UNPACK_THREADS: usize = 256;
/// Units a thread: `UNPACK_UNITS` of `kernel.cu`.
const UNPACK_UNITS: usize = 4;

const UNPACK_WEIGHTS: Kernel<UnpackWeights> = Kernel::typed("unpack_weights");

impl UnpackWeights {
    /// For `count` layers, of at most `units` units of work each (eight values of W or of B).
    ///
    /// # Safety
    /// The pointers of every layer must fit its sizes.
    pub unsafe fn launch(self, gpu: &Gpu, count: usize, units: usize) -> Result<()> {
        let blocks = units.div_ceil(UNPACK_THREADS * UNPACK_UNITS).max(1);
        // SAFETY: the caller's.
        unsafe { UNPACK_WEIGHTS.launch(gpu, Grid::new(blocks, UNPACK_THREADS).rows(count), self) }
    }
}

/// One adapter's gradients.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct AdapterGradient {
    /// `[tokens, ldx]`.
    pub x: DevicePtr<Compute>,
    /// Within the rows of x.
    pub u: DevicePtr<Compute>,
    /// `[tokens, ldy]`.
    pub dy: DevicePtr<Compute>,
    /// `[tokens, ldu]`.
    pub du: DevicePtr<f32>,
    /// `[rank, ins]`.
    pub da: DevicePtr<f32>,
    /// `[outs, rank]`.
    pub db: DevicePtr<f32>,
    pub ins: i32,
    pub outs: i32,
    pub rank: i32,
    pub ldx: i32,
    pub ldy: i32,
    pub ldu: i32,
    /// The layer's number, for dropout.
    pub linear: i32,
    pub scale: f32,
}

mirrored_in_memory! {
    AdapterGradient: 80 {
        x: 0, u: 8, dy: 16, du: 24, da: 32, db: 40, ins: 48, outs: 52, rank: 56, ldx: 60, ldy: 64, ldu: 68, linear: 72,
        scale: 76,
    }
}

/// Columns a block makes: `TILE` of `kernel.cu`.
const TILE: usize = 64;

impl AdapterGradient {
    /// Blocks for dA and dB.
    pub fn tiles(&self) -> usize {
        (self.ins as usize).div_ceil(TILE) + (self.outs as usize).div_ceil(TILE)
    }
}

/// dA and dB of adapters.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct AdapterGradients {
    /// `[count]`.
    pub adapters: DevicePtr<AdapterGradient>,
    pub step: DevicePtr<Step>,
    pub count: i32,
    pub tokens: i32,
    pub dropout: DropoutFactors,
}

mirrored! {
    AdapterGradients: 32 { adapters: 0, step: 8, count: 16, tokens: 20, dropout: 24 }
}

const TENSOR: Kernel<AdapterGradients> = Kernel::plain("adapter_gradients_tensor");
const OF_RANK_16: Kernel<AdapterGradients> = Kernel::plain("adapter_gradients_r16_f32");
const OF_RANK_64: Kernel<AdapterGradients> = Kernel::plain("adapter_gradients_r64_f32");
const TILED: Kernel<AdapterGradients> = Kernel::plain("adapter_gradients_tiled_f32");

impl AdapterGradients {
    /// In `tiles` blocks, all adapters' [`AdapterGradient::tiles`]. `many` is for the tokens that several blocks share a
    /// multiprocessor for, which in f32 have a kernel of their own up to a rank of 16.
    ///
    /// # Safety
    /// The pointers of every adapter must fit its sizes, for `tokens` rows; none may have a higher rank
    /// than `rank`.
    pub unsafe fn launch(self, gpu: &Gpu, tiles: usize, rank: usize, many: bool) -> Result<()> {
        let (kernel, at_a_time, threads) = match (gpu.bf16(), many) {
            (true, true) => (TENSOR, 16, 256),
            (true, false) => (TENSOR, 16, 128),
            (false, true) if rank <= 16 => (TILED, 16, 256),
            (false, _) if rank <= 16 => (OF_RANK_16, 16, 256),
            (false, _) => (OF_RANK_64, 64, 256),
        };
        let grid = Grid::new(tiles, threads).rows(rank.div_ceil(at_a_time));
        // SAFETY: the caller's.
        unsafe { kernel.launch(gpu, grid, self) }
    }
}

/// Tokens, parts of the rank, and columns that a block of these has.
const TILE_TOKENS: usize = 16;
const TILE_RANKS: usize = 16;
const TILE_COLUMNS: usize = 128;

/// u after each row of y, as the norm and its like make it for few tokens.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct AdaptersDown {
    /// `[tokens, ld]`.
    pub y: DevicePtr<Compute>,
    /// Read where there is dropout.
    pub step: Option<DevicePtr<Step>>,
    pub adapters: Adapters,
    pub tokens: i32,
    pub ld: i32,
    pub width: i32,
}

mirrored! {
    AdaptersDown: 88 { y: 0, step: 8, adapters: 16, tokens: 72, ld: 76, width: 80 }
}

const DOWN_TILED: Kernel<AdaptersDown> = Kernel::typed("adapters_down_tiled");

impl AdaptersDown {
    /// All adapters of the group.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        let ranks = self.adapters.count as usize * (self.adapters.padded as usize).div_ceil(TILE_RANKS);
        // One adapter of a low rank has few blocks: more warps in each.
        let threads = if !gpu.bf16() {
            128
        } else if ranks == 1 {
            512
        } else {
            256
        };
        let grid =
            Grid::new((self.tokens as usize).div_ceil(TILE_TOKENS), threads).rows(ranks).begins_early();
        // SAFETY: the caller's.
        unsafe { DOWN_TILED.launch(gpu, grid, self) }
    }
}

/// Adds what flows back through the adapters, of the gradient of u after each row, to that of the row.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct AdaptersBack {
    /// `[tokens, ld]`.
    pub dx: DevicePtr<f32>,
    /// Read where there is dropout.
    pub step: Option<DevicePtr<Step>>,
    pub adapters: Adapters,
    pub tokens: i32,
    pub ld: i32,
    pub width: i32,
}

mirrored! {
    AdaptersBack: 88 { dx: 0, step: 8, adapters: 16, tokens: 72, ld: 76, width: 80 }
}

const BACK_TILED: Kernel<AdaptersBack> = Kernel::plain("adapters_back_tiled");
const BACK_TENSOR: Kernel<AdaptersBack> = Kernel::plain("adapters_back_tensor");

impl AdaptersBack {
    /// All adapters of the group.
    ///
    /// # Safety
    /// As [`AdaptersDown::launch`].
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        let kernel = if gpu.bf16() { &BACK_TENSOR } else { &BACK_TILED };
        let columns = (self.width as usize).div_ceil(TILE_COLUMNS);
        let grid = Grid::new((self.tokens as usize).div_ceil(TILE_TOKENS), 128).rows(columns).begins_early();
        // SAFETY: the caller's.
        unsafe { kernel.launch(gpu, grid, self) }
    }
}
