//! A model's shape from GGUF metadata. The keys are llama.cpp's.

use super::header::Meta;
use super::parts::Parts;
use crate::display::say;
use crate::error::{Error, Result};
use crate::model::config::{DEFAULT_PATTERN, Gemma3Config, LayerType, every_nth_full};

const HELP: &str = "Choose the .gguf of a Gemma 3 text model, such as gemma-3-270m-it";

/// Gemma 3 27B is the one Gemma 3 that divides its scores by something else than the head width;
/// a GGUF does not say so, and llama.cpp knows the model by its number of layers too.
const LAYERS_OF_27B: usize = 62;

/// Layers and width of the models whose global RoPE is stretched: 4B, 12B and 27B. Files by
/// Ollama's first converters do not say so.
const STRETCHED: [(usize, usize); 3] = [(34, 2560), (48, 3840), (62, 5376)];
const STRETCH: f64 = 8.0;

/// Reads the configuration; `origin` names the file in errors.
pub(super) fn read_config(parts: &Parts, origin: &str) -> Result<Gemma3Config> {
    let keys = Keys { parts, origin };
    refuse_what_is_no_model(&keys)?;
    if let Some(cap) = keys.number("final_logit_softcapping")?.filter(|cap| *cap != 0.0) {
        // Ollama's first converters wrote 30 for every Gemma 3, whose own configuration has none.
        if keys.under_gemma3("rope.global.freq_base").is_none() {
            return Err(Error::model(
                origin,
                "it asks for logit soft-capping, which is not computed here",
                HELP,
            ));
        }
        say(format!(
            "{origin}: final_logit_softcapping {cap} is not used: Gemma 3 has none, Ollama added it"
        ));
    }
    let Some(Meta::Texts(tokens)) = parts.meta("tokenizer.ggml.tokens") else {
        return Err(keys.missing("tokenizer.ggml.tokens"));
    };
    let default = Gemma3Config::default();
    let rows_of = |name: &str| parts.shape(name).and_then(|shape| shape.first().copied());
    let layers = keys.size("block_count", None)?;
    let hidden_size = keys.size("embedding_length", None)?;
    let num_attention_heads = keys.size("attention.head_count", None)?;
    let head_dim = keys.size("attention.key_length", rows_of("blk.0.attn_q_norm.weight"))?;
    if keys.whole("attention.value_length")?.is_some_and(|length| length != head_dim as u64) {
        return Err(Error::model(origin, "attention.value_length is not attention.key_length", HELP));
    }
    let key_heads = rows_of("blk.0.attn_k.weight").and_then(|rows| rows.checked_div(head_dim));
    let max_position_embeddings = keys.size("context_length", None)?;
    let token = |key: &str, default: u32| match keys.token(&format!("tokenizer.ggml.{key}_token_id")) {
        Some(id) => u32::try_from(id).map_err(|_| Error::model(origin, format!("{key} token {id}"), HELP)),
        None => Ok(default),
    };
    // The list of tokens may be longer (tokens that stand for images) or shorter (rows that only
    // fill up): the model has as many tokens as its embedding has rows.
    let vocab_size = rows_of("token_embd.weight").unwrap_or(tokens.len());
    let mut eos_token_ids = vec![token("eos", 1)?];
    for id in keys.more_stop_tokens() {
        if !eos_token_ids.contains(&id) && (id as usize) < vocab_size {
            eos_token_ids.push(id);
        }
    }
    let config = Gemma3Config {
        vocab_size,
        hidden_size,
        intermediate_size: keys.size("feed_forward_length", rows_of("blk.0.ffn_up.weight"))?,
        num_hidden_layers: layers,
        num_attention_heads,
        num_key_value_heads: keys.size("attention.head_count_kv", key_heads)?,
        head_dim,
        max_position_embeddings,
        rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon")?.unwrap_or(default.rms_norm_eps),
        query_pre_attn_scalar: if layers == LAYERS_OF_27B && num_attention_heads > 0 {
            hidden_size as f64 / num_attention_heads as f64
        } else {
            head_dim as f64
        },
        sliding_window: match keys.size("attention.sliding_window", window_by_width(hidden_size))? {
            0 => max_position_embeddings,
            window => window,
        },
        layer_types: layer_types(&keys, layers)?,
        // Ollama's first converters have the other names.
        rope_theta: keys
            .first_number(&["rope.freq_base", "rope.global.freq_base"])?
            .unwrap_or(default.rope_theta),
        // llama.cpp's files of before 2026 name neither the local base nor the pattern.
        rope_local_base_freq: keys
            .first_number(&["rope.freq_base_swa", "rope.local.freq_base"])?
            .unwrap_or(default.rope_local_base_freq),
        rope_scaling_factor: rope_scaling_factor(&keys, layers, hidden_size)?,
        tie_word_embeddings: !parts.has("output.weight"),
        pad_token_id: token("padding", default.pad_token_id)?,
        bos_token_id: token("bos", default.bos_token_id)?,
        eos_token_ids,
    };
    config.validate(origin)?;
    Ok(config)
}

/// Files that llama.cpp writes beside a model, and models of another architecture.
fn refuse_what_is_no_model(keys: &Keys) -> Result<()> {
    let refused = |problem: String, help: &str| Err(Error::model(keys.origin, problem, help));
    let architecture = keys.text("general.architecture").unwrap_or("missing");
    match (keys.text("general.type").unwrap_or("model"), architecture) {
        ("mmproj", _) | (_, "clip") => refused(
            "it is the vision projector (mmproj) of a multimodal model, not the model".into(),
            "Name the .gguf of the language model, which lies beside it",
        ),
        ("adapter", _) => refused(
            "it is a LoRA adapter in GGUF's form, not a model".into(),
            "Merge the adapter that PEFT saved with merge_adapters, or name the .gguf of a merged model",
        ),
        ("imatrix", _) => refused("it is an importance matrix, not a model".into(), HELP),
        (_, "gemma3") if keys.parts.is_without_tensors() => {
            refused("it holds a vocabulary and no weights".into(), HELP)
        }
        (_, "gemma3") => Ok(()),
        (_, other) => refused(format!("general.architecture is {other}, this is for Gemma 3 (gemma3)"), HELP),
    }
}

