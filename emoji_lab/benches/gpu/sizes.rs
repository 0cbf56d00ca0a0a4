//! A model of Gemma 3 270M's sizes, with random weights.

use std::collections::BTreeMap;

use emoji_lab::model::{Gemma3, Gemma3Config, Weights, tensor_shapes};
use emoji_lab::rng::Philox;
use emoji_lab::{Device, Result, Tensor};

/// `config.json` of Gemma 3 270M, what its sizes come from.
const CONFIG: &str = r#"{
    "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048,
    "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
    "sliding_window": 512, "_sliding_window_pattern": 6, "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0, "tie_word_embeddings": true, "hidden_activation": "gelu_pytorch_tanh",
    "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "attention_bias": false
}"#;

pub fn model(device: &Device) -> Result<Gemma3> {
    let config = Gemma3Config::from_json(CONFIG, "random model")?;
    let mut random = Philox::new(1, 0);
    let mut tensors = BTreeMap::new();
    for (name, dims) in tensor_shapes(&config) {
        let len: usize = dims.iter().product();
        let values: Vec<f32> = (0..len).map(|_| (random.next_f32() - 0.5) * 0.07).collect();
        tensors.insert(name, Tensor::from_vec(values, dims, &candle_core::Device::Cpu)?);
    }
    Gemma3::new(&config, &Weights::new("random weights", tensors), device)
}
