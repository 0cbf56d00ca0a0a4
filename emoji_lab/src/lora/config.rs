//! What PEFT calls `LoraConfig`, with the notebook's settings as defaults.

/// The seven linear layers of a Gemma 3 block: what `target_modules="all-linear"` means here.
pub const ALL_LINEAR: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Low-rank adapters (Hu et al. 2021): each target layer computes `W x + lora_alpha / r · B A x`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank of A and B.
    pub r: usize,
    /// The adapter's output is scaled by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Names of the linear layers that get an adapter.
    pub target_modules: Vec<String>,
    /// Share of A's input that is dropped in training.
    pub lora_dropout: f64,
    /// Layers trained whole beside the adapters: `lm_head` and `embed_tokens`, both or neither.
    pub modules_to_save: Vec<String>,
    /// Whether a tied head stays one tensor with the embedding while both are trained.
    pub ensure_weight_tying: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 32.0,
            target_modules: ALL_LINEAR.map(String::from).to_vec(),
            lora_dropout: 0.05,
            modules_to_save: ["lm_head", "embed_tokens"].map(String::from).to_vec(),
            ensure_weight_tying: true,
        }
    }
}
