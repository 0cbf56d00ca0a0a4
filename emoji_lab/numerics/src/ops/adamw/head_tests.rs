//! AdamW of a head whose gradient is made in pieces, against the CPU's over a gradient that is there.

use half::bf16;

use super::cuda::{joined, split};
use super::head::{AdamwHead, HEAD_TOKENS, fits};
use super::{AdamW, Factors, cpu};
use crate::gpu::pointer::Plain;
use crate::ops::embedding::cuda::by_id;
use crate::ops::step::{Step, StepResult};
use crate::ops::testing::{Bar, Kind, OnGpu, Plain as OnDevice, on_every_gpu};
use crate::rng::Philox;

/// `d_logitsᵀ · hidden`, and with `looked_up` the gradient of the rows of `ids`, `[vocab, width]`.
pub fn dense(
    (d_logits, hidden): (&[f32], &[f32]),
    looked_up: Option<(&[u32], &[f32], f32)>,
    (tokens, vocab, width): (usize, usize, usize),
) -> Vec<f32> {
    let mut all = vec![0f64; vocab * width];
    for t in 0..tokens {
        for (v, row) in all.chunks_exact_mut(width).enumerate() {
            let d = f64::from(d_logits[t * vocab + v]);
            row.iter_mut().zip(&hidden[t * width..]).for_each(|(sum, h)| *sum += d * f64::from(*h));
        }
    }
    if let Some((ids, dx, scale)) = looked_up {
        for (id, dx) in ids.iter().zip(dx.chunks_exact(width)) {
            let row = &mut all[*id as usize * width..][..width];
            row.iter_mut().zip(dx).for_each(|(sum, d)| *sum += f64::from(*d) * f64::from(scale));
        }
    }
    all.into_iter().map(|v| v as f32).collect()
}

/// tokens, vocab, width.
pub fn sizes(t: &mut OnGpu) -> (usize, usize, usize) {
    let tokens = if t.one_in(3) { t.between(129, HEAD_TOKENS) } else { t.between(1, 128) };
    let width = if t.one_in(6) { 8 * t.between(100, 180) } else { 8 * t.between(1, 50) };
    (tokens, 8 * t.between(1, 60), width)
}

struct Moments {
    values: Vec<f32>,
    f32s: Option<OnDevice<f32>>,
    bf16s: Option<OnDevice<bf16>>,
}

impl Moments {
    /// `first` numbers before them that are not the head's.
    fn new(t: &mut OnGpu, first: usize, values: Vec<f32>, in_bf16: bool) -> Self {
        let all = [vec![9.0; first], values].concat();
        let rounded: Vec<bf16> = all.iter().map(|v| bf16::from_f32(*v)).collect();
        let values = if in_bf16 { rounded.iter().map(|v| v.to_f32()).collect() } else { all.clone() };
        let f32s = (!in_bf16).then(|| t.plain(&all));
        let bf16s = in_bf16.then(|| t.plain(&rounded));
        Self { values: values[first..].to_vec(), f32s, bf16s }
    }

    fn ptr(&self, t: &OnGpu, first: usize) -> crate::gpu::pointer::DevicePtr<crate::gpu::pointer::Moment> {
        match (&self.f32s, &self.bf16s) {
            (Some(all), _) => all.ptr().at(&t.gpu, first).cast(),
            (_, Some(all)) => all.ptr().at(&t.gpu, first).cast(),
            _ => unreachable!("they are one or the other"),
        }
    }

    fn read(&self, first: usize) -> Vec<f32> {
        let count = first + self.values.len();
        let all = match (&self.f32s, &self.bf16s) {
            (Some(all), _) => all.firsts(count),
            (_, Some(all)) => all.firsts(count).into_iter().map(bf16::to_f32).collect(),
            _ => unreachable!("they are one or the other"),
        };
        assert!(all[..first].iter().all(|v| *v == 9.0), "written before the head");
        all[first..].to_vec()
    }
}

