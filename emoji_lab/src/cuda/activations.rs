//! Everything a pass writes, laid out once for the longest batch.

use super::network::Sizes;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::placed::{Layout, Placed};
use crate::gpu::pointer::{Compute, DevicePtr, Element};
use crate::ops::step::StepResult;

/// One layer's activations, kept from its forward pass for its backward pass. Where a linear
/// group reads an activation, the adapters' `u` follows each of its rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerActivations {
    /// The stream before the layer, `[tokens, hidden]`.
    pub(super) x: DevicePtr<f32>,
    pub(super) rstd_input: DevicePtr<f32>,
    /// `[tokens, hidden + u]`.
    pub(super) normed: DevicePtr<Compute>,
    /// `[tokens, (heads + 2 · kv_heads) · dim]`.
    pub(super) qkv: DevicePtr<Compute>,
    pub(super) rstd_qk: DevicePtr<f32>,
    pub(super) q: DevicePtr<Compute>,
    pub(super) k: DevicePtr<Compute>,
    /// `[tokens, heads · dim + u]`.
    pub(super) attended: DevicePtr<Compute>,
    pub(super) lse: DevicePtr<f32>,
    pub(super) o: DevicePtr<Compute>,
    pub(super) rstd_o: DevicePtr<f32>,
    /// The stream between attention and MLP.
    pub(super) middle: DevicePtr<f32>,
    pub(super) rstd_middle: DevicePtr<f32>,
    /// `[tokens, hidden + u]`.
    pub(super) middle_normed: DevicePtr<Compute>,
    /// `[tokens, 2 · inner]`.
    pub(super) gate_up: DevicePtr<Compute>,
    /// `[tokens, inner + u]`.
    pub(super) gated: DevicePtr<Compute>,
    pub(super) down: DevicePtr<Compute>,
    pub(super) rstd_down: DevicePtr<f32>,
}

/// What the backward pass of one layer writes. There are two, used alternately: the adapters' gradients
/// are still made of one while the layer below writes the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerGradients {
    pub(super) d_down: DevicePtr<Compute>,
    /// `[tokens, inner + u]`.
    pub(super) d_gated: DevicePtr<f32>,
    pub(super) d_gate_up: DevicePtr<Compute>,
    /// `[tokens, hidden + u]`.
    pub(super) d_middle_normed: DevicePtr<f32>,
    pub(super) d_middle: DevicePtr<f32>,
    pub(super) d_o: DevicePtr<Compute>,
    /// `[tokens, heads · dim + u]`.
    pub(super) d_attended: DevicePtr<f32>,
    pub(super) delta: DevicePtr<f32>,
    pub(super) d_qkv: DevicePtr<Compute>,
    /// `[tokens, hidden + u]`.
    pub(super) d_normed: DevicePtr<f32>,
}

/// Where all of them are.
pub(super) struct Buffers {
    pub(super) layers: Vec<LayerActivations>,
    gradients: [LayerGradients; 2],
    /// The stream after the last layer.
    pub(super) last: DevicePtr<f32>,
    pub(super) rstd_last: DevicePtr<f32>,
    /// After the final norm.
    pub(super) hidden: DevicePtr<Compute>,
    /// From the head.
    pub(super) d_hidden: DevicePtr<f32>,
    /// The gradient of the stream.
    pub(super) d_stream: DevicePtr<f32>,
    /// Terms of the gradients of the norms of queries and keys, where those are trained, `[tokens, heads · dim]`
    /// and `[tokens, kv_heads · dim]`.
    pub(super) terms_q: DevicePtr<f32>,
    pub(super) terms_k: DevicePtr<f32>,
    /// Rows of logits, then of their gradients.
    pub(super) logits: DevicePtr<Compute>,
    /// The columns of the head's rows that are trained, each row as long as [`columns_ld`] says.
    pub(super) columns: DevicePtr<Compute>,
    /// How many rows of logits fit there.
    pub(super) logit_rows: usize,
    /// Products of the hidden states with each other, `[tokens, tokens]`, where the head's gradient is made in
    /// pieces.
    pub(super) hidden_products: DevicePtr<f32>,
    /// The rows of that gradient that were looked up, without what looking up adds, `[tokens, hidden]`.
    pub(super) looked_up: DevicePtr<f32>,
    /// One per token.
    pub(super) losses: DevicePtr<f32>,
    /// Where losses are added up: of a whole result only the loss.
    pub(super) loss: DevicePtr<StepResult>,
}

