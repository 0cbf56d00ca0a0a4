//! A model being trained: its base, the engine that trains it, and how far it is.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::batch::Batch;
use super::engine::{
    DeviceMemory, Engine, Settings, Step, StepResult, Ticket, check_gradients, count_targets, engine,
};
use super::layout::{Buffer, Layout, Slot};
use crate::error::{Error, Result};
use crate::lora::{LoraConfig, add_adapters, quantize_linears, train_embeddings, train_token_rows};
use crate::model::{Gemma3, Gemma3Config, LM_HEAD, Parameter};
use crate::ops::adamw::AdamW;
use crate::ops::linear_cross_entropy::LossSum;
use crate::quant::QuantConfig;

/// A model with what its training needs.
#[derive(Debug)]
pub struct Finetune {
    /// The model as it was at the start. What is trained is the engine's, and has its shape alone here.
    start: Gemma3,
    pub(super) layout: Layout,
    pub(super) engine: Box<dyn Engine>,
    optimizer: AdamW,
    /// The learning rate of the embedding and the head, as a multiple of the others'.
    embedding_rate: f64,
    /// Optimizer steps submitted.
    steps: usize,
    /// Forward passes submitted in training: dropout's stream.
    passes: u64,
    /// Optimizer steps, since this was made, that moved the parameters: a warmup's first has a
    /// learning rate of 0.
    moved: usize,
    /// Whether steps are of several batches.
    adds_up: bool,
}

/// A step that was sent off by [`Finetune::submit`].
#[derive(Debug)]
pub struct Pending(Ticket);

impl Finetune {
    /// Prepares a copy of `base` for training; `base` itself stays as it is.
    ///
    /// With a `lora` config the linear layers are frozen (in NF4 if `quant` says so) and get
    /// adapters. Without one, every parameter is trained, and `quant` does not apply.
    ///
    /// # Errors
    /// [`Error::Setting`] for settings that do not go together, [`Error::Device`] if the GPU has too
    /// little memory.
    pub fn new(
        base: &Gemma3,
        quant: &QuantConfig,
        lora: Option<&LoraConfig>,
        optimizer: AdamW,
        max_grad_norm: f64,
        seed: u64,
    ) -> Result<Self> {
        quant.validate()?;
        let mut model = base.clone();
        let layout = match lora {
            None if quant.load_in_4bit => {
                return Err(Error::setting(
                    "load_in_4bit",
                    true,
                    "a model in 4 bits is frozen: give a LoraConfig, or QuantConfig::none() to train every parameter",
                ));
            }
            None => Layout::of(&model, &|_| true)?,
            Some(lora) => {
                lora.validate()?;
                if quant.load_in_4bit {
                    quantize_linears(&mut model, quant.blocksize)?;
                }
                add_adapters(&mut model, lora, seed)?;
                let whole = train_embeddings(&mut model, lora)?;
                let rows = train_token_rows(&mut model, lora)?;
                let trained = |p: Parameter| {
                    p.is_adapter() || (whole && p.is_embedding()) || (rows && p.is_token_rows())
                };
                Layout::of(&model, &trained)?
            }
        };
        let engine = engine(&model, &layout, Settings { optimizer, max_grad_norm, seed })?;
        // From here on they are the engine's: a second copy of an embedding is two thirds of the model.
        layout.visit(&mut model, &mut |parameter, slot| {
            let nothing = Tensor::zeros((), DType::F32, &candle_core::Device::Cpu)?;
            *parameter.value = nothing.broadcast_as(slot.dims.as_slice())?.into();
            Ok(())
        })?;
        Ok(Self {
            start: model,
            layout,
            engine,
            optimizer,
            embedding_rate: 1.0,
            steps: 0,
            passes: 0,
            moved: 0,
            adds_up: false,
        })
    }

    /// From now on the embedding and the head, or rows of them, have a learning rate of their own:
    /// `rate` times that of a step.
    #[must_use]
    pub fn with_embedding_rate(self, rate: f64) -> Self {
        Self { embedding_rate: rate, ..self }
    }

    /// The model as it stands, adapters and all: a copy that later steps do not change.
    ///
    /// # Errors
    /// If the device fails.
    pub fn model(&self) -> Result<Gemma3> {
        self.model_of(&|slot| self.value(slot))
    }

