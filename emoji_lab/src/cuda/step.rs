//! What changes from step to step: the numbers kernels read of it, and the tokens. Steps are sent
//! over from page-locked memory, several ahead, so that the GPU never waits for the host.

use std::ffi::c_void;

use cudarc::driver::{CudaEvent, result, sys};

use super::Gpu;
use super::memory::Memory;
use super::mirror::mirrored_in_memory;
use super::pointer::{DevicePtr, Number, as_bytes};
use crate::error::{Error, Result};
use crate::model::PackedTokens;
use crate::ops::adamw::Factors;
use crate::ops::embedding::cuda::by_id;

/// The numbers that kernels read.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Step {
    pub(super) seed: u64,
    pub(super) pass: u64,
    pub(super) loss_factor: f32,
    pub(super) max_grad_norm: f32,
    pub(super) factors: Factors,
    pub(super) first_micro: i32,
}

mirrored_in_memory! {
    Step: 56 { seed: 0, pass: 8, loss_factor: 16, max_grad_norm: 20, factors: 24, first_micro: 52 }
}

/// What the host reads of an optimizer step.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct StepResult {
    /// Sum of the losses of all targets, nats.
    pub(super) loss: f64,
    pub(super) grad_norm: f64,
    pub(super) gradient_scale: f32,
    pub(super) finite: i32,
}

mirrored_in_memory! {
    StepResult: 24 { loss: 0, grad_norm: 8, gradient_scale: 16, finite: 20 }
}

// SAFETY: four numbers.
unsafe impl Number for StepResult {}

impl StepResult {
    /// Where a result on the GPU has its loss.
    pub(super) fn loss_of(result: DevicePtr<Self>) -> DevicePtr<f64> {
        // It is the first field, as is asserted above.
        result.cast()
    }
}

/// Steps that may be on their way at a time.
pub(super) const SLOTS: usize = 4;

/// Page-locked host memory.
pub(crate) struct Pinned {
    gpu: Gpu,
    ptr: *mut c_void,
    bytes: usize,
}

// SAFETY: plain memory, reached through `&mut self`.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        gpu.bind()?;
        // SAFETY: a plain allocation.
        let ptr = unsafe { result::malloc_host(bytes, 0) }.map_err(|e| gpu.error(e.0))?;
        let mut pinned = Self { gpu: gpu.clone(), ptr, bytes };
        // It holds what was there before; a graph's trial run reads all columns as token ids.
        pinned.as_mut_slice::<u8>().fill(0);
        Ok(pinned)
    }

    /// How many bytes there are.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn as_mut_slice<T: Number>(&mut self) -> &mut [T] {
        // SAFETY: the memory is page-aligned, ours alone, and any bytes are a `Number`.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.cast(), self.bytes / size_of::<T>()) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_ok() {
            // SAFETY: allocated by `malloc_host`, freed once.
            let _ = unsafe { result::free_host(self.ptr) };
        }
    }
}

/// One step on its way.
struct Slot {
    inputs: Pinned,
    result: Pinned,
    begun: CudaEvent,
    done: CudaEvent,
}

/// One batch on the GPU, and a few steps' inputs and results on the host.
pub(super) struct Inputs {
    gpu: Gpu,
    memory: Memory<i32>,
    slots: Vec<Slot>,
    capacity: usize,
    pub(super) step: DevicePtr<Step>,
    pub(super) ids: DevicePtr<i32>,
    pub(super) positions: DevicePtr<i32>,
    pub(super) start: DevicePtr<i32>,
    pub(super) end: DevicePtr<i32>,
    pub(super) targets: DevicePtr<i32>,
    /// The tokens by id, and how many each id has: `embedding::cuda::by_id`.
    pub(super) order: DevicePtr<i32>,
    pub(super) runs: DevicePtr<i32>,
}

/// Numbers before the first column, of which the [`Step`] takes some.
const HEADER: usize = 64;
const COLUMNS: usize = 7;

