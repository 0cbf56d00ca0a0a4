//! The blocks of a file in vector registers: the values that [`Kind::dequantize`] gives, bit for bit.
//!
//! A block's values are taken 32 at a time, a run: `scale · number + offset`, where the numbers count from zero, and
//! what a file takes from them (the 8 of Q4_0) is in the offset. A product of a scale and a number is exact in f32,
//! with 24 bits at most (Q6_K: 18 and 6), and so is that of a scale and what is taken. So multiplying and adding at once
//! gives what the file's own order of operations gives: exact, or rounded once.
//!
//! [`Kind::dequantize`]: crate::quant::blocks::Kind::dequantize

use std::arch::x86_64::*;

/// Values of a run.
pub(in super::super) const RUN: usize = 32;

/// A kind of block, of at least one run.
pub(in super::super) trait Format {
    /// Values of a block, or of what is taken as one.
    const VALUES: usize;
    /// Bytes of it.
    const BYTES: usize;
    /// What all of a block's runs need.
    type Front: Copy;

    /// # Safety
    /// The block must be there, and the machine must have AVX2, FMA and F16C.
    unsafe fn front(b: *const u8) -> Self::Front;

    /// The values of run `run` of the block at `b`.
    ///
    /// # Safety
    /// As [`Self::front`], and `run` must be in the block.
    unsafe fn values_256(b: *const u8, front: &Self::Front, run: usize) -> [__m256; 4];

    /// As [`Self::values_256`].
    ///
    /// # Safety
    /// As [`Self::values_256`], and the machine must have AVX-512F.
    unsafe fn values_512(b: *const u8, front: &Self::Front, run: usize) -> [__m512; 2];
}

/// A kind of block of whole numbers.
pub(in super::super) trait Numbers: Format {
    /// The number that stands for zero; `None` where that is another in each run, which has an offset then.
    const ZERO: Option<i16>;
    /// How many scales a run has: one, or one for each half.
    const SCALES: usize;

    /// The numbers of run `run` of the block at `b`, counted from zero, their scales and their offset: a value is
    /// `scale · number + offset`.
    ///
    /// # Safety
    /// As [`Format::values_256`].
    unsafe fn numbers(b: *const u8, front: &Self::Front, run: usize) -> (__m256i, [f32; 2], f32);
}

/// A run as numbers from zero, with scale and offset for each half of them.
struct Run {
    numbers: __m256i,
    scales: [f32; 2],
    offsets: [f32; 2],
}

/// The f16 at `p`.
///
/// # Safety
/// It must be there.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn half(p: *const u8) -> f32 {
    // SAFETY: the caller's.
    let bits = unsafe { p.cast::<u16>().read_unaligned() };
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
}

/// # Safety
/// 16 bytes must be there.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn load_16(p: *const u8) -> __m128i {
    // SAFETY: the caller's.
    unsafe { _mm_loadu_si128(p.cast()) }
}

/// # Safety
/// 32 bytes must be there.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn load_32(p: *const u8) -> __m256i {
    // SAFETY: the caller's.
    unsafe { _mm256_loadu_si256(p.cast()) }
}

/// 32 bytes in order; or dealt to the two halves of the register, four to each in turn, so that a shuffle inside of the
/// halves finds eight that follow each other.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn arranged<const DEALT: bool>(bytes: __m256i) -> __m256i {
    match DEALT {
        true => _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)),
        false => bytes,
    }
}

/// The low nibbles of 16 bytes, and the high ones after them, as [`arranged`].
///
/// # Safety
/// 16 bytes must be there.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn nibbles<const DEALT: bool>(p: *const u8) -> __m256i {
    // SAFETY: the caller's.
    let twice = _mm256_broadcastsi128_si256(unsafe { load_16(p) });
    let both = match DEALT {
        true => {
            let dealt = _mm256_permutevar8x32_epi32(twice, _mm256_setr_epi32(0, 2, 0, 2, 1, 3, 1, 3));
            _mm256_srlv_epi32(dealt, _mm256_setr_epi32(0, 0, 4, 4, 0, 0, 4, 4))
        }
        false => _mm256_srlv_epi32(twice, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)),
    };
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// For each of the 32 bits at `p` a byte, 16 or 0, as [`arranged`].
///
/// # Safety
/// 4 bytes must be there.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn fifths<const DEALT: bool>(p: *const u8) -> __m256i {
    // SAFETY: the caller's.
    let bits = _mm256_set1_epi32(unsafe { p.cast::<i32>().read_unaligned() });
    let (bytes, bit) = match DEALT {
        true => {
            let (low, high) = (0x0101_0101_0000_0000, 0x0303_0303_0202_0202);
            let (first, last) = (0x0804_0201_0804_0201, 0x8040_2010_8040_2010u64 as i64);
            (_mm256_setr_epi64x(low, high, low, high), _mm256_setr_epi64x(first, first, last, last))
        }
        false => {
            let bytes = [0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303];
            let bytes = _mm256_setr_epi64x(bytes[0], bytes[1], bytes[2], bytes[3]);
            (bytes, _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64))
        }
    };
    let there = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, bytes), bit), bit);
    _mm256_and_si256(there, _mm256_set1_epi8(16))
}

