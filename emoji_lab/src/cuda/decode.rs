//! What generation on the card is made of: caches, vectors, and one token's pass.

use cudarc::driver::CudaGraph;

use super::Gpu;
use super::forward::Pass;
use super::graph::capture;
use super::memory::{Layout, Memory};
use super::network::{DOWN, GATE_UP, Network, O, QKV};
use super::sampler::Sampler;
use crate::error::Result;
use crate::ops::decode::cuda::{self as decode, DecodeHeads, DecodeState, HEAD_BLOCKS, Rows};
use crate::ops::lora_linear::cuda::Adapters;
use crate::ops::rms_norm::cuda::{self as rms_norm, Branch};

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
    pub(super) room: usize,
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
pub(super) struct Vectors {
    pub(super) memory: Memory,
    pub(super) state: u64,
    pub(super) written: u64,
    stream: [u64; 2],
    qkv: u64,
    attended: u64,
    o: u64,
    gated: u64,
    down: u64,
    hidden: u64,
    rstd: u64,
    pub(super) logits: u64,
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

/// Room for one sequence, with its graphs.
pub(super) struct Sequence {
    pub(super) caches: Caches,
    pub(super) vectors: Vectors,
    pub(super) sampler: Sampler,
    /// Of a token that is picked, and of one that is drawn.
    graphs: [Option<CudaGraph>; 2],
}

impl Sequence {
    /// Room for `room` tokens.
    pub(super) fn new(gpu: &Gpu, network: &Network, room: usize) -> Result<Self> {
        let caches = Caches::new(gpu, network, room)?;
        let vectors = Vectors::new(gpu, network, room)?;
        let sampler = Sampler::new(gpu, network.sizes.vocab)?;
        Ok(Self { caches, vectors, sampler, graphs: [None, None] })
    }

    /// Logits of what follows `hidden`.
    ///
    /// # Safety
    /// `hidden` must be a hidden state of the network's.
    pub(super) unsafe fn head(&self, gpu: &Gpu, network: &Network, hidden: u64) -> Result<()> {
        let (s, v) = (&network.sizes, &self.vectors);
        let rows = Rows { matrix: network.table.head, ld: s.hidden, rows: s.vocab, width: s.hidden };
        // SAFETY: the caller's.
        unsafe { decode::head(gpu, hidden, rows, v.logits, v.best) }
    }

    /// The token after the state's position: the likeliest, or by the sampler's rule.
    pub(super) fn choose(&self, gpu: &Gpu, by_rule: bool) -> Result<()> {
        let v = &self.vectors;
        // SAFETY: vectors and sampler are laid out for this network.
        unsafe {
            match by_rule {
                false => decode::pick(gpu, v.best, v.written, v.state),
                true => self.sampler.choose(v.logits, v.written, v.state),
            }
        }
    }

    /// Reads the token that the state names, and chooses the one after it. The first token of all is
    /// chosen by [`Self::choose`].
    pub(super) fn next(&mut self, gpu: &Gpu, network: &Network, by_rule: bool) -> Result<()> {
        let which = usize::from(by_rule);
        if self.graphs[which].is_none() {
            // A first time for nothing, since kernels are loaded when they are first used. It puts the
            // key and value into the cache that the token's own pass puts there; those of the choice have
            // been used.
            self.read(gpu, network)?;
            self.graphs[which] = Some(capture(gpu, || {
                self.read(gpu, network)?;
                self.choose(gpu, by_rule)
            })?);
        }
        match &self.graphs[which] {
            Some(graph) => graph.launch().map_err(|e| gpu.error(e.0)),
            None => Ok(()),
        }
    }

    /// Reads the token that the state names: its logits.
    fn read(&self, gpu: &Gpu, network: &Network) -> Result<()> {
        let (s, table, v, caches) = (&network.sizes, &network.table, &self.vectors, &self.caches);
        let rows = |matrix: u64, group: usize| {
            let (width, rows) = s.group(group);
            Rows { matrix, ld: width + s.tails[group], rows, width }
        };
        let [a, b] = v.stream;
        // SAFETY: vectors and caches are laid out for this network.
        unsafe {
            table.lookup.rows(gpu, v.state, a, (1, s.hidden), s.embedding_scale)?;
            let mut branch = Branch::default();
            for (layer, cache) in network.layers.iter().zip(&caches.layers) {
                let [n_input, n_q, n_k, n_o, n_middle, n_down] = layer.norms;
                branch.stream = b;
                let qkv = rows(layer.matrices[QKV], QKV);
                decode::norm_linear(gpu, false, a, branch, n_input, qkv, v.qkv, s.eps)?;
                let (angles, cached) = ((layer.cos, layer.sin), (cache.keys, cache.values));
                let heads = heads_of(network, cache);
                decode::attention(gpu, v.qkv, (n_q, n_k), angles, cached, v.attended, v.state, heads)?;
                decode::linear(gpu, v.attended, rows(layer.matrices[O], O), v.o)?;
                let o = Branch { rows: v.o, weight: n_o, rstd: 0, stream: a };
                let gate_up = Rows { rows: s.inner, ..rows(layer.matrices[GATE_UP], GATE_UP) };
                decode::norm_linear(gpu, true, b, o, n_middle, gate_up, v.gated, s.eps)?;
                decode::linear(gpu, v.gated, rows(layer.matrices[DOWN], DOWN), v.down)?;
                branch = Branch { rows: v.down, weight: n_down, rstd: v.rstd, stream: 0 };
            }
            branch.stream = b;
            let last = (network.final_norm, v.rstd + 4);
            let to = (v.hidden, s.hidden);
            rms_norm::forward(gpu, a, branch, last, to, Adapters::default(), v.state, (1, s.hidden), s.eps)?;
            self.head(gpu, network, v.hidden)
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
