//! Gemma 3 from a `.gguf` file (llama.cpp's format): shape, weights and tokenizer, all from the
//! one file.

mod blocks;
mod config;
mod header;
mod names;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::config::Gemma3Config;
use super::gguf_tokenizer::{TokenList, tokenizer_from_list};
use super::names::tensor_shapes;
use super::safetensors::map_file;
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use crate::error::{Error, Result};
use blocks::round_to_bf16;
use header::{Header, Meta};

/// What to do with the values that come out of a file's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// Round each to the nearest bf16, as `from_pretrained(gguf_file=…, dtype=torch.bfloat16)`
    /// does. Gemma 3 is published in bf16: these are the weights that the file was made of, as far
    /// as its blocks can tell.
    #[default]
    Bf16,
    /// Keep them in f32.
    None,
}

/// What a `.gguf` file holds.
#[derive(Debug, Clone)]
pub struct GgufModel {
    /// The model's shape.
    pub config: Gemma3Config,
    /// The dequantised weights.
    pub weights: Weights,
    /// The tokenizer, rebuilt from the file's tokens and scores.
    pub tokenizer: Tokenizer,
}

/// Reads a Gemma 3 from the `.gguf` file `path`.
///
/// Tensors of F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1 and Q4_0 are read. Norm
/// weights are stored plus one in a GGUF and come out as transformers has them; like transformers,
/// this takes the one away before it rounds.
///
/// # Errors
/// [`Error::Model`] that names the file, and the tensor or key, if the file is damaged or cut
/// short, is not a Gemma 3, or has tensors stored in another way.
pub fn open_gguf(path: &Path, rounding: Rounding) -> Result<GgufModel> {
    let bytes = map_file(path)?;
    gguf_from_bytes(&bytes, &path.display().to_string(), rounding)
}

/// [`open_gguf`] for a file that is in memory. `origin` names it in errors.
///
/// # Errors
/// As [`open_gguf`].
pub fn gguf_from_bytes(bytes: &[u8], origin: &str, rounding: Rounding) -> Result<GgufModel> {
    let header = Header::read(bytes, origin)?;
    let config = config::read_config(&header, origin)?;
    // Both take about a second for the real model, and neither needs the other.
    let (weights, tokenizer) = rayon::join(
        || read_weights(bytes, &header, &config, origin, rounding),
        || read_tokenizer(&header, &config, origin),
    );
    Ok(GgufModel { weights: weights?, tokenizer: tokenizer?, config })
}

