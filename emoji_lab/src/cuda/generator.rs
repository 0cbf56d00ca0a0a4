//! Generation on the GPU: the prompt in one pass, then a graph per token.

use std::collections::VecDeque;
use std::ops::Range;

use super::activations::{Activations, Buffers};
use super::batch::Batch;
use super::decode::Sequence;
use super::forward::{Keep, Pass};
use super::network::Network;
use super::step::Inputs;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::driver_errors::caught;
use crate::model::generate::Tokens;
use crate::model::on_device::{BringsGenerator, Generator};
use crate::model::side_by_side::{Asked, SideBySide};
use crate::model::{Gemma3, PackedTokens};
use crate::ops::decode::cuda::DecodeState;
use crate::ops::sample::Rule;
use crate::ops::step::Step;

/// Tokens that are asked for before one looks whether the answer has ended.
const AHEAD: usize = 8;
/// Caches grow in steps of this many tokens.
const CACHE_STEP: usize = 512;

/// A model on the GPU, ready to generate.
pub(super) struct CudaGenerator {
    pub(super) gpu: Gpu,
    pub(super) network: Network,
    sequence: Option<Sequence>,
    /// What prompts are read with.
    pub(super) prompt: Option<(Activations, Inputs)>,
    answer: Answer,
    /// Sequences side by side (`batch.rs`).
    pub(super) batch: Option<Batch>,
}

/// How far the sequence's answer is.
#[derive(Default)]
struct Answer {
    /// Whether tokens are chosen by the sampler's rule; the likeliest is known without it.
    by_rule: bool,
    /// The most tokens that will be asked for.
    limit: usize,
    /// Tokens the card was asked for.
    asked: usize,
    /// Tokens that have come, and that nobody took yet.
    ready: VecDeque<u32>,
}

// SAFETY: handles of the driver's, used by one thread at a time, after making the context its own.
unsafe impl Send for CudaGenerator {}

impl BringsGenerator for Gpu {
    fn generators(&self, model: &Gemma3, numbers: Range<usize>) -> Result<Vec<Box<dyn Generator>>> {
        let new = |gpu: &Gpu| -> Result<Box<dyn Generator>> {
            Ok(Box::new(caught(&gpu.short_name(), || CudaGenerator::upload(gpu, model))?))
        };
        let gpus = self.each();
        gpus.iter().take(numbers.end).skip(numbers.start).map(new).collect()
    }
}

impl CudaGenerator {
    fn upload(gpu: &Gpu, model: &Gemma3) -> Result<Self> {
        let gpu = &gpu.with_own_streams()?;
        let positions = model.config().max_position_embeddings;
        let network = Network::new(gpu, model, None, positions)?;
        let (gpu, answer) = (gpu.clone(), Answer::default());
        Ok(Self { gpu, network, sequence: None, prompt: None, answer, batch: None })
    }

    /// That `prompt` and `limit` tokens after it can be computed.
    pub(super) fn check(&self, prompt: &[u32], limit: usize) -> Result<()> {
        let (vocab, positions) = (self.network.sizes.vocab, self.network.positions);
        let outside = prompt.iter().any(|id| *id as usize >= vocab);
        if prompt.is_empty() || outside || prompt.len() + limit > positions {
            let help = format!(
                "give at least one token, ids below {vocab}, and at most {positions} tokens with the answer"
            );
            return Err(Error::setting("prompt", format!("{} tokens", prompt.len()), help));
        }
        Ok(())
    }

    /// Makes room for prompts of up to `tokens` tokens in one pass.
    pub(super) fn room_for_prompts(&mut self, tokens: usize) -> Result<()> {
        if self.prompt.as_ref().is_none_or(|(_, inputs)| inputs.capacity() < tokens) {
            self.prompt = None;
            let activations = Buffers::activations(&self.gpu, &self.network.sizes, tokens, None)?;
            self.prompt = Some((activations, Inputs::new(&self.gpu, tokens)?));
        }
        Ok(())
    }

    /// Asks for tokens that follow, and waits for them: one at first, then several at a time.
    fn ask(&mut self) -> Result<()> {
        let (gpu, answer) = (&self.gpu, &mut self.answer);
        let Some(sequence) = &mut self.sequence else { return Err(missing()) };
        gpu.bind()?;
        let more = if answer.asked == 0 { 1 } else { AHEAD };
        let more = more.min(answer.limit - answer.asked);
        for _ in 0..more {
            match answer.asked {
                0 => sequence.choose(gpu, answer.by_rule)?,
                _ => sequence.next(gpu, &self.network, answer.by_rule)?,
            }
            answer.asked += 1;
        }
        let mut tokens = vec![0; more];
        let v = &sequence.vectors;
        v.read_at(v.written.at(gpu, answer.asked - more), &mut tokens)?;
        answer.ready.extend(tokens.into_iter().map(|token| token as u32));
        Ok(())
    }
}

impl Generator for CudaGenerator {
    fn start(&mut self, prompt: &[u32], limit: usize, rule: &Rule) -> Result<()> {
        self.gpu.bind()?;
        self.check(prompt, limit)?;
        let room = prompt.len() + limit;
        if self.sequence.as_ref().is_none_or(|s| s.caches.room < room) {
            self.sequence = None;
            let room = room.next_multiple_of(CACHE_STEP);
            self.sequence = Some(Sequence::new(&self.gpu, &self.network, room)?);
        }
        self.room_for_prompts(prompt.len().next_multiple_of(64))?;
        let (Some((activations, inputs)), Some(sequence)) = (&mut self.prompt, &self.sequence) else {
            return Err(missing());
        };
        let packed = PackedTokens::new(&[prompt]);
        inputs.send(0, &Step::default(), &packed, &[], prompt.len(), None)?;
        let pass = Pass {
            gpu: &self.gpu,
            network: &self.network,
            activations,
            inputs,
            tokens: prompt.len(),
            training: false,
            keep: Keep::Sequence(&sequence.caches),
            arena: None,
            head_norm: None,
        };
        let last = activations.hidden.at(&self.gpu, (prompt.len() - 1) * self.network.sizes.hidden);
        // SAFETY: the prompt has just been sent; the head reads its last hidden state.
        unsafe {
            pass.forward()?;
            sequence.head(&self.gpu, &self.network, last)?;
        }
        // The last token of the prompt has been read: what is chosen next is read at its place.
        let state =
            DecodeState { token: 0, position: prompt.len() as i32 - 1, count: 0, limit: limit as i32 };
        sequence.vectors.write_at(sequence.vectors.state, &[state])?;
        let by_rule = rule.draw || rule.penalty != 1.0;
        if by_rule {
            sequence.sampler.begin(rule, prompt)?;
        }
        self.answer = Answer { by_rule, limit, ..Answer::default() };
        Ok(())
    }

    fn side_by_side(&mut self, asked: &[Asked<'_>], head: Option<&[u32]>) -> Result<&mut dyn SideBySide> {
        self.prepare(asked, head)?;
        Ok(self)
    }
}

impl Tokens for CudaGenerator {
    fn next(&mut self) -> Result<u32> {
        if self.answer.ready.is_empty() {
            self.ask()?;
        }
        self.answer.ready.pop_front().ok_or_else(missing)
    }
}

pub(super) fn missing() -> Error {
    Error::device("cuda", "generation was not started, or has ended", "This is a fault of emoji_lab")
}
