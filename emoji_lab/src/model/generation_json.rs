//! `generation_config.json`: how the people who made a model want it to generate.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::GenerationConfig;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::sniff::read_text;

const HELP: &str = "Mend the field in generation_config.json, or fetch the file again";

/// What transformers takes where a `generation_config.json` says nothing.
const TOP_K: usize = 50;

/// Settings that change what is generated and are not computed here, with the value that asks for
/// nothing.
const NOT_COMPUTED: [(&str, f64); 14] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("min_new_tokens", 0.0),
    ("min_length", 0.0),
    ("min_p", 0.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("top_h", 1.0),
    ("penalty_alpha", 0.0),
    ("guidance_scale", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("max_time", f64::NAN),
];

/// The same, for settings that are lists, texts or objects.
const LISTS_NOT_COMPUTED: [&str; 8] = [
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "stop_strings",
    "exponential_decay_length_penalty",
];

/// Reads and checks `generation_config.json` in `folder`; none if there is none.
///
/// # Errors
/// [`Error::Model`] that names the file, and the field of a wrong type.
pub(crate) fn read_generation_config(folder: &Path) -> Result<Option<Value>> {
    let path = folder.join("generation_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let origin = path.display().to_string();
    let value: Value = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| Error::model(&origin, format!("not valid JSON ({e})"), "Fetch the file again"))?;
    let fields = value
        .as_object()
        .ok_or_else(|| Error::model(&origin, "not a JSON object", "Fetch the file again"))?;
    settings_of(fields, &origin)?;
    stop_tokens(fields, &origin)?;
    Ok(Some(value))
}

/// `value` with an `eos_token_id`: its own, or else those of `config.json` (`eos`) and what the
/// tokenizer ends an answer with.
///
/// A list that the file has is kept as it is: transformers stops at those tokens and no others.
pub(crate) fn with_stop_tokens(mut value: Value, eos: &[u32], tokenizer: &Tokenizer) -> Value {
    if let Some(fields) = value.as_object_mut()
        && fields.get("eos_token_id").is_none_or(Value::is_null)
    {
        fields.insert("eos_token_id".to_string(), json!(union(eos, tokenizer.stop_ids())));
    }
    value
}

/// The ids of both, each once, in rising order.
fn union(one: &[u32], two: &[u32]) -> Vec<u32> {
    let ids: std::collections::BTreeSet<u32> = one.iter().chain(two).copied().collect();
    ids.into_iter().collect()
}

/// The tokens that end generation: `eos_token_id`, a number or a list of them.
///
/// # Errors
/// [`Error::Model`] if it is neither.
pub(crate) fn stop_tokens(fields: &Map<String, Value>, origin: &str) -> Result<Vec<u32>> {
    let wrong = |value: &Value| wrong(origin, "eos_token_id", value, "a token id or a list of them");
    // Some write -1 for none.
    let id = |value: &Value| -> Result<Option<u32>> {
        let number = whole(value).ok_or_else(|| wrong(value))?;
        match u32::try_from(number) {
            Ok(id) => Ok(Some(id)),
            Err(_) if number < 0 => Ok(None),
            Err(_) => Err(wrong(value)),
        }
    };
    match fields.get("eos_token_id") {
        None | Some(Value::Null) => Ok(vec![]),
        Some(Value::Array(ids)) => ids.iter().filter_map(|value| id(value).transpose()).collect(),
        Some(value) => Ok(id(value)?.into_iter().collect()),
    }
}

/// The settings of a `generation_config.json`; what it does not say is as in transformers, but for
/// `max_new_tokens`, which is as in [`GenerationConfig::default`].
///
/// # Errors
/// [`Error::Model`] that names the field of a wrong type.
pub(crate) fn settings_of(fields: &Map<String, Value>, origin: &str) -> Result<GenerationConfig> {
    let given = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let number = |name: &str, default: f64| match given(name) {
        None => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| wrong(origin, name, value, "a number")),
    };
    let size = |name: &str, default: usize| match given(name) {
        None => Ok(default),
        Some(value) => whole(value)
            .and_then(|number| usize::try_from(number).ok())
            .ok_or_else(|| wrong(origin, name, value, "a whole number, 0 or more")),
    };
    let do_sample = match given("do_sample") {
        None => false,
        Some(value) => value.as_bool().ok_or_else(|| wrong(origin, "do_sample", value, "true or false"))?,
    };
    size("max_length", 0)?;
    let default = GenerationConfig::default();
    Ok(GenerationConfig {
        max_new_tokens: size("max_new_tokens", default.max_new_tokens)?,
        do_sample,
        temperature: number("temperature", 1.0)?,
        top_k: size("top_k", TOP_K)?,
        top_p: number("top_p", 1.0)?,
        repetition_penalty: number("repetition_penalty", 1.0)?,
        ..default
    })
}

