//! A decoder layer on tokens of streams.

use std::cell::RefCell;

use super::matrix::Matrix;
use super::pass::{Pass, Turns};
use super::{Cache, values};
use crate::error::Result;
use crate::model::layer::DecoderLayer;
use crate::model::stored::StoredWeights;
use crate::model::{Gemma3Config, LayerType, Linear, LinearName, NormName};
use crate::ops::columns::Columns;
use crate::ops::gemm::{Rows, Whole, apart, products_of_some};
use crate::ops::lora_linear::Weight;
use crate::ops::team::Team;
use crate::ops::{attention, geglu, rms_norm, rope};

/// Columns of a product that a thread takes at a time, for one token: with rows of 640 numbers of five bits 5 µs of work,
/// and enough parts that the threads end together.
const PART: usize = 64;

/// The same for products with long rows.
const LONG: usize = 32;

/// The same for many tokens: whole panels of a weight's rows.
const PART_OF_MANY: usize = 48;

/// The same for products with long rows.
const LONG_OF_MANY: usize = 16;

thread_local! {
    /// Room for the gates and what they are multiplied with.
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(vec![]) };
}

/// What all layers compute with.
pub(super) struct Shared<'t> {
    pub(super) pass: &'t Pass,
    pub(super) head_dim: usize,
    pub(super) kv_heads: usize,
    pub(super) eps: f32,
    pub(super) scale: f32,
    pub(super) global: &'t Turns,
    pub(super) local: &'t Turns,
}

impl Shared<'_> {
    fn turns(&self, layer_type: LayerType) -> &Turns {
        match layer_type {
            LayerType::FullAttention => self.global,
            LayerType::SlidingAttention => self.local,
        }
    }
}

/// What layers compute in, one after the other: a row for each token, as wide as is said.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    hidden: usize,
    queries: usize,
    inner: usize,
    /// As the embedding has them.
    pub(super) embedded: Vec<f32>,
    /// The residual stream, and what is normalised of it.
    stream: Vec<f32>,
    /// Queries, keys and values.
    qkv: Vec<f32>,
    /// Of each token, a head that is normalised.
    heads: Vec<Vec<f32>>,
    attended: Vec<f32>,
    /// Of each part of the attention: its weights on the keys.
    scores: Vec<Vec<f32>>,
    /// What attention or the MLP adds.
    added: Vec<f32>,
    gated: Vec<f32>,
    /// What is multiplied next, where that is whole numbers.
    whole: Whole,
    /// A place for each token: nothing is noted of these.
    nothing: Vec<()>,
}

impl Buffers {
    /// Makes them those of some tokens.
    pub(super) fn resize(&mut self, c: &Gemma3Config, tokens: usize) {
        (self.hidden, self.inner) = (c.hidden_size, c.intermediate_size);
        self.queries = c.num_attention_heads * c.head_dim;
        let qkv = self.queries + 2 * c.num_key_value_heads * c.head_dim;
        self.embedded.resize(tokens * self.hidden, 0.0);
        self.stream.resize(tokens * self.stream_row(), 0.0);
        self.qkv.resize(tokens * qkv, 0.0);
        self.heads.resize_with(tokens, || vec![0.0; c.head_dim]);
        self.attended.resize(tokens * apart(self.queries), 0.0);
        self.scores.resize_with(tokens.max(c.num_attention_heads), Vec::new);
        self.added.resize(tokens * self.hidden, 0.0);
        self.gated.resize(tokens * apart(self.inner), 0.0);
        self.nothing.resize(tokens, ());
    }

    fn stream_row(&self) -> usize {
        apart(2 * self.hidden)
    }

    /// Calls `work` with each token's number, its place in the residual stream and that of what is normalised.
    fn each_token(&mut self, team: &mut Team<'_>, work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync) {
        let (row, hidden) = (self.stream_row(), self.hidden);
        team.each_part(&mut self.stream, row, &mut self.nothing, |token, row, _| {
            let (x, normed) = row.split_at_mut(hidden);
            work(token, x, &mut normed[..hidden]);
        });
    }

