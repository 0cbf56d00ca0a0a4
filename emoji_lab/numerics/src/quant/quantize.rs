//! f32 values into ggml's blocks.
//!
//! Layouts: `ggml-common.h` of ggml. Rounding: ggml's own for Q8_0 and Q4_0 (the `_ref` quantizers of
//! `ggml-quants.c`), so that a file of ours holds the bytes that llama.cpp's tools would write; to the
//! nearest, ties to even, for F16 and BF16. [`Kind::dequantize`] is the way back.

use std::io::{Result, Write};

use half::{bf16, f16};
use rayon::prelude::*;

use super::blocks::Kind;

/// Values handled at a time by one thread; a multiple of every block.
const CHUNK: usize = 1 << 16;

/// Values turned into bytes before they are written, so that no tensor is in memory once more.
const PIECE: usize = 64 * CHUNK;

/// Writes `values`, which must fill whole blocks of `kind`.
pub fn write_values(out: &mut dyn Write, values: &[f32], kind: Kind) -> Result<()> {
    let bytes_of = |count: usize| count / kind.block_values() * kind.block_bytes();
    let mut bytes = vec![0u8; bytes_of(values.len().min(PIECE))];
    for piece in values.chunks(PIECE) {
        let bytes = &mut bytes[..bytes_of(piece.len())];
        bytes
            .par_chunks_mut(bytes_of(CHUNK))
            .zip(piece.par_chunks(CHUNK))
            .for_each(|(bytes, values)| encode(kind, values, bytes));
        out.write_all(bytes)?;
    }
    Ok(())
}

/// The largest magnitude that `kind` can hold; of what is stored in blocks, by the f16 scale.
pub fn largest_of(kind: Kind) -> f32 {
    let scale = f16::MAX.to_f32();
    match kind {
        Kind::F16 => scale,
        Kind::Q8_0 => 127.0 * scale,
        Kind::Q4_0 => 8.0 * scale,
        Kind::BF16 => bf16::MAX.to_f32(),
        _ => f32::MAX,
    }
}

/// The largest magnitude among `values`; infinite if one is not a number.
pub fn largest(values: &[f32]) -> f32 {
    let of = |chunk: &[f32]| {
        chunk.iter().fold(0f32, |most, v| if v.is_nan() { f32::INFINITY } else { most.max(v.abs()) })
    };
    values.par_chunks(CHUNK).map(of).reduce(|| 0.0, f32::max)
}

fn encode(kind: Kind, values: &[f32], bytes: &mut [u8]) {
    let blocks = bytes.chunks_exact_mut(kind.block_bytes()).zip(values.chunks_exact(kind.block_values()));
    match kind {
        Kind::F16 => blocks.for_each(|(b, v)| b.copy_from_slice(&f16::from_f32(v[0]).to_le_bytes())),
        Kind::BF16 => blocks.for_each(|(b, v)| b.copy_from_slice(&bf16::from_f32(v[0]).to_le_bytes())),
        Kind::Q8_0 => blocks.for_each(|(b, v)| q8_0(v, b)),
        Kind::Q4_0 => blocks.for_each(|(b, v)| q4_0(v, b)),
        // Nothing else is ever asked for: `GgufType` has no other.
        _ => blocks.for_each(|(b, v)| b.copy_from_slice(&v[0].to_le_bytes())),
    }
}

/// `d = max|x| / 127`, `q = round(x / d)` with halves away from zero; `d` is kept in f16, and `q` made
/// with the `d` of before that rounding.
fn q8_0(values: &[f32], block: &mut [u8]) {
    let most = values.iter().fold(0f32, |most, v| most.max(v.abs()));
    let d = most / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (q, v) in block[2..].iter_mut().zip(values) {
        *q = away_from_zero(v * inverse) as i8 as u8;
    }
}

/// `value.round()` for what an i32 holds: without SSE4.1, which a build for any x86-64 cannot take for
/// granted, that is a call for each value.
fn away_from_zero(value: f32) -> i32 {
    let whole = value as i32;
    // Exact: both are multiples of the last place of `value`.
    let rest = value - whole as f32;
    whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)
}

