//! Settings of generation in a GGUF: llama.cpp's `general.sampling.*`.

use serde_json::{Value, json};

use super::header::Meta;
use super::parts::Parts;
use crate::model::save::gemma_generation_config;
use crate::model::tokenizer::Tokenizer;

/// The file's settings in the form of a `generation_config.json`; `None` if it has none. Numbers that
/// make no sense are passed over: they are hints of whoever made the file.
pub(super) fn read_sampling(parts: &Parts, tokenizer: &Tokenizer) -> Option<Value> {
    let number = |key: &str| {
        let value = match parts.meta(&format!("general.sampling.{key}"))? {
            // The shortest decimal that is this f32: 0.95, and not what widening gives.
            Meta::F32(value) => value.to_string().parse().unwrap_or(f64::from(*value)),
            Meta::F64(value) => *value,
            Meta::Unsigned(value) => *value as f64,
            Meta::Signed(value) => *value as f64,
            _ => return None,
        };
        Some(value).filter(|value| value.is_finite() && *value >= 0.0)
    };
    let (temperature, top_k, top_p) = (number("temp"), number("top_k"), number("top_p"));
    let penalty = number("penalty_repeat").filter(|penalty| *penalty > 0.0);
    if [temperature, top_k, top_p, penalty].iter().all(Option::is_none) {
        return None;
    }
    let mut settings = gemma_generation_config(tokenizer);
    // Which tokens stop is told by other keys.
    settings["eos_token_id"] = Value::Null;
    match temperature {
        Some(0.0) => {
            settings["do_sample"] = json!(false);
            for key in ["top_k", "top_p"] {
                settings[key] = Value::Null;
            }
        }
        Some(temperature) if temperature != 1.0 => settings["temperature"] = json!(temperature),
        _ => {}
    }
    if settings["do_sample"] == json!(true) {
        if let Some(top_k) = top_k {
            settings["top_k"] = json!(top_k as u64);
        }
        if let Some(top_p) = top_p.filter(|top_p| *top_p <= 1.0) {
            settings["top_p"] = json!(top_p);
        }
    }
    if let Some(penalty) = penalty {
        settings["repetition_penalty"] = json!(penalty);
    }
    Some(settings)
}
