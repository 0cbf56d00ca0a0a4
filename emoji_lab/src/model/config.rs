//! The shape of a Gemma 3 text model, as `config.json` or a GGUF's metadata gives it.

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Which tokens a layer's attention sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerType {
    /// The last `sliding_window` tokens, itself among them.
    SlidingAttention,
    /// Every token before it, and itself.
    FullAttention,
}

impl LayerType {
    /// The name in `config.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SlidingAttention => "sliding_attention",
            Self::FullAttention => "full_attention",
        }
    }
}

/// The shape of a Gemma 3 text model. Names are transformers'.
#[derive(Debug, Clone, PartialEq)]
pub struct Gemma3Config {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// How many decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head; not always `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// The longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Attention scores are divided by the square root of this.
    pub query_pre_attn_scalar: f64,
    /// How many tokens a sliding layer sees, the query's own among them.
    pub sliding_window: usize,
    /// One entry a layer.
    pub layer_types: Vec<LayerType>,
    /// RoPE base of the full-attention layers.
    pub rope_theta: f64,
    /// RoPE base of the sliding layers.
    pub rope_local_base_freq: f64,
    /// Positions of the full-attention layers are divided by this (`rope_type: linear`); 1 for none.
    pub rope_scaling_factor: f64,
    /// Whether `lm_head` is the embedding.
    pub tie_word_embeddings: bool,
    /// Padding token.
    pub pad_token_id: u32,
    /// Beginning of sequence.
    pub bos_token_id: u32,
    /// End of sequence, as `config.json` or the GGUF has it. What generation stops at is
    /// [`Model::stop_ids`](super::Model::stop_ids).
    pub eos_token_ids: Vec<u32>,
}

impl Default for Gemma3Config {
    /// transformers' defaults for `Gemma3TextConfig`: what a `config.json` leaves out.
    fn default() -> Self {
        Self {
            vocab_size: 262_208,
            hidden_size: 2304,
            intermediate_size: 9216,
            num_hidden_layers: 26,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            head_dim: 256,
            max_position_embeddings: 131_072,
            rms_norm_eps: 1e-6,
            query_pre_attn_scalar: 256.0,
            sliding_window: 4096,
            layer_types: every_nth_full(26, DEFAULT_PATTERN),
            rope_theta: 1_000_000.0,
            rope_local_base_freq: 10_000.0,
            rope_scaling_factor: 1.0,
            tie_word_embeddings: true,
            pad_token_id: 0,
            bos_token_id: 2,
            eos_token_ids: vec![1],
        }
    }
}

/// Every sixth layer is full, the others slide, unless a file says otherwise.
pub(crate) const DEFAULT_PATTERN: usize = 6;

/// Bounds that no Gemma comes near. A damaged file must not make us allocate by its numbers.
const MOST_LAYERS: usize = 1024;
const MOST_WIDTH: usize = 1 << 20;
const MOST_VOCAB: usize = 1 << 24;

impl Gemma3Config {
    /// Checks that the sizes can be a model's. `origin` names the file in errors.
    ///
    /// # Errors
    /// [`Error::Model`] that names the field.
    pub fn validate(&self, origin: &str) -> Result<()> {
        let bad = |problem: String| Err(Error::model(origin, problem, "The configuration cannot be right"));
        let sizes = [
            ("vocab_size", self.vocab_size, MOST_VOCAB),
            ("hidden_size", self.hidden_size, MOST_WIDTH),
            ("intermediate_size", self.intermediate_size, MOST_WIDTH),
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 14),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 30),
            ("sliding_window", self.sliding_window, 1 << 30),
        ];
        for (name, value, most) in sizes {
            if value == 0 || value > most {
                return bad(format!("{name} is {value}, it must be between 1 and {most}"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return bad(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return bad(format!("head_dim {} is odd, RoPE turns pairs", self.head_dim));
        }
        if self.layer_types.len() != self.num_hidden_layers {
            return bad(format!(
                "layer_types has {} entries, num_hidden_layers is {}",
                self.layer_types.len(),
                self.num_hidden_layers
            ));
        }
        let numbers = [
            ("rms_norm_eps", self.rms_norm_eps),
            ("query_pre_attn_scalar", self.query_pre_attn_scalar),
            ("rope_theta", self.rope_theta),
            ("rope_local_base_freq", self.rope_local_base_freq),
            ("the RoPE scaling factor", self.rope_scaling_factor),
        ];
        for (name, value) in numbers {
            if !(value.is_finite() && value > 0.0) {
                return bad(format!("{name} is {value}, it must be above 0"));
            }
        }
        for (name, &id) in [("pad_token_id", &self.pad_token_id), ("bos_token_id", &self.bos_token_id)]
            .into_iter()
            .chain(self.eos_token_ids.iter().map(|id| ("eos_token_id", id)))
        {
            if id as usize >= self.vocab_size {
                return bad(format!("{name} {id} is outside the vocabulary of {}", self.vocab_size));
            }
        }
        Ok(())
    }

    /// The content of a `config.json` for this model, in the newer form.
    ///
    /// The older form's RoPE fields are there too, with the same values: transformers 4.5x reads
    /// those and passes over `rope_parameters`, 5.x does the opposite.
    pub fn to_json(&self) -> Value {
        let linear = self.rope_scaling_factor != 1.0;
        let mut full = json!({"rope_type": "default", "rope_theta": self.rope_theta});
        if linear {
            full["rope_type"] = json!("linear");
            full["factor"] = json!(self.rope_scaling_factor);
        }
        let eos = match self.eos_token_ids.as_slice() {
            [one] => json!(one),
            many => json!(many),
        };
        let mut config = json!({
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": self.max_position_embeddings,
            "initializer_range": 0.02,
            "rms_norm_eps": self.rms_norm_eps,
            "use_cache": true,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": false,
            "attention_dropout": 0.0,
            "query_pre_attn_scalar": whole_or_not(self.query_pre_attn_scalar),
            "sliding_window": self.sliding_window,
            "layer_types": self.layer_types.iter().map(|kind| kind.as_str()).collect::<Vec<_>>(),
            "attn_logit_softcapping": null,
            "final_logit_softcapping": null,
            "use_bidirectional_attention": false,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": self.rope_local_base_freq},
                "full_attention": full,
            },
            "rope_theta": self.rope_theta,
            "rope_local_base_freq": self.rope_local_base_freq,
            "rope_scaling": null,
        });
        if linear {
            config["rope_scaling"] = json!({"rope_type": "linear", "factor": self.rope_scaling_factor});
        }
        if let Some(pattern) = self.sliding_window_pattern() {
            config["_sliding_window_pattern"] = json!(pattern);
        }
        config
    }

    /// The n for which every n-th layer is full, if the layers follow such a pattern.
    pub fn sliding_window_pattern(&self) -> Option<usize> {
        let first_full = self.layer_types.iter().position(|&kind| kind == LayerType::FullAttention)?;
        let pattern = first_full + 1;
        (self.layer_types == every_nth_full(self.num_hidden_layers, pattern)).then_some(pattern)
    }
}

/// `layers` layer types of which every `pattern`-th is full.
pub(crate) fn every_nth_full(layers: usize, pattern: usize) -> Vec<LayerType> {
    (1..=layers.min(MOST_LAYERS))
        .map(|n| if n % pattern == 0 { LayerType::FullAttention } else { LayerType::SlidingAttention })
        .collect()
}

/// transformers types `query_pre_attn_scalar` as an integer and checks it.
fn whole_or_not(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}
