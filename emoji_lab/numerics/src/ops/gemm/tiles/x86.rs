//! Tiles with AVX-512 and with AVX2.

use std::arch::x86_64::*;

use super::super::rows;
use super::{Target, WIDE};

/// Which instructions there are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kernels {
    Avx512,
    Avx2,
}

impl Kernels {
    pub(super) fn of_this_machine() -> Option<Self> {
        match rows::Kernels::of_this_machine() {
            rows::Kernels::Avx512Vnni | rows::Kernels::Avx512 => Some(Self::Avx512),
            rows::Kernels::Avx2 => Some(Self::Avx2),
            rows::Kernels::Portable => None,
        }
    }

    /// Numbers of a vector.
    pub(super) fn lanes(self) -> usize {
        match self {
            Self::Avx512 => 16,
            Self::Avx2 => 8,
        }
    }

    /// Rows of a tile: with [`WIDE`] vectors each they fill the registers.
    pub(super) fn rows(self) -> usize {
        match self {
            Self::Avx512 => avx512::ROWS,
            Self::Avx2 => avx2::ROWS,
        }
    }

    /// A tile of `height` rows and `width` columns, from a panel of numbers and `depth` rows of vectors.
    ///
    /// # Safety
    /// `panel` has `depth` times [`Self::rows`] numbers; from `vectors` on there are `depth` rows of `width`
    /// numbers, `stride` apart; the target has the tile, and nobody else has it. `height` is at most
    /// [`Self::rows`], `width` at most [`WIDE`] vectors, and neither is 0.
    pub(super) unsafe fn panel(
        self,
        panel: &[f32],
        depth: usize,
        vectors: *const f32,
        stride: usize,
        size: (usize, usize),
        to: &Target,
    ) {
        debug_assert!(panel.len() >= depth * self.rows());
        // SAFETY: the caller's; `self` says that the machine has the instructions.
        unsafe {
            match self {
                Self::Avx512 => avx512::panel(panel.as_ptr(), depth, vectors, stride, size, to),
                Self::Avx2 => avx2::panel(panel.as_ptr(), depth, vectors, stride, size, to),
            }
        }
    }

    /// A tile whose numbers are read where they lie and that is put down with rows and columns exchanged.
    ///
    /// # Safety
    /// As for [`Self::panel`]; there are `height` rows of `depth` numbers, and the vectors are filled up to whole
    /// ones. What goes with the target says whether the numbers of the tile below are asked for on the way.
    pub(super) unsafe fn turned(
        self,
        numbers: (*const f32, usize),
        depth: usize,
        vectors: (*const f32, usize),
        size: (usize, usize),
        to: (&Target, bool),
    ) {
        // SAFETY: the caller's; `self` says that the machine has the instructions.
        unsafe {
            match self {
                Self::Avx512 => avx512::turned(numbers, depth, vectors, size, to),
                Self::Avx2 => avx2::turned(numbers, depth, vectors, size, to),
            }
        }
    }
}

/// `to` gets the columns of `from`, of `(rows, columns)` numbers in rows that are `stride` apart, as rows `to_stride`
/// apart.
///
/// # Safety
/// All of these places must be there, and nobody else may have those of `to`.
pub(super) unsafe fn transpose(
    from: *const f32,
    stride: usize,
    (rows, columns): (usize, usize),
    to: *mut f32,
    to_stride: usize,
) {
    let (whole_rows, whole_columns) = (rows / 4 * 4, columns / 4 * 4);
    for row in (0..whole_rows).step_by(4) {
        for column in (0..whole_columns).step_by(4) {
            // SAFETY: four rows and four columns are there, and their places in `to`, by the caller.
            unsafe {
                let from = from.add(row * stride + column);
                let to = to.add(column * to_stride + row);
                let mut r = [0, 1, 2, 3].map(|i| _mm_loadu_ps(from.add(i * stride)));
                let [a, b, c, d] = &mut r;
                _MM_TRANSPOSE4_PS(a, b, c, d);
                for (i, row) in r.into_iter().enumerate() {
                    _mm_storeu_ps(to.add(i * to_stride), row);
                }
            }
        }
    }
    for row in 0..rows {
        for column in if row < whole_rows { whole_columns } else { 0 }..columns {
            // SAFETY: the caller's.
            unsafe { *to.add(column * to_stride + row) = *from.add(row * stride + column) };
        }
    }
}

