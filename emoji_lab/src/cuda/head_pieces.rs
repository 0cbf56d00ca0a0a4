//! A trained head without its gradient in memory, where a step is one short batch in bf16: the norm comes from
//! products of tokens with tokens, and AdamW makes the gradient piece by piece. Several batches a step, several
//! GPUs, longer batches, f32, GPUs before Hopper, and a model all of which is trained keep it.

use super::finetune::CudaFinetune;
use super::forward::Pass;
use super::room::Room;
use crate::error::{Error, Result};
use crate::gpu::gemm::{Out, gemm, matrix};
use crate::gpu::memory::Memory;
use crate::gpu::pointer::DevicePtr;
use crate::ops::adamw::head::{AdamwHead, HEAD_TOKENS, fits};
use crate::ops::embedding::cuda::{LookupGradient, TableGradient};
use crate::ops::grad_norm::cuda::PARTIALS;
use crate::ops::grad_norm::head::{HEAD_PARTIALS, HeadSquares, HiddenProducts, LookedUpRows, LookupSquares};
use crate::train::{Buffer, Slot};

impl Pass<'_> {
    /// Begins the products of the hidden states with each other, beside the logits'.
    ///
    /// # Safety
    /// The hidden states must be made.
    pub(super) unsafe fn begin_head_norm(&self) -> Result<()> {
        let (a, s) = (self.activations, &self.network.sizes);
        let products = HiddenProducts {
            hidden: a.hidden.cast(),
            products: a.hidden_products,
            tokens: self.tokens as i32,
            width: s.hidden as i32,
        };
        // SAFETY: the caller's; buffers are laid out for these sizes.
        unsafe { products.launch(&self.gpu.fork()?) }
    }

    /// The square of the head's own gradient, beside what follows.
    ///
    /// # Safety
    /// The logits' gradients of the whole batch must be made.
    pub(super) unsafe fn square_head(&self, partials: DevicePtr<f64>) -> Result<()> {
        let (a, s, i) = (self.activations, &self.network.sizes, self.inputs);
        let squares = HeadSquares {
            d_logits: a.logits.cast(),
            products: a.hidden_products,
            partials,
            tokens: self.tokens as i32,
            vocab: s.vocab as i32,
        };
        let rows = LookedUpRows {
            d_logits: a.logits.cast(),
            hidden: a.hidden.cast(),
            ids: i.rows,
            order: i.order,
            runs: i.runs,
            rows: a.looked_up,
            tokens: self.tokens as i32,
            vocab: s.vocab as i32,
            width: s.hidden as i32,
            padding: 0,
        };
        let beside = self.gpu.fork()?;
        // SAFETY: the caller's; buffers are laid out for these sizes.
        unsafe {
            if self.network.vocabulary.head_is_looked_up() {
                rows.launch(&beside)?;
            }
            squares.launch(&beside)
        }
    }

    /// What the rows add that were looked up in the head, after the layers' backward pass, and all that was begun
    /// beside it.
    ///
    /// # Safety
    /// As [`Self::square_head`], and the gradient of the stream must be made.
    pub(super) unsafe fn end_head_norm(&self, partials: DevicePtr<f64>) -> Result<()> {
        let (a, s, i) = (self.activations, &self.network.sizes, self.inputs);
        self.gpu.wait_for(&self.gpu.record_event()?)?;
        if self.network.vocabulary.head_is_looked_up() {
            let squares = LookupSquares {
                rows: a.looked_up,
                dx: a.d_stream,
                order: i.order,
                runs: i.runs,
                partials,
                tokens: self.tokens as i32,
                width: s.hidden as i32,
                scale: s.embedding_scale,
                padding: 0,
            };
            // SAFETY: the caller's; buffers are laid out for these sizes.
            unsafe { squares.launch(self.gpu)? };
        }
        Ok(())
    }
}

impl CudaFinetune {
    /// Whether the head's gradient is made in pieces, in steps of a batch of up to `tokens` tokens.
    pub(super) fn makes_head_in_pieces(&self, tokens: usize) -> bool {
        let s = &self.network.sizes;
        let alone =
            self.network.vocabulary.trained_head.is_some() && self.arena.in_products() == s.vocab * s.hidden;
        let one_batch = !self.arena.adds_in_f32() && self.together.is_none();
        alone && one_batch && tokens <= HEAD_TOKENS && fits(&self.gpu)
    }

