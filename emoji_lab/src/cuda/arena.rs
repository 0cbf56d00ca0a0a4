//! The optimizer's arena on the card: trained values, gradients and moments.

use std::sync::{Mutex, PoisonError};

use super::Gpu;
use super::memory::Memory;
use super::step::Pinned;
use super::stored::Stored;
use crate::error::Result;
use crate::ops::grad_norm::cuda::{RANGE_PARTIALS, squares_by_range};
use crate::train::{Buffer, Slot};

/// Flat buffers. The head's values and gradients lie apart from the others'. In bf16 its gradients
/// are bf16 (as autocast rounds them, too), and its values are two halves of which products read the
/// higher one: so there is no copy of it, which spares two thirds of a gigabyte together.
#[derive(Debug)]
pub(crate) struct DeviceArena {
    /// Of all but the head, f32.
    pub(super) values: Memory,
    pub(super) head_values: Stored,
    /// Of all but the head, f32.
    pub(super) gradients: Memory,
    pub(super) head_gradients: Memory,
    /// The head's first element and the one after its last.
    pub(super) head: (usize, usize),
    /// Of everything.
    pub(super) exp_avg: Stored,
    pub(super) exp_avg_sq: Stored,
    pub(super) len: usize,
    gpu: Gpu,
    /// Page-locked memory on the way to the host.
    staging: Mutex<Option<[Pinned; 2]>>,
}

/// Bytes of each half of it.
const STAGING: usize = 32 << 20;

impl DeviceArena {
    /// With `values`, of which `head` are the head, zeros for the moments, and no gradients yet.
    pub(crate) fn new(gpu: &Gpu, values: &[f32], head: (usize, usize), bf16_moments: bool) -> Result<Self> {
        let in_head = head.1 - head.0;
        let (len, beside) = (values.len(), values.len() - in_head);
        let arena = Self {
            values: Memory::zeros(gpu, beside * 4, "the trained parameters")?,
            head_values: Stored::new(gpu, &values[head.0..head.1], gpu.bf16(), "the trained head")?,
            gradients: Memory::poisoned(gpu, beside * 4, "gradients")?,
            head_gradients: Memory::poisoned(gpu, in_head * gpu.size(), "gradients of the head")?,
            head,
            exp_avg: Stored::zeros(gpu, len, bf16_moments, "AdamW's first moment")?,
            exp_avg_sq: Stored::zeros(gpu, len, bf16_moments, "AdamW's second moment")?,
            len,
            gpu: gpu.clone(),
            staging: Mutex::new(None),
        };
        arena.values.write(0, &values[..head.0])?;
        arena.values.write(head.0 * 4, &values[head.1..])?;
        Ok(arena)
    }

    fn in_head(&self, offset: usize) -> bool {
        (self.head.0..self.head.1).contains(&offset)
    }

    /// Where the value or gradient of what begins at `offset` (not of the head) is in its buffer.
    fn beside_head(&self, offset: usize) -> usize {
        if offset < self.head.0 { offset } else { offset - (self.head.1 - self.head.0) }
    }

    /// The gradient of what begins at `offset`, on the card.
    pub(super) fn gradient_ptr(&self, offset: usize) -> u64 {
        match self.in_head(offset) {
            true => self.head_gradients.ptr() + ((offset - self.head.0) * self.gpu.size()) as u64,
            false => self.gradients.ptr() + self.beside_head(offset) as u64 * 4,
        }
    }

    /// The f32 values of what begins at `offset` (not of the head), on the card.
    pub(super) fn value_ptr(&self, offset: usize) -> u64 {
        self.values.ptr() + self.beside_head(offset) as u64 * 4
    }

    /// Bytes of values, gradients and moments.
    pub(super) fn bytes(&self) -> [usize; 3] {
        [
            self.values.len() + self.head_values.bytes(),
            self.gradients.len() + self.head_gradients.len(),
            self.exp_avg.bytes() + self.exp_avg_sq.bytes(),
        ]
    }

