//! Reading a `config.json`: both of its forms, and what they may not ask for.

use serde_json::{Map, Value, json};

use super::config::{DEFAULT_PATTERN, Gemma3Config, LayerType, every_nth_full};
use crate::error::{Error, Result};

const HELP: &str = "Gemma 3 text models are what this reads (model_type gemma3_text or gemma3)";

impl Gemma3Config {
    /// Reads the text of a `config.json`.
    ///
    /// Both of its forms are read: the older `rope_theta`, `rope_local_base_freq`, `rope_scaling`
    /// and `sliding_window_pattern`, and the newer `rope_parameters` and `layer_types`; also the
    /// `text_config` inside a Gemma3ForConditionalGeneration's. `origin` names the file in errors.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not JSON, not a Gemma 3, asks for something that this crate does
    /// not compute, or has sizes that cannot be.
    pub fn from_json(text: &str, origin: &str) -> Result<Self> {
        // Some editors of Windows put a mark in front.
        let root: Value = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|e| Error::model(origin, format!("not valid JSON ({e})"), "Fetch or save it again"))?;
        let Value::Object(root) = root else {
            return Err(Error::model(origin, "not a JSON object", HELP));
        };
        let model_type = root.get("model_type").and_then(Value::as_str).unwrap_or("missing");
        if !matches!(model_type, "gemma3_text" | "gemma3") {
            return Err(Error::model(
                origin,
                format!("model_type is {model_type}, this is for Gemma 3"),
                "Choose a Gemma 3 text model, such as google/gemma-3-270m-it",
            ));
        }
        let text_config = match root.get("text_config") {
            Some(Value::Object(inner)) => Some(inner),
            None | Some(Value::Null) => None,
            Some(other) => {
                let fields = Fields { inner: &root, outer: &root, origin };
                return Err(fields.wrong("text_config", other, "an object"));
            }
        };
        let fields = Fields { inner: text_config.unwrap_or(&root), outer: &root, origin };
        fields.refuse_what_is_not_computed()?;

        let default = Self::default();
        let num_hidden_layers = fields.size("num_hidden_layers", default.num_hidden_layers)?;
        let max_position_embeddings =
            fields.size("max_position_embeddings", default.max_position_embeddings)?;
        let rope = fields.rope()?;
        let config = Self {
            vocab_size: fields.size("vocab_size", default.vocab_size)?,
            hidden_size: fields.size("hidden_size", default.hidden_size)?,
            intermediate_size: fields.size("intermediate_size", default.intermediate_size)?,
            num_hidden_layers,
            num_attention_heads: fields.size("num_attention_heads", default.num_attention_heads)?,
            num_key_value_heads: fields.size("num_key_value_heads", default.num_key_value_heads)?,
            head_dim: fields.size("head_dim", default.head_dim)?,
            max_position_embeddings,
            rms_norm_eps: fields.number("rms_norm_eps", default.rms_norm_eps)?,
            query_pre_attn_scalar: fields.number("query_pre_attn_scalar", default.query_pre_attn_scalar)?,
            // An explicit null means no window: every earlier token.
            sliding_window: match fields.inner.get("sliding_window") {
                Some(Value::Null) => max_position_embeddings,
                _ => fields.size("sliding_window", default.sliding_window)?,
            },
            layer_types: fields.layer_types(num_hidden_layers)?,
            rope_theta: rope.theta,
            rope_local_base_freq: rope.local_base,
            rope_scaling_factor: rope.factor,
            tie_word_embeddings: fields.tied()?,
            pad_token_id: fields.token("pad_token_id", default.pad_token_id)?,
            bos_token_id: fields.token("bos_token_id", default.bos_token_id)?,
            eos_token_ids: fields.tokens("eos_token_id", &default.eos_token_ids)?,
        };
        config.validate(origin)?;
        Ok(config)
    }
}

