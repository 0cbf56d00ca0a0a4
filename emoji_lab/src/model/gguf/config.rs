//! A model's shape from GGUF metadata. The keys are llama.cpp's.

use super::header::{Header, Meta};
use crate::error::{Error, Result};
use crate::model::config::{DEFAULT_PATTERN, Gemma3Config, LayerType, every_nth_full};

const HELP: &str = "Choose the .gguf of a Gemma 3 text model, such as gemma-3-270m-it";

/// Gemma 3 27B is the one Gemma 3 that divides its scores by something else than the head width;
/// a GGUF does not say so, and llama.cpp knows the model by its number of layers too.
const LAYERS_OF_27B: usize = 62;

/// Reads the configuration; `origin` names the file in errors.
pub(crate) fn read_config(header: &Header, origin: &str) -> Result<Gemma3Config> {
    let keys = Keys { header, origin };
    let architecture = keys.text("general.architecture").unwrap_or("missing");
    if architecture != "gemma3" {
        return Err(Error::model(
            origin,
            format!("general.architecture is {architecture}, this is for Gemma 3 (gemma3)"),
            HELP,
        ));
    }
    if keys.number("final_logit_softcapping")?.is_some_and(|cap| cap != 0.0) {
        return Err(Error::model(origin, "it asks for logit soft-capping, which is not computed here", HELP));
    }
    let Some(Meta::Texts(tokens)) = header.metadata.get("tokenizer.ggml.tokens") else {
        return Err(keys.missing("tokenizer.ggml.tokens"));
    };
    let default = Gemma3Config::default();
    let layers = keys.size("block_count")?;
    let hidden_size = keys.size("embedding_length")?;
    let num_attention_heads = keys.size("attention.head_count")?;
    let head_dim = keys.size("attention.key_length")?;
    if keys.whole("attention.value_length")?.is_some_and(|length| length != head_dim as u64) {
        return Err(Error::model(origin, "attention.value_length is not attention.key_length", HELP));
    }
    let scaling = keys.text("gemma3.rope.scaling.type");
    let rope_scaling_factor = match scaling {
        None | Some("none") => 1.0,
        Some("linear") => keys.number("rope.scaling.factor")?.unwrap_or(1.0),
        Some(other) => {
            let problem = format!("gemma3.rope.scaling.type is {other}; none and linear are computed here");
            return Err(Error::model(origin, problem, HELP));
        }
    };
    let token = |key: &str, default: u32| match keys.unsigned(&format!("tokenizer.ggml.{key}_token_id")) {
        Some(id) => u32::try_from(id).map_err(|_| Error::model(origin, format!("{key} token {id}"), HELP)),
        None => Ok(default),
    };
    let config = Gemma3Config {
        vocab_size: tokens.len(),
        hidden_size,
        intermediate_size: keys.size("feed_forward_length")?,
        num_hidden_layers: layers,
        num_attention_heads,
        num_key_value_heads: keys.size("attention.head_count_kv")?,
        head_dim,
        max_position_embeddings: keys.size("context_length")?,
        rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon")?.unwrap_or(default.rms_norm_eps),
        query_pre_attn_scalar: if layers == LAYERS_OF_27B && num_attention_heads > 0 {
            hidden_size as f64 / num_attention_heads as f64
        } else {
            head_dim as f64
        },
        sliding_window: keys.size("attention.sliding_window")?,
        layer_types: layer_types(&keys, layers)?,
        rope_theta: keys.number("rope.freq_base")?.unwrap_or(default.rope_theta),
        // Files made before 2026 name neither the local base nor the pattern.
        rope_local_base_freq: keys.number("rope.freq_base_swa")?.unwrap_or(default.rope_local_base_freq),
        rope_scaling_factor,
        tie_word_embeddings: !header.tensors.contains_key("output.weight"),
        pad_token_id: token("padding", default.pad_token_id)?,
        bos_token_id: token("bos", default.bos_token_id)?,
        eos_token_ids: vec![token("eos", 1)?],
    };
    config.validate(origin)?;
    Ok(config)
}

fn layer_types(keys: &Keys, layers: usize) -> Result<Vec<LayerType>> {
    let key = "gemma3.attention.sliding_window_pattern";
    match keys.header.metadata.get(key) {
        None => Ok(every_nth_full(layers, DEFAULT_PATTERN)),
        Some(Meta::Unsigned(n)) if (1..=1 << 16).contains(n) => Ok(every_nth_full(layers, *n as usize)),
        Some(Meta::Bools(slides)) => Ok(slides
            .iter()
            .map(|&slides| if slides { LayerType::SlidingAttention } else { LayerType::FullAttention })
            .collect()),
        Some(_) => Err(Error::model(keys.origin, format!("{key} is neither a number nor flags"), HELP)),
    }
}

/// Metadata by key; numbers are looked up under `gemma3.`.
struct Keys<'a> {
    header: &'a Header<'a>,
    origin: &'a str,
}

impl<'a> Keys<'a> {
    fn missing(&self, key: &str) -> Error {
        Error::model(self.origin, format!("no {key} in its metadata"), HELP)
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        match self.header.metadata.get(key) {
            Some(Meta::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn unsigned(&self, key: &str) -> Option<u64> {
        match self.header.metadata.get(key)? {
            Meta::Unsigned(value) => Some(*value),
            Meta::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    fn whole(&self, key: &str) -> Result<Option<u64>> {
        let key = format!("gemma3.{key}");
        match (self.unsigned(&key), self.header.metadata.get(key.as_str())) {
            (Some(value), _) => Ok(Some(value)),
            (None, None) => Ok(None),
            (None, Some(other)) => {
                Err(Error::model(self.origin, format!("{key} is {}, not a number", kind_of(other)), HELP))
            }
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        let value = self.whole(key)?.ok_or_else(|| self.missing(&format!("gemma3.{key}")))?;
        usize::try_from(value)
            .map_err(|_| Error::model(self.origin, format!("gemma3.{key} is {value}"), HELP))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let key = format!("gemma3.{key}");
        Ok(Some(match self.header.metadata.get(key.as_str()) {
            None => return Ok(None),
            // The shortest decimal that is this f32 is what config.json had: 1e-6, and not the
            // 9.99999997e-7 that widening gives.
            Some(Meta::F32(value)) => value.to_string().parse().unwrap_or(f64::from(*value)),
            Some(Meta::F64(value)) => *value,
            Some(Meta::Unsigned(value)) => *value as f64,
            Some(other) => {
                let problem = format!("{key} is {}, not a number", kind_of(other));
                return Err(Error::model(self.origin, problem, HELP));
            }
        }))
    }
}

fn kind_of(value: &Meta) -> &'static str {
    match value {
        Meta::Unsigned(_) | Meta::Signed(_) => "a number that cannot be",
        Meta::F32(_) | Meta::F64(_) => "a fraction",
        Meta::Bool(_) => "a flag",
        Meta::Text(_) => "a text",
        Meta::Texts(_) | Meta::Bools(_) | Meta::Signeds(_) | Meta::Floats(_) | Meta::Other => "a list",
    }
}
