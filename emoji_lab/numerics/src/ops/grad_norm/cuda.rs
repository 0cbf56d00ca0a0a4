//! The gradients' norm on a GPU.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::{mirrored, mirrored_in_memory};
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::ops::step::{Step, StepResult};

const THREADS: usize = 256;

/// Partial sums of the norm: blocks of the first of its two steps.
pub const PARTIALS: usize = 1056;

/// Gradients of what products read: of the compute type, or f32, and how many.
#[derive(Debug, Clone, Copy)]
pub enum Gradients {
    Compute(DevicePtr<Compute>, usize),
    F32(DevicePtr<f32>, usize),
}

impl Gradients {
    /// Where they begin, whatever they are.
    pub fn start(self) -> DevicePtr<u8> {
        match self {
            Self::Compute(start, _) => start.cast(),
            Self::F32(start, _) => start.cast(),
        }
    }
}

/// The norm of the gradients of what products read and of all others', the factor of clipping, and whether
/// all is finite, into `result`, with the loss.
#[derive(Debug, Clone, Copy)]
pub struct GradNorm {
    pub products: Gradients,
    /// `[len]`.
    pub others: DevicePtr<f32>,
    pub len: usize,
    /// `[PARTIALS]`, and after them as many as `more`, which others have left.
    pub partials: DevicePtr<f64>,
    pub more: usize,
    /// One.
    pub loss: DevicePtr<f64>,
    pub step: DevicePtr<Step>,
    pub result: DevicePtr<StepResult>,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct SumOfSquares<T> {
    products: DevicePtr<T>,
    products_len: usize,
    others: DevicePtr<f32>,
    len: usize,
    partials: DevicePtr<f64>,
}

mirrored! {
    SumOfSquares<f32>: 40 { products: 0, products_len: 8, others: 16, len: 24, partials: 32 }
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct FinishNorm {
    partials: DevicePtr<f64>,
    loss: DevicePtr<f64>,
    step: DevicePtr<Step>,
    result: DevicePtr<StepResult>,
    count: i32,
}

mirrored! {
    FinishNorm: 40 { partials: 0, loss: 8, step: 16, result: 24, count: 32 }
}

const SUM_OF_SQUARES: Kernel<SumOfSquares<Compute>> = Kernel::typed("sum_of_squares");
const SUM_OF_SQUARES_F32: Kernel<SumOfSquares<f32>> = Kernel::plain("sum_of_squares_f32");
const FINISH_NORM: Kernel<FinishNorm> = Kernel::plain("finish_norm");

impl GradNorm {
    /// Both steps.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        let Self { products, others, len, partials, more, loss, step, result } = self;
        let grid = Grid::new(PARTIALS, THREADS);
        let finish = FinishNorm { partials, loss, step, result, count: (PARTIALS + more) as i32 };
        // SAFETY: the caller's.
        unsafe {
            match products {
                Gradients::Compute(products, products_len) => {
                    let sums = SumOfSquares { products, products_len, others, len, partials };
                    SUM_OF_SQUARES.launch(gpu, grid, sums)?;
                }
                Gradients::F32(products, products_len) => {
                    let sums = SumOfSquares { products, products_len, others, len, partials };
                    SUM_OF_SQUARES_F32.launch(gpu, grid, sums)?;
                }
            }
            FINISH_NORM.launch(gpu, Grid::new(1, THREADS), finish)
        }
    }
}

/// Partial sums of each range.
pub const RANGE_PARTIALS: usize = 64;

/// Some of the gradients.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Range {
    pub first: u64,
    pub len: u64,
}

mirrored_in_memory! {
    Range: 16 { first: 0, len: 8 }
}

/// Sums of squares of ranges of gradients, in `RANGE_PARTIALS` parts each.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct SquaresByRange<T> {
    pub gradients: DevicePtr<T>,
    /// `[count]`, within the gradients.
    pub ranges: DevicePtr<Range>,
    /// `[count, RANGE_PARTIALS]`.
    pub partials: DevicePtr<f64>,
}

mirrored! {
    SquaresByRange<f32>: 24 { gradients: 0, ranges: 8, partials: 16 }
}

const SQUARES: Kernel<SquaresByRange<Compute>> = Kernel::typed("squares_by_range");
const SQUARES_F32: Kernel<SquaresByRange<f32>> = Kernel::plain("squares_by_range_f32");

impl SquaresByRange<Compute> {
    /// For `count` ranges.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn launch(self, gpu: &Gpu, count: usize) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { SQUARES.launch(gpu, Grid::new(RANGE_PARTIALS, THREADS).rows(count), self) }
    }
}

impl SquaresByRange<f32> {
    /// For `count` ranges.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn launch(self, gpu: &Gpu, count: usize) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { SQUARES_F32.launch(gpu, Grid::new(RANGE_PARTIALS, THREADS).rows(count), self) }
    }
}
