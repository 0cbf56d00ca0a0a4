//! Generation on the card: the prompt in one pass, then a graph a token.

use std::sync::{Mutex, PoisonError};

use cudarc::driver::{CudaGraph, sys};

use super::Gpu;
use super::activations::Activations;
use super::forward::Pass;
use super::memory::{Layout, Memory};
use super::network::{DOWN, GATE_UP, Network, O, QKV};
use super::step::{Inputs, Step};
use crate::error::{Error, Result};
use crate::model::{Gemma3, PackedTokens};
use crate::ops::decode::cuda::{self as decode, DecodeHeads, DecodeState, HEAD_BLOCKS, Rows};
use crate::ops::lora_linear::cuda::Adapters;
use crate::ops::rms_norm::cuda::{self as rms_norm, Branch};

/// Tokens that are asked for before one looks whether the answer has ended.
const AHEAD: usize = 8;
/// Caches grow in steps of this many tokens.
const CACHE_STEP: usize = 512;

/// One layer's cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerCache {
    keys: u64,
    values: u64,
    /// Keys it holds: a sliding layer's window, or the whole sequence.
    capacity: usize,
}

/// Keys and values of one sequence.
pub(super) struct Caches {
    _memory: Memory,
    pub(super) layers: Vec<LayerCache>,
    room: usize,
}

impl Caches {
    fn new(gpu: &Gpu, network: &Network, room: usize) -> Result<Self> {
        let s = &network.sizes;
        let place = |base: u64| {
            let mut layout = Layout::new(base);
            let layer = |window: i32| {
                let capacity = if window > 0 { room.min(window as usize) } else { room };
                let mut take = || layout.take(capacity * s.kv_heads * s.dim * gpu.size());
                LayerCache { keys: take(), values: take(), capacity }
            };
            let layers: Vec<LayerCache> = network.layers.iter().map(|l| l.window).map(layer).collect();
            (layers, layout.end() as usize)
        };
        let memory = Memory::zeros(gpu, place(0).1, "the key/value cache")?;
        Ok(Self { layers: place(memory.ptr()).0, _memory: memory, room })
    }
}

/// What decoding writes.
struct Vectors {
    memory: Memory,
    state: u64,
    written: u64,
    stream: [u64; 2],
    qkv: u64,
    attended: u64,
    o: u64,
    gated: u64,
    down: u64,
    hidden: u64,
    rstd: u64,
    logits: u64,
    best: (u64, u64),
}

impl Vectors {
    fn new(gpu: &Gpu, network: &Network, room: usize) -> Result<Self> {
        let (s, t) = (&network.sizes, gpu.size());
        let place = |base: u64, memory: Memory| {
            let mut layout = Layout::new(base);
            let vectors = Self {
                memory,
                state: layout.take(size_of::<DecodeState>()),
                written: layout.take(room * 4),
                stream: [layout.take(s.hidden * 4), layout.take(s.hidden * 4)],
                qkv: layout.take(s.qkv() * t),
                attended: layout.take(s.heads * s.dim * t),
                o: layout.take(s.hidden * t),
                gated: layout.take(s.inner * t),
                down: layout.take(s.hidden * t),
                hidden: layout.take(s.hidden * t),
                rstd: layout.take(8),
                logits: layout.take(s.vocab * 4),
                best: (layout.take(HEAD_BLOCKS * 4), layout.take(HEAD_BLOCKS * 4)),
            };
            (vectors, layout.end() as usize)
        };
        let bytes = place(0, Memory::none(gpu)).1;
        let memory = Memory::zeros(gpu, bytes, "decoding")?;
        Ok(place(memory.ptr(), memory).0)
    }
}

/// A model on the card, ready to generate.
pub(crate) struct Generator {
    gpu: Gpu,
    network: Network,
    sequence: Option<Sequence>,
    prompt: Option<(Activations, Inputs)>,
}

/// Room for one sequence, with its graph.
struct Sequence {
    caches: Caches,
    vectors: Vectors,
    graph: Option<CudaGraph>,
}

// SAFETY: handles of the driver's, used by one thread at a time, after making the context its own.
unsafe impl Send for Generator {}

impl Generator {
    /// Puts the model's weights on the card.
    pub(crate) fn new(gpu: &Gpu, model: &Gemma3) -> Result<Self> {
        let gpu = &gpu.new_lane()?;
        let positions = model.config().max_position_embeddings;
        let network = Network::new(gpu, model, None, positions)?;
        Ok(Self { gpu: gpu.clone(), network, sequence: None, prompt: None })
    }

    /// The likeliest tokens after `prompt`, up to `limit` of them, the one that `stop` knows left out.
    pub(crate) fn greedy(
        &mut self,
        prompt: &[u32],
        limit: usize,
        stop: &dyn Fn(u32) -> bool,
    ) -> Result<Vec<u32>> {
        self.start(prompt, prompt.len() + limit, limit)?;
        self.pick()?;
        let mut tokens = vec![];
        let mut asked = 1;
        loop {
            let written = self.written(asked)?;
            for &token in &written[tokens.len()..] {
                if stop(token) {
                    return Ok(tokens);
                }
                tokens.push(token);
            }
            if tokens.len() >= limit {
                tokens.truncate(limit);
                return Ok(tokens);
            }
            let more = AHEAD.min(limit - asked);
            for _ in 0..more {
                self.next()?;
            }
            asked += more;
        }
    }

