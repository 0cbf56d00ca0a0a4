//! Training on the CPU: the reference for every other engine.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::batch::Batch;
use super::engine::{
    DeviceMemory, Engine, Settings, Step, StepResult, Ticket, check_finite, check_gradients,
};
use super::layout::{Buffer, Layout, Slot, embedding_len};
use crate::error::{Error, Result};
use crate::host;
use crate::model::{DropoutKey, Gemma3, Parameter};
use crate::ops::adamw::{self, Rates};
use crate::ops::gemm::in_bf16;
use crate::ops::grad_norm;
use crate::ops::linear_cross_entropy::{HeadGradient, LossSum, PIECE, rows_in_factors};
use crate::ops::pool::on_pool;
use crate::rng::Philox;

/// Gradients that a task sets to zero.
const CHUNK: usize = 1 << 18;

/// Trained numbers of a head whose gradient is worth its factors in place of it: of fewer it is no memory to speak of.
const LARGE: usize = 1 << 24;

/// The factors of the gradient of an embedding that is also the head, if it is trained as a whole and has at least
/// `large` numbers.
fn head_in_factors(model: &Gemma3, layout: &Layout, large: usize) -> Option<HeadGradient> {
    let first = layout.slots().first()?;
    let whole = first.parameter == Parameter::EmbedTokens && first.len() >= large;
    let tied = model.head_parameter() == Parameter::EmbedTokens && model.token_rows.is_none();
    (whole && tied).then(|| HeadGradient::new(model.config().vocab_size, model.config().hidden_size))
}

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
    /// Of an embedding that is also the head, trained as a whole: its gradient in factors. What `gradients` has room
    /// for is not touched then, and so is no memory.
    head: Option<HeadGradient>,
    /// Whether the last step's gradient of the embedding is in its factors.
    in_factors: bool,
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
        let head = head_in_factors(&model, layout, LARGE);
        Ok(Self {
            model,
            layout: layout.clone(),
            settings,
            values,
            gradients,
            exp_avg,
            exp_avg_sq,
            head,
            in_factors: false,
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

    /// The gradients of `batches`, from zeros, that of the embedding in `head` where it is given; what comes back is
    /// the sum of their losses.
    pub(super) fn gradients_of(
        &self,
        batches: &[Batch],
        step: &Step,
        mut head: Option<&mut HeadGradient>,
    ) -> Result<f64> {
        let start = self.in_place(head.is_some());
        host::update(&self.gradients, |gradients| {
            gradients[start..].par_chunks_mut(CHUNK).for_each(|chunk| chunk.fill(0.0));
            Ok(())
        })?;
        let factor = 1.0 / step.targets as f64;
        let mut loss_sum = 0.0;
        for (i, batch) in batches.iter().enumerate() {
            let key = Some(DropoutKey { seed: self.settings.seed, pass: step.pass(i) });
            let (tokens, targets) = (&batch.tokens, &batch.targets);
            let loss = self.in_its_type(|| match &mut head {
                None => self.model.loss_and_backward(tokens, targets, factor, key),
                Some(head) => self.model.loss_and_factors(tokens, targets, factor, key, head),
            })?;
            loss_sum += loss.sum;
        }
        if let Some(head) = head {
            self.in_its_type(|| head.finish());
        }
        Ok(loss_sum)
    }

    /// Calls `f` with products of the type that the model's device computes in.
    fn in_its_type<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        if self.model.device().dtype() == DType::BF16 { in_bf16(f) } else { f() }
    }

    /// The first of the numbers whose gradients lie in their place.
    fn in_place(&self, in_factors: bool) -> usize {
        if in_factors { embedding_len(self.layout.slots()) } else { 0 }
    }

    /// Norm, checks, update: in this order, so that a step which fails has changed no parameter.
    pub(super) fn update(
        &self,
        loss_sum: f64,
        tokens: usize,
        step: &Step,
        head: Option<&HeadGradient>,
    ) -> Result<StepResult> {
        let Settings { max_grad_norm, .. } = self.settings;
        let loss = loss_sum / step.targets as f64;
        let start = self.in_place(head.is_some());
        let others = self.gradients.narrow(0, start, self.layout.len() - start)?;
        let norm = match head {
            None => grad_norm::global_norm(&others)?,
            Some(head) => (head.squares() + grad_norm::global_norm(&others)?.powi(2)).sqrt(),
        };
        if let Some(moved) = step.check {
            check_gradients(self.layout.slots(), &self.squares(head)?, moved)?;
        }
        check_finite(step.number, loss, norm)?;
        let scale = if max_grad_norm > 0.0 { grad_norm::clip_factor(norm, max_grad_norm) } else { 1.0 };
        if let Some(head) = head {
            let hidden = self.model.config().hidden_size;
            let mut gradients = vec![0.0; PIECE * hidden];
            for piece in head.pieces() {
                let gradients = &mut gradients[..piece.len() * hidden];
                self.in_its_type(|| head.piece(piece.clone(), gradients));
                self.adamw(piece.start * hidden, gradients, step, scale)?;
            }
        }
        host::read(&others, |others| self.adamw(start, others, step, scale))?;
        Ok(StepResult { loss, grad_norm: norm, tokens, device_ms: None })
    }

    /// Moves the numbers from number `at` on, of which these are the gradients.
    fn adamw(&self, at: usize, gradients: &[f32], step: &Step, scale: f64) -> candle_core::Result<()> {
        let Settings { optimizer, seed, .. } = &self.settings;
        let some = |all: &Tensor| all.narrow(0, at, gradients.len());
        let rates = Rates {
            learning_rate: step.learning_rate,
            first: (embedding_len(self.layout.slots()), step.embedding_learning_rate),
            no_decay: self.layout.no_decay(),
        };
        // As on a GPU: the stream after the last pass' dropout streams.
        let rounding = Philox::new(*seed, step.last_pass << 16 | 0xffff);
        let moments = (&some(&self.exp_avg)?, &some(&self.exp_avg_sq)?);
        let values = &some(&self.values)?;
        adamw::step_from(at, values, gradients, moments, optimizer, rates, step.number, scale, &rounding)
    }

    /// The sum of squares of every parameter's gradient, that of the embedding in `head` where it is given.
    fn squares(&self, head: Option<&HeadGradient>) -> Result<Vec<f64>> {
        let squares = |slot: &Slot| match head {
            Some(head) if slot.offset == 0 => Ok(head.squares()),
            _ => {
                let gradient = slot.view(&self.gradients)?.flatten_all()?;
                Ok(host::read(&gradient, |g| Ok(g.iter().map(|g| f64::from(*g) * f64::from(*g)).sum()))?)
            }
        };
        self.layout.slots().iter().map(squares).collect()
    }

    /// The gradient of the embedding, if it is in its factors.
    fn factors(&self) -> Option<&HeadGradient> {
        self.head.as_ref().filter(|_| self.in_factors)
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
        let config = self.model.config();
        let most = rows_in_factors(config.vocab_size, config.hidden_size);
        let fits = batches.iter().map(Batch::target_count).sum::<usize>() <= most;
        // Lent to the step, which leaves it to who asks for gradients.
        let mut head = self.head.take();
        if let Some(head) = &mut head {
            head.clear();
        }
        let result = on_pool(|| {
            let mut head = head.as_mut().filter(|_| fits);
            let loss_sum = self.gradients_of(batches, step, head.as_deref_mut())?;
            self.update(loss_sum, tokens, step, head.as_deref())
        });
        self.in_factors = fits && head.is_some();
        self.head = head;
        Ok(self.keep(result?))
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
        let loss =
            |batch: &Batch| on_pool(|| self.in_its_type(|| self.model.loss(&batch.tokens, &batch.targets)));
        batches.iter().map(loss).collect()
    }

    /// (Not candle's `copy`, which would copy the whole buffer that the view is of.)
    fn read(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        Ok(self.peek(buffer, slot)?.force_contiguous()?)
    }

    fn peek(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        match self.factors() {
            Some(head) if buffer == Buffer::Gradients && slot.offset == 0 => {
                let hidden = self.model.config().hidden_size;
                let mut gradient = vec![0.0; slot.len()];
                for (piece, gradient) in head.pieces().zip(gradient.chunks_mut(PIECE * hidden)) {
                    self.in_its_type(|| head.piece(piece, gradient));
                }
                Ok(host::tensor(gradient, slot.dims.as_slice())?)
            }
            _ => slot.view(self.buffer(buffer)),
        }
    }

    fn write(&mut self, buffer: Buffer, slot: &Slot, values: &Tensor) -> Result<()> {
        if buffer == Buffer::Gradients && slot.offset == 0 {
            self.in_factors = false;
        }
        Ok(self.buffer(buffer).slice_set(values, 0, slot.offset)?)
    }

    fn gradient_squares(&self) -> Result<Vec<f64>> {
        self.squares(self.factors())
    }

    fn memory(&self) -> Vec<DeviceMemory> {
        vec![]
    }
}

#[cfg(test)]
mod tests;
