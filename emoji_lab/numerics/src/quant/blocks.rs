//! ggml's storage types and how their blocks become f32.
//!
//! The layouts are those of ggml's `ggml-common.h`; the arithmetic is done in the order of Python's
//! `gguf.dequantize`, so that the values are equal.

use rayon::prelude::*;

use crate::memory::zeros;

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum Kind {
    /// IEEE 754's 32 bits.
    F32,
    /// IEEE 754's 16 bits.
    F16,
    /// Blocks of 32: 4 bits and a scale.
    Q4_0,
    /// Blocks of 32: 4 bits, a scale and a least value.
    Q4_1,
    /// Blocks of 32: 5 bits and a scale.
    Q5_0,
    /// Blocks of 32: 5 bits, a scale and a least value.
    Q5_1,
    /// Blocks of 32: 8 bits and a scale.
    Q8_0,
    /// Blocks of 256: 4 bits; scales and least values of 32 in 6 bits.
    Q4_K,
    /// Blocks of 256: 5 bits; scales and least values of 32 in 6 bits.
    Q5_K,
    /// Blocks of 256: 6 bits; scales of 16 in 8 bits.
    Q6_K,
    /// The upper half of an f32.
    BF16,
}

/// Blocks handled at a time by one thread.
const BLOCKS: usize = 4096;

impl Kind {
    /// The second half of a sentence about a file of another type.
    pub const ALL_NAMES: &str =
        "F32, F16, BF16, Q8_0, Q6_K, Q5_0, Q5_1, Q5_K, Q4_0, Q4_1 and Q4_K are: choose such a file";

    /// The type with ggml's number `id`; the error is its name, for people.
    pub fn from_id(id: u32) -> Result<Self, String> {
        Ok(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            other => return Err(name_of(other)),
        })
    }

    /// ggml's number of the type.
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::BF16 => 30,
        }
    }

    /// ggml's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::BF16 => "BF16",
        }
    }

    /// Values in a block.
    pub fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// The values of `bytes`, which must hold whole blocks.
    pub fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        let (values, width) = (self.block_values(), self.block_bytes());
        let mut out = zeros(bytes.len() / width * values);
        let (per_task_out, per_task_in) = (BLOCKS * values, BLOCKS * width);
        out.par_chunks_mut(per_task_out)
            .zip(bytes.par_chunks(per_task_in))
            .for_each(|(out, bytes)| self.dequantize_into(bytes, out));
        out
    }

    /// The values of `bytes`, on the calling thread, as many as `out` has room for.
    pub(crate) fn dequantize_into(self, bytes: &[u8], out: &mut [f32]) {
        let (values, width) = (self.block_values(), self.block_bytes());
        for (y, block) in out.chunks_exact_mut(values).zip(bytes.chunks_exact(width)) {
            self.block(block, y);
        }
    }

    /// One block: `b` has `block_bytes` bytes, `y` has `block_values` values.
    fn block(self, b: &[u8], y: &mut [f32]) {
        match self {
            Self::F32 => y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Self::F16 => y[0] = half(b, 0),
            Self::BF16 => y[0] = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16),
            Self::Q8_0 => {
                let d = half(b, 0);
                for (y, &q) in y.iter_mut().zip(&b[2..34]) {
                    *y = d * f32::from(q as i8);
                }
            }
            Self::Q4_0 => nibbles(&b[2..18], y, half(b, 0), |q, _| q as f32 - 8.0, 0.0),
            Self::Q4_1 => nibbles(&b[4..20], y, half(b, 0), |q, _| q as f32, half(b, 2)),
            Self::Q5_0 => {
                let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
                let value = |q, i| (q | fifth(high, i)) as f32 - 16.0;
                nibbles(&b[6..22], y, half(b, 0), value, 0.0);
            }
            Self::Q5_1 => {
                let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
                nibbles(&b[8..24], y, half(b, 0), |q, i| (q | fifth(high, i)) as f32, half(b, 2));
            }
            Self::Q4_K => four_or_five_k(b, None, &b[16..144], y),
            Self::Q5_K => four_or_five_k(b, Some(&b[16..48]), &b[48..176], y),
            Self::Q6_K => six_k(b, y),
        }
    }
}

