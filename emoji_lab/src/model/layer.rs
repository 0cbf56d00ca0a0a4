//! One decoder layer of Gemma 3, forward and backward.

use candle_core::Tensor;
use rayon::prelude::*;

use super::cache::KvCache;
use super::linear::{DropoutKey, Linear, Param};
use super::norm::RmsNorm;
use super::parameters::{LinearName, NormName, Parameter};
use super::stored::StoredWeights;
use super::{Gemma3Config, LayerType, Weights};
use crate::error::Result;
use crate::ops::attention::{self, AttentionShape, Segment};
use crate::ops::rope::RopeTable;
use crate::ops::{geglu, residual, rope};

/// One decoder layer.
#[derive(Debug, Clone)]
pub(crate) struct DecoderLayer {
    pub(crate) index: usize,
    pub(crate) layer_type: LayerType,
    pub(crate) input_layernorm: RmsNorm,
    pub(crate) q_proj: Linear,
    pub(crate) k_proj: Linear,
    pub(crate) v_proj: Linear,
    pub(crate) q_norm: RmsNorm,
    pub(crate) k_norm: RmsNorm,
    pub(crate) o_proj: Linear,
    pub(crate) post_attention_layernorm: RmsNorm,
    pub(crate) pre_feedforward_layernorm: RmsNorm,
    pub(crate) gate_proj: Linear,
    pub(crate) up_proj: Linear,
    pub(crate) down_proj: Linear,
    pub(crate) post_feedforward_layernorm: RmsNorm,
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

/// What the backward pass needs of one layer's forward pass: each linear layer's input, and the `u` of its
/// adapter; each norm's input, and its `rstd`.
#[derive(Debug)]
pub(crate) struct LayerTape {
    x: Tensor,
    x_rstd: Tensor,
    normed: Tensor,
    q_raw: Tensor,
    q_u: Option<Tensor>,
    q_rstd: Tensor,
    q: Tensor,
    k_raw: Tensor,
    k_u: Option<Tensor>,
    k_rstd: Tensor,
    k: Tensor,
    v: Tensor,
    v_u: Option<Tensor>,
    attended: Tensor,
    lse: Tensor,
    o: Tensor,
    o_u: Option<Tensor>,
    o_rstd: Tensor,
    middle: Tensor,
    middle_rstd: Tensor,
    middle_normed: Tensor,
    gate: Tensor,
    gate_u: Option<Tensor>,
    up: Tensor,
    up_u: Option<Tensor>,
    gated: Tensor,
    down: Tensor,
    down_u: Option<Tensor>,
    down_rstd: Tensor,
}

impl DecoderLayer {
    /// Layer `index` of the model of `config`, frozen.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) that names the first tensor which is missing or has another shape.
    pub(super) fn new(
        index: usize,
        layer_type: LayerType,
        config: &Gemma3Config,
        weights: &Weights,
    ) -> Result<Self> {
        let get = |parameter: Parameter| weights.get(&parameter.name(), &parameter.shape(config, 0));
        let linear = |which: LinearName| -> Result<Linear> {
            Ok(Linear::frozen(get(Parameter::Linear(index, which))?, which.number(index)))
        };
        let norm = |which: NormName| -> Result<RmsNorm> {
            let weight = Param::frozen(get(Parameter::Norm(index, which))?);
            Ok(RmsNorm { weight, eps: config.rms_norm_eps })
        };
        Ok(Self {
            index,
            layer_type,
            q_proj: linear(LinearName::QProj)?,
            k_proj: linear(LinearName::KProj)?,
            v_proj: linear(LinearName::VProj)?,
            o_proj: linear(LinearName::OProj)?,
            gate_proj: linear(LinearName::GateProj)?,
            up_proj: linear(LinearName::UpProj)?,
            down_proj: linear(LinearName::DownProj)?,
            input_layernorm: norm(NormName::InputLayernorm)?,
            q_norm: norm(NormName::QNorm)?,
            k_norm: norm(NormName::KNorm)?,
            post_attention_layernorm: norm(NormName::PostAttentionLayernorm)?,
            pre_feedforward_layernorm: norm(NormName::PreFeedforwardLayernorm)?,
            post_feedforward_layernorm: norm(NormName::PostFeedforwardLayernorm)?,
        })
    }

    /// The linear layers, in the order of [`LinearName::ALL`].
    pub(crate) fn linears(&self) -> [(LinearName, &Linear); 7] {
        LinearName::ALL.map(|which| (which, self.linear(which)))
    }

