//! Rows side by side against what the host says of each.

use super::cuda::{CopyRows, FillRows, Likeliest, RowCopy, RowFill, best_blocks};
use crate::gpu::pointer::Compute;
use crate::ops::decode::cuda::{DecodeAttention, DecodeHeads, DecodeState};
use crate::ops::rope::RopeTable;
use crate::ops::testing::{Bar, on_every_gpu, values};

#[test]
fn prompts_go_into_the_caches_of_their_rows() {
    on_every_gpu("decode_rows fill", 40, |t| {
        let (kv, dim, rows) = (t.between(1, 3), 8 * t.between(1, 8), t.between(1, 9));
        let heads = kv * t.between(1, 3);
        let capacity = t.between(1, 40);
        let (row, width) = (kv * dim, (heads + 2 * kv) * dim);
        let lens: Vec<usize> = (0..t.between(1, 4)).map(|_| t.between(1, 60)).collect();
        let tokens: usize = lens.iter().sum::<usize>() + t.between(0, 5);
        // Some rows begin, each with one of the prompts.
        let mut fills = vec![];
        for to in 0..rows {
            if t.one_in(3) {
                continue;
            }
            let which = t.between(0, lens.len() - 1);
            let first: usize = lens[..which].iter().sum();
            fills.push(RowFill { row: to as i32, first: first as i32, len: lens[which] as i32 });
        }
        t.sizes((kv, dim, heads, rows, capacity, &lens, fills.len()));
        let (k, qkv) = (t.rounded(tokens * row, 2.0), t.rounded(tokens * width, 2.0));
        let (k_at, qkv_at) = (t.put_typed(&k), t.put_typed(&qkv));
        let before = t.rounded(rows * capacity * row, 1.0);
        let (keys, values_at) = (t.put_typed(&before), t.put_typed(&before));
        if let Some(longest) = fills.iter().map(|fill| fill.len as usize).max() {
            let fills_at = t.plain(&fills);
            let launch = FillRows {
                k: k_at.ptr(),
                qkv: qkv_at.ptr(),
                keys: keys.ptr(),
                values: values_at.ptr(),
                fills: fills_at.ptr(),
                heads: DecodeHeads {
                    heads: heads as i32,
                    kv_heads: kv as i32,
                    dim: dim as i32,
                    capacity: capacity as i32,
                    scale: 1.0,
                    eps: 1e-6,
                },
            };
            // SAFETY: all buffers have the sizes they are given with, and the fills are within them.
            unsafe { launch.launch(&t.gpu, fills.len(), longest).unwrap() };
        }
        let expected = |of: &dyn Fn(usize) -> Vec<f32>| {
            let mut cache = before.clone();
            for fill in &fills {
                for token in 0..fill.len as usize {
                    let place = (fill.row as usize * capacity + token % capacity) * row;
                    cache[place..][..row].copy_from_slice(&of(fill.first as usize + token));
                }
            }
            cache
        };
        let (ours, theirs) = (t.read("keys", &keys), expected(&|token| k[token * row..][..row].to_vec()));
        t.check("keys", &ours, &theirs, row, Bar::EXACT);
        let value = |token: usize| qkv[token * width + (heads + kv) * dim..][..row].to_vec();
        let (ours, theirs) = (t.read("values", &values_at), expected(&value));
        t.check("values", &ours, &theirs, row, Bar::EXACT);
    });
}

#[test]
fn rows_are_copied() {
    on_every_gpu("decode_rows copy", 30, |t| {
        let (width, from_rows, to_rows) = (8 * t.between(1, 90), t.between(1, 50), t.between(1, 20));
        t.sizes((width, from_rows, to_rows));
        let (from, before) = (t.rounded(from_rows * width, 1.0), t.rounded(to_rows * width, 1.0));
        let (from_at, to_at) = (t.put_typed(&from), t.put_typed(&before));
        let mut expected = before;
        let mut copies = vec![];
        for to in (0..to_rows).step_by(2) {
            let source = t.between(0, from_rows - 1);
            copies.push(RowCopy { from: source as i32, to: to as i32 });
            expected[to * width..][..width].copy_from_slice(&from[source * width..][..width]);
        }
        let copies_at = t.plain(&copies);
        let launch =
            CopyRows { from: from_at.ptr(), to: to_at.ptr(), copies: copies_at.ptr(), width: width as i32 };
        // SAFETY: all buffers have the sizes they are given with, and the copies are within them.
        unsafe { launch.launch(&t.gpu, copies.len()).unwrap() };
        let ours = t.read("to", &to_at);
        t.check("to", &ours, &expected, width, Bar::EXACT);
    });
}

