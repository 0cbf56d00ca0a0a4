//! Training on the CPU: the reference for every other engine.

use std::collections::BTreeMap;

use candle_core::Tensor;
use rayon::prelude::*;

use super::batch::Batch;
use super::engine::{
    DeviceMemory, Engine, Settings, Step, StepResult, Ticket, check_finite, check_gradients,
};
use super::layout::{Buffer, Layout, Slot, embedding_len};
use crate::error::{Error, Result};
use crate::host;
use crate::model::{DropoutKey, Gemma3};
use crate::ops::adamw::{self, Rates};
use crate::ops::grad_norm;
use crate::ops::linear_cross_entropy::LossSum;
use crate::ops::pool::on_pool;
use crate::rng::Philox;

/// Gradients that a task sets to zero.
const CHUNK: usize = 1 << 18;

/// A model whose trained tensors are views into `values`, and whose backward pass adds to views into
/// `gradients`: an optimizer step is one pass over four flat tensors.
#[derive(Debug)]
pub(super) struct CpuEngine {
    model: Gemma3,
    layout: Layout,
    settings: Settings,
    values: Tensor,
    pub(super) gradients: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// Steps that were done and not yet waited for.
    done: BTreeMap<Ticket, StepResult>,
    submitted: usize,
}

impl CpuEngine {
    /// Tensors are replaced in a copy of `model`, not changed, so it keeps the values it has.
    pub(super) fn new(model: &Gemma3, layout: &Layout, settings: Settings) -> Result<Self> {
        let values = layout.values_of(model)?;
        let zeros = || host::zeros(layout.len());
        let (gradients, exp_avg, exp_avg_sq) = (zeros()?, zeros()?, zeros()?);
        let mut model = model.clone();
        layout.visit(&mut model, &mut |parameter, slot| {
            *parameter.value = slot.view(&values)?.into();
            *parameter.gradient = Some(slot.view(&gradients)?);
            Ok(())
        })?;
        Ok(Self {
            model,
            layout: layout.clone(),
            settings,
            values,
            gradients,
            exp_avg,
            exp_avg_sq,
            done: BTreeMap::new(),
            submitted: 0,
        })
    }

    fn buffer(&self, buffer: Buffer) -> &Tensor {
        match buffer {
            Buffer::Values => &self.values,
            Buffer::Gradients => &self.gradients,
            Buffer::ExpAvg => &self.exp_avg,
            Buffer::ExpAvgSq => &self.exp_avg_sq,
        }
    }

    /// The gradients of `batches`, from zeros; what comes back is the sum of their losses.
    pub(super) fn gradients_of(&self, batches: &[Batch], step: &Step) -> Result<f64> {
        host::update(&self.gradients, |gradients| {
            gradients.par_chunks_mut(CHUNK).for_each(|chunk| chunk.fill(0.0));
            Ok(())
        })?;
        let factor = 1.0 / step.targets as f64;
        let mut loss_sum = 0.0;
        for (i, batch) in batches.iter().enumerate() {
            let key = DropoutKey { seed: self.settings.seed, pass: step.pass(i) };
            loss_sum += self.model.loss_and_backward(&batch.tokens, &batch.targets, factor, Some(key))?.sum;
        }
        Ok(loss_sum)
    }

    /// Norm, checks, update: in this order, so that a step which fails has changed no parameter.
    pub(super) fn update(&self, loss_sum: f64, tokens: usize, step: &Step) -> Result<StepResult> {
        let Settings { optimizer, max_grad_norm, seed } = self.settings;
        let loss = loss_sum / step.targets as f64;
        let norm = grad_norm::global_norm(&self.gradients)?;
        if let Some(moved) = step.check {
            check_gradients(self.layout.slots(), &self.gradient_squares()?, moved)?;
        }
        check_finite(step.number, loss, norm)?;
        let scale = if max_grad_norm > 0.0 { grad_norm::clip_factor(norm, max_grad_norm) } else { 1.0 };
        adamw::step(
            &self.values,
            &self.gradients,
            (&self.exp_avg, &self.exp_avg_sq),
            &optimizer,
            Rates {
                learning_rate: step.learning_rate,
                first: (embedding_len(self.layout.slots()), step.embedding_learning_rate),
                no_decay: self.layout.no_decay(),
            },
            step.number,
            scale,
            // As on a GPU: the stream after the last pass' dropout streams.
            &Philox::new(seed, step.last_pass << 16 | 0xffff),
        )?;
        Ok(StepResult { loss, grad_norm: norm, tokens, device_ms: None })
    }

    /// Keeps a step's result for who waits for it.
    pub(super) fn keep(&mut self, result: StepResult) -> Ticket {
        let ticket = Ticket(self.submitted);
        self.submitted += 1;
        self.done.insert(ticket, result);
        ticket
    }
}

impl Engine for CpuEngine {
    fn reserve(&mut self, _tokens: usize) -> Result<()> {
        Ok(())
    }

    /// The step is done when this returns.
    fn submit(&mut self, batches: &[Batch], step: &Step) -> Result<Ticket> {
        let tokens = batches.iter().map(|batch| batch.tokens.len()).sum();
        let result = on_pool(|| self.update(self.gradients_of(batches, step)?, tokens, step))?;
        Ok(self.keep(result))
    }

    /// A CPU that is not waiting for anything gains nothing by running ahead.
    fn has_room(&self) -> bool {
        self.done.is_empty()
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepResult> {
        self.done.remove(&ticket).ok_or_else(|| {
            Error::training("a step of another trainer, or waited for twice", "Wait for every step once")
        })
    }

    fn losses(&self, batches: &[Batch]) -> Result<Vec<LossSum>> {
        batches.iter().map(|batch| on_pool(|| self.model.loss(&batch.tokens, &batch.targets))).collect()
    }

    /// (Not candle's `copy`, which would copy the whole buffer that the view is of.)
    fn read(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        Ok(self.peek(buffer, slot)?.force_contiguous()?)
    }

    fn peek(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        slot.view(self.buffer(buffer))
    }

    fn write(&mut self, buffer: Buffer, slot: &Slot, values: &Tensor) -> Result<()> {
        Ok(self.buffer(buffer).slice_set(values, 0, slot.offset)?)
    }

    fn gradient_squares(&self) -> Result<Vec<f64>> {
        let squares = |slot: &Slot| {
            let gradient = slot.view(&self.gradients)?.flatten_all()?;
            Ok(host::read(&gradient, |g| Ok(g.iter().map(|g| f64::from(*g) * f64::from(*g)).sum()))?)
        };
        self.layout.slots().iter().map(squares).collect()
    }

    fn memory(&self) -> Vec<DeviceMemory> {
        vec![]
    }
}