    /// [`model`](Self::model) for a reader that is done before the next step.
    pub(super) fn peek_model(&self) -> Result<Gemma3> {
        self.model_of(&|slot| self.peek(Buffer::Values, slot))
    }

    fn model_of(&self, value: &dyn Fn(&Slot) -> Result<Tensor>) -> Result<Gemma3> {
        let mut model = self.start.clone();
        self.layout.visit(&mut model, &mut |parameter, slot| {
            *parameter.value = value(slot)?.into();
            Ok(())
        })?;
        Ok(model)
    }

    /// The model as it was at the start, for what training does not change.
    pub(super) fn start(&self) -> &Gemma3 {
        &self.start
    }

    /// The model's configuration, which says whether its head is its own by now.
    pub fn config(&self) -> &Gemma3Config {
        self.start.config()
    }

    /// The optimizer's settings.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// The trained parameters and their places, in order.
    pub fn slots(&self) -> &[Slot] {
        self.layout.slots()
    }

    /// Number of trained numbers.
    pub fn trainable(&self) -> usize {
        self.layout.len()
    }

    /// The elements that weight decay does not apply to, in order.
    pub fn no_decay(&self) -> &[Range<usize>] {
        self.layout.no_decay()
    }

    /// Optimizer steps done.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Training forward passes done: where dropout's randomness stands.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// Takes up the counts of a saved run, after its tensors have been put back.
    pub fn set_progress(&mut self, steps: usize, passes: u64) {
        self.steps = steps;
        self.passes = passes;
    }

