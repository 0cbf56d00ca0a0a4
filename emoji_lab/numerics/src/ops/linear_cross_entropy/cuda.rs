//! Loss and gradient over rows of logits on a GPU.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::mirrored;
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::ops::step::Step;

/// Losses of rows of logits, and, with `gradient`, the rows' gradients in their place.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct CrossEntropy {
    /// `[rows, vocab]`.
    pub logits: DevicePtr<Compute>,
    /// `[rows]`.
    pub targets: DevicePtr<i32>,
    /// `[rows]`.
    pub losses: DevicePtr<f32>,
    pub step: DevicePtr<Step>,
    pub vocab: i32,
    /// 1 or 0.
    pub gradient: i32,
}

mirrored! {
    CrossEntropy: 40 { logits: 0, targets: 8, losses: 16, step: 24, vocab: 32, gradient: 36 }
}

const CROSS_ENTROPY: Kernel<CrossEntropy> = Kernel::typed("cross_entropy");
const KEPT: Kernel<CrossEntropy> = Kernel::plain("cross_entropy_kept_bf16");
/// Blocks that share a row: `ROW_BLOCKS` of `kernel.cu`.
const ROW_BLOCKS: usize = 8;
/// Rows shorter than that are read twice.
const LONG: usize = 16 << 10;

impl CrossEntropy {
    /// For `rows` rows.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn launch(self, gpu: &Gpu, rows: usize) -> Result<()> {
        let vocab = self.vocab as usize;
        // An eighth of a row in words of 16 bytes, beside what the kernel declares.
        let bytes = vocab.div_ceil(8).div_ceil(ROW_BLOCKS) * 16;
        let fits = gpu.bf16() && gpu.has_clusters() && bytes + 512 <= gpu.limits().shared_bytes;
        // SAFETY: the caller's.
        unsafe {
            if fits && vocab >= LONG {
                KEPT.launch(gpu, Grid::new(ROW_BLOCKS * rows, 512).shared(bytes), self)
            } else {
                CROSS_ENTROPY.launch(gpu, Grid::new(rows, 1024), self)
            }
        }
    }
}

/// Some columns of rows of logits' gradients, next to each other.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TakeColumns {
    /// `[rows, vocab]`.
    pub logits: DevicePtr<Compute>,
    /// `[count]`.
    pub ids: DevicePtr<i32>,
    /// `[rows, ld]`, of which `count` are written.
    pub columns: DevicePtr<Compute>,
    pub vocab: i32,
    pub count: i32,
    pub ld: i32,
}

mirrored! {
    TakeColumns: 40 { logits: 0, ids: 8, columns: 16, vocab: 24, count: 28, ld: 32 }
}

const TAKE_COLUMNS: Kernel<TakeColumns> = Kernel::typed("take_columns");

impl TakeColumns {
    /// For `rows` rows.
    ///
    /// # Safety
    /// As [`CrossEntropy::launch`].
    pub unsafe fn launch(self, gpu: &Gpu, rows: usize) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { TAKE_COLUMNS.launch(gpu, Grid::new(rows, 256), self) }
    }
}

/// Adds the losses of a micro-batch to the step's.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct SumLosses {
    /// `[rows]`.
    pub losses: DevicePtr<f32>,
    /// One.
    pub total: DevicePtr<f64>,
    pub step: DevicePtr<Step>,
    pub rows: i32,
}

mirrored! {
    SumLosses: 32 { losses: 0, total: 8, step: 16, rows: 24 }
}

const SUM_LOSSES: Kernel<SumLosses> = Kernel::plain("sum_losses");

impl SumLosses {
    /// In one block.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { SUM_LOSSES.launch(gpu, Grid::new(1, 256), self) }
    }
}