    /// `len` values from `offset` on.
    pub(crate) fn read(&self, which: Buffer, offset: usize, len: usize) -> Result<Vec<f32>> {
        let in_head = self.in_head(offset);
        match which {
            Buffer::Values if in_head => self.stored(&self.head_values, offset - self.head.0, len),
            Buffer::ExpAvg => self.stored(&self.exp_avg, offset, len),
            Buffer::ExpAvgSq => self.stored(&self.exp_avg_sq, offset, len),
            Buffer::Gradients if in_head && self.gpu.bf16() => {
                let mut rounded = vec![half::bf16::ZERO; len];
                self.head_gradients.read((offset - self.head.0) * 2, &mut rounded)?;
                Ok(rounded.into_iter().map(half::bf16::to_f32).collect())
            }
            Buffer::Values | Buffer::Gradients => {
                let (memory, first) = match (which, in_head) {
                    (Buffer::Values, _) => (&self.values, self.beside_head(offset)),
                    (_, true) => (&self.head_gradients, offset - self.head.0),
                    (_, false) => (&self.gradients, self.beside_head(offset)),
                };
                let mut values = vec![0f32; len];
                memory.read(first * 4, &mut values)?;
                Ok(values)
            }
        }
    }

    fn stored(&self, stored: &Stored, offset: usize, len: usize) -> Result<Vec<f32>> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let staging = match &mut *staging {
            Some(staging) => staging,
            none => none.insert([Pinned::new(&self.gpu, STAGING)?, Pinned::new(&self.gpu, STAGING)?]),
        };
        stored.read(&self.gpu, offset, len, staging)
    }

    /// Overwrites what begins at `offset`.
    pub(crate) fn write(&self, which: Buffer, offset: usize, values: &[f32]) -> Result<()> {
        match which {
            Buffer::Values if self.in_head(offset) => self.head_values.write(offset - self.head.0, values),
            Buffer::Values => self.values.write(self.beside_head(offset) * 4, values),
            Buffer::ExpAvg => self.exp_avg.write(offset, values),
            Buffer::ExpAvgSq => self.exp_avg_sq.write(offset, values),
            Buffer::Gradients if !self.in_head(offset) => {
                self.gradients.write(self.beside_head(offset) * 4, values)
            }
            Buffer::Gradients if self.gpu.bf16() => {
                let rounded: Vec<_> = values.iter().map(|value| half::bf16::from_f32(*value)).collect();
                self.head_gradients.write((offset - self.head.0) * 2, &rounded)
            }
            Buffer::Gradients => self.head_gradients.write((offset - self.head.0) * 4, values),
        }
    }

    /// Every slot's sum of squared gradients: not finite if one of them is not.
    pub(crate) fn gradient_squares(&self, slots: &[Slot]) -> Result<Vec<f64>> {
        let mut squares = vec![0f64; slots.len()];
        for of_head in [false, true] {
            let picked: Vec<usize> =
                (0..slots.len()).filter(|i| self.in_head(slots[*i].offset) == of_head).collect();
            if picked.is_empty() {
                continue;
            }
            let first = |offset| if of_head { offset - self.head.0 } else { self.beside_head(offset) };
            let ranges: Vec<[u64; 2]> =
                picked.iter().map(|&i| [first(slots[i].offset) as u64, slots[i].len() as u64]).collect();
            let table = Memory::from_slice(&self.gpu, &ranges, "the parameters' table")?;
            let count = ranges.len() * RANGE_PARTIALS;
            let partials = Memory::zeros(&self.gpu, count * 8, "partial sums")?;
            let gradients = match of_head {
                true => (self.head_gradients.ptr(), !self.gpu.bf16()),
                false => (self.gradients.ptr(), true),
            };
            // SAFETY: as many ranges as the table has, all within their buffer.
            unsafe { squares_by_range(&self.gpu, gradients, table.ptr(), ranges.len(), partials.ptr())? };
            let mut sums = vec![0f64; count];
            partials.read(0, &mut sums)?;
            for (&slot, sums) in picked.iter().zip(sums.chunks(RANGE_PARTIALS)) {
                squares[slot] = sums.iter().sum();
            }
        }
        Ok(squares)
    }
}
