use std::ops::Range;

use rayon::prelude::*;

use super::{AttentionShape, Segment, Sizes};
use crate::ops::math::{axpy, dot, exp, wide};

/// The gradients for q, k and v.
pub(super) struct Gradients {
    pub(super) dq: Vec<f32>,
    pub(super) dk: Vec<f32>,
    pub(super) dv: Vec<f32>,
}

/// The keys that query `i` of `s` sees, counted from the segment's first key.
fn visible(i: usize, s: &Segment, window: Option<usize>) -> Range<usize> {
    let end = s.k_len - s.q_len + i + 1;
    window.map_or(0, |w| end.saturating_sub(w))..end
}

/// One row of a `[rows, heads, head_dim]` tensor.
fn row(t: &[f32], index: usize, heads: usize, head: usize, dim: usize) -> &[f32] {
    &t[(index * heads + head) * dim..][..dim]
}

wide! {
    /// One query of one head: adds to `o` what it attends to, and returns its log-sum-exp. `keys` are the rows that
    /// it sees of `k` and `v`, `kv` how many heads these have and which is the query's; `p` is room for the weights.
    pub fn attend(
        q: &[f32],
        cache: (&[f32], &[f32]),
        keys: Range<usize>,
        kv: (usize, usize),
        scale: f32,
        p: &mut Vec<f32>,
        o: &mut [f32],
    ) -> f32 {
        let (k, v) = cache;
        scores(p, q, k, keys.clone(), kv, scale);
        let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for p in &mut *p {
            *p = exp(*p - max);
        }
        let sum: f32 = p.iter().sum();
        for (p, j) in p.iter().zip(keys) {
            axpy(o, p / sum, row(v, j, kv.0, kv.1, q.len()));
        }
        max + sum.ln()
    }
}

/// One query of one head, on the way back.
#[derive(Clone, Copy)]
struct QueryBack<'a> {
    q: &'a [f32],
    /// The gradient for what it attended to, and that itself.
    d_o: &'a [f32],
    o: &'a [f32],
    lse: f32,
    scale: f32,
}

/// Gradients that one query adds to: its own, and those of the keys and values from `first` on.
struct AddedTo<'a> {
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    first: usize,
}

wide! {
    /// Adds what one query of one head passes back; the rest is as for [`attend`].
    fn attend_back(
        query: QueryBack<'_>,
        cache: (&[f32], &[f32]),
        keys: Range<usize>,
        kv: (usize, usize),
        p: &mut Vec<f32>,
        to: AddedTo<'_>,
    ) {
        let (QueryBack { q, d_o, o, lse, scale }, (k, v)) = (query, cache);
        let AddedTo { dq, dk, dv, first } = to;
        let dim = q.len();
        let delta = dot(d_o, o);
        scores(p, q, k, keys.clone(), kv, scale);
        for p in &mut *p {
            *p = exp(*p - lse);
        }
        for (p, j) in p.iter().zip(keys) {
            let local = j - first;
            let ds = p * (dot(d_o, row(v, j, kv.0, kv.1, dim)) - delta) * scale;
            axpy(dq, ds, row(k, j, kv.0, kv.1, dim));
            axpy(&mut dk[local * dim..][..dim], ds, q);
            axpy(&mut dv[local * dim..][..dim], *p, d_o);
        }
    }
}

/// `p[j] = scale · q · k[j]` for the visible keys.
#[inline(always)]
fn scores(
    p: &mut Vec<f32>,
    q: &[f32],
    k: &[f32],
    keys: Range<usize>,
    (kv_heads, kv_head): (usize, usize),
    scale: f32,
) {
    p.resize(keys.len(), 0.0);
    // (No closure: that would not be compiled for the vectors of the function around it.)
    for (p, j) in p.iter_mut().zip(keys) {
        *p = scale * dot(q, row(k, j, kv_heads, kv_head, q.len()));
    }
}

