//! Optimizer steps on the GPU, each replayed from a CUDA graph.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Tensor};
use cudarc::driver::CudaGraph;

use super::arena::DeviceArena;
use super::forward::{Keep, Pass};
use super::limits::{self, Plan};
use super::network::Network;
use super::places::Places;
use super::ranks::Together;
use super::room::{Room, padded};
use super::step::SLOTS;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::driver_errors::caught;
use crate::gpu::graph::capture;
use crate::gpu::memory::Memory;
use crate::host;
use crate::model::{Gemma3, Parameter};
use crate::ops::adamw::Factors;
use crate::ops::embedding::cuda::TableGradient;
use crate::ops::grad_norm::cuda::PARTIALS;
use crate::ops::grad_norm::head::HEAD_PARTIALS;
use crate::ops::step::{Step, StepResult};
use crate::train::engine::{self, Settings, Ticket};
use crate::train::{Batch, Slot};

/// What a graph does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// Forward and backward of a micro-batch; `first` overwrites the gradients.
    Gradients {
        first: bool,
    },
    /// The part of it before the layers' backward pass, and the rest but for the rows looked up: the last
    /// micro-batch's where GPUs train together (`ranks.rs`).
    Head {
        first: bool,
    },
    Layers {
        first: bool,
    },
    /// Norm, clipping and AdamW.
    Update,
    /// Both, for one batch a step.
    Step,
    /// The loss alone, without dropout.
    Loss,
}

/// What an optimizer step on the GPU gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    /// Sum of the losses of all targets, nats.
    pub(crate) loss_sum: f64,
    pub(crate) grad_norm: f64,
    /// Device time of the step's last micro-batch with the update, where the driver tells.
    pub(crate) milliseconds: Option<f32>,
}

/// A model being trained on a card.
pub(crate) struct CudaFinetune {
    pub(super) gpu: Gpu,
    pub(super) network: Network,
    pub(super) arena: DeviceArena,
    pub(super) room: Option<Room>,
    /// Where it is one of several GPUs.
    pub(super) together: Option<Together>,
    pub(super) graphs: HashMap<(usize, Work), CudaGraph>,
    pub(super) partials: Memory<f64>,
    pub(super) result: Memory<StepResult>,
    settings: Settings,
    pub(super) adapter_scale: f32,
    /// Steps that were sent, and how many of them have been taken off their slots.
    pub(super) sent: usize,
    taken: usize,
    /// What steps gave that were taken off their slots before anybody asked, by ticket.
    kept: BTreeMap<usize, Done>,
    /// The step whose gradients lie in the arena.
    gradients_of: Option<usize>,
    /// Whether its logits' gradients, hidden states and the stream's gradient still lie in the activations.
    pub(super) logits_at_hand: bool,
    /// Work whose next graph is not made, as if memory had run out.
    #[cfg(test)]
    fails: Option<Work>,
}

// SAFETY: a graph is a handle of the driver's that any thread may use after making the context its
// own, which every method does first; nothing here is shared without `&mut`.
unsafe impl Send for CudaFinetune {}

impl CudaFinetune {
    /// Puts `model`, its adapters and the optimizer on the GPU; `values` are those of `slots`, flat f32.
    pub(crate) fn new(
        gpu: &Gpu,
        model: &Gemma3,
        slots: &[Slot],
        values: &Tensor,
        settings: Settings,
    ) -> Result<Self> {
        caught(&gpu.short_name(), || Self::upload(gpu, model, slots, values, settings))
    }

    fn upload(
        gpu: &Gpu,
        model: &Gemma3,
        slots: &[Slot],
        values: &Tensor,
        settings: Settings,
    ) -> Result<Self> {
        // Before anything is uploaded.
        limits::check(model.config(), Plan::of(model, true), gpu.limits())?;
        let gpu = &gpu.with_own_streams()?;
        let head = model.head_parameter();
        let is_product =
            |slot: &Slot| slot.parameter == head || matches!(slot.parameter, Parameter::Linear(..));
        let places = Places::new(slots, is_product);
        let bf16_moments = settings.optimizer.state_dtype == DType::BF16;
        let arena = host::read(values, |values| Ok(DeviceArena::new(gpu, values, places, bf16_moments)))??;
        let positions = model.config().max_position_embeddings.min(8192);
        let network = Network::new(gpu, model, Some((&arena, slots)), positions)?;
        let loras = model.linears().filter_map(|l| l.lora.as_ref());
        let adapter_scale = loras.map(|l| l.scale as f32).next().unwrap_or(0.0);
        Ok(Self {
            partials: Memory::zeros(gpu, PARTIALS + HEAD_PARTIALS, "partial sums")?,
            result: Memory::zeros(gpu, 1, "a step's result")?,
            gpu: gpu.clone(),
            network,
            arena,
            room: None,
            together: None,
            graphs: HashMap::new(),
            settings,
            adapter_scale,
            sent: 0,
            taken: 0,
            kept: BTreeMap::new(),
            gradients_of: None,
            logits_at_hand: false,
            #[cfg(test)]
            fails: None,
        })
    }

