//! RMSNorm with what stands around it, on a GPU.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::mirrored;
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::gpu::{rows, shared};
use crate::ops::lora_linear::cuda::Adapters;
use crate::ops::step::Step;

/// A branch that joins the stream before the norm, after a norm of its own: its rows
/// `[tokens, width]`, that norm's weight `[width]`, and its `rstd` `[tokens]`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Branch {
    pub rows: Option<DevicePtr<Compute>>,
    pub weight: Option<DevicePtr<f32>>,
    pub rstd: Option<DevicePtr<f32>>,
}

mirrored! {
    Branch: 24 { rows: 0, weight: 8, rstd: 16 }
}

impl Branch {
    /// No branch.
    pub const NONE: Self = Self { rows: None, weight: None, rstd: None };
}

/// `x += rms(branch) · (1 + w_post)`, `y = rms(x) · (1 + w)`, `u = dropout(y) Aᵀ` after each row of y.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct NormForward {
    /// `[tokens, width]`.
    pub x: DevicePtr<f32>,
    pub branch: Branch,
    /// `[tokens, width]`: x and the branch; not written without one.
    pub stream: Option<DevicePtr<f32>>,
    /// `[width]`.
    pub weight: DevicePtr<f32>,
    /// `[tokens]`.
    pub rstd: DevicePtr<f32>,
    /// `[tokens, ldy]`.
    pub y: DevicePtr<Compute>,
    /// Read where there is dropout.
    pub step: Option<DevicePtr<Step>>,
    pub adapters: Adapters,
    pub ldy: i32,
    pub width: i32,
    pub eps: f32,
}

mirrored! {
    NormForward: 144 {
        x: 0, branch: 8, stream: 32, weight: 40, rstd: 48, y: 56, step: 64, adapters: 72, ldy: 128, width: 132,
        eps: 136,
    }
}

/// The widest row: 32 values for each of a block's threads (`kernel.cu`).
pub const MOST: usize = 32 * rows::THREADS;
/// The widest row that needs no kernel of its own: four values for each of a block's threads.
const NARROW: usize = 4 * rows::THREADS;

/// How many rows of `width` values a block can have: its threads have up to eight values of each.
fn most_a_block(width: usize) -> usize {
    match 8 * rows::THREADS / width {
        0 | 1 => 1,
        2 | 3 => 2,
        _ => 4,
    }
}

/// The kernel for many rows of `width` values, and its threads.
fn of_many<'a, A>(width: usize, narrow: &'a Kernel<A>, wide: &'a Kernel<A>) -> (&'a Kernel<A>, usize) {
    let threads = if width <= NARROW { rows::threads_for_many(width) } else { rows::THREADS };
    (if width <= 4 * threads { narrow } else { wide }, threads)
}

const FORWARD: Kernel<NormForward> = Kernel::typed("norm_forward");
const FORWARD_WIDE: Kernel<NormForward> = Kernel::typed("norm_forward_wide");
const FORWARD_2: Kernel<NormForward> = Kernel::typed("norm_forward_2");
const FORWARD_4: Kernel<NormForward> = Kernel::typed("norm_forward_4");

impl NormForward {
    /// For `tokens` rows, a block each.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn launch(self, gpu: &Gpu, tokens: usize) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.launch_some(gpu, tokens, 1) }
    }

    /// The same with up to `a_block` rows a block, four, two or one: the adapters' A is read once for them.
    ///
    /// # Safety
    /// As [`Self::launch`].
    pub unsafe fn launch_some(self, gpu: &Gpu, tokens: usize, a_block: usize) -> Result<()> {
        let width = self.width as usize;
        let one = if width <= NARROW { &FORWARD } else { &FORWARD_WIDE };
        let a_block = a_block.min(most_a_block(width));
        // SAFETY: the caller's.
        unsafe { rows::launch([one, &FORWARD_2, &FORWARD_4], gpu, tokens, a_block, self.bytes(), self) }
    }

    /// The same for many rows without adapters.
    ///
    /// # Safety
    /// As [`Self::launch`].
    pub unsafe fn launch_many(self, gpu: &Gpu, tokens: usize) -> Result<()> {
        let (many, threads) = of_many(self.width as usize, &FORWARD, &FORWARD_WIDE);
        // SAFETY: the caller's.
        unsafe { rows::launch_many(many, gpu, tokens, threads, self.bytes(), self) }
    }

    fn bytes(&self) -> usize {
        shared::norm_forward(self.width as usize, self.adapters.group())
    }
}

