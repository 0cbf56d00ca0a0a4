//! Answers on the CPU: one token by token, or many side by side.
//!
//! A token of one stream is bound by the reading of weights, in about ten milliseconds; tensors that are made for
//! each of some 400 small operations, and a pool that is woken for each, would take as long again. Here the
//! buffers are made once, and a layer is a few pieces of work for a [`Team`] that stays awake.
//!
//! The numbers are those of [`Gemma3::decode`], bit for bit: the same functions on the same rows.

mod cache;
mod layer;
mod likeliest;
mod matrix;
mod pass;

use std::cell::RefCell;

use crate::error::{Error, Result};
use crate::host;
use crate::model::Gemma3;
#[cfg(test)]
use crate::model::KvCache;
use crate::model::stored::StoredWeights;
use crate::ops::columns::Columns;
use crate::ops::gemm::{self, Rows, Whole};
use crate::ops::rms_norm;
use crate::ops::team::Team;
pub(super) use cache::Cache;
use layer::Layer;
use likeliest::Likeliest;
use matrix::Matrix;
use pass::{Pass, Turns};

/// Rows of the head that a thread takes at a time: for one stream some 15 µs of work.
const HEAD_ROWS: usize = 512;

/// The same for many: 20 µs for 32 of them.
const HEAD_ROWS_OF_MANY: usize = 240;

/// Tokens that are read at a time: what is computed of them stays in the cores' second caches.
const TOGETHER: usize = 256;

thread_local! {
    /// Room for the logits of some of the head's rows.
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(vec![]) };
}

/// A model that reads sequences.
pub(super) struct Streams<'a> {
    gemma: &'a Gemma3,
    layers: Vec<Layer<'a>>,
    head: Matrix<'a>,
    norm: Vec<f32>,
    global: Turns,
    local: Turns,
    buffers: layer::Buffers,
    /// The last hidden state of each sequence that was read, normalised.
    last: Vec<f32>,
    logits: Vec<f32>,
    likeliest: Vec<Likeliest>,
    nothing: Vec<()>,
    /// What the head is multiplied with, where that is whole numbers.
    whole: Whole,
}

impl<'a> Streams<'a> {
    /// `None` for a model with adapters, weights in NF4 or rows in place of the embedding's.
    pub(super) fn new(gemma: &'a Gemma3, stored: &'a StoredWeights) -> Result<Option<Self>> {
        let c = &gemma.config;
        let layers: Option<Vec<_>> =
            gemma.layers.iter().map(|layer| Layer::new(layer, c, stored)).collect::<Result<_>>()?;
        let (Some(layers), None) = (layers, &gemma.token_rows) else { return Ok(None) };
        Ok(Some(Self {
            gemma,
            layers,
            head: Matrix::new(&gemma.head().value, stored),
            norm: values(&gemma.norm.weight.value)?,
            global: Turns::new(c.head_dim, c.rope_theta, c.rope_scaling_factor),
            local: Turns::new(c.head_dim, c.rope_local_base_freq, 1.0),
            buffers: layer::Buffers::default(),
            last: vec![],
            logits: vec![],
            likeliest: vec![],
            nothing: vec![],
            whole: Whole::default(),
        }))
    }

    /// Reads the next tokens of each sequence, at least one of each.
    ///
    /// # Errors
    /// If a token is outside the vocabulary, or a sequence has none.
    pub(super) fn read(
        &mut self,
        team: &mut Team<'_>,
        unread: &[&[u32]],
        caches: &mut [Cache],
    ) -> Result<()> {
        let hidden = self.gemma.config.hidden_size;
        if unread.len() != caches.len() || unread.iter().any(|ids| ids.is_empty()) {
            let value = format!("{} for {} sequences", unread.len(), caches.len());
            return Err(Error::setting("rows", value, "give each sequence at least one token"));
        }
        self.last.resize(unread.len() * hidden, 0.0);
        let mut pass = Pass::default();
        for (sequence, ids) in unread.iter().enumerate() {
            let mut rest = *ids;
            while !rest.is_empty() {
                let (some, more) = rest.split_at(rest.len().min(TOGETHER - pass.len()));
                pass.push(sequence, some, caches[sequence].len(), more.is_empty());
                caches[sequence].count(some.len());
                rest = more;
                if pass.len() == TOGETHER {
                    self.read_pass(team, &pass, caches)?;
                    pass.clear();
                }
            }
        }
        match pass.len() {
            0 => Ok(()),
            _ => self.read_pass(team, &pass, caches),
        }
    }

    /// Reads the tokens of a pass.
    fn read_pass(&mut self, team: &mut Team<'_>, pass: &Pass, caches: &mut [Cache]) -> Result<()> {
        let (c, b) = (&self.gemma.config, &mut self.buffers);
        b.resize(c, pass.len());
        self.gemma.embed_tokens.value.rows_into(pass.ids(), &mut b.embedded)?;
        self.global.reach(pass.end());
        self.local.reach(pass.end());
        let shared = layer::Shared {
            pass,
            head_dim: c.head_dim,
            kv_heads: c.num_key_value_heads,
            eps: c.rms_norm_eps as f32,
            scale: c.query_pre_attn_scalar.powf(-0.5) as f32,
            global: &self.global,
            local: &self.local,
        };
        let first = self.layers.first().map(Layer::input_norm);
        b.begin(team, self.gemma.embedding_scale() as f32, first, shared.eps);
        for (index, layer) in self.layers.iter().enumerate() {
            let next = self.layers.get(index + 1).map(Layer::input_norm);
            layer.read(&shared, index, next, b, caches, team)?;
        }
        let hidden = c.hidden_size;
        for (row, sequence) in pass.last_rows() {
            let last = &mut self.last[sequence * hidden..][..hidden];
            rms_norm::row(b.residual(row), &self.norm, shared.eps, last);
        }
        Ok(())
    }

