//! The head and the loss, in blocks of rows, so that the logits of a long batch are never in memory
//! at once.

use super::forward::Pass;
use super::gemm::{Out, gemm, matrix};
use crate::error::Result;
use crate::ops::linear_cross_entropy::cuda::{cross_entropy, sum_losses};

impl Pass<'_> {
    /// The summed loss into `activations.loss` (on top of earlier micro-batches'); with `backward`
    /// also the gradient of the hidden states, and that of the head, where it is trained: written
    /// over what is there if `overwrite`, else added.
    ///
    /// # Safety
    /// As [`Self::forward`], which must have run.
    pub(super) unsafe fn head(&self, backward: bool, overwrite: bool) -> Result<()> {
        let (gpu, s, a, i) = (self.gpu, &self.network.sizes, self.activations, self.inputs);
        let table = &self.network.table;
        let weight = matrix(table.head, s.hidden);
        for first in (0..self.tokens).step_by(a.logit_rows) {
            let rows = a.logit_rows.min(self.tokens - first);
            let hidden = matrix(a.hidden + (first * s.hidden * gpu.size()) as u64, s.hidden);
            let logits = matrix(a.logits, s.vocab);
            let four = (first * 4) as u64;
            // SAFETY: the caller's; buffers are laid out for these sizes.
            unsafe {
                let to_vocab = (rows, s.vocab, s.hidden);
                gemm(gpu, to_vocab, (hidden, false), (weight, true), logits, Out::Compute)?;
                let block = (a.logits, rows, s.vocab);
                cross_entropy(gpu, block, i.targets + four, a.losses + four, i.step, backward)?;
                if !backward {
                    continue;
                }
                let d_hidden = matrix(a.d_hidden + (first * s.hidden * 4) as u64, s.hidden);
                let back = (rows, s.hidden, s.vocab);
                gemm(gpu, back, (logits, false), (weight, false), d_hidden, Out::F32)?;
                if let Some(d_head) = table.d_head {
                    let out = if overwrite && first == 0 { Out::Compute } else { Out::AddCompute };
                    let outer = (s.vocab, s.hidden, rows);
                    gemm(gpu, outer, (logits, true), (hidden, false), matrix(d_head, s.hidden), out)?;
                }
            }
        }
        // SAFETY: one loss a token.
        unsafe { sum_losses(gpu, a.losses, self.tokens, a.loss, i.step) }
    }
}
