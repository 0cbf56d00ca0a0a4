//! Rows of f32 values as onnxruntime's `MatMulNBits` has them: blocks of 32 values of a row, a scale each.
//!
//! | bits | value | bytes per 32 values |
//! |---|---|---|
//! | 8 | `scale · (q − 128)`, `scale = max\|x\| / 127` | 32, and 4 for the scale |
//! | 4 | `scale · (q − zero)`, the 16 levels spread from the least value to the largest, 0 among them | 16, 4, and half of one for the zero point |

use rayon::prelude::*;

/// Values in a block.
pub(super) const BLOCK: usize = 32;
/// Of what is stored in eight bits, the number that stands for 0 where nothing else is said.
pub(super) const MIDDLE: f32 = 128.0;

/// Rows in blocks: what is multiplied, and what with.
pub(super) struct Blocks {
    pub(super) packed: Vec<u8>,
    /// One per block, row by row.
    pub(super) scales: Vec<f32>,
    /// Two to a byte, the first of them low; a row begins with a byte. Empty for eight bits.
    pub(super) zeros: Vec<u8>,
}

/// `values`, rows of so many `columns`, a multiple of [`BLOCK`], in eight bits.
pub(super) fn eight_bits(values: &[f32], columns: usize) -> Blocks {
    let mut packed = vec![0; values.len()];
    let mut scales = vec![0.0; values.len() / BLOCK];
    let rows = values.par_chunks(columns).zip(packed.par_chunks_mut(columns));
    rows.zip(scales.par_chunks_mut(columns / BLOCK)).for_each(|((row, packed), scales)| {
        let blocks = row.chunks_exact(BLOCK).zip(packed.chunks_exact_mut(BLOCK));
        for ((block, packed), scale) in blocks.zip(scales) {
            let most = block.iter().fold(0f32, |most, v| most.max(v.abs()));
            *scale = most / 127.0;
            let inverse = inverse(*scale);
            for (q, v) in packed.iter_mut().zip(block) {
                *q = nearest(v * inverse + MIDDLE);
            }
        }
    });
    Blocks { packed, scales, zeros: vec![] }
}

/// The same in four bits. A byte of `packed` has two neighbours, the first of them low.
pub(super) fn four_bits(values: &[f32], columns: usize) -> Blocks {
    let blocks = columns / BLOCK;
    let mut packed = vec![0; values.len() / 2];
    let mut scales = vec![0.0; values.len() / BLOCK];
    let mut zeros = vec![0u8; values.len() / columns * blocks.div_ceil(2)];
    let rows = values.par_chunks(columns).zip(packed.par_chunks_mut(columns / 2));
    let rows = rows.zip(scales.par_chunks_mut(blocks)).zip(zeros.par_chunks_mut(blocks.div_ceil(2)));
    rows.for_each(|(((row, packed), scales), zeros)| {
        let blocks = row.chunks_exact(BLOCK).zip(packed.chunks_exact_mut(BLOCK / 2));
        for (place, ((block, packed), scale)) in blocks.zip(scales).enumerate() {
            let (least, most) =
                block.iter().fold((0f32, 0f32), |(least, most), v| (least.min(*v), most.max(*v)));
            *scale = most / 15.0 - least / 15.0;
            let inverse = inverse(*scale);
            let zero = nearest(-least * inverse).min(15);
            zeros[place / 2] |= zero << (4 * (place % 2));
            let q = |v: f32| nearest(v * inverse + f32::from(zero)).min(15);
            for (byte, pair) in packed.iter_mut().zip(block.chunks_exact(2)) {
                *byte = q(pair[0]) | q(pair[1]) << 4;
            }
        }
    });
    Blocks { packed, scales, zeros }
}

/// One over a scale; of a block of zeros, or of values too small for a scale, all become zeros.
fn inverse(scale: f32) -> f32 {
    if scale < f32::MIN_POSITIVE { 0.0 } else { 1.0 / scale }
}

/// The nearest whole number, at least 0 and at most 255.
fn nearest(value: f32) -> u8 {
    (value + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf::writer::Random;

    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut random = Random(seed);
        (0..count).map(|_| (random.below(2_000_001) as f32 / 1e6 - 0.9).powi(3)).collect()
    }

    /// What `MatMulNBits` makes of it.
    fn unpacked(blocks: &Blocks, columns: usize) -> Vec<f32> {
        let per_row = columns / BLOCK;
        let value = |at: usize| {
            let (block, row) = (at / BLOCK, at / columns);
            let nibble = |bytes: &[u8], place: usize| f32::from(bytes[place / 2] >> (4 * (place % 2)) & 15);
            let whole = match blocks.zeros.is_empty() {
                true => f32::from(blocks.packed[at]) - MIDDLE,
                false => {
                    let zeros = &blocks.zeros[row * per_row.div_ceil(2)..];
                    nibble(&blocks.packed, at) - nibble(zeros, block - row * per_row)
                }
            };
            whole * blocks.scales[block]
        };
        (0..blocks.scales.len() * BLOCK).map(value).collect()
    }

    #[test]
    fn blocks_by_hand() {
        let mut row = [0f32; 64];
        (row[0], row[1], row[2], row[3]) = (254.0, -254.0, 3.0, -0.9);
        (row[32], row[33]) = (1.0, 1.0);
        let blocks = eight_bits(&row, 64);
        assert_eq!(blocks.scales, [2.0, 1.0 / 127.0]);
        assert_eq!(blocks.packed[..5], [255, 1, 130, 128, 128]);
        assert_eq!(blocks.packed[32..35], [255, 255, 128]);

        let mut row = [0f32; 96];
        (row[0], row[1], row[2]) = (10.0, -5.0, 0.6);
        (row[32], row[64]) = (15.0, -15.0);
        let blocks = four_bits(&row, 96);
        assert_eq!(blocks.scales, [1.0; 3]);
        // Zero points 5, 0 and 15: two bytes for three blocks.
        assert_eq!(blocks.zeros, [0x05, 0x0f]);
        assert_eq!(blocks.packed[..3], [0x0f, 0x56, 0x55]);
        assert_eq!(blocks.packed[16..18], [0x0f, 0x00]);
        assert_eq!(blocks.packed[32..34], [0xf0, 0xff]);
    }

    #[test]
    fn every_value_is_within_half_a_step_and_zeros_stay() {
        for columns in [32, 96, 640] {
            let mut values = random(columns * 50, columns as u64);
            values[columns..columns + 32].fill(0.0);
            // All of one sign, and a block that is all tiny.
            values[32..64.min(columns)].iter_mut().for_each(|v| *v = v.abs() + 3.0);
            values[2 * columns..2 * columns + 32].fill(1e-42);
            for blocks in [eight_bits(&values, columns), four_bits(&values, columns)] {
                let back = unpacked(&blocks, columns);
                assert_eq!(back.len(), values.len());
                for (at, (v, b)) in values.iter().zip(&back).enumerate() {
                    let step = blocks.scales[at / BLOCK];
                    assert!((v - b).abs() <= 0.5 * step * 1.001 + 1e-38, "{at}: {v} is {b}, step {step}");
                }
                assert!(back[columns..columns + 32].iter().all(|v| *v == 0.0));
            }
        }
    }

    #[test]
    fn numbers_whose_range_no_f32_holds_do_not_overflow() {
        let row = [2e38, -3e38].repeat(16);
        for blocks in [eight_bits(&row, 32), four_bits(&row, 32)] {
            assert!(unpacked(&blocks, 32).iter().all(|v| v.is_finite()));
        }
    }
}