fn rope_scaling_factor(keys: &Keys, layers: usize, hidden_size: usize) -> Result<f64> {
    let factor = keys.first_number(&["rope.scaling.factor", "rope.scale_linear"])?;
    match keys.text("gemma3.rope.scaling.type") {
        None if factor.is_none() && STRETCHED.contains(&(layers, hidden_size)) => Ok(STRETCH),
        None | Some("linear") => Ok(factor.unwrap_or(1.0)),
        Some("none") => Ok(1.0),
        Some(other) => {
            let problem = format!("gemma3.rope.scaling.type is {other}; none and linear are computed here");
            Err(Error::model(keys.origin, problem, HELP))
        }
    }
}

/// The window of the Gemma 3 of this width, for files that do not name it.
fn window_by_width(hidden_size: usize) -> Option<usize> {
    match hidden_size {
        640 | 1152 => Some(512),
        2560 | 3840 | 5376 => Some(1024),
        _ => None,
    }
}

fn layer_types(keys: &Keys, layers: usize) -> Result<Vec<LayerType>> {
    let key = "gemma3.attention.sliding_window_pattern";
    match keys.parts.meta(key) {
        None => Ok(every_nth_full(layers, DEFAULT_PATTERN)),
        Some(Meta::Unsigned(n)) if (1..=1 << 16).contains(n) => Ok(every_nth_full(layers, *n as usize)),
        Some(Meta::Bools(slides)) => Ok(slides
            .iter()
            .map(|&slides| if slides { LayerType::SlidingAttention } else { LayerType::FullAttention })
            .collect()),
        Some(_) => Err(Error::model(keys.origin, format!("{key} is neither a number nor flags"), HELP)),
    }
}

/// Metadata by key; numbers are looked up under `gemma3.`, where some files have `gemma3.text.`.
struct Keys<'a> {
    parts: &'a Parts<'a>,
    origin: &'a str,
}

impl<'a> Keys<'a> {
    fn missing(&self, key: &str) -> Error {
        Error::model(self.origin, format!("no {key} in its metadata"), HELP)
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        match self.parts.meta(key) {
            Some(Meta::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn under_gemma3(&self, key: &str) -> Option<&'a Meta<'a>> {
        self.parts.meta(&format!("gemma3.{key}")).or_else(|| self.parts.meta(&format!("gemma3.text.{key}")))
    }

    /// A token id; llama.cpp writes -1 for none.
    fn token(&self, key: &str) -> Option<u64> {
        unsigned(self.parts.meta(key)?).filter(|id| *id != u64::from(u32::MAX))
    }

    /// What else ends an answer: end of turn and of message, and Ollama's list.
    fn more_stop_tokens(&self) -> Vec<u32> {
        let mut ids: Vec<u64> = ["eot", "eom"]
            .iter()
            .filter_map(|key| self.token(&format!("tokenizer.ggml.{key}_token_id")))
            .collect();
        for key in ["tokenizer.ggml.eos_token_ids", "tokenizer.ggml.eog_token_ids"] {
            if let Some(Meta::Signeds(list)) = self.parts.meta(key) {
                ids.extend(list.iter().filter_map(|id| u64::try_from(*id).ok()));
            }
        }
        ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect()
    }

    fn whole(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.under_gemma3(key) else { return Ok(None) };
        let number = match value {
            // One number for each layer, all the same.
            Meta::Signeds(list) if list.windows(2).all(|pair| pair[0] == pair[1]) => {
                list.first().and_then(|number| u64::try_from(*number).ok())
            }
            other => unsigned(other),
        };
        match number {
            Some(number) => Ok(Some(number)),
            None => {
                let problem = format!("gemma3.{key} is {}, not a number", kind_of(value));
                Err(Error::model(self.origin, problem, HELP))
            }
        }
    }

    /// The size that a key names; `known` is what the tensors say of it.
    fn size(&self, key: &str, known: Option<usize>) -> Result<usize> {
        let Some(value) = self.whole(key)? else {
            return known.ok_or_else(|| self.missing(&format!("gemma3.{key}")));
        };
        usize::try_from(value)
            .map_err(|_| Error::model(self.origin, format!("gemma3.{key} is {value}"), HELP))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        Ok(Some(match self.under_gemma3(key) {
            None => return Ok(None),
            // The shortest decimal that is this f32 is what config.json had: 1e-6, and not the
            // 9.99999997e-7 that widening gives.
            Some(Meta::F32(value)) => value.to_string().parse().unwrap_or(f64::from(*value)),
            Some(Meta::F64(value)) => *value,
            Some(Meta::Unsigned(value)) => *value as f64,
            Some(other) => {
                let problem = format!("gemma3.{key} is {}, not a number", kind_of(other));
                return Err(Error::model(self.origin, problem, HELP));
            }
        }))
    }

    fn first_number(&self, keys: &[&str]) -> Result<Option<f64>> {
        for key in keys {
            if let Some(number) = self.number(key)? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}

fn unsigned(value: &Meta) -> Option<u64> {
    match value {
        Meta::Unsigned(value) => Some(*value),
        Meta::Signed(value) => u64::try_from(*value).ok(),
        _ => None,
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
