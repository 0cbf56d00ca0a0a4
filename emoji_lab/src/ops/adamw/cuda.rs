//! AdamW on a GPU: one launch over the arena.

use super::Factors;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::{mirrored, mirrored_in_memory};
use crate::gpu::pointer::{Compute, DevicePtr, Moment};
use crate::ops::step::{Step, StepResult};

/// Blocks of 256 threads: eight on each of the H100's 132 multiprocessors.
const BLOCKS: usize = 1056;

/// One step; none if `result` says that it is not finite. Of `len` trained values the head's, from
/// `first` to before `last`, lie apart from the others, in the compute type.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct AdamwStep {
    /// `[len − (last − first)]`.
    pub(crate) values: DevicePtr<f32>,
    /// `[last − first]`.
    pub(crate) head: DevicePtr<Compute>,
    /// `[last − first]`: the lower halves of the head's values; none in f32.
    pub(crate) low: Option<DevicePtr<i16>>,
    /// `[len − (last − first)]`.
    pub(crate) gradients: DevicePtr<f32>,
    /// `[last − first]`.
    pub(crate) head_gradients: DevicePtr<Compute>,
    /// `[len]`.
    pub(crate) exp_avg: DevicePtr<Moment>,
    /// `[len]`.
    pub(crate) exp_avg_sq: DevicePtr<Moment>,
    pub(crate) step: DevicePtr<Step>,
    pub(crate) result: DevicePtr<StepResult>,
    pub(crate) len: usize,
    pub(crate) first: usize,
    pub(crate) last: usize,
    /// So many values from the first on have the embedding's learning rate.
    pub(crate) embedding_len: usize,
}

mirrored! {
    AdamwStep: 104 {
        values: 0, head: 8, low: 16, gradients: 24, head_gradients: 32, exp_avg: 40, exp_avg_sq: 48, step: 56,
        result: 64, len: 72, first: 80, last: 88, embedding_len: 96,
    }
}

mirrored_in_memory! {
    Factors: 28 {
        decay: 0, one_minus_beta1: 4, beta2: 8, one_minus_beta2: 12, eps: 16, step_size: 20, root_of_correction2: 24,
    }
}

const F32_MOMENTS: Kernel<AdamwStep> = Kernel::typed("adamw");
const BF16_MOMENTS: Kernel<AdamwStep> = Kernel::typed("adamw_bf16_moments");

impl AdamwStep {
    /// `bf16_moments` is the moments' type.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name, and `len`, `first`, `last` and `embedding_len`
    /// be multiples of four.
    pub(crate) unsafe fn launch(self, gpu: &Gpu, bf16_moments: bool) -> Result<()> {
        let kernel = if bf16_moments { BF16_MOMENTS } else { F32_MOMENTS };
        // SAFETY: the caller's.
        unsafe { kernel.launch(gpu, Grid::new(BLOCKS, 256), self) }
    }
}

/// The two halves of an f32 as the kernel keeps the head's values: the nearest bf16, and what is
/// missing from it.
pub(crate) fn split(value: f32) -> (u16, u16) {
    let bits = value.to_bits();
    let high = bits.wrapping_add(0x8000) >> 16;
    (high as u16, bits.wrapping_sub(high << 16) as u16)
}

/// The f32 of [`split`]'s halves.
pub(crate) fn joined(high: u16, low: u16) -> f32 {
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