    /// The likeliest token that follows each sequence which was read, the lowest of equals.
    pub(super) fn likeliest(&mut self, team: &mut Team<'_>) -> Result<Vec<u32>> {
        let (hidden, vocab) = (self.gemma.config.hidden_size, self.gemma.config.vocab_size);
        let count = self.last.len() / hidden;
        let together = if count == 1 { HEAD_ROWS } else { HEAD_ROWS_OF_MANY };
        let parts = vocab.div_ceil(together);
        self.likeliest.clear();
        self.likeliest.resize(parts * count, Likeliest::NONE);
        self.nothing.resize(parts, ());
        let x = Rows::new(&self.last, hidden, hidden);
        let x = self.whole.read(x, [self.head.stored()], team);
        self.head.read(|head| {
            team.each_part(&mut self.likeliest, count, &mut self.nothing, |i, likeliest, _| {
                let (first, last) = (i * together, vocab.min((i + 1) * together));
                ROOM.with_borrow_mut(|logits| {
                    logits.resize((last - first) * count, 0.0);
                    gemm::products_of_some(x, head, first, Columns::of(logits, last - first));
                    for (likeliest, logits) in likeliest.iter_mut().zip(logits.chunks_exact(last - first)) {
                        *likeliest = Likeliest::of(logits, first);
                    }
                });
            });
        })?;
        let of = |sequence: usize| {
            let parts = self.likeliest.iter().skip(sequence).step_by(count);
            parts.fold(Likeliest::NONE, |best, next| best.or(*next)).token.unwrap_or(0) as u32
        };
        Ok((0..count).map(of).collect())
    }

    /// The logits of what follows each sequence which was read, one behind the other.
    pub(super) fn logits(&mut self, team: &mut Team<'_>) -> Result<&[f32]> {
        self.logits_by(team, self.head, self.gemma.config.vocab_size)
    }

    /// [`Self::logits`] of some tokens, whose rows of the head these are.
    pub(super) fn logits_of(&mut self, team: &mut Team<'_>, head: &candle_core::Tensor) -> Result<&[f32]> {
        self.logits_by(team, Matrix::Dense(head), head.dims2()?.0)
    }

    fn logits_by(&mut self, team: &mut Team<'_>, head: Matrix<'_>, tokens: usize) -> Result<&[f32]> {
        let hidden = self.gemma.config.hidden_size;
        let count = self.last.len() / hidden;
        let together = if count == 1 { HEAD_ROWS } else { HEAD_ROWS_OF_MANY };
        self.logits.resize(count * tokens, 0.0);
        let x = Rows::new(&self.last, hidden, hidden);
        let x = self.whole.read(x, [head.stored()], team);
        head.read(|head| {
            team.each_columns(&mut self.logits, tokens, tokens, together, |first, logits| {
                gemm::products_of_some(x, head, first, logits);
            });
        })?;
        Ok(&self.logits)
    }
}

/// A sequence that grows by some tokens at a time.
pub(super) struct Stream<'a> {
    streams: Streams<'a>,
    cache: Cache,
}

impl<'a> Stream<'a> {
    /// A stream that has read nothing, with room for some tokens; `None` as for [`Streams::new`].
    pub(super) fn begin(gemma: &'a Gemma3, stored: &'a StoredWeights, room: usize) -> Result<Option<Self>> {
        let Some(streams) = Streams::new(gemma, stored)? else { return Ok(None) };
        Ok(Some(Self { streams, cache: Cache::new(gemma.config(), room) }))
    }

    /// [`Self::begin`] that goes on where `cache` ends.
    #[cfg(test)]
    pub(super) fn new(
        gemma: &'a Gemma3,
        stored: &'a StoredWeights,
        cache: &KvCache,
        room: usize,
    ) -> Result<Option<Self>> {
        let Some(streams) = Streams::new(gemma, stored)? else { return Ok(None) };
        Ok(Some(Self { streams, cache: Cache::of(gemma.config(), cache, room)? }))
    }

    /// Reads the next tokens.
    pub(super) fn read(&mut self, team: &mut Team<'_>, tokens: &[u32]) -> Result<()> {
        self.streams.read(team, &[tokens], std::slice::from_mut(&mut self.cache))
    }

    /// How many tokens were read.
    pub(super) fn len(&self) -> usize {
        self.cache.len()
    }

    /// The logits of what follows.
    pub(super) fn logits(&mut self, team: &mut Team<'_>) -> Result<&[f32]> {
        self.streams.logits(team)
    }

    /// The likeliest token that follows, the lowest of equals.
    pub(super) fn likeliest(&mut self, team: &mut Team<'_>) -> Result<u32> {
        Ok(self.streams.likeliest(team)?[0])
    }
}

/// The values of a tensor of one dimension.
fn values(tensor: &candle_core::Tensor) -> Result<Vec<f32>> {
    Ok(host::read(tensor, |values| Ok(values.to_vec()))?)
}

#[cfg(test)]
mod tests;
