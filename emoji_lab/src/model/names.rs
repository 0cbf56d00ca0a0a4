//! The tensors a Gemma 3 text model consists of: transformers' names and shapes.

use super::config::Gemma3Config;

/// The embedding, and the head where they are tied.
pub const EMBED_TOKENS: &str = "model.embed_tokens.weight";
/// The head of an untied model.
pub const LM_HEAD: &str = "lm_head.weight";

/// Every tensor of the model that `config` describes, with its shape; `lm_head.weight` only if it
/// is not tied to the embedding.
pub fn tensor_shapes(config: &Gemma3Config) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let inner = config.intermediate_size;
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let mut tensors = vec![(EMBED_TOKENS.to_string(), vec![config.vocab_size, hidden])];
    for layer in 0..config.num_hidden_layers {
        let parts: [(&str, Vec<usize>); 13] = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("self_attn.q_norm", vec![config.head_dim]),
            ("self_attn.k_norm", vec![config.head_dim]),
            ("post_attention_layernorm", vec![hidden]),
            ("pre_feedforward_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
            ("post_feedforward_layernorm", vec![hidden]),
        ];
        for (part, shape) in parts {
            tensors.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    tensors.push(("model.norm.weight".to_string(), vec![hidden]));
    if !config.tie_word_embeddings {
        tensors.push((LM_HEAD.to_string(), vec![config.vocab_size, hidden]));
    }
    tensors
}

/// The text model's own name of a tensor in a multimodal (Gemma3ForConditionalGeneration) file.
pub(crate) fn without_prefix(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("model.language_model.") {
        return format!("model.{rest}");
    }
    name.strip_prefix("language_model.").unwrap_or(name).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_both_multimodal_prefixes() {
        assert_eq!(without_prefix("language_model.model.norm.weight"), "model.norm.weight");
        assert_eq!(without_prefix("model.language_model.norm.weight"), "model.norm.weight");
        assert_eq!(without_prefix("language_model.lm_head.weight"), "lm_head.weight");
        assert_eq!(without_prefix("model.norm.weight"), "model.norm.weight");
    }
}
