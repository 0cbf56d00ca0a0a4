//! A model being trained: a copy of the base with adapters, its arena, and the optimizer step.

use candle_core::{DType, Tensor};

use super::arena::Arena;
use super::batch::Batch;
use crate::error::{Error, Result};
use crate::lora::{LM_HEAD, LoraConfig};
use crate::model::{DropoutKey, Gemma3, LoraAdapter, Param};
use crate::ops::adamw::{self, AdamW};
use crate::ops::grad_norm;
use crate::ops::linear_cross_entropy::LossSum;
use crate::ops::lora_linear::Weight;
use crate::ops::pool::on_pool;
use crate::quant::{Nf4Tensor, QuantConfig};
use crate::rng::Philox;

/// Streams of [`Philox`] under the run's seed, apart from dropout's (which count up from 0).
pub(crate) mod streams {
    /// Initial values of the adapters.
    pub(crate) const INIT: u64 = 1 << 63;
    /// The order of the rows, plus the epoch.
    pub(crate) const ORDER: u64 = 1 << 62;
}

/// A model with what its training needs.
#[derive(Debug)]
pub struct Finetune {
    model: Gemma3,
    arena: Arena,
    optimizer: AdamW,
    max_grad_norm: f64,
    seed: u64,
    /// Optimizer steps done.
    steps: usize,
    /// Forward passes done in training: dropout's stream.
    passes: u64,
    /// Optimizer steps, since this was made, that moved the parameters: a warmup's first has a
    /// learning rate of 0.
    moved: usize,
    /// What trains on a GPU, in place of `model` and `arena`, whose values stay those of the start.
    #[cfg(feature = "cuda")]
    cuda: Option<std::sync::Mutex<crate::cuda::CudaFinetune>>,
    #[cfg(test)]
    pub(super) rehearsal: Rehearsal,
}

/// In tests, a CPU that is given steps ahead as a GPU is, and fails when it is told to.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Rehearsal {
    /// Steps that may be on their way at a time.
    pub(super) ahead: usize,
    /// The step, counted from 1, whose submission fails, once.
    pub(super) fails_at: Option<usize>,
    on_its_way: usize,
}

/// A step that was sent off by [`Finetune::submit`].
#[derive(Debug)]
pub struct Pending(Sent);

impl Pending {
    /// Whether every parameter's gradient is to be looked at, for which no other step may be
    /// submitted before this one has been waited for.
    pub fn is_looked_at(&self) -> bool {
        match &self.0 {
            Sent::Done(_) => false,
            #[cfg(feature = "cuda")]
            Sent::Cuda { look, .. } => look.is_some(),
        }
    }
}

#[derive(Debug)]
enum Sent {
    /// On the CPU it is done at once.
    Done(StepResult),
    #[cfg(feature = "cuda")]
    Cuda { ticket: crate::cuda::Ticket, step: usize, look: Option<usize>, targets: usize, tokens: usize },
}

/// What one optimizer step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepResult {
    /// Mean loss over the step's targets, nats a token.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens that went through, padding not counted.
    pub tokens: usize,
    /// On a GPU: how long the card was busy with it, in milliseconds.
    pub device_ms: Option<f64>,
}

