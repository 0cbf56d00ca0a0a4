//! Decoding's kernels against the CPU's ops, put together as one token needs them.

use super::cuda::{
    DecodeAttention, DecodeHead, DecodeHeads, DecodeLinear, DecodeNormLinear, DecodePick, DecodeState,
    FillCache, HEAD_BLOCKS,
};
use crate::gpu::pointer::Compute;
use crate::ops::attention::{self, AttentionShape, Segment};
use crate::ops::lora_linear::{self, Weight};
use crate::ops::rope::{self, RopeTable};
use crate::ops::testing::{Bar, Kind, OnGpu, on_every_gpu, tensor, values};
use crate::ops::{geglu, rms_norm};

const EPS: f32 = 1e-6;

/// The CPU's `W · x`.
fn product(matrix: &[f32], x: &[f32]) -> Vec<f32> {
    let w = Weight::from(tensor(matrix, (matrix.len() / x.len(), x.len())));
    values(&lora_linear::forward(&tensor(x, (1, x.len())), &w, None).unwrap().0)
}

fn norm(x: &[f32], w: &[f32]) -> Vec<f32> {
    values(
        &rms_norm::forward(&tensor(x, (x.len() / w.len(), w.len())), &tensor(w, w.len()), EPS.into())
            .unwrap()
            .0,
    )
}

/// What a sum of `width` products of ±1 and ±0.3 amounts to.
fn amount(width: usize) -> f64 {
    0.1 * (width as f64).sqrt()
}