/// The settings that ask for something which is not computed here, as `num_beams 4`.
pub(crate) fn not_computed(fields: &Map<String, Value>) -> Vec<String> {
    let mut found = vec![];
    for (name, nothing) in NOT_COMPUTED {
        if let Some(value) = fields.get(name).and_then(Value::as_f64)
            && value != nothing
        {
            found.push(format!("{name} {value}"));
        }
    }
    for name in LISTS_NOT_COMPUTED {
        let asks = match fields.get(name) {
            None | Some(Value::Null) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(object)) => !object.is_empty(),
            Some(_) => true,
        };
        if asks {
            found.push(name.to_string());
        }
    }
    // Counts the prompt too, and gives way to max_new_tokens.
    if let Some(length) = fields.get("max_length").and_then(Value::as_u64)
        && fields.get("max_new_tokens").is_none_or(Value::is_null)
    {
        found.push(format!("max_length {length}"));
    }
    found
}

/// A whole number, also one that is written as 5.0.
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().filter(|v| v.fract() == 0.0 && v.abs() < 1e15).map(|v| v as i64))
}

fn wrong(origin: &str, name: &str, value: &Value, wanted: &str) -> Error {
    let mut shown = value.to_string();
    if let Some((cut, _)) = shown.char_indices().nth(60) {
        shown.truncate(cut);
        shown.push('…');
    }
    Error::model(origin, format!("{name} is {shown}, it must be {wanted}"), HELP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf_tokenizer::tests::tiny_tokenizer;

    fn read(text: &str) -> Result<Option<Value>> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
        read_generation_config(folder.path())
    }

    fn fields(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn stop_tokens_are_a_number_or_a_list() {
        let stops = |value: Value| stop_tokens(&fields(json!({"eos_token_id": value})), "g.json").unwrap();
        assert_eq!(stops(json!(9)), [9]);
        assert_eq!(stops(json!([1, 5, 9])), [1, 5, 9]);
        assert_eq!(stops(json!(9.0)), [9]);
        assert!(stops(Value::Null).is_empty() && stops(json!(-1)).is_empty() && stops(json!([])).is_empty());
        // A list of the file's own is all there is; without one, both other places count.
        let tokenizer = tiny_tokenizer();
        let filled = |value: Value| with_stop_tokens(value, &[9, 1], &tokenizer)["eos_token_id"].clone();
        assert_eq!(filled(json!({"eos_token_id": 9})), json!(9));
        assert_eq!(filled(json!({"eos_token_id": null})), json!([1, 6, 9]));
        assert_eq!(filled(json!({"top_k": 3})), json!([1, 6, 9]));
    }

    #[test]
    fn fields_of_a_wrong_type_are_named() {
        for (name, value) in [
            ("eos_token_id", json!("<eos>")),
            ("eos_token_id", json!([1, "<eos>"])),
            ("eos_token_id", json!(5_000_000_000u64)),
            ("do_sample", json!("yes")),
            ("temperature", json!("warm")),
            ("top_k", json!(0.5)),
            ("top_p", json!([0.9])),
            ("repetition_penalty", json!({})),
            ("max_new_tokens", json!(-1)),
            ("max_length", json!("20")),
        ] {
            let said = read(&json!({name: value}).to_string()).unwrap_err().to_string();
            assert!(
                said.contains("generation_config.json") && said.contains(&format!("{name} is ")),
                "{said}"
            );
        }
        for text in ["[]", "{", "7"] {
            assert!(read(text).unwrap_err().to_string().contains("generation_config.json"), "{text}");
        }
        assert!(read("\u{feff}{\"unknown\": [1]}").unwrap().is_some());
    }

    #[test]
    fn what_is_not_said_is_as_in_transformers() {
        let plain = settings_of(&Map::new(), "g.json").unwrap();
        assert_eq!((plain.do_sample, plain.temperature, plain.top_k, plain.top_p), (false, 1.0, 50, 1.0));
        let said = fields(json!({
            "do_sample": true, "temperature": 0.7, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.2,
            "max_new_tokens": 33, "max_length": 20, "cache_implementation": "hybrid",
        }));
        let wanted = GenerationConfig {
            max_new_tokens: 33,
            do_sample: true,
            temperature: 0.7,
            top_k: 0,
            top_p: 0.9,
            repetition_penalty: 1.2,
            ..GenerationConfig::default()
        };
        assert_eq!(settings_of(&said, "g.json").unwrap(), wanted);
        assert!(not_computed(&said).is_empty());
        let more = json!({"num_beams": 4, "min_p": 0.0, "suppress_tokens": [7], "stop_strings": null,
            "max_length": 20, "bad_words_ids": []});
        assert_eq!(not_computed(&fields(more)), ["num_beams 4", "suppress_tokens", "max_length 20"]);
    }
}
