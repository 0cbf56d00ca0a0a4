//! The head and the loss, in blocks of rows, so that the logits of a long batch are never in memory
//! at once.

use super::activations::columns_ld;
use super::forward::Pass;
use crate::error::{Error, Result};
use crate::gpu::gemm::{Out, gemm, matrix};
use crate::ops::linear_cross_entropy::cuda::{CrossEntropy, SumLosses, TakeColumns};
use crate::ops::step::StepResult;

impl Pass<'_> {
    /// The summed loss into `activations.loss` (on top of earlier micro-batches'); with `backward`
    /// also the gradient of the hidden states, and that of the head, where it is trained: written
    /// over what is there if `overwrite`, else added.
    ///
    /// # Safety
    /// As [`Self::forward`], which must have run.
    pub(super) unsafe fn head(&self, backward: bool, overwrite: bool) -> Result<()> {
        let (gpu, s, a, i) = (self.gpu, &self.network.sizes, self.activations, self.inputs);
        let vocabulary = &self.network.vocabulary;
        let weight = matrix(vocabulary.head, s.hidden);
        if let (true, Some(_)) = (backward, self.head_norm) {
            if self.tokens > a.logit_rows {
                return Err(Error::training("logits in blocks", "This is a fault of emoji_lab"));
            }
            // SAFETY: the caller's.
            unsafe { self.begin_head_norm()? };
        }
        for first in (0..self.tokens).step_by(a.logit_rows) {
            let rows = a.logit_rows.min(self.tokens - first);
            let hidden = matrix(a.hidden.at(gpu, first * s.hidden), s.hidden);
            let logits = matrix(a.logits, s.vocab);
            let loss = CrossEntropy {
                logits: a.logits,
                targets: i.targets.at(gpu, first),
                losses: a.losses.at(gpu, first),
                step: i.step,
                vocab: s.vocab as i32,
                gradient: i32::from(backward),
            };
            // SAFETY: the caller's; buffers are laid out for these sizes.
            unsafe {
                let to_vocab = (rows, s.vocab, s.hidden);
                gemm(gpu, to_vocab, hidden, weight.transposed(), Out::Compute(logits))?;
                loss.launch(gpu, rows)?;
                if !backward {
                    continue;
                }
                let d_hidden = matrix(a.d_hidden.at(gpu, first * s.hidden), s.hidden);
                gemm(gpu, (rows, s.hidden, s.vocab), logits, weight, Out::F32(d_hidden))?;
                let trained = self.arena.zip(vocabulary.trained_head);
                if let Some(to) = trained.and_then(|(arena, offset)| arena.any_gradient(offset)) {
                    let out = to.out(s.hidden, overwrite && first == 0);
                    gemm(gpu, (s.vocab, s.hidden, rows), logits.transposed(), hidden, out)?;
                }
                if let Some(trained) = self.network.trained_rows.as_ref().filter(|rows| rows.in_head) {
                    let (count, ld) = (trained.ids.len(), columns_ld(trained.ids.len()));
                    let columns = TakeColumns {
                        logits: a.logits,
                        ids: trained.on_gpu,
                        columns: a.columns,
                        vocab: s.vocab as i32,
                        count: count as i32,
                        ld: ld as i32,
                    };
                    columns.launch(gpu, rows)?;
                    let d_rows = matrix(trained.gradients, s.hidden);
                    let fresh = overwrite && first == 0;
                    let out = if fresh { Out::F32(d_rows) } else { Out::AddF32(d_rows) };
                    let columns = matrix(a.columns, ld).transposed();
                    gemm(gpu, (count, s.hidden, rows), columns, hidden, out)?;
                }
            }
        }
        if let (true, Some(partials)) = (backward, self.head_norm) {
            // SAFETY: the logits are one block.
            unsafe { self.square_head(partials)? };
        }
        let sum = SumLosses {
            losses: a.losses,
            total: StepResult::loss_of(a.loss),
            step: i.step,
            rows: self.tokens as i32,
        };
        // SAFETY: one loss per token.
        unsafe { sum.launch(gpu) }
    }
}
