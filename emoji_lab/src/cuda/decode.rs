//! What generation on the GPU is made of: caches, vectors, and one token's pass.

use cudarc::driver::CudaGraph;

use super::forward::Pass;
use super::network::{DOWN, GATE_UP, Layer, Network, O, QKV};
use super::sampler::Sampler;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::graph::capture;
use crate::gpu::placed::Placed;
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::ops::decode::cuda::{
    DecodeAttention, DecodeHead, DecodeHeads, DecodeLinear, DecodeNormLinear, DecodePick, DecodeState,
    FillCache, HEAD_BLOCKS,
};
use crate::ops::embedding::cuda::Lookup;
use crate::ops::lora_linear::cuda::Adapters;
use crate::ops::rms_norm::cuda::{Branch, NormForward};

/// One layer's cache, `[capacity, kv_heads, dim]` each.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerCache {
    keys: DevicePtr<Compute>,
    values: DevicePtr<Compute>,
    /// Keys it holds: a sliding layer's window, or the whole sequence.
    capacity: usize,
}

/// Keys and values of one sequence.
pub(super) struct Caches {
    pub(super) layers: Vec<LayerCache>,
    /// Tokens of the longest sequence.
    pub(super) room: usize,
}

impl Caches {
    fn new(gpu: &Gpu, network: &Network, room: usize) -> Result<Placed<Self>> {
        let s = &network.sizes;
        Placed::zeros(gpu, "the key/value cache", |layout| {
            let mut layer = |window: i32| {
                let capacity = if window > 0 { room.min(window as usize) } else { room };
                let len = capacity * s.kv_heads * s.dim;
                LayerCache { keys: layout.take(len), values: layout.take(len), capacity }
            };
            Self { layers: network.layers.iter().map(|l| layer(l.window)).collect(), room }
        })
    }
}

/// What decoding writes.
pub(super) struct Vectors {
    pub(super) state: DevicePtr<DecodeState>,
    pub(super) written: DevicePtr<i32>,
    stream: [DevicePtr<f32>; 2],
    qkv: DevicePtr<Compute>,
    attended: DevicePtr<Compute>,
    o: DevicePtr<Compute>,
    gated: DevicePtr<Compute>,
    down: DevicePtr<Compute>,
    hidden: DevicePtr<Compute>,
    rstd_down: DevicePtr<f32>,
    rstd_last: DevicePtr<f32>,
    logits: DevicePtr<f32>,
    best: DevicePtr<f32>,
    best_row: DevicePtr<i32>,
}

impl Vectors {
    fn new(gpu: &Gpu, network: &Network, room: usize) -> Result<Placed<Self>> {
        let s = &network.sizes;
        Placed::zeros(gpu, "decoding", |layout| Self {
            state: layout.take(1),
            written: layout.take(room),
            stream: [layout.take(s.hidden), layout.take(s.hidden)],
            qkv: layout.take(s.qkv()),
            attended: layout.take(s.heads * s.dim),
            o: layout.take(s.hidden),
            gated: layout.take(s.inner),
            down: layout.take(s.hidden),
            hidden: layout.take(s.hidden),
            rstd_down: layout.take(1),
            rstd_last: layout.take(1),
            logits: layout.take(s.vocab),
            best: layout.take(HEAD_BLOCKS),
            best_row: layout.take(HEAD_BLOCKS),
        })
    }
}

/// What one sequence needs, with its graphs.
pub(super) struct Sequence {
    pub(super) caches: Placed<Caches>,
    pub(super) vectors: Placed<Vectors>,
    pub(super) sampler: Sampler,
    /// Of a token that is picked, and of one that is drawn.
    graphs: [Option<CudaGraph>; 2],
}

impl Sequence {
    /// For up to `room` tokens.
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
    pub(super) unsafe fn head(&self, gpu: &Gpu, network: &Network, hidden: DevicePtr<Compute>) -> Result<()> {
        let (s, v) = (&network.sizes, &self.vectors);
        let head = DecodeHead {
            hidden,
            matrix: network.vocabulary.head,
            logits: v.logits,
            best: v.best,
            best_row: v.best_row,
            rows: s.vocab as i32,
            width: s.hidden as i32,
        };
        // SAFETY: the caller's.
        unsafe { head.launch(gpu) }
    }

