//! Models of Gemma 3's sizes, with random weights.

use std::collections::BTreeMap;

use emoji_lab::model::{Gemma3, Gemma3Config, Weights, tensor_shapes};
use emoji_lab::rng::Philox;
use emoji_lab::{Device, Error, Result, Tensor};
use rayon::prelude::*;

/// Name, vocabulary, hidden, inner, layers, heads, key/value heads, window, and the divisor of the global
/// positions: what Gemma 3's `config.json` of each size says of its text.
const SIZES: [(&str, [usize; 8]); 4] = [
    ("270m", [262_144, 640, 2048, 18, 4, 1, 512, 1]),
    ("1b", [262_144, 1152, 6912, 26, 4, 1, 512, 1]),
    ("4b", [262_208, 2560, 10_240, 34, 8, 4, 1024, 8]),
    ("12b", [262_208, 3840, 15_360, 48, 16, 8, 1024, 8]),
];

fn config_json(size: &str) -> Result<String> {
    let Some((_, [vocab, hidden, inner, layers, heads, kv_heads, window, factor])) =
        SIZES.iter().find(|(name, _)| *name == size)
    else {
        return Err(Error::setting("--size", size, "give 270m, 1b, 4b or 12b"));
    };
    let scaling = match factor {
        1 => "null".to_string(),
        factor => format!(r#"{{"rope_type": "linear", "factor": {factor}.0}}"#),
    };
    Ok(format!(
        r#"{{"model_type": "gemma3_text", "vocab_size": {vocab}, "hidden_size": {hidden}, "intermediate_size": {inner},
        "num_hidden_layers": {layers}, "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads},
        "head_dim": 256, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
        "sliding_window": {window}, "sliding_window_pattern": 6, "rope_theta": 1000000.0, "rope_scaling": {scaling},
        "rope_local_base_freq": 10000.0, "tie_word_embeddings": true, "hidden_activation": "gelu_pytorch_tanh",
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "attention_bias": false}}"#
    ))
}

/// Numbers that a thread makes at a time, each time from a stream of its own.
const CHUNK: usize = 1 << 20;

pub fn model(size: &str, device: &Device) -> Result<Gemma3> {
    let config = Gemma3Config::from_json(&config_json(size)?, "random model")?;
    let mut tensors = BTreeMap::new();
    for (number, (name, dims)) in (0u64..).zip(tensor_shapes(&config)) {
        let mut values = vec![0f32; dims.iter().product()];
        values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
            let mut random = Philox::new(1, number << 32 | chunk as u64);
            values.iter_mut().for_each(|v| *v = (random.next_f32() - 0.5) * 0.07);
        });
        tensors.insert(name, Tensor::from_vec(values, dims, &candle_core::Device::Cpu)?);
    }
    Gemma3::new(&config, &Weights::new("random weights", tensors), device)
}
