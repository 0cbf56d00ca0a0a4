//! The forward pass: nine launches a layer, and one that unpacks beside them; four more where the adapters of many
//! tokens have their own.

use cudarc::driver::CudaEvent;

use super::activations::Activations;
use super::arena::DeviceArena;
use super::decode::Caches;
use super::network::{DOWN, GATE_UP, Layer, Network, O, QKV};
use super::step::Inputs;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::gemm::{Out, gemm, matrix};
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::ops::attention::cuda::{AttentionForward, AttentionSizes, parts};
use crate::ops::decode_rows::cuda::RowFill;
use crate::ops::embedding::cuda::{Lookup, PutRows};
use crate::ops::geglu::cuda::GegluForward;
use crate::ops::lora_linear::cuda::{Adapters, AdaptersDown, UnpackWeights};
use crate::ops::rms_norm::cuda::{Branch, NormForward};
use crate::ops::rope::cuda::QkNormRope;

/// More tokens than that are many (measured: at 464 a block per token with all of its work is the faster way, at
/// 1,856 it is not).
const MANY: usize = 1024;

/// In attention, sixteen tokens a block pay from here on.
const MANY_FOR_TILES: usize = 256;

/// What a pass works with.
pub(super) struct Pass<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) network: &'a Network,
    pub(super) activations: &'a Activations,
    pub(super) inputs: &'a Inputs,
    /// Padded number of tokens.
    pub(super) tokens: usize,
    /// Whether dropout is on.
    pub(super) training: bool,
    pub(super) keep: Keep<'a>,
    /// Where gradients of what is trained go.
    pub(super) arena: Option<&'a DeviceArena>,
    /// Where the parts of the norm of the head's gradient go, where that is made in pieces.
    pub(super) head_norm: Option<DevicePtr<f64>>,
}

/// Where keys and values are kept for generation.
#[derive(Clone, Copy)]
pub(super) enum Keep<'a> {
    Nowhere,
    /// The pass is one sequence from its beginning.
    Sequence(&'a Caches),
    /// The pass is packed prompts, the longest of `longest` tokens; `count` fills say which row begins
    /// with which of them.
    Rows {
        caches: &'a Caches,
        fills: DevicePtr<RowFill>,
        count: usize,
        longest: usize,
    },
}

