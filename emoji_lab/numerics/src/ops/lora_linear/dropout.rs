//! Inverted dropout whose mask is computed, not stored.

use crate::rng::Philox;

/// Dropout (Srivastava et al. 2014) on A's input: a value is zeroed with probability `p`,
/// otherwise divided by `1 − p`.
///
/// The mask is a function of `(seed, stream, element)` alone, by Philox: the backward pass makes
/// it again instead of keeping it, and a resumed run drops what an unbroken one would have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability of dropping, below 1, in steps of 1/65,536.
    pub p: f64,
    /// The run's seed.
    pub seed: u64,
    /// A number of its own for every use of dropout: optimizer step, micro-batch and layer.
    pub stream: u64,
}

impl Dropout {
    /// `out[i] = mask[first + i] / (1 − p) · x[i]`; `first` is a multiple of 8.
    pub(super) fn apply(&self, first: usize, x: &[f32], out: &mut [f32]) {
        debug_assert!(first.is_multiple_of(8));
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has the instructions.
            return unsafe { self.apply_avx2(first, x, out) };
        }
        self.apply_in_blocks(first, x, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn apply_avx2(&self, first: usize, x: &[f32], out: &mut [f32]) {
        self.apply_in_blocks(first, x, out);
    }

    #[inline(always)]
    fn apply_in_blocks(&self, first: usize, x: &[f32], out: &mut [f32]) {
        /// Blocks of random words at a time.
        const BLOCKS: usize = 16;
        let random = Philox::new(self.seed, self.stream);
        let threshold = (self.p * 65_536.0) as u32;
        let scale = (1.0 / (1.0 - self.p)) as f32;
        // One block gives eight 16-bit draws.
        for (part, (x, out)) in x.chunks(8 * BLOCKS).zip(out.chunks_mut(8 * BLOCKS)).enumerate() {
            let words = random.blocks::<BLOCKS>((first / 8 + part * BLOCKS) as u64);
            for (block, (x, out)) in x.chunks(8).zip(out.chunks_mut(8)).enumerate() {
                for (i, (x, out)) in x.iter().zip(out).enumerate() {
                    let draw = words[i / 2][block] >> (16 * (i % 2)) & 0xffff;
                    *out = if draw < threshold { 0.0 } else { x * scale };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_the_share_it_is_told_and_keeps_the_mean() {
        let dropout = Dropout { p: 0.05, seed: 1, stream: 2 };
        let ones = vec![1.0f32; 80_000];
        let mut out = vec![0.0; ones.len()];
        dropout.apply(0, &ones, &mut out);
        let dropped = out.iter().filter(|v| **v == 0.0).count() as f64 / ones.len() as f64;
        assert!((dropped - 0.05).abs() < 0.003, "{dropped}");
        let mean = out.iter().sum::<f32>() / ones.len() as f32;
        assert!((mean - 1.0).abs() < 0.005, "{mean}");
        // A part computed alone is the same as in the whole.
        let mut part = vec![0.0; 100];
        dropout.apply(160, &ones[160..260], &mut part);
        assert_eq!(part, out[160..260]);
        let mut other = vec![0.0; 100];
        Dropout { stream: 3, ..dropout }.apply(160, &ones[..100], &mut other);
        assert_ne!(part, other);
    }
}
