//! The optimizer's arena on the GPU: trained values, gradients and moments.

use std::sync::{Mutex, PoisonError};

use super::stored::Stored;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::memory::Memory;
use crate::gpu::nccl::Numbers;
use crate::gpu::pinned::Pinned;
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::ops::grad_norm::cuda::{RANGE_PARTIALS, Range, SquaresByRange};
use crate::train::{Buffer, Slot};

/// Flat buffers. The head's values and gradients lie apart from the others'. In bf16 its gradients
/// are bf16 (as autocast rounds them, too), and its values are two halves of which products read the
/// higher one: so there is no copy of it, which spares two thirds of a gigabyte together.
#[derive(Debug)]
pub(crate) struct DeviceArena {
    /// Of all but the head.
    pub(super) values: Memory<f32>,
    pub(super) head_values: Stored,
    /// Of all but the head.
    pub(super) gradients: Memory<f32>,
    pub(super) head_gradients: Memory<Compute>,
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
            values: Memory::zeros(gpu, beside, "the trained parameters")?,
            head_values: Stored::new(gpu, &values[head.0..head.1], gpu.bf16(), "the trained head")?,
            gradients: Memory::poisoned(gpu, beside, "gradients")?,
            head_gradients: Memory::poisoned(gpu, in_head, "gradients of the head")?,
            head,
            exp_avg: Stored::zeros(gpu, len, bf16_moments, "AdamW's first moment")?,
            exp_avg_sq: Stored::zeros(gpu, len, bf16_moments, "AdamW's second moment")?,
            len,
            gpu: gpu.clone(),
            staging: Mutex::new(None),
        };
        arena.values.write(0, &values[..head.0])?;
        arena.values.write(head.0, &values[head.1..])?;
        Ok(arena)
    }

    fn in_head(&self, offset: usize) -> bool {
        (self.head.0..self.head.1).contains(&offset)
    }

    /// Where the value or gradient of what begins at `offset` (not of the head) is in its buffer.
    fn beside_head(&self, offset: usize) -> usize {
        if offset < self.head.0 { offset } else { offset - (self.head.1 - self.head.0) }
    }

    /// The gradient of what begins at `offset` (not of the head), on the GPU.
    pub(super) fn gradient_ptr(&self, offset: usize) -> DevicePtr<f32> {
        self.gradients.ptr().at(&self.gpu, self.beside_head(offset))
    }

    /// The values of what begins at `offset` (not of the head), on the GPU.
    pub(super) fn value_ptr(&self, offset: usize) -> DevicePtr<f32> {
        self.values.ptr().at(&self.gpu, self.beside_head(offset))
    }

    /// The gradients that several GPUs add up: the head's, which are complete before the layers', and all
    /// others.
    pub(super) fn travelling(&self) -> [Numbers; 2] {
        let in_head = self.head.1 - self.head.0;
        let head = Numbers::compute(&self.gpu, self.head_gradients.ptr(), in_head);
        [head, Numbers::f32(self.gradients.ptr(), self.len - in_head)]
    }

    /// Bytes of values, gradients and moments.
    pub(super) fn bytes(&self) -> [usize; 3] {
        [
            self.values.bytes() + self.head_values.bytes(),
            self.gradients.bytes() + self.head_gradients.bytes(),
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
            Buffer::Gradients if in_head => self.head_gradients.read_widened(offset - self.head.0, len),
            Buffer::Values | Buffer::Gradients => {
                let memory = if which == Buffer::Values { &self.values } else { &self.gradients };
                let mut values = vec![0f32; len];
                memory.read(self.beside_head(offset), &mut values)?;
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
            Buffer::Values => self.values.write(self.beside_head(offset), values),
            Buffer::ExpAvg => self.exp_avg.write(offset, values),
            Buffer::ExpAvgSq => self.exp_avg_sq.write(offset, values),
            Buffer::Gradients if self.in_head(offset) => {
                self.head_gradients.write_rounded(offset - self.head.0, values)
            }
            Buffer::Gradients => self.gradients.write(self.beside_head(offset), values),
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
            let range = |slot: &Slot| Range { first: first(slot.offset) as u64, len: slot.len() as u64 };
            let all: Vec<Range> = picked.iter().map(|&i| range(&slots[i])).collect();
            let table = Memory::from_slice(&self.gpu, &all, "the parameters' table")?;
            let mut sums = vec![0f64; all.len() * RANGE_PARTIALS];
            let sums_at = Memory::zeros(&self.gpu, sums.len(), "partial sums")?;
            let (ranges, partials) = (table.ptr(), sums_at.ptr());
            // SAFETY: as many ranges as the table has, all within their buffer.
            unsafe {
                if of_head {
                    let gradients = self.head_gradients.ptr();
                    SquaresByRange { gradients, ranges, partials }.launch(&self.gpu, all.len())?;
                } else {
                    let gradients = self.gradients.ptr();
                    SquaresByRange { gradients, ranges, partials }.launch(&self.gpu, all.len())?;
                }
            }
            sums_at.read(0, &mut sums)?;
            for (&slot, sums) in picked.iter().zip(sums.chunks(RANGE_PARTIALS)) {
                squares[slot] = sums.iter().sum();
            }
        }
        Ok(squares)
    }
}