    /// One of the linear layers.
    pub(crate) fn linear(&self, which: LinearName) -> &Linear {
        match which {
            LinearName::QProj => &self.q_proj,
            LinearName::KProj => &self.k_proj,
            LinearName::VProj => &self.v_proj,
            LinearName::OProj => &self.o_proj,
            LinearName::GateProj => &self.gate_proj,
            LinearName::UpProj => &self.up_proj,
            LinearName::DownProj => &self.down_proj,
        }
    }

    /// The linear layers, to be changed, in the order of [`LinearName::ALL`].
    pub(crate) fn linears_mut(&mut self) -> [(LinearName, &mut Linear); 7] {
        [
            (LinearName::QProj, &mut self.q_proj),
            (LinearName::KProj, &mut self.k_proj),
            (LinearName::VProj, &mut self.v_proj),
            (LinearName::OProj, &mut self.o_proj),
            (LinearName::GateProj, &mut self.gate_proj),
            (LinearName::UpProj, &mut self.up_proj),
            (LinearName::DownProj, &mut self.down_proj),
        ]
    }

    /// The norms, in the order of [`NormName::ALL`].
    pub(crate) fn norms(&self) -> [(NormName, &RmsNorm); 6] {
        [
            (NormName::InputLayernorm, &self.input_layernorm),
            (NormName::QNorm, &self.q_norm),
            (NormName::KNorm, &self.k_norm),
            (NormName::PostAttentionLayernorm, &self.post_attention_layernorm),
            (NormName::PreFeedforwardLayernorm, &self.pre_feedforward_layernorm),
            (NormName::PostFeedforwardLayernorm, &self.post_feedforward_layernorm),
        ]
    }

    /// The norms, to be changed, in the order of [`NormName::ALL`].
    pub(crate) fn norms_mut(&mut self) -> [(NormName, &mut RmsNorm); 6] {
        [
            (NormName::InputLayernorm, &mut self.input_layernorm),
            (NormName::QNorm, &mut self.q_norm),
            (NormName::KNorm, &mut self.k_norm),
            (NormName::PostAttentionLayernorm, &mut self.post_attention_layernorm),
            (NormName::PreFeedforwardLayernorm, &mut self.pre_feedforward_layernorm),
            (NormName::PostFeedforwardLayernorm, &mut self.post_feedforward_layernorm),
        ]
    }

