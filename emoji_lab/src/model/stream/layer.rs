//! A decoder layer on one token.

use super::matrix::Matrix;
use super::{Token, values};
use crate::error::Result;
use crate::model::layer::DecoderLayer;
use crate::model::stored::StoredWeights;
use crate::model::{Gemma3Config, LayerType, Linear, LinearName, NormName};
use crate::ops::lora_linear::Weight;
use crate::ops::team::Team;
use crate::ops::{attention, geglu, gemm, rms_norm, rope};

/// Elements of a product that a thread takes at a time: with rows of 640 numbers of five bits 5 µs of work, and enough parts
/// that the threads end together.
const PART: usize = 64;

/// The same for products with long rows.
const LONG: usize = 32;

/// What layers compute in, one after the other.
pub(super) struct Buffers {
    /// The residual stream.
    pub(super) x: Vec<f32>,
    /// What is normalised.
    pub(super) normed: Vec<f32>,
    /// Queries, keys and values, one behind the other.
    qkv: Vec<f32>,
    /// Of each query head, normalised and turned.
    q: Vec<f32>,
    /// Of one head, normalised.
    head: Vec<f32>,
    attended: Vec<f32>,
    /// Of each query head: its weights on the keys.
    scores: Vec<Vec<f32>>,
    /// What attention or the MLP adds.
    added: Vec<f32>,
    gated: Vec<f32>,
    /// A place for each part of a product: nothing is noted of these.
    nothing: Vec<()>,
}

impl Buffers {
    pub(super) fn new(c: &Gemma3Config) -> Self {
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let queries = c.num_attention_heads * c.head_dim;
        let qkv = queries + 2 * c.num_key_value_heads * c.head_dim;
        Self {
            x: vec![0.0; hidden],
            normed: vec![0.0; hidden],
            qkv: vec![0.0; qkv],
            q: vec![0.0; queries],
            head: vec![0.0; c.head_dim],
            attended: vec![0.0; queries],
            scores: vec![vec![]; c.num_attention_heads],
            added: vec![0.0; hidden],
            gated: vec![0.0; inner],
            nothing: vec![(); hidden.max(inner).max(qkv)],
        }
    }
}

