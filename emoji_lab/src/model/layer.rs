//! One decoder layer of Gemma 3, forward and backward.

use candle_core::Tensor;
use rayon::prelude::*;

use super::cache::KvCache;
use super::linear::{DropoutKey, Linear, Param};
use super::{Gemma3Config, LayerType};
use crate::error::Result;
use crate::ops::attention::{self, AttentionShape, Segment};
use crate::ops::rope::RopeTable;
use crate::ops::{geglu, rms_norm, rope};

/// The seven linear layers, in the order in which they are numbered.
pub(crate) const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;

/// The six norms, in the order in which they are numbered.
pub(crate) const NORMS: [&str; 6] = [
    "input_layernorm",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
];
const INPUT: usize = 0;
const Q_NORM: usize = 1;
const K_NORM: usize = 2;
const POST_ATTENTION: usize = 3;
const PRE_FEEDFORWARD: usize = 4;
const POST_FEEDFORWARD: usize = 5;

/// One decoder layer.
#[derive(Debug, Clone)]
pub(crate) struct DecoderLayer {
    pub(crate) index: usize,
    pub(crate) layer_type: LayerType,
    pub(crate) linears: [Linear; 7],
    pub(crate) norms: [Param; 6],
}

/// What all layers of one pass share.
pub(crate) struct Pass<'a> {
    pub(crate) config: &'a Gemma3Config,
    pub(crate) segments: &'a [Segment],
    pub(crate) global: &'a RopeTable,
    pub(crate) local: &'a RopeTable,
    pub(crate) dropout: Option<DropoutKey>,
}

impl<'a> Pass<'a> {
    fn rope(&self, layer: LayerType) -> &'a RopeTable {
        match layer {
            LayerType::FullAttention => self.global,
            LayerType::SlidingAttention => self.local,
        }
    }

    fn attention(&self, layer: LayerType) -> AttentionShape<'a> {
        AttentionShape {
            segments: self.segments,
            scale: self.config.query_pre_attn_scalar.powf(-0.5),
            window: match layer {
                LayerType::FullAttention => None,
                LayerType::SlidingAttention => Some(self.config.sliding_window),
            },
        }
    }
}

/// What the backward pass needs of one layer's forward pass.
#[derive(Debug)]
pub(crate) struct LayerTape {
    x: Tensor,
    normed: Tensor,
    q_raw: Tensor,
    k_raw: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    lse: Tensor,
    o: Tensor,
    middle: Tensor,
    middle_normed: Tensor,
    gate: Tensor,
    up: Tensor,
    gated: Tensor,
    down: Tensor,
    rstd: [Tensor; 6],
    us: [Option<Tensor>; 7],
}

impl DecoderLayer {
    fn linear(&self, which: usize, x: &Tensor, pass: &Pass<'_>) -> Result<(Tensor, Option<Tensor>)> {
        self.linears[which].forward(x, self.index * LINEARS.len() + which, pass.dropout)
    }

    fn linear_back(
        &self,
        which: usize,
        dy: &Tensor,
        x: &Tensor,
        tape: &LayerTape,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let index = self.index * LINEARS.len() + which;
        self.linears[which].backward(dy, x, tape.us[which].as_ref(), index, pass.dropout)
    }

    fn norm(&self, which: usize, x: &Tensor, pass: &Pass<'_>) -> Result<(Tensor, Tensor)> {
        Ok(rms_norm::forward(x, &self.norms[which].value, pass.config.rms_norm_eps)?)
    }

    fn norm_back(&self, which: usize, dy: &Tensor, x: &Tensor, tape: &LayerTape) -> Result<Tensor> {
        let norm = &self.norms[which];
        Ok(rms_norm::backward(dy, x, &norm.value, &tape.rstd[which], norm.gradient.as_ref())?)
    }

    /// Normalises every head of `x` `[tokens, heads · head_dim]` for itself.
    fn head_norm(&self, which: usize, x: &Tensor, pass: &Pass<'_>) -> Result<(Tensor, Tensor)> {
        let (tokens, width) = x.dims2()?;
        let dim = pass.config.head_dim;
        let (y, rstd) = self.norm(which, &x.reshape((tokens * width / dim, dim))?, pass)?;
        Ok((y.reshape((tokens, width / dim, dim))?, rstd))
    }

    fn head_norm_back(&self, which: usize, dy: &Tensor, x: &Tensor, tape: &LayerTape) -> Result<Tensor> {
        let (tokens, heads, dim) = dy.dims3()?;
        let rows = (tokens * heads, dim);
        let dx = self.norm_back(which, &dy.reshape(rows)?, &x.reshape(rows)?, tape)?;
        Ok(dx.reshape((tokens, heads * dim))?)
    }

