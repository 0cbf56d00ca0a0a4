//! The seam between the trainer and the devices: what a device must be able to do to train a model.
//!
//! An engine holds the trained parameters, their gradients and AdamW's moments, and does optimizer
//! steps on them. [`CpuEngine`](super::cpu::CpuEngine) is the reference, `cuda::CudaEngine` the GPU's;
//! neither knows of the other, and nothing above them knows which it is.

use std::fmt::Debug;

use candle_core::Tensor;

use super::batch::Batch;
use super::cpu::CpuEngine;
use super::layout::{Buffer, Layout, Slot};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Gemma3, Parameter};
use crate::ops::adamw::AdamW;
use crate::ops::linear_cross_entropy::LossSum;

/// What holds for every step of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) optimizer: AdamW,
    /// Gradients are scaled down to this global norm; 0 for no clipping.
    pub(crate) max_grad_norm: f64,
    /// Seed of dropout.
    pub(crate) seed: u64,
}

/// One optimizer step, beside its batches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// Counted from 1.
    pub(crate) number: usize,
    pub(crate) learning_rate: f64,
    /// That of the embedding and the head, and of rows of them.
    pub(crate) embedding_learning_rate: f64,
    /// Targets of its batches together, at least one: what the loss is the mean over.
    pub(crate) targets: usize,
    /// Forward passes of the run before its first batch: dropout's randomness is a function of them.
    pub(crate) first_pass: u64,
    /// From one of its batches to the next: 1, or where ranks take turns, as many as there are.
    pub(crate) passes_apart: u64,
    /// Its last pass, whoever does it: what the randomness of rounding goes by.
    pub(crate) last_pass: u64,
    /// Whether every parameter's gradient is checked, and as which of the steps that move the
    /// parameters ([`check_gradients`]).
    pub(crate) check: Option<usize>,
}

impl Step {
    /// Which forward pass of the run its batch number `batch` is.
    pub(crate) fn pass(&self, batch: usize) -> u64 {
        self.first_pass + batch as u64 * self.passes_apart
    }
}

/// A step that was submitted, to be waited for once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) usize);

/// What one optimizer step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepResult {
    /// Mean loss over the step's targets, nats per token.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens that went through, padding not counted.
    pub tokens: usize,
    /// On a GPU: how long it was busy with the step, in milliseconds.
    pub device_ms: Option<f64>,
}

/// What a device's memory is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceMemory {
    /// The device, as `cuda:0`.
    pub device: String,
    /// Bytes by what they are for.
    pub parts: Vec<(&'static str, usize)>,
}

impl DeviceMemory {
    /// All of it, in bytes.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// A device with a model that it trains.
pub(crate) trait Engine: Debug + Send + Sync {
    /// Makes room for steps of batches of up to `tokens` tokens, so that none is made in the middle of a run.
    fn reserve(&mut self, tokens: usize) -> Result<()>;

    /// The same for batches of which only the loss is asked, which take less.
    fn reserve_losses(&mut self, tokens: usize) -> Result<()> {
        self.reserve(tokens)
    }

    /// Makes room for the sums of several batches' gradients, as [`reserve`](Self::reserve) does for batches.
    fn reserve_sums(&mut self) -> Result<()> {
        Ok(())
    }

    /// Begins one optimizer step over `batches`, whose gradients are added up. An engine may still be
    /// at it when this returns. After an error nothing of this step is applied.
    fn submit(&mut self, batches: &[Batch], step: &Step) -> Result<Ticket>;

    /// Whether another step may be submitted before the earliest pending one has been waited for.
    fn has_room(&self) -> bool;

    /// Waits for a step, and gives its result once. An error is the step's: its loss or gradients are
    /// not finite, or a checked parameter got none.
    fn wait(&mut self, ticket: Ticket) -> Result<StepResult>;

    /// Each batch's summed loss, without dropout, after all submitted steps.
    fn losses(&self, batches: &[Batch]) -> Result<Vec<LossSum>>;

