//! Attention's kernels against the CPU's, over packed sequences of odd lengths.

use super::cuda::{AttentionBackward, AttentionDelta, AttentionForward, AttentionSizes, MAX_HEADS, parts};
use super::{AttentionShape, Segment};
use crate::gpu::pointer::Compute;
use crate::ops::rms_norm;
use crate::ops::rope::{self, RopeTable};
use crate::ops::testing::adapters::{SomeAdapters, split};
use crate::ops::testing::{Bar, Kind, OnGpu, Plain, on_every_gpu, tensor, values};

/// As many warps for a head as there may be, or fewer, as for many tokens.
fn some_parts(t: &mut OnGpu, heads: usize) -> usize {
    t.between(1, parts(heads))
}

/// Sequences and heads of one case.
pub(super) struct Case {
    segments: Vec<Segment>,
    tokens: usize,
    heads: usize,
    kv: usize,
    dim: usize,
    window: Option<usize>,
    scale: f32,
    start: Plain<i32>,
    end: Plain<i32>,
}

impl Case {
    fn random(t: &mut OnGpu) -> Self {
        let kv = t.pick(&[1, 1, 2, 3]);
        let heads = kv * t.between(1, 4);
        let dim = if t.one_in(3) { 8 * t.between(1, 32) } else { t.pick(&[32, 64, 128, 256]) };
        Self::with_heads(t, heads, kv, dim, 1)
    }

    /// As many tokens as a multiple of `unit`.
    pub(super) fn with_heads(t: &mut OnGpu, heads: usize, kv: usize, dim: usize, unit: usize) -> Self {
        let mut lengths = vec![];
        for _ in 0..t.between(1, 7) {
            let length = match t.between(0, 5) {
                0 => 1,
                1 => t.between(2, 8),
                2 => t.between(40, 90),
                _ => t.between(9, 39),
            };
            lengths.push(length);
        }
        // Large heads have fewer tokens: the CPU is to be done in time.
        while lengths.len() > 1 && lengths.iter().sum::<usize>() * heads * dim > 250_000 {
            lengths.pop();
        }
        // As a batch is filled up: with tokens that see only themselves.
        while !lengths.iter().sum::<usize>().is_multiple_of(unit) {
            lengths.push(1);
        }
        let (mut segments, mut tokens) = (vec![], 0);
        let (mut start, mut end) = (vec![], vec![]);
        for &len in &lengths {
            segments.push(Segment { q_start: tokens, q_len: len, k_start: tokens, k_len: len });
            start.extend(std::iter::repeat_n(tokens as i32, len));
            tokens += len;
            end.extend(std::iter::repeat_n(tokens as i32, len));
        }
        let window = if t.one_in(2) { Some(t.between(1, 40)) } else { None };
        t.sizes((lengths, heads, kv, dim, window));
        let scale = t.pick(&[1.0, 2.0]) / (dim as f32).sqrt();
        let (start, end) = (t.plain(&start), t.plain(&end));
        Self { segments, tokens, heads, kv, dim, window, scale, start, end }
    }

    fn shape(&self) -> AttentionShape<'_> {
        AttentionShape { segments: &self.segments, scale: self.scale.into(), window: self.window }
    }

    /// `[tokens, heads, dim]` for queries and `[tokens, kv, dim]` for keys and values.
    fn tensor(&self, rows: &[f32], heads: usize) -> candle_core::Tensor {
        tensor(rows, (self.tokens, heads, self.dim))
    }

    fn width(&self) -> usize {
        self.heads * self.dim
    }

    fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv) * self.dim
    }

    fn sizes(&self) -> AttentionSizes {
        AttentionSizes {
            heads: self.heads as i32,
            kv_heads: self.kv as i32,
            dim: self.dim as i32,
            window: self.window.unwrap_or(0) as i32,
            scale: self.scale,
        }
    }
}

/// Rows of q, k and v side by side.
fn beside(parts: [(&[f32], usize); 3]) -> Vec<f32> {
    let rows = parts[0].0.len() / parts[0].1;
    (0..rows).flat_map(|row| parts.iter().flat_map(move |(p, w)| &p[row * w..][..*w])).copied().collect()
}

/// What is rounded to bf16 on the way is off by 2^-8 of the terms, not of the sum.
fn bar(kind: Kind, in_tiles: bool) -> Bar {
    if in_tiles { Bar::of(kind).of_largest(1.0 / 256.0) } else { Bar::of(kind) }
}

