//! The gradients' norm against the CPU's, odd lengths, NaN and infinities found wherever they are.

use super::cuda::{GradNorm, Gradients, PARTIALS, RANGE_PARTIALS, Range, SquaresByRange};
use crate::ops::testing::{Bar, Kind, on_every_gpu, tensor};

#[test]
fn norm_factor_and_what_is_not_finite() {
    on_every_gpu("grad_norm", 60, |t| {
        let (head_len, len) = match t.between(0, 3) {
            0 => (t.between(0, 9), t.between(1, 9)),
            1 => (0, t.between(1, 3000)),
            _ => (t.between(1, 100_000), t.between(1, 100_000)),
        };
        let (mut head, mut others) = (t.rounded(head_len, 0.1), t.values(len, 0.1));
        let spoiled =
            if t.one_in(3) { Some(t.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY])) } else { None };
        let max_norm = t.pick(&[0.0f32, 0.3, 1.0, 1e6]);
        t.sizes((head_len, len, spoiled, max_norm));
        if let Some(value) = spoiled {
            // Anywhere, and often among the last, which are not a whole eight.
            let side = if head_len > 0 && t.one_in(2) { &mut head } else { &mut others };
            let back = t.random.below(side.len().min(9) as u64) as usize;
            let anywhere = t.random.below(side.len() as u64) as usize;
            let at = if t.one_in(2) { side.len() - 1 - back } else { anywhere };
            side[at] = value;
        }
        let loss = if spoiled.is_none() && t.one_in(8) { f64::NAN } else { 12.5 };
        let (head_at, others_at, loss_at) = (t.put_typed(&head), t.put_f32(&others), t.plain(&[loss]));
        // As micro-batches are added up.
        let summed = t.put_f32(&head);
        let products = match t.one_in(3) {
            true => Gradients::F32(summed.ptr(), head_len),
            false => Gradients::Compute(head_at.ptr(), head_len),
        };
        let partials = t.room::<f64>(1, PARTIALS, PARTIALS);
        let (step, result) = (t.step_with(0, 0, 1.0, true, max_norm), t.room_for_result());
        let norm = GradNorm {
            products,
            others: others_at.ptr(),
            len,
            partials: partials.ptr(),
            more: 0,
            loss: loss_at.ptr(),
            step: step.ptr(),
            result: result.ptr(),
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { norm.launch(&t.gpu).unwrap() };
        let _ = t.read_bytes("partials", &partials);
        let (our_loss, our_norm, factor, finite) = t.step_result(&result);
        if our_loss.to_bits() != loss.to_bits() {
            t.fail(format!("the loss is {our_loss}, not {loss}"));
        }
        let good = spoiled.is_none() && loss.is_finite();
        if finite != good {
            t.fail(format!("finite is {finite}: norm {our_norm}, loss {loss}"));
        }
        if !good {
            t.check("factor", &[factor], &[0.0], 1, Bar::EXACT);
        }
        if spoiled.is_some() {
            return;
        }
        let all: Vec<f32> = head.iter().chain(&others).copied().collect();
        let expected = super::global_norm(&tensor(&all, all.len())).unwrap();
        // Squares are added eight by eight in f32, everything else in f64.
        t.check("norm", &[our_norm as f32], &[expected as f32], 1, Bar::of(Kind::F32).of_largest(1e-6));
        if good {
            let max_norm = f64::from(max_norm);
            let expected = if max_norm > 0.0 { super::clip_factor(expected, max_norm) } else { 1.0 };
            t.check("factor", &[factor], &[expected as f32], 1, Bar::of(Kind::F32).of_largest(1e-6));
        }
    });
}

#[test]
fn ranges() {
    on_every_gpu("grad_norm by range", 40, |t| {
        let mut gradients = vec![];
        let mut ranges: Vec<Range> = vec![];
        for _ in 0..t.between(1, 12) {
            // Something between the ranges that must not count.
            let between = t.between(0, 5);
            gradients.extend(std::iter::repeat_n(f32::NAN, between));
            let len = if t.one_in(3) { t.between(1, 9) } else { t.between(1, 40_000) };
            ranges.push(Range { first: gradients.len() as u64, len: len as u64 });
            gradients.extend(t.rounded(len, 0.1));
        }
        let spoiled = if t.one_in(2) { Some(t.between(0, ranges.len() - 1)) } else { None };
        if let Some(range) = spoiled {
            gradients[(ranges[range].first + ranges[range].len - 1) as usize] = f32::NAN;
        }
        t.sizes((&ranges, spoiled));
        let (at, table) = (t.put_typed(&gradients), t.plain(&ranges));
        let partials = t.room::<f64>(ranges.len(), RANGE_PARTIALS, RANGE_PARTIALS);
        let squares = SquaresByRange { gradients: at.ptr(), ranges: table.ptr(), partials: partials.ptr() };
        // SAFETY: all ranges are within the gradients.
        unsafe { squares.launch(&t.gpu, ranges.len()).unwrap() };
        let bytes = t.read_bytes("partials", &partials);
        let sums: Vec<f64> = bytes
            .chunks_exact(8)
            .map(|b| f64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .collect();
        for (i, Range { first, len }) in ranges.iter().enumerate() {
            let ours: f64 = sums[i * RANGE_PARTIALS..][..RANGE_PARTIALS].iter().sum();
            if spoiled == Some(i) {
                if ours.is_finite() {
                    t.fail(format!("range {i} holds a NaN, and its sum is {ours}"));
                }
                continue;
            }
            let range = &gradients[*first as usize..][..*len as usize];
            let expected = super::global_norm(&tensor(range, range.len())).unwrap();
            let bar = Bar::of(Kind::F32).of_largest(1e-6);
            t.check("norm of range", &[ours.sqrt() as f32], &[expected as f32], 1, bar);
        }
    });
}