/// A layer's weights, and the keys and values of the tokens that it has read.
pub(super) struct Layer<'a> {
    layer_type: LayerType,
    window: Option<usize>,
    linears: [Matrix<'a>; 7],
    norms: [Vec<f32>; 6],
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl<'a> Layer<'a> {
    /// `None` for one that is more than dense matrices.
    pub(super) fn new(
        layer: &'a DecoderLayer,
        config: &Gemma3Config,
        stored: &'a StoredWeights,
        (mut keys, mut values_of): (Vec<f32>, Vec<f32>),
        room: usize,
    ) -> Result<Option<Self>> {
        let matrix = |linear: &'a Linear| match &linear.weight {
            Weight::Dense(weight) if linear.lora.is_none() => Some(Matrix::new(weight, stored)),
            _ => None,
        };
        let mut linears = vec![];
        for (_, linear) in layer.linears() {
            let Some(matrix) = matrix(linear) else { return Ok(None) };
            linears.push(matrix);
        }
        let Ok(linears) = linears.try_into() else { return Ok(None) };
        let mut norms: [Vec<f32>; 6] = Default::default();
        for (place, (_, norm)) in norms.iter_mut().zip(layer.norms()) {
            *place = values(&norm.weight.value)?;
        }
        let row = config.num_key_value_heads * config.head_dim;
        keys.reserve(room * row);
        values_of.reserve(room * row);
        Ok(Some(Self {
            layer_type: layer.layer_type,
            window: match layer.layer_type {
                LayerType::FullAttention => None,
                LayerType::SlidingAttention => Some(config.sliding_window),
            },
            linears,
            norms,
            keys,
            values: values_of,
        }))
    }

    fn linear(&self, which: LinearName) -> Matrix<'a> {
        self.linears[which as usize]
    }

    fn norm(&self, which: NormName) -> &[f32] {
        &self.norms[which as usize]
    }

    /// The layer on the token in `b.x`, which becomes what it puts out.
    pub(super) fn read(&mut self, token: &Token<'_>, b: &mut Buffers, team: &mut Team<'_>) -> Result<()> {
        let eps = token.eps;
        rms_norm::row(&b.x, self.norm(NormName::InputLayernorm), eps, &mut b.normed);
        let qkv = [LinearName::QProj, LinearName::KProj, LinearName::VProj].map(|which| self.linear(which));
        let ends = [b.q.len(), (b.q.len() + b.qkv.len()) / 2, b.qkv.len()];
        let normed = &b.normed;
        Matrix::read_three(qkv, |matrices| {
            team.each_part(&mut b.qkv, PART, &mut b.nothing, |i, mut out, _| {
                let (mut at, mut start) = (i * PART, 0);
                for (matrix, end) in matrices.into_iter().zip(ends) {
                    let here = end.saturating_sub(at).min(out.len());
                    let (part, rest) = out.split_at_mut(here);
                    if !part.is_empty() {
                        gemm::products_of_one(normed, matrix, at - start, part);
                    }
                    (out, at, start) = (rest, at + here, end);
                }
            });
        })?;
        self.attend(token, b, team);
        self.add(LinearName::OProj, NormName::PostAttentionLayernorm, eps, b, team)?;

        rms_norm::row(&b.x, self.norm(NormName::PreFeedforwardLayernorm), eps, &mut b.normed);
        let normed = &b.normed;
        let two = [self.linear(LinearName::GateProj), self.linear(LinearName::UpProj)];
        Matrix::read_two(two, |[gate, up]| {
            team.each_part(&mut b.gated, PART, &mut b.nothing, |i, out, _| {
                let (mut gates, mut ups) = ([0.0; PART], [0.0; PART]);
                let (gates, ups) = (&mut gates[..out.len()], &mut ups[..out.len()]);
                gemm::products_of_one(normed, gate, i * PART, gates);
                gemm::products_of_one(normed, up, i * PART, ups);
                geglu::gate(gates, ups, out);
            });
        })?;
        self.add(LinearName::DownProj, NormName::PostFeedforwardLayernorm, eps, b, team)
    }

    /// From `b.qkv` to `b.attended`; the token's keys and values join the others'.
    fn attend(&mut self, token: &Token<'_>, b: &mut Buffers, team: &mut Team<'_>) {
        let dim = token.head_dim;
        let turns = token.turns(self.layer_type);
        let (queries, keys_and_values) = b.qkv.split_at(b.q.len());
        let (keys, new_values) = keys_and_values.split_at(keys_and_values.len() / 2);
        for (x, out) in queries.chunks_exact(dim).zip(b.q.chunks_exact_mut(dim)) {
            rms_norm::row(x, self.norm(NormName::QNorm), token.eps, &mut b.head);
            rope::head(&b.head, &turns.cos, &turns.sin, 1.0, out);
        }
        for x in keys.chunks_exact(dim) {
            rms_norm::row(x, self.norm(NormName::KNorm), token.eps, &mut b.head);
            let from = self.keys.len();
            self.keys.resize(from + dim, 0.0);
            rope::head(&b.head, &turns.cos, &turns.sin, 1.0, &mut self.keys[from..]);
        }
        self.values.extend_from_slice(new_values);
        let heads = b.q.len() / dim;
        let end = self.keys.len() / (token.kv_heads * dim);
        let seen = self.window.map_or(0, |window| end.saturating_sub(window))..end;
        let (q, cache) = (&b.q, (&self.keys[..], &self.values[..]));
        team.each_part(&mut b.attended, dim, &mut b.scores, |head, out, scores| {
            let kv_head = head / (heads / token.kv_heads);
            let q = &q[head * dim..][..dim];
            out.fill(0.0);
            attention::attend(q, cache, seen.clone(), (token.kv_heads, kv_head), token.scale, scores, out);
        });
    }

    /// Adds the norm of the product of what attention or the MLP computed.
    fn add(
        &self,
        which: LinearName,
        norm: NormName,
        eps: f32,
        b: &mut Buffers,
        team: &mut Team<'_>,
    ) -> Result<()> {
        let from = if which == LinearName::OProj { &b.attended } else { &b.gated };
        self.linear(which).read(|matrix| {
            team.each_part(&mut b.added, LONG, &mut b.nothing, |i, out, _| {
                gemm::products_of_one(from, matrix, i * LONG, out);
            });
        })?;
        rms_norm::row(&b.added, self.norm(norm), eps, &mut b.normed);
        for (x, added) in b.x.iter_mut().zip(&b.normed) {
            *x += added;
        }
        Ok(())
    }
}