/// A token a block, or sixteen, which leave u to another kernel.
pub(super) fn forward_case(t: &mut OnGpu, case: &Case, in_tiles: bool) {
    let (tokens, width, kv_width) = (case.tokens, case.width(), case.kv * case.dim);
    let adapters = SomeAdapters::random(t, width);
    let tail = if in_tiles { 0 } else { adapters.tail() };
    let ldy = t.ld(width + tail);
    let (q, k, v) = (
        t.rounded(tokens * width, 2.0),
        t.rounded(tokens * kv_width, 2.0),
        t.rounded(tokens * kv_width, 1.0),
    );
    // Of qkv only the values may be read here.
    let none = (vec![f32::NAN; tokens * width], vec![f32::NAN; tokens * kv_width]);
    let qkv = t.put_typed(&beside([(&none.0, width), (&none.1, kv_width), (&v, kv_width)]));
    let (q_at, k_at, kind) = (t.put_typed(&q), t.put_typed(&k), t.kind());
    let (y, lse) =
        (t.room::<Compute>(tokens, width + tail, ldy), t.room::<f32>(tokens, case.heads, case.heads));
    let parts = some_parts(t, case.heads);
    let attention = AttentionForward {
        q: q_at.ptr(),
        k: k_at.ptr(),
        qkv: qkv.ptr(),
        start: case.start.ptr(),
        y: y.ptr(),
        lse: lse.ptr(),
        step: adapters.step.ptr(),
        adapters: adapters.on_gpu,
        sizes: case.sizes(),
        ldy: y.ld(),
    };
    // SAFETY: all buffers have the sizes they are given with.
    let launched = unsafe {
        match in_tiles {
            true => attention.launch_tiles(&t.gpu, tokens),
            false => attention.launch(&t.gpu, tokens, parts),
        }
    };
    if let Err(error) = launched {
        return t.fail(error);
    }
    let (q, k, v) = (case.tensor(&q, case.heads), case.tensor(&k, case.kv), case.tensor(&v, case.kv));
    let (expected, expected_lse) = super::forward(&q, &k, &v, &case.shape()).unwrap();
    let (ours, u) = split(&t.read("y", &y), width, tail);
    t.check("y", &ours, &values(&expected), width, bar(kind, in_tiles));
    if !in_tiles {
        t.check("u", &u, &adapters.u(&ours), tail, Bar::of(kind).at_least(adapters.scale()));
    }
    let ours = t.read("lse", &lse);
    t.check("lse", &ours, &values(&expected_lse), case.heads, Bar::of(Kind::F32).at_least(1.0));
}

#[test]
fn forward() {
    on_every_gpu("attention forward", 50, |t| {
        let case = Case::random(t);
        forward_case(t, &case, false);
    });
}