impl Finetune {
    /// Prepares a copy of `base` for training; `base` itself stays as it is.
    ///
    /// With a `lora` config the linear layers are frozen (in NF4 if `quant` says so) and get
    /// adapters: A uniform in ±1/√in_features (kaiming-uniform with a = √5, as PEFT initialises
    /// it), B zero. Without one, every parameter is trained, and `quant` does not apply.
    ///
    /// # Errors
    /// [`Error::Setting`] for settings that do not go together.
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
        let arena = match lora {
            None if quant.load_in_4bit => {
                return Err(Error::setting(
                    "load_in_4bit",
                    true,
                    "a model in 4 bits is frozen: give a LoraConfig, or QuantConfig::none() to train every parameter",
                ));
            }
            None => Arena::new(&mut model, &|_| true)?,
            Some(lora) => {
                lora.validate()?;
                if quant.load_in_4bit {
                    quantize_linears(&mut model, quant.blocksize)?;
                }
                add_adapters(&mut model, lora, seed)?;
                let whole = train_embeddings(&mut model, lora)?;
                Arena::new(&mut model, &|name| {
                    name.contains(".lora_")
                        || (whole && (name.contains("embed_tokens") || name.starts_with("lm_head")))
                })?
            }
        };
        #[cfg(feature = "cuda")]
        let mut arena = arena;
        #[cfg(feature = "cuda")]
        let cuda = match &model.device {
            crate::device::Device::Cuda(gpu) => {
                let settings = crate::cuda::Settings { optimizer, max_grad_norm, seed };
                let cuda = crate::cuda::CudaFinetune::new(gpu, &model, &arena, settings)?;
                arena.device = Some(cuda.arena().clone());
                Some(std::sync::Mutex::new(cuda))
            }
            _ => None,
        };
        Ok(Self {
            model,
            arena,
            optimizer,
            max_grad_norm,
            seed,
            steps: 0,
            passes: 0,
            moved: 0,
            #[cfg(feature = "cuda")]
            cuda,
            #[cfg(test)]
            rehearsal: Rehearsal::default(),
        })
    }

    /// The model as it stands; in training on a GPU, as it was at the start (what is trained is in
    /// [`Self::arena`]).
    pub fn model(&self) -> &Gemma3 {
        &self.model
    }

    /// The optimizer's settings.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// The trained parameters.
    pub fn arena(&self) -> &Arena {
        &self.arena
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

    /// Overwrites trained parameters by name, as from a saved adapter. The head of a tied model is
    /// passed over: PEFT writes the one tensor under both names.
    ///
    /// # Errors
    /// [`Error::Training`] that names a parameter which is not trained or has another shape.
    pub fn load<'a>(&self, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
        let tied = self.model.config().tie_word_embeddings;
        for (name, tensor) in tensors {
            if tied && name == LM_HEAD {
                continue;
            }
            self.arena.set(name, tensor)?;
        }
        Ok(())
    }

    /// Makes room for batches of up to `tokens` tokens, so that none is made in the middle of a run.
    ///
    /// # Errors
    /// [`Error::Device`] if the GPU has too little memory; never on the CPU.
    pub fn reserve(&mut self, tokens: usize) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &mut self.cuda {
            return own(cuda).reserve(tokens);
        }
        let _ = tokens;
        Ok(())
    }

    /// One optimizer step over `batches`, whose gradients are added up first
    /// (`gradient_accumulation_steps`); the loss is the mean over all their targets.
    ///
    /// # Errors
    /// [`Error::Training`] if there is nothing to learn in the batches, the loss or the gradients
    /// are not finite, or (until the parameters have moved twice) one of them gets no gradient.
    pub fn step(&mut self, batches: &[Batch], learning_rate: f64) -> Result<StepResult> {
        let pending = self.submit(batches, learning_rate)?;
        self.wait(pending)
    }

    /// Whether another step may be submitted before the earliest pending one has been waited for.
    /// A GPU works ahead of the host, which so never makes it wait; the CPU does not.
    pub fn has_room(&self) -> bool {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            return shared(cuda).has_room();
        }
        #[cfg(test)]
        return self.rehearsal.on_its_way < self.rehearsal.ahead;
        #[cfg(not(test))]
        false
    }

    /// Sends off a step; on the CPU it is done when this returns. Steps must be waited for in order.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn submit(&mut self, batches: &[Batch], learning_rate: f64) -> Result<Pending> {
        #[cfg(test)]
        {
            if self.rehearsal.fails_at == Some(self.steps + 1) {
                self.rehearsal.fails_at = None;
                return Err(Error::training("a rehearsed failure", "Try again"));
            }
            self.rehearsal.on_its_way += 1;
        }
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &mut self.cuda {
            let targets = count_targets(batches)?;
            let ticket = own(cuda).submit(batches, learning_rate, self.steps + 1, self.passes)?;
            self.steps += 1;
            self.passes += batches.len() as u64;
            let look = (self.moved < 2).then_some(self.moved + 1);
            self.moved += usize::from(learning_rate > 0.0);
            let tokens = batches.iter().map(|batch| batch.tokens.len()).sum();
            return Ok(Pending(Sent::Cuda { ticket, step: self.steps, look, targets, tokens }));
        }
        Ok(Pending(Sent::Done(on_pool(|| self.step_on_pool(batches, learning_rate))?)))
    }

    /// Waits for a submitted step.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn wait(&mut self, pending: Pending) -> Result<StepResult> {
        #[cfg(test)]
        {
            self.rehearsal.on_its_way -= 1;
        }
        match pending.0 {
            Sent::Done(result) => Ok(result),
            #[cfg(feature = "cuda")]
            Sent::Cuda { ticket, step, look, targets, tokens } => {
                let Some(cuda) = &mut self.cuda else {
                    return Err(Error::training("a step of another trainer", "Wait for this trainer's own"));
                };
                let cuda = own(cuda);
                let done = cuda.wait(ticket)?;
                let last = cuda.has_gradients_of(ticket);
                let loss = done.loss_sum / targets as f64;
                // Once another step has been sent, the gradients are no longer this one's.
                if let Some(moved) = look.filter(|_| last) {
                    self.arena.check_gradients(moved)?;
                }
                check_finite(step, loss, done.grad_norm)?;
                let device_ms = done.milliseconds.map(f64::from);
                Ok(StepResult { loss, grad_norm: done.grad_norm, tokens, device_ms })
            }
        }
    }

    fn step_on_pool(&mut self, batches: &[Batch], learning_rate: f64) -> Result<StepResult> {
        let targets = count_targets(batches)?;
        self.arena.zero_gradients()?;
        let (mut sum, mut tokens) = (0.0, 0);
        for batch in batches {
            let key = DropoutKey { seed: self.seed, pass: self.passes };
            self.passes += 1;
            sum += self
                .model
                .loss_and_backward(&batch.tokens, &batch.targets, 1.0 / targets as f64, Some(key))?
                .sum;
            tokens += batch.tokens.len();
        }
        let step = self.steps + 1;
        let loss = sum / targets as f64;
        let norm = grad_norm::global_norm(&self.arena.gradients)?;
        if self.moved < 2 {
            self.arena.check_gradients(self.moved + 1)?;
        }
        check_finite(step, loss, norm)?;
        let scale =
            if self.max_grad_norm > 0.0 { grad_norm::clip_factor(norm, self.max_grad_norm) } else { 1.0 };
        let arena = &self.arena;
        adamw::step(
            &arena.values,
            &arena.gradients,
            (&arena.exp_avg, &arena.exp_avg_sq),
            &self.optimizer,
            arena.no_decay(),
            learning_rate,
            step,
            scale,
            // As on a GPU: the stream behind the last pass' dropout streams.
            &Philox::new(self.seed, self.passes.wrapping_sub(1) << 16 | 0xffff),
        )?;
        self.steps = step;
        self.moved += usize::from(learning_rate > 0.0);
        Ok(StepResult { loss, grad_norm: norm, tokens, device_ms: None })
    }

    /// The summed loss of every batch, without dropout.
    ///
    /// # Errors
    /// If the device fails.
    pub fn losses(&self, batches: &[Batch]) -> Result<Vec<LossSum>> {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            return shared(cuda).losses(batches);
        }
        batches.iter().map(|batch| on_pool(|| self.model.loss(&batch.tokens, &batch.targets))).collect()
    }

    /// Memory on the GPU by what it is for, in bytes; empty on the CPU.
    pub fn device_memory(&self) -> Vec<(&'static str, usize)> {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            return shared(cuda).memory_report();
        }
        vec![]
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

