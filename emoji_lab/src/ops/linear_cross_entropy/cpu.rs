use rayon::prelude::*;

use super::Sizes;
use crate::ops::gemm::{Mat, matmul};
use crate::ops::math::exp;

/// Logits in memory at once: 256 MiB of f32.
const LOGITS: usize = 64 << 20;

fn block_rows(vocab: usize) -> usize {
    (LOGITS / vocab).clamp(16, 4096)
}

pub(super) fn loss(h: &[f32], w: &[f32], rows: &[(usize, usize)], s: &Sizes) -> f64 {
    let mut sum = 0.0;
    for block in rows.chunks(block_rows(s.vocab)) {
        let (_, mut logits) = block_logits(h, w, block, s);
        sum += softmax_loss(&mut logits, block, s.vocab, 0.0);
    }
    sum
}

pub(super) fn loss_and_gradient(
    h: &[f32],
    w: &[f32],
    rows: &[(usize, usize)],
    s: &Sizes,
    factor: f32,
    dw: Option<&mut [f32]>,
) -> (f64, Vec<f32>) {
    in_blocks(h, w, rows, s, factor, dw, block_rows(s.vocab))
}

pub(super) fn in_blocks(
    h: &[f32],
    w: &[f32],
    rows: &[(usize, usize)],
    s: &Sizes,
    factor: f32,
    mut dw: Option<&mut [f32]>,
    block_rows: usize,
) -> (f64, Vec<f32>) {
    let mut sum = 0.0;
    let mut dh = vec![0.0; h.len()];
    for block in rows.chunks(block_rows) {
        let (gathered, mut logits) = block_logits(h, w, block, s);
        sum += softmax_loss(&mut logits, block, s.vocab, factor);
        // The block now holds d loss / d logits.
        let dlogits = Mat::new(&logits, block.len(), s.vocab);
        let mut dgathered = vec![0.0; gathered.len()];
        matmul(&mut dgathered, false, 1.0, dlogits, Mat::new(w, s.vocab, s.hidden));
        if let Some(dw) = dw.as_deref_mut() {
            matmul(dw, true, 1.0, dlogits.t(), Mat::new(&gathered, block.len(), s.hidden));
        }
        for ((row, _), dgathered) in block.iter().zip(dgathered.chunks_exact(s.hidden)) {
            dh[row * s.hidden..][..s.hidden].copy_from_slice(dgathered);
        }
    }
    (sum, dh)
}

/// The block's rows of `h`, and their logits.
fn block_logits(h: &[f32], w: &[f32], block: &[(usize, usize)], s: &Sizes) -> (Vec<f32>, Vec<f32>) {
    let mut gathered = Vec::with_capacity(block.len() * s.hidden);
    for (row, _) in block {
        gathered.extend_from_slice(&h[row * s.hidden..][..s.hidden]);
    }
    let mut logits = vec![0.0; block.len() * s.vocab];
    let x = Mat::new(&gathered, block.len(), s.hidden);
    matmul(&mut logits, false, 1.0, x, Mat::new(w, s.vocab, s.hidden).t());
    (gathered, logits)
}

/// Sums the rows' losses and turns logits into `factor · (softmax − one-hot)`.
fn softmax_loss(logits: &mut [f32], block: &[(usize, usize)], vocab: usize, factor: f32) -> f64 {
    let losses: Vec<f64> = logits
        .par_chunks_exact_mut(vocab)
        .zip(block)
        .map(|(row, &(_, target))| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
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
        })
        .collect();
    losses.iter().sum()
}
