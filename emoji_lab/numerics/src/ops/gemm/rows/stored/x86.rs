//! Products with blocks that are unpacked in registers, with AVX2 and with AVX-512.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::Target;
use super::super::int16::{self, Rounded};
use super::super::x86::{fetch, fold_256, fold_512, sums_of};
use super::formats::*;
use crate::quant::blocks::Kind;

/// How far ahead of what is multiplied a weight is asked for: what a core reads in the time that memory
/// takes to answer, some times over. Rows of blocks are shorter than a memory page, and several read at
/// once are no stream that the processor would recognise.
const AHEAD: usize = 4096;

/// The products of one row of x with rows of blocks, and rows of blocks as f32. `$lanes` and the order of
/// sums are those of the product with f32.
macro_rules! kernel {
    ($products:ident, $tile:ident, $unpack:ident, $features:literal, $lanes:literal, $values:ident,
     $zero:ident, $load:ident, $store:ident, $fma:ident, $fold:ident) => {
        /// # Safety
        /// `W` rows of `blocks` blocks must be at `w`, as many values at `x`; `W` is up to 4.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn $tile<F: Format, const W: usize>(x: *const f32, w: *const u8, blocks: usize) -> [f32; W] {
            let mut sums = [$zero(); W];
            let mut next = w.wrapping_add(AHEAD);
            for block in 0..blocks {
                let fronts: [F::Front; W] = std::array::from_fn(|j| {
                    // SAFETY: the block is inside of its row.
                    unsafe { F::front(w.add((j * blocks + block) * F::BYTES)) }
                });
                for run in 0..F::VALUES / RUN {
                    // As many bytes as are multiplied below.
                    fetch(next, W * F::BYTES * RUN / F::VALUES);
                    next = next.wrapping_add(W * F::BYTES * RUN / F::VALUES);
                    // SAFETY: the block and its values are inside of their rows.
                    unsafe {
                        let x = x.add(block * F::VALUES + run * RUN);
                        for (j, sum) in sums.iter_mut().enumerate() {
                            let values = F::$values(w.add((j * blocks + block) * F::BYTES), &fronts[j], run);
                            for (i, values) in values.into_iter().enumerate() {
                                *sum = $fma($load(x.add(i * $lanes)), values, *sum);
                            }
                        }
                    }
                }
            }
            let mut folded = [_mm_setzero_ps(); 4];
            for (to, sum) in folded.iter_mut().zip(sums) {
                *to = $fold(sum);
            }
            let mut out = [0.0; W];
            for (out, total) in out.iter_mut().zip(sums_of(folded)) {
                *out = total;
            }
            out
        }

        /// # Safety
        /// As for [`products`], and the machine must have the instructions.
        #[target_feature(enable = $features)]
        unsafe fn $products<F: Format>(x: &[f32], w: &[u8], out: &mut [f32]) {
            const TOGETHER: usize = 4;
            let blocks = x.len() / F::VALUES;
            let row = blocks * F::BYTES;
            let mut w = w.as_ptr();
            let whole = out.len() - out.len() % TOGETHER;
            for out in out[..whole].chunks_exact_mut(TOGETHER) {
                // SAFETY: a row for each element of `out` is there.
                unsafe {
                    out.copy_from_slice(&$tile::<F, TOGETHER>(x.as_ptr(), w, blocks));
                    w = w.add(TOGETHER * row);
                }
            }
            for out in &mut out[whole..] {
                // SAFETY: as above.
                unsafe {
                    [*out] = $tile::<F, 1>(x.as_ptr(), w, blocks);
                    w = w.add(row);
                }
            }
        }

        /// # Safety
        /// As for [`unpack`], and the machine must have the instructions.
        #[target_feature(enable = $features)]
        unsafe fn $unpack<F: Format>(w: &Blocks<'_>, len: usize, out: &mut [f32], stride: usize) {
            for (w_row, out) in w.bytes.chunks_exact(w.row).zip(out.chunks_exact_mut(stride)) {
                let part = &w_row[w.part.clone()];
                fetch(part.as_ptr().wrapping_add(w.ahead), part.len());
                let blocks = out[..len].chunks_exact_mut(F::VALUES);
                for (block, out) in part.chunks_exact(F::BYTES).zip(blocks) {
                    // SAFETY: all of the block is there.
                    let front = unsafe { F::front(block.as_ptr()) };
                    for (run, out) in out.chunks_exact_mut(RUN).enumerate() {
                        // SAFETY: as above, and there is room for the values of a run.
                        unsafe {
                            let values = F::$values(block.as_ptr(), &front, run);
                            for (i, values) in values.into_iter().enumerate() {
                                $store(out.as_mut_ptr().add(i * $lanes), values);
                            }
                        }
                    }
                }
            }
        }
    };
}