impl Pass<'_> {
    /// The adapters that the kernels around a group's product have to do with.
    pub(super) fn adapters(&self, layer: &Layer, group: usize) -> Adapters {
        self.tiled(layer, group).map_or(self.all_adapters(layer, group), |_| Adapters::NONE)
    }

    fn all_adapters(&self, layer: &Layer, group: usize) -> Adapters {
        let adapters = layer.adapters[group];
        if self.training { adapters } else { adapters.without_dropout() }
    }

    /// The adapters that have launches of their own, if a group's have.
    pub(super) fn tiled(&self, layer: &Layer, group: usize) -> Option<Adapters> {
        let adapters = self.all_adapters(layer, group);
        let apart = self.many() || group == O && self.attention_in_tiles(layer);
        (apart && adapters.count > 0).then_some(adapters)
    }

    /// Whether there are so many tokens that several blocks share a multiprocessor, and launches of their own pay.
    /// Not where answers are written: of those none may depend on how many others there are.
    pub(super) fn many(&self) -> bool {
        self.arena.is_some() && self.tokens > MANY
    }

    /// Whether attention takes sixteen tokens a block.
    pub(super) fn attention_in_tiles(&self, layer: &Layer) -> bool {
        let enough = self.arena.is_some() && self.tokens >= MANY_FOR_TILES;
        enough && self.attention_sizes(layer).fits_tiles(self.gpu, self.tokens)
    }

    /// Warps per head in attention.
    pub(super) fn parts(&self) -> usize {
        // Where blocks share a multiprocessor, warps for each part would only wait for each other.
        if self.many() { 1 } else { parts(self.network.sizes.heads) }
    }

    /// Tokens that a block has of the kernels around products, at most four: as many as share a multiprocessor. One
    /// where answers are written, as for [`Self::many`].
    pub(super) fn a_block(&self) -> usize {
        let shared_by = self.tokens.div_ceil(self.gpu.multiprocessors());
        if self.arena.is_some() { shared_by.next_power_of_two().min(4) } else { 1 }
    }

    unsafe fn norm(&self, norm: NormForward) -> Result<()> {
        // SAFETY: the caller's.
        unsafe {
            if self.many() {
                norm.launch_many(self.gpu, self.tokens)
            } else {
                norm.launch_some(self.gpu, self.tokens, self.a_block())
            }
        }
    }

    /// u after each row of `y`, where that is a launch of its own.
    unsafe fn adapters_down(&self, layer: &Layer, group: usize, y: DevicePtr<Compute>) -> Result<()> {
        let Some(adapters) = self.tiled(layer, group) else { return Ok(()) };
        let (step, tokens) = (Some(self.inputs.step), self.tokens as i32);
        let (ld, width) = (self.ld(group) as i32, self.network.sizes.group(group).0 as i32);
        // SAFETY: activations are laid out for these sizes.
        unsafe { AdaptersDown { y, step, adapters, tokens, ld, width }.launch(self.gpu) }
    }

    /// Distance of a group's input rows, adapters' u included.
    pub(super) fn ld(&self, group: usize) -> usize {
        self.network.sizes.group(group).0 + self.network.sizes.tails[group]
    }

    pub(super) fn attention_sizes(&self, layer: &Layer) -> AttentionSizes {
        let s = &self.network.sizes;
        AttentionSizes {
            heads: s.heads as i32,
            kv_heads: s.kv_heads as i32,
            dim: s.dim as i32,
            window: layer.window,
            scale: s.scale,
        }
    }

    /// Begins to put layer `index`'s matrices together, beside what is on its way. What comes back is
    /// to be waited for before they are used. `None` where there is nothing to do.
    ///
    /// # Safety
    /// As [`Self::forward`]; what read the same memory as another layer's must have been sent before.
    pub(super) unsafe fn unpack(&self, index: usize) -> Result<Option<CudaEvent>> {
        let Some(layer) = self.network.layers.get(index).filter(|_| self.network.unpacks) else {
            return Ok(None);
        };
        let beside = self.gpu.fork()?;
        // SAFETY: seven layers, as the network wrote them.
        unsafe { UnpackWeights { layers: layer.unpack }.launch(&beside, 7, self.network.unpack_units)? };
        Ok(Some(self.gpu.record_event()?))
    }

    /// Has what follows wait for an event of the side stream.
    pub(super) fn wait_for(&self, event: Option<&CudaEvent>) -> Result<()> {
        event.map_or(Ok(()), |event| self.gpu.wait_for(event))
    }

    /// A group's product: `y [tokens, outs] = x · matrixᵀ`.
    unsafe fn linear(
        &self,
        layer: &Layer,
        group: usize,
        x: DevicePtr<Compute>,
        y: DevicePtr<Compute>,
    ) -> Result<()> {
        let (_, outs) = self.network.sizes.group(group);
        let ld = self.ld(group);
        let weight = matrix(layer.matrices[group], ld);
        let (shape, y) = ((self.tokens, outs, ld), Out::Compute(matrix(y, outs)));
        // SAFETY: activations and matrices are laid out for these sizes.
        unsafe { gemm(self.gpu, shape, matrix(x, ld), weight.transposed(), y) }
    }

    /// All layers, up to the last hidden states after the final norm.
    ///
    /// # Safety
    /// The inputs on the GPU must be a batch of at most `tokens` tokens of this vocabulary, with
    /// positions the network has angles for.
    pub(super) unsafe fn forward(&self) -> Result<()> {
        let (gpu, s, i) = (self.gpu, &self.network.sizes, self.inputs);
        let (rows, step) = (self.tokens, i.step);
        let all = &self.activations.layers;
        let lookup = Lookup {
            table: self.network.vocabulary.lookup,
            ids: i.ids,
            x: all[0].x,
            width: s.hidden,
            scale: s.embedding_scale,
            apart: 1,
        };
        // SAFETY: the caller's; all pointers are to buffers laid out for `tokens` rows.
        unsafe {
            if let Some(trained) = &self.network.trained_rows {
                // The last step has moved them.
                let (rows, ids, table) = (trained.values, trained.on_gpu, trained.table);
                let width = s.hidden as i32;
                PutRows { rows, ids, table, width }.launch(gpu, trained.ids.len())?;
            }
            lookup.launch(gpu, rows)?;
            let mut branch = Branch::NONE;
            let mut stream = all[0].x;
            let mut unpacked = self.unpack(0)?;
            for (index, layer) in self.network.layers.iter().enumerate() {
                let (a, n) = (&all[index], &layer.norms);
                let norm = NormForward {
                    x: stream,
                    branch,
                    stream: Some(a.x),
                    weight: n.input,
                    rstd: a.rstd_input,
                    y: a.normed,
                    step: Some(step),
                    adapters: self.adapters(layer, QKV),
                    ldy: self.ld(QKV) as i32,
                    width: s.hidden as i32,
                    eps: s.eps,
                };
                self.norm(norm)?;
                self.adapters_down(layer, QKV, a.normed)?;
                self.wait_for(unpacked.as_ref())?;
                self.linear(layer, QKV, a.normed, a.qkv)?;
                // Beside attention, which leaves room on the multiprocessors; a product of cuBLAS wants whole ones.
                unpacked = self.unpack(index + 1)?;

                let heads = QkNormRope {
                    qkv: a.qkv,
                    weight_q: n.q,
                    weight_k: n.k,
                    cos: layer.angles.cos,
                    sin: layer.angles.sin,
                    positions: i.positions,
                    q: a.q,
                    k: a.k,
                    rstd: a.rstd_qk,
                    heads: s.heads as i32,
                    kv_heads: s.kv_heads as i32,
                    dim: s.dim as i32,
                    eps: s.eps,
                };
                heads.launch(gpu, rows)?;
                self.fill_cache(index)?;
                let attention = AttentionForward {
                    q: a.q,
                    k: a.k,
                    qkv: a.qkv,
                    start: i.start,
                    y: a.attended,
                    lse: a.lse,
                    step,
                    adapters: self.adapters(layer, O),
                    sizes: self.attention_sizes(layer),
                    ldy: self.ld(O) as i32,
                };
                if self.attention_in_tiles(layer) {
                    attention.launch_tiles(gpu, rows)?;
                } else {
                    attention.launch(gpu, rows, self.parts())?;
                }
                self.adapters_down(layer, O, a.attended)?;
                self.linear(layer, O, a.attended, a.o)?;

                let norm = NormForward {
                    x: a.x,
                    branch: Branch { rows: Some(a.o), weight: Some(n.post_attention), rstd: Some(a.rstd_o) },
                    stream: Some(a.middle),
                    weight: n.pre_feedforward,
                    rstd: a.rstd_middle,
                    y: a.middle_normed,
                    adapters: self.adapters(layer, GATE_UP),
                    ldy: self.ld(GATE_UP) as i32,
                    ..norm
                };
                self.norm(norm)?;
                self.adapters_down(layer, GATE_UP, a.middle_normed)?;
                self.linear(layer, GATE_UP, a.middle_normed, a.gate_up)?;
                let geglu = GegluForward {
                    gate_up: a.gate_up,
                    y: a.gated,
                    step,
                    adapters: self.adapters(layer, DOWN),
                    ldy: self.ld(DOWN) as i32,
                    width: s.inner as i32,
                };
                if self.many() {
                    geglu.launch_many(gpu, rows)?
                } else {
                    geglu.launch(gpu, rows, self.a_block())?
                }
                self.adapters_down(layer, DOWN, a.gated)?;
                self.linear(layer, DOWN, a.gated, a.down)?;

                branch =
                    Branch { rows: Some(a.down), weight: Some(n.post_feedforward), rstd: Some(a.rstd_down) };
                stream = a.middle;
            }
            let a = self.activations;
            let norm = NormForward {
                x: stream,
                branch,
                stream: Some(a.last),
                weight: self.network.final_norm,
                rstd: a.rstd_last,
                y: a.hidden,
                step: None,
                adapters: Adapters::NONE,
                ldy: s.hidden as i32,
                width: s.hidden as i32,
                eps: s.eps,
            };
            self.norm(norm)
        }
    }
}
