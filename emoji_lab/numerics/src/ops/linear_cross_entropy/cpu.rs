use rayon::prelude::*;

use super::{HeadGradient, Sizes};
use crate::memory::zeros;
use crate::ops::gemm::{Mat, matmul};
use crate::ops::math::{exp, wide};
use crate::ops::replaced::put_columns;

/// Logits in memory at once: 256 MiB of f32.
const LOGITS: usize = 64 << 20;

/// The head's weight `[vocab, hidden]`, of which the rows `ids` (ascending) are read from `rows`.
#[derive(Clone, Copy)]
pub(super) struct Weight<'a> {
    pub(super) table: &'a [f32],
    pub(super) ids: &'a [u32],
    /// `[ids, hidden]`.
    pub(super) rows: &'a [f32],
}

/// Where the head's gradient goes, if it is trained.
pub(super) enum Trained<'a> {
    Nothing,
    /// It is added there: of the replaced rows where there are any, else of the whole table.
    Dense(&'a mut [f32]),
    /// Its factors are kept; no row may be replaced.
    Factors(&'a mut HeadGradient),
}

/// Rows whose logits are in memory at once.
pub(super) fn block_rows(vocab: usize) -> usize {
    (LOGITS / vocab).clamp(16, 4096)
}

pub(super) fn loss(h: &[f32], w: Weight<'_>, rows: &[(usize, usize)], s: &Sizes) -> f64 {
    let mut sum = 0.0;
    for block in rows.chunks(block_rows(s.vocab)) {
        let mut logits = zeros(block.len() * s.vocab);
        block_logits(h, w, block, s, &mut logits);
        sum += softmax_loss(&mut logits, block, s.vocab, 0.0);
    }
    sum
}

pub(super) fn loss_and_gradient(
    h: &[f32],
    w: Weight<'_>,
    rows: &[(usize, usize)],
    s: &Sizes,
    factor: f32,
    dw: Trained<'_>,
) -> (f64, Vec<f32>) {
    in_blocks(h, w, rows, s, factor, dw, block_rows(s.vocab))
}

pub(super) fn in_blocks(
    h: &[f32],
    w: Weight<'_>,
    rows: &[(usize, usize)],
    s: &Sizes,
    factor: f32,
    mut dw: Trained<'_>,
    block_rows: usize,
) -> (f64, Vec<f32>) {
    let mut sum = 0.0;
    let mut dh = vec![0.0; h.len()];
    for block in rows.chunks(block_rows) {
        let mut room = match &mut dw {
            Trained::Factors(factors) => factors.room(block.len()),
            _ => zeros(block.len() * s.vocab),
        };
        let logits = &mut room[..block.len() * s.vocab];
        let gathered = block_logits(h, w, block, s, logits);
        sum += softmax_loss(logits, block, s.vocab, factor);
        // The block now holds d loss / d logits.
        let x = Mat::new(&gathered, block.len(), s.hidden);
        let of_rows = take_columns(logits, w.ids, s.vocab);
        let dlogits = Mat::new(logits, block.len(), s.vocab);
        let mut dgathered = vec![0.0; gathered.len()];
        matmul(&mut dgathered, false, 1.0, dlogits, Mat::new(w.table, s.vocab, s.hidden));
        let dlogits = if w.ids.is_empty() {
            dlogits
        } else {
            let of_rows = Mat::new(&of_rows, block.len(), w.ids.len());
            matmul(&mut dgathered, true, 1.0, of_rows, Mat::new(w.rows, w.ids.len(), s.hidden));
            of_rows
        };
        match &mut dw {
            Trained::Nothing => {}
            Trained::Dense(dw) => matmul(dw, true, 1.0, dlogits.t(), x),
            Trained::Factors(factors) => factors.push(room, &gathered),
        }
        for ((row, _), dgathered) in block.iter().zip(dgathered.chunks_exact(s.hidden)) {
            dh[row * s.hidden..][..s.hidden].copy_from_slice(dgathered);
        }
    }
    (sum, dh)
}

/// The columns `ids` of the block of logits, which are zero there afterwards.
fn take_columns(logits: &mut [f32], ids: &[u32], vocab: usize) -> Vec<f32> {
    let mut taken = Vec::with_capacity(logits.len() / vocab * ids.len());
    for row in logits.chunks_exact_mut(vocab).take_while(|_| !ids.is_empty()) {
        taken.extend(ids.iter().map(|id| std::mem::take(&mut row[*id as usize])));
    }
    taken
}

/// The block's rows of `h`, and their logits in their place.
fn block_logits(
    h: &[f32],
    w: Weight<'_>,
    block: &[(usize, usize)],
    s: &Sizes,
    logits: &mut [f32],
) -> Vec<f32> {
    let mut gathered = Vec::with_capacity(block.len() * s.hidden);
    for (row, _) in block {
        gathered.extend_from_slice(&h[row * s.hidden..][..s.hidden]);
    }
    let x = Mat::new(&gathered, block.len(), s.hidden);
    matmul(logits, false, 1.0, x, Mat::new(w.table, s.vocab, s.hidden).t());
    if !w.ids.is_empty() {
        let mut replaced = vec![0.0; block.len() * w.ids.len()];
        matmul(&mut replaced, false, 1.0, x, Mat::new(w.rows, w.ids.len(), s.hidden).t());
        put_columns(logits, &replaced, w.ids, s.vocab);
    }
    gathered
}

/// Sums the rows' losses and turns logits into `factor · (softmax − one-hot)`.
fn softmax_loss(logits: &mut [f32], block: &[(usize, usize)], vocab: usize, factor: f32) -> f64 {
    let losses: Vec<f64> = logits
        .par_chunks_exact_mut(vocab)
        .zip(block)
        .map(|(row, &(_, target))| row_loss(row, target, factor))
        .collect();
    losses.iter().sum()
}

wide! {
    /// [`softmax_loss`] of a row.
    fn row_loss(row: &mut [f32], target: usize, factor: f32) -> f64 {
        let mut maxima = [f32::NEG_INFINITY; 16];
        let mut chunks = row.chunks_exact(16);
        for chunk in &mut chunks {
            for (max, v) in maxima.iter_mut().zip(chunk) {
                *max = if *v > *max { *v } else { *max };
            }
        }
        let max = maxima.iter().chain(chunks.remainder()).copied().fold(f32::NEG_INFINITY, f32::max);
        let at_target = row[target];
        // Sums of 4,096 in f32, added up in f64: exact enough for 262,144 terms.
        let mut sum = 0.0f64;
        for part in row.chunks_mut(4096) {
            let mut lanes = [0.0f32; 16];
            let mut chunks = part.chunks_exact_mut(16);
            for chunk in &mut chunks {
                for (lane, v) in lanes.iter_mut().zip(chunk) {
                    *v = exp(*v - max);
                    *lane += *v;
                }
            }
            for v in chunks.into_remainder() {
                *v = exp(*v - max);
                lanes[0] += *v;
            }
            sum += lanes.iter().sum::<f32>() as f64;
        }
        if factor != 0.0 {
            let scale = (factor as f64 / sum) as f32;
            for v in row.iter_mut() {
                *v *= scale;
            }
            row[target] -= factor;
        }
        sum.ln() + max as f64 - at_target as f64
    }
}