/// The fields of a `config.json`: `inner` is the text model's, `outer` the file's own (the same
/// object, except in a multimodal configuration).
pub(super) struct Fields<'a> {
    inner: &'a Map<String, Value>,
    outer: &'a Map<String, Value>,
    origin: &'a str,
}

impl Fields<'_> {
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        [self.inner, self.outer].iter().find_map(|fields| fields.get(name).filter(|value| !value.is_null()))
    }

    pub(super) fn wrong(&self, name: &str, value: &Value, wanted: &str) -> Error {
        let mut shown = value.to_string();
        if let Some((cut, _)) = shown.char_indices().nth(60) {
            shown.truncate(cut);
            shown.push('…');
        }
        Error::model(self.origin, format!("{name} is {shown}, it must be {wanted}"), HELP)
    }

    fn size(&self, name: &str, default: usize) -> Result<usize> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let whole = value.as_u64().or_else(|| {
            value.as_f64().filter(|v| v.fract() == 0.0 && (0.0..1e15).contains(v)).map(|v| v as u64)
        });
        whole
            .and_then(|v| usize::try_from(v).ok())
            .ok_or_else(|| self.wrong(name, value, "a whole number, 0 or more"))
    }

    pub(super) fn number(&self, name: &str, default: f64) -> Result<f64> {
        self.number_in(self.get(name), name, default)
    }

    pub(super) fn number_in(&self, value: Option<&Value>, name: &str, default: f64) -> Result<f64> {
        match value {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.wrong(name, value, "a number")),
        }
    }

    /// Whether the head is the embedding. Where a multimodal configuration says two things, the
    /// head that is stored decides, as it does wherever one is stored beside `true`.
    fn tied(&self) -> Result<bool> {
        let name = "tie_word_embeddings";
        let said = [self.inner, self.outer].map(|fields| fields.get(name).filter(|value| !value.is_null()));
        let mut tied = None;
        for value in said.into_iter().flatten() {
            let value = value.as_bool().ok_or_else(|| self.wrong(name, value, "true or false"))?;
            tied = Some(tied.unwrap_or(false) || value);
        }
        Ok(tied.unwrap_or(Gemma3Config::default().tie_word_embeddings))
    }

    fn token(&self, name: &str, default: u32) -> Result<u32> {
        let id = self.size(name, default as usize)?;
        u32::try_from(id).map_err(|_| self.wrong(name, &json!(id), "a token id"))
    }

    fn tokens(&self, name: &str, default: &[u32]) -> Result<Vec<u32>> {
        match self.get(name) {
            None => Ok(default.to_vec()),
            Some(Value::Array(ids)) => ids
                .iter()
                .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
                .collect::<Option<Vec<u32>>>()
                .ok_or_else(|| self.wrong(name, &json!(ids), "token ids")),
            Some(_) => Ok(vec![self.token(name, 0)?]),
        }
    }

    fn layer_types(&self, layers: usize) -> Result<Vec<LayerType>> {
        if let Some(value) = self.get("layer_types") {
            let wanted = "a list of sliding_attention and full_attention";
            let names = value.as_array().ok_or_else(|| self.wrong("layer_types", value, wanted))?;
            return names
                .iter()
                .map(|name| match name.as_str() {
                    Some("sliding_attention") => Ok(LayerType::SlidingAttention),
                    Some("full_attention") => Ok(LayerType::FullAttention),
                    _ => Err(self.wrong("layer_types", name, wanted)),
                })
                .collect();
        }
        let name = if self.get("sliding_window_pattern").is_some() {
            "sliding_window_pattern"
        } else {
            "_sliding_window_pattern"
        };
        let pattern = self.size(name, DEFAULT_PATTERN)?;
        if pattern == 0 {
            return Err(self.wrong(name, &json!(0), "1 or more"));
        }
        Ok(every_nth_full(layers, pattern))
    }

    fn refuse_what_is_not_computed(&self) -> Result<()> {
        for name in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if let Some(value) = self.get(name) {
                return Err(self.wrong(name, value, "null: logit soft-capping is not computed here"));
            }
        }
        for name in ["use_bidirectional_attention", "attention_bias"] {
            if let Some(value) = self.get(name)
                && value != &json!(false)
            {
                return Err(self.wrong(name, value, "false: anything else is not computed here"));
            }
        }
        if self.number("attention_dropout", 0.0)? != 0.0 {
            let value = self.get("attention_dropout").unwrap_or(&Value::Null);
            return Err(self.wrong("attention_dropout", value, "0: it is not computed here"));
        }
        for name in ["hidden_activation", "hidden_act"] {
            if let Some(value) = self.get(name)
                && value != &json!("gelu_pytorch_tanh")
            {
                return Err(self.wrong(name, value, "gelu_pytorch_tanh"));
            }
        }
        // MLX calls it quantization, and writes both.
        for (name, unnamed) in [("quantization", "MLX"), ("quantization_config", "unnamed")] {
            if let Some(quantization) = self.get(name).filter(|value| value != &&json!({})) {
                let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or(unnamed);
                return Err(Error::model(
                    self.origin,
                    format!("the weights are stored quantised ({name}, {method})"),
                    "Choose the unquantised model; QuantConfig rounds it to 4 bits on loading",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../../../tests/fixtures/golden/model/config.json");

    fn parse(value: Value) -> Result<Gemma3Config> {
        Gemma3Config::from_json(&value.to_string(), "test.json")
    }

    fn message(value: Value) -> String {
        parse(value).expect_err("must be refused").to_string()
    }

    #[test]
    fn reads_the_new_form() {
        let config = Gemma3Config::from_json(GOLDEN, "config.json").unwrap();
        assert_eq!((config.vocab_size, config.hidden_size, config.head_dim), (512, 64, 32));
        assert_eq!((config.sliding_window, config.num_key_value_heads), (8, 1));
        assert_eq!(config.layer_types, every_nth_full(6, 6));
        assert_eq!(config.query_pre_attn_scalar, 32.0);
        assert_eq!((config.rope_theta, config.rope_local_base_freq), (1e6, 1e4));
    }

    #[test]
    fn reads_the_old_form_and_its_defaults() {
        let config = parse(json!({
            "model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window_pattern": 3,
            "rope_theta": 5e5, "rope_local_base_freq": 2e4, "eos_token_id": [1, 106],
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        }))
        .unwrap();
        assert_eq!(config.layer_types, every_nth_full(7, 3));
        assert_eq!((config.rope_theta, config.rope_local_base_freq), (5e5, 2e4));
        assert_eq!(config.rope_scaling_factor, 8.0);
        assert_eq!(config.eos_token_ids, [1, 106]);
        let rest = Gemma3Config::default();
        assert_eq!((config.vocab_size, config.hidden_size), (rest.vocab_size, rest.hidden_size));
    }

    #[test]
    fn reads_a_nested_text_config() {
        let config = parse(json!({
            "model_type": "gemma3", "eos_token_id": [1, 106], "vision_config": {"hidden_size": 7},
            "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
        }))
        .unwrap();
        assert_eq!((config.hidden_size, config.num_hidden_layers), (2560, 34));
        assert_eq!(config.eos_token_ids, [1, 106]);
    }

    #[test]
    fn the_head_is_tied_if_either_place_says_so() {
        let tied = |inner: Value, outer: Value| {
            let mut root = json!({"model_type": "gemma3", "text_config": {"tie_word_embeddings": inner}});
            root["tie_word_embeddings"] = outer;
            parse(root).unwrap().tie_word_embeddings
        };
        let (yes, no) = (json!(true), json!(false));
        assert!(tied(yes.clone(), no.clone()) && tied(no.clone(), yes.clone()) && tied(Value::Null, yes));
        assert!(!tied(no.clone(), no.clone()) && !tied(no.clone(), Value::Null) && !tied(Value::Null, no));
        assert!(tied(Value::Null, Value::Null));
    }

    #[test]
    fn a_mark_in_front_of_the_text_is_passed_over() {
        assert_eq!(Gemma3Config::from_json(&format!("\u{feff}{GOLDEN}"), "c.json").unwrap().vocab_size, 512);
    }

    #[test]
    fn what_it_writes_it_reads() {
        let mut config = Gemma3Config::from_json(GOLDEN, "config.json").unwrap();
        for (factor, eos) in [(1.0, vec![1]), (8.0, vec![1, 106])] {
            config.rope_scaling_factor = factor;
            config.eos_token_ids = eos;
            let written = config.to_json();
            assert_eq!(parse(written.clone()).unwrap(), config);
            // Either form alone says the same.
            let mut old = written.clone();
            let fields = old.as_object_mut().unwrap();
            fields.remove("rope_parameters");
            fields.remove("layer_types");
            assert_eq!(parse(old).unwrap(), config);
            let mut new = written;
            let fields = new.as_object_mut().unwrap();
            for name in ["rope_theta", "rope_local_base_freq", "rope_scaling", "_sliding_window_pattern"] {
                fields.remove(name).unwrap();
            }
            assert_eq!(parse(new).unwrap(), config);
        }
    }

    #[test]
    fn refuses_other_models_by_name() {
        let text = message(json!({"model_type": "llama"}));
        assert!(text.contains("model_type is llama, this is for Gemma 3"), "{text}");
        assert!(message(json!({})).contains("missing"));
        assert!(message(json!([1])).contains("not a JSON object"));
        assert!(Gemma3Config::from_json("{", "c.json").unwrap_err().to_string().contains("c.json"));
    }

    #[test]
    fn refuses_what_it_does_not_compute() {
        let cases = [
            ("final_logit_softcapping", json!(30.0)),
            ("attn_logit_softcapping", json!(50.0)),
            ("use_bidirectional_attention", json!(true)),
            ("attention_bias", json!(true)),
            ("attention_dropout", json!(0.1)),
            ("hidden_activation", json!("silu")),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
            ("rope_parameters", json!({"rope_type": "default", "rope_theta": 1e6})),
            ("rope_parameters", json!({"sliding_attention": {"rope_type": "linear", "factor": 2.0}})),
            ("quantization_config", json!({"quant_method": "bitsandbytes"})),
            ("quantization", json!({"group_size": 64, "bits": 4})),
            ("text_config", json!("gemma3_text")),
        ];
        for (name, value) in cases {
            let text = message(json!({"model_type": "gemma3_text", name: value}));
            assert!(text.contains(name), "{name}: {text}");
        }
    }

    #[test]
    fn refuses_sizes_that_cannot_be() {
        let cases = [
            ("hidden_size", json!(0)),
            ("hidden_size", json!("640")),
            ("hidden_size", json!(-3)),
            ("vocab_size", json!(u64::MAX)),
            ("num_hidden_layers", json!(4_000_000_000u64)),
            ("num_attention_heads", json!(3)),
            ("num_key_value_heads", json!(0)),
            ("head_dim", json!(33)),
            ("rms_norm_eps", json!(-1.0)),
            ("rms_norm_eps", json!("tiny")),
            ("layer_types", json!(["full_attention"])),
            ("layer_types", json!(["chunked_attention"])),
            ("layer_types", json!(5)),
            ("sliding_window_pattern", json!(0)),
            ("eos_token_id", json!([1, -1])),
            ("eos_token_id", json!(300_000)),
            ("tie_word_embeddings", json!("yes")),
        ];
        for (name, value) in cases {
            let text = message(json!({"model_type": "gemma3_text", name: value.clone()}));
            assert!(text.contains(name), "{name} = {value}: {text}");
        }
    }
}
