//! The shape of a Gemma 3 text model, as `config.json` or a GGUF's metadata gives it.

/// Which tokens a layer's attention sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerType {
    /// The last `sliding_window` tokens, itself among them.
    SlidingAttention,
    /// Every token before it, and itself.
    FullAttention,
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
    /// End of sequence: generation stops at any of these.
    pub eos_token_ids: Vec<u32>,
}