#[test]
fn delta() {
    on_every_gpu("attention delta", 40, |t| {
        let case = Case::random(t);
        let (tokens, width) = (case.tokens, case.width());
        let adapters = SomeAdapters::random(t, width);
        let tail = adapters.tail();
        let ldy = t.ld(width + tail);
        let (y, d_y) = (t.rounded(tokens * width, 1.0), t.values(tokens * (width + tail), 1.0));
        let y_at = t.put::<Compute>(&y, width, ldy);
        let d_y_at = t.put::<f32>(&d_y, width + tail, ldy);
        let delta = t.room::<f32>(tokens, case.heads, case.heads);
        let parts = some_parts(t, case.heads);
        let launch = AttentionDelta {
            d_y: d_y_at.ptr(),
            y: y_at.ptr(),
            delta: delta.ptr(),
            step: adapters.step.ptr(),
            adapters: adapters.on_gpu,
            sizes: case.sizes(),
            ldy: y_at.ld(),
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { launch.launch(&t.gpu, tokens, parts).unwrap() };
        let (through, du) = split(&d_y, width, tail);
        let whole: Vec<f32> = through.iter().zip(adapters.back(&du, tokens)).map(|(a, b)| a + b).collect();
        let (ours, ours_du) = split(&t.read("d_y", &d_y_at), width, tail);
        t.check("d_y", &ours, &whole, width, Bar::of(Kind::F32));
        t.check("du", &ours_du, &du, tail, Bar::EXACT);
        let rows = whole.chunks_exact(case.dim).zip(y.chunks_exact(case.dim));
        let expected: Vec<f32> = rows.map(|(d, y)| d.iter().zip(y).map(|(d, y)| d * y).sum()).collect();
        let ours = t.read("delta", &delta);
        t.check("delta", &ours, &expected, case.heads, Bar::of(Kind::F32).at_least(1.0));
    });
}

/// Raw heads `[tokens, heads, dim]` as attention takes them, and their rstd.
fn norm_rope(t: &OnGpu, x: &[f32], w: &[f32], table: &RopeTable, heads: usize) -> (Vec<f32>, Vec<f32>) {
    let (rows, dim) = (x.len() / w.len(), w.len());
    let (y, rstd) = rms_norm::forward(&tensor(x, (rows, dim)), &tensor(w, dim), 1e-6).unwrap();
    let y = rope::forward(&y.reshape((rows / heads, heads, dim)).unwrap(), table).unwrap();
    (t.round(values(&y)), values(&rstd))
}

/// Its gradient for the raw heads, and the terms of the norm's weight's.
fn norm_rope_back(
    d: &candle_core::Tensor,
    x: &[f32],
    w: &[f32],
    rstd: &[f32],
    table: &RopeTable,
) -> (Vec<f32>, Vec<f32>) {
    let (rows, dim) = (x.len() / w.len(), w.len());
    let d = rope::backward(d, table).unwrap().reshape((rows, dim)).unwrap();
    let of_row = |((d, x), rstd): ((&[f32], &[f32]), &f32)| -> Vec<f32> {
        d.iter().zip(x).map(|(d, x)| d * x * rstd).collect()
    };
    let rows_of = |x: &[f32]| x.chunks_exact(dim).map(<[f32]>::to_vec).collect::<Vec<_>>();
    let (ds, xs) = (rows_of(&values(&d)), rows_of(x));
    let terms = ds.iter().map(Vec::as_slice).zip(xs.iter().map(Vec::as_slice)).zip(rstd).flat_map(of_row);
    let terms = terms.collect();
    let (x, w, rstd) = (tensor(x, (rows, dim)), tensor(w, dim), tensor(rstd, rows));
    (values(&rms_norm::backward(&d, &x, &w, &rstd, None).unwrap()), terms)
}

/// As [`forward_case`].
pub(super) fn backward_case(t: &mut OnGpu, case: &Case, in_tiles: bool) {
    let &Case { tokens, heads, kv, dim, .. } = case;
    let (width, kv_width) = (case.width(), kv * dim);
    // Positions within each sequence, from any number on.
    let mut positions = vec![];
    for s in &case.segments {
        let first = t.between(0, 50) as u32;
        positions.extend((0..s.q_len as u32).map(|i| first + i));
    }
    let there: Vec<u32> = (0..150).collect();
    let all = RopeTable::new(&there, dim, 10_000.0, 1.0).unwrap();
    let table = RopeTable::new(&positions, dim, 10_000.0, 1.0).unwrap();
    let (raw_q, raw_k, v) = (
        t.rounded(tokens * width, 2.0),
        t.rounded(tokens * kv_width, 2.0),
        t.rounded(tokens * kv_width, 1.0),
    );
    let (w_q, w_k) = (t.values(dim, 0.3), t.values(dim, 0.3));
    let (q, rstd_q) = norm_rope(t, &raw_q, &w_q, &table, heads);
    let (k, rstd_k) = norm_rope(t, &raw_k, &w_k, &table, kv);
    let (q_t, k_t, v_t) = (case.tensor(&q, heads), case.tensor(&k, kv), case.tensor(&v, kv));
    let (o, lse) = super::forward(&q_t, &k_t, &v_t, &case.shape()).unwrap();
    let (o, lse) = (t.round(values(&o)), values(&lse));
    let d_y = t.values(tokens * width, 1.0);
    let rows = d_y.chunks_exact(dim).zip(o.chunks_exact(dim));
    let delta: Vec<f32> = rows.map(|(d, y)| d.iter().zip(y).map(|(d, y)| d * y).sum()).collect();
    let rstd: Vec<f32> = rstd_q
        .chunks_exact(heads)
        .zip(rstd_k.chunks_exact(kv))
        .flat_map(|(q, k)| q.iter().chain(k).copied().collect::<Vec<_>>())
        .collect();

    let (ldy, kind, qkv_width) = (t.ld(width), t.kind(), case.qkv_width());
    let d_y_at = t.put::<f32>(&d_y, width, ldy);
    let y_at = t.put::<Compute>(&o, width, ldy);
    let (q_at, k_at) = (t.put_typed(&q), t.put_typed(&k));
    let qkv = t.put_typed(&beside([(&raw_q, width), (&raw_k, kv_width), (&v, kv_width)]));
    let (cos, sin) = all.tables();
    let [lse_at, delta_at, rstd_at, w_q_at, w_k_at, cos_at, sin_at] =
        [&lse, &delta, &rstd, &w_q, &w_k, &values(cos), &values(sin)].map(|v| t.put_f32(v));
    let positions_at = t.tokens(&positions);
    let d_qkv = t.room::<Compute>(tokens, qkv_width, qkv_width);
    // Where the norms' weights are trained.
    let terms_q = t.room::<f32>(tokens, width, width);
    let terms_k = t.room::<f32>(tokens, kv_width, kv_width);
    let trained = t.one_in(2);
    let parts = some_parts(t, case.heads);
    let attention = AttentionBackward {
        d_y: d_y_at.ptr(),
        q: q_at.ptr(),
        k: k_at.ptr(),
        qkv: qkv.ptr(),
        lse: lse_at.ptr(),
        delta: delta_at.ptr(),
        start: case.start.ptr(),
        end: case.end.ptr(),
        weight_q: w_q_at.ptr(),
        weight_k: w_k_at.ptr(),
        rstd: rstd_at.ptr(),
        cos: cos_at.ptr(),
        sin: sin_at.ptr(),
        positions: positions_at.ptr(),
        d_qkv: d_qkv.ptr(),
        terms_q: trained.then(|| terms_q.ptr()),
        terms_k: trained.then(|| terms_k.ptr()),
        y: y_at.ptr(),
        sizes: case.sizes(),
        ldy: d_y_at.ld(),
    };
    // SAFETY: all buffers have the sizes they are given with.
    let launched = unsafe {
        match in_tiles {
            true => attention.launch_tiles(&t.gpu, tokens),
            false => attention.launch(&t.gpu, tokens, parts),
        }
    };
    if let Err(error) = launched {
        return t.fail(error);
    }
    let kept = (&case.tensor(&o, heads), &tensor(&lse, (tokens, heads)));
    let d_o = case.tensor(&d_y, heads);
    let (dq, dk, dv) = super::backward(&d_o, (&q_t, &k_t, &v_t), kept, &case.shape()).unwrap();
    let (dq, expected_q) = norm_rope_back(&dq, &raw_q, &w_q, &rstd_q, &table);
    let (dk, expected_k) = norm_rope_back(&dk, &raw_k, &w_k, &rstd_k, &table);
    let expected = beside([(&dq, width), (&dk, kv_width), (&values(&dv), kv_width)]);
    // All three as one: a sequence of one token has no gradient for q and k but rounding.
    let ours = t.read("d_qkv", &d_qkv);
    t.check("d_qkv", &ours, &expected, qkv_width, bar(kind, in_tiles));
    if trained {
        // Of the gradient before the norm: rounding is a larger share.
        let bar =
            if in_tiles { Bar::of(kind).of_largest(1.0 / 128.0) } else { Bar::of(Kind::F32) }.at_least(1.0);
        let (ours_q, ours_k) = (t.read("terms_q", &terms_q), t.read("terms_k", &terms_k));
        t.check("terms_q", &ours_q, &expected_q, width, bar);
        t.check("terms_k", &ours_k, &expected_k, kv_width, bar);
    }
}

#[test]
fn backward() {
    on_every_gpu("attention backward", 50, |t| {
        let case = Case::random(t);
        backward_case(t, &case, false);
    });
}

/// As many heads as the kernels take: their blocks are the largest, and want the most registers.
#[test]
fn many_heads() {
    on_every_gpu("attention of many heads", 8, |t| {
        let (heads, kv, dim) = t.pick(&[
            (MAX_HEADS, 4, 256),
            (MAX_HEADS, 16, 128),
            (15, 5, 256),
            (12, 1, 64),
            (MAX_HEADS, 8, 32),
        ]);
        let case = Case::with_heads(t, heads, kv, dim, 1);
        forward_case(t, &case, false);
        backward_case(t, &case, false);
    });
}