    /// The layer on the residual stream `x` `[tokens, hidden]`.
    ///
    /// With caches, one for each of the pass's segments, new keys and values are put behind those of
    /// earlier tokens. Such a pass has no backward.
    pub(crate) fn forward(
        &self,
        x: Tensor,
        pass: &Pass<'_>,
        caches: Option<&[KvCache]>,
    ) -> Result<(Tensor, LayerTape)> {
        let (normed, input_rstd) = self.norm(INPUT, &x, pass)?;
        let (q_raw, q_u) = self.linear(Q, &normed, pass)?;
        let (k_raw, k_u) = self.linear(K, &normed, pass)?;
        let (v, v_u) = self.linear(V, &normed, pass)?;
        let table = pass.rope(self.layer_type);
        let (q, q_rstd) = self.head_norm(Q_NORM, &q_raw, pass)?;
        let (k, k_rstd) = self.head_norm(K_NORM, &k_raw, pass)?;
        let (q, k) = (rope::forward(&q, table)?, rope::forward(&k, table)?);
        let v = v.reshape(k.shape())?;
        let (attended, lse) = match caches {
            None => attention::forward(&q, &k, &v, &pass.attention(self.layer_type))?,
            Some(caches) => self.attend_to_caches((&q, &k, &v), pass, caches)?,
        };
        let attended = attended.flatten_from(1)?;
        let (o, o_u) = self.linear(O, &attended, pass)?;
        let (o_normed, o_rstd) = self.norm(POST_ATTENTION, &o, pass)?;
        let middle = (&x + o_normed)?;

        let (middle_normed, middle_rstd) = self.norm(PRE_FEEDFORWARD, &middle, pass)?;
        let (gate, gate_u) = self.linear(GATE, &middle_normed, pass)?;
        let (up, up_u) = self.linear(UP, &middle_normed, pass)?;
        let gated = geglu::forward(&gate, &up)?;
        let (down, down_u) = self.linear(DOWN, &gated, pass)?;
        let (down_normed, down_rstd) = self.norm(POST_FEEDFORWARD, &down, pass)?;
        let out = (&middle + down_normed)?;
        let rstd = [input_rstd, q_rstd, k_rstd, o_rstd, middle_rstd, down_rstd];
        let us = [q_u, k_u, v_u, o_u, gate_u, up_u, down_u];
        let tape = LayerTape {
            x,
            normed,
            q_raw,
            k_raw,
            q,
            k,
            v,
            attended,
            lse,
            o,
            middle,
            middle_normed,
            gate,
            up,
            gated,
            down,
            rstd,
            us,
        };
        Ok((out, tape))
    }

    /// Attention of each segment on its own cache, which takes in the segment's keys and values.
    ///
    /// A segment by itself, not all in one tensor: a batch's sequences are of any lengths, and each
    /// cache has the room that its sequence needs.
    fn attend_to_caches(
        &self,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        pass: &Pass<'_>,
        caches: &[KvCache],
    ) -> Result<(Tensor, Tensor)> {
        let attend = |(segment, cache): (&Segment, &KvCache)| {
            let own = |t: &Tensor| t.narrow(0, segment.q_start, segment.q_len);
            let (k, v) = cache.append(self.index, &own(k)?, &own(v)?)?;
            let alone = [Segment { q_start: 0, k_start: 0, ..*segment }];
            let shape = AttentionShape { segments: &alone, ..pass.attention(self.layer_type) };
            attention::forward(&own(q)?, &k, &v, &shape)
        };
        let rows = pass.segments.par_iter().zip(caches);
        let (attended, lse): (Vec<_>, Vec<_>) =
            rows.map(attend).collect::<candle_core::Result<Vec<_>>>()?.into_iter().unzip();
        Ok((Tensor::cat(&attended, 0)?, Tensor::cat(&lse, 0)?))
    }

    /// The gradient for the layer's input, given the one for its output.
    pub(crate) fn backward(&self, d_out: &Tensor, tape: &LayerTape, pass: &Pass<'_>) -> Result<Tensor> {
        let d_down = self.norm_back(POST_FEEDFORWARD, d_out, &tape.down, tape)?;
        let d_gated = self.linear_back(DOWN, &d_down, &tape.gated, tape, pass)?;
        let (d_gate, d_up) = geglu::backward(&d_gated, &tape.gate, &tape.up)?;
        let d_normed = (self.linear_back(GATE, &d_gate, &tape.middle_normed, tape, pass)?
            + self.linear_back(UP, &d_up, &tape.middle_normed, tape, pass)?)?;
        let d_middle = (d_out + self.norm_back(PRE_FEEDFORWARD, &d_normed, &tape.middle, tape)?)?;

        let d_o = self.norm_back(POST_ATTENTION, &d_middle, &tape.o, tape)?;
        let d_attended = self.linear_back(O, &d_o, &tape.attended, tape, pass)?.reshape(tape.q.shape())?;
        let attended = tape.attended.reshape(tape.q.shape())?;
        let (dq, dk, dv) = attention::backward(
            &d_attended,
            (&tape.q, &tape.k, &tape.v),
            (&attended, &tape.lse),
            &pass.attention(self.layer_type),
        )?;
        let table = pass.rope(self.layer_type);
        let dq = self.head_norm_back(Q_NORM, &rope::backward(&dq, table)?, &tape.q_raw, tape)?;
        let dk = self.head_norm_back(K_NORM, &rope::backward(&dk, table)?, &tape.k_raw, tape)?;
        let dv = dv.flatten_from(1)?;
        let d_normed = ((self.linear_back(Q, &dq, &tape.normed, tape, pass)?
            + self.linear_back(K, &dk, &tape.normed, tape, pass)?)?
            + self.linear_back(V, &dv, &tape.normed, tape, pass)?)?;
        Ok((d_middle + self.norm_back(INPUT, &d_normed, &tape.x, tape)?)?)
    }
}