    /// Reads `prompt`; what follows it can then be asked for.
    ///
    /// `room` is how long the whole sequence may become, `limit` how many tokens will be written.
    pub(crate) fn start(&mut self, prompt: &[u32], room: usize, limit: usize) -> Result<()> {
        self.gpu.bind()?;
        let vocab = self.network.sizes.vocab;
        if prompt.is_empty() || prompt.iter().any(|id| *id as usize >= vocab) || room > self.network.positions
        {
            let help = format!(
                "give at least one token, ids below {vocab}, and at most {} tokens with the answer",
                self.network.positions
            );
            return Err(Error::setting("prompt", format!("{} tokens", prompt.len()), help));
        }
        if self.sequence.as_ref().is_none_or(|s| s.caches.room < room) {
            self.sequence = None;
            let room = room.next_multiple_of(CACHE_STEP);
            let caches = Caches::new(&self.gpu, &self.network, room)?;
            let vectors = Vectors::new(&self.gpu, &self.network, room)?;
            self.sequence = Some(Sequence { caches, vectors, graph: None });
        }
        if self.prompt.as_ref().is_none_or(|(_, inputs)| inputs.capacity() < prompt.len()) {
            self.prompt = None;
            let tokens = prompt.len().next_multiple_of(64);
            let activations = Activations::new(&self.gpu, &self.network.sizes, tokens, false)?;
            self.prompt = Some((activations, Inputs::new(&self.gpu, tokens)?));
        }
        let (Some((activations, inputs)), Some(sequence)) = (&mut self.prompt, &self.sequence) else {
            return Err(missing());
        };
        let packed = PackedTokens::new(&[prompt]);
        inputs.send(0, &Step::default(), &packed, &[], prompt.len())?;
        let pass = Pass {
            gpu: &self.gpu,
            network: &self.network,
            activations,
            inputs,
            tokens: prompt.len(),
            training: false,
            caches: Some(&sequence.caches),
        };
        let v = &sequence.vectors;
        let s = &self.network.sizes;
        let last = activations.hidden + ((prompt.len() - 1) * s.hidden * self.gpu.size()) as u64;
        // SAFETY: the prompt has just been sent; the head reads its last hidden state.
        unsafe {
            pass.forward()?;
            decode::head(&self.gpu, last, self.head_rows(), v.logits, v.best)?;
        }
        // The last token of the prompt has been read: what is picked next is read at its place.
        let state =
            DecodeState { token: 0, position: prompt.len() as i32 - 1, count: 0, limit: limit as i32 };
        v.memory.write(0, &[state])
    }

    fn head_rows(&self) -> Rows {
        let s = &self.network.sizes;
        Rows { matrix: self.network.table.head, ld: s.hidden, rows: s.vocab, width: s.hidden }
    }

    fn pick(&self) -> Result<()> {
        let Some(Sequence { vectors: v, .. }) = &self.sequence else { return Err(missing()) };
        // SAFETY: the head has run.
        unsafe { decode::pick(&self.gpu, v.best, v.written, v.state) }
    }

    /// Logits of the token that follows what has been read, `[vocab]`.
    pub(crate) fn logits(&self) -> Result<Vec<f32>> {
        let Some(Sequence { vectors: v, .. }) = &self.sequence else { return Err(missing()) };
        let mut logits = vec![0f32; self.network.sizes.vocab];
        v.memory.read((v.logits - v.memory.ptr()) as usize, &mut logits)?;
        Ok(logits)
    }

    /// Reads `token`, which the caller has chosen.
    pub(crate) fn read(&mut self, token: u32, position: usize) -> Result<()> {
        self.gpu.bind()?;
        let Some(Sequence { vectors: v, .. }) = &self.sequence else { return Err(missing()) };
        v.memory.write(
            0,
            &[DecodeState { token: token as i32, position: position as i32, count: 0, limit: 0 }],
        )?;
        self.next()
    }

    /// The first `count` written tokens.
    fn written(&self, count: usize) -> Result<Vec<u32>> {
        let Some(Sequence { vectors: v, .. }) = &self.sequence else { return Err(missing()) };
        let mut tokens = vec![0u32; count];
        v.memory.read((v.written - v.memory.ptr()) as usize, &mut tokens)?;
        Ok(tokens)
    }

    /// Reads the token that the state names, and picks the one after it.
    fn next(&mut self) -> Result<()> {
        if self.sequence.as_ref().is_some_and(|s| s.graph.is_none()) {
            self.capture()?;
        }
        match self.sequence.as_ref().and_then(|s| s.graph.as_ref()) {
            Some(graph) => graph.launch().map_err(|e| self.gpu.error(e.0)),
            None => Err(missing()),
        }
    }

