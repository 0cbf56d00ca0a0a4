//! Everything a pass writes, laid out once for the longest batch.

use super::Gpu;
use super::memory::{Layout, Memory};
use super::network::Sizes;
use crate::error::Result;

/// One layer's activations, kept from its forward pass for its backward pass. Where a linear
/// group reads an activation, the adapters' `u` stands behind each of its rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerActivations {
    /// The stream before the layer, f32 `[tokens, hidden]`.
    pub(super) x: u64,
    pub(super) rstd_input: u64,
    /// `[tokens, hidden + u]`.
    pub(super) normed: u64,
    /// `[tokens, (heads + 2 · kv_heads) · dim]`.
    pub(super) qkv: u64,
    pub(super) rstd_qk: u64,
    pub(super) q: u64,
    pub(super) k: u64,
    /// `[tokens, heads · dim + u]`.
    pub(super) attended: u64,
    pub(super) lse: u64,
    pub(super) o: u64,
    pub(super) rstd_o: u64,
    /// The stream between attention and MLP, f32.
    pub(super) middle: u64,
    pub(super) rstd_middle: u64,
    /// `[tokens, hidden + u]`.
    pub(super) middle_normed: u64,
    /// `[tokens, 2 · inner]`.
    pub(super) gate_up: u64,
    /// `[tokens, inner + u]`.
    pub(super) gated: u64,
    pub(super) down: u64,
    pub(super) rstd_down: u64,
}

/// What the backward pass of one layer writes. There are two, used by turns: the adapters' gradients
/// are still made of one while the layer below writes the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerGradients {
    pub(super) d_down: u64,
    /// f32 `[tokens, inner + u]`.
    pub(super) d_gated: u64,
    pub(super) d_gate_up: u64,
    /// f32 `[tokens, hidden + u]`.
    pub(super) d_middle_normed: u64,
    pub(super) d_middle: u64,
    pub(super) d_o: u64,
    /// f32 `[tokens, heads · dim + u]`.
    pub(super) d_attended: u64,
    pub(super) delta: u64,
    pub(super) d_qkv: u64,
    /// f32 `[tokens, hidden + u]`.
    pub(super) d_normed: u64,
}

/// All of them, in one piece of device memory.
pub(super) struct Activations {
    _memory: Memory,
    pub(super) bytes: usize,
    pub(super) layers: Vec<LayerActivations>,
    gradients: [LayerGradients; 2],
    /// The stream after the last layer, f32.
    pub(super) last: u64,
    pub(super) rstd_last: u64,
    /// After the final norm.
    pub(super) hidden: u64,
    /// f32, from the head.
    pub(super) d_hidden: u64,
    /// f32, the gradient of the stream.
    pub(super) d_stream: u64,
    /// Rows of logits, then of their gradients.
    pub(super) logits: u64,
    /// How many rows of logits there is room for.
    pub(super) logit_rows: usize,
    /// f32, one a token.
    pub(super) losses: u64,
    /// f64, one.
    pub(super) loss: u64,
}

/// Rows of logits at a time: 67 MB of them with Gemma 3's vocabulary.
const LOGIT_BYTES: usize = 128 * 262_144 * 2;

impl Activations {
    /// Room for `tokens` tokens.
    pub(super) fn new(gpu: &Gpu, s: &Sizes, tokens: usize, training: bool) -> Result<Self> {
        let row = s.vocab * gpu.size();
        let logit_rows = (LOGIT_BYTES / row).clamp(1, tokens);
        let place = |base: u64| Self::place(gpu, s, tokens, logit_rows, training, base);
        let bytes = (place(0).1) as usize;
        let memory = Memory::poisoned(gpu, bytes, &format!("activations of {tokens} tokens"))?;
        let (mut placed, _) = place(memory.ptr());
        placed._memory = memory;
        placed.bytes = bytes;
        Ok(placed)
    }

    /// Where layer `index` writes in its backward pass.
    pub(super) fn gradients_of(&self, index: usize) -> &LayerGradients {
        &self.gradients[index % 2]
    }

    fn place(
        gpu: &Gpu,
        s: &Sizes,
        tokens: usize,
        logit_rows: usize,
        training: bool,
        base: u64,
    ) -> (Self, u64) {
        let mut layout = Layout::new(base);
        let t = gpu.size();
        let mut rows = |columns: usize, bytes: usize| layout.take(tokens * columns * bytes);
        let [in_tail, o_tail, mlp_tail, down_tail] = s.tails;
        let mut layer = || LayerActivations {
            x: rows(s.hidden, 4),
            rstd_input: rows(1, 4),
            normed: rows(s.hidden + in_tail, t),
            qkv: rows(s.qkv(), t),
            rstd_qk: rows(s.heads + s.kv_heads, 4),
            q: rows(s.heads * s.dim, t),
            k: rows(s.kv_heads * s.dim, t),
            attended: rows(s.heads * s.dim + o_tail, t),
            lse: rows(s.heads, 4),
            o: rows(s.hidden, t),
            rstd_o: rows(1, 4),
            middle: rows(s.hidden, 4),
            rstd_middle: rows(1, 4),
            middle_normed: rows(s.hidden + mlp_tail, t),
            gate_up: rows(2 * s.inner, t),
            gated: rows(s.inner + down_tail, t),
            down: rows(s.hidden, t),
            rstd_down: rows(1, 4),
        };
        // Without a backward pass one layer's room serves all, but for the stream, which goes on.
        let layers: Vec<LayerActivations> = if training {
            (0..s.layers).map(|_| layer()).collect()
        } else {
            let (first, second) = (layer(), layer());
            (0..s.layers).map(|i| if i % 2 == 0 { first } else { second }).collect()
        };
        let one = usize::from(training);
        let mut of_a_layer = || LayerGradients {
            d_down: rows(s.hidden * one, t),
            d_gated: rows((s.inner + down_tail) * one, 4),
            d_gate_up: rows(2 * s.inner * one, t),
            d_middle_normed: rows((s.hidden + mlp_tail) * one, 4),
            d_middle: rows(s.hidden * one, 4),
            d_o: rows(s.hidden * one, t),
            d_attended: rows((s.heads * s.dim + o_tail) * one, 4),
            delta: rows(s.heads * one, 4),
            d_qkv: rows(s.qkv() * one, t),
            d_normed: rows((s.hidden + in_tail) * one, 4),
        };
        let gradients = [of_a_layer(), of_a_layer()];
        let activations = Self {
            _memory: Memory::none(gpu),
            bytes: 0,
            layers,
            gradients,
            last: rows(s.hidden, 4),
            rstd_last: rows(1, 4),
            hidden: rows(s.hidden, t),
            d_hidden: rows(s.hidden * one, 4),
            d_stream: rows(s.hidden * one, 4),
            losses: rows(1, 4),
            logits: layout.take(logit_rows * s.vocab * t),
            loss: layout.take(8),
            logit_rows,
        };
        (activations, layout.end())
    }
}
