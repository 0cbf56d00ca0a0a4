//! NF4, the 4-bit NormalFloat of QLoRA (Dettmers et al. 2023, arXiv:2305.14314), stored as
//! bitsandbytes stores it: blocks of consecutive values (rows run into each other), one f32
//! `absmax` a block, two values a byte with the first in the high nibble.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::host;

/// Values that share one `absmax`, by default.
pub const BLOCK_SIZE: usize = 64;

/// The sixteen levels: quantiles of a normal distribution scaled to ±1, with an exact zero
/// (QLoRA, appendix E).
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Work a task takes, in blocks.
const BLOCKS_A_TASK: usize = 256;

/// A weight in NF4.
#[derive(Debug, Clone)]
pub struct Nf4Tensor {
    packed: Vec<u8>,
    absmax: Vec<f32>,
    dims: Vec<usize>,
    block_size: usize,
}

impl Nf4Tensor {
    /// Quantises an f32 tensor on the CPU: every value goes to the level nearest to
    /// `value / absmax`, the lower one of two equally near.
    ///
    /// # Errors
    /// If the tensor is not f32 on the CPU, or `block_size` is odd or zero.
    pub fn quantize(weight: &Tensor, block_size: usize) -> Result<Self> {
        if block_size == 0 || !block_size.is_multiple_of(2) {
            candle_core::bail!("nf4: a block of {block_size} values cannot be packed two a byte")
        }
        let weight = weight.contiguous()?;
        host::read(&weight, |values| {
            let blocks = values.len().div_ceil(block_size);
            let mut packed = vec![0u8; values.len().div_ceil(2)];
            let mut absmax = vec![0f32; blocks];
            packed
                .par_chunks_mut(BLOCKS_A_TASK * block_size / 2)
                .zip(absmax.par_chunks_mut(BLOCKS_A_TASK))
                .zip(values.par_chunks(BLOCKS_A_TASK * block_size))
                .for_each(|((packed, absmax), values)| {
                    let blocks = packed.chunks_mut(block_size / 2).zip(absmax).zip(values.chunks(block_size));
                    for ((packed, absmax), values) in blocks {
                        *absmax = quantize_block(values, packed);
                    }
                });
            Ok(Self { packed, absmax, dims: weight.dims().to_vec(), block_size })
        })
    }

    /// The weight back in f32 on the CPU: `LEVELS[code] · absmax` of its block.
    ///
    /// # Errors
    /// Never in practice: only if candle cannot make a tensor.
    pub fn dequantize(&self) -> Result<Tensor> {
        host::tensor(self.dequantize_vec(), self.dims.as_slice())
    }

    /// [`Self::dequantize`] as plain values.
    pub fn dequantize_vec(&self) -> Vec<f32> {
        let mut out = vec![0f32; self.len()];
        out.par_chunks_mut(BLOCKS_A_TASK * self.block_size)
            .zip(self.packed.par_chunks(BLOCKS_A_TASK * self.block_size / 2))
            .zip(self.absmax.par_chunks(BLOCKS_A_TASK))
            .for_each(|((out, packed), absmax)| {
                let blocks =
                    out.chunks_mut(self.block_size).zip(packed.chunks(self.block_size / 2)).zip(absmax);
                for ((out, packed), absmax) in blocks {
                    for (pair, byte) in out.chunks_mut(2).zip(packed) {
                        pair[0] = LEVELS[(byte >> 4) as usize] * absmax;
                        if let Some(second) = pair.get_mut(1) {
                            *second = LEVELS[(byte & 15) as usize] * absmax;
                        }
                    }
                }
            });
        out
    }

    /// The codes, two a byte, the first in the high nibble.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// The largest magnitude of every block.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// Values that share one `absmax`.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The weight's shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Memory the weight takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.packed.len() + self.absmax.len() * size_of::<f32>()
    }

    fn len(&self) -> usize {
        self.dims.iter().product()
    }
}

fn quantize_block(values: &[f32], packed: &mut [u8]) -> f32 {
    let absmax = values.iter().fold(0f32, |max, v| max.max(v.abs()));
    let inverse = 1.0 / absmax;
    for (pair, byte) in values.chunks(2).zip(packed) {
        let first = nearest_level((pair[0] * inverse).clamp(-1.0, 1.0));
        let second = pair.get(1).map_or(0, |v| nearest_level((v * inverse).clamp(-1.0, 1.0)));
        *byte = first << 4 | second;
    }
    absmax
}

/// The first of the levels with the smallest distance. A block of zeros gives NaN here, and so
/// level 0: as in bitsandbytes, the bytes of such a block are zero (its values are 0 · −1).
fn nearest_level(value: f32) -> u8 {
    let mut best = (0u8, f32::INFINITY);
    for (code, level) in LEVELS.iter().enumerate() {
        let distance = (value - level).abs();
        if distance < best.1 {
            best = (code as u8, distance);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn levels_survive_and_odd_ends_are_packed() -> Result<()> {
        let mut values: Vec<f32> = LEVELS.iter().map(|l| l * 3.0).collect();
        values.push(-1.5);
        let weight = Tensor::from_vec(values.clone(), 17, &Device::Cpu)?;
        let quantized = Nf4Tensor::quantize(&weight, 16)?;
        assert_eq!(quantized.packed(), [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x00]);
        assert_eq!(quantized.absmax(), [3.0, 1.5]);
        assert_eq!(quantized.dequantize()?.to_vec1::<f32>()?, values);
        Ok(())
    }

    #[test]
    fn a_block_of_zeros_stays_zero() -> Result<()> {
        let weight = Tensor::zeros((2, 64), candle_core::DType::F32, &Device::Cpu)?;
        let quantized = Nf4Tensor::quantize(&weight, BLOCK_SIZE)?;
        assert!(quantized.packed().iter().all(|b| *b == 0));
        assert!(quantized.dequantize_vec().iter().all(|v| *v == 0.0));
        Ok(())
    }

    #[test]
    fn a_block_that_cannot_be_packed_is_refused() -> Result<()> {
        let weight = Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu)?;
        assert!(Nf4Tensor::quantize(&weight, 0).is_err());
        assert!(Nf4Tensor::quantize(&weight, 3).is_err());
        Ok(())
    }
}