    fn capture(&mut self) -> Result<()> {
        let Some(Sequence { vectors: v, .. }) = &self.sequence else { return Err(missing()) };
        // A first time for nothing, since kernels are loaded when they are first used; then the state
        // is put back. What it wrote into the cache is written over.
        let mut state = [DecodeState::default()];
        v.memory.read(0, &mut state)?;
        self.enqueue()?;
        v.memory.write(0, &state)?;
        let stream = self.gpu.stream().clone();
        let fail = |e: cudarc::driver::DriverError| self.gpu.error(e.0);
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).map_err(fail)?;
        let enqueued = self.enqueue();
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
        let graph = stream.end_capture(flags).map_err(fail);
        enqueued?;
        let graph = graph?;
        if let Some(sequence) = &mut self.sequence {
            sequence.graph = graph;
        }
        Ok(())
    }

    fn enqueue(&self) -> Result<()> {
        let Some(Sequence { caches, vectors: v, .. }) = &self.sequence else { return Err(missing()) };
        let (gpu, s) = (&self.gpu, &self.network.sizes);
        let table = &self.network.table;
        let rows = |matrix: u64, group: usize| {
            let (width, rows) = s.group(group);
            Rows { matrix, ld: width + s.tails[group], rows, width }
        };
        let [a, b] = v.stream;
        // SAFETY: vectors and caches are laid out for this network.
        unsafe {
            table.lookup.rows(gpu, v.state, a, (1, s.hidden), s.embedding_scale)?;
            let mut branch = Branch::default();
            for (layer, cache) in self.network.layers.iter().zip(&caches.layers) {
                let [n_input, n_q, n_k, n_o, n_middle, n_down] = layer.norms;
                branch.stream = b;
                let qkv = rows(layer.matrices[QKV], QKV);
                decode::norm_linear(gpu, false, a, branch, n_input, qkv, v.qkv, s.eps)?;
                let (angles, cached) = ((layer.cos, layer.sin), (cache.keys, cache.values));
                let heads = heads_of(&self.network, cache);
                decode::attention(gpu, v.qkv, (n_q, n_k), angles, cached, v.attended, v.state, heads)?;
                decode::linear(gpu, v.attended, rows(layer.matrices[O], O), v.o)?;
                let o = Branch { rows: v.o, weight: n_o, rstd: 0, stream: a };
                let gate_up = Rows { rows: s.inner, ..rows(layer.matrices[GATE_UP], GATE_UP) };
                decode::norm_linear(gpu, true, b, o, n_middle, gate_up, v.gated, s.eps)?;
                decode::linear(gpu, v.gated, rows(layer.matrices[DOWN], DOWN), v.down)?;
                branch = Branch { rows: v.down, weight: n_down, rstd: v.rstd, stream: 0 };
            }
            branch.stream = b;
            let last = (self.network.final_norm, v.rstd + 4);
            let to = (v.hidden, s.hidden);
            rms_norm::forward(gpu, a, branch, last, to, Adapters::default(), v.state, (1, s.hidden), s.eps)?;
            decode::head(gpu, v.hidden, self.head_rows(), v.logits, v.best)?;
            decode::pick(gpu, v.best, v.written, v.state)
        }
    }
}

fn heads_of(network: &Network, cache: &LayerCache) -> DecodeHeads {
    let s = &network.sizes;
    DecodeHeads {
        heads: s.heads as i32,
        kv_heads: s.kv_heads as i32,
        dim: s.dim as i32,
        capacity: cache.capacity as i32,
        scale: s.scale,
        eps: s.eps,
    }
}

impl Pass<'_> {
    /// Puts a layer's keys and values into the cache, where there is one.
    ///
    /// # Safety
    /// As [`Self::forward`].
    pub(super) unsafe fn fill_cache(&self, index: usize) -> Result<()> {
        let Some(cache) = self.caches.map(|caches| &caches.layers[index]) else { return Ok(()) };
        let a = &self.activations.layers[index];
        let heads = heads_of(self.network, cache);
        // SAFETY: the layer's keys have just been made.
        unsafe { decode::fill_cache(self.gpu, (a.k, a.qkv), (cache.keys, cache.values), self.tokens, heads) }
    }
}

fn missing() -> Error {
    Error::device("cuda", "generation was not started", "This is a fault of emoji_lab")
}

/// A model's form on the card, made when it is first asked for. A copy of the model has none: its
/// tensors may be exchanged, and the copy then makes its own.
#[derive(Default)]
pub(crate) struct OnCard(Mutex<Option<Generator>>);

impl OnCard {
    /// Calls `f` with the generator of `model`, made first if there is none.
    pub(crate) fn with<R>(
        &self,
        gpu: &Gpu,
        model: &Gemma3,
        f: impl FnOnce(&mut Generator) -> Result<R>,
    ) -> Result<R> {
        let mut generator = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *generator {
            Some(generator) => f(generator),
            none => f(none.insert(Generator::new(gpu, model)?)),
        }
    }

    /// Gives the memory back.
    pub(crate) fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Clone for OnCard {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl std::fmt::Debug for OnCard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let there = self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        write!(f, "OnCard({there})")
    }
}
