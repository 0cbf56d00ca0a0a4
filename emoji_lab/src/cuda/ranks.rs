//! One of several GPUs that train together: what of a step they do for each other.
//!
//! The head's gradient, two thirds of all that travels where the whole embedding is trained, is complete
//! before the layers' backward pass begins: it is added up beside that pass. All other gradients are
//! added up after it. Of looking up the embedding's rows no gradient travels: the tokens and the gradients
//! of their vectors do, and every GPU adds those of all to its own table, in the ranks' order.

use std::sync::Arc;

use candle_core::Tensor;

use super::engine::CudaEngine;
use super::finetune::{CudaFinetune, Work};
use super::room::padded;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::nccl::{Communicator, Numbers};
use crate::gpu::placed::Placed;
use crate::gpu::pointer::DevicePtr;
use crate::model::Gemma3;
use crate::ops::embedding::cuda::LookupGradient;
use crate::ops::linear_cross_entropy::LossSum;
use crate::train::engine::{DeviceMemory, Engine, Settings, Step, StepResult, Ticket};
use crate::train::ranks::{Connection, Rank, Ranks, Share, was_aborted};
use crate::train::{Batch, Buffer, Slot};

/// A GPU's part in what several do together.
pub(super) struct Together {
    own: Arc<Communicator>,
    ranks: usize,
    /// Tokens of every rank that there is room for, and that room.
    lookups: Option<(usize, Placed<Lookups>)>,
}

/// What all ranks looked up in their last batch of a step, rank after rank.
struct Lookups {
    /// `[ranks, tokens, hidden]`.
    dx: DevicePtr<f32>,
    /// `[ranks, tokens]` each, as [`LookupGradient`] takes them.
    rows: DevicePtr<i32>,
    order: DevicePtr<i32>,
    runs: DevicePtr<i32>,
}

impl Together {
    pub(super) fn new(own: Arc<Communicator>, ranks: usize) -> Self {
        Self { own, ranks, lookups: None }
    }

    fn make_room(&mut self, gpu: &Gpu, tokens: usize, hidden: usize) -> Result<()> {
        if self.lookups.as_ref().is_some_and(|(room, _)| *room >= tokens) {
            return Ok(());
        }
        self.lookups = None;
        let ranks = self.ranks;
        let placed = Placed::zeros(gpu, "what all GPUs looked up", |layout| Lookups {
            dx: layout.take(ranks * tokens * hidden),
            rows: layout.take(ranks * tokens),
            order: layout.take(ranks * tokens),
            runs: layout.take(ranks * tokens),
        })?;
        self.lookups = Some((tokens, placed));
        Ok(())
    }

    /// Bytes of it.
    pub(super) fn bytes(&self) -> usize {
        self.lookups.as_ref().map_or(0, |(_, lookups)| lookups.bytes())
    }
}

impl CudaFinetune {
    /// Makes what a share of a step takes: what may fail.
    fn prepare_share(&mut self, share: &Share) -> Result<()> {
        let longest = share.longest.iter().copied().max().unwrap_or(0);
        self.make_ready(&share.batches, longest)?;
        if share.batches.len() > 1 {
            self.make_sums()?;
        }
        let (gpu, hidden, looks_up) = (self.gpu().clone(), self.hidden(), self.d_table().is_some());
        if let Some(together) = self.together.as_mut().filter(|_| looks_up) {
            together.make_room(&gpu, padded(longest), hidden)?;
        }
        let last = share.longest.len() - 1;
        for (i, tokens) in share.longest.iter().enumerate() {
            let (tokens, first) = (padded(*tokens), i == 0);
            if i < last {
                self.prepare(tokens, Work::Gradients { first })?;
            } else {
                self.prepare(tokens, Work::Head { first })?;
                self.prepare(tokens, Work::Layers { first })?;
            }
        }
        self.prepare(0, Work::Update)
    }

