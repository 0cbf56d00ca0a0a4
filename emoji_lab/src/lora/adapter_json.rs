//! `adapter_config.json` read: what PEFT writes, and the forms that tools beside it give it.

use serde_json::{Map, Value};

use super::adapter_config::AdapterConfig;
use super::config::{LoraConfig, WHOLE_MODULES, all_linear, all_whole, whole_module};
use super::selection::Selection;
use super::token_indices::TokenIndices;
use crate::error::{Error, Result};
use crate::model::{LinearName, Parameter};

const HELP: &str = "Use a plain LoRA adapter, as PEFT's LoraConfig makes it with the notebook's settings";

impl AdapterConfig {
    /// Reads the text of an `adapter_config.json`; `origin` names the file in errors.
    ///
    /// `found` are the linear layers that the adapter's tensors belong to: they stand in where
    /// `target_modules` is a pattern or has longer names.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not JSON, not LoRA, lacks a field, or switches on something that
    /// changes the arithmetic and that is not supported here (biases, activated LoRA, …).
    pub fn from_json(text: &str, origin: &str, found: &[LinearName]) -> Result<Self> {
        let wrong = |problem: String| Error::model(origin, problem, HELP);
        let fields: Map<String, Value> = serde_json::from_str(text).map_err(|e| {
            let help = "The file is cut short or was edited; take the adapter folder again from its source";
            Error::model(origin, format!("not readable as a JSON object: {e}"), help)
        })?;
        for (name, value) in &fields {
            if !is_supported(name, value) {
                return Err(wrong(format!("{name} = {value} is not supported")));
            }
        }
        let field = |name: &'static str| fields.get(name).unwrap_or(&Value::Null);
        let bad = |name: &'static str, want: &str| wrong(format!("{name} is {}, not {want}", field(name)));

        let r = field("r").as_u64().and_then(|r| usize::try_from(r).ok()).filter(|r| *r > 0);
        let r = r.ok_or_else(|| bad("r", "a whole number above 0"))?;
        let alpha = field("lora_alpha").as_f64();
        let lora_alpha = alpha.ok_or_else(|| bad("lora_alpha", "a number"))?;
        let dropout = field("lora_dropout");
        let lora_dropout = if dropout.is_null() { Some(0.0) } else { dropout.as_f64() };
        let lora_dropout = lora_dropout.ok_or_else(|| bad("lora_dropout", "a number"))?;

        let selection = Selection::read(&fields).map_err(wrong)?.map(Box::new);
        // LoRA on the embedding or the head is arithmetic of its own.
        let named = strings(field("target_modules")).unwrap_or_default();
        let is_whole = |name: &&String| WHOLE_MODULES.iter().any(|(whole, _)| name.ends_with(whole));
        if let Some(whole) = named.iter().find(is_whole) {
            return Err(wrong(format!(
                "target_modules names {whole}: LoRA on the embedding or the head is not supported"
            )));
        }
        let target_modules = match field("target_modules") {
            Value::String(_) | Value::Array(_) if selection.is_some() => {
                found.iter().map(LinearName::to_string).collect()
            }
            Value::String(_) => found.iter().map(LinearName::to_string).collect(),
            list @ Value::Array(_) => {
                let names = strings(list).ok_or_else(|| bad("target_modules", "a list of names"))?;
                let known = |name: &String| LinearName::from_name(name).is_some();
                if names == ["all-linear"] {
                    all_linear()
                } else if let Some(other) = names.iter().find(|name| !known(name)) {
                    return Err(wrong(format!(
                        "target_modules names {other}, not a linear layer of Gemma 3"
                    )));
                } else {
                    names
                }
            }
            _ => return Err(bad("target_modules", "a list of names")),
        };
        let ensure_weight_tying = field("ensure_weight_tying").as_bool().unwrap_or(false);
        let modules_to_save = match field("modules_to_save") {
            Value::Null => Vec::new(),
            list => {
                let names = strings(list).ok_or_else(|| bad("modules_to_save", "a list of names"))?;
                whole_modules(&names, ensure_weight_tying).map_err(|other| {
                    wrong(format!("modules_to_save names {other}, which is not supported"))
                })?
            }
        };
        let tied = ensure_weight_tying && !modules_to_save.is_empty();
        let (trainable_token_indices, head_tokens) =
            token_indices(field("trainable_token_indices")).map_err(wrong)?;
        Ok(Self {
            lora: LoraConfig {
                r,
                lora_alpha,
                target_modules,
                lora_dropout,
                modules_to_save,
                trainable_token_indices,
                ensure_weight_tying,
            },
            base_model_name_or_path: field("base_model_name_or_path").as_str().map(String::from),
            tied,
            use_rslora: field("use_rslora").as_bool().unwrap_or(false),
            use_dora: field("use_dora").as_bool().unwrap_or(false),
            head_tokens,
            selection,
        })
    }
}

