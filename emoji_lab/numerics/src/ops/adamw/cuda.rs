//! AdamW on a GPU: one launch over the arena.

use super::Factors;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::{mirrored, mirrored_in_memory};
use crate::gpu::pointer::{Compute, DevicePtr, Moment};
use crate::ops::step::{Step, StepResult};

/// The most elements of a piece: large beside what a block begins with, small beside a multiprocessor's
/// share of the rows that occur.
pub const PIECE: usize = 8192;

/// A piece of the arena, a block's work: elements that lie next to each other and are treated alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Piece {
    /// Its first element among all: there its moments lie. A multiple of four, as are `at` and `len`.
    pub first: u64,
    /// And in the buffer of its values and gradients.
    pub at: u64,
    pub len: u32,
    /// Of [`OF_PRODUCTS`], [`OF_EMBEDDING`] and [`DECAYS`].
    pub kind: u32,
}

mirrored_in_memory! {
    Piece: 24 { first: 0, at: 8, len: 16, kind: 20 }
}

/// What products read: its values are in the compute type, apart from the others.
pub const OF_PRODUCTS: u32 = 1;
/// It has the embedding's learning rate.
pub const OF_EMBEDDING: u32 = 2;
/// Weight decay applies to it.
pub const DECAYS: u32 = 4;

/// One step; none if `result` says that it is not finite. What products read lies apart from the other
/// values, in the compute type.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct AdamwStep {
    /// Of all that products do not read.
    pub values: DevicePtr<f32>,
    pub products: DevicePtr<Compute>,
    /// The lower halves of `products`; none in f32.
    pub low: Option<DevicePtr<i16>>,
    /// As `values`.
    pub gradients: DevicePtr<f32>,
    /// As `products`: of the compute type, or f32.
    pub product_gradients: DevicePtr<u8>,
    /// Of everything.
    pub exp_avg: DevicePtr<Moment>,
    /// Of everything.
    pub exp_avg_sq: DevicePtr<Moment>,
    pub step: DevicePtr<Step>,
    pub result: DevicePtr<StepResult>,
    /// One per block.
    pub pieces: DevicePtr<Piece>,
}

mirrored! {
    AdamwStep: 80 {
        values: 0, products: 8, low: 16, gradients: 24, product_gradients: 32, exp_avg: 40, exp_avg_sq: 48, step: 56,
        result: 64, pieces: 72,
    }
}

mirrored_in_memory! {
    Factors: 28 {
        decay: 0, one_minus_beta1: 4, beta2: 8, one_minus_beta2: 12, eps: 16, step_size: 20, root_of_correction2: 24,
    }
}

const F32_MOMENTS: Kernel<AdamwStep> = Kernel::typed("adamw");
const BF16_MOMENTS: Kernel<AdamwStep> = Kernel::typed("adamw_bf16_moments");
const F32_GRADIENTS: Kernel<AdamwStep> = Kernel::typed("adamw_f32_gradients");
const BF16_MOMENTS_F32_GRADIENTS: Kernel<AdamwStep> = Kernel::typed("adamw_bf16_moments_f32_gradients");

impl AdamwStep {
    /// Over `pieces` pieces. `bf16_moments` is the moments' type, `f32_gradients` that of the gradients of
    /// what products read.
    ///
    /// # Safety
    /// Every piece must be within the buffers.
    pub unsafe fn launch(
        self,
        gpu: &Gpu,
        pieces: usize,
        bf16_moments: bool,
        f32_gradients: bool,
    ) -> Result<()> {
        let kernel = match (bf16_moments, f32_gradients) {
            (false, false) => F32_MOMENTS,
            (true, false) => BF16_MOMENTS,
            (false, true) => F32_GRADIENTS,
            (true, true) => BF16_MOMENTS_F32_GRADIENTS,
        };
        // SAFETY: the caller's.
        unsafe { kernel.launch(gpu, Grid::new(pieces, 256), self) }
    }
}

/// The two halves of an f32 as the kernel keeps the head's values: the nearest bf16, and what is
/// missing from it.
pub fn split(value: f32) -> (u16, u16) {
    let bits = value.to_bits();
    let high = bits.wrapping_add(0x8000) >> 16;
    (high as u16, bits.wrapping_sub(high << 16) as u16)
}

/// The f32 of [`split`]'s halves.
pub fn joined(high: u16, low: u16) -> f32 {
    f32::from_bits((u32::from(high) << 16).wrapping_add(i32::from(low as i16) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_make_the_whole() {
        let mut random = crate::rng::Philox::new(1, 0);
        for _ in 0..100_000 {
            let value = (random.next_f32() - 0.5) * 2f32.powi(random.below(60) as i32 - 30);
            let (high, low) = split(value);
            assert_eq!(joined(high, low).to_bits(), value.to_bits());
            let nearest = half::bf16::from_f32(value).to_f32();
            let ours = half::bf16::from_bits(high).to_f32();
            assert!((ours - value).abs() <= (nearest - value).abs(), "{value}: {ours}, {nearest}");
        }
        for value in [0.0f32, -0.0, 1.0, -1.0, f32::MIN_POSITIVE, 1e-40, 3.0e38] {
            let (high, low) = split(value);
            assert_eq!(joined(high, low).to_bits(), value.to_bits());
        }
    }
}
