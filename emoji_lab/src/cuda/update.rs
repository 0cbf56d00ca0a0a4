//! What a graph of an optimizer step has in it: the passes, the gradients' norm, AdamW; and what all takes.

use super::finetune::CudaFinetune;
use super::forward::Pass;
use super::room::Room;
use crate::error::Result;
use crate::gpu::memory::clear;
use crate::ops::adamw::cuda::AdamwStep;
use crate::ops::grad_norm::cuda::{GradNorm, Gradients};
use crate::ops::grad_norm::head::HEAD_PARTIALS;

impl CudaFinetune {
    /// Forward, and back through the head; `first` writes over the gradients, later micro-batches add to them.
    ///
    /// # Safety
    /// As [`Pass::forward`].
    pub(super) unsafe fn up_to_the_head(&self, pass: &Pass<'_>, first: bool) -> Result<()> {
        let s = &self.network.sizes;
        let vocabulary = &self.network.vocabulary;
        // An embedding that is not the head: only some of its rows get a gradient.
        let own_table =
            vocabulary.trained_lookup.filter(|_| vocabulary.trained_lookup != vocabulary.trained_head);
        // SAFETY: the caller's; gradients are where the arena says.
        unsafe {
            pass.forward()?;
            if let (true, Some(offset)) = (first, own_table) {
                clear(&self.gpu, self.arena.gradient_ptr(offset), s.vocab * s.hidden)?;
            }
            if let (true, Some(rows)) = (first, self.network.trained_rows.as_ref().filter(|r| !r.in_head)) {
                clear(&self.gpu, rows.gradients, rows.ids.len() * s.hidden)?;
            }
            pass.head(true, first)
        }
    }

    /// Norm, clipping and AdamW; where the head's gradient is made in pieces, of a batch of `tokens` tokens.
    ///
    /// # Safety
    /// The gradients of a step must have been made.
    pub(super) unsafe fn update(&self, room: &Room, tokens: usize) -> Result<()> {
        let (gpu, arena, step, result) = (&self.gpu, &self.arena, room.inputs.step, self.result.ptr());
        let (products, gradients, others) = arena.all_gradients();
        let norm = GradNorm {
            products,
            others: gradients,
            len: others,
            partials: self.partials.ptr(),
            more: if self.head_partials().is_some() { HEAD_PARTIALS } else { 0 },
            loss: room.loss(),
            step,
            result,
        };
        let ((values, trained_products, low), (pieces, count)) = (arena.all_values(), arena.pieces());
        let adamw = AdamwStep {
            values,
            products: trained_products,
            low,
            gradients,
            product_gradients: products.start(),
            exp_avg: arena.exp_avg.moments(),
            exp_avg_sq: arena.exp_avg_sq.moments(),
            step,
            result,
            pieces,
        };
        // SAFETY: buffers of the arena and its pieces, the partial sums, one loss, one result.
        unsafe {
            norm.launch(gpu)?;
            let (moments, sums) = (self.bf16_moments(), matches!(products, Gradients::F32(..)));
            let Some(head) = self.head_update(room, tokens) else {
                return adamw.launch(gpu, count, moments, sums);
            };
            // The others beside it.
            let beside = gpu.fork()?;
            for (pieces, count) in arena.pieces_around(head.first as usize) {
                if count > 0 {
                    AdamwStep { pieces, ..adamw }.launch(&beside, count, moments, sums)?;
                }
            }
            head.launch(gpu, moments)?;
            gpu.wait_for(&gpu.record_event()?)
        }
    }

    /// Device memory that is ours, in bytes, by what it is for.
    pub(crate) fn memory_report(&self) -> Vec<(&'static str, usize)> {
        let [values, gradients, moments] = self.arena.bytes();
        let mut report = vec![
            ("frozen weights", self.network.bytes),
            ("trained values", values),
            ("gradients", gradients),
            ("moments", moments),
            ("cuBLAS workspace", self.gpu.blas().workspace_bytes()),
        ];
        if let Some(together) = &self.together {
            report.push(("what all GPUs looked up", together.bytes()));
        }
        if let Some(room) = &self.room {
            report.push(("activations", room.activations.bytes()));
        }
        report
    }
}
