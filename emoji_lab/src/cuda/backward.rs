//! The backward pass: thirteen launches a layer.

use super::forward::Pass;
use super::network::{DOWN, GATE_UP, Layer, Network, O, QKV, SHARED};
use crate::error::Result;
use crate::gpu::gemm::{Out, gemm, matrix};
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::ops::attention::cuda::{AttentionBackward, AttentionDelta};
use crate::ops::embedding::cuda::{LookupGradient, TableGradient};
use crate::ops::geglu::cuda::GegluBackward;
use crate::ops::lora_linear::cuda::{AdapterGradients, Adapters, DropoutFactors};
use crate::ops::rms_norm::cuda::{Branch, NormBackward};

impl Pass<'_> {
    /// A group's gradient `[dx | du] [tokens, ins + tail] = dy · matrix`.
    unsafe fn linear_back(
        &self,
        layer: &Layer,
        group: usize,
        dy: DevicePtr<Compute>,
        dx: DevicePtr<f32>,
    ) -> Result<()> {
        let (_, outs) = self.network.sizes.group(group);
        let ld = self.ld(group);
        let (shape, weight) = ((self.tokens, ld, outs), matrix(layer.matrices[group], ld));
        // SAFETY: activations and matrices are laid out for these sizes.
        unsafe { gemm(self.gpu, shape, matrix(dy, outs), weight, Out::F32(matrix(dx, ld))) }
    }

    /// What layer `index` adds to the stream in the end, as it joined it.
    fn branch(&self, index: usize) -> Branch {
        let (a, n) = (&self.activations.layers[index], &self.network.layers[index].norms);
        Branch { rows: Some(a.down), weight: Some(n.post_feedforward), rstd: Some(a.rstd_down) }
    }

    /// Where the gradient of the rows that are looked up is added, where they are trained.
    pub(super) fn d_table(network: &Network) -> Option<TableGradient> {
        let rows_alone = network.trained_rows.as_ref().map(|rows| TableGradient::F32(rows.gradients));
        network.vocabulary.d_lookup.or(rows_alone)
    }

    /// Gradients of all adapters, and of the embedding where it is trained, from `d_hidden`.
    ///
    /// # Safety
    /// As [`Self::forward`], which must have run with the same inputs, and [`Self::head`] after it.
    pub(super) unsafe fn backward(&self) -> Result<()> {
        let (s, i) = (&self.network.sizes, self.inputs);
        // SAFETY: the caller's.
        unsafe { self.layers_back()? };
        let Some(d_table) = Self::d_table(self.network) else { return Ok(()) };
        let gradient = LookupGradient {
            d_table,
            ids: i.rows,
            order: i.order,
            runs: i.runs,
            dx: self.activations.d_stream,
            width: s.hidden,
            scale: s.embedding_scale,
        };
        // SAFETY: the caller's.
        unsafe { gradient.launch(self.gpu, self.tokens) }
    }

    /// The same without the rows that are looked up: their vectors' gradient is left in `d_stream`.
    ///
    /// # Safety
    /// As [`Self::backward`].
    pub(super) unsafe fn layers_back(&self) -> Result<()> {
        let (gpu, s, i) = (self.gpu, &self.network.sizes, self.inputs);
        let (rows, step) = (self.tokens, i.step);
        let all = &self.activations.layers;
        let d_stream = self.activations.d_stream;
        let dropout = if self.training { self.network.dropout } else { DropoutFactors::NONE };
        let last = self.network.layers.len() - 1;
        let a = self.activations;
        let norm = NormBackward {
            dy: a.d_hidden,
            x: a.last,
            weight: self.network.final_norm,
            rstd: a.rstd_last,
            d_in: None,
            d_out: d_stream,
            branch: self.branch(last),
            d_branch: Some(a.gradients_of(last).d_down),
            step: None,
            adapters: Adapters::NONE,
            ldy: s.hidden as i32,
            width: s.hidden as i32,
        };
        // SAFETY: the caller's; all pointers are to buffers laid out for `tokens` rows.
        unsafe {
            norm.launch(gpu, rows)?;
            // The forward pass left the last layers' matrices where they are.
            let mut unpacked = None;
            let mut above = None;
            for (index, layer) in self.network.layers.iter().enumerate().rev() {
                let (a, g, n) = (&all[index], self.activations.gradients_of(index), &layer.norms);
                self.wait_for(unpacked.as_ref())?;
                unpacked = match index.checked_sub(1) {
                    Some(below) if below + SHARED < all.len() => self.unpack(below)?,
                    _ => None,
                };
                self.linear_back(layer, DOWN, g.d_down, g.d_gated)?;
                let geglu = GegluBackward {
                    dy: g.d_gated,
                    gate_up: a.gate_up,
                    d_gate_up: g.d_gate_up,
                    step,
                    adapters: self.adapters(layer, DOWN),
                    ldy: self.ld(DOWN) as i32,
                    width: s.inner as i32,
                };
                geglu.launch(gpu, rows)?;
                self.linear_back(layer, GATE_UP, g.d_gate_up, g.d_middle_normed)?;
                let norm = NormBackward {
                    dy: g.d_middle_normed,
                    x: a.middle,
                    weight: n.pre_feedforward,
                    rstd: a.rstd_middle,
                    d_in: Some(d_stream),
                    d_out: g.d_middle,
                    branch: Branch { rows: Some(a.o), weight: Some(n.post_attention), rstd: Some(a.rstd_o) },
                    d_branch: Some(g.d_o),
                    step: Some(step),
                    adapters: self.adapters(layer, GATE_UP),
                    ldy: self.ld(GATE_UP) as i32,
                    width: s.hidden as i32,
                };
                norm.launch(gpu, rows)?;

                self.linear_back(layer, O, g.d_o, g.d_attended)?;
                let delta = AttentionDelta {
                    d_y: g.d_attended,
                    y: a.attended,
                    delta: g.delta,
                    step,
                    adapters: self.adapters(layer, O),
                    sizes: self.attention_sizes(layer),
                    ldy: self.ld(O) as i32,
                };
                delta.launch(gpu, rows)?;
                let attention = AttentionBackward {
                    d_y: g.d_attended,
                    q: a.q,
                    k: a.k,
                    qkv: a.qkv,
                    lse: a.lse,
                    delta: g.delta,
                    start: i.start,
                    end: i.end,
                    weight_q: n.q,
                    weight_k: n.k,
                    rstd: a.rstd_qk,
                    cos: layer.angles.cos,
                    sin: layer.angles.sin,
                    positions: i.positions,
                    d_qkv: g.d_qkv,
                    sizes: self.attention_sizes(layer),
                    ldy: self.ld(O) as i32,
                };
                attention.launch(gpu, rows)?;
                self.linear_back(layer, QKV, g.d_qkv, g.d_normed)?;
                // The layer below writes where the one above did.
                self.wait_for(above.as_ref())?;
                if let Some(table) = self.network.gradient_tables.get(index).filter(|t| t.count > 0) {
                    let beside = gpu.fork()?;
                    let gradients = AdapterGradients {
                        adapters: table.adapters.ptr(),
                        step,
                        count: table.count as i32,
                        tokens: rows as i32,
                        dropout,
                    };
                    gradients.launch(&beside, table.tiles, s.rank)?;
                    above = Some(gpu.record_event()?);
                }
                let below = index.checked_sub(1);
                let norm = NormBackward {
                    dy: g.d_normed,
                    x: a.x,
                    weight: n.input,
                    rstd: a.rstd_input,
                    d_in: Some(g.d_middle),
                    d_out: d_stream,
                    branch: below.map_or(Branch::NONE, |below| self.branch(below)),
                    d_branch: below.map(|below| self.activations.gradients_of(below).d_down),
                    adapters: self.adapters(layer, QKV),
                    ldy: self.ld(QKV) as i32,
                    ..norm
                };
                norm.launch(gpu, rows)?;
            }
            self.wait_for(above.as_ref())
        }
    }
}
