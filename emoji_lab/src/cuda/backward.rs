//! The backward pass: thirteen launches a layer.

use super::forward::Pass;
use super::gemm::{Out, gemm, matrix};
use super::network::{DOWN, GATE_UP, Layer, O, QKV, ROOMS};
use crate::error::Result;
use crate::ops::attention::cuda::{self as attention, QkNorm};
use crate::ops::lora_linear::cuda::{Adapters, adapter_gradients};
use crate::ops::rms_norm::cuda::{self as rms_norm, Branch};
use crate::ops::{embedding, geglu};

impl Pass<'_> {
    /// A group's gradient `[dx | du] [tokens, ins + tail] = dy · matrix`, f32.
    unsafe fn linear_back(&self, layer: &Layer, group: usize, dy: u64, dx: u64) -> Result<()> {
        let (_, outs) = self.network.sizes.group(group);
        let ld = self.ld(group);
        let weight = matrix(layer.matrices[group], ld);
        let shape = (self.tokens, ld, outs);
        // SAFETY: activations and matrices are laid out for these sizes.
        unsafe { gemm(self.gpu, shape, (matrix(dy, outs), false), (weight, false), matrix(dx, ld), Out::F32) }
    }

    /// Gradients of all adapters, and of the embedding where it is trained, from `d_hidden`.
    ///
    /// # Safety
    /// As [`Self::forward`], which must have run with the same inputs, and [`Self::head`] after it.
    pub(super) unsafe fn backward(&self) -> Result<()> {
        let (gpu, s, i) = (self.gpu, &self.network.sizes, self.inputs);
        let (rows, step) = (self.tokens, i.step);
        let all = &self.activations.layers;
        let d_stream = self.activations.d_stream;
        let shape = (rows, s.hidden);
        let dropout = if self.training { self.network.dropout } else { (0, 1.0) };
        let branch_of = |index: usize| Branch {
            rows: all[index].down,
            weight: self.network.layers[index].norms[5],
            rstd: all[index].rstd_down,
            stream: 0,
        };
        let a = self.activations;
        let last = self.network.layers.len() - 1;
        // SAFETY: the caller's; all pointers are to buffers laid out for `tokens` rows.
        unsafe {
            let from = (a.d_hidden, s.hidden);
            let stream = (a.last, self.network.final_norm, a.rstd_last);
            let none = Adapters::default();
            rms_norm::backward(
                gpu,
                from,
                none,
                step,
                stream,
                (0, d_stream),
                branch_of(last),
                a.gradients_of(last).d_down,
                shape,
            )?;
            // The forward pass left the last layers' matrices where they are.
            let mut unpacked = None;
            let mut above = None;
            for (index, layer) in self.network.layers.iter().enumerate().rev() {
                let (a, g) = (&all[index], self.activations.gradients_of(index));
                let [n_input, n_q, n_k, n_o, n_middle, _] = layer.norms;
                self.wait_for(unpacked.as_ref())?;
                unpacked = match index.checked_sub(1) {
                    Some(below) if below + ROOMS < all.len() => self.unpack(below)?,
                    _ => None,
                };
                self.linear_back(layer, DOWN, g.d_down, g.d_gated)?;
                let (from, adapters) = ((g.d_gated, self.ld(DOWN)), self.adapters(layer, DOWN));
                geglu::cuda::backward(gpu, from, adapters, step, a.gate_up, g.d_gate_up, (rows, s.inner))?;
                self.linear_back(layer, GATE_UP, g.d_gate_up, g.d_middle_normed)?;
                let (from, adapters) = ((g.d_middle_normed, self.ld(GATE_UP)), self.adapters(layer, GATE_UP));
                let stream = (a.middle, n_middle, a.rstd_middle);
                let branch = Branch { rows: a.o, weight: n_o, rstd: a.rstd_o, stream: 0 };
                rms_norm::backward(
                    gpu,
                    from,
                    adapters,
                    step,
                    stream,
                    (d_stream, g.d_middle),
                    branch,
                    g.d_o,
                    shape,
                )?;

                self.linear_back(layer, O, g.d_o, g.d_attended)?;
                let sizes = self.attention_sizes(index);
                let y = (a.attended, self.ld(O));
                attention::delta(gpu, g.d_attended, y, self.adapters(layer, O), step, g.delta, sizes, rows)?;
                let norm = QkNorm {
                    w_q: n_q,
                    w_k: n_k,
                    rstd: a.rstd_qk,
                    cos: layer.cos,
                    sin: layer.sin,
                    positions: i.positions,
                };
                let (d_y, kept, ends) = ((g.d_attended, self.ld(O)), (a.lse, g.delta), (i.start, i.end));
                attention::backward(gpu, d_y, self.heads(index), kept, ends, norm, g.d_qkv, sizes, rows)?;
                self.linear_back(layer, QKV, g.d_qkv, g.d_normed)?;
                // The layer below writes where the one above did.
                self.wait_for(above.as_ref())?;
                if layer.adapter_count > 0 {
                    let beside = gpu.fork()?;
                    let table = (layer.adapter_gradients, layer.adapter_count, layer.gradient_tiles);
                    adapter_gradients(&beside, table, s.rank, step, rows, dropout)?;
                    above = Some(gpu.mark()?);
                }
                let (from, adapters) = ((g.d_normed, self.ld(QKV)), self.adapters(layer, QKV));
                let stream = (a.x, n_input, a.rstd_input);
                let (below, d_below) = match index.checked_sub(1) {
                    Some(below) => (branch_of(below), self.activations.gradients_of(below).d_down),
                    None => (Branch::default(), 0),
                };
                rms_norm::backward(
                    gpu,
                    from,
                    adapters,
                    step,
                    stream,
                    (g.d_middle, d_stream),
                    below,
                    d_below,
                    shape,
                )?;
            }
            self.wait_for(above.as_ref())?;
            let tied = self.network.table.d_lookup == self.network.table.d_head;
            match self.network.table.d_lookup.map(|table| (table, !tied || !gpu.bf16())) {
                Some(table) => {
                    let ids = (i.ids, i.order, i.runs);
                    embedding::cuda::backward(gpu, table, ids, d_stream, shape, s.embedding_scale)
                }
                None => Ok(()),
            }
        }
    }
}
