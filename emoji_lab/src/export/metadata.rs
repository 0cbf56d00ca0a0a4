//! A GGUF's metadata for a model: llama.cpp's keys (`gguf-py/gguf/constants.py` there).

use super::gguf_type::GgufType;
use super::vocabulary::Vocabulary;
use crate::error::{Error, Result};
use crate::model::gguf::Out;
use crate::model::{Gemma3Config, LayerType, Model};

/// The one layer count from which llama.cpp takes another divisor of the attention scores.
const LAYERS_OF_27B: usize = 62;

/// Keys and values in the file's form.
#[derive(Default)]
pub(super) struct Metadata {
    pub(super) out: Out,
    pub(super) count: u64,
}

impl Metadata {
    fn put(&mut self, key: &str, kind: u32, value: impl FnOnce(Out) -> Out) {
        self.out = value(std::mem::take(&mut self.out).text(key).u32(kind));
        self.count += 1;
    }

    fn number(&mut self, key: &str, value: u32) {
        self.put(key, 4, |out| out.u32(value));
    }

    /// A number that may be below zero, as llama.cpp reads `top_k`.
    fn signed(&mut self, key: &str, value: i32) {
        self.put(key, 5, |out| out.u32(value as u32));
    }

    fn float(&mut self, key: &str, value: f64) {
        self.put(key, 6, |out| out.u32((value as f32).to_bits()));
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.put(key, 7, |mut out| {
            out.0.push(value.into());
            out
        });
    }

    fn text(&mut self, key: &str, value: &str) {
        self.put(key, 8, |out| out.text(value));
    }

    fn list<T>(&mut self, key: &str, kind: u32, values: &[T], each: impl Fn(Out, &T) -> Out) {
        self.put(key, 9, |out| values.iter().fold(out.u32(kind).u64(values.len() as u64), each));
    }
}

/// The metadata of `model`, stored as `kind`; what other programs make of it otherwise goes to `notes`.
///
/// # Errors
/// [`Error::Model`] if the model computes something that a GGUF of a Gemma 3 cannot say.
pub(super) fn metadata(
    model: &Model,
    vocabulary: &Vocabulary,
    kind: GgufType,
    notes: &mut Vec<String>,
) -> Result<Metadata> {
    let config = model.gemma.config();
    config.validate(&model.origin)?;
    let mut meta = Metadata::default();
    meta.text("general.architecture", "gemma3");
    meta.text("general.type", "model");
    meta.text("general.name", name_of(&model.origin));
    meta.number("general.file_type", kind.file_type());
    meta.number("general.quantization_version", 2);
    shape(&mut meta, config, &model.origin, notes)?;
    tokenizer(&mut meta, model, vocabulary, notes)?;
    sampling(&mut meta, model)?;
    Ok(meta)
}

/// What a model is called: the last part of its Hub id or path. The folders above it are nobody's
/// business.
pub(super) fn name_of(origin: &str) -> &str {
    let last = origin.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default();
    let name = last.strip_suffix(".gguf").unwrap_or(last);
    if name.is_empty() { "gemma-3" } else { name }
}

fn shape(meta: &mut Metadata, config: &Gemma3Config, origin: &str, notes: &mut Vec<String>) -> Result<()> {
    let implied = match config.num_hidden_layers == LAYERS_OF_27B {
        true => config.hidden_size as f64 / config.num_attention_heads as f64,
        false => config.head_dim as f64,
    };
    if config.query_pre_attn_scalar != implied {
        let problem = format!(
            "query_pre_attn_scalar is {}, a GGUF of this shape stands for {implied}",
            config.query_pre_attn_scalar
        );
        return Err(Error::model(origin, problem, "Save it with save_pretrained"));
    }
    for (key, value) in [
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("attention.sliding_window", config.sliding_window),
    ] {
        // `validate` has bounded them all.
        meta.number(&format!("gemma3.{key}"), value as u32);
    }
    meta.float("gemma3.attention.layer_norm_rms_epsilon", config.rms_norm_eps);
    meta.float("gemma3.rope.freq_base", config.rope_theta);
    meta.float("gemma3.rope.freq_base_swa", config.rope_local_base_freq);
    match config.rope_scaling_factor == 1.0 {
        // Said, because readers take 8 where larger Gemmas say nothing.
        true => meta.text("gemma3.rope.scaling.type", "none"),
        false => {
            meta.text("gemma3.rope.scaling.type", "linear");
            meta.float("gemma3.rope.scaling.factor", config.rope_scaling_factor);
        }
    }
    let key = "gemma3.attention.sliding_window_pattern";
    let slides: Vec<bool> =
        config.layer_types.iter().map(|kind| *kind == LayerType::SlidingAttention).collect();
    match config.sliding_window_pattern() {
        Some(pattern) => meta.number(key, pattern as u32),
        // No full layer at all: the first one would come after the last.
        None if slides.iter().all(|slides| *slides) => meta.number(key, slides.len() as u32 + 1),
        None => {
            notes.push(
                "The full layers follow no pattern. The file says for each layer which it is; llama.cpp reads a \
                 pattern alone and may refuse it."
                    .to_string(),
            );
            meta.list(key, 7, &slides, |mut out, slides| {
                out.0.push((*slides).into());
                out
            });
        }
    }
    Ok(())
}

