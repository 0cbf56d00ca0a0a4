//! The loss' kernels against the CPU's op, and head, loss and both products together as the passes
//! put them together.

use super::cuda::{CrossEntropy, SumLosses, TakeColumns};
use super::{loss, loss_and_gradient};
use crate::gpu::pointer::Compute;
use crate::ops::IGNORE_INDEX;
use crate::ops::testing::{Bar, Kind, OnGpu, Product, matrix, on_every_gpu, tensor, values};

/// Targets of which some are ignored, at times all but one, and of which one is the last word.
fn targets(t: &mut OnGpu, rows: usize, vocab: usize) -> Vec<i64> {
    let ignored = t.pick(&[1u64, 2, 4, 1000]);
    let mut targets: Vec<i64> = (0..rows)
        .map(|_| if t.one_in(ignored) { IGNORE_INDEX } else { t.between(0, vocab - 1) as i64 })
        .collect();
    let (first, last) = (t.between(0, rows - 1), t.between(0, rows - 1));
    targets[first] = 0;
    targets[last] = vocab as i64 - 1;
    targets
}

/// As the GPU has them.
fn on_gpu(targets: &[i64]) -> Vec<i32> {
    targets.iter().map(|target| (*target).max(-1) as i32).collect()
}

/// Every row's loss on the CPU: the op with all other rows ignored.
fn losses(h: &candle_core::Tensor, w: &candle_core::Tensor, targets: &[i64]) -> Vec<f32> {
    let one = |row: usize| {
        let mut alone = vec![IGNORE_INDEX; targets.len()];
        alone[row] = targets[row];
        loss(h, w, &alone).unwrap().sum as f32
    };
    (0..targets.len()).map(one).collect()
}

#[test]
fn columns_of_logits() {
    on_every_gpu("columns of logits", 30, |t| {
        let (rows, vocab) = (t.between(1, 40), t.between(1, 900));
        let ids: Vec<u32> = (0..vocab as u32).filter(|_| t.one_in(3)).collect();
        if ids.is_empty() {
            return;
        }
        let ld = ids.len() + t.between(0, 9);
        t.sizes((rows, vocab, ids.len(), ld));
        let logits = t.rounded(rows * vocab, 1.0);
        let (logits_at, ids_at) = (t.put_typed(&logits), t.tokens(&ids));
        let columns = t.room::<Compute>(rows, ids.len(), ld);
        let take = TakeColumns {
            logits: logits_at.ptr(),
            ids: ids_at.ptr(),
            columns: columns.ptr(),
            vocab: vocab as i32,
            count: ids.len() as i32,
            ld: ld as i32,
        };
        // SAFETY: all buffers have the sizes they are given with, and ids are columns of the logits.
        unsafe { take.launch(&t.gpu, rows).unwrap() };
        let expected: Vec<f32> =
            logits.chunks(vocab).flat_map(|row| ids.iter().map(|id| row[*id as usize])).collect();
        let ours = t.read("columns", &columns);
        t.check("columns", &ours, &expected, ids.len(), Bar::EXACT);
    });
}

