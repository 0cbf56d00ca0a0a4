//! The backward pass: nine launches a layer and two beside them; seven more where the layer itself is trained.

use cudarc::driver::CudaEvent;

use super::arena::{DeviceArena, GradientPtr};
use super::forward::Pass;
use super::network::{DOWN, GATE_UP, Layer, Network, O, QKV, SHARED};
use crate::error::Result;
use crate::gpu::gemm::{Out, gemm, matrix};
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::model::NormName;
use crate::ops::attention::cuda::{AttentionBackward, AttentionDelta};
use crate::ops::embedding::cuda::{LookupGradient, TableGradient};
use crate::ops::geglu::cuda::GegluBackward;
use crate::ops::lora_linear::cuda::{AdapterGradients, Adapters, AdaptersBack, DropoutFactors};
use crate::ops::rms_norm::cuda::{Branch, NormBackward, NormWeights, WeightSum};

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
        unsafe {
            gemm(self.gpu, shape, matrix(dy, outs), weight, Out::F32(matrix(dx, ld)))?;
            self.adapters_back(layer, group, dx)
        }
    }

    /// Adds what flows back through a group's adapters to `dx`, where that is a launch of its own.
    unsafe fn adapters_back(&self, layer: &Layer, group: usize, dx: DevicePtr<f32>) -> Result<()> {
        let Some(adapters) = self.tiled(layer, group) else { return Ok(()) };
        let (step, tokens) = (Some(self.inputs.step), self.tokens as i32);
        let (ld, width) = (self.ld(group) as i32, self.network.sizes.group(group).0 as i32);
        // SAFETY: activations are laid out for these sizes.
        unsafe { AdaptersBack { dx, step, adapters, tokens, ld, width }.launch(self.gpu) }
    }

    unsafe fn norm_back(&self, norm: NormBackward) -> Result<()> {
        let (gpu, tokens) = (self.gpu, self.tokens);
        // SAFETY: the caller's.
        unsafe {
            if self.many() {
                norm.launch_many(gpu, tokens)
            } else {
                norm.launch_some(gpu, tokens, self.a_block())
            }
        }
    }

    /// The gradient of a group's matrix, where it is trained: `dyᵀ · x`, over what is there if `first`, else
    /// added.
    unsafe fn matrix_gradient(
        &self,
        layer: &Layer,
        group: usize,
        dy: DevicePtr<Compute>,
        x: DevicePtr<Compute>,
        first: bool,
    ) -> Result<()> {
        let (Some(trained), Some(arena)) = (layer.trained, self.arena) else { return Ok(()) };
        let ((ins, outs), ld) = (self.network.sizes.group(group), self.ld(group));
        let Some(to) = arena.any_gradient(trained.matrices[group]) else { return Ok(()) };
        let out = to.out(ins, first);
        // SAFETY: activations and gradients are laid out for these sizes.
        unsafe { gemm(self.gpu, (outs, ins, self.tokens), matrix(dy, outs).transposed(), matrix(x, ld), out) }
    }

    /// The gradient of the weight of a norm that begins at `offset` in the arena, over rows of `width`.
    fn weight_sum(&self, offset: Option<usize>, dy: DevicePtr<f32>, width: usize) -> WeightSum {
        let dw = offset.zip(self.arena).map(|(offset, arena)| arena.gradient_ptr(offset));
        WeightSum { dy, x: None, branch: None, rstd: None, dw, rows: self.tokens as i32, ld: width as i32 }
    }

    /// The gradients of the weights of the norm that `norm` went back through and of its branch's, which begin
    /// at these places in the arena, where they are trained.
    unsafe fn norm_gradients(
        &self,
        norm: &NormBackward,
        weight: Option<usize>,
        branch: Option<usize>,
    ) -> Result<()> {
        if weight.is_none() && branch.is_none() {
            return Ok(());
        }
        let width = norm.width as usize;
        let own = WeightSum {
            x: Some(norm.x),
            rstd: Some(norm.rstd),
            ld: norm.ldy,
            ..self.weight_sum(weight, norm.dy, width)
        };
        let of_branch = WeightSum {
            branch: norm.branch.rows,
            rstd: norm.branch.rstd,
            ..self.weight_sum(branch, norm.d_out, width)
        };
        let of = [own, if norm.branch.rows.is_some() { of_branch } else { WeightSum::NONE }];
        // SAFETY: as the norm's own.
        unsafe { NormWeights { of, step: self.inputs.step, width: norm.width }.launch(self.gpu) }
    }

    /// What layer `index` adds to the stream in the end, as it joined it.
    fn branch(&self, index: usize) -> Branch {
        let (a, n) = (&self.activations.layers[index], &self.network.layers[index].norms);
        Branch { rows: Some(a.down), weight: Some(n.post_feedforward), rstd: Some(a.rstd_down) }
    }

    /// Where the gradient of the rows that are looked up is added, where they are trained and it is kept.
    pub(super) fn d_table(network: &Network, arena: Option<&DeviceArena>) -> Option<TableGradient> {
        let rows_alone = network.trained_rows.as_ref().map(|rows| TableGradient::F32(rows.gradients));
        let whole_table = network.vocabulary.trained_lookup.zip(arena);
        match whole_table {
            Some((offset, arena)) => arena.any_gradient(offset).map(GradientPtr::of_table),
            None => rows_alone,
        }
    }

    /// Gradients of all that is trained, from `d_hidden`; those of matrices over what is there if `first`, else
    /// added.
    ///
    /// # Safety
    /// As [`Self::forward`], which must have run with the same inputs, and [`Self::head`] after it.
    pub(super) unsafe fn backward(&self, first: bool) -> Result<()> {
        let (s, i) = (&self.network.sizes, self.inputs);
        // SAFETY: the caller's.
        unsafe { self.layers_back(first)? };
        if let Some(partials) = self.head_norm {
            // SAFETY: the caller's.
            unsafe { self.end_head_norm(partials)? };
        }
        let Some(d_table) = Self::d_table(self.network, self.arena) else { return Ok(()) };
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
    pub(super) unsafe fn layers_back(&self, first: bool) -> Result<()> {
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
            self.norm_back(norm)?;
            let post_feedforward = |index: usize| {
                let trained = self.network.layers[index].trained;
                trained.map(|trained| trained.norm(NormName::PostFeedforwardLayernorm))
            };
            self.norm_gradients(&norm, self.network.trained_final_norm, post_feedforward(last))?;
            // The forward pass left the last layers' matrices where they are.
            let mut unpacked = None;
            let mut lowest = None;
            for (index, layer) in self.network.layers.iter().enumerate().rev() {
                let (a, g, n) = (&all[index], self.activations.gradients_of(index), &layer.norms);
                self.wait_for(unpacked.as_ref())?;
                let trained = |which: NormName| layer.trained.map(|trained| trained.norm(which));
                self.linear_back(layer, DOWN, g.d_down, g.d_gated)?;
                self.matrix_gradient(layer, DOWN, g.d_down, a.gated, first)?;
                let geglu = GegluBackward {
                    dy: g.d_gated,
                    gate_up: a.gate_up,
                    d_gate_up: g.d_gate_up,
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
                self.linear_back(layer, GATE_UP, g.d_gate_up, g.d_middle_normed)?;
                self.matrix_gradient(layer, GATE_UP, g.d_gate_up, a.middle_normed, first)?;
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
                self.norm_back(norm)?;
                let (own, of_branch) = (NormName::PreFeedforwardLayernorm, NormName::PostAttentionLayernorm);
                self.norm_gradients(&norm, trained(own), trained(of_branch))?;

                self.linear_back(layer, O, g.d_o, g.d_attended)?;
                self.matrix_gradient(layer, O, g.d_o, a.attended, first)?;
                // Beside attention, as in the forward pass: the adapters of the layer above, and the next matrices.
                let above = self.adapter_gradients(index + 1, dropout)?;
                unpacked = match index.checked_sub(1) {
                    Some(below) if below + SHARED < all.len() => self.unpack(below)?,
                    _ => None,
                };
                let delta = AttentionDelta {
                    d_y: g.d_attended,
                    y: a.attended,
                    delta: g.delta,
                    step,
                    adapters: self.adapters(layer, O),
                    sizes: self.attention_sizes(layer),
                    ldy: self.ld(O) as i32,
                };
                let in_tiles = self.attention_in_tiles(layer);
                if !in_tiles {
                    delta.launch(gpu, rows, self.parts())?;
                }
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
                    terms_q: layer.trained.map(|_| self.activations.terms_q),
                    terms_k: layer.trained.map(|_| self.activations.terms_k),
                    y: a.attended,
                    sizes: self.attention_sizes(layer),
                    ldy: self.ld(O) as i32,
                };
                if in_tiles {
                    attention.launch_tiles(gpu, rows)?;
                } else {
                    attention.launch(gpu, rows, self.parts())?;
                }
                if layer.trained.is_some() {
                    let sum = |which, terms, heads: usize| WeightSum {
                        rows: (rows * heads) as i32,
                        ..self.weight_sum(trained(which), terms, s.dim)
                    };
                    let q = sum(NormName::QNorm, self.activations.terms_q, s.heads);
                    let k = sum(NormName::KNorm, self.activations.terms_k, s.kv_heads);
                    NormWeights { of: [q, k], step, width: s.dim as i32 }.launch(gpu)?;
                }
                self.linear_back(layer, QKV, g.d_qkv, g.d_normed)?;
                self.matrix_gradient(layer, QKV, g.d_qkv, a.normed, first)?;
                // The layer below writes where the one above did.
                self.wait_for(above.as_ref())?;
                if index == 0 {
                    lowest = self.adapter_gradients(0, dropout)?;
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
                self.norm_back(norm)?;
                let of_branch = below.and_then(post_feedforward);
                self.norm_gradients(&norm, trained(NormName::InputLayernorm), of_branch)?;
            }
            self.wait_for(lowest.as_ref())
        }
    }

    /// Begins to make the gradients of layer `index`'s adapters, beside what is on its way. What comes back is to be
    /// waited for before what they are made of is written again. `None` where there is nothing to do.
    ///
    /// # Safety
    /// As [`Self::layers_back`]; all of the layer must have been sent.
    unsafe fn adapter_gradients(&self, index: usize, dropout: DropoutFactors) -> Result<Option<CudaEvent>> {
        let Some(table) = self.network.gradient_tables.get(index).filter(|t| t.count > 0) else {
            return Ok(None);
        };
        let beside = self.gpu.fork()?;
        let gradients = AdapterGradients {
            adapters: table.adapters.ptr(),
            step: self.inputs.step,
            count: table.count as i32,
            tokens: self.tokens as i32,
            dropout,
        };
        // SAFETY: the caller's.
        unsafe { gradients.launch(&beside, table.tiles, self.network.sizes.rank, self.many())? };
        Ok(Some(self.gpu.record_event()?))
    }
}
