//! The tiny Gemma 3: its shape and its first weights.

use std::path::Path;

use serde_json::json;

use crate::Result;
use crate::tokenizer::write_json;

/// The longest sequence the model is made for, in tokens.
pub const MAX_POSITIONS: usize = 1024;

/// Width of the residual stream.
pub const HIDDEN: usize = 128;
/// Width of the MLP.
pub const INTERMEDIATE: usize = 512;
/// Decoder layers: five with a sliding window, then one that sees everything.
pub const LAYERS: usize = 6;
/// Query heads, over one key and value head.
pub const HEADS: usize = 4;
/// Width of a head.
pub const HEAD_DIM: usize = 32;

/// Writes `config.json` in transformers' present form.
pub fn write_config(folder: &Path, vocab_size: usize) -> Result<()> {
    let layer = |i: usize| if (i + 1) % 6 == 0 { "full_attention" } else { "sliding_attention" };
    let config = json!({
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": null,
        "bos_token_id": 2,
        "dtype": "bfloat16",
        "eos_token_id": [1, 5],
        "final_logit_softcapping": null,
        "head_dim": HEAD_DIM,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "layer_types": (0..LAYERS).map(layer).collect::<Vec<_>>(),
        "max_position_embeddings": MAX_POSITIONS,
        "model_type": "gemma3_text",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": HEAD_DIM,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": { "rope_theta": 1_000_000.0, "rope_type": "default" },
            "sliding_attention": { "rope_theta": 10_000.0, "rope_type": "default" },
        },
        "sliding_window": 64,
        "tie_word_embeddings": true,
        "use_bidirectional_attention": false,
        "use_cache": true,
        "vocab_size": vocab_size,
    });
    write_json(&folder.join("config.json"), &config)
}