    /// Sends a prepared share.
    fn send_share(&mut self, share: &Share) -> Result<Ticket> {
        self.gpu().bind()?;
        let last = share.batches.len() - 1;
        for (i, (batch, longest)) in share.batches.iter().zip(&share.longest).enumerate() {
            let (tokens, first) = (padded(*longest), i == 0);
            self.send_inputs(batch, i, &share.step, tokens)?;
            if i < last {
                self.replay(tokens, Work::Gradients { first })?;
                continue;
            }
            self.replay(tokens, Work::Head { first })?;
            let beside = self.gpu().fork()?;
            self.add_up_head(&beside)?;
            self.replay(tokens, Work::Layers { first })?;
            // After the layers', and after the head's: it is the same stream.
            let beside = self.gpu().fork()?;
            self.add_up_rest(&beside, tokens)?;
            let done = self.gpu().record_event()?;
            self.gpu().wait_for(&done)?;
            self.add_lookups(tokens)?;
        }
        self.replay(0, Work::Update)?;
        self.ask_for_result()
    }

    /// How many elements the head has, if it is trained.
    fn trained_head(&self) -> usize {
        let s = &self.network.sizes;
        self.network.vocabulary.trained_head.map_or(0, |_| s.vocab * s.hidden)
    }

    fn add_up_head(&self, gpu: &Gpu) -> Result<()> {
        let Some(together) = &self.together else { return Ok(()) };
        let [head, ..] = self.arena.travelling(self.trained_head());
        // SAFETY: the arena's, which has the same form on all ranks.
        unsafe { together.own.sum(gpu, head) }
    }

    fn add_up_rest(&self, gpu: &Gpu, tokens: usize) -> Result<()> {
        let Some(together) = &self.together else { return Ok(()) };
        let [_, matrices, others] = self.arena.travelling(self.trained_head());
        let Some(room) = &self.room else { return Ok(()) };
        let (inputs, hidden) = (&room.inputs, self.hidden());
        together.own.grouped(|| {
            // SAFETY: buffers have the same form on all ranks, and there is room for what all of them send.
            unsafe {
                together.own.sum(gpu, matrices)?;
                together.own.sum(gpu, others)?;
                together.own.sum(gpu, Numbers::f64(room.loss(), 1))?;
                if let Some((_, all)) = together.lookups.as_ref().filter(|_| self.d_table().is_some()) {
                    let ranks = together.ranks;
                    let dx = Numbers::f32(room.activations.d_stream, tokens * hidden);
                    together.own.gather(gpu, dx, Numbers::f32(all.dx, ranks * tokens * hidden))?;
                    for (own, to) in
                        [(inputs.rows, all.rows), (inputs.order, all.order), (inputs.runs, all.runs)]
                    {
                        let (own, to) = (Numbers::i32(own, tokens), Numbers::i32(to, ranks * tokens));
                        together.own.gather(gpu, own, to)?;
                    }
                }
            }
            Ok(())
        })
    }

    /// The gradients of all ranks' lookups, one rank after the other.
    fn add_lookups(&self, tokens: usize) -> Result<()> {
        let (gpu, hidden) = (self.gpu(), self.hidden());
        let Some(together) = &self.together else { return Ok(()) };
        let (Some(d_table), Some((_, all))) = (self.d_table(), &together.lookups) else { return Ok(()) };
        for rank in 0..together.ranks {
            let gradient = LookupGradient {
                d_table,
                ids: all.rows.at(gpu, rank * tokens),
                order: all.order.at(gpu, rank * tokens),
                runs: all.runs.at(gpu, rank * tokens),
                dx: all.dx.at(gpu, rank * tokens * hidden),
                width: hidden,
                scale: self.network.sizes.embedding_scale,
            };
            // SAFETY: every rank's tokens, which it has looked at, and their gradients.
            unsafe { gradient.launch(gpu, tokens)? };
        }
        Ok(())
    }
}

/// A GPU's engine among several.
#[derive(Debug)]
struct CudaRank {
    engine: CudaEngine,
    own: Arc<Communicator>,
    device: String,
}

