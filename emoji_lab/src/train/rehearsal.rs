//! In tests, a CPU that runs ahead as a GPU does, and fails when it is told to.

use candle_core::Tensor;

use super::batch::Batch;
use super::engine::{DeviceMemory, Engine, Step, StepResult, Ticket};
use super::finetune::Finetune;
use super::layout::{Buffer, Slot};
use crate::error::{Error, Result};
use crate::ops::linear_cross_entropy::LossSum;

#[derive(Debug)]
struct Rehearsal {
    engine: Box<dyn Engine>,
    /// Steps that may be on their way at a time.
    ahead: usize,
    /// The step, counted from 1, whose submission fails, once.
    fails_at: Option<usize>,
    on_their_way: usize,
}

impl Finetune {
    /// Lets up to `ahead` steps be on their way, and the submission of step `fails_at` fail once.
    pub(super) fn rehearse(mut self, ahead: usize, fails_at: usize) -> Self {
        let engine = self.engine;
        self.engine = Box::new(Rehearsal { engine, ahead, fails_at: Some(fails_at), on_their_way: 0 });
        self
    }
}

impl Engine for Rehearsal {
    fn reserve(&mut self, tokens: usize) -> Result<()> {
        self.engine.reserve(tokens)
    }

    fn reserve_losses(&mut self, tokens: usize) -> Result<()> {
        self.engine.reserve_losses(tokens)
    }

    fn reserve_sums(&mut self) -> Result<()> {
        self.engine.reserve_sums()
    }

    fn submit(&mut self, batches: &[Batch], step: &Step) -> Result<Ticket> {
        if self.fails_at == Some(step.number) {
            self.fails_at = None;
            return Err(Error::training("a rehearsed failure", "Try again"));
        }
        let ticket = self.engine.submit(batches, step)?;
        self.on_their_way += 1;
        Ok(ticket)
    }

    fn has_room(&self) -> bool {
        self.on_their_way < self.ahead
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepResult> {
        self.on_their_way -= 1;
        self.engine.wait(ticket)
    }

    fn losses(&self, batches: &[Batch]) -> Result<Vec<LossSum>> {
        self.engine.losses(batches)
    }

    fn read(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        self.engine.read(buffer, slot)
    }

    fn write(&mut self, buffer: Buffer, slot: &Slot, values: &Tensor) -> Result<()> {
        self.engine.write(buffer, slot, values)
    }

    fn gradient_squares(&self) -> Result<Vec<f64>> {
        self.engine.gradient_squares()
    }

    fn memory(&self) -> Vec<DeviceMemory> {
        self.engine.memory()
    }

    fn ranks(&self) -> usize {
        self.engine.ranks()
    }
}
