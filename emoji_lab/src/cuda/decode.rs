//! What generation on the GPU is made of: caches, vectors, and one token's pass.

use cudarc::driver::CudaGraph;

use super::forward::{Keep, Pass};
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
use crate::ops::decode_rows::cuda::FillRows;
use crate::ops::embedding::cuda::Lookup;
use crate::ops::lora_linear::cuda::Adapters;
use crate::ops::rms_norm::cuda::{Branch, NormForward};
use crate::ops::sample::cuda::Chosen;

/// One layer's cache, `[rows, capacity, kv_heads, dim]` each.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerCache {
    pub(super) keys: DevicePtr<Compute>,
    pub(super) values: DevicePtr<Compute>,
    /// Keys that a row holds.
    capacity: usize,
}

/// Keys and values of one or more sequences, a row for each.
pub(super) struct Caches {
    pub(super) layers: Vec<LayerCache>,
    /// Tokens of the longest sequence.
    pub(super) room: usize,
}

/// The keys that a layer keeps of a sequence of `room` tokens: a sliding layer's window, or all.
fn capacity(layer: &Layer, room: usize) -> usize {
    if layer.window > 0 { room.min(layer.window as usize) } else { room }
}

impl Caches {
    /// For `rows` sequences of up to `room` tokens.
    pub(super) fn new(gpu: &Gpu, network: &Network, room: usize, rows: usize) -> Result<Placed<Self>> {
        let s = &network.sizes;
        Placed::zeros(gpu, "the key/value cache", |layout| {
            let mut place = |layer: &Layer| {
                let capacity = capacity(layer, room);
                let len = rows * capacity * s.kv_heads * s.dim;
                LayerCache { keys: layout.take(len), values: layout.take(len), capacity }
            };
            Self { layers: network.layers.iter().map(&mut place).collect(), room }
        })
    }

    /// What a sequence of `room` tokens takes, in bytes.
    pub(super) fn bytes_of(gpu: &Gpu, network: &Network, room: usize) -> usize {
        let tokens: usize = network.layers.iter().map(|layer| capacity(layer, room)).sum();
        2 * tokens * network.sizes.kv_heads * network.sizes.dim * gpu.size()
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
        let caches = Caches::new(gpu, network, room, 1)?;
        let vectors = Vectors::new(gpu, network, room)?;
        let sampler = Sampler::new(gpu, network.sizes.vocab, 1)?;
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
                true => {
                    let to = Chosen { written: v.written, state: v.state, rows: 1, room: self.caches.room };
                    self.sampler.choose(v.logits, to)
                }
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
            apart: 1,
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
                attention.launch(gpu, 1)?;
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

pub(super) fn heads_of(network: &Network, cache: &LayerCache) -> DecodeHeads {
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
        let (k, qkv) = (self.activations.layers[index].k, self.activations.layers[index].qkv);
        match self.keep {
            Keep::Nowhere => Ok(()),
            Keep::Sequence(caches) => {
                let LayerCache { keys, values, .. } = caches.layers[index];
                let (heads, tokens) = (heads_of(self.network, &caches.layers[index]), self.tokens as i32);
                // SAFETY: the layer's keys have just been made.
                unsafe { FillCache { k, qkv, keys, values, heads, tokens }.launch(self.gpu) }
            }
            Keep::Rows { caches, fills, count, longest } => {
                let LayerCache { keys, values, .. } = caches.layers[index];
                let heads = heads_of(self.network, &caches.layers[index]);
                // SAFETY: as above.
                unsafe { FillRows { k, qkv, keys, values, fills, heads }.launch(self.gpu, count, longest) }
            }
        }
    }
}
