//! Losses without learning from them.

use super::finetune::{CudaFinetune, Work};
use super::room::padded;
use super::step::SLOTS;
use crate::error::Result;
use crate::gpu::driver_errors::caught;
use crate::ops::linear_cross_entropy::LossSum;
use crate::ops::step::Step;
use crate::train::Batch;

impl CudaFinetune {
    /// Each batch's summed loss, without dropout, after all steps that were sent; what these gave is kept
    /// for their tickets.
    pub(crate) fn losses(&mut self, batches: &[Batch]) -> Result<Vec<LossSum>> {
        caught(&self.gpu.short_name(), || {
            let losses = self.evaluate(batches);
            if losses.is_err() {
                // What was sent before the error must be done before its slots are written again. An
                // error here has been, or will be, reported by another call.
                let _ = self.gpu.synchronize();
            }
            losses
        })
    }

    fn evaluate(&mut self, batches: &[Batch]) -> Result<Vec<LossSum>> {
        self.gpu.bind()?;
        self.check_batches(batches)?;
        self.take(self.sent)?;
        let longest = batches.iter().map(|b| b.tokens.len()).max().unwrap_or(0);
        self.make_room(longest, false)?;
        self.logits_at_hand = false;
        let mut sums = Vec::with_capacity(batches.len());
        for (i, batch) in batches.iter().enumerate() {
            let tokens = padded(batch.tokens.len());
            self.prepare(tokens, Work::Loss)?;
            let slot = self.sent + i;
            if i >= SLOTS {
                sums.push(self.loss_of(slot - SLOTS)?);
            }
            let header = Step { first_micro: 1, ..Step::default() };
            if let Some(room) = &mut self.room {
                // Nothing learns from it, but the trial run of a graph reads what lies there.
                let trained = self.network.trained_ids();
                room.inputs.send(slot, &header, &batch.tokens, &batch.targets, tokens, trained)?;
            }
            self.replay(tokens, Work::Loss)?;
            if let Some(room) = &mut self.room {
                // SAFETY: a result, of which the loss has been written.
                unsafe { room.inputs.ask(slot, room.activations.loss)? };
            }
        }
        for i in sums.len()..batches.len() {
            sums.push(self.loss_of(self.sent + i)?);
        }
        Ok(sums
            .iter()
            .zip(batches)
            .map(|(sum, batch)| LossSum { sum: *sum, rows: batch.target_count() })
            .collect())
    }

    fn loss_of(&mut self, slot: usize) -> Result<f64> {
        match &mut self.room {
            Some(room) => Ok(room.inputs.wait(slot)?.0.loss),
            None => Ok(f64::NAN),
        }
    }
}