/// `d = m / -8` for the value `m` of largest magnitude (the first of several), so that `m` itself is
/// met by the one end that 4 bits have more of; `q = ⌊x / d + 8.5⌋`, at most 15. The low nibbles are
/// the first 16 values, the high nibbles the last 16.
fn q4_0(values: &[f32], block: &mut [u8]) {
    let most = values.iter().fold(0f32, |most, &v| if v.abs() > most.abs() { v } else { most });
    let d = most / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    let q = |v: f32| ((v * inverse + 8.5) as u8).min(15);
    let (first, last) = values.split_at(values.len() / 2);
    for (byte, (&low, &high)) in block[2..].iter_mut().zip(first.iter().zip(last)) {
        *byte = q(low) | q(high) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Philox;

    fn bytes(values: &[f32], kind: Kind) -> Vec<u8> {
        let mut out = vec![];
        write_values(&mut out, values, kind).unwrap();
        out
    }

    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut random = Philox::new(seed, 0);
        (0..count).map(|_| (random.below(2_000_001) as f32 / 1e6 - 1.0).powi(3)).collect()
    }

    #[test]
    fn a_q8_0_block_by_hand() {
        let mut values = [0f32; 32];
        // d = 2: halves go away from zero, in both directions.
        (values[0], values[1], values[2], values[3], values[31]) = (254.0, 5.0, -5.0, 0.9, -253.1);
        let block = bytes(&values, Kind::Q8_0);
        assert_eq!(block[..2], f16::from_f32(2.0).to_le_bytes());
        assert_eq!(block[2..6], [127, 3, (-3i8) as u8, 0]);
        assert_eq!(block[33], (-127i8) as u8);
    }

    #[test]
    fn a_q4_0_block_by_hand() {
        let mut values = [0f32; 32];
        // d = -1, by the first of the two largest: 8 is met exactly, -8 is one step off.
        (values[0], values[1], values[16], values[17]) = (8.0, -8.0, 1.4, 1.6);
        let block = bytes(&values, Kind::Q4_0);
        assert_eq!(block[..2], f16::from_f32(-1.0).to_le_bytes());
        assert_eq!(block[2], 0x70, "8 is 0, 1.4 is 7");
        assert_eq!(block[3], 0x6F, "-8 is 15, 1.6 is 6");
        assert!(block[4..].iter().all(|byte| *byte == 0x88), "0 is 8");
        let back = Kind::Q4_0.dequantize(&block);
        assert_eq!((back[0], back[1], back[16], back[17], back[2]), (8.0, -7.0, 1.0, 2.0, 0.0));
    }

    #[test]
    fn halves_go_away_from_zero() {
        let near = [0.0f32, 0.5, 1.5, 2.5, 0.499_999_97, 126.5, 127.0, 63.499_996, 1e-30, 8_388_607.5];
        for value in near.into_iter().chain(random(4096, 5).into_iter().map(|v| v * 127.0)) {
            for value in [value, -value] {
                assert_eq!(away_from_zero(value) as f32, value.round(), "{value}");
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        for kind in [Kind::F32, Kind::F16, Kind::BF16, Kind::Q8_0, Kind::Q4_0] {
            assert!(kind.dequantize(&bytes(&[0.0; 64], kind)).iter().all(|v| *v == 0.0));
        }
    }

    #[test]
    fn every_value_is_within_half_a_step() {
        // More than one task and more than one piece.
        let values = random(PIECE + CHUNK + 64, 3);
        let most = largest(&values);
        assert!(most <= 1.0 && most > 0.9);
        for (kind, relative, of_block) in [
            (Kind::F32, 0.0, 0.0),
            (Kind::F16, 0.000_49, 3e-8),
            (Kind::BF16, 0.003_91, 0.0),
            // Half a step, and what rounding the scale to f16 adds to the 127th and 8th step.
            (Kind::Q8_0, 0.000_49, 0.5 / 127.0),
            (Kind::Q4_0, 0.000_49, 1.0 / 8.0),
        ] {
            let back = kind.dequantize(&bytes(&values, kind));
            assert_eq!(back.len(), values.len());
            for (block, back) in values.chunks(32).zip(back.chunks(32)) {
                let most = largest(block);
                for (v, b) in block.iter().zip(back) {
                    let bound = relative * v.abs() + of_block * most * 1.0001 + 6e-8;
                    assert!((v - b).abs() <= bound, "{} of {v}: {b}", kind.name());
                }
            }
        }
    }

    #[test]
    fn what_a_block_holds_it_holds_again() {
        for kind in [Kind::F16, Kind::BF16, Kind::Q8_0, Kind::Q4_0] {
            let once = kind.dequantize(&bytes(&random(4096, 9), kind));
            let again = kind.dequantize(&bytes(&once, kind));
            let worst = once.iter().zip(&again).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
            assert!(worst <= 5e-4, "{}: {worst}", kind.name());
        }
    }

    #[test]
    fn the_largest_value_is_found_and_what_is_no_number_is_infinite() {
        assert_eq!(largest(&[1.0, -3.0, 2.0]), 3.0);
        assert_eq!(largest(&[1.0, f32::NAN, 2.0]), f32::INFINITY);
        assert_eq!(largest(&[f32::NEG_INFINITY]), f32::INFINITY);
        assert_eq!(largest(&[]), 0.0);
        for kind in [Kind::F16, Kind::BF16, Kind::Q8_0, Kind::Q4_0] {
            let most = largest_of(kind);
            let values = [[most; 32], [-most; 32]].concat();
            assert!(kind.dequantize(&bytes(&values, kind)).iter().all(|v| v.is_finite()), "{}", kind.name());
        }
    }
}