    /// The residual stream begins with the embedding, times `scale`; `norm` is that of the first layer's input.
    pub(super) fn begin(&mut self, team: &mut Team<'_>, scale: f32, norm: Option<&[f32]>, eps: f32) {
        let (hidden, embedded) = (self.hidden, std::mem::take(&mut self.embedded));
        self.each_token(team, |token, x, normed| {
            for (x, embedded) in x.iter_mut().zip(&embedded[token * hidden..][..hidden]) {
                *x = embedded * scale;
            }
            if let Some(norm) = norm {
                rms_norm::row(x, norm, eps, normed);
            }
        });
        self.embedded = embedded;
    }

    /// A token's residual stream.
    pub(super) fn residual(&self, token: usize) -> &[f32] {
        &self.stream[token * self.stream_row()..][..self.hidden]
    }

    fn tokens(&self) -> usize {
        self.nothing.len()
    }

    /// Columns of a product that a thread takes at a time.
    fn part(&self, is_long: bool) -> usize {
        match (self.tokens(), is_long) {
            (1, false) => PART,
            (1, true) => LONG,
            (_, false) => PART_OF_MANY,
            (_, true) => LONG_OF_MANY,
        }
    }

    /// The norm of what was added joins the residual stream, which is normalised for what comes next.
    fn add(&mut self, team: &mut Team<'_>, norm: &[f32], next: Option<&[f32]>, eps: f32) {
        let (hidden, added) = (self.hidden, std::mem::take(&mut self.added));
        self.each_token(team, |token, x, normed| {
            rms_norm::row(&added[token * hidden..][..hidden], norm, eps, normed);
            for (x, added) in x.iter_mut().zip(&*normed) {
                *x += added;
            }
            if let Some(next) = next {
                rms_norm::row(x, next, eps, normed);
            }
        });
        self.added = added;
    }
}

/// A layer's weights.
pub(super) struct Layer<'a> {
    layer_type: LayerType,
    window: Option<usize>,
    linears: [Matrix<'a>; 7],
    norms: [Vec<f32>; 6],
}

impl<'a> Layer<'a> {
    /// `None` for one that is more than dense matrices.
    pub(super) fn new(
        layer: &'a DecoderLayer,
        config: &Gemma3Config,
        stored: &'a StoredWeights,
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
        Ok(Some(Self {
            layer_type: layer.layer_type,
            window: match layer.layer_type {
                LayerType::FullAttention => None,
                LayerType::SlidingAttention => Some(config.sliding_window),
            },
            linears,
            norms,
        }))
    }

    /// The norm of what the layer reads.
    pub(super) fn input_norm(&self) -> &[f32] {
        self.norm(NormName::InputLayernorm)
    }

