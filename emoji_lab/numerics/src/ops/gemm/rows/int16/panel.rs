//! Rows of a weight that are multiplied together.

use std::arch::x86_64::*;

use super::super::stored::{Numbers, RUN};
use super::ahead::Ahead;

/// Rows of a panel: lanes of a register.
pub(super) const WIDE: usize = 16;

/// Bytes of a register.
const REGISTER: usize = 64;

/// The numbers of four places in all rows, four bytes of each.
pub(super) type Quads = [__m512i; RUN / 4];

/// Sixteen rows of a weight: whole numbers from zero, with scales and, where a kind has them, offsets.
#[derive(Debug, Default)]
pub(super) struct Panel {
    k: usize,
    /// Row by row.
    numbers: Vec<u8>,
    /// Of each run [`Quads`], once they are [turned](Self::turn).
    turned: Vec<u8>,
    /// Of each run, or half of one, the scales of all rows.
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

fn grow<T: Clone + Default>(room: &mut Vec<T>, len: usize) {
    if room.len() < len {
        room.resize(len, T::default());
    }
}

impl Panel {
    /// The rows of `k` values in the blocks `w`, up to sixteen, while `next` is fetched from memory. What is behind the last of
    /// them stays as it was.
    ///
    /// # Safety
    /// The machine must have the instructions.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn fill<F: Numbers>(&mut self, w: &[u8], k: usize, next: &[u8]) {
        let mut ahead = Ahead::new(next, WIDE);
        let runs = k / RUN;
        self.k = k;
        grow(&mut self.numbers, WIDE * k);
        grow(&mut self.scales, runs * F::SCALES * WIDE);
        grow(&mut self.offsets, if F::ZERO.is_none() { runs * WIDE } else { 0 });
        let row_bytes = k / F::VALUES * F::BYTES;
        let (scales, offsets) = (self.scales.as_mut_ptr(), self.offsets.as_mut_ptr());
        for (row, (w, numbers)) in w.chunks_exact(row_bytes).zip(self.numbers.chunks_exact_mut(k)).enumerate()
        {
            ahead.fetch();
            for (block, (w, numbers)) in
                w.chunks_exact(F::BYTES).zip(numbers.chunks_exact_mut(F::VALUES)).enumerate()
            {
                // SAFETY: all of the block is there.
                let front = unsafe { F::front(w.as_ptr()) };
                for (run, numbers) in numbers.chunks_exact_mut(RUN).enumerate() {
                    // SAFETY: as above; there is room for the run's numbers, and each run has a scale or two of this
                    // row, and an offset where the kind has them.
                    unsafe {
                        let (these, scale, offset) = F::numbers(w.as_ptr(), &front, run);
                        _mm256_storeu_si256(numbers.as_mut_ptr().cast(), these);
                        let run = block * (F::VALUES / RUN) + run;
                        for (half, scale) in scale.into_iter().enumerate().take(F::SCALES) {
                            *scales.add((run * F::SCALES + half) * WIDE + row) = scale;
                        }
                        if F::ZERO.is_none() {
                            *offsets.add(run * WIDE + row) = offset;
                        }
                    }
                }
            }
        }
    }

    /// The numbers of a run, turned.
    ///
    /// # Safety
    /// The panel must be filled, the run in it, and the machine must have the instructions.
    #[target_feature(enable = "avx512f,avx512vl,avx2")]
    #[inline]
    pub(super) unsafe fn quads(&self, run: usize) -> Quads {
        // SAFETY: the run is in each of the panel's rows.
        let row = |row: usize| unsafe {
            _mm256_loadu_si256(self.numbers.as_ptr().add(row * self.k + run * RUN).cast())
        };
        let pair = |a: usize| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(row(a)), row(a + 4));
        // Of two times four rows in the halves of four registers: in each quarter, four bytes of four rows.
        let turned = |[a, b, c, d]: [__m512i; 4]| {
            let (low_ab, high_ab) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (low_cd, high_cd) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(low_ab, low_cd),
                _mm512_unpackhi_epi64(low_ab, low_cd),
                _mm512_unpacklo_epi64(high_ab, high_cd),
                _mm512_unpackhi_epi64(high_ab, high_cd),
            ]
        };
        let first = turned([pair(0), pair(1), pair(2), pair(3)]);
        let last = turned([pair(8), pair(9), pair(10), pair(11)]);
        let mut quads = [_mm512_setzero_si512(); RUN / 4];
        for (i, (first, last)) in first.into_iter().zip(last).enumerate() {
            quads[i] = _mm512_shuffle_i32x4::<0x88>(first, last);
            quads[i + 4] = _mm512_shuffle_i32x4::<0xdd>(first, last);
        }
        quads
    }

    /// Turns all runs, for several rows of x.
    ///
    /// # Safety
    /// As for [`Self::quads`].
    #[target_feature(enable = "avx512f,avx512vl,avx2")]
    pub(super) unsafe fn turn(&mut self) {
        grow(&mut self.turned, WIDE * self.k);
        for run in 0..self.k / RUN {
            // SAFETY: the caller's; each run has room for its quads.
            unsafe {
                for (i, quad) in self.quads(run).into_iter().enumerate() {
                    _mm512_storeu_si512(
                        self.turned.as_mut_ptr().add(run * WIDE * RUN + i * REGISTER).cast(),
                        quad,
                    );
                }
            }
        }
    }

    /// Four numbers of each row, number `i` in a run that is turned.
    ///
    /// # Safety
    /// As for [`Self::quads`], and it must be turned.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) unsafe fn turned(&self, run: usize, i: usize) -> __m512i {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_si512(self.turned.as_ptr().add(run * WIDE * RUN + i * REGISTER).cast()) }
    }

    /// The scales of all rows, number `i` of them.
    ///
    /// # Safety
    /// As for [`Self::quads`]; a run has one or two.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) unsafe fn scales(&self, i: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_ps(self.scales.as_ptr().add(i * WIDE)) }
    }

    /// The offsets of all rows in a run, of a kind that has them.
    ///
    /// # Safety
    /// As for [`Self::quads`].
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) unsafe fn offsets(&self, run: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_ps(self.offsets.as_ptr().add(run * WIDE)) }
    }

    pub(super) fn runs(&self) -> usize {
        self.k / RUN
    }
}