/// All of them, in one piece of device memory.
pub(super) type Activations = Placed<Buffers>;

/// Bytes of logits at a time, whatever the batch: 128 rows with Gemma 3's vocabulary.
const LOGIT_BYTES: usize = 128 * 262_144 * 2;
/// And the most for long batches: every block of rows reads the head twice, and reads and writes its gradient.
const MOST_LOGIT_BYTES: usize = 8 * LOGIT_BYTES;
/// A batch of more tokens than this is long.
const LONG: usize = 256;

/// Rows of `bytes` each that the logits of `tokens` tokens, the longest batch, have at a time. Not fewer to make
/// blocks of one length: most batches are shorter, and are to be one block.
fn logit_rows(tokens: usize, bytes: usize, training: bool) -> usize {
    let most = if training && tokens > LONG { MOST_LOGIT_BYTES } else { LOGIT_BYTES };
    (most / bytes).clamp(1, tokens.max(1))
}

/// What the backward pass wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    /// How many of the head's rows are trained where not all are.
    pub(super) trained_rows: usize,
    /// Tokens of the longest batch of a step, where the head's gradient is made in pieces: the logits of such a
    /// batch are kept as a whole.
    pub(super) in_pieces: Option<usize>,
}

/// The distance between rows of `count` columns: aligned for products.
pub(super) fn columns_ld(count: usize) -> usize {
    count.next_multiple_of(8)
}

/// A buffer of `tokens` rows.
fn rows<T: Element>(layout: &mut Layout<'_>, tokens: usize, columns: usize) -> DevicePtr<T> {
    layout.take(tokens * columns)
}

impl Buffers {
    /// For up to `tokens` tokens. `training` says that there is a backward pass.
    pub(super) fn activations(
        gpu: &Gpu,
        s: &Sizes,
        tokens: usize,
        training: Option<Steps>,
    ) -> Result<Activations> {
        let row = s.vocab * gpu.size();
        let logit_rows = match training.and_then(|steps| steps.in_pieces) {
            Some(longest) if longest > 0 => longest,
            _ => logit_rows(tokens, row, training.is_some()),
        };
        Placed::poisoned(gpu, &format!("activations of {tokens} tokens"), |layout| {
            Self::place(layout, s, tokens, logit_rows, training)
        })
    }

    /// Where layer `index` writes in its backward pass.
    pub(super) fn gradients_of(&self, index: usize) -> &LayerGradients {
        &self.gradients[index % 2]
    }