/// Scales and offsets of the eight runs of a K block: `d` and `dmin`, f16, and twelve bytes of six-bit numbers.
///
/// # Safety
/// 16 bytes must be there.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn eight_of_each(b: *const u8) -> [[f32; 8]; 2] {
    // SAFETY: the caller's.
    let (d, min, packed) = unsafe {
        let four = |i: usize| b.add(4 + 4 * i).cast::<u32>().read_unaligned();
        (half(b), half(b.add(2)), [four(0), four(1), four(2)])
    };
    // Four bytes at once: the first four have their six bits in one byte, the others four and two in two.
    let low = |x: u32| x & 0x3f3f_3f3f;
    let scales = (low(packed[0]), packed[2] & 0x0f0f_0f0f | (packed[0] >> 6 & 0x0303_0303) << 4);
    let mins = (low(packed[1]), packed[2] >> 4 & 0x0f0f_0f0f | (packed[1] >> 6 & 0x0303_0303) << 4);
    let mut out = [[0.0; 8]; 2];
    for (out, (numbers, factor)) in out.iter_mut().zip([(scales, d), (mins, -min)]) {
        let numbers = _mm_cvtsi64_si128((u64::from(numbers.1) << 32 | u64::from(numbers.0)) as i64);
        let numbers = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(numbers));
        // SAFETY: there is room for eight.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(_mm256_set1_ps(factor), numbers)) };
    }
    out
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn widened_256(dealt: Run) -> [__m256; 4] {
    let Run { numbers, scales, offsets } = dealt;
    let mut out = [_mm256_setzero_ps(); 4];
    for (i, out) in out.iter_mut().enumerate() {
        let places = _mm_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1);
        // A place without the highest bit, later by four for each vector.
        let later = _mm_set1_epi32(4 * i as i32);
        let places = _mm256_broadcastsi128_si256(_mm_add_epi32(places, later));
        let number = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(numbers, places));
        let (scale, offset) = (_mm256_set1_ps(scales[i / 2]), _mm256_set1_ps(offsets[i / 2]));
        *out = _mm256_fmadd_ps(scale, number, offset);
    }
    out
}

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
#[inline]
fn widened_512(run: Run) -> [__m512; 2] {
    let Run { numbers, scales, offsets } = run;
    let halves = [_mm256_castsi256_si128(numbers), _mm256_extracti128_si256::<1>(numbers)];
    let mut out = [_mm512_setzero_ps(); 2];
    for (i, out) in out.iter_mut().enumerate() {
        let number = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(halves[i]));
        *out = _mm512_fmadd_ps(_mm512_set1_ps(scales[i]), number, _mm512_set1_ps(offsets[i]));
    }
    out
}