fn tokenizer(
    meta: &mut Metadata,
    model: &Model,
    vocabulary: &Vocabulary,
    notes: &mut Vec<String>,
) -> Result<()> {
    let tokenizer = &model.tokenizer;
    meta.text("tokenizer.ggml.model", "llama");
    meta.text("tokenizer.ggml.pre", "default");
    meta.list("tokenizer.ggml.tokens", 8, &vocabulary.tokens, |out, token| out.text(token));
    meta.list("tokenizer.ggml.scores", 6, &vocabulary.scores, |out, score| out.u32(score.to_bits()));
    meta.list("tokenizer.ggml.token_type", 5, &vocabulary.types, |out, kind| out.u32(*kind));
    meta.number("tokenizer.ggml.bos_token_id", tokenizer.bos());
    meta.number("tokenizer.ggml.eos_token_id", tokenizer.eos());
    meta.number("tokenizer.ggml.padding_token_id", tokenizer.pad());
    if let Some(unknown) = vocabulary.unknown {
        meta.number("tokenizer.ggml.unknown_token_id", unknown);
    }
    // What ends an answer beside <eos> is one more key. Ollama's list, which readers may know, says what
    // neither holds.
    let mut known = vec![tokenizer.eos()];
    if let Some(end) = tokenizer.end_of_turn() {
        meta.number("tokenizer.ggml.eot_token_id", end);
        known.push(end);
    }
    let stop = model.stop_ids()?;
    let more: Vec<String> =
        stop.iter().filter(|id| !known.contains(id)).map(|id| spelled(model, *id)).collect();
    if !more.is_empty() {
        meta.list("tokenizer.ggml.eos_token_ids", 4, &stop, |out, id| out.u32(*id));
        notes.push(format!(
            "The model also stops at {}. The file says so, but llama.cpp reads no list of stop tokens.",
            more.join(", ")
        ));
    }
    meta.flag("tokenizer.ggml.add_bos_token", true);
    meta.flag("tokenizer.ggml.add_eos_token", false);
    meta.flag("tokenizer.ggml.add_space_prefix", false);
    meta.text("tokenizer.chat_template", tokenizer.chat_template().source());
    if vocabulary.more_pairs > 0 {
        notes.push(format!(
            "llama.cpp's tokenizer knows no merges, only scores: it can also join {} pairs of tokens that this \
             tokenizer does not. Only a text that comes to such a pair is cut into other tokens.",
            crate::display::thousands(vocabulary.more_pairs as u64)
        ));
    }
    Ok(())
}

fn spelled(model: &Model, id: u32) -> String {
    model.tokenizer.token(id).unwrap_or_else(|| format!("token {id}"))
}

/// The model's own settings of generation, as llama.cpp takes them where a caller says nothing.
fn sampling(meta: &mut Metadata, model: &Model) -> Result<()> {
    let settings = model.default_generation_config()?;
    match settings.do_sample {
        false => meta.float("general.sampling.temp", 0.0),
        true => {
            meta.float("general.sampling.temp", settings.temperature);
            meta.signed("general.sampling.top_k", i32::try_from(settings.top_k).unwrap_or(i32::MAX));
            meta.float("general.sampling.top_p", settings.top_p);
        }
    }
    if settings.repetition_penalty != 1.0 {
        meta.float("general.sampling.penalty_repeat", settings.repetition_penalty);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_by_the_last_part_of_where_it_came_from() {
        for (origin, name) in [
            ("google/gemma-3-270m-it", "gemma-3-270m-it"),
            ("/home/someone/models/mine/", "mine"),
            ("C:\\models\\g.gguf", "g"),
            ("embedded", "embedded"),
            ("/", "gemma-3"),
        ] {
            assert_eq!(name_of(origin), name);
        }
    }
}