pub(super) fn forward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    sizes: &Sizes,
    shape: &AttentionShape<'_>,
) -> (Vec<f32>, Vec<f32>) {
    let &Sizes { tokens, heads, kv_heads, head_dim: dim, .. } = sizes;
    let group = heads / kv_heads;
    let one_head = |(s, head): (&Segment, usize)| {
        let mut o = vec![0.0; s.q_len * dim];
        let mut lse = Vec::with_capacity(s.q_len);
        let mut p = vec![];
        for (i, o) in o.chunks_exact_mut(dim).enumerate() {
            let seen = visible(i, s, shape.window);
            let keys = s.k_start + seen.start..s.k_start + seen.end;
            let q = row(q, s.q_start + i, heads, head, dim);
            let kv = (kv_heads, head / group);
            lse.push(attend(q, (k, v), keys, kv, shape.scale as f32, &mut p, o));
        }
        (o, lse)
    };
    let work: Vec<_> = shape.segments.iter().flat_map(|s| (0..heads).map(move |head| (s, head))).collect();
    let parts: Vec<_> = work.par_iter().map(|&w| one_head(w)).collect();
    let mut o = vec![0.0; tokens * heads * dim];
    let mut lse = vec![0.0; tokens * heads];
    for ((s, head), (part, part_lse)) in work.into_iter().zip(parts) {
        for (i, (part, part_lse)) in part.chunks_exact(dim).zip(part_lse).enumerate() {
            let at = (s.q_start + i) * heads + head;
            o[at * dim..][..dim].copy_from_slice(part);
            lse[at] = part_lse;
        }
    }
    (o, lse)
}

/// Per row: p = exp(s − lse), δ = do · o, ds = p (do · v − δ); then dq = scale · ds k,
/// dk = scale · dsᵀ q, dv = pᵀ do.
#[allow(clippy::too_many_arguments)] // the op's inputs and results, each of its own kind
pub(super) fn backward(
    d_o: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    o: &[f32],
    lse: &[f32],
    sizes: &Sizes,
    shape: &AttentionShape<'_>,
) -> Gradients {
    let &Sizes { tokens, keys, heads, kv_heads, head_dim: dim } = sizes;
    let group = heads / kv_heads;
    let scale = shape.scale as f32;
    // A task has a key/value head with all its query heads, so that it alone adds into dk and dv.
    let one_group = |(s, kv_head): (&Segment, usize)| {
        let mut dq = vec![0.0; s.q_len * group * dim];
        let mut dk = vec![0.0; s.k_len * dim];
        let mut dv = vec![0.0; s.k_len * dim];
        let mut p = vec![];
        for i in 0..s.q_len {
            let seen = visible(i, s, shape.window);
            let keys = s.k_start + seen.start..s.k_start + seen.end;
            for g in 0..group {
                let head = kv_head * group + g;
                let at = s.q_start + i;
                let of_head = |rows| row(rows, at, heads, head, dim);
                let lse = lse[at * heads + head];
                let query = QueryBack { q: of_head(q), d_o: of_head(d_o), o: of_head(o), lse, scale };
                let dq = &mut dq[(i * group + g) * dim..][..dim];
                let to = AddedTo { dq, dk: &mut dk, dv: &mut dv, first: s.k_start };
                attend_back(query, (k, v), keys.clone(), (kv_heads, kv_head), &mut p, to);
            }
        }
        (dq, dk, dv)
    };
    let work: Vec<_> = shape.segments.iter().flat_map(|s| (0..kv_heads).map(move |head| (s, head))).collect();
    let parts: Vec<_> = work.par_iter().map(|&w| one_group(w)).collect();
    let mut all = Gradients {
        dq: vec![0.0; tokens * heads * dim],
        dk: vec![0.0; keys * kv_heads * dim],
        dv: vec![0.0; keys * kv_heads * dim],
    };
    for ((s, kv_head), (dq, dk, dv)) in work.into_iter().zip(parts) {
        for (i, dq) in dq.chunks_exact(group * dim).enumerate() {
            let at = (s.q_start + i) * heads + kv_head * group;
            all.dq[at * dim..][..group * dim].copy_from_slice(dq);
        }
        for (j, (dk, dv)) in dk.chunks_exact(dim).zip(dv.chunks_exact(dim)).enumerate() {
            let at = ((s.k_start + j) * kv_heads + kv_head) * dim;
            // Segments may share keys only in decoding, which has no backward; adding is right
            // in any case.
            axpy(&mut all.dk[at..][..dim], 1.0, dk);
            axpy(&mut all.dv[at..][..dim], 1.0, dv);
        }
    }
    all
}
