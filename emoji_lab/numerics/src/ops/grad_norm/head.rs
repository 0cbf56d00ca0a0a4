//! The squared norm of a head's gradient that is nowhere in memory, on a GPU in bf16 (`head.cu` has the formula).

use half::bf16;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::mirrored;
use crate::gpu::pointer::DevicePtr;
use crate::ops::adamw::head::HEAD_TOKENS;

/// Partial sums that [`HeadSquares`] leaves.
const BLOCKS: usize = 256;

/// Partial sums of such a head: those of [`HeadSquares`], then one per place of [`LookupSquares`].
pub const HEAD_PARTIALS: usize = BLOCKS + HEAD_TOKENS;

/// The products of hidden states with each other.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct HiddenProducts {
    /// `[tokens, width]`.
    pub hidden: DevicePtr<bf16>,
    /// `[tokens, tokens]`.
    pub products: DevicePtr<f32>,
    pub tokens: i32,
    pub width: i32,
}

mirrored! {
    HiddenProducts: 24 { hidden: 0, products: 8, tokens: 16, width: 20 }
}

const HIDDEN_PRODUCTS: Kernel<HiddenProducts> = Kernel::plain("hidden_products");

impl HiddenProducts {
    /// All of them.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        let grid = Grid::new(self.tokens as usize, 256).shared(self.width as usize * 4);
        // SAFETY: the caller's.
        unsafe { HIDDEN_PRODUCTS.launch(gpu, grid, self) }
    }
}

/// The square of `d_logitsᵀ · hidden`, in parts.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct HeadSquares {
    /// `[tokens, vocab]`.
    pub d_logits: DevicePtr<bf16>,
    /// `[tokens, tokens]`, of [`HiddenProducts`].
    pub products: DevicePtr<f32>,
    /// `[HEAD_PARTIALS]`, of which the first are written.
    pub partials: DevicePtr<f64>,
    pub tokens: i32,
    pub vocab: i32,
}

mirrored! {
    HeadSquares: 32 { d_logits: 0, products: 8, partials: 16, tokens: 24, vocab: 28 }
}

const SHORT: Kernel<HeadSquares> = Kernel::plain("head_squares_128");
const LONG: Kernel<HeadSquares> = Kernel::plain("head_squares_192");

impl HeadSquares {
    /// For at most [`HEAD_TOKENS`] tokens.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name, and the GPU compute in bf16.
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        let tokens = self.tokens as usize;
        // Two halves of 64 columns; rows are 16 bytes further apart than they are long.
        let bytes = 2 * tokens.next_multiple_of(16) * (64 + 8) * 2;
        let kernel = if tokens <= 128 { &SHORT } else { &LONG };
        // SAFETY: the caller's.
        unsafe { kernel.launch(gpu, Grid::new(BLOCKS, 256).shared(bytes), self) }
    }
}

/// The rows of `d_logitsᵀ · hidden` that were looked up.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct LookedUpRows {
    /// `[tokens, vocab]`.
    pub d_logits: DevicePtr<bf16>,
    /// `[tokens, width]`.
    pub hidden: DevicePtr<bf16>,
    /// `[tokens]`, with `order` and `runs` as [`by_id`](crate::ops::embedding::cuda::by_id) has them.
    pub ids: DevicePtr<i32>,
    pub order: DevicePtr<i32>,
    pub runs: DevicePtr<i32>,
    /// `[tokens, width]`: by place in `order`, where a run begins; others are not written.
    pub rows: DevicePtr<f32>,
    pub tokens: i32,
    pub vocab: i32,
    pub width: i32,
    /// The struct is a multiple of eight bytes long.
    pub padding: i32,
}

mirrored! {
    LookedUpRows: 64 {
        d_logits: 0, hidden: 8, ids: 16, order: 24, runs: 32, rows: 40, tokens: 48, vocab: 52, width: 56, padding: 60,
    }
}

const LOOKED_UP_ROWS: Kernel<LookedUpRows> = Kernel::plain("looked_up_rows");

impl LookedUpRows {
    /// As [`HeadSquares::launch`].
    ///
    /// # Safety
    /// As [`HeadSquares::launch`], and every id must be a row of the head.
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { LOOKED_UP_ROWS.launch(gpu, Grid::new(self.tokens as usize, 320), self) }
    }
}

/// What the rows that were looked up add, a part per place.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct LookupSquares {
    /// `[tokens, width]`, of [`LookedUpRows`].
    pub rows: DevicePtr<f32>,
    /// `[tokens, width]`: the gradient of the vectors that were looked up.
    pub dx: DevicePtr<f32>,
    /// `[tokens]`, as `runs`.
    pub order: DevicePtr<i32>,
    pub runs: DevicePtr<i32>,
    /// `[HEAD_PARTIALS]`, of which the last are written; [`Self::launch`] takes where the first are.
    pub partials: DevicePtr<f64>,
    pub tokens: i32,
    pub width: i32,
    /// Factor on what is looked up.
    pub scale: f32,
    /// The struct is a multiple of eight bytes long.
    pub padding: i32,
}

mirrored! {
    LookupSquares: 56 {
        rows: 0, dx: 8, order: 16, runs: 24, partials: 32, tokens: 40, width: 44, scale: 48, padding: 52,
    }
}

const LOOKUP_SQUARES: Kernel<LookupSquares> = Kernel::plain("lookup_squares");

impl LookupSquares {
    /// As [`HeadSquares::launch`].
    ///
    /// # Safety
    /// As [`HeadSquares::launch`].
    pub unsafe fn launch(self, gpu: &Gpu) -> Result<()> {
        let partials = self.partials.at(gpu, BLOCKS);
        // SAFETY: the caller's.
        unsafe { LOOKUP_SQUARES.launch(gpu, Grid::new(HEAD_TOKENS, 320), Self { partials, ..self }) }
    }
}