    fn place(
        layout: &mut Layout<'_>,
        s: &Sizes,
        tokens: usize,
        logit_rows: usize,
        training: Option<Steps>,
    ) -> Self {
        let columns = columns_ld(training.map_or(0, |steps| steps.trained_rows));
        let together = training.and_then(|steps| steps.in_pieces).unwrap_or(0);
        let training = training.is_some();
        // Without a backward pass one layer's buffers serve all, except for the stream, which goes on.
        let layers: Vec<LayerActivations> = if training {
            (0..s.layers).map(|_| LayerActivations::place(layout, s, tokens)).collect()
        } else {
            let two = [(); 2].map(|()| LayerActivations::place(layout, s, tokens));
            two.into_iter().cycle().take(s.layers).collect()
        };
        let gradient_rows = if training { tokens } else { 0 };
        Self {
            layers,
            gradients: [(); 2].map(|()| LayerGradients::place(layout, s, gradient_rows)),
            last: rows(layout, tokens, s.hidden),
            rstd_last: rows(layout, tokens, 1),
            hidden: rows(layout, tokens, s.hidden),
            d_hidden: rows(layout, gradient_rows, s.hidden),
            d_stream: rows(layout, gradient_rows, s.hidden),
            terms_q: rows(layout, if s.whole { gradient_rows } else { 0 }, s.heads * s.dim),
            terms_k: rows(layout, if s.whole { gradient_rows } else { 0 }, s.kv_heads * s.dim),
            losses: rows(layout, tokens, 1),
            logits: rows(layout, logit_rows, s.vocab),
            columns: rows(layout, logit_rows, columns),
            hidden_products: rows(layout, together, together),
            looked_up: rows(layout, together, s.hidden),
            loss: layout.take(1),
            logit_rows,
        }
    }
}

impl LayerActivations {
    fn place(layout: &mut Layout<'_>, s: &Sizes, tokens: usize) -> Self {
        let [in_tail, o_tail, mlp_tail, down_tail] = s.tails;
        Self {
            x: rows(layout, tokens, s.hidden),
            rstd_input: rows(layout, tokens, 1),
            normed: rows(layout, tokens, s.hidden + in_tail),
            qkv: rows(layout, tokens, s.qkv()),
            rstd_qk: rows(layout, tokens, s.heads + s.kv_heads),
            q: rows(layout, tokens, s.heads * s.dim),
            k: rows(layout, tokens, s.kv_heads * s.dim),
            attended: rows(layout, tokens, s.heads * s.dim + o_tail),
            lse: rows(layout, tokens, s.heads),
            o: rows(layout, tokens, s.hidden),
            rstd_o: rows(layout, tokens, 1),
            middle: rows(layout, tokens, s.hidden),
            rstd_middle: rows(layout, tokens, 1),
            middle_normed: rows(layout, tokens, s.hidden + mlp_tail),
            gate_up: rows(layout, tokens, 2 * s.inner),
            gated: rows(layout, tokens, s.inner + down_tail),
            down: rows(layout, tokens, s.hidden),
            rstd_down: rows(layout, tokens, 1),
        }
    }
}

impl LayerGradients {
    fn place(layout: &mut Layout<'_>, s: &Sizes, tokens: usize) -> Self {
        let [in_tail, o_tail, mlp_tail, down_tail] = s.tails;
        Self {
            d_down: rows(layout, tokens, s.hidden),
            d_gated: rows(layout, tokens, s.inner + down_tail),
            d_gate_up: rows(layout, tokens, 2 * s.inner),
            d_middle_normed: rows(layout, tokens, s.hidden + mlp_tail),
            d_middle: rows(layout, tokens, s.hidden),
            d_o: rows(layout, tokens, s.hidden),
            d_attended: rows(layout, tokens, s.heads * s.dim + o_tail),
            delta: rows(layout, tokens, s.heads),
            d_qkv: rows(layout, tokens, s.qkv()),
            d_normed: rows(layout, tokens, s.hidden + in_tail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_in_blocks() {
        let gemma = 262_144 * 2;
        assert_eq!(logit_rows(116, gemma, true), 116);
        assert_eq!(logit_rows(138, gemma, true), 128);
        assert_eq!(logit_rows(464, gemma, true), 464);
        assert_eq!(logit_rows(1856, gemma, true), 1024);
        assert_eq!(logit_rows(100_000, gemma, true), 1024);
        assert_eq!(logit_rows(100_000, gemma, false), 128);
        // A vocabulary larger than any: a row at a time.
        assert_eq!(logit_rows(100, 2 * MOST_LOGIT_BYTES, true), 1);
        assert_eq!(logit_rows(100, 520 * 4, true), 100);
    }
}
