//! The names of an adapter's tensors, in every form that PEFT and the tools beside it write them.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::adapter::PREFIX;
use crate::model::{EMBED_TOKENS, LM_HEAD, Parameter};

/// Tensors under the model's own names.
pub(super) struct Named {
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// What the file has before `layers.0`.
    pub(super) prefix: String,
    /// Tensors of a multimodal model's other parts.
    pub(super) passed_over: usize,
}

/// The tensors by the model's names. PEFT's saved files say `base_model.model.X.lora_A.weight`; names out
/// of a live PEFT model also carry the adapter's name (`.default.`) and wrappers. An error is two names
/// that mean the same tensor.
pub(super) fn own_names(tensors: BTreeMap<String, Tensor>) -> Result<Named, (String, String)> {
    let mut named = Named { tensors: BTreeMap::new(), prefix: "model.".to_string(), passed_over: 0 };
    let mut from: BTreeMap<String, String> = BTreeMap::new();
    for (name, tensor) in tensors {
        if [".original_module.", ".trainable_tokens_original."].iter().any(|part| name.contains(part)) {
            continue;
        }
        if name.contains("vision_tower")
            || name.contains("vision_model")
            || name.contains("multi_modal_projector")
        {
            named.passed_over += 1;
            continue;
        }
        let (own, prefix) = own_name(&name);
        if let Some(prefix) = prefix {
            named.prefix = prefix;
        }
        if let Some(other) = from.insert(own.clone(), name.clone()) {
            return Err((other, name));
        }
        named.tensors.insert(own, tensor);
    }
    Ok(named)
}

/// A tensor's name in the text model, and what its file has before `layers.0` if it is of a block.
fn own_name(name: &str) -> (String, Option<String>) {
    let short = name.strip_prefix(PREFIX).unwrap_or(name);
    let mut parts: Vec<&str> = short.split('.').filter(|part| *part != "modules_to_save").collect();
    let is_saved = short.contains(".modules_to_save.");
    // `lora_A.NAME.weight`, `lora_magnitude_vector.NAME.weight`, `embed_tokens.default.weight`: NAME is the
    // adapter's in the program that held it.
    let after = |parts: &[&str], word: &str| parts.iter().position(|part| *part == word);
    for word in ["lora_A", "lora_B", "lora_magnitude_vector"] {
        if let Some(at) = after(&parts, word)
            && parts.len() == at + 3
            && parts[at + 2] == "weight"
        {
            parts.remove(at + 1);
        }
    }
    parts.retain(|part| *part != "default");
    if after(&parts, "lora_magnitude_vector").is_some() && parts.last() == Some(&"weight") {
        parts.pop();
    }
    // The text model stands somewhere else in the multimodal class.
    if let Some(at) = after(&parts, "layers") {
        let prefix = parts[..at].iter().map(|part| format!("{part}.")).collect();
        return (format!("model.{}", parts[at..].join(".")), Some(prefix));
    }
    let own = match parts[..] {
        [.., "embed_tokens", _, "weight"] if is_saved => EMBED_TOKENS.to_string(),
        [.., "lm_head", _, "weight"] if is_saved => LM_HEAD.to_string(),
        [.., "embed_tokens", "token_adapter", "trainable_tokens_delta"]
        | [.., "embed_tokens", "token_adapter", "trainable_tokens_delta", _] => {
            Parameter::EmbedTokensRows.name()
        }
        [.., "lm_head", "token_adapter", "trainable_tokens_delta"]
        | [.., "lm_head", "token_adapter", "trainable_tokens_delta", _] => Parameter::LmHeadRows.name(),
        [.., "embed_tokens", "weight"] => EMBED_TOKENS.to_string(),
        [.., "lm_head", "weight"] => LM_HEAD.to_string(),
        _ => parts.join("."),
    };
    (own, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_name_is_the_models_own() {
        let block = "model.layers.3.self_attn.q_proj.lora_A.weight";
        for (name, own, prefix) in [
            ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight", block, Some("model.")),
            ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight", block, Some("model.")),
            ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.emoji.weight", block, Some("model.")),
            (
                "base_model.model.model.language_model.layers.3.self_attn.q_proj.lora_A.weight",
                block,
                Some("model.language_model."),
            ),
            (
                "base_model.model.language_model.model.layers.3.self_attn.q_proj.lora_A.weight",
                block,
                Some("language_model.model."),
            ),
            (block, block, Some("model.")),
            (
                "base_model.model.model.embed_tokens.modules_to_save.emoji.weight",
                "model.embed_tokens.weight",
                None,
            ),
            ("base_model.model.lm_head.modules_to_save.weight", "lm_head.weight", None),
            (
                "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector.default.weight",
                "model.layers.0.mlp.up_proj.lora_magnitude_vector",
                Some("model."),
            ),
            (
                "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector",
                "model.layers.0.mlp.up_proj.lora_magnitude_vector",
                Some("model."),
            ),
            (
                "base_model.model.model.embed_tokens.modules_to_save.default.weight",
                "model.embed_tokens.weight",
                None,
            ),
            ("base_model.model.model.language_model.embed_tokens.weight", "model.embed_tokens.weight", None),
            ("base_model.model.lm_head.modules_to_save.weight", "lm_head.weight", None),
            ("base_model.model.lm_head.weight", "lm_head.weight", None),
        ] {
            assert_eq!(own_name(name), (own.to_string(), prefix.map(String::from)), "{name}");
        }
    }
}
