//! Random adapters on the GPU, and what the CPU makes of them.

use super::{Guarded, OnGpu, Plain, tensor, values};
use crate::ops::lora_linear::cuda::{Adapters, DropoutFactors};
use crate::ops::lora_linear::{self, Dropout, Gradients, Lora, Weight};
use crate::ops::step::Step;

/// The adapters that read one activation: none to three, some of them missing, with and without
/// dropout.
pub(crate) struct SomeAdapters {
    pub(crate) on_gpu: Adapters,
    pub(crate) step: Plain<Step>,
    /// A `[rank, width]` each, `None` for a layer without.
    a: Vec<Option<Vec<f32>>>,
    dropout: Vec<Option<Dropout>>,
    width: usize,
    rank: usize,
    padded: usize,
    _memory: Vec<Guarded<f32>>,
}

impl SomeAdapters {
    /// For rows of `width`, a multiple of 8.
    pub(crate) fn random(t: &mut OnGpu, width: usize) -> Self {
        let count = if t.one_in(4) { 0 } else { t.between(1, 3) };
        let rank = match t.between(0, 9) {
            0 => t.between(65, 256),
            1 | 2 => t.between(17, 64),
            _ => t.between(1, 16),
        };
        let p = if t.one_in(3) { None } else { Some(t.pick(&[0.05, 0.1, 0.5])) };
        let (seed, pass) = (t.random.below(1 << 40), t.random.below(1 << 20));
        let mut on_gpu = Adapters::NONE;
        (on_gpu.count, on_gpu.rank) = (count as i32, rank as i32);
        let padded = rank.next_multiple_of(8);
        on_gpu.padded = padded as i32;
        if let Some(p) = p {
            on_gpu.dropout = DropoutFactors::new(p);
        }
        let (mut a, mut dropout, mut memory) = (vec![], vec![], vec![]);
        for which in 0..count {
            let linear = t.between(0, 125);
            on_gpu.linear[which] = linear as i32;
            dropout.push(p.map(|p| Dropout { p, seed, stream: pass << 16 | linear as u64 }));
            let there = count == 1 || !t.one_in(5);
            a.push(there.then(|| t.values(rank * width, 0.2)));
            if let Some(Some(a)) = a.last() {
                let a = t.put_f32(a);
                on_gpu.a[which] = Some(a.ptr());
                memory.push(a);
            }
        }
        let step = t.step(seed, pass, 1.0, true);
        Self { on_gpu, step, a, dropout, width, rank, padded, _memory: memory }
    }

    /// How many there are, and of what rank: for messages.
    pub(crate) fn sizes(&self) -> (usize, usize, Option<f64>) {
        (self.a.len(), self.rank, self.dropout.first().and_then(|d| d.map(|d| d.p)))
    }

    /// Columns of u after each row.
    pub(crate) fn tail(&self) -> usize {
        self.a.len() * self.padded
    }

    /// What a sum for u amounts to, for rows of about ±1.
    pub(crate) fn scale(&self) -> f64 {
        0.1 * (self.width as f64).sqrt()
    }

    /// u `[tokens, tail]` of `x` `[tokens, width]`: zeros in the padding, and where there is no adapter.
    pub(crate) fn u(&self, x: &[f32]) -> Vec<f32> {
        let tokens = x.len() / self.width;
        let mut all = vec![0.0; tokens * self.tail()];
        let (w, b) = (tensor(&vec![0.0; self.width], (1, self.width)), vec![0.0; self.rank]);
        for (which, a) in self.a.iter().enumerate() {
            let Some(a) = a else { continue };
            let (a, b) = (tensor(a, (self.rank, self.width)), tensor(&b, (1, self.rank)));
            let lora = Lora { a: &a, b: &b, scale: 1.0, dropout: self.dropout[which] };
            let x = tensor(x, (tokens, self.width));
            let (_, u) = lora_linear::forward(&x, &Weight::from(w.clone()), Some(&lora)).unwrap();
            for (token, u) in values(&u.unwrap()).chunks(self.rank).enumerate() {
                all[token * self.tail() + which * self.padded..][..self.rank].copy_from_slice(u);
            }
        }
        all
    }

    /// What flows back to x `[tokens, width]` from `du` `[tokens, tail]`: the op's own gradient, with
    /// an identity for B.
    pub(crate) fn back(&self, du: &[f32], tokens: usize) -> Vec<f32> {
        let (rank, width) = (self.rank, self.width);
        let mut all = vec![0.0; tokens * width];
        let identity: Vec<f32> =
            (0..rank * rank).map(|i| if i / rank == i % rank { 1.0 } else { 0.0 }).collect();
        let b = tensor(&identity, (rank, rank));
        let w = Weight::from(tensor(&vec![0.0; rank * width], (rank, width)));
        let x = tensor(&vec![0.0; tokens * width], (tokens, width));
        for (which, a) in self.a.iter().enumerate() {
            let Some(a) = a else { continue };
            let first = |token: usize| token * self.tail() + which * self.padded;
            let dy: Vec<f32> = (0..tokens).flat_map(|t| &du[first(t)..][..rank]).copied().collect();
            let (a, dy) = (tensor(a, (rank, width)), tensor(&dy, (tokens, rank)));
            let lora = Lora { a: &a, b: &b, scale: 1.0, dropout: self.dropout[which] };
            let u = tensor(&vec![0.0; tokens * rank], (tokens, rank));
            let dx = lora_linear::backward(&dy, &x, Some(&u), &w, Some(&lora), Gradients::default()).unwrap();
            all.iter_mut().zip(values(&dx)).for_each(|(all, dx)| *all += dx);
        }
        all
    }
}

/// Rows of `width + tail` values as two matrices.
pub(crate) fn split(rows: &[f32], width: usize, tail: usize) -> (Vec<f32>, Vec<f32>) {
    let row = |r: &[f32], first: usize, count: usize| r[first..first + count].to_vec();
    let rows = || rows.chunks_exact(width + tail);
    (rows().flat_map(|r| row(r, 0, width)).collect(), rows().flat_map(|r| row(r, width, tail)).collect())
}
