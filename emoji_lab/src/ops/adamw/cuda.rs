//! AdamW on a GPU: one launch over the arena.

use crate::cuda::Gpu;
use crate::cuda::launch::{Grid, launch};
use crate::error::Result;

/// Blocks of 256 threads: eight on each of the H100's 132 multiprocessors.
const BLOCKS: usize = 1056;

/// `Arena` of `kernel.cu`: the buffers, of which the head's lie apart in the compute type.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Buffers {
    pub(crate) values: u64,
    pub(crate) head: u64,
    /// The lower halves of the head's values; 0 in f32.
    pub(crate) low: u64,
    pub(crate) gradients: u64,
    pub(crate) head_gradients: u64,
    pub(crate) exp_avg: u64,
    pub(crate) exp_avg_sq: u64,
    pub(crate) len: usize,
    pub(crate) first: usize,
    pub(crate) last: usize,
}

/// One step; none if `result` says that it is not finite. `bf16_moments` is the moments' type.
///
/// # Safety
/// Moments must have `len` values, the head's buffers `last − first`, the others the rest. All three
/// numbers must be multiples of four.
pub(crate) unsafe fn step(gpu: &Gpu, b: Buffers, bf16_moments: bool, step: u64, result: u64) -> Result<()> {
    let kernel = if bf16_moments { "adamw_bf16_moments" } else { "adamw" };
    // SAFETY: the caller's.
    unsafe { launch!(gpu, typed kernel, Grid::new(BLOCKS, 256), b, step, result) }
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