impl Inputs {
    /// For up to `capacity` tokens.
    pub(super) fn new(gpu: &Gpu, capacity: usize) -> Result<Self> {
        let len = HEADER + COLUMNS * capacity;
        let memory = Memory::<i32>::zeros(gpu, len, "a batch of tokens")?;
        let event = || {
            gpu.stream()
                .context()
                .new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))
                .map_err(|e| gpu.error(e.0))
        };
        let slots = (0..SLOTS)
            .map(|_| {
                Ok(Slot {
                    inputs: Pinned::new(gpu, len * size_of::<i32>())?,
                    result: Pinned::new(gpu, size_of::<StepResult>())?,
                    begun: event()?,
                    done: event()?,
                })
            })
            .collect::<Result<_>>()?;
        let column = |i: usize| memory.ptr().at(gpu, HEADER + i * capacity);
        Ok(Self {
            gpu: gpu.clone(),
            step: memory.ptr().cast(),
            ids: column(0),
            positions: column(1),
            start: column(2),
            end: column(3),
            targets: column(4),
            order: column(5),
            runs: column(6),
            slots,
            memory,
            capacity,
        })
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sends a step and its tokens, filled up to `padded` with tokens that see only themselves and
    /// have no target. `slot`'s last step must be done.
    pub(super) fn send(
        &mut self,
        slot: usize,
        step: &Step,
        tokens: &PackedTokens,
        targets: &[i64],
        padded: usize,
    ) -> Result<()> {
        if padded > self.capacity || tokens.len() > padded {
            return Err(Error::training(
                format!("a batch of {} tokens where room was made for {}", tokens.len(), self.capacity),
                "Make a new trainer for these rows",
            ));
        }
        let capacity = self.capacity;
        let slot = &mut self.slots[slot % SLOTS];
        let header = as_bytes(std::slice::from_ref(step));
        slot.inputs.as_mut_slice::<u8>()[..header.len()].copy_from_slice(header);
        let staging = slot.inputs.as_mut_slice::<i32>();
        let columns = &mut staging[HEADER..];
        let at = |column: usize, token: usize| column * capacity + token;
        for t in 0..padded {
            columns[at(0, t)] = tokens.ids.get(t).map_or(0, |id| *id as i32);
            columns[at(1, t)] = tokens.positions.get(t).map_or(0, |position| *position as i32);
            columns[at(2, t)] = t as i32;
            columns[at(3, t)] = t as i32 + 1;
            columns[at(4, t)] = targets.get(t).map_or(-1, |target| (*target).max(-1) as i32);
        }
        for segment in &tokens.segments {
            let (first, end) = (segment.q_start, segment.q_start + segment.q_len);
            columns[at(2, first)..at(2, end)].fill(first as i32);
            columns[at(3, first)..at(3, end)].fill(end as i32);
        }
        let (order, runs) = by_id(&columns[at(0, 0)..at(0, padded)]);
        columns[at(5, 0)..at(5, padded)].copy_from_slice(&order);
        columns[at(6, 0)..at(6, padded)].copy_from_slice(&runs);
        slot.begun.record(self.gpu.stream()).map_err(|e| self.gpu.error(e.0))?;
        // SAFETY: both are as long as the slice, and the slice is not touched until the step is done.
        unsafe { result::memcpy_htod_async(self.memory.ptr().address(), staging, self.gpu.raw_stream()) }
            .map_err(|e| self.gpu.error(e.0))
    }

    /// Has the result at `from` sent back when everything before is done.
    ///
    /// # Safety
    /// It must be memory of this GPU.
    pub(super) unsafe fn ask(&mut self, slot: usize, from: DevicePtr<StepResult>) -> Result<()> {
        let slot = &mut self.slots[slot % SLOTS];
        let to = slot.result.as_mut_slice::<StepResult>();
        // SAFETY: the caller's.
        unsafe { result::memcpy_dtoh_async(to, from.address(), self.gpu.raw_stream()) }
            .and_then(|()| slot.done.record(self.gpu.stream()))
            .map_err(|e| self.gpu.error(e.0))
    }

    /// Waits for what was asked: the result, and how long the GPU took, in milliseconds, where the
    /// driver tells.
    pub(super) fn wait(&mut self, slot: usize) -> Result<(StepResult, Option<f32>)> {
        let slot = &mut self.slots[slot % SLOTS];
        slot.done.synchronize().map_err(|e| self.gpu.error(e.0))?;
        let milliseconds = match self.gpu.tells_time() {
            true => Some(slot.begun.elapsed_ms(&slot.done).map_err(|e| self.gpu.error(e.0))?),
            false => None,
        };
        Ok((slot.result.as_mut_slice::<StepResult>()[0], milliseconds))
    }
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pinned({} bytes)", self.bytes)
    }
}