/// PEFT's `trainable_token_indices`: a list, which is of the embedding's rows, or a list per module.
fn token_indices(value: &Value) -> std::result::Result<(TokenIndices, Option<Vec<u32>>), String> {
    let bad = || format!("trainable_token_indices is {value}, not ids of tokens (a list, or one per module)");
    let ids = |list: &Value| -> std::result::Result<Vec<u32>, String> {
        let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids: Option<Vec<u32>> = list.as_array().ok_or_else(bad)?.iter().map(id).collect();
        ids.ok_or_else(bad)
    };
    let Value::Object(modules) = value else {
        return match value.is_null() {
            true => Ok((TokenIndices::None, None)),
            false => Ok((TokenIndices::Ids(ids(value)?), None)),
        };
    };
    let (mut embedding, mut head) = (TokenIndices::None, None);
    for (module, list) in modules {
        match whole_module(module.rsplit('.').next().unwrap_or(module)) {
            Some(Parameter::EmbedTokens) => embedding = TokenIndices::Ids(ids(list)?),
            Some(Parameter::LmHead) => head = Some(ids(list)?).filter(|ids| !ids.is_empty()),
            _ => return Err(format!("trainable_token_indices names {module}, which is not supported")),
        }
    }
    Ok((embedding, head))
}

pub(super) fn strings(list: &Value) -> Option<Vec<String>> {
    list.as_array()?.iter().map(|item| item.as_str().map(String::from)).collect()
}

/// The file's `modules_to_save` under our two names, or the name that is neither.
fn whole_modules(names: &[String], tying: bool) -> std::result::Result<Vec<String>, &String> {
    let mut whole = Vec::new();
    for name in names {
        // PEFT compares the end of a path: `model.language_model.embed_tokens` is the same module.
        let short = name.rsplit('.').next().unwrap_or(name);
        if whole_module(short).is_none() {
            return Err(name);
        }
        if !whole.iter().any(|known| known == short) {
            whole.push(short.to_string());
        }
    }
    // With tying, naming one of the pair trains both.
    Ok(if tying && !whole.is_empty() { all_whole() } else { whole })
}