kernel!(
    products_256,
    tile_256,
    unpack_256,
    "avx2,fma,f16c",
    8,
    values_256,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_fmadd_ps,
    fold_256
);
kernel!(
    products_512,
    tile_512,
    unpack_512,
    "avx512f,avx2,fma,f16c",
    16,
    values_512,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    fold_512
);

/// Calls `$f` for the format of `$kind`; what is no whole numbers gives `$none`.
macro_rules! by_kind_of_numbers {
    ($kind:expr, $f:ident($($argument:expr),*), $none:expr) => {
        match $kind {
            Kind::Q4_0 => $f::<Q4_0>($($argument),*),
            Kind::Q4_1 => $f::<Q4_1>($($argument),*),
            Kind::Q5_0 => $f::<Q5_0>($($argument),*),
            Kind::Q5_1 => $f::<Q5_1>($($argument),*),
            Kind::Q8_0 => $f::<Q8_0>($($argument),*),
            Kind::Q4_K => $f::<Q4_K>($($argument),*),
            Kind::Q5_K => $f::<Q5_K>($($argument),*),
            Kind::Q6_K => $f::<Q6_K>($($argument),*),
            Kind::BF16 | Kind::F16 | Kind::F32 => $none,
        }
    };
}

/// Calls `$f` for the format of `$kind`; what has none gives `$none`.
macro_rules! by_kind {
    ($kind:expr, $f:ident($($argument:expr),*), $none:expr) => {
        match $kind {
            Kind::BF16 => $f::<Bf16>($($argument),*),
            kind => by_kind_of_numbers!(kind, $f($($argument),*), $none),
        }
    };
}

/// Whether rows of `k` values of this kind are unpacked in registers.
pub(super) fn takes(kind: Kind, k: usize) -> bool {
    !matches!(kind, Kind::F16 | Kind::F32) && k.is_multiple_of(kind.block_values().max(RUN))
}

/// Whether rows of `k` values of this kind are multiplied with whole numbers.
pub(super) fn takes_whole_numbers(kind: Kind, k: usize) -> bool {
    kind != Kind::BF16 && takes(kind, k)
}

/// The products of the rows of `x` with rows `w_rows` of the blocks `w`.
///
/// # Safety
/// [`takes_whole_numbers`] must have said yes to the kind and the length of rows, and the rest as for
/// [`int16::block`].
pub(super) unsafe fn products_of_whole_numbers(
    kind: Kind,
    x: &Rounded,
    w: &[u8],
    w_rows: Range<usize>,
    target: &Target,
) {
    use int16::block;
    // SAFETY: the caller's.
    unsafe { by_kind_of_numbers!(kind, block(x, w, w_rows, target), ()) };
}

/// The dot products of `x` with a row of `w` for each element of `out`.
///
/// # Safety
/// [`takes`] must have said yes to the kind and the length of `x`, `w` must hold the rows, and the machine
/// must have AVX2, FMA and F16C, and AVX-512F where `wide`.
pub(super) unsafe fn products(wide: bool, kind: Kind, x: &[f32], w: &[u8], out: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe {
        match wide {
            true => by_kind!(kind, products_512(x, w, out), ()),
            false => by_kind!(kind, products_256(x, w, out), ()),
        }
    }
}

/// Rows of blocks, of which a part is wanted.
pub(super) struct Blocks<'a> {
    pub(super) bytes: &'a [u8],
    /// Bytes of a row.
    pub(super) row: usize,
    /// What is wanted of each.
    pub(super) part: Range<usize>,
    /// How far ahead memory is asked for.
    pub(super) ahead: usize,
}

/// The values of `w` as f32, `len` of each row, in rows of `stride`.
///
/// # Safety
/// [`takes`] must have said yes to the kind and `len`, which is what the wanted part of a row has, and the machine must
/// have AVX2, FMA and F16C, and AVX-512F where `wide`.
pub(super) unsafe fn unpack(
    wide: bool,
    kind: Kind,
    w: &Blocks<'_>,
    len: usize,
    out: &mut [f32],
    stride: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        match wide {
            true => by_kind!(kind, unpack_512(w, len, out, stride), ()),
            false => by_kind!(kind, unpack_256(w, len, out, stride), ()),
        }
    }
}
