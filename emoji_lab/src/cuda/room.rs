//! Room for the longest batch: activations and inputs, and the gradient of the head where it is kept.

use super::activations::{Activations, Buffers, Steps};
use super::finetune::CudaFinetune;
use super::step::Inputs;
use crate::error::{Error, Result};
use crate::gpu::driver_errors::caught;
use crate::gpu::pointer::DevicePtr;
use crate::ops::step::StepResult;

/// What depends on the longest batch.
pub(super) struct Room {
    pub(super) activations: Activations,
    pub(super) inputs: Inputs,
    /// How many tokens a batch may have that a step is made of; of which only the loss is asked, the inputs'
    /// capacity.
    steps: usize,
}

impl Room {
    /// Where the losses are added up.
    pub(super) fn loss(&self) -> DevicePtr<f64> {
        StepResult::loss_of(self.activations.loss)
    }
}

/// Token counts that share a graph: few graphs, little padding.
pub(super) fn padded(tokens: usize) -> usize {
    let unit = match tokens {
        0..=64 => 8,
        65..=256 => 16,
        257..=512 => 32,
        _ => 128,
    };
    tokens.next_multiple_of(unit).max(8)
}

impl CudaFinetune {
    /// Makes room for steps of batches of `tokens` tokens, if there is not enough. What steps on their way give
    /// is kept for their tickets.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<()> {
        caught(&self.gpu.short_name(), || self.make_room(tokens, true))
    }

    /// The same for batches of which only the loss is asked.
    pub(crate) fn reserve_losses(&mut self, tokens: usize) -> Result<()> {
        caught(&self.gpu.short_name(), || self.make_room(tokens, false))
    }

    pub(super) fn make_room(&mut self, tokens: usize, for_steps: bool) -> Result<()> {
        if i32::try_from(tokens).is_err() {
            let help =
                "make per_device_train_batch_size or max_length smaller: kernels count tokens in 31 bits";
            return Err(Error::setting("per_device_train_batch_size", format!("{tokens} tokens"), help));
        }
        let (capacity, longest) =
            self.room.as_ref().map_or((0, 0), |room| (room.inputs.capacity(), room.steps));
        let tokens = padded(tokens);
        let steps = if for_steps { tokens.max(longest) } else { longest };
        if capacity >= tokens && longest >= steps {
            return Ok(());
        }
        let tokens = tokens.max(capacity);
        // The slots go with the room.
        self.take(self.sent)?;
        self.graphs.clear();
        self.room = None;
        self.logits_at_hand = false;
        let in_pieces = self.makes_head_in_pieces(steps);
        self.arena.keep_product_gradients(!in_pieces)?;
        let trained_rows = self.network.trained_rows.as_ref().filter(|rows| rows.in_head);
        let trained_rows = trained_rows.map_or(0, |rows| rows.ids.len());
        let in_pieces = in_pieces.then_some(steps);
        let training = Steps { trained_rows, in_pieces };
        let activations = Buffers::activations(&self.gpu, &self.network.sizes, tokens, Some(training))?;
        self.network.place_gradients(&self.gpu, &activations, &self.arena, self.adapter_scale)?;
        self.room = Some(Room { activations, inputs: Inputs::new(&self.gpu, tokens)?, steps });
        Ok(())
    }
}