fn half(b: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Bit `i` of `high`, as the fifth bit of a value.
fn fifth(high: u32, i: usize) -> u8 {
    ((high >> i & 1) as u8) << 4
}

/// A block of 32: the low nibbles are the first 16 values, the high nibbles the last 16.
fn nibbles(qs: &[u8], y: &mut [f32], d: f32, value: impl Fn(u8, usize) -> f32, m: f32) {
    let (low, high) = y.split_at_mut(16);
    for (i, ((low, high), &q)) in low.iter_mut().zip(high).zip(qs).enumerate() {
        *low = d * value(q & 15, i) + m;
        *high = d * value(q >> 4, i + 16) + m;
    }
}

/// The eight 6-bit scales and minima of a K block, packed in twelve bytes.
fn scale_and_min(s: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4)
    }
}

/// Q4_K and, with `fifths`, Q5_K: eight runs of 32 values, two runs to 32 bytes of `qs`.
fn four_or_five_k(b: &[u8], fifths: Option<&[u8]>, qs: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half(b, 0), half(b, 2));
    for (run, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&b[4..16], run);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let qs = &qs[run / 2 * 32..][..32];
        for (i, (y, &q)) in y.iter_mut().zip(qs).enumerate() {
            let mut q = if run % 2 == 0 { q & 15 } else { q >> 4 };
            if let Some(fifths) = fifths {
                q |= (fifths[i] >> run & 1) << 4;
            }
            *y = scale * f32::from(q) - min;
        }
    }
}

/// Q6_K: two halves of 128, each of 64 bytes of low nibbles, 32 of high pairs and 8 scales.
fn six_k(b: &[u8], y: &mut [f32]) {
    let d = half(b, 208);
    for (part, y) in y.chunks_exact_mut(128).enumerate() {
        let (low, high) = (&b[part * 64..][..64], &b[128 + part * 32..][..32]);
        let scales = &b[192 + part * 8..][..8];
        for (run, y) in y.chunks_exact_mut(32).enumerate() {
            for (i, y) in y.iter_mut().enumerate() {
                let q = low[run % 2 * 32 + i];
                let q = if run < 2 { q & 15 } else { q >> 4 };
                let q = q | (high[i] >> (2 * run) & 3) << 4;
                let scale = d * f32::from(scales[run * 2 + i / 16] as i8);
                *y = scale * f32::from(q as i8 - 32);
            }
        }
    }
}

/// The names of ggml's other types, so that an error can say what a file has.
fn name_of(id: u32) -> String {
    let name = match id {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36 => "IQ4_NL_4_4",
        39 => "MXFP4",
        other => return format!("the unknown type {other}"),
    };
    name.to_string()
}

/// The nearest bf16 (ties to even), as f32.
pub fn round_to_bf16(values: &mut [f32]) {
    values.par_chunks_mut(1 << 18).for_each(|chunk| {
        for value in chunk {
            *value = half::bf16::from_f32(*value).to_f32();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of random bytes and what Python's `gguf.dequantize` makes of them; see
    /// `tests/python/make_gguf_blocks.py`.
    const BLOCKS: &[u8] = include_bytes!("../../../../tests/fixtures/gguf/blocks.safetensors");

    #[test]
    fn equal_to_pythons_gguf() {
        let file = safetensors::SafeTensors::deserialize(BLOCKS).unwrap();
        for id in [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 30] {
            let kind = Kind::from_id(id).unwrap();
            assert_eq!(kind.id(), id);
            let bytes = file.tensor(&format!("{}.bytes", kind.name())).unwrap().data();
            let values = file.tensor(&format!("{}.values", kind.name())).unwrap().data();
            let wanted: Vec<f32> =
                values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            assert_eq!(kind.dequantize(bytes), wanted, "{}", kind.name());
            assert!(wanted.iter().any(|v| *v < 0.0) && wanted.len() >= 3 * kind.block_values());
        }
    }

    #[test]
    fn more_blocks_than_one_task_takes_stay_in_order() {
        let bytes: Vec<u8> = (0..BLOCKS.len() as u32 + 9000).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let values = Kind::F32.dequantize(&bytes);
        assert!(values.iter().enumerate().all(|(i, v)| *v == i as f32));
    }

    #[test]
    fn types_that_are_not_read_have_names() {
        assert_eq!(Kind::from_id(10).unwrap_err(), "Q2_K");
        assert_eq!(Kind::from_id(20).unwrap_err(), "IQ4_NL");
        assert_eq!(Kind::from_id(12345).unwrap_err(), "the unknown type 12345");
    }

    #[test]
    fn rounds_to_the_nearest_bf16_and_ties_to_even() {
        let mut values = [1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.005, f32::INFINITY, 3.4e38];
        round_to_bf16(&mut values);
        assert_eq!(values, [1.0, 1.0, 1.015_625, -1.007_812_5, f32::INFINITY, f32::INFINITY]);
    }
}