    /// The token after the state's position: the likeliest, or by the sampler's rule.
    pub(super) fn choose(&self, gpu: &Gpu, by_rule: bool) -> Result<()> {
        let v = &self.vectors;
        let likeliest = DecodePick {
            best: v.best,
            best_row: v.best_row,
            written: v.written,
            state: v.state,
            count: HEAD_BLOCKS as i32,
        };
        // SAFETY: vectors and sampler are laid out for this network.
        unsafe {
            match by_rule {
                false => likeliest.launch(gpu),
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
        let (s, v) = (&network.sizes, &self.vectors);
        let linear = |layer: &Layer, group: usize, x, y| {
            let (width, rows) = s.group(group);
            DecodeLinear {
                x,
                matrix: layer.matrices[group],
                y,
                ld: (width + s.tails[group]) as i32,
                rows: rows as i32,
                width: width as i32,
            }
        };
        // The stream before a layer's attention, and before its MLP.
        let [before, middle] = v.stream;
        let lookup = Lookup {
            table: network.vocabulary.lookup,
            ids: DecodeState::token_of(v.state),
            x: before,
            width: s.hidden,
            scale: s.embedding_scale,
        };
        // SAFETY: vectors and caches are laid out for this network.
        unsafe {
            lookup.launch(gpu, 1)?;
            let mut branch = Branch::NONE;
            for (layer, cache) in network.layers.iter().zip(&self.caches.layers) {
                let n = &layer.norms;
                let qkv = DecodeNormLinear {
                    x: before,
                    branch: branch.rows,
                    branch_weight: branch.weight,
                    stream: middle,
                    weight: n.input,
                    matrix: layer.matrices[QKV],
                    y: v.qkv,
                    ld: (s.hidden + s.tails[QKV]) as i32,
                    rows: s.qkv() as i32,
                    width: s.hidden as i32,
                    eps: s.eps,
                };
                qkv.launch(gpu)?;
                let attention = DecodeAttention {
                    qkv: v.qkv,
                    weight_q: n.q,
                    weight_k: n.k,
                    cos: layer.angles.cos,
                    sin: layer.angles.sin,
                    keys: cache.keys,
                    values: cache.values,
                    y: v.attended,
                    state: v.state,
                    heads: heads_of(network, cache),
                };
                attention.launch(gpu)?;
                linear(layer, O, v.attended, v.o).launch(gpu)?;
                let gate_up = DecodeNormLinear {
                    x: middle,
                    branch: Some(v.o),
                    branch_weight: Some(n.post_attention),
                    stream: before,
                    weight: n.pre_feedforward,
                    matrix: layer.matrices[GATE_UP],
                    y: v.gated,
                    ld: (s.hidden + s.tails[GATE_UP]) as i32,
                    rows: s.inner as i32,
                    ..qkv
                };
                gate_up.launch_geglu(gpu)?;
                linear(layer, DOWN, v.gated, v.down).launch(gpu)?;
                branch =
                    Branch { rows: Some(v.down), weight: Some(n.post_feedforward), rstd: Some(v.rstd_down) };
            }
            let norm = NormForward {
                x: before,
                branch,
                stream: Some(middle),
                weight: network.final_norm,
                rstd: v.rstd_last,
                y: v.hidden,
                step: None,
                adapters: Adapters::NONE,
                ldy: s.hidden as i32,
                width: s.hidden as i32,
                eps: s.eps,
            };
            norm.launch(gpu, 1)?;
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
        let fill = FillCache {
            k: a.k,
            qkv: a.qkv,
            keys: cache.keys,
            values: cache.values,
            heads: heads_of(self.network, cache),
            tokens: self.tokens as i32,
        };
        // SAFETY: the layer's keys have just been made.
        unsafe { fill.launch(self.gpu) }
    }
}
