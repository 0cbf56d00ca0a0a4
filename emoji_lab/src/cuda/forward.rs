//! The forward pass: eleven launches a layer.

use cudarc::driver::CudaEvent;

use super::Gpu;
use super::activations::Activations;
use super::decode::Caches;
use super::gemm::{Out, gemm, matrix};
use super::network::{DOWN, GATE_UP, Layer, Network, O, QKV};
use super::step::Inputs;
use crate::error::Result;
use crate::ops::attention::cuda::{self as attention, AttentionSizes};
use crate::ops::geglu;
use crate::ops::lora_linear::cuda::{Adapters, unpack_weights};
use crate::ops::rms_norm::cuda::{self as rms_norm, Branch};
use crate::ops::rope::cuda::{Heads, qk_norm_rope};

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
    /// Where keys and values are kept for generation.
    pub(super) caches: Option<&'a Caches>,
}

impl Pass<'_> {
    pub(super) fn adapters(&self, layer: &Layer, group: usize) -> Adapters {
        let adapters = layer.adapters[group];
        if self.training { adapters } else { adapters.without_dropout() }
    }

    /// Distance of a group's input rows, adapters' u included.
    pub(super) fn ld(&self, group: usize) -> usize {
        self.network.sizes.group(group).0 + self.network.sizes.tails[group]
    }

    pub(super) fn heads(&self, index: usize) -> Heads {
        let (s, a) = (&self.network.sizes, &self.activations.layers[index]);
        let (heads, kv_heads, dim) = (s.heads, s.kv_heads, s.dim);
        Heads { qkv: a.qkv, q: a.q, k: a.k, rstd: a.rstd_qk, heads, kv_heads, dim }
    }

    pub(super) fn attention_sizes(&self, index: usize) -> AttentionSizes {
        let layer = &self.network.layers[index];
        AttentionSizes::new(&self.heads(index), layer.window, self.network.sizes.scale)
    }

    /// Begins to put layer `index`'s matrices together, beside what is on its way. What comes back is
    /// to be waited for before they are used. `None` where there is nothing to do.
    ///
    /// # Safety
    /// As [`Self::forward`]; what read the layer's room must have been asked for before.
    pub(super) unsafe fn unpack(&self, index: usize) -> Result<Option<CudaEvent>> {
        let Some(layer) = self.network.layers.get(index).filter(|_| self.network.unpacks) else {
            return Ok(None);
        };
        let beside = self.gpu.fork()?;
        // SAFETY: seven layers, as the network wrote them.
        unsafe { unpack_weights(&beside, layer.unpack, 7, self.network.unpack_units)? };
        Ok(Some(self.gpu.mark()?))
    }

    /// Has what follows wait for a mark of the side stream.
    pub(super) fn wait_for(&self, mark: Option<&CudaEvent>) -> Result<()> {
        mark.map_or(Ok(()), |mark| self.gpu.wait_for(mark))
    }

    /// A group's product: `y [tokens, outs] = x · matrixᵀ`.
    unsafe fn linear(&self, layer: &Layer, group: usize, x: u64, y: u64) -> Result<()> {
        let (_, outs) = self.network.sizes.group(group);
        let ld = self.ld(group);
        let weight = matrix(layer.matrices[group], ld);
        let shape = (self.tokens, outs, ld);
        // SAFETY: activations and matrices are laid out for these sizes.
        unsafe {
            gemm(self.gpu, shape, (matrix(x, ld), false), (weight, true), matrix(y, outs), Out::Compute)
        }
    }

    /// All layers, up to the last hidden states after the final norm.
    ///
    /// # Safety
    /// The inputs on the card must be a batch of at most `tokens` tokens of this vocabulary, with
    /// positions the network has angles for.
    pub(super) unsafe fn forward(&self) -> Result<()> {
        let (gpu, s, i) = (self.gpu, &self.network.sizes, self.inputs);
        let (rows, step) = (self.tokens, i.step);
        let table = &self.network.table;
        let all = &self.activations.layers;
        // SAFETY: the caller's; all pointers are to buffers laid out for `tokens` rows.
        unsafe {
            table.lookup.rows(gpu, i.ids, all[0].x, (rows, s.hidden), s.embedding_scale)?;
            let mut branch = Branch::default();
            let mut stream = all[0].x;
            let mut unpacked = self.unpack(0)?;
            for (index, layer) in self.network.layers.iter().enumerate() {
                let a = &all[index];
                let [n_input, n_q, n_k, n_o, n_middle, n_down] = layer.norms;
                let next = self.unpack(index + 1)?;
                branch.stream = a.x;
                let input = (n_input, a.rstd_input);
                let to = (a.normed, self.ld(QKV));
                let adapters = self.adapters(layer, QKV);
                rms_norm::forward(gpu, stream, branch, input, to, adapters, step, (rows, s.hidden), s.eps)?;
                self.wait_for(unpacked.as_ref())?;
                unpacked = next;
                self.linear(layer, QKV, a.normed, a.qkv)?;

                let (h, angles) = (self.heads(index), (layer.cos, layer.sin));
                qk_norm_rope(gpu, h, (n_q, n_k), angles, i.positions, rows, s.eps)?;
                self.fill_cache(index)?;
                let (to, adapters) = ((a.attended, self.ld(O)), self.adapters(layer, O));
                attention::forward(
                    gpu,
                    h,
                    i.start,
                    to,
                    a.lse,
                    adapters,
                    step,
                    self.attention_sizes(index),
                    rows,
                )?;
                self.linear(layer, O, a.attended, a.o)?;

                branch = Branch { rows: a.o, weight: n_o, rstd: a.rstd_o, stream: a.middle };
                let (middle, to) = ((n_middle, a.rstd_middle), (a.middle_normed, self.ld(GATE_UP)));
                let adapters = self.adapters(layer, GATE_UP);
                rms_norm::forward(gpu, a.x, branch, middle, to, adapters, step, (rows, s.hidden), s.eps)?;
                self.linear(layer, GATE_UP, a.middle_normed, a.gate_up)?;
                let (to, adapters) = ((a.gated, self.ld(DOWN)), self.adapters(layer, DOWN));
                geglu::cuda::forward(gpu, a.gate_up, to, adapters, step, (rows, s.inner))?;
                self.linear(layer, DOWN, a.gated, a.down)?;

                branch = Branch { rows: a.down, weight: n_down, rstd: a.rstd_down, stream: 0 };
                stream = a.middle;
            }
            branch.stream = self.activations.last;
            let last = (self.network.final_norm, self.activations.rstd_last);
            let to = (self.activations.hidden, s.hidden);
            let none = Adapters::default();
            rms_norm::forward(gpu, stream, branch, last, to, none, step, (rows, s.hidden), s.eps)
        }
    }
}