/// Whether a field has a value that this crate gives the same meaning as PEFT.
///
/// A field that is not known is fine as long as it is off, so that files of other PEFT releases
/// are read, and nothing that changes the result is passed over in silence.
fn is_supported(name: &str, value: &Value) -> bool {
    match name {
        "peft_type" => value == "LORA",
        // Gemma's linear layers have no biases, so there are none to train; a tensor of one is refused.
        "bias" => matches!(value.as_str(), Some("none" | "all" | "lora_only")),
        // These start A and B differently and leave the base model as it is; the rest do not.
        "init_lora_weights" => {
            value.is_boolean() || value == "gaussian" || value == "orthogonal" || value == "eva"
        }
        // Read by `from_json`, or with no say in what the adapter computes.
        "r"
        | "lora_alpha"
        | "lora_dropout"
        | "target_modules"
        | "modules_to_save"
        | "trainable_token_indices"
        | "use_rslora"
        | "use_dora"
        | "exclude_modules"
        | "layers_to_transform"
        | "layers_pattern"
        | "rank_pattern"
        | "alpha_pattern"
        | "ensure_weight_tying"
        | "base_model_name_or_path"
        | "auto_mapping"
        | "inference_mode"
        | "megatron_config"
        | "megatron_core"
        | "peft_version"
        | "task_type"
        // PEFT switches it off for linear layers, with a warning.
        | "fan_in_fan_out"
        // How A and B, or the optimizer, were set up: what came of it is in the tensors.
        | "eva_config"
        | "corda_config"
        | "loftq_config"
        | "lora_ga_config"
        | "runtime_config"
        | "qalora_group_size"
        | "revision" => true,
        _ => match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The text PEFT 0.21.2 wrote for LoraConfig(r=4, lora_alpha=8, "all-linear", lora_dropout=0.0,
    // modules_to_save=["lm_head", "embed_tokens"], ensure_weight_tying=True) on a tied Gemma 3.
    pub(crate) const PEFT_TIED: &str = include_str!("peft_adapter_config.json");

    fn read(text: &str) -> Result<AdapterConfig> {
        AdapterConfig::from_json(text, "adapter_config.json", &LinearName::ALL)
    }

    #[test]
    fn what_peft_wrote_is_read_and_written_back_byte_for_byte() {
        let config = read(PEFT_TIED).unwrap();
        assert!(config.tied);
        assert_eq!(config.lora.modules_to_save, ["lm_head", "embed_tokens"]);
        assert_eq!(config.scaling(), 2.0);
        assert_eq!(config.to_json(), PEFT_TIED);
    }

    #[test]
    fn the_untied_form_and_no_whole_modules() {
        let untied = PEFT_TIED
            .replace("\"ensure_weight_tying\": true", "\"ensure_weight_tying\": false")
            .replace("\"embed_tokens\",\n    \"model.embed_tokens\"", "\"lm_head\",\n    \"embed_tokens\"");
        let config = read(&untied).unwrap();
        let path = untied.replace("\"embed_tokens\"", "\"model.language_model.embed_tokens\"");
        assert!(path != untied && read(&path).unwrap() == config);
        assert!(!config.tied);
        assert_eq!(config.to_json(), untied);

        let lora = LoraConfig { modules_to_save: vec![], lora_alpha: 1.5, ..Default::default() };
        let plain = AdapterConfig::new(&lora, None, true);
        assert!(!plain.tied);
        let text = plain.to_json();
        assert!(text.contains("\"modules_to_save\": null") && text.contains("\"lora_alpha\": 1.5"));
        assert_eq!(read(&text).unwrap(), plain);
    }

    #[test]
    fn all_linear_is_written_as_names_and_read_as_text_or_list() {
        let lora = LoraConfig { target_modules: vec!["all-linear".into()], ..Default::default() };
        let text = AdapterConfig::new(&lora, Some("google/gemma-3-270m-it"), true).to_json();
        assert!(!text.contains("all-linear"));
        assert_eq!(read(&text).unwrap().lora.target_modules, all_linear());
        for form in ["\"all-linear\"", "[\"all-linear\"]"] {
            let fields = format!(r#"{{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":{form}}}"#);
            assert_eq!(read(&fields).unwrap().lora.targets(), LinearName::ALL);
        }
    }

    #[test]
    fn rslora_divides_by_the_root() {
        let config = read(&PEFT_TIED.replace("\"use_rslora\": false", "\"use_rslora\": true")).unwrap();
        assert_eq!(config.scaling(), 4.0);
    }

    #[test]
    fn what_changes_the_arithmetic_is_refused_by_name() {
        let cases = [
            (
                "\"rank_pattern\": {}",
                "\"rank_pattern\": {\"q_proj\": \"8\"}",
                "rank_pattern is {\"q_proj\":\"8\"}",
            ),
            ("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"(q_proj\": 8}", "alpha_pattern has"),
            ("\"lora_bias\": false", "\"lora_bias\": true", "lora_bias = true is not supported"),
            ("\"bias\": \"none\"", "\"bias\": \"some\"", "bias = \"some\""),
            ("\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\"", "peft_type = \"IA3\""),
            ("\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"", "init_lora_weights"),
            ("\"velora_config\": null", "\"new_thing\": 3", "new_thing = 3"),
            ("\"r\": 4", "\"r\": 0", "r is 0"),
            ("\"r\": 4", "\"R\": null", "r is null"),
            ("\"model.embed_tokens\"", "\"norm\"", "modules_to_save names norm"),
            ("\"model.embed_tokens\"", "\"lm_head.x\"", "modules_to_save names lm_head.x"),
        ];
        for (from, to, says) in cases {
            assert!(PEFT_TIED.contains(from), "{from}");
            let error = read(&PEFT_TIED.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(says), "{error} should say {says}");
        }
        let error = read(&PEFT_TIED[..100]).unwrap_err().to_string();
        assert!(error.contains("not readable as a JSON object"), "{error}");
    }
}