#[test]
fn norm_and_linear() {
    on_every_gpu("decode norm_linear", 50, |t| {
        let (width, rows, branched, gated) =
            (8 * t.between(1, 100), t.between(1, 300), t.one_in(2), t.one_in(2));
        let ld = t.ld(width);
        t.sizes((width, rows, ld, branched, gated));
        let (x, branch) = (t.values(width, 2.0), t.rounded(width, 3.0));
        let (w, w_post) = (t.values(width, 0.5), t.values(width, 0.5));
        let all_rows = if gated { 2 * rows } else { rows };
        let (matrix, kind) = (t.rounded(all_rows * width, 0.3), t.kind());
        let matrix_at = t.put::<Compute>(&matrix, width, ld);
        let (x_at, branch_at) = (t.put_f32(&x), t.put_typed(&branch));
        let (w_at, w_post_at) = (t.put_f32(&w), t.put_f32(&w_post));
        let (stream, y) = (t.room::<f32>(1, width, width), t.room::<Compute>(1, rows, rows));
        let launch = DecodeNormLinear {
            x: x_at.ptr(),
            branch: branched.then(|| branch_at.ptr()),
            branch_weight: Some(w_post_at.ptr()),
            stream: stream.ptr(),
            weight: w_at.ptr(),
            matrix: matrix_at.ptr(),
            y: y.ptr(),
            ld: matrix_at.ld(),
            rows: rows as i32,
            width: width as i32,
            eps: EPS,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { if gated { launch.launch_geglu(&t.gpu) } else { launch.launch(&t.gpu) } }.unwrap();
        let mut expected = x;
        if branched {
            expected.iter_mut().zip(norm(&branch, &w_post)).for_each(|(x, b)| *x += b);
        }
        let ours = t.read("stream", &stream);
        t.check("stream", &ours, &expected, width, Bar::of(Kind::F32));
        let product = product(&matrix, &t.round(norm(&expected, &w)));
        let expected = match gated {
            true => {
                let product = t.round(product);
                let (gate, up) = (tensor(&product[..rows], rows), tensor(&product[rows..], rows));
                values(&geglu::forward(&gate, &up).unwrap())
            }
            false => product,
        };
        // The normed vector is rounded in between, and so are gate and up.
        let bar = match kind {
            Kind::Bf16 => Bar::of(kind).times(if gated { 3.0 } else { 1.0 }).of_largest(1.0 / 256.0),
            _ => Bar::of(kind),
        };
        let ours = t.read("y", &y);
        t.check(if gated { "y, gated" } else { "y" }, &ours, &expected, rows, bar.at_least(amount(width)));
    });
}

#[test]
fn linear() {
    on_every_gpu("decode linear", 40, |t| {
        let (width, rows) = (8 * t.between(1, 200), t.between(1, 300));
        let ld = t.ld(width);
        t.sizes((width, rows, ld));
        let (x, matrix, kind) = (t.rounded(width, 1.0), t.rounded(rows * width, 0.3), t.kind());
        let (x_at, matrix_at) = (t.put_typed(&x), t.put::<Compute>(&matrix, width, ld));
        let y = t.room::<Compute>(1, rows, rows);
        let launch = DecodeLinear {
            x: x_at.ptr(),
            matrix: matrix_at.ptr(),
            y: y.ptr(),
            ld: matrix_at.ld(),
            rows: rows as i32,
            width: width as i32,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { launch.launch(&t.gpu).unwrap() };
        let ours = t.read("y", &y);
        t.check("y", &ours, &product(&matrix, &x), rows, Bar::of(kind).at_least(amount(width)));
    });
}

/// Keys and values of one sequence as the CPU keeps them: all of them, in order.
#[derive(Default)]
struct History {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// One head's norm and rotation at `position`, as the compute type holds it.
fn norm_rope(t: &OnGpu, x: &[f32], w: &[f32], position: u32) -> Vec<f32> {
    let heads = x.len() / w.len();
    let table = RopeTable::new(&[position], w.len(), 10_000.0, 1.0).unwrap();
    let y = tensor(&norm(x, w), (1, heads, w.len()));
    t.round(values(&rope::forward(&y, &table).unwrap()))
}

#[test]
fn attention_over_a_cache() {
    on_every_gpu("decode attention", 30, |t| {
        let kv = t.pick(&[1, 1, 2, 4]);
        let heads = kv * t.between(1, 4);
        let dim = if t.one_in(3) { 8 * t.between(1, 32) } else { t.pick(&[32, 64, 128, 256]) };
        let capacity = if t.one_in(4) { t.between(1, 8) } else { t.between(9, 80) };
        // The prompt is shorter than the cache, as long, or longer; then it goes on past its end.
        let prompt = t.between(0, 2 * capacity);
        let steps = t.between(1, 6) + if t.one_in(3) { capacity } else { 0 };
        t.sizes((heads, kv, dim, capacity, prompt, steps));
        let (kind, row) = (t.kind(), kv * dim);
        let width = (heads + 2 * kv) * dim;
        let (w_q, w_k) = (t.values(dim, 0.3), t.values(dim, 0.3));
        let there: Vec<u32> = (0..300).collect();
        let (cos, sin) = {
            let table = RopeTable::new(&there, dim, 10_000.0, 1.0).unwrap();
            (values(table.tables().0), values(table.tables().1))
        };
        let [w_q_at, w_k_at, cos_at, sin_at] = [&w_q, &w_k, &cos, &sin].map(|v| t.put_f32(v));
        let keys = t.room::<Compute>(capacity, row, row);
        let values_at = t.room::<Compute>(capacity, row, row);
        let scale = 1.0 / (dim as f32).sqrt();
        let sizes = DecodeHeads {
            heads: heads as i32,
            kv_heads: kv as i32,
            dim: dim as i32,
            capacity: capacity as i32,
            scale,
            eps: EPS,
        };
        let mut history = History::default();
        if prompt > 0 {
            let (k, qkv) = (t.rounded(prompt * row, 2.0), t.rounded(prompt * width, 2.0));
            let (k_at, qkv_at) = (t.put_typed(&k), t.put_typed(&qkv));
            let fill = FillCache {
                k: k_at.ptr(),
                qkv: qkv_at.ptr(),
                keys: keys.ptr(),
                values: values_at.ptr(),
                heads: sizes,
                tokens: prompt as i32,
            };
            // SAFETY: all buffers have the sizes they are given with.
            unsafe { fill.launch(&t.gpu).unwrap() };
            history.values = qkv.chunks_exact(width).flat_map(|r| &r[width - row..]).copied().collect();
            history.keys = k;
        }
        for step in 0..steps {
            let position = prompt + step;
            let qkv = t.rounded(width, 2.0);
            let (qkv_at, y) = (t.put_typed(&qkv), t.room::<Compute>(1, heads * dim, heads * dim));
            let state = t.plain(&[DecodeState { token: 0, position: position as i32, count: 0, limit: 0 }]);
            let launch = DecodeAttention {
                qkv: qkv_at.ptr(),
                weight_q: w_q_at.ptr(),
                weight_k: w_k_at.ptr(),
                cos: cos_at.ptr(),
                sin: sin_at.ptr(),
                keys: keys.ptr(),
                values: values_at.ptr(),
                y: y.ptr(),
                state: state.ptr(),
                heads: sizes,
            };
            // SAFETY: all buffers have the sizes they are given with; there are angles for 300 tokens.
            unsafe { launch.launch(&t.gpu, 1).unwrap() };
            let (q, rest) = qkv.split_at(heads * dim);
            let q = norm_rope(t, q, &w_q, position as u32);
            history.keys.extend(norm_rope(t, &rest[..row], &w_k, position as u32));
            history.values.extend(&rest[row..]);
            let count = position + 1;
            let all = |v: &[f32]| tensor(v, (count, kv, dim));
            let segment = [Segment { q_start: 0, q_len: 1, k_start: 0, k_len: count }];
            let shape = AttentionShape { segments: &segment, scale: scale.into(), window: Some(capacity) };
            let (q, k, v) = (tensor(&q, (1, heads, dim)), all(&history.keys), all(&history.values));
            let (expected, _) = attention::forward(&q, &k, &v, &shape).unwrap();
            let ours = t.read("y", &y);
            // In bf16 queries and keys may be rounded apart: a score by 2^-8, and p by as much.
            let bar = match kind {
                Kind::Bf16 => Bar::of(kind).of_largest(2.0 / 256.0),
                _ => Bar::of(kind),
            };
            t.check("y", &ours, &values(&expected), heads * dim, bar);
        }
        // What the cache holds at the end: the last tokens, each in its place, and nothing else.
        let count = prompt + steps;
        let place = |all: &[f32]| -> Vec<f32> {
            let token = |slot: usize| (0..count).rev().find(|token| token % capacity == slot);
            let slots = (0..capacity.min(count)).filter_map(token);
            slots.flat_map(|token| &all[token * row..][..row]).copied().collect()
        };
        let seen = capacity.min(count) * row * kind.size();
        for (name, room, all, bar) in [
            // Both were rounded, perhaps apart.
            ("cached keys", &keys, &history.keys, Bar::of(kind).times(2.0)),
            ("cached values", &values_at, &history.values, Bar::EXACT),
        ] {
            let bytes = t.read_bytes(name, room);
            let (ours, unwritten) = kind.decode(&bytes[..seen]);
            if let Some(at) = unwritten {
                t.fail(format!("{name}: value {at} was not written"));
            }
            t.check(name, &ours, &place(all), row, bar);
            if bytes[seen..].iter().any(|byte| *byte != 0xff) {
                t.fail(format!("{name}: written past the last token"));
            }
        }
    });
}

#[test]
fn head_and_pick() {
    on_every_gpu("decode head and pick", 40, |t| {
        let (width, rows) = match t.between(0, 3) {
            0 => (8 * t.between(1, 8), t.between(8 * HEAD_BLOCKS - 3, 3 * 8 * HEAD_BLOCKS)),
            1 => (8 * t.between(1, 40), t.between(1, 40)),
            _ => (8 * t.between(1, 40), t.between(1, 3000)),
        };
        let (hidden, mut matrix) = (t.rounded(width, 1.0), t.rounded(rows * width, 0.3));
        // Several rows that are the best: rows like the hidden state itself.
        let ties = t.between(0, 6);
        let best: Vec<usize> = (0..ties).map(|_| t.between(0, rows - 1)).collect();
        for &row in &best {
            matrix[row * width..][..width].copy_from_slice(&hidden);
        }
        let limit = t.between(0, 3);
        let count = t.between(0, limit);
        t.sizes((width, rows, &best, count, limit));
        let (hidden_at, matrix_at) = (t.put_typed(&hidden), t.put_typed(&matrix));
        let logits_at = t.room::<f32>(1, rows, rows);
        let bests = (t.room::<f32>(1, HEAD_BLOCKS, HEAD_BLOCKS), t.room::<i32>(1, HEAD_BLOCKS, HEAD_BLOCKS));
        let written = t.room::<i32>(1, limit + 1, limit + 1);
        let state = DecodeState { token: -7, position: 40, count: count as i32, limit: limit as i32 };
        let state_at = t.plain(&[state]);
        let head = DecodeHead {
            hidden: hidden_at.ptr(),
            matrix: matrix_at.ptr(),
            logits: logits_at.ptr(),
            best: bests.0.ptr(),
            best_row: bests.1.ptr(),
            rows: rows as i32,
            width: width as i32,
        };
        let pick = DecodePick {
            best: bests.0.ptr(),
            best_row: bests.1.ptr(),
            written: written.ptr(),
            state: state_at.ptr(),
            count: HEAD_BLOCKS as i32,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe {
            head.launch(&t.gpu).unwrap();
            pick.launch(&t.gpu).unwrap();
        }
        let logits = t.read("logits", &logits_at);
        let expected = product(&matrix, &hidden);
        t.check("logits", &logits, &expected, rows, Bar::of(Kind::F32).at_least(amount(width)));
        let _ = (t.read("best", &bests.0), t.read("best rows", &bests.1));
        // The best of our own logits, the first of equals; and one of the rows that must be it.
        let mut likeliest = 0;
        for (row, logit) in logits.iter().enumerate() {
            if *logit > logits[likeliest] {
                likeliest = row;
            }
        }
        if let Some(first) = best.iter().min().filter(|first| **first != likeliest) {
            t.fail(format!("row {likeliest} has the largest logit, not row {first}"));
        }
        let now = state_at.first();
        let room = usize::from(count < limit);
        let expected = (likeliest as i32, 41, (count + room) as i32, limit as i32);
        if (now.token, now.position, now.count, now.limit) != expected {
            t.fail(format!("the state is {now:?}, not {expected:?}"));
        }
        let bytes = t.read_bytes("written", &written);
        for (i, token) in bytes.chunks_exact(4).enumerate() {
            let expected = if i == count && room == 1 { (likeliest as i32).to_ne_bytes() } else { [0xff; 4] };
            if token != expected {
                t.fail(format!("written[{i}] is {token:?}, not {expected:?}"));
            }
        }
    });
}
