//! Weights as a file has them: blocks of few bits, or bf16.
//!
//! They are read in the bytes that the file has, not in four times as many; and every value that comes out of
//! them is the f32 that [`Kind::dequantize`] gives, multiplied and added in the order in which f32 is. So a
//! product's bits are those of the dequantised weight; but for blocks of whole numbers on a processor with
//! AVX512-VNNI, whose products are with rows in whole numbers, too (`int16`).

#[cfg(target_arch = "x86_64")]
mod formats;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::Kernels;
#[cfg(target_arch = "x86_64")]
use super::Target;
#[cfg(target_arch = "x86_64")]
use super::int16::Rounded;
use crate::memory::Memory;
use crate::quant::blocks::Kind;
#[cfg(target_arch = "x86_64")]
pub(super) use formats::{Numbers, RUN};

/// Values of rows that are unpacked at a time: they stay in a core's second cache.
const UNPACKED: usize = 1 << 15;

/// How many rows ahead a row is asked for while others are unpacked: what is multiplied together next.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = super::many::PANEL;

thread_local! {
    /// Room for rows that are unpacked.
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(vec![]) };
}

/// A weight `[outs, ins]` in blocks along its rows.
pub struct Stored {
    kind: Kind,
    memory: Arc<Memory>,
    range: Range<usize>,
    outs: usize,
    ins: usize,
}

/// Where the f16 are that a block's numbers are multiplied with.
fn scales(kind: Kind) -> &'static [usize] {
    match kind {
        Kind::F32 | Kind::F16 | Kind::BF16 => &[],
        Kind::Q4_0 | Kind::Q5_0 | Kind::Q8_0 => &[0],
        Kind::Q4_1 | Kind::Q5_1 | Kind::Q4_K | Kind::Q5_K => &[0, 2],
        Kind::Q6_K => &[208],
    }
}

/// Whether all scales are finite.
fn are_finite(kind: Kind, bytes: &[u8]) -> bool {
    const EXPONENT: u8 = 0x7c;
    let (scales, width) = (scales(kind), kind.block_bytes());
    scales.is_empty()
        || bytes.par_chunks(4096 * width).all(|blocks| {
            let mut blocks = blocks.chunks_exact(width);
            blocks.all(|block| scales.iter().all(|at| block[at + 1] & EXPONENT != EXPONENT))
        })
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stored({} [{}, {}])", self.kind.name(), self.outs, self.ins)
    }
}

impl Stored {
    /// The blocks of `memory` in `range`; `None` if a row is not whole blocks, if these are not all of the rows, or if
    /// a block's scale is no finite number (what is taken from a number is not multiplied with it one by one, and
    /// infinity less infinity is none).
    pub fn new(
        kind: Kind,
        memory: Arc<Memory>,
        range: Range<usize>,
        (outs, ins): (usize, usize),
    ) -> Option<Self> {
        let row = (ins / kind.block_values()).checked_mul(kind.block_bytes())?;
        let whole = ins > 0 && ins.is_multiple_of(kind.block_values());
        let fits = whole && row.checked_mul(outs)? == memory.get(range.clone())?.len();
        (fits && are_finite(kind, &memory[range.clone()])).then_some(Self { kind, memory, range, outs, ins })
    }

    /// `values` as bf16; `None` if one of them is not exactly that, or there is no memory.
    pub fn bf16(values: &[f32], dims: (usize, usize)) -> Option<Self> {
        const CHUNK: usize = 1 << 16;
        let exact = |chunk: &[f32]| chunk.iter().fold(0, |all, value| all | value.to_bits()) & 0xffff == 0;
        if !values.par_chunks(CHUNK).all(exact) {
            return None;
        }
        let mut memory = Memory::zeroed(2 * values.len()).ok()?;
        memory.par_chunks_mut(2 * CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(bytes, values)| {
            for (bytes, value) in bytes.chunks_exact_mut(2).zip(values) {
                bytes.copy_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
            }
        });
        Self::new(Kind::BF16, Arc::new(memory), 0..2 * values.len(), dims)
    }

    /// `(outs, ins)`.
    pub fn dims(&self) -> (usize, usize) {
        (self.outs, self.ins)
    }

