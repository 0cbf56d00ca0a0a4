//! Training on a GPU, as the trainer sees it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;

use super::finetune::CudaFinetune;
use super::ranks::{self, Together};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::driver_errors::caught;
use crate::host;
use crate::model::Gemma3;
use crate::ops::linear_cross_entropy::LossSum;
use crate::train::engine::{
    BringsEngine, DeviceMemory, Engine, Settings, Step, StepResult, Ticket, check_finite, check_gradients,
};
use crate::train::{Batch, Buffer, Slot};

/// The GPU's engine. It runs some steps ahead of the host, which so never makes it wait.
#[derive(Debug)]
pub(super) struct CudaEngine {
    finetune: Mutex<CudaFinetune>,
    slots: Vec<Slot>,
    pending: BTreeMap<Ticket, Pending>,
}

/// What is needed to judge a step when it is done.
#[derive(Debug)]
struct Pending {
    step: Step,
    tokens: usize,
}

impl BringsEngine for Gpu {
    fn engine(
        &self,
        model: &Gemma3,
        slots: &[Slot],
        values: &Tensor,
        settings: Settings,
    ) -> Result<Box<dyn Engine>> {
        match &self.each()[..] {
            [gpu] => Ok(Box::new(CudaEngine::new(gpu, model, slots, values, settings, None)?)),
            several => ranks::engine(several, model, slots, values, settings),
        }
    }
}

impl CudaEngine {
    /// On one GPU, which may be one of several that train together.
    pub(super) fn new(
        gpu: &Gpu,
        model: &Gemma3,
        slots: &[Slot],
        values: &Tensor,
        settings: Settings,
        together: Option<Together>,
    ) -> Result<Self> {
        let mut finetune = CudaFinetune::new(gpu, model, slots, values, settings)?;
        finetune.together = together;
        Ok(Self { finetune: Mutex::new(finetune), slots: slots.to_vec(), pending: BTreeMap::new() })
    }

    /// Calls `f`, and makes an error of a panic.
    pub(super) fn caught<R>(&mut self, f: impl FnOnce(&mut CudaFinetune) -> Result<R>) -> Result<R> {
        let finetune = self.own();
        let device = finetune.gpu().short_name();
        caught(&device, || f(finetune))
    }

    /// A step is on its way.
    pub(super) fn expect(&mut self, ticket: Ticket, step: &Step, tokens: usize) {
        self.pending.insert(ticket, Pending { step: *step, tokens });
    }

    fn own(&mut self) -> &mut CudaFinetune {
        self.finetune.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self) -> MutexGuard<'_, CudaFinetune> {
        self.finetune.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for CudaEngine {
    fn reserve(&mut self, tokens: usize) -> Result<()> {
        self.own().reserve(tokens)
    }

    fn reserve_losses(&mut self, tokens: usize) -> Result<()> {
        self.own().reserve_losses(tokens)
    }

    fn reserve_sums(&mut self) -> Result<()> {
        self.own().reserve_sums()
    }

    fn submit(&mut self, batches: &[Batch], step: &Step) -> Result<Ticket> {
        let ticket = self.own().submit(batches, step)?;
        let tokens = batches.iter().map(|batch| batch.tokens.len()).sum();
        self.expect(ticket, step, tokens);
        Ok(ticket)
    }

    /// While a step whose gradients are to be checked is on its way there is none: the next one would
    /// overwrite them.
    fn has_room(&self) -> bool {
        self.shared().has_room() && self.pending.values().all(|pending| pending.step.check.is_none())
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepResult> {
        // Whatever comes of it, it is no longer on its way.
        let pending = self.pending.remove(&ticket);
        let done = self.own().wait(ticket)?;
        let Some(Pending { step, tokens }) = pending else {
            return Err(Error::training("a step was waited for twice", "Wait for every step once"));
        };
        let loss = done.loss_sum / step.targets as f64;
        // Once another step has been sent, the gradients are no longer this one's.
        if let Some(moved) = step.check.filter(|_| self.shared().has_gradients_of(ticket)) {
            check_gradients(&self.slots, &self.gradient_squares()?, moved)?;
        }
        check_finite(step.number, loss, done.grad_norm)?;
        let device_ms = done.milliseconds.map(f64::from);
        Ok(StepResult { loss, grad_norm: done.grad_norm, tokens, device_ms })
    }

    fn losses(&self, batches: &[Batch]) -> Result<Vec<LossSum>> {
        self.shared().losses(batches)
    }

    fn read(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        let values = self.shared().read(buffer, slot)?;
        Ok(host::tensor(values, slot.dims.as_slice())?)
    }

    fn peek_all(&self, buffer: Buffer, slots: &[Slot]) -> Result<Vec<Tensor>> {
        let finetune = self.shared();
        let mut all = Vec::with_capacity(slots.len());
        for (first, len) in finetune.arena().together(buffer) {
            let flat = host::tensor(finetune.arena().read(buffer, first, len)?, len)?;
            let within = |slot: &&Slot| (first..first + len).contains(&slot.offset);
            for slot in slots.iter().filter(within) {
                all.push(flat.narrow(0, slot.offset - first, slot.len())?.reshape(slot.dims.as_slice())?);
            }
        }
        Ok(all)
    }

    fn will_peek_all(&self, buffers: &[Buffer]) {
        self.shared().arena().make_rooms(buffers);
    }

    fn write(&mut self, buffer: Buffer, slot: &Slot, values: &Tensor) -> Result<()> {
        self.own().arena().write(buffer, slot.offset, &values.to_vec1::<f32>()?)
    }

    fn gradient_squares(&self) -> Result<Vec<f64>> {
        self.shared().gradient_squares(&self.slots)
    }

    fn memory(&self) -> Vec<DeviceMemory> {
        let finetune = self.shared();
        vec![DeviceMemory { device: finetune.gpu().short_name(), parts: finetune.memory_report() }]
    }
}
