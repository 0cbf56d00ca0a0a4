//! The norm of a head's gradient that is nowhere, against that of the same gradient.

use super::cuda::PARTIALS;
use super::head::{HEAD_PARTIALS, HeadSquares, HiddenProducts, LookedUpRows, LookupSquares};
use crate::gpu::memory::Memory;
use crate::ops::adamw::head_tests::{dense, sizes};
use crate::ops::embedding::cuda::by_id;
use crate::ops::testing::{Bar, Kind, on_every_gpu};

#[test]
fn norm_without_the_gradient() {
    on_every_gpu("norm of a head in pieces", 60, |t| {
        if !t.gpu.bf16() {
            return;
        }
        let (tokens, vocab, width) = sizes(t);
        let vocab = if t.one_in(4) { vocab * 40 } else { vocab };
        let (looked_up, spoiled) = (!t.one_in(3), t.one_in(5));
        let scale = t.pick(&[1.0f32, 25.25]);
        t.sizes((tokens, vocab, width, looked_up, spoiled));
        let ids: Vec<u32> = (0..tokens).map(|_| t.random.below(vocab as u64) as u32).collect();
        let (mut d_logits, mut hidden) = (t.rounded(tokens * vocab, 0.1), t.rounded(tokens * width, 2.0));
        let dx = t.values(tokens * width, 0.1);
        if spoiled {
            let all = if t.one_in(2) { &mut d_logits } else { &mut hidden };
            let at = t.random.below(all.len() as u64) as usize;
            all[at] = f32::NAN;
        }
        let rows = looked_up.then_some((&ids[..], &dx[..], scale));
        let gradient = dense((&d_logits, &hidden), rows, (tokens, vocab, width));
        let expected = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();

        let (order, runs) = by_id(&ids.iter().map(|id| *id as i32).collect::<Vec<_>>());
        let (order, runs, ids_at) = (t.plain(&order), t.plain(&runs), t.tokens(&ids));
        let (d_logits_at, hidden_at, dx_at) = (t.put_typed(&d_logits), t.put_typed(&hidden), t.put_f32(&dx));
        let products = t.room::<f32>(tokens, tokens, tokens);
        let partials = Memory::<f64>::zeros(&t.gpu, PARTIALS + HEAD_PARTIALS, "partial sums").unwrap();
        let at = partials.ptr().at(&t.gpu, PARTIALS);
        let (d_logits_at, hidden_at) = (d_logits_at.ptr().cast(), hidden_at.ptr().cast());
        let (tokens_of, width_of, vocab_of) = (tokens as i32, width as i32, vocab as i32);
        let of_hidden = HiddenProducts {
            hidden: hidden_at,
            products: products.ptr(),
            tokens: tokens_of,
            width: width_of,
        };
        let of_head = HeadSquares {
            d_logits: d_logits_at,
            products: products.ptr(),
            partials: at,
            tokens: tokens_of,
            vocab: vocab_of,
        };
        let rows_at = Memory::<f32>::poisoned(&t.gpu, tokens * width, "rows looked up").unwrap();
        let of_ids = LookedUpRows {
            d_logits: d_logits_at,
            hidden: hidden_at,
            ids: ids_at.ptr(),
            order: order.ptr(),
            runs: runs.ptr(),
            rows: rows_at.ptr(),
            tokens: tokens_of,
            vocab: vocab_of,
            width: width_of,
            padding: 0,
        };
        let of_rows = LookupSquares {
            rows: rows_at.ptr(),
            dx: dx_at.ptr(),
            order: order.ptr(),
            runs: runs.ptr(),
            partials: at,
            tokens: tokens_of,
            width: width_of,
            scale,
            padding: 0,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe {
            of_hidden.launch(&t.gpu).unwrap();
            of_head.launch(&t.gpu).unwrap();
            if looked_up {
                of_ids.launch(&t.gpu).unwrap();
                of_rows.launch(&t.gpu).unwrap();
            }
        }
        let _ = t.read_bytes("products", &products);
        let mut sums = vec![0.0; PARTIALS + HEAD_PARTIALS];
        partials.read(0, &mut sums).unwrap();
        if sums[..PARTIALS].iter().any(|sum| *sum != 0.0) {
            t.fail("written before the head's parts");
        }
        let ours = sums.iter().sum::<f64>().sqrt();
        if spoiled {
            if ours.is_finite() {
                t.fail(format!("the norm is {ours} with a NaN"));
            }
            return;
        }
        // Sums of f32 in another order, squared.
        t.check("norm", &[ours as f32], &[expected as f32], 1, Bar::of(Kind::F32).of_largest(2e-5));
    });
}