    /// The layer on the residual stream `x` `[tokens, hidden]`.
    ///
    /// With caches, one for each of the pass's segments, new keys and values are put after those of
    /// earlier tokens, and weights are read as they are stored. Such a pass has no backward.
    pub(crate) fn forward(
        &self,
        x: Tensor,
        pass: &Pass<'_>,
        caches: Option<(&[KvCache], &StoredWeights)>,
    ) -> Result<(Tensor, LayerTape)> {
        // With caches a token's numbers do not depend on which others are computed beside it.
        let linear = |layer: &Linear, x: &Tensor| match caches {
            None => layer.forward(x, pass.dropout),
            Some((_, stored)) => Ok((layer.decode(x, stored)?, None)),
        };
        let (normed, x_rstd) = self.input_layernorm.forward(&x)?;
        let (q_raw, q_u) = linear(&self.q_proj, &normed)?;
        let (k_raw, k_u) = linear(&self.k_proj, &normed)?;
        let (v, v_u) = linear(&self.v_proj, &normed)?;
        let table = pass.rope(self.layer_type);
        let (q, q_rstd) = self.q_norm.forward_heads(&q_raw)?;
        let (k, k_rstd) = self.k_norm.forward_heads(&k_raw)?;
        let (q, k) = (rope::forward(&q, table)?, rope::forward(&k, table)?);
        let v = v.reshape(k.shape())?;
        let (attended, lse) = match caches {
            None => attention::forward(&q, &k, &v, &pass.attention(self.layer_type))?,
            Some((caches, _)) => self.attend_to_caches((&q, &k, &v), pass, caches)?,
        };
        let attended = attended.flatten_from(1)?;
        let (o, o_u) = linear(&self.o_proj, &attended)?;
        let (o_normed, o_rstd) = self.post_attention_layernorm.forward(&o)?;
        let middle = residual::add(&x, &o_normed)?;

        let (middle_normed, middle_rstd) = self.pre_feedforward_layernorm.forward(&middle)?;
        let (gate, gate_u) = linear(&self.gate_proj, &middle_normed)?;
        let (up, up_u) = linear(&self.up_proj, &middle_normed)?;
        let gated = geglu::forward(&gate, &up)?;
        let (down, down_u) = linear(&self.down_proj, &gated)?;
        let (down_normed, down_rstd) = self.post_feedforward_layernorm.forward(&down)?;
        let out = residual::add(&middle, &down_normed)?;
        let tape = LayerTape {
            x,
            x_rstd,
            normed,
            q_raw,
            q_u,
            q_rstd,
            q,
            k_raw,
            k_u,
            k_rstd,
            k,
            v,
            v_u,
            attended,
            lse,
            o,
            o_u,
            o_rstd,
            middle,
            middle_rstd,
            middle_normed,
            gate,
            gate_u,
            up,
            up_u,
            gated,
            down,
            down_u,
            down_rstd,
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
        let t = tape;
        let d_down = self.post_feedforward_layernorm.backward(d_out, &t.down, &t.down_rstd)?;
        let d_gated = self.down_proj.backward(&d_down, &t.gated, t.down_u.as_ref(), pass.dropout)?;
        let (d_gate, d_up) = geglu::backward(&d_gated, &t.gate, &t.up)?;
        let d_normed = residual::add(
            &self.gate_proj.backward(&d_gate, &t.middle_normed, t.gate_u.as_ref(), pass.dropout)?,
            &self.up_proj.backward(&d_up, &t.middle_normed, t.up_u.as_ref(), pass.dropout)?,
        )?;
        let d_beside = self.pre_feedforward_layernorm.backward(&d_normed, &t.middle, &t.middle_rstd)?;
        let d_middle = residual::add(d_out, &d_beside)?;

        let d_o = self.post_attention_layernorm.backward(&d_middle, &t.o, &t.o_rstd)?;
        let d_attended = self.o_proj.backward(&d_o, &t.attended, t.o_u.as_ref(), pass.dropout)?;
        let (d_attended, attended) = (d_attended.reshape(t.q.shape())?, t.attended.reshape(t.q.shape())?);
        let (dq, dk, dv) = attention::backward(
            &d_attended,
            (&t.q, &t.k, &t.v),
            (&attended, &t.lse),
            &pass.attention(self.layer_type),
        )?;
        let table = pass.rope(self.layer_type);
        let dq = self.q_norm.backward_heads(&rope::backward(&dq, table)?, &t.q_raw, &t.q_rstd)?;
        let dk = self.k_norm.backward_heads(&rope::backward(&dk, table)?, &t.k_raw, &t.k_rstd)?;
        let dv = dv.flatten_from(1)?;
        let of_q_and_k = residual::add(
            &self.q_proj.backward(&dq, &t.normed, t.q_u.as_ref(), pass.dropout)?,
            &self.k_proj.backward(&dk, &t.normed, t.k_u.as_ref(), pass.dropout)?,
        )?;
        let of_v = self.v_proj.backward(&dv, &t.normed, t.v_u.as_ref(), pass.dropout)?;
        let d_normed = residual::add(&of_q_and_k, &of_v)?;
        let d_beside = self.input_layernorm.backward(&d_normed, &t.x, &t.x_rstd)?;
        Ok(residual::add(&d_middle, &d_beside)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf::writer::{golden_config, golden_weights};

    #[test]
    fn every_field_is_under_its_name_in_the_order_of_the_table() {
        let (config, weights) = (golden_config(), golden_weights());
        let mut layer = DecoderLayer::new(2, LayerType::FullAttention, &config, &weights).unwrap();
        assert_eq!(layer.linears().map(|(which, _)| which), LinearName::ALL);
        assert_eq!(layer.norms().map(|(which, _)| which), NormName::ALL);
        for (which, linear) in layer.linears() {
            assert_eq!(linear.number, which.number(2), "{which}");
        }
        let numbers = LinearName::ALL.map(|which| which.number(2));
        assert_eq!(layer.linears_mut().map(|(_, linear)| linear.number), numbers);
        let values = |norm: &RmsNorm| norm.weight.value.to_vec1::<f32>().unwrap();
        for (which, norm) in layer.norms() {
            let stored = &weights.tensors[&Parameter::Norm(2, which).name()];
            assert_eq!(values(norm), stored.to_vec1::<f32>().unwrap(), "{which:?}");
        }
        let norms = layer.norms().map(|(which, norm)| (which, values(norm)));
        assert_eq!(layer.norms_mut().map(|(which, norm)| (which, values(norm))), norms);
    }
}
