//! The names that other tools give a Gemma's tensors, and those of tensors that are not the text model's.

/// The text model's own name of a tensor: without what a multimodal model
/// (Gemma3ForConditionalGeneration), `torch.compile`, a data-parallel wrapper or PEFT put in front,
/// and with the `model.` that a model without a head leaves out.
pub(crate) fn without_prefix(name: &str) -> String {
    let mut name = name;
    while let Some(rest) =
        ["_orig_mod.", "module.", "base_model.model."].iter().find_map(|wrapper| name.strip_prefix(wrapper))
    {
        name = rest;
    }
    let name = match name.strip_prefix("model.language_model.") {
        Some(rest) => rest,
        None => name.strip_prefix("language_model.").unwrap_or(name),
    };
    let bare = name.strip_prefix("model.").unwrap_or(name);
    if bare.starts_with("lm_head.") {
        return bare.to_string();
    }
    match ["embed_tokens.", "layers.", "norm."].iter().any(|part| bare.starts_with(part)) {
        true => format!("model.{bare}"),
        false => name.to_string(),
    }
}

/// Whether a tensor that the text model does not have is one that it can do without: part of the
/// vision tower, or a table that is computed.
pub(super) fn is_passed_over(name: &str) -> bool {
    ["vision_tower.", "vision_model.", "multi_modal_projector.", "audio_tower.", "embed_vision."]
        .iter()
        .any(|part| name.strip_prefix("model.").unwrap_or(name).starts_with(part))
        || name.contains("rotary_emb")
}

/// Whether a tensor belongs to weights that another tool stored in a few bits.
pub(super) fn is_quantised(name: &str) -> bool {
    [
        ".qweight",
        ".qzeros",
        ".g_idx",
        ".scales",
        ".biases",
        ".absmax",
        ".quant_map",
        ".SCB",
        ".weight_scale",
        ".weight_scale_inv",
        ".weight_packed",
    ]
    .iter()
    .any(|end| name.ends_with(end))
        || name.contains(".quant_state.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_what_others_put_in_front() {
        assert_eq!(without_prefix("language_model.model.norm.weight"), "model.norm.weight");
        assert_eq!(without_prefix("model.language_model.norm.weight"), "model.norm.weight");
        assert_eq!(without_prefix("language_model.lm_head.weight"), "lm_head.weight");
        assert_eq!(without_prefix("model.norm.weight"), "model.norm.weight");
        assert_eq!(without_prefix("model.language_model.lm_head.weight"), "lm_head.weight");
        assert_eq!(without_prefix("_orig_mod.model.norm.weight"), "model.norm.weight");
        assert_eq!(without_prefix("module._orig_mod.lm_head.weight"), "lm_head.weight");
        assert_eq!(without_prefix("base_model.model.model.layers.0.x"), "model.layers.0.x");
        assert_eq!(without_prefix("layers.0.x"), "model.layers.0.x");
        assert_eq!(without_prefix("vision_tower.layers.0.x"), "vision_tower.layers.0.x");
        assert!(
            is_passed_over("model.vision_tower.x") && is_passed_over("model.layers.0.rotary_emb.inv_freq")
        );
        assert!(!is_passed_over("model.layers.0.self_attn.q_proj.bias"));
    }
}