/// A format by what its front and its runs are; `$dealt` says how numbers are [`arranged`].
macro_rules! format {
    ($name:ident, $values:literal, $bytes:literal, zero: $zero:expr, scales: $scales:literal, $front:ty,
     |$fb:ident| $front_of:expr, |$b:ident, $f:ident, $run:ident, $dealt:ident| $body:expr) => {
        #[allow(non_camel_case_types)] // ggml's names
        pub(in super::super) struct $name;

        impl $name {
            /// # Safety
            /// As [`Format::values_256`].
            #[target_feature(enable = "avx2,fma,f16c")]
            #[inline]
            unsafe fn run<const $dealt: bool>($b: *const u8, $f: &$front, $run: usize) -> Run {
                // SAFETY: the caller's: all of the block is there.
                unsafe { $body }
            }
        }

        impl Format for $name {
            const VALUES: usize = $values;
            const BYTES: usize = $bytes;
            type Front = $front;

            #[target_feature(enable = "avx2,fma,f16c")]
            #[inline]
            unsafe fn front($fb: *const u8) -> $front {
                // SAFETY: as above.
                unsafe { $front_of }
            }

            #[target_feature(enable = "avx2,fma,f16c")]
            #[inline]
            unsafe fn values_256(b: *const u8, front: &$front, run: usize) -> [__m256; 4] {
                // SAFETY: the caller's.
                widened_256(unsafe { Self::run::<true>(b, front, run) })
            }

            #[target_feature(enable = "avx512f,avx2,fma,f16c")]
            #[inline]
            unsafe fn values_512(b: *const u8, front: &$front, run: usize) -> [__m512; 2] {
                // SAFETY: the caller's.
                widened_512(unsafe { Self::run::<false>(b, front, run) })
            }
        }

        impl Numbers for $name {
            const ZERO: Option<i16> = $zero;
            const SCALES: usize = $scales;

            #[target_feature(enable = "avx2,fma,f16c")]
            #[inline]
            unsafe fn numbers(b: *const u8, front: &$front, run: usize) -> (__m256i, [f32; 2], f32) {
                // SAFETY: the caller's.
                let Run { numbers, scales, offsets } = unsafe { Self::run::<false>(b, front, run) };
                (numbers, scales, offsets[0])
            }
        }
    };
}

format!(Q4_0, 32, 18, zero: Some(8), scales: 1, f32, |b| half(b), |b, d, _run, D| Run {
    numbers: nibbles::<D>(b.add(2)),
    scales: [*d; 2],
    offsets: [d * -8.0; 2],
});
format!(Q4_1, 32, 20, zero: None, scales: 1, [f32; 2], |b| [half(b), half(b.add(2))], |b, f, _run, D| Run {
    numbers: nibbles::<D>(b.add(4)),
    scales: [f[0]; 2],
    offsets: [f[1]; 2],
});
format!(Q5_0, 32, 22, zero: Some(16), scales: 1, f32, |b| half(b), |b, d, _run, D| Run {
    numbers: _mm256_or_si256(nibbles::<D>(b.add(6)), fifths::<D>(b.add(2))),
    scales: [*d; 2],
    offsets: [d * -16.0; 2],
});
format!(Q5_1, 32, 24, zero: None, scales: 1, [f32; 2], |b| [half(b), half(b.add(2))], |b, f, _run, D| Run {
    numbers: _mm256_or_si256(nibbles::<D>(b.add(8)), fifths::<D>(b.add(4))),
    scales: [f[0]; 2],
    offsets: [f[1]; 2],
});
format!(Q4_K, 256, 144, zero: None, scales: 1, [[f32; 8]; 2], |b| eight_of_each(b), |b, f, run, D| {
    let shift = _mm_cvtsi32_si128((run % 2 * 4) as i32);
    let q = _mm256_srl_epi16(arranged::<D>(load_32(b.add(16 + run / 2 * 32))), shift);
    let numbers = _mm256_and_si256(q, _mm256_set1_epi8(15));
    Run { numbers, scales: [f[0][run]; 2], offsets: [f[1][run]; 2] }
});
format!(Q5_K, 256, 176, zero: None, scales: 1, [[f32; 8]; 2], |b| eight_of_each(b), |b, f, run, D| {
    let shift = _mm_cvtsi32_si128((run % 2 * 4) as i32);
    let q = _mm256_srl_epi16(load_32(b.add(48 + run / 2 * 32)), shift);
    let fifth = _mm256_srl_epi16(load_32(b.add(16)), _mm_cvtsi32_si128(run as i32));
    let fifth = _mm256_slli_epi16::<4>(_mm256_and_si256(fifth, _mm256_set1_epi8(1)));
    let numbers = _mm256_or_si256(_mm256_and_si256(q, _mm256_set1_epi8(15)), fifth);
    Run { numbers: arranged::<D>(numbers), scales: [f[0][run]; 2], offsets: [f[1][run]; 2] }
});
format!(
    Q6_K,
    256,
    210,
    zero: Some(32),
    scales: 2,
    [f32; 16],
    |b| {
        let d = _mm256_set1_ps(half(b.add(208)));
        let mut scales = [0.0; 16];
        for (i, scales) in scales.chunks_exact_mut(8).enumerate() {
            let eight = _mm256_cvtepi8_epi32(_mm_loadl_epi64(b.add(192 + 8 * i).cast()));
            _mm256_storeu_ps(scales.as_mut_ptr(), _mm256_mul_ps(d, _mm256_cvtepi32_ps(eight)));
        }
        scales
    },
    |b, f, run, D| {
        let (part, run) = (run / 4, run % 4);
        let nibble = _mm_cvtsi32_si128((run / 2 * 4) as i32);
        let pair = _mm_cvtsi32_si128((run * 2) as i32);
        let low = _mm256_srl_epi16(load_32(b.add(part * 64 + run % 2 * 32)), nibble);
        let low = _mm256_and_si256(low, _mm256_set1_epi8(15));
        let high = _mm256_srl_epi16(load_32(b.add(128 + part * 32)), pair);
        let high = _mm256_slli_epi16::<4>(_mm256_and_si256(high, _mm256_set1_epi8(3)));
        let scales = [f[part * 8 + run * 2], f[part * 8 + run * 2 + 1]];
        Run {
            numbers: arranged::<D>(_mm256_or_si256(low, high)),
            scales,
            offsets: scales.map(|scale| scale * -32.0),
        }
    }
);