    /// A parameter's part of `buffer`, f32, as a copy that later steps do not change.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        self.engine.read(buffer, slot)
    }

    /// [`read`](Self::read) for a reader that is done before the next step.
    pub(super) fn peek(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        self.engine.peek(buffer, slot)
    }

    /// [`read`](Self::read) of every parameter, in order, for a reader that is done before the next step. Gradients
    /// that are not kept in memory cannot be read so.
    pub(super) fn peek_all(&self, buffer: Buffer) -> Result<Vec<Tensor>> {
        self.engine.peek_all(buffer, self.slots())
    }

    /// Told that [`peek_all`](Self::peek_all) of these will be asked for.
    pub(super) fn will_peek_all(&self, buffers: &[Buffer]) {
        self.engine.will_peek_all(buffers);
    }

    /// A parameter's values, as a copy.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn value(&self, slot: &Slot) -> Result<Tensor> {
        self.read(Buffer::Values, slot)
    }

    /// A parameter's gradient of the last step, as a copy.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn gradient(&self, slot: &Slot) -> Result<Tensor> {
        self.read(Buffer::Gradients, slot)
    }

    /// Overwrites a parameter's part of `buffer`.
    ///
    /// # Errors
    /// [`Error::Training`] if the number of values is not the parameter's; if the device fails.
    pub fn write(&mut self, buffer: Buffer, slot: &Slot, tensor: &Tensor) -> Result<()> {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?;
        if values.elem_count() != slot.len() || !self.slots().contains(slot) {
            return Err(Error::training(
                format!("{} values for {}, which has {}", values.elem_count(), slot.name, slot.len()),
                "The file is of another model",
            ));
        }
        self.engine.write(buffer, slot, &values)
    }

    /// Overwrites trained parameters by name, as from a saved adapter. The head of a tied model is
    /// passed over: PEFT writes the one tensor under both names.
    ///
    /// # Errors
    /// [`Error::Training`] that names a parameter which is not trained or has another shape.
    pub fn load<'a>(&mut self, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
        let tied = self.config().tie_word_embeddings;
        for (name, tensor) in tensors {
            if tied && name == LM_HEAD {
                continue;
            }
            let slot = self.slots().iter().find(|slot| slot.name == name && slot.dims == tensor.dims());
            let slot = slot.cloned().ok_or_else(|| {
                Error::training(
                    format!("{name} of shape {:?} is not among the trained parameters", tensor.dims()),
                    "The adapter was made for other LoRA settings or another model",
                )
            })?;
            self.write(Buffer::Values, &slot, tensor)?;
        }
        Ok(())
    }

    /// Makes room for batches of up to `tokens` tokens, so that none is made in the middle of a run.
    ///
    /// # Errors
    /// [`Error::Device`] if the GPU has too little memory; never on the CPU.
    pub fn reserve(&mut self, tokens: usize) -> Result<()> {
        self.engine.reserve(tokens)
    }

    /// The same for batches that are evaluated and not trained on, which take less.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub fn reserve_losses(&mut self, tokens: usize) -> Result<()> {
        self.engine.reserve_losses(tokens)
    }

    /// The same for steps of several batches, whose gradients are added up.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub fn reserve_sums(&mut self) -> Result<()> {
        self.adds_up = true;
        self.engine.reserve_sums()
    }

    /// Whether [`Self::reserve_sums`] was called.
    pub(super) fn adds_up(&self) -> bool {
        self.adds_up
    }

    /// One optimizer step over `batches`, whose gradients are added up first
    /// (`gradient_accumulation_steps`); the loss is the mean over all their targets. Several GPUs take
    /// turns at them, and their gradients are added up too: it is the same step.
    ///
    /// # Errors
    /// [`Error::Training`] if there is nothing to learn in the batches, the loss or the gradients
    /// are not finite, or (until the parameters have moved twice) one of them gets no gradient.
    pub fn step(&mut self, batches: &[Batch], learning_rate: f64) -> Result<StepResult> {
        let pending = self.submit(batches, learning_rate)?;
        self.wait(pending)
    }

    /// Whether another step may be submitted before the earliest pending one has been waited for.
    /// A GPU runs some steps ahead of the host, so that it never waits for it; the CPU does not.
    pub fn has_room(&self) -> bool {
        self.engine.has_room()
    }

    /// Begins a step; on the CPU it is done when this returns. Steps must be waited for in order.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn submit(&mut self, batches: &[Batch], learning_rate: f64) -> Result<Pending> {
        let step = Step {
            targets: count_targets(batches)?,
            number: self.steps + 1,
            learning_rate,
            embedding_learning_rate: learning_rate * self.embedding_rate,
            first_pass: self.passes,
            passes_apart: 1,
            last_pass: self.passes + batches.len() as u64 - 1,
            check: (self.moved < 2).then_some(self.moved + 1),
        };
        let ticket = self.engine.submit(batches, &step)?;
        self.steps += 1;
        self.passes += batches.len() as u64;
        self.moved += usize::from(learning_rate > 0.0);
        Ok(Pending(ticket))
    }

    /// Waits for a submitted step.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn wait(&mut self, pending: Pending) -> Result<StepResult> {
        self.engine.wait(pending.0)
    }

    /// Checks that every trained parameter got a gradient in the last step, the `step`th that moved the
    /// parameters: none may be missing from the second on.
    ///
    /// # Errors
    /// [`Error::Training`] that names the parameter.
    pub fn check_gradients(&self, step: usize) -> Result<()> {
        check_gradients(self.slots(), &self.engine.gradient_squares()?, step)
    }

    /// The summed loss of every batch, without dropout.
    ///
    /// # Errors
    /// If the device fails.
    pub fn losses(&self, batches: &[Batch]) -> Result<Vec<LossSum>> {
        self.engine.losses(batches)
    }

    /// Memory on each GPU; none on the CPU.
    pub fn device_memory(&self) -> Vec<DeviceMemory> {
        self.engine.memory()
    }

    /// How many devices take turns at a step's batches: 1, or as many GPUs as the model is on.
    pub fn ranks(&self) -> usize {
        self.engine.ranks()
    }

    /// The loss as HF's Trainer reports `eval_loss`: the mean of batch losses, each weighted by
    /// its rows.
    ///
    /// # Errors
    /// [`Error::Training`] if no batch has a target.
    pub fn evaluate(&self, batches: &[Batch]) -> Result<f64> {
        let (mut weighted, mut rows) = (0.0, 0);
        for (batch, loss) in batches.iter().zip(self.losses(batches)?) {
            if loss.rows > 0 {
                weighted += loss.sum / loss.rows as f64 * batch.rows as f64;
                rows += batch.rows;
            }
        }
        if rows == 0 {
            return Err(Error::training(
                "the evaluation rows have no token to predict",
                "Give longer rows, or raise max_length",
            ));
        }
        Ok(weighted / rows as f64)
    }
}