/// The gradient of [`NormForward`]: of the stream into `d_out`, and of the branch into `d_branch`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct NormBackward {
    /// `[tokens, ldy]`: of y, and after each row of it that of u.
    pub dy: DevicePtr<f32>,
    /// `[tokens, width]`: what was normalised.
    pub x: DevicePtr<f32>,
    /// `[width]`.
    pub weight: DevicePtr<f32>,
    /// `[tokens]`.
    pub rstd: DevicePtr<f32>,
    /// `[tokens, width]`: added to the stream's gradient.
    pub d_in: Option<DevicePtr<f32>>,
    /// `[tokens, width]`.
    pub d_out: DevicePtr<f32>,
    pub branch: Branch,
    /// `[tokens, width]`; not written without a branch.
    pub d_branch: Option<DevicePtr<Compute>>,
    /// Read where there is dropout.
    pub step: Option<DevicePtr<Step>>,
    pub adapters: Adapters,
    pub ldy: i32,
    pub width: i32,
}

mirrored! {
    NormBackward: 152 {
        dy: 0, x: 8, weight: 16, rstd: 24, d_in: 32, d_out: 40, branch: 48, d_branch: 72, step: 80, adapters: 88,
        ldy: 144, width: 148,
    }
}

const BACKWARD: Kernel<NormBackward> = Kernel::typed("norm_backward");
const BACKWARD_WIDE: Kernel<NormBackward> = Kernel::typed("norm_backward_wide");
const BACKWARD_2: Kernel<NormBackward> = Kernel::typed("norm_backward_2");
const BACKWARD_4: Kernel<NormBackward> = Kernel::typed("norm_backward_4");

impl NormBackward {
    /// For `tokens` rows, up to `a_block` of them a block, as [`NormForward::launch_some`].
    ///
    /// # Safety
    /// As [`NormForward::launch`].
    pub unsafe fn launch_some(self, gpu: &Gpu, tokens: usize, a_block: usize) -> Result<()> {
        let width = self.width as usize;
        let one = if width <= NARROW { &BACKWARD } else { &BACKWARD_WIDE };
        let a_block = a_block.min(most_a_block(width));
        // SAFETY: the caller's.
        unsafe { rows::launch([one, &BACKWARD_2, &BACKWARD_4], gpu, tokens, a_block, self.bytes(), self) }
    }

    /// The same for many rows without adapters.
    ///
    /// # Safety
    /// As [`NormForward::launch`].
    pub unsafe fn launch_many(self, gpu: &Gpu, tokens: usize) -> Result<()> {
        let (many, threads) = of_many(self.width as usize, &BACKWARD, &BACKWARD_WIDE);
        // SAFETY: the caller's.
        unsafe { rows::launch_many(many, gpu, tokens, threads, self.bytes(), self) }
    }

    fn bytes(&self) -> usize {
        shared::norm_backward(self.width as usize, self.adapters.group())
    }
}

/// The sum over rows of `dy · x · rstd`: the gradient of a norm's weight.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct WeightSum {
    /// `[rows, ld]`.
    pub dy: DevicePtr<f32>,
    /// `[rows, width]`: what was normalised, where it is in f32.
    pub x: Option<DevicePtr<f32>>,
    /// The same, where it is in the compute type. Without both `dy` is the product of all three.
    pub branch: Option<DevicePtr<Compute>>,
    /// `[rows]`; there where one of both is.
    pub rstd: Option<DevicePtr<f32>>,
    /// `[width]`; without it nothing is summed.
    pub dw: Option<DevicePtr<f32>>,
    pub rows: i32,
    pub ld: i32,
}

mirrored! {
    WeightSum: 48 { dy: 0, x: 8, branch: 16, rstd: 24, dw: 32, rows: 40, ld: 44 }
}

impl WeightSum {
    /// Of nothing.
    pub const NONE: Self =
        Self { dy: DevicePtr::nowhere(), x: None, branch: None, rstd: None, dw: None, rows: 0, ld: 0 };
}

/// The gradients of two norms' weights of one width, added to those of an earlier micro-batch.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct NormWeights {
    pub of: [WeightSum; 2],
    pub step: DevicePtr<Step>,
    pub width: i32,
}

mirrored! {
    NormWeights: 112 { of: 0, step: 96, width: 104 }
}

const NORM_WEIGHTS: Kernel<NormWeights> = Kernel::typed("norm_weights");
/// `SUM_ROWS` of `kernel.cu`.
const SUM_ROWS: u32 = 16;

impl NormWeights {
    /// Both.
    ///
    /// # Safety
    /// As [`NormForward::launch`].
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        let grid =
            Grid { threads: (32, SUM_ROWS), ..Grid::new((self.width as usize).div_ceil(32), 32).rows(2) };
        // SAFETY: the caller's.
        unsafe { NORM_WEIGHTS.launch(gpu, grid, self) }
    }
}