    /// Where the parts of its squared norm go, where that is so.
    pub(super) fn head_partials(&self) -> Option<DevicePtr<f64>> {
        (!self.arena.keeps_product_gradients()).then(|| self.partials.ptr().at(&self.gpu, PARTIALS))
    }

    /// AdamW of the head, where its gradient is made in pieces; `tokens` are the step's.
    pub(super) fn head_update(&self, room: &Room, tokens: usize) -> Option<AdamwHead> {
        let offset = self.network.vocabulary.trained_head.filter(|_| self.head_partials().is_some())?;
        let (high, low) = self.arena.halves(offset)?;
        let (a, s, i) = (&room.activations, &self.network.sizes, &room.inputs);
        Some(AdamwHead {
            high,
            low,
            exp_avg: self.arena.exp_avg.moments_from(&self.gpu, offset),
            exp_avg_sq: self.arena.exp_avg_sq.moments_from(&self.gpu, offset),
            d_logits: a.logits.cast(),
            hidden: a.hidden.cast(),
            dx: self.network.vocabulary.head_is_looked_up().then_some(a.d_stream),
            ids: i.rows,
            order: i.order,
            runs: i.runs,
            step: i.step,
            result: self.result.ptr(),
            first: offset as u64,
            scale: s.embedding_scale,
            tokens: tokens as i32,
            vocab: s.vocab as i32,
            width: s.hidden as i32,
            columns: 0,
            decays: i32::from(self.arena.decays(offset)),
        })
    }

    /// Values, moments or gradients of `slot`.
    pub(super) fn read(&self, buffer: Buffer, slot: &Slot) -> Result<Vec<f32>> {
        let of_head = self.network.vocabulary.trained_head == Some(slot.offset);
        if buffer == Buffer::Gradients && of_head && !self.arena.keeps_product_gradients() {
            return self.head_gradient();
        }
        self.arena.read(buffer, slot.offset, slot.len())
    }

    /// The head's gradient of the last step, made once more.
    fn head_gradient(&self) -> Result<Vec<f32>> {
        let (s, gpu) = (&self.network.sizes, &self.gpu);
        let (Some(room), true) = (&self.room, self.logits_at_hand) else {
            return Err(Error::training(
                "the head's gradient is not kept in memory, and another batch has been looked at since the last step",
                "Ask for it right after the step, or call reserve_sums() before: sums of several batches are kept",
            ));
        };
        gpu.bind()?;
        let (a, i, tokens) = (&room.activations, &room.inputs, room.inputs.tokens());
        let memory = Memory::<f32>::zeros(gpu, s.vocab * s.hidden, "the head's gradient")?;
        let (d_logits, hidden) = (matrix(a.logits, s.vocab), matrix(a.hidden, s.hidden));
        let looked_up = LookupGradient {
            d_table: TableGradient::F32(memory.ptr()),
            ids: i.rows,
            order: i.order,
            runs: i.runs,
            dx: a.d_stream,
            width: s.hidden,
            scale: s.embedding_scale,
        };
        // SAFETY: the step has left logits' gradients, hidden states and the stream's gradient of its tokens.
        unsafe {
            let out = Out::F32(matrix(memory.ptr(), s.hidden));
            gemm(gpu, (s.vocab, s.hidden, tokens), d_logits.transposed(), hidden, out)?;
            if self.network.vocabulary.head_is_looked_up() {
                looked_up.launch(gpu, tokens)?;
            }
        }
        let mut values = vec![0.0; s.vocab * s.hidden];
        memory.read(0, &mut values)?;
        Ok(values)
    }

    /// Every slot's sum of squared gradients, of the last step.
    pub(super) fn gradient_squares(&self, slots: &[Slot]) -> Result<Vec<f64>> {
        let mut squares = self.arena.gradient_squares(slots)?;
        if self.head_partials().is_some() {
            let mut parts = vec![0.0; HEAD_PARTIALS];
            self.partials.read(PARTIALS, &mut parts)?;
            let of_head = slots.iter().position(|s| self.network.vocabulary.trained_head == Some(s.offset));
            if let Some(square) = of_head.and_then(|head| squares.get_mut(head)) {
                *square = parts.iter().sum();
            }
        }
        Ok(squares)
    }
}
