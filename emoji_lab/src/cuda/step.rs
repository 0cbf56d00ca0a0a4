//! What changes from step to step: the numbers kernels read of it, and the tokens. Steps are sent
//! over from page-locked memory, several ahead, so that the GPU never waits for the host.

use cudarc::driver::{CudaEvent, result, sys};

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::memory::Memory;
use crate::gpu::pinned::Pinned;
use crate::gpu::pointer::{DevicePtr, as_bytes};
use crate::model::PackedTokens;
use crate::ops::embedding::cuda::by_id;
use crate::ops::replaced::place;
use crate::ops::step::{Step, StepResult};

/// Steps that may be on their way at a time.
pub(super) const SLOTS: usize = 4;

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
    /// Of the batch that was sent last, with its padding.
    tokens: usize,
    pub(super) step: DevicePtr<Step>,
    pub(super) ids: DevicePtr<i32>,
    pub(super) positions: DevicePtr<i32>,
    pub(super) start: DevicePtr<i32>,
    pub(super) end: DevicePtr<i32>,
    pub(super) targets: DevicePtr<i32>,
    /// The tokens' rows in the table whose gradient is made: their ids, or where only some rows are
    /// trained, the place among these, −1 for none.
    pub(super) rows: DevicePtr<i32>,
    /// The tokens by that row, and how many each row has: `embedding::cuda::by_id`.
    pub(super) order: DevicePtr<i32>,
    pub(super) runs: DevicePtr<i32>,
}

/// Numbers before the first column, of which the [`Step`] takes some.
const HEADER: usize = 64;
const COLUMNS: usize = 8;

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
            rows: column(7),
            slots,
            memory,
            capacity,
            tokens: 0,
        })
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens of the batch that was sent last, with its padding.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Sends a step and its tokens, filled up to `padded` with tokens that see only themselves and
    /// have no target. `slot`'s last step must be done.
    ///
    /// `trained` are the rows of the embedding that are trained, where not all are.
    pub(super) fn send(
        &mut self,
        slot: usize,
        step: &Step,
        tokens: &PackedTokens,
        targets: &[i64],
        padded: usize,
        trained: Option<&[u32]>,
    ) -> Result<()> {
        if padded > self.capacity || tokens.len() > padded {
            return Err(Error::training(
                format!("a batch of {} tokens where room was made for {}", tokens.len(), self.capacity),
                "Make a new trainer for these rows",
            ));
        }
        self.tokens = padded;
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
        for t in 0..padded {
            let id = columns[at(0, t)];
            columns[at(7, t)] = match trained {
                None => id,
                // Padding has no gradient; its id may well be that of a trained row.
                Some(ids) => place(ids, id as u32).map_or(-1, |place| place as i32),
            };
        }
        let (order, runs) = by_id(&columns[at(7, 0)..at(7, padded)]);
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
