//! What a `tokenizer_config.json` says of chat templates.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The chat template in a `tokenizer_config.json`: a text, or named ones (a list, or an object) of
/// which the one called default counts.
///
/// # Errors
/// [`Error::Model`] if there are templates and none of them is it.
pub(super) fn template_source<'a>(config: &'a Map<String, Value>, origin: &str) -> Result<Option<&'a str>> {
    let named: Vec<(&str, &str)> = match config.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => return Ok(Some(source)),
        Some(Value::Array(entries)) => entries
            .iter()
            .filter_map(|entry| Some((entry.get("name")?.as_str()?, entry.get("template")?.as_str()?)))
            .collect(),
        Some(Value::Object(entries)) => {
            entries.iter().filter_map(|(name, template)| Some((name.as_str(), template.as_str()?))).collect()
        }
        Some(_) => vec![],
    };
    if let Some((_, source)) = named.iter().find(|(name, _)| *name == "default") {
        return Ok(Some(source));
    }
    let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
    let problem = match names.is_empty() {
        true => "chat_template is neither a text nor a list of named ones".to_owned(),
        false => format!("chat_template has {}, and none that is called default", names.join(", ")),
    };
    Err(Error::model(origin, problem, "Name one of them default, or write it into chat_template.jinja"))
}

/// The special tokens that a chat template can name: transformers' `special_tokens_map`, as
/// `pad_token`, and what a model names beside them in `extra_special_tokens`, as `boi_token`.
pub(super) fn template_tokens(config: &Map<String, Value>, bos: &str, eos: &str) -> Vec<(String, String)> {
    let text = |value: &Value| Some(value.as_str().or_else(|| value.get("content")?.as_str())?.to_owned());
    let mut tokens = vec![("bos_token".to_owned(), bos.to_owned()), ("eos_token".to_owned(), eos.to_owned())];
    for name in ["unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] {
        tokens.extend(config.get(name).and_then(text).map(|token| (name.to_owned(), token)));
    }
    for key in ["extra_special_tokens", "model_specific_special_tokens"] {
        for (name, token) in config.get(key).and_then(Value::as_object).into_iter().flatten() {
            tokens.extend(text(token).map(|token| (name.clone(), token)));
        }
    }
    tokens
}
