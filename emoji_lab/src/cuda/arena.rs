//! The optimizer's arena on the card: trained values, gradients and moments, each one flat buffer.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Gpu;
use super::memory::Memory;
use crate::error::Result;
use crate::ops::grad_norm::cuda::{SLOT_PARTIALS, squares_by_slot};
use crate::train::{Buffer, Slot};

/// Flat f32 buffers of one length.
#[derive(Debug)]
pub(crate) struct DeviceArena {
    pub(super) values: Memory,
    pub(super) gradients: Memory,
    pub(super) exp_avg: Memory,
    pub(super) exp_avg_sq: Memory,
    pub(super) len: usize,
    gpu: Gpu,
    /// Whether values were written from outside since the head's copy was made.
    written: AtomicBool,
}

impl DeviceArena {
    /// With `values`, and zeros for the rest.
    pub(crate) fn new(gpu: &Gpu, values: &[f32]) -> Result<Self> {
        let bytes = size_of_val(values);
        Ok(Self {
            values: Memory::from_slice(gpu, values, "the trained parameters")?,
            gradients: Memory::zeros(gpu, bytes, "gradients")?,
            exp_avg: Memory::zeros(gpu, bytes, "AdamW's first moment")?,
            exp_avg_sq: Memory::zeros(gpu, bytes, "AdamW's second moment")?,
            len: values.len(),
            gpu: gpu.clone(),
            written: AtomicBool::new(true),
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

    /// `len` values from `offset` on.
    pub(crate) fn read(&self, which: Buffer, offset: usize, len: usize) -> Result<Vec<f32>> {
        let mut values = vec![0f32; len];
        self.buffer(which).read(offset * 4, &mut values)?;
        Ok(values)
    }

    /// Overwrites what begins at `offset`.
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
        let ranges: Vec<[u64; 2]> = slots.iter().map(|s| [s.offset as u64, s.len() as u64]).collect();
        let ranges = Memory::from_slice(&self.gpu, &ranges, "the parameters' table")?;
        let count = slots.len() * SLOT_PARTIALS;
        let partials = Memory::zeros(&self.gpu, count * 8, "partial sums")?;
        // SAFETY: as many ranges as slots, all within the arena.
        unsafe { squares_by_slot(&self.gpu, self.gradients.ptr(), ranges.ptr(), slots.len(), partials.ptr())? };
        let mut sums = vec![0f64; count];
        partials.read(0, &mut sums)?;
        Ok(sums.chunks(SLOT_PARTIALS).map(|sums| sums.iter().sum()).collect())
    }
}