/// How far ahead, in rows of vectors, memory is asked for.
const AHEAD: usize = 12;

macro_rules! tiles {
    ($name:ident, $features:literal, rows: $rows:literal, lanes: $lanes:literal, $vector:ty,
     $zero:ident, $load:ident, $store:ident, $set:ident, $fma:ident, $mul:ident,
     $mask_of:ident, $load_some:ident, $store_some:ident) => {
        mod $name {
            use super::*;

            pub(super) const ROWS: usize = $rows;
            const LANES: usize = $lanes;

            /// # Safety
            /// As for [`Kernels::panel`].
            #[target_feature(enable = $features)]
            pub(super) unsafe fn panel(
                numbers: *const f32,
                depth: usize,
                vectors: *const f32,
                stride: usize,
                (height, width): (usize, usize),
                to: &Target,
            ) {
                // SAFETY: the caller's.
                unsafe {
                    match width.div_ceil(LANES) {
                        1 => put::<1>(panel_sums(numbers, depth, vectors, stride, width), height, width, to),
                        2 => put::<2>(panel_sums(numbers, depth, vectors, stride, width), height, width, to),
                        _ => put::<3>(panel_sums(numbers, depth, vectors, stride, width), height, width, to),
                    }
                }
            }

            /// # Safety
            /// As for [`Kernels::turned`].
            #[target_feature(enable = $features)]
            pub(super) unsafe fn turned(
                numbers: (*const f32, usize),
                depth: usize,
                vectors: (*const f32, usize),
                (height, width): (usize, usize),
                (to, fetch): (&Target, bool),
            ) {
                // SAFETY: the caller's.
                unsafe {
                    match width.div_ceil(LANES) {
                        1 => turn::<1>(row_sums(numbers, height, depth, vectors, fetch), height, width, to),
                        2 => turn::<2>(row_sums(numbers, height, depth, vectors, fetch), height, width, to),
                        _ => turn::<3>(row_sums(numbers, height, depth, vectors, fetch), height, width, to),
                    }
                }
            }

            /// # Safety
            /// As for [`Kernels::panel`].
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn panel_sums<const V: usize>(
                numbers: *const f32,
                depth: usize,
                vectors: *const f32,
                stride: usize,
                width: usize,
            ) -> [[$vector; V]; ROWS] {
                let last = $mask_of(width - (V - 1) * LANES);
                let mut sums = [[$zero(); V]; ROWS];
                let (mut numbers, mut vectors) = (numbers, vectors);
                for _ in 0..depth {
                    let mut row = [$zero(); V];
                    let ahead = vectors.wrapping_add(AHEAD * stride);
                    for (v, to) in row.iter_mut().enumerate() {
                        // SAFETY: whole vectors but for the last, of which the mask has what is there; asking for
                        // memory is a hint, which may point anywhere.
                        #[allow(unused_unsafe)]
                        unsafe {
                            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(v * LANES).cast());
                            let from = vectors.add(v * LANES);
                            *to = if v + 1 < V { $load(from) } else { $load_some(from, last) };
                        }
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: a panel has `ROWS` numbers for each place.
                        let number = $set(unsafe { *numbers.add(i) });
                        for (sum, row) in sums.iter_mut().zip(&row) {
                            *sum = $fma(number, *row, *sum);
                        }
                    }
                    numbers = numbers.wrapping_add(ROWS);
                    vectors = vectors.wrapping_add(stride);
                }
                sums
            }

            /// # Safety
            /// As for [`Kernels::turned`].
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn row_sums<const V: usize>(
                (numbers, apart): (*const f32, usize),
                height: usize,
                depth: usize,
                (vectors, stride): (*const f32, usize),
                fetch: bool,
            ) -> [[$vector; V]; ROWS] {
                // What is above the height is computed with the last row again, and not put down.
                let mut rows = [numbers; ROWS];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = numbers.wrapping_add(i.min(height - 1) * apart);
                }
                let mut sums = [[$zero(); V]; ROWS];
                let mut vectors = vectors;
                for place in 0..depth {
                    if place % 16 < ROWS && fetch {
                        // A line of each of the next tile's rows, for every line of these.
                        let next = numbers.wrapping_add((ROWS + place % 16) * apart + place / 16 * 16);
                        // SAFETY: a hint, which may point anywhere.
                        #[allow(unused_unsafe)]
                        unsafe {
                            _mm_prefetch::<_MM_HINT_T0>(next.cast())
                        };
                    }
                    let mut row = [$zero(); V];
                    for (v, to) in row.iter_mut().enumerate() {
                        // SAFETY: the vectors are whole.
                        *to = unsafe { $load(vectors.add(v * LANES)) };
                    }
                    for (sums, numbers) in sums.iter_mut().zip(&rows) {
                        // SAFETY: each row has `depth` numbers.
                        let number = $set(unsafe { *numbers.add(place) });
                        for (sum, row) in sums.iter_mut().zip(&row) {
                            *sum = $fma(number, *row, *sum);
                        }
                    }
                    vectors = vectors.wrapping_add(stride);
                }
                sums
            }

            /// # Safety
            /// The target has the tile, and nobody else has it.
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn put<const V: usize>(
                sums: [[$vector; V]; ROWS],
                height: usize,
                width: usize,
                to: &Target,
            ) {
                let last = $mask_of(width - (V - 1) * LANES);
                let alpha = $set(to.alpha);
                for (i, sums) in sums.iter().enumerate().take(height) {
                    for (v, sum) in sums.iter().enumerate() {
                        // SAFETY: inside of the tile, by the caller and the mask.
                        unsafe {
                            let place = to.start.add(i * to.stride + v * LANES);
                            let whole = v + 1 < V;
                            let new = match to.accumulate {
                                true if whole => $fma(alpha, *sum, $load(place)),
                                true => $fma(alpha, *sum, $load_some(place, last)),
                                false => $mul(alpha, *sum),
                            };
                            match whole {
                                true => $store(place, new),
                                false => $store_some(place, last, new),
                            }
                        }
                    }
                }
            }

            /// # Safety
            /// The target has the tile with rows and columns exchanged, and nobody else has it.
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn turn<const V: usize>(
                sums: [[$vector; V]; ROWS],
                height: usize,
                width: usize,
                to: &Target,
            ) {
                let mut room = [0.0f32; WIDE * LANES * ROWS];
                let alpha = $set(to.alpha);
                for (sums, room) in sums.iter().zip(room.chunks_exact_mut(WIDE * LANES)) {
                    for (v, sum) in sums.iter().enumerate() {
                        // SAFETY: `V` is at most `WIDE`.
                        unsafe { $store(room.as_mut_ptr().add(v * LANES), $mul(alpha, *sum)) };
                    }
                }
                if height == ROWS && !to.accumulate {
                    // SAFETY: the tile's places are there, by the caller.
                    return unsafe {
                        transpose(room.as_ptr(), WIDE * LANES, (ROWS, width), to.start, to.stride)
                    };
                }
                for column in 0..width {
                    let start = to.start.wrapping_add(column * to.stride);
                    // SAFETY: inside of the tile, by the caller.
                    let row = unsafe { std::slice::from_raw_parts_mut(start, height) };
                    for (place, room) in row.iter_mut().zip(room[column..].iter().step_by(WIDE * LANES)) {
                        *place = if to.accumulate { *place + room } else { *room };
                    }
                }
            }
        }
    };
}

/// The first `count` of 16 lanes.
#[target_feature(enable = "avx512f")]
fn mask_512(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

#[target_feature(enable = "avx512f")]
unsafe fn load_some_512(from: *const f32, mask: __mmask16) -> __m512 {
    // SAFETY: the caller's: what the mask has is there.
    unsafe { _mm512_maskz_loadu_ps(mask, from) }
}

/// The first `count` of 8 lanes.
#[target_feature(enable = "avx2,fma")]
fn mask_256(count: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

tiles!(
    avx512, "avx512f,avx2,fma", rows: 8, lanes: 16, __m512,
    _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps,
    _mm512_mul_ps, mask_512, load_some_512, _mm512_mask_storeu_ps
);
tiles!(
    avx2, "avx2,fma", rows: 4, lanes: 8, __m256,
    _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps,
    _mm256_mul_ps, mask_256, _mm256_maskload_ps, _mm256_maskstore_ps
);