#[test]
fn likeliest_of_every_row() {
    on_every_gpu("decode_rows likeliest", 30, |t| {
        let (rows, room) = (t.between(1, 9), t.between(1, 4));
        let vocab = if t.one_in(4) { t.between(8000, 40_000) } else { t.between(1, 600) };
        t.sizes((rows, vocab, room));
        // Few different values, so that there are equals; some are not numbers, and some rows have none.
        let logits: Vec<f32> = (0..rows * vocab)
            .map(|i| match t.between(0, 40) {
                0 => f32::NAN,
                1 => f32::NEG_INFINITY,
                _ if i / vocab == 3 => f32::NAN,
                n => (n as f32 - 20.0) / 4.0,
            })
            .collect();
        let state = |i: usize| DecodeState {
            token: -7,
            position: i as i32,
            count: (i % room) as i32,
            limit: if i.is_multiple_of(3) { (i % room) as i32 } else { room as i32 },
        };
        let states: Vec<DecodeState> = (0..rows).map(state).collect();
        let (logits_at, states_at) = (t.plain(&logits), t.plain(&states));
        let blocks = best_blocks(vocab);
        let bests = (t.room::<f32>(rows, blocks, blocks), t.room::<i32>(rows, blocks, blocks));
        let written = t.room::<i32>(rows, room, room);
        let launch = Likeliest {
            logits: logits_at.ptr(),
            best: bests.0.ptr(),
            best_row: bests.1.ptr(),
            written: written.ptr(),
            state: states_at.ptr(),
            vocab,
            room,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { launch.launch(&t.gpu, rows).unwrap() };
        let bytes = t.read_bytes("written", &written);
        let after = states_at.firsts(rows);
        for (row, (before, after)) in states.iter().zip(&after).enumerate() {
            let of = |token: usize| {
                let logit = logits[row * vocab + token];
                if logit.is_nan() { f32::NEG_INFINITY } else { logit }
            };
            let best = (0..vocab).fold(0, |best, token| if of(token) > of(best) { token } else { best });
            let wanted = before.count < before.limit;
            let expected = match wanted {
                true => (best as i32, before.position + 1, before.count + 1, before.limit),
                false => (before.token, before.position, before.count, before.limit),
            };
            if (after.token, after.position, after.count, after.limit) != expected {
                t.fail(format!("row {row}: {after:?}, not {expected:?}"));
            }
            for (i, token) in bytes.chunks_exact(4).skip(row * room).take(room).enumerate() {
                let here = wanted && i == before.count as usize;
                let expected = if here { (best as i32).to_ne_bytes() } else { [0xff; 4] };
                if token != expected {
                    t.fail(format!("written[{row}, {i}] is {token:?}, not {expected:?}"));
                }
            }
        }
    });
}

/// One row is held against the CPU by `decode`'s tests.
#[test]
fn attention_of_a_row_is_the_same_among_others() {
    on_every_gpu("decode_rows attention", 30, |t| {
        let kv = t.pick(&[1, 1, 2]);
        let heads = kv * t.between(1, 4);
        let dim = t.pick(&[8, 32, 48, 128, 256]);
        let (capacity, rows) = (t.between(1, 60), t.between(1, 12));
        t.sizes((heads, kv, dim, capacity, rows));
        let (row, width) = (kv * dim, (heads + 2 * kv) * dim);
        let there: Vec<u32> = (0..200).collect();
        let table = RopeTable::new(&there, dim, 10_000.0, 1.0).unwrap();
        let (w_q, w_k) = (t.values(dim, 0.3), t.values(dim, 0.3));
        let (w_q, w_k) = (t.put_f32(&w_q), t.put_f32(&w_k));
        let (cos, sin) = (t.put_f32(&values(table.tables().0)), t.put_f32(&values(table.tables().1)));
        let qkv = t.rounded(rows * width, 2.0);
        let cached = t.rounded(rows * capacity * row, 2.0);
        let states: Vec<DecodeState> = (0..rows)
            .map(|_| DecodeState { position: t.between(0, 199) as i32, ..DecodeState::default() })
            .collect();
        let mut run = |qkv: &[f32], cached: &[f32], states: &[DecodeState]| {
            let count = states.len();
            let (keys, values_at) = (t.put_typed(cached), t.put_typed(cached));
            let (qkv_at, states_at) = (t.put_typed(qkv), t.plain(states));
            let y = t.room::<Compute>(count, heads * dim, heads * dim);
            let launch = DecodeAttention {
                qkv: qkv_at.ptr(),
                weight_q: w_q.ptr(),
                weight_k: w_k.ptr(),
                cos: cos.ptr(),
                sin: sin.ptr(),
                keys: keys.ptr(),
                values: values_at.ptr(),
                y: y.ptr(),
                state: states_at.ptr(),
                heads: DecodeHeads {
                    heads: heads as i32,
                    kv_heads: kv as i32,
                    dim: dim as i32,
                    capacity: capacity as i32,
                    scale: 0.2,
                    eps: 1e-6,
                },
            };
            // SAFETY: all buffers have the sizes they are given with; there are angles for 200 tokens.
            unsafe { launch.launch(&t.gpu, count).unwrap() };
            [t.read("y", &y), t.read("keys", &keys), t.read("values", &values_at)]
        };
        let together = run(&qkv, &cached, &states);
        let alone: Vec<[Vec<f32>; 3]> = (0..rows)
            .map(|i| {
                let cached = &cached[i * capacity * row..][..capacity * row];
                run(&qkv[i * width..][..width], cached, &states[i..=i])
            })
            .collect();
        for (which, name) in ["y", "keys", "values"].into_iter().enumerate() {
            let alone: Vec<f32> = alone.iter().flat_map(|of| &of[which]).copied().collect();
            t.check(name, &together[which], &alone, heads * dim, Bar::EXACT);
        }
    });
}