    pub(super) fn bf16_moments(&self) -> bool {
        self.settings.optimizer.state_dtype == DType::BF16
    }

    /// The arena's buffers.
    pub(crate) fn arena(&self) -> &DeviceArena {
        &self.arena
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(super) fn hidden(&self) -> usize {
        self.network.sizes.hidden
    }

    /// Where the gradient of the rows that are looked up is added, where they are trained.
    pub(super) fn d_table(&self) -> Option<TableGradient> {
        Pass::d_table(&self.network, Some(&self.arena))
    }

    /// Sends one optimizer step over `batches`. If all slots are on their way, this waits for the earliest,
    /// and keeps what it gave.
    ///
    /// After an error nothing of this step was applied, and steps sent before can still be waited for
    /// (but where the GPU itself failed: then nothing can).
    pub(crate) fn submit(&mut self, batches: &[Batch], step: &engine::Step) -> Result<Ticket> {
        caught(&self.gpu.short_name(), || self.send(batches, step))
    }

    fn send(&mut self, batches: &[Batch], step: &engine::Step) -> Result<Ticket> {
        let longest = batches.iter().map(|b| b.tokens.len()).max().unwrap_or(0);
        self.make_ready(batches, longest)?;
        let many = batches.len() > 1;
        if many {
            self.make_sums()?;
        }
        let work = |i: usize| if many { Work::Gradients { first: i == 0 } } else { Work::Step };
        // All graphs before anything is sent: making one is what may fail.
        for (i, batch) in batches.iter().enumerate() {
            self.prepare(padded(batch.tokens.len()), work(i))?;
        }
        if many {
            self.prepare(0, Work::Update)?;
        }
        for (i, batch) in batches.iter().enumerate() {
            let tokens = padded(batch.tokens.len());
            self.send_inputs(batch, i, step, tokens)?;
            self.replay(tokens, work(i))?;
        }
        if many {
            self.replay(0, Work::Update)?;
        }
        self.ask_for_result()
    }

    /// What comes before a step's graphs are made: batches that can be computed, of `longest` tokens at
    /// most, room for them, and a free slot.
    pub(super) fn make_ready(&mut self, batches: &[Batch], longest: usize) -> Result<()> {
        self.gpu.bind()?;
        self.check_batches(batches)?;
        self.make_room(longest, true)?;
        self.take((self.sent + 1).saturating_sub(SLOTS))
    }

    /// Sends micro-batch `i` of a step, filled up to `tokens`.
    pub(super) fn send_inputs(
        &mut self,
        batch: &Batch,
        i: usize,
        step: &engine::Step,
        tokens: usize,
    ) -> Result<()> {
        let of_embedding = Factors::new(&self.settings.optimizer, step.embedding_learning_rate, step.number);
        let header = Step {
            embedding_decay: of_embedding.decay,
            embedding_step_size: of_embedding.step_size,
            seed: self.settings.seed,
            pass: step.pass(i),
            last_pass: step.last_pass,
            loss_factor: (1.0 / step.targets as f64) as f32,
            max_grad_norm: self.settings.max_grad_norm as f32,
            factors: Factors::new(&self.settings.optimizer, step.learning_rate, step.number),
            first_micro: i32::from(i == 0),
        };
        if i > 0 {
            // The slot's page-locked memory is written again only when the card has read it.
            self.gpu.synchronize()?;
        }
        let slot = self.sent;
        if let Some(room) = &mut self.room {
            let trained = self.network.trained_ids();
            room.inputs.send(slot, &header, &batch.tokens, &batch.targets, tokens, trained)?;
        }
        self.gradients_of = None;
        self.logits_at_hand = false;
        Ok(())
    }

    /// Asks for the result of the step whose update was just sent.
    pub(super) fn ask_for_result(&mut self) -> Result<Ticket> {
        let ticket = Ticket(self.sent);
        if let Some(room) = &mut self.room {
            // SAFETY: the result that the update writes.
            unsafe { room.inputs.ask(ticket.0, self.result.ptr())? };
        }
        self.gradients_of = Some(ticket.0);
        self.logits_at_hand = true;
        self.sent += 1;
        Ok(ticket)
    }

    /// Makes room for sums of gradients in f32.
    pub(crate) fn reserve_sums(&mut self) -> Result<()> {
        caught(&self.gpu.short_name(), || self.make_sums())
    }

    /// Before micro-batches are added up, once: what graphs know of the old gradients goes with them.
    pub(super) fn make_sums(&mut self) -> Result<()> {
        if !self.arena.adds_in_f32() {
            self.graphs.clear();
            self.gradients_of = None;
            self.gpu.synchronize()?;
            self.arena.add_in_f32()?;
        }
        Ok(())
    }

    /// Whether another step may be sent before one is waited for.
    pub(crate) fn has_room(&self) -> bool {
        self.sent - self.taken < SLOTS - 1
    }

    /// Waits for a step, and gives what it gave, once.
    pub(crate) fn wait(&mut self, ticket: Ticket) -> Result<Done> {
        caught(&self.gpu.short_name(), || {
            if ticket.0 >= self.sent {
                return Err(Error::training("a step of another trainer", "Wait for this trainer's own"));
            }
            self.take(ticket.0 + 1)?;
            self.kept
                .remove(&ticket.0)
                .ok_or_else(|| Error::training("a step was waited for twice", "Wait for every step once"))
        })
    }

    /// Whether the arena's gradients are those of this step.
    pub(crate) fn has_gradients_of(&self, ticket: Ticket) -> bool {
        self.gradients_of == Some(ticket.0)
    }

    /// Takes the steps before `end` off their slots: waits for each, and keeps what it gave.
    pub(super) fn take(&mut self, end: usize) -> Result<()> {
        self.gpu.bind()?;
        while self.taken < end {
            let Some(room) = &mut self.room else {
                return Err(Error::training("no step was sent", "This is a fault of emoji_lab"));
            };
            let (result, milliseconds) = room.inputs.wait(self.taken)?;
            let done = Done { loss_sum: result.loss, grad_norm: result.grad_norm, milliseconds };
            self.kept.insert(self.taken, done);
            self.taken += 1;
        }
        Ok(())
    }

    /// A kernel does not look where it reads: what is outside the model's tables is found here.
    pub(super) fn check_batches(&self, batches: &[Batch]) -> Result<()> {
        let (limit, vocab) = (self.network.positions, self.network.sizes.vocab);
        let longest = batches.iter().flat_map(|b| &b.tokens.positions).max().map_or(0, |p| *p as usize + 1);
        if longest > limit {
            return Err(Error::setting(
                "max_length",
                longest,
                format!("rows may have up to {limit} tokens here"),
            ));
        }
        let ids = batches
            .iter()
            .flat_map(|b| b.tokens.ids.iter().map(|id| i64::from(*id)).chain(b.targets.iter().copied()));
        match ids.max().filter(|id| *id >= vocab as i64) {
            None => Ok(()),
            Some(id) => Err(Error::training(
                format!("token {id} is outside the vocabulary of {vocab}"),
                "The rows were made by another model's tokenizer",
            )),
        }
    }

    /// Captures the graph of `work` for `tokens` tokens, if there is none yet.
    pub(super) fn prepare(&mut self, tokens: usize, work: Work) -> Result<()> {
        if self.graphs.contains_key(&(tokens, work)) {
            return Ok(());
        }
        #[cfg(test)]
        if self.fails == Some(work) {
            self.fails = None;
            return Err(self.gpu.error(cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        }
        // The trial run below overwrites them.
        self.logits_at_hand = false;
        if !matches!(work, Work::Loss) {
            self.gradients_of = None;
        }
        // Kernels are loaded when they are first used, which cannot be captured. So what is repeatable
        // is run once for nothing, on whatever tokens lie there.
        match work {
            Work::Step => self.enqueue(tokens, Work::Gradients { first: true })?,
            Work::Gradients { first: true } | Work::Head { .. } | Work::Layers { .. } | Work::Loss => {
                self.enqueue(tokens, work)?;
            }
            Work::Gradients { first: false } | Work::Update => {}
        }
        let graph = capture(&self.gpu, || self.enqueue(tokens, work))?;
        self.graphs.insert((tokens, work), graph);
        Ok(())
    }

    pub(super) fn replay(&self, tokens: usize, work: Work) -> Result<()> {
        match self.graphs.get(&(tokens, work)) {
            Some(graph) => graph.launch().map_err(|e| self.gpu.error(e.0)),
            None => Err(Error::training("a graph was not made", "This is a fault of emoji_lab")),
        }
    }

    fn enqueue(&self, tokens: usize, work: Work) -> Result<()> {
        let Some(room) = &self.room else {
            return Err(Error::training("no room was made", "This is a fault of emoji_lab"));
        };
        let pass = Pass {
            gpu: &self.gpu,
            network: &self.network,
            activations: &room.activations,
            inputs: &room.inputs,
            tokens,
            training: work != Work::Loss,
            keep: Keep::Nowhere,
            arena: Some(&self.arena),
            head_norm: self.head_partials(),
        };
        // SAFETY: `Inputs::send` puts a batch of at most `tokens` tokens there before each replay.
        unsafe {
            match work {
                Work::Loss => {
                    pass.forward()?;
                    pass.head(false, false)
                }
                Work::Gradients { first } => {
                    self.up_to_the_head(&pass, first)?;
                    pass.backward(first)
                }
                Work::Head { first } => self.up_to_the_head(&pass, first),
                Work::Layers { first } => pass.layers_back(first),
                Work::Update => self.update(room, tokens),
                Work::Step => {
                    self.up_to_the_head(&pass, true)?;
                    pass.backward(true)?;
                    self.update(room, tokens)
                }
            }
        }
    }
}

impl std::fmt::Debug for CudaFinetune {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CudaFinetune on {:?}, {} graphs", self.gpu, self.graphs.len())
    }
}

#[cfg(test)]
#[path = "finetune_tests.rs"]
mod tests;
