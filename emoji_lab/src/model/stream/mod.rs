//! One answer on the CPU, token by token.
//!
//! A token of one stream is bound by the reading of weights, in about ten milliseconds; tensors that are made for
//! each of some 400 small operations, and a pool that is woken for each, would take as long again. Here the
//! buffers are made once an answer, and a layer is five pieces of work for a [`Team`] that stays awake.
//!
//! The numbers are those of [`Gemma3::decode`], bit for bit: the same functions on the same rows.

mod layer;
mod matrix;

use crate::error::Result;
use crate::host;
use crate::model::stored::StoredWeights;
use crate::model::{Gemma3, KvCache, LayerType};
use crate::ops::rope::{frequencies, turn};
use crate::ops::team::Team;
use crate::ops::{gemm, rms_norm};
use layer::Layer;
use matrix::Matrix;

/// Rows of the head that a thread takes at a time: some 15 µs of work.
const HEAD_ROWS: usize = 512;

/// Cosines and sines of one position.
#[derive(Debug, Default)]
struct Turns {
    frequencies: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Turns {
    fn new(head_dim: usize, theta: f64, factor: f64) -> Self {
        let frequencies = frequencies(head_dim, theta, factor);
        let zeros = vec![0.0; frequencies.len()];
        Self { frequencies, cos: zeros.clone(), sin: zeros }
    }

    fn set(&mut self, position: usize) {
        for ((frequency, cos), sin) in self.frequencies.iter().zip(&mut self.cos).zip(&mut self.sin) {
            (*cos, *sin) = turn(position as u32, *frequency);
        }
    }
}

/// The likeliest of some tokens, the lowest of equals.
#[derive(Debug, Clone, Copy)]
struct Likeliest {
    token: Option<usize>,
    logit: f32,
}

impl Likeliest {
    const NONE: Self = Self { token: None, logit: f32::NEG_INFINITY };

    fn of(logits: &[f32], first: usize) -> Self {
        let mut best = Self::NONE;
        // Most pieces of 64 hold no better one, which the compiler finds out with vectors.
        for (piece, logits) in logits.chunks(64).enumerate() {
            if logits.iter().fold(false, |any, logit| any | (*logit > best.logit)) {
                for (i, logit) in logits.iter().enumerate() {
                    if *logit > best.logit {
                        best = Self { token: Some(first + piece * 64 + i), logit: *logit };
                    }
                }
            }
        }
        best
    }
}

/// What all layers of one token share.
struct Token<'t> {
    head_dim: usize,
    kv_heads: usize,
    eps: f32,
    scale: f32,
    global: &'t Turns,
    local: &'t Turns,
}

impl Token<'_> {
    fn turns(&self, layer_type: LayerType) -> &Turns {
        match layer_type {
            LayerType::FullAttention => self.global,
            LayerType::SlidingAttention => self.local,
        }
    }
}

/// A sequence that grows by a token at a time.
pub(super) struct Stream<'a> {
    gemma: &'a Gemma3,
    layers: Vec<Layer<'a>>,
    head: Matrix<'a>,
    norm: Vec<f32>,
    global: Turns,
    local: Turns,
    /// Tokens that were read.
    len: usize,
    buffers: layer::Buffers,
    logits: Vec<f32>,
    likeliest: Vec<Likeliest>,
}

impl<'a> Stream<'a> {
    /// A stream that goes on where `cache` ends; `None` for a model with adapters, weights in NF4 or rows in place of the
    /// embedding's.
    pub(super) fn new(
        gemma: &'a Gemma3,
        stored: &'a StoredWeights,
        cache: &KvCache,
        room: usize,
    ) -> Result<Option<Self>> {
        let c = &gemma.config;
        let layer = |(index, layer)| Layer::new(layer, c, stored, cache.layer(index)?, room);
        let layers: Option<Vec<_>> = gemma.layers.iter().enumerate().map(layer).collect::<Result<_>>()?;
        let (Some(layers), None) = (layers, &gemma.token_rows) else { return Ok(None) };
        Ok(Some(Self {
            gemma,
            layers,
            head: Matrix::new(&gemma.head().value, stored),
            norm: values(&gemma.norm.weight.value)?,
            global: Turns::new(c.head_dim, c.rope_theta, c.rope_scaling_factor),
            local: Turns::new(c.head_dim, c.rope_local_base_freq, 1.0),
            len: cache.len(),
            buffers: layer::Buffers::new(c),
            logits: vec![0.0; c.vocab_size],
            likeliest: vec![Likeliest::NONE; c.vocab_size.div_ceil(HEAD_ROWS)],
        }))
    }

    /// Reads the next token.
    pub(super) fn read(&mut self, team: &mut Team<'_>, token: u32) -> Result<()> {
        let c = &self.gemma.config;
        self.global.set(self.len);
        self.local.set(self.len);
        let shared = Token {
            head_dim: c.head_dim,
            kv_heads: c.num_key_value_heads,
            eps: c.rms_norm_eps as f32,
            scale: c.query_pre_attn_scalar.powf(-0.5) as f32,
            global: &self.global,
            local: &self.local,
        };
        self.gemma.embed_tokens.value.rows_into(&[token], &mut self.buffers.x)?;
        let scale = self.gemma.embedding_scale() as f32;
        self.buffers.x.iter_mut().for_each(|x| *x *= scale);
        for layer in &mut self.layers {
            layer.read(&shared, &mut self.buffers, team)?;
        }
        self.len += 1;
        let normed = &mut self.buffers.normed;
        rms_norm::row(&self.buffers.x, &self.norm, shared.eps, normed);
        let normed = &*normed;
        self.head.read(|head| {
            team.each_part(&mut self.logits, HEAD_ROWS, &mut self.likeliest, |i, logits, likeliest| {
                gemm::products_of_one(normed, head, i * HEAD_ROWS, logits);
                *likeliest = Likeliest::of(logits, i * HEAD_ROWS);
            });
        })
    }

    /// The logits of what follows.
    pub(super) fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The likeliest token that follows, the lowest of equals.
    pub(super) fn likeliest(&self) -> u32 {
        let better = |best: Likeliest, next: &Likeliest| if next.logit > best.logit { *next } else { best };
        self.likeliest.iter().fold(Likeliest::NONE, better).token.unwrap_or(0) as u32
    }
}

/// The values of a tensor of one dimension.
fn values(tensor: &candle_core::Tensor) -> Result<Vec<f32>> {
    Ok(host::read(tensor, |values| Ok(values.to_vec()))?)
}

#[cfg(test)]
mod tests;