    fn linear(&self, which: LinearName) -> Matrix<'a> {
        self.linears[which as usize]
    }

    fn norm(&self, which: NormName) -> &[f32] {
        &self.norms[which as usize]
    }

    /// The layer, number `index`, on the residual streams in `b`, which become what it puts out. These are normalised
    /// already; `next` is the norm of the next layer's input.
    pub(super) fn read(
        &self,
        shared: &Shared<'_>,
        index: usize,
        next: Option<&[f32]>,
        b: &mut Buffers,
        caches: &mut [Cache],
        team: &mut Team<'_>,
    ) -> Result<()> {
        let (eps, stream_row, hidden) = (shared.eps, b.stream_row(), b.hidden);
        let qkv = [LinearName::QProj, LinearName::KProj, LinearName::VProj].map(|which| self.linear(which));
        let row = b.qkv.len() / b.tokens();
        let ends = [b.queries, (b.queries + row) / 2, row];
        let (part, normed) = (b.part(false), Rows::of(&b.stream, hidden..2 * hidden, stream_row));
        let normed = b.whole.read(normed, qkv.map(Matrix::stored), team);
        Matrix::read_three(qkv, |matrices| {
            team.each_columns(&mut b.qkv, row, row, part, |first, mut columns| {
                let (mut at, mut start) = (first, 0);
                for (matrix, end) in matrices.into_iter().zip(ends) {
                    let here = end.saturating_sub(at).min(columns.width());
                    let (some, rest) = columns.split_at(here);
                    if here > 0 {
                        products_of_some(normed, matrix, at - start, some);
                    }
                    (columns, at, start) = (rest, at + here, end);
                }
            });
        })?;
        self.attend(shared, index, b, caches, team);
        let (size, attended) =
            ((b.tokens(), b.part(true)), Rows::new(&b.attended, b.queries, apart(b.queries)));
        self.added(LinearName::OProj, attended, size, &mut b.whole, &mut b.added, team)?;
        let feed_forward = self.norm(NormName::PreFeedforwardLayernorm);
        b.add(team, self.norm(NormName::PostAttentionLayernorm), Some(feed_forward), eps);

        let (part, normed) = (b.part(false), Rows::of(&b.stream, hidden..2 * hidden, stream_row));
        let two = [self.linear(LinearName::GateProj), self.linear(LinearName::UpProj)];
        let tokens = b.tokens();
        let normed = b.whole.read(normed, two.map(Matrix::stored), team);
        Matrix::read_two(two, |[gate, up]| {
            team.each_columns(&mut b.gated, apart(b.inner), b.inner, part, |first, mut columns| {
                ROOM.with_borrow_mut(|room| {
                    let width = columns.width();
                    room.resize(2 * tokens * width, 0.0);
                    let (gates, ups) = room.split_at_mut(tokens * width);
                    products_of_some(normed, gate, first, Columns::of(gates, width));
                    products_of_some(normed, up, first, Columns::of(ups, width));
                    for (token, (gates, ups)) in gates.chunks(width).zip(ups.chunks(width)).enumerate() {
                        geglu::gate(gates, ups, columns.row(token));
                    }
                });
            });
        })?;
        let (size, gated) = ((b.tokens(), b.part(true)), Rows::new(&b.gated, b.inner, apart(b.inner)));
        self.added(LinearName::DownProj, gated, size, &mut b.whole, &mut b.added, team)?;
        b.add(team, self.norm(NormName::PostFeedforwardLayernorm), next, eps);
        Ok(())
    }

    /// The product of `from`, which is what attention or the MLP adds before it is normalised.
    fn added(
        &self,
        which: LinearName,
        from: Rows<'_>,
        (tokens, part): (usize, usize),
        whole: &mut Whole,
        added: &mut [f32],
        team: &mut Team<'_>,
    ) -> Result<()> {
        let from = whole.read(from, [self.linear(which).stored()], team);
        self.linear(which).read(|matrix| {
            let hidden = added.len() / tokens;
            team.each_columns(added, hidden, hidden, part, |first, columns| {
                products_of_some(from, matrix, first, columns);
            });
        })
    }

    /// From `b.qkv` to `b.attended`; the tokens' keys and values join the others' of their sequences.
    fn attend(
        &self,
        shared: &Shared<'_>,
        index: usize,
        b: &mut Buffers,
        caches: &mut [Cache],
        team: &mut Team<'_>,
    ) {
        let dim = shared.head_dim;
        let (places, turns) = (shared.pass.places(), shared.turns(self.layer_type));
        let (queries, row) = (b.queries, b.qkv.len() / places.len());
        let (q_norm, k_norm) = (self.norm(NormName::QNorm), self.norm(NormName::KNorm));
        let keys = queries..(queries + row) / 2;
        team.each_part(&mut b.qkv, row, &mut b.heads, |token, row, normed| {
            let (cos, sin) = turns.at(places[token].1);
            for (i, x) in row[..keys.end].chunks_exact_mut(dim).enumerate() {
                rms_norm::row(x, if i * dim < queries { q_norm } else { k_norm }, shared.eps, normed);
                rope::head(normed, cos, sin, 1.0, x);
            }
        });
        for (row, (sequence, _)) in b.qkv.chunks_exact(row).zip(places) {
            caches[*sequence].add(index, &row[keys.clone()], &row[keys.end..]);
        }
        let heads = queries / dim;
        // One token's heads are shared out, of many a thread takes all heads of a token.
        let (size, each) = if places.len() == 1 { (dim, 1) } else { (apart(queries), heads) };
        let (qkv, caches) = (&b.qkv, &*caches);
        let out = if each == 1 { &mut b.attended[..queries] } else { &mut b.attended[..] };
        team.each_part(out, size, &mut b.scores, |i, out, scores| {
            let token = i * each / heads;
            let (sequence, place) = places[token];
            let cache = caches[sequence].layer(index);
            let seen = self.window.map_or(0, |window| (place + 1).saturating_sub(window))..place + 1;
            for (head, out) in (i * each % heads..).zip(out.chunks_exact_mut(dim)).take(each) {
                let q = &qkv[token * row + head * dim..][..dim];
                let kv = (shared.kv_heads, head / (heads / shared.kv_heads));
                out.fill(0.0);
                attention::attend(q, cache, seen.clone(), kv, shared.scale, scores, out);
            }
        });
    }
}