/// Blocks of a scale and 32 whole numbers of eight bits, which are widened as they are read.
pub(in super::super) struct Q8_0;

impl Format for Q8_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 34;
    type Front = ();

    unsafe fn front(_b: *const u8) {}

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn values_256(b: *const u8, _front: &(), _run: usize) -> [__m256; 4] {
        // SAFETY: the caller's: 2 bytes of a scale and 32 of numbers.
        let (scale, eights) = unsafe {
            let bits = b.cast::<i16>().read_unaligned();
            let eight = |i: usize| _mm_loadl_epi64(b.add(2 + 8 * i).cast());
            (_mm256_cvtph_ps(_mm_set1_epi16(bits)), [eight(0), eight(1), eight(2), eight(3)])
        };
        let mut out = [_mm256_setzero_ps(); 4];
        for (out, eight) in out.iter_mut().zip(eights) {
            *out = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)));
        }
        out
    }

    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    #[inline]
    unsafe fn values_512(b: *const u8, _front: &(), _run: usize) -> [__m512; 2] {
        // SAFETY: as above.
        let (scale, halves) = unsafe {
            let bits = b.cast::<i16>().read_unaligned();
            (_mm512_cvtph_ps(_mm256_set1_epi16(bits)), [load_16(b.add(2)), load_16(b.add(18))])
        };
        let mut out = [_mm512_setzero_ps(); 2];
        for (out, half) in out.iter_mut().zip(halves) {
            *out = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(half)));
        }
        out
    }
}

impl Numbers for Q8_0 {
    const ZERO: Option<i16> = Some(128);
    const SCALES: usize = 1;

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn numbers(b: *const u8, _front: &(), _run: usize) -> (__m256i, [f32; 2], f32) {
        // SAFETY: the caller's: 2 bytes of a scale and 32 of numbers.
        let (scale, numbers) = unsafe { (half(b), load_32(b.add(2))) };
        (_mm256_xor_si256(numbers, _mm256_set1_epi8(i8::MIN)), [scale; 2], 0.0)
    }
}

/// The upper half of an f32; a run of them is taken as a block.
pub(super) struct Bf16;

impl Format for Bf16 {
    const VALUES: usize = RUN;
    const BYTES: usize = 2 * RUN;
    type Front = ();

    unsafe fn front(_b: *const u8) {}

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn values_256(b: *const u8, _front: &(), _run: usize) -> [__m256; 4] {
        let mut out = [_mm256_setzero_ps(); 4];
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: the caller's: 64 bytes.
            let eight = unsafe { load_16(b.add(16 * i)) };
            *out = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(eight)));
        }
        out
    }

    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    #[inline]
    unsafe fn values_512(b: *const u8, _front: &(), _run: usize) -> [__m512; 2] {
        let mut out = [_mm512_setzero_ps(); 2];
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: the caller's: 64 bytes.
            let half = unsafe { load_32(b.add(32 * i)) };
            *out = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
        }
        out
    }
}