#[test]
fn steps_are_those_over_a_gradient_that_is_there() {
    on_every_gpu("AdamW of a head in pieces", 40, |t| {
        if !fits(&t.gpu) {
            return;
        }
        let (tokens, vocab, width) = sizes(t);
        let (in_bf16, finite, decays) = (t.one_in(2), !t.one_in(8), t.one_in(2));
        let (looked_up, first) = (!t.one_in(3), 8 * t.between(0, 3));
        let scale = t.pick(&[1.0f32, 25.25]);
        t.sizes((tokens, vocab, width, in_bf16, finite, looked_up));
        let ids: Vec<u32> = (0..tokens).map(|_| t.random.below(vocab as u64) as u32).collect();
        let (d_logits, hidden) = (t.rounded(tokens * vocab, 0.1), t.rounded(tokens * width, 2.0));
        let dx = t.values(tokens * width, 0.1);
        let gradients =
            dense((&d_logits, &hidden), looked_up.then_some((&ids, &dx, scale)), (tokens, vocab, width));
        let mut values = t.values(vocab * width, 0.5);
        let (high, low): (Vec<bf16>, Vec<i16>) =
            values.iter().map(|v| split(*v)).map(|(h, l)| (bf16::from_bits(h), l as i16)).unzip();
        let m = t.values(vocab * width, 0.1);
        let v: Vec<f32> = t.values(vocab * width, 0.1).iter().map(|v| v * v).collect();
        let (m, v) = (Moments::new(t, first, m, in_bf16), Moments::new(t, first, v, in_bf16));
        let settings = AdamW { weight_decay: 0.1, ..AdamW::default() };
        let factors = Factors::new(&settings, 0.01, 3);
        let step = Step {
            seed: 5,
            last_pass: 77,
            factors: Factors::new(&settings, 1.0, 3),
            embedding_decay: factors.decay,
            embedding_step_size: factors.step_size,
            ..Step::default()
        };
        let result = StepResult { loss: 0.0, grad_norm: 0.0, gradient_scale: 0.7, finite: i32::from(finite) };
        let (order, runs) = by_id(&ids.iter().map(|id| *id as i32).collect::<Vec<_>>());
        fn put<V: Plain>(t: &OnGpu, values: &[V]) -> OnDevice<V> {
            t.plain(values)
        }
        let (step_at, result_at, high_at, low_at) =
            (put(t, &[step]), put(t, &[result]), put(t, &high), put(t, &low));
        let (d_logits_at, hidden_at, dx_at) = (t.put_typed(&d_logits), t.put_typed(&hidden), t.put_f32(&dx));
        let (ids_at, order, runs) = (t.tokens(&ids), put(t, &order), put(t, &runs));
        let adamw = AdamwHead {
            high: high_at.ptr(),
            low: low_at.ptr(),
            exp_avg: m.ptr(t, first),
            exp_avg_sq: v.ptr(t, first),
            d_logits: d_logits_at.ptr().cast(),
            hidden: hidden_at.ptr().cast(),
            dx: looked_up.then(|| dx_at.ptr()),
            ids: ids_at.ptr(),
            order: order.ptr(),
            runs: runs.ptr(),
            step: step_at.ptr(),
            result: result_at.ptr(),
            first: first as u64,
            scale,
            tokens: tokens as i32,
            vocab: vocab as i32,
            width: width as i32,
            columns: 0,
            decays: i32::from(decays),
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { adamw.launch(&t.gpu, in_bf16).unwrap() };
        let (our_m, our_v) = (m.read(first), v.read(first));
        let ours: Vec<f32> = high_at
            .firsts(values.len())
            .iter()
            .zip(low_at.firsts(values.len()))
            .map(|(h, l)| joined(h.to_bits(), l as u16))
            .collect();
        let (mut new_m, mut new_v) = (m.values.clone(), v.values.clone());
        if finite {
            let all = 0..values.len();
            let none = if decays { vec![] } else { vec![all] };
            // Rounded below: the words are drawn by the place among all elements.
            cpu::step(
                0,
                &mut values,
                &gradients,
                &mut new_m,
                &mut new_v,
                (&factors, &(0, factors)),
                &none,
                0.7,
                None,
            );
        }
        t.check("values", &ours, &values, width, Bar::of(Kind::F32));
        if in_bf16 && finite {
            // The random words are the CPU's, so only a last bit of f32 can decide otherwise.
            let words = Philox::new(5, 77 << 16 | 0xffff);
            let rounded = |values: &[f32], high: bool| -> Vec<f32> {
                let word = |i: usize| words.at(((first + i) / 4) as u64)[(first + i) % 4];
                let bits = |i: usize| if high { word(i) >> 16 } else { word(i) & 0xffff };
                let to_bf16 =
                    |(i, v): (usize, &f32)| f32::from_bits(v.to_bits().wrapping_add(bits(i)) & 0xffff_0000);
                values.iter().enumerate().map(to_bf16).collect()
            };
            for (ours, exact, high) in [(&our_m, &new_m, false), (&our_v, &new_v, true)] {
                let expected = rounded(exact, high);
                let other = ours.iter().zip(&expected).filter(|(a, b)| a != b).count();
                if other * 50 > ours.len() + 100 {
                    t.fail(format!("{other} of {} moments are rounded otherwise", ours.len()));
                }
            }
            let near = Bar::of(Kind::F32).of_largest(1.0 / 64.0);
            t.check("m in bf16", &our_m, &new_m, width, near);
            t.check("v in bf16", &our_v, &new_v, width, near);
        } else {
            t.check("m", &our_m, &new_m, width, Bar::of(Kind::F32));
            t.check("v", &our_v, &new_v, width, Bar::of(Kind::F32));
        }
    });
}