    /// Whether `other` is the same bytes in the same form.
    pub(crate) fn same_bytes(&self, other: &Self) -> bool {
        self.kind == other.kind && self.dims() == other.dims() && self.bytes() == other.bytes()
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.range.clone()]
    }

    fn row_bytes(&self) -> usize {
        self.ins / self.kind.block_values() * self.kind.block_bytes()
    }

    fn rows(&self, rows: Range<usize>) -> &[u8] {
        &self.bytes()[rows.start * self.row_bytes()..rows.end * self.row_bytes()]
    }

    /// Whether its products with `kernels` are of x rounded to whole numbers.
    pub(super) fn takes_whole_numbers(&self, kernels: Kernels) -> bool {
        #[cfg(target_arch = "x86_64")]
        return kernels == Kernels::Avx512Vnni && x86::takes_whole_numbers(self.kind, self.ins);
        #[cfg(not(target_arch = "x86_64"))]
        {
            let Kernels::Portable = kernels;
            false
        }
    }

    /// The products of `x` with rows `rows` of the weight.
    ///
    /// # Safety
    /// [`Self::takes_whole_numbers`] must have said yes, and nobody else may have these elements of `target`.
    #[cfg(target_arch = "x86_64")]
    pub(super) unsafe fn products_of_whole_numbers(&self, x: &Rounded, rows: Range<usize>, target: &Target) {
        assert!(x.k() == self.ins && rows.end <= self.outs, "sizes of a product");
        // SAFETY: the rows are there and the machine has the instructions, or the caller would not ask.
        unsafe { x86::products_of_whole_numbers(self.kind, x, self.bytes(), rows, target) };
    }

    /// Whether there are [`products`](Self::products) with blocks that are unpacked in registers.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn has_products(&self, kernels: Kernels) -> bool {
        kernels.unpacks().is_some() && x86::takes(self.kind, self.ins)
    }

    /// The dot products of `x` with rows `from..` of the weight, as many as `out` has elements.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn products(&self, kernels: Kernels, x: &[f32], from: usize, out: &mut [f32]) {
        assert!(self.has_products(kernels), "a kind that is unpacked in registers");
        assert!(x.len() == self.ins && from + out.len() <= self.outs, "sizes of a product");
        let wide = kernels.is_wide();
        // SAFETY: the rows are there, x is as long as they are, and `unpacks` says that the machine has the
        // instructions.
        unsafe { x86::products(wide, self.kind, x, self.rows(from..from + out.len()), out) };
    }

    /// Hands out rows `rows` in f32, some at a time, with the number of the first of these among them.
    pub(super) fn in_f32(&self, rows: Range<usize>, mut f: impl FnMut(usize, &[f32])) {
        let together = (UNPACKED / self.ins).max(1);
        ROOM.with_borrow_mut(|room| {
            for first in rows.clone().step_by(together) {
                let some = first..rows.end.min(first + together);
                room.resize(some.len() * self.ins, 0.0);
                self.kind.dequantize_into(self.rows(some), room);
                f(first - rows.start, room);
            }
        });
    }

    /// All of its values, row by row, to the bit as [`Kind::dequantize`] has them: a zero's sign, too, which no
    /// product asks for.
    pub fn values(&self) -> Vec<f32> {
        self.kind.dequantize(self.bytes())
    }

    /// Hands out all of its values in order, in parts of whole rows, an even number of them but for the last.
    pub fn in_parts(&self, mut f: impl FnMut(&[f32])) {
        let rows = (UNPACKED / self.ins).max(1).next_multiple_of(2);
        let mut values = vec![0.0; rows.min(self.outs) * self.ins];
        for first in (0..self.outs).step_by(rows) {
            let last = self.outs.min(first + rows);
            let part = &mut values[..(last - first) * self.ins];
            self.kind.dequantize_into(self.rows(first..last), part);
            f(part);
        }
    }

    /// The values of a row.
    pub fn row(&self, row: usize, values: &mut [f32]) {
        self.kind.dequantize_into(self.rows(row..row + 1), values);
    }

    /// The values of some rows in `places`, of whole blocks, in rows of `stride`.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn unpack_part(
        &self,
        kernels: Kernels,
        rows: Range<usize>,
        places: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        let (values, width) = (self.kind.block_values(), self.kind.block_bytes());
        let (all, row) = (self.rows(rows.clone()), self.row_bytes());
        let bytes = places.start / values * width..places.end / values * width;
        assert!(out.len() >= rows.len() * stride && places.len() <= stride, "room for the rows");
        if let Some(wide) = kernels.unpacks()
            && x86::takes(self.kind, places.len())
        {
            assert_eq!(bytes.len() / width * values, places.len(), "whole blocks");
            let of_rows = x86::Blocks { bytes: all, row, part: bytes, ahead: AHEAD * row };
            // SAFETY: whole blocks, with room for all of their values; the machine has the instructions.
            return unsafe { x86::unpack(wide, self.kind, &of_rows, places.len(), out, stride) };
        }
        for (bytes_of_row, out) in all.chunks_exact(row).zip(out.chunks_exact_mut(stride)) {
            self.kind.dequantize_into(&bytes_of_row[bytes.clone()], &mut out[..places.len()]);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