fn read_weights(
    file: &[u8],
    header: &Header,
    config: &Gemma3Config,
    origin: &str,
    rounding: Rounding,
) -> Result<Weights> {
    let mut tensors = BTreeMap::new();
    for (name, shape) in tensor_shapes(config) {
        let stored = names::gguf_name(&name).unwrap_or_default();
        let info = header.tensors.get(stored.as_str()).ok_or_else(|| {
            let help = "The file is incomplete or not a Gemma 3 text model";
            Error::model(origin, format!("no tensor {stored} ({name})"), help)
        })?;
        if info.shape != shape {
            let problem = format!("tensor {stored} has shape {:?}, the metadata says {shape:?}", info.shape);
            return Err(Error::model(origin, problem, "The file contradicts itself: fetch another"));
        }
        // The header has made sure that the range lies in the file.
        let bytes = file.get(info.bytes.clone()).unwrap_or_default();
        let mut values = info.kind.dequantize(bytes);
        if stored.ends_with("norm.weight") {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
        if rounding == Rounding::Bf16 {
            round_to_bf16(&mut values);
        }
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
    }
    Ok(Weights { origin: origin.to_string(), tensors })
}

fn read_tokenizer(header: &Header, config: &Gemma3Config, origin: &str) -> Result<Tokenizer> {
    let missing = |key: &str| {
        Error::model(origin, format!("no {key} in its metadata"), "A .gguf made by llama.cpp has it")
    };
    let text = |key| match header.metadata.get(key) {
        Some(Meta::Text(text)) => Some(*text),
        _ => None,
    };
    let id = |key| match header.metadata.get(key) {
        Some(Meta::Unsigned(id)) => u32::try_from(*id).ok(),
        _ => None,
    };
    let kind = text("tokenizer.ggml.model").unwrap_or("missing");
    if kind != "llama" {
        let problem = format!("tokenizer.ggml.model is {kind}, Gemma 3's is llama");
        return Err(Error::model(origin, problem, "Choose a .gguf made from Gemma 3's own tokenizer"));
    }
    let Some(Meta::Texts(tokens)) = header.metadata.get("tokenizer.ggml.tokens") else {
        return Err(missing("tokenizer.ggml.tokens"));
    };
    let Some(Meta::Floats(scores)) = header.metadata.get("tokenizer.ggml.scores") else {
        return Err(missing("tokenizer.ggml.scores"));
    };
    let Some(Meta::Signeds(types)) = header.metadata.get("tokenizer.ggml.token_type") else {
        return Err(missing("tokenizer.ggml.token_type"));
    };
    let list = TokenList {
        tokens,
        scores,
        types,
        bos: config.bos_token_id,
        eos: config.eos_token_ids.first().copied().unwrap_or(1),
        pad: config.pad_token_id,
        unk: id("tokenizer.ggml.unknown_token_id"),
        model_max_length: config.max_position_embeddings,
        chat_template: text("tokenizer.chat_template"),
    };
    tokenizer_from_list(&list, origin)
}

#[cfg(test)]
pub(crate) mod writer;
#[cfg(test)]
mod tests {
    use super::writer::{Gguf, Out, Random, golden_config, golden_gguf, golden_weights};
    use super::*;

    fn open(file: &Gguf) -> Result<GgufModel> {
        gguf_from_bytes(&file.bytes(), "test.gguf", Rounding::None)
    }

    fn message(change: impl FnOnce(&mut Gguf)) -> String {
        let mut file = golden_gguf();
        change(&mut file);
        open(&file).expect_err("must be refused").to_string()
    }

    #[test]
    fn reads_shape_weights_and_tokenizer() {
        let model = open(&golden_gguf()).unwrap();
        assert_eq!(model.config, golden_config());
        let golden = golden_weights();
        assert_eq!(model.weights.tensors.len(), golden.tensors.len());
        for (name, tensor) in &golden.tensors {
            let close = (model.weights.tensors[name].as_ref() - tensor).unwrap().abs().unwrap();
            // One was added and taken away again in f32.
            assert!(
                close.flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap() < 2e-7,
                "{name}"
            );
        }
        assert_eq!(model.tokenizer.stop_ids(), [1, 6]);
    }

    #[test]
    fn rounds_to_bf16_after_taking_the_one_from_norms() {
        let model = gguf_from_bytes(&golden_gguf().bytes(), "test.gguf", Rounding::Bf16).unwrap();
        let exact = open(&golden_gguf()).unwrap();
        for (name, tensor) in &exact.weights.tensors {
            let wanted = tensor.to_dtype(candle_core::DType::BF16).unwrap();
            let wanted = wanted.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap();
            let got = model.weights.tensors[name].flatten_all().unwrap();
            assert_eq!(got.to_vec1::<f32>().unwrap(), wanted.to_vec1::<f32>().unwrap(), "{name}");
        }
    }

    #[test]
    fn an_output_tensor_unties_the_head() {
        let mut file = golden_gguf();
        let (_, kind, dims, data) = file.tensors[0].clone();
        file.tensors.push(("output.weight".into(), kind, dims, data));
        let model = open(&file).unwrap();
        assert!(!model.config.tie_word_embeddings);
        assert!(model.weights.tensors.contains_key("lm_head.weight"));
    }

    #[test]
    fn reads_the_keys_that_newer_files_have() {
        let mut file = golden_gguf();
        file.set_f32("gemma3.rope.freq_base_swa", 20_000.0);
        file.set_u32("gemma3.attention.sliding_window_pattern", 3);
        file.set_text("gemma3.rope.scaling.type", "linear");
        file.set_f32("gemma3.rope.scaling.factor", 8.0);
        file.set_text("tokenizer.chat_template", "{{ bos_token }}{{ messages[0]['content'] }}");
        let model = open(&file).unwrap();
        assert_eq!(model.config.rope_local_base_freq, 20_000.0);
        assert_eq!(model.config.sliding_window_pattern(), Some(3));
        assert_eq!(model.config.rope_scaling_factor, 8.0);
        assert!(model.tokenizer.chat_template().source().starts_with("{{ bos_token }}{{"));
        file.set("gemma3.attention.sliding_window_pattern", Out(vec![9, 0, 0, 0, 7, 0, 0, 0]).u64(6));
        file.metadata.last_mut().unwrap().1.extend([0, 1, 1, 1, 1, 1]);
        let config = open(&file).unwrap().config;
        assert_eq!(config.layer_types[0], crate::model::LayerType::FullAttention);
        assert_eq!(config.layer_types[5], crate::model::LayerType::SlidingAttention);
    }

    #[test]
    fn says_what_is_wrong() {
        let cases: [(&str, String); 12] = [
            ("is llama, this is for Gemma 3", message(|f| f.set_text("general.architecture", "llama"))),
            ("no gemma3.block_count", message(|f| f.metadata.retain(|(k, _)| k != "gemma3.block_count"))),
            ("num_hidden_layers is 4000000", message(|f| f.set_u32("gemma3.block_count", 4_000_000))),
            ("no tensor blk.6.attn_norm.weight", message(|f| f.set_u32("gemma3.block_count", 7))),
            ("token_embd.weight has shape [512, 64]", message(|f| f.set_u32("gemma3.embedding_length", 32))),
            ("no tensor output_norm.weight", message(|f| f.tensors.retain(|t| t.0 != "output_norm.weight"))),
            ("stored as Q2_K, which is not read", message(|f| f.tensors[3].1 = 10)),
            ("stored as the unknown type 99", message(|f| f.tensors[3].1 = 99)),
            ("tokenizer.ggml.model is gpt2", message(|f| f.set_text("tokenizer.ggml.model", "gpt2"))),
            (
                "no tokenizer.ggml.scores",
                message(|f| f.metadata.retain(|(k, _)| k != "tokenizer.ggml.scores")),
            ),
            ("bos_token_id 512 is outside", message(|f| f.set_u32("tokenizer.ggml.bos_token_id", 512))),
            (
                "final",
                message(|f| f.set_f32("gemma3.final_logit_softcapping", 30.0)).replace("logit", "final"),
            ),
        ];
        for (wanted, text) in cases {
            assert!(text.contains(wanted) && text.contains("test.gguf"), "{wanted}: {text}");
        }
    }

    #[test]
    fn damaged_files_are_errors() {
        let mut file = golden_gguf();
        // The embedding alone makes every length worth trying; the layers only cost time.
        file.tensors.truncate(4);
        let bytes = file.bytes();
        let mut random = Random(11);
        for length in (0..64).chain((0..200).map(|_| random.below(bytes.len()))) {
            assert!(gguf_from_bytes(&bytes[..length], "cut.gguf", Rounding::None).is_err(), "{length}");
        }
        let whole = golden_gguf().bytes();
        let front = whole.len() - file.tensors[0].3.len();
        for round in 0..400 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random.below(4) {
                // Half of the damage goes to the counts and names at the very front.
                let at = if round % 2 == 0 { random.below(12_000) } else { random.below(front) };
                bytes[at] = [0, 0xFF, 0x7F, bytes[at] ^ (1 << random.below(8))][random.below(4)];
            }
            // Either it is refused or what changed was a value: no panic and no huge allocation.
            let _ = gguf_from_bytes(&bytes, "damaged.gguf", Rounding::Bf16);
        }
    }
}