impl CudaRank {
    /// What a rank does after it was let go is for nothing, however it looks.
    fn unless_let_go<R>(&self, done: Result<R>) -> Result<R> {
        if self.own.was_aborted() { Err(was_aborted(&self.device)) } else { done }
    }
}

impl Rank for CudaRank {
    fn prepare(&mut self, share: &Share) -> Result<()> {
        self.engine.caught(|finetune| finetune.prepare_share(share))
    }

    fn submit_together(&mut self, share: &Share) -> Result<Ticket> {
        #[cfg(test)]
        tests::rehearse(&self.device, share.step.number)?;
        let sent = self.engine.caught(|finetune| finetune.send_share(share));
        let ticket = self.unless_let_go(sent)?;
        self.engine.expect(ticket, &share.step, share.tokens());
        Ok(ticket)
    }
}

impl Engine for CudaRank {
    fn reserve(&mut self, tokens: usize) -> Result<()> {
        self.engine.reserve(tokens)?;
        self.engine.caught(|finetune| {
            let (gpu, hidden, looks_up) =
                (finetune.gpu().clone(), finetune.hidden(), finetune.d_table().is_some());
            match finetune.together.as_mut().filter(|_| looks_up) {
                Some(together) => together.make_room(&gpu, padded(tokens), hidden),
                None => Ok(()),
            }
        })
    }

    fn reserve_sums(&mut self) -> Result<()> {
        self.engine.reserve_sums()
    }

    /// Steps are the others' too: [`Rank::submit_together`].
    fn submit(&mut self, _batches: &[Batch], _step: &Step) -> Result<Ticket> {
        Err(Error::device(&self.device, "a step of one GPU among several", "This is a fault of emoji_lab"))
    }

    fn has_room(&self) -> bool {
        self.engine.has_room()
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepResult> {
        let done = self.engine.wait(ticket);
        self.unless_let_go(done)
    }

    fn losses(&self, batches: &[Batch]) -> Result<Vec<LossSum>> {
        self.engine.losses(batches)
    }

    fn read(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        self.engine.read(buffer, slot)
    }

    fn peek_all(&self, buffer: Buffer, slots: &[Slot]) -> Result<Vec<Tensor>> {
        self.engine.peek_all(buffer, slots)
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
}

/// All ranks' communicators.
#[derive(Debug)]
struct Connected(Vec<Arc<Communicator>>);

impl Connection for Connected {
    fn abort(&self) {
        self.0.iter().for_each(|own| own.abort());
    }
}

/// An engine on each of several GPUs, connected.
pub(super) fn engine(
    gpus: &[Gpu],
    model: &Gemma3,
    slots: &[Slot],
    values: &Tensor,
    settings: Settings,
) -> Result<Box<dyn Engine>> {
    let connected: Vec<_> = Communicator::connect(gpus)?.into_iter().map(Arc::new).collect();
    let new = |gpu: &Gpu, own: &Arc<Communicator>| {
        let together = Together::new(own.clone(), gpus.len());
        let engine = CudaEngine::new(gpu, model, slots, values, settings, Some(together))?;
        Ok(CudaRank { engine, own: own.clone(), device: gpu.short_name() })
    };
    // Each uploads its own copy, all at the same time.
    let made: Vec<Result<CudaRank>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            gpus.iter().zip(&connected).map(|(gpu, own)| scope.spawn(|| new(gpu, own))).collect();
        let gone = |gpu: &Gpu| {
            Error::device(gpu.short_name(), "its thread has ended", "This is a fault of emoji_lab")
        };
        let joined =
            gpus.iter().zip(threads).map(|(gpu, thread)| thread.join().unwrap_or_else(|_| Err(gone(gpu))));
        joined.collect()
    });
    let ranks = made
        .into_iter()
        .map(|rank| rank.map(|rank| (rank.device.clone(), Box::new(rank) as Box<dyn Rank>)))
        .collect::<Result<Vec<_>>>()?;
    Ok(Box::new(Ranks::new(ranks, Box::new(Connected(connected)))?))
}

#[cfg(test)]
#[path = "ranks_tests.rs"]
mod tests;
