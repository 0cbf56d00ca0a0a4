//! The optimizer's arena on the card: trained values, gradients and moments, each one flat buffer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Gpu;
use super::memory::Memory;
use super::step::Pinned;
use crate::error::Result;
use crate::ops::grad_norm::cuda::{RANGE_PARTIALS, squares_by_range};
use crate::train::{Buffer, Slot};

/// Flat f32 buffers of one length; only the gradients of the head lie apart, in the compute type (as
/// autocast rounds them, too), which spares a third of a gigabyte.
#[derive(Debug)]
pub(crate) struct DeviceArena {
    pub(super) values: Memory,
    /// Of all but the head.
    pub(super) gradients: Memory,
    pub(super) head_gradients: Memory,
    /// The head's first element and the one after its last.
    pub(super) head: (usize, usize),
    pub(super) exp_avg: Memory,
    pub(super) exp_avg_sq: Memory,
    pub(super) len: usize,
    gpu: Gpu,
    /// Whether values were written from outside since the head's copy was made.
    written: AtomicBool,
    /// Page-locked memory on the way to the host.
    staging: Mutex<Option<[Pinned; 2]>>,
}

/// Bytes of each half of it.
const STAGING: usize = 32 << 20;

impl DeviceArena {
    /// With `values`, of which `head` are the head, zeros for the moments, and no gradients yet.
    pub(crate) fn new(gpu: &Gpu, values: &[f32], head: (usize, usize)) -> Result<Self> {
        let bytes = size_of_val(values);
        let in_head = head.1 - head.0;
        Ok(Self {
            values: Memory::from_slice(gpu, values, "the trained parameters")?,
            gradients: Memory::poisoned(gpu, bytes - in_head * 4, "gradients")?,
            head_gradients: Memory::poisoned(gpu, in_head * gpu.size(), "gradients of the head")?,
            head,
            exp_avg: Memory::zeros(gpu, bytes, "AdamW's first moment")?,
            exp_avg_sq: Memory::zeros(gpu, bytes, "AdamW's second moment")?,
            len: values.len(),
            gpu: gpu.clone(),
            written: AtomicBool::new(true),
            staging: Mutex::new(None),
        })
    }

    fn buffer(&self, which: Buffer) -> &Memory {
        match which {
            Buffer::Values => &self.values,
            Buffer::Gradients => &self.gradients,
            Buffer::ExpAvg => &self.exp_avg,
            Buffer::ExpAvgSq => &self.exp_avg_sq,
        }
    }

    fn in_head(&self, offset: usize) -> bool {
        (self.head.0..self.head.1).contains(&offset)
    }

    /// Where the gradient of what begins at `offset` (not of the head) is in its buffer.
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

    /// `len` values from `offset` on.
    pub(crate) fn read(&self, which: Buffer, offset: usize, len: usize) -> Result<Vec<f32>> {
        let mut values = vec![0f32; if which == Buffer::Gradients { len } else { 0 }];
        match which == Buffer::Gradients {
            true if self.in_head(offset) && self.gpu.bf16() => {
                let mut rounded = vec![half::bf16::ZERO; len];
                self.head_gradients.read((offset - self.head.0) * 2, &mut rounded)?;
                return Ok(rounded.into_iter().map(half::bf16::to_f32).collect());
            }
            true if self.in_head(offset) => {
                self.head_gradients.read((offset - self.head.0) * 4, &mut values)?;
            }
            true => self.gradients.read(self.beside_head(offset) * 4, &mut values)?,
            false => {
                let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
                let staging = match &mut *staging {
                    Some(staging) => staging,
                    none => none.insert([Pinned::new(&self.gpu, STAGING)?, Pinned::new(&self.gpu, STAGING)?]),
                };
                return self.buffer(which).read_f32(offset * 4, len, staging);
            }
        }
        Ok(values)
    }

    /// Overwrites what begins at `offset`; gradients are not written from outside.
    pub(crate) fn write(&self, which: Buffer, offset: usize, values: &[f32]) -> Result<()> {
        if which == Buffer::Values {
            self.written.store(true, Ordering::Relaxed);
        }
        self.buffer(which).write(offset * 4, values)
    }

    /// Whether values were written since this was last asked.
    pub(super) fn take_written(&self) -> bool {
        self.written.swap(false, Ordering::Relaxed)
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