    /// A parameter's part of `buffer`, f32, as a copy that later steps do not change.
    fn read(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor>;

    /// [`read`](Self::read) for a reader that is done before the next step: without a copy where the
    /// memory is the host's.
    fn peek(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        self.read(buffer, slot)
    }

    /// [`peek`](Self::peek) of every parameter, in order; `slots` are all of them.
    fn peek_all(&self, buffer: Buffer, slots: &[Slot]) -> Result<Vec<Tensor>> {
        slots.iter().map(|slot| self.peek(buffer, slot)).collect()
    }

    /// Told that these are to be peeked at, all of them: room may be made for the copies meanwhile.
    fn will_peek_all(&self, _buffers: &[Buffer]) {}

    /// Overwrites a parameter's part of `buffer` with as many values, flat f32.
    fn write(&mut self, buffer: Buffer, slot: &Slot, values: &Tensor) -> Result<()>;

    /// The sum of squares of every parameter's gradient, in order: not finite if one of them is not.
    fn gradient_squares(&self) -> Result<Vec<f64>>;

    /// Memory of each device; none where it is the host's.
    fn memory(&self) -> Vec<DeviceMemory>;

    /// Whether anything can be asked of it any more; the error says why not.
    fn usable(&self) -> Result<()> {
        Ok(())
    }

    /// How many devices take turns at a step's batches.
    fn ranks(&self) -> usize {
        1
    }
}

/// A device that brings an engine: implemented for it where that engine is, above the trainer.
#[cfg(feature = "cuda")]
pub(crate) trait BringsEngine {
    /// `model` and its optimizer on the device; `values` are those of `slots`, flat f32.
    fn engine(
        &self,
        model: &Gemma3,
        slots: &[Slot],
        values: &Tensor,
        settings: Settings,
    ) -> Result<Box<dyn Engine>>;
}

/// The engine of the model's device. `model` is the frozen base with what is to be trained in it.
pub(super) fn engine(model: &Gemma3, layout: &Layout, settings: Settings) -> Result<Box<dyn Engine>> {
    match &model.device {
        Device::Cpu | Device::CpuBf16 => Ok(Box::new(CpuEngine::new(model, layout, settings)?)),
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => gpu.engine(model, layout.slots(), &layout.values_of(model)?, settings),
    }
}

/// The targets of a step, of which there must be some.
pub(super) fn count_targets(batches: &[Batch]) -> Result<usize> {
    match batches.iter().map(Batch::target_count).sum() {
        0 => Err(Error::training(
            "a batch has no token to predict",
            "Raise max_length, or drop rows that consist of a prompt alone",
        )),
        targets => Ok(targets),
    }
}

/// Refuses a step that went astray.
pub(crate) fn check_finite(step: usize, loss: f64, norm: f64) -> Result<()> {
    match loss.is_finite() && norm.is_finite() {
        true => Ok(()),
        false => Err(Error::training(
            format!("step {step}: loss {loss}, gradient norm {norm}"),
            "Lower learning_rate or max_grad_norm, and look at the rows of this batch",
        )),
    }
}

/// Checks that every trained parameter got a gradient, by its sum of squares.
///
/// A parameter that the backward pass forgets keeps a gradient of exact zeros, and the run looks healthy
/// all the same. So in the first two steps that move the parameters every one is checked: it must be
/// finite, and by the second not all zero. (In the first LoRA's A has none, since B is zero.)
pub(crate) fn check_gradients(slots: &[Slot], squares: &[f64], step: usize) -> Result<()> {
    for (slot, squares) in slots.iter().zip(squares) {
        if !squares.is_finite() {
            return Err(Error::training(
                format!("the gradient of {} is not finite at step {step}", slot.name),
                "Lower learning_rate, or check the model's weights and the dataset",
            ));
        }
        let may_be_zero = step < 2 && matches!(slot.parameter, Parameter::LoraA(..));
        if *squares == 0.0 && !may_be_zero {
            return Err(Error::training(
                format!("{} got no gradient at step {step}: it is not being trained", slot.name),
                "No row of the batch has a target after its first two tokens: give longer rows; if they \
                 have, this is a fault of emoji_lab",
            ));
        }
    }
    Ok(())
}