#[test]
fn rows_of_logits() {
    on_every_gpu("cross_entropy", 40, |t| {
        // Rows are of a multiple of 16 bytes: the kernel's one condition.
        let unit = if t.kind() == Kind::Bf16 { 8 } else { 4 };
        let vocab = match t.between(0, 4) {
            0 => unit * t.between(1, 12),
            // Those that blocks of a cluster share.
            1 => unit * t.between(16_384 / unit, 40_000 / unit),
            2 => unit * t.between(1, 9000 / unit),
            _ => unit * t.between(1, 1500 / unit),
        };
        let rows = t.between(1, if vocab > 2000 { 5 } else { 24 });
        let gradient = !t.one_in(4);
        t.sizes((rows, vocab, gradient));
        let spread = t.pick(&[1.0, 10.0, 80.0]);
        let logits = t.rounded(rows * vocab, spread);
        let targets = targets(t, rows, vocab);
        let factor = t.pick(&[1.0f32, 1.0 / 3.0, 1.0 / 117.0]);
        let (kind, step) = (t.kind(), t.step(0, 0, factor, true));
        let at = t.put::<Compute>(&logits, vocab, vocab);
        let (targets_at, losses_at) = (t.plain(&on_gpu(&targets)), t.room::<f32>(rows, 1, 1));
        let entropy = CrossEntropy {
            logits: at.ptr(),
            targets: targets_at.ptr(),
            losses: losses_at.ptr(),
            step: step.ptr(),
            vocab: vocab as i32,
            gradient: i32::from(gradient),
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { entropy.launch(&t.gpu, rows).unwrap() };
        // With an identity for h, the head is the logits' transpose, and its gradient theirs.
        let h: Vec<f32> = (0..rows * rows).map(|i| f32::from(i / rows == i % rows)).collect();
        let (h, w) = (tensor(&h, (rows, rows)), tensor(&logits, (rows, vocab)));
        let w = w.t().unwrap().contiguous().unwrap();
        let ours = t.read("losses", &losses_at);
        t.check("losses", &ours, &losses(&h, &w, &targets), 1, Bar::of(Kind::F32).at_least(1.0));
        let ours = t.read("d_logits", &at);
        if gradient {
            let dw = w.zeros_like().unwrap();
            loss_and_gradient(&h, &w, &targets, factor.into(), Some(&dw)).unwrap();
            t.check("d_logits", &ours, &values(&dw.t().unwrap()), vocab, Bar::of(kind));
        } else {
            t.check("logits", &ours, &logits, vocab, Bar::EXACT);
        }
    });
}

#[test]
fn a_row_of_the_real_vocabulary() {
    on_every_gpu("cross_entropy, 262,144 words", 2, |t| {
        let (rows, vocab) = (3, 262_144);
        t.sizes((rows, vocab));
        let (logits, kind) = (t.rounded(rows * vocab, 9.0), t.kind());
        let (targets, factor) = ([vocab as i64 - 1, IGNORE_INDEX, 0], 0.25f32);
        let step = t.step(0, 0, factor, true);
        let at = t.put::<Compute>(&logits, vocab, vocab);
        let (targets_at, losses_at) = (t.plain(&on_gpu(&targets)), t.room::<f32>(rows, 1, 1));
        let entropy = CrossEntropy {
            logits: at.ptr(),
            targets: targets_at.ptr(),
            losses: losses_at.ptr(),
            step: step.ptr(),
            vocab: vocab as i32,
            gradient: 1,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { entropy.launch(&t.gpu, rows).unwrap() };
        let h = tensor(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], (3, 3));
        let w = tensor(&logits, (rows, vocab)).t().unwrap().contiguous().unwrap();
        let ours = t.read("losses", &losses_at);
        t.check("losses", &ours, &losses(&h, &w, &targets), 1, Bar::of(Kind::F32));
        let dw = w.zeros_like().unwrap();
        loss_and_gradient(&h, &w, &targets, factor.into(), Some(&dw)).unwrap();
        let ours = t.read("d_logits", &at);
        t.check("d_logits", &ours, &values(&dw.t().unwrap()), vocab, Bar::of(kind));
    });
}

#[test]
fn sum_of_losses() {
    on_every_gpu("sum_losses", 30, |t| {
        let (rows, first_micro, before) = (t.between(1, 900), t.one_in(2), 1234.5f64);
        t.sizes((rows, first_micro));
        let losses = t.values(rows, 5.0);
        let (at, total) = (t.put_f32(&losses), t.plain(&[before]));
        let step = t.step(0, 0, 1.0, first_micro);
        let launch = SumLosses { losses: at.ptr(), total: total.ptr(), step: step.ptr(), rows: rows as i32 };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { launch.launch(&t.gpu).unwrap() };
        let sum: f64 = losses.iter().map(|l| f64::from(*l)).sum();
        let expected = if first_micro { sum } else { sum + before };
        let ours = total.first();
        // f64 on both sides; of sums in another order the last bits may differ.
        if (ours - expected).abs() > 1e-10 * (1.0 + expected.abs()) {
            t.fail(format!("the sum is {ours}, not {expected}"));
        }
    });
}

#[test]
fn head_and_loss_in_blocks() {
    on_every_gpu("linear_cross_entropy", 20, |t| {
        let (tokens, hidden, vocab) = (t.between(1, 40), 8 * t.between(1, 30), 8 * t.between(1, 90));
        let block = t.between(1, tokens);
        t.sizes((tokens, hidden, vocab, block));
        let (h, w) = (t.rounded(tokens * hidden, 1.0), t.rounded(vocab * hidden, 0.3));
        let targets = targets(t, tokens, vocab);
        let (factor, kind) = (1.0f32 / 16.0, t.kind());
        let step = t.step(0, 0, factor, true);
        let (h_at, w_at) = (t.put_typed(&h), t.put_typed(&w));
        let targets_at = t.plain(&on_gpu(&targets));
        let logits = t.room::<Compute>(block, vocab, vocab);
        let losses_at = t.room::<f32>(tokens, 1, 1);
        let d_h = t.room::<f32>(tokens, hidden, hidden);
        let d_w = t.room::<Compute>(vocab, hidden, hidden);
        for first in (0..tokens).step_by(block) {
            let rows = block.min(tokens - first);
            let x = matrix(h_at.column(first * hidden), hidden);
            let (w, y) = (matrix(w_at.ptr(), hidden), matrix(logits.ptr(), vocab));
            let (dx, dw) = (matrix(d_h.row(first), hidden), matrix(d_w.ptr(), hidden));
            let entropy = CrossEntropy {
                logits: logits.ptr(),
                targets: targets_at.ptr().at(&t.gpu, first),
                losses: losses_at.row(first),
                step: step.ptr(),
                vocab: vocab as i32,
                gradient: 1,
            };
            // SAFETY: all buffers have the sizes they are given with.
            unsafe {
                t.product((rows, vocab, hidden), Product::Forward { x, w, y });
                entropy.launch(&t.gpu, rows).unwrap();
                t.product((rows, hidden, vocab), Product::Back { dy: y, w, dx });
                t.product((vocab, hidden, rows), Product::Weight { dy: y, x, dw, add: first > 0 });
            }
        }
        let _ = t.read_bytes("logits", &logits);
        let (h, w) = (tensor(&h, (tokens, hidden)), tensor(&w, (vocab, hidden)));
        let dw = w.zeros_like().unwrap();
        let (_, dh) = loss_and_gradient(&h, &w, &targets, factor.into(), Some(&dw)).unwrap();
        // In bf16 logits and their gradients are rounded in between, and dW once more a block: a few
        // roundings of 2^-9, of logits (which move a probability by that much times the logit).
        let bar = match kind {
            Kind::Bf16 => Bar::of(kind).of_largest(4.0 / 256.0),
            _ => Bar::of(kind),
        };
        let ours = t.read("losses", &losses_at);
        t.check("losses", &ours, &losses(&h, &w, &targets), 1, bar.at_least(1.0));
        let ours = t.read("dh", &d_h);
        t.check("dh", &ours, &values(&dh), hidden, bar);
        let ours = t.read("dW", &d_w);
        t.check("dW", &ours, &values(&dw), hidden, bar);
    });
}
