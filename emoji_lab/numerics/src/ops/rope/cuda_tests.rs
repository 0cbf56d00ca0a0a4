//! Norm and rotation of queries and keys against the CPU's norm and rotation.

use super::RopeTable;
use super::cuda::QkNormRope;
use crate::gpu::pointer::Compute;
use crate::ops::rms_norm;
use crate::ops::testing::{Bar, Kind, OnGpu, on_every_gpu, tensor, values};

const EPS: f32 = 1e-6;

/// Columns `first` to `first + count` of rows of `width`.
fn columns(rows: &[f32], width: usize, first: usize, count: usize) -> Vec<f32> {
    rows.chunks_exact(width).flat_map(|row| &row[first..first + count]).copied().collect()
}

/// The CPU's version for the heads `x` `[tokens, heads, dim]`: rotated, rstd.
fn heads(x: &[f32], w: &[f32], table: &RopeTable, heads: usize) -> (Vec<f32>, Vec<f32>) {
    let (rows, dim) = (x.len() / w.len(), w.len());
    let (y, rstd) = rms_norm::forward(&tensor(x, (rows, dim)), &tensor(w, dim), EPS.into()).unwrap();
    let y = super::forward(&y.reshape((rows / heads, heads, dim)).unwrap(), table).unwrap();
    (values(&y), values(&rstd))
}

#[test]
fn queries_and_keys() {
    on_every_gpu("qk_norm_rope", 40, |t: &mut OnGpu| {
        let (tokens, kv) = (t.between(1, 60), t.between(1, 4));
        let queries = kv * t.between(1, 4);
        let dim = if t.one_in(2) { 8 * t.between(1, 32) } else { t.pick(&[32, 64, 128, 256]) };
        t.sizes((tokens, queries, kv, dim));
        let width = (queries + 2 * kv) * dim;
        let x = t.rounded(tokens * width, 2.0);
        let (w_q, w_k) = (t.values(dim, 0.5), t.values(dim, 0.5));
        // Positions in any order, some more than once, the last one there is among them.
        let mut positions: Vec<u32> = (0..tokens).map(|_| t.between(0, 299) as u32).collect();
        positions[tokens / 2] = 299;
        let (theta, factor) = t.pick(&[(10_000.0, 1.0), (1_000_000.0, 8.0)]);
        let all = RopeTable::new(&(0..300).collect::<Vec<_>>(), dim, theta, factor).unwrap();
        let table = RopeTable::new(&positions, dim, theta, factor).unwrap();
        let (cos, sin) = all.tables();
        let (cos, sin) = (t.put_f32(&values(cos)), t.put_f32(&values(sin)));
        let (qkv, at) = (t.put_typed(&x), t.tokens(&positions));
        let weights = [t.put_f32(&w_q), t.put_f32(&w_k)];
        let kind = t.kind();
        let q = t.room::<Compute>(tokens, queries * dim, queries * dim);
        let k = t.room::<Compute>(tokens, kv * dim, kv * dim);
        let rstd = t.room::<f32>(tokens, queries + kv, queries + kv);
        let rotated = QkNormRope {
            qkv: qkv.ptr(),
            weight_q: weights[0].ptr(),
            weight_k: weights[1].ptr(),
            cos: cos.ptr(),
            sin: sin.ptr(),
            positions: at.ptr(),
            q: q.ptr(),
            k: k.ptr(),
            rstd: rstd.ptr(),
            heads: queries as i32,
            kv_heads: kv as i32,
            dim: dim as i32,
            eps: EPS,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { rotated.launch(&t.gpu, tokens).unwrap() };
        let rstds = t.read("rstd", &rstd);
        let (ours_q, ours_k) = (t.read("q", &q), t.read("k", &k));
        let (expected, rstd_q) = heads(&columns(&x, width, 0, queries * dim), &w_q, &table, queries);
        t.check("q", &ours_q, &expected, queries * dim, Bar::of(kind));
        let (expected, rstd_k) = heads(&columns(&x, width, queries * dim, kv * dim), &w_k, &table, kv);
        t.check("k", &ours_k, &expected, kv * dim, Bar::of(kind));
        let ours = columns(&rstds, queries + kv, 0, queries);
        t.check("rstd of q", &ours, &rstd_q, queries, Bar::of(Kind::F32));
        let ours = columns(&rstds, queries + kv, queries, kv);
        t.check("rstd of k", &ours, &rstd_k, kv, Bar::of(Kind::F32));
    });
}
