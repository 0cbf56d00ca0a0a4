//! Gemma 3: its configuration, files, tokenizer, forward and backward pass, and generation.

mod cache;
mod config;
mod config_json;
mod config_rope;
mod constrained;
mod cut_short;
mod decode;
mod download;
mod folder;
mod gemma3;
pub(crate) mod generate;
mod generate_batch;
mod generation_config;
mod generation_json;
pub(crate) mod gguf;
mod gguf_token_types;
pub(crate) mod gguf_tokenizer;
mod kept;
pub(crate) mod layer;
mod linear;
mod loaded;
mod loss;
mod names;
mod norm;
pub(crate) mod on_device;
mod packed;
mod parameters;
mod pretrained;
mod safetensors;
mod save;
mod shards;
pub(crate) mod side_by_side;
mod source;
mod stored;
mod stream;
pub(crate) mod token_rows;
mod tokenizer;
mod wanted;
mod weights;

pub use cache::KvCache;
pub use config::{Gemma3Config, LayerType};
pub use constrained::generate_samples;
pub(crate) use constrained::{answers, samples};
pub use download::{download_model, download_model_with};
pub(crate) use gemma3::ParameterMut;
pub use gemma3::{Gemma3, Tape};
pub use generate::{generate, generate_ids};
pub(crate) use generate_batch::answer_text;
pub use generate_batch::{generate_batch, generate_batch_ids};
pub use generation_config::GenerationConfig;
pub use gguf::{GgufModel, Rounding, gguf_from_bytes, open_gguf};
pub use linear::{DropoutKey, Linear, LoraAdapter, Param};
pub use loaded::{Model, load_model};
pub use packed::PackedTokens;
pub(crate) use parameters::layer_of;
pub use parameters::{EMBED_TOKENS, LM_HEAD, LinearName, NormName, Parameter, tensor_shapes};
pub use pretrained::{Pretrained, open_pretrained, pretrained_from_bytes};
pub(crate) use safetensors::{read_safetensors, safetensors_len};
pub use safetensors::{tensors_from_bytes, write_safetensors};
pub(crate) use save::save_folder;
pub use save::{gemma_generation_config, save_pretrained_folder};
pub use tokenizer::Tokenizer;
pub(crate) use tokenizer::TokenizerFiles;
pub use weights::Weights;

/// Reads a `generation_config.json`, for the fuzzers.
pub(crate) fn fuzz_generation_config(bytes: &[u8]) {
    if let Ok(fields) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(bytes) {
        let _ = generation_json::stop_tokens(&fields, "generation_config.json");
        let _ = generation_json::settings_of(&fields, "generation_config.json");
        let _ = generation_json::not_computed(&fields);
    }
}