/// The targets of a step, of which there must be some.
fn count_targets(batches: &[Batch]) -> Result<usize> {
    match batches.iter().map(Batch::target_count).sum() {
        0 => Err(Error::training(
            "a batch has no token to predict",
            "Raise max_length, or drop rows that consist of a prompt alone",
        )),
        targets => Ok(targets),
    }
}

fn check_finite(step: usize, loss: f64, norm: f64) -> Result<()> {
    match loss.is_finite() && norm.is_finite() {
        true => Ok(()),
        false => Err(Error::training(
            format!("step {step}: loss {loss}, gradient norm {norm}"),
            "Lower learning_rate or max_grad_norm, and look at the rows of this batch",
        )),
    }
}

#[cfg(feature = "cuda")]
fn own(cuda: &mut std::sync::Mutex<crate::cuda::CudaFinetune>) -> &mut crate::cuda::CudaFinetune {
    cuda.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(feature = "cuda")]
fn shared(
    cuda: &std::sync::Mutex<crate::cuda::CudaFinetune>,
) -> std::sync::MutexGuard<'_, crate::cuda::CudaFinetune> {
    cuda.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn quantize_linears(model: &mut Gemma3, block_size: usize) -> Result<()> {
    for linear in model.layers.iter_mut().flat_map(|l| &mut l.linears) {
        if let Weight::Dense(weight) = &linear.weight {
            linear.weight = Weight::Nf4(Nf4Tensor::quantize(weight, block_size)?);
        }
    }
    Ok(())
}

fn add_adapters(model: &mut Gemma3, lora: &LoraConfig, seed: u64) -> Result<()> {
    let device = candle_core::Device::Cpu;
    let mut random = Philox::new(seed, streams::INIT);
    let targets = lora.targets();
    for layer in &mut model.layers {
        for (name, linear) in crate::model::LINEARS.iter().zip(&mut layer.linears) {
            if !targets.iter().any(|target| name.ends_with(target)) {
                continue;
            }
            let (outs, ins) = linear.weight.dims2()?;
            let bound = 1.0 / (ins as f32).sqrt();
            let a: Vec<f32> = (0..lora.r * ins).map(|_| (2.0 * random.next_f32() - 1.0) * bound).collect();
            linear.lora = Some(LoraAdapter {
                a: Param::frozen(Tensor::from_vec(a, (lora.r, ins), &device)?),
                b: Param::frozen(Tensor::zeros((outs, lora.r), DType::F32, &device)?),
                scale: lora.lora_alpha / lora.r as f64,
                dropout: lora.lora_dropout,
            });
        }
    }
    Ok(())
}

/// Whether the embedding and the head are trained; unties them where that is asked for.
fn train_embeddings(model: &mut Gemma3, lora: &LoraConfig) -> Result<bool> {
    if !lora.trains_embeddings() {
        return Ok(false);
    }
    if model.lm_head.is_none() && !lora.ensure_weight_tying {
        // Two copies, each trained for itself, as PEFT has it for a tied model.
        model.lm_head = Some(Param::frozen(model.embed_tokens.value.force_contiguous()?));
        model.config.tie_word_embeddings = false;
    }
    Ok(true)
}
