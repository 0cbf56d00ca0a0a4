//! The tiny Gemma 3: its shape, its first weights and its files.

use std::collections::HashMap;
use std::path::Path;

use emoji_lab::model::{Gemma3, Gemma3Config, LayerType, Weights};
use emoji_lab::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::Result;
use crate::rng::Rng;
use crate::tokenizer::write_json;

/// The longest sequence the model is made for, in tokens.
pub const MAX_POSITIONS: usize = 1024;

/// Width of the residual stream.
pub const HIDDEN: usize = 128;
/// Width of the MLP.
pub const INTERMEDIATE: usize = 384;
/// Decoder layers: five with a sliding window, then one that sees everything.
pub const LAYERS: usize = 6;
/// Query heads, over one key and value head.
pub const HEADS: usize = 4;
/// How far back a sliding layer sees.
pub const SLIDING_WINDOW: usize = 64;
/// Width of a head.
pub const HEAD_DIM: usize = 32;

/// Standard deviation of the first weights: what transformers' `initializer_range` is by default.
const INITIALIZER_RANGE: f64 = 0.02;

/// The model's shape.
pub fn config(vocab_size: usize) -> Gemma3Config {
    let layer = |i| if is_full(i) { LayerType::FullAttention } else { LayerType::SlidingAttention };
    Gemma3Config {
        vocab_size,
        hidden_size: HIDDEN,
        intermediate_size: INTERMEDIATE,
        num_hidden_layers: LAYERS,
        num_attention_heads: HEADS,
        num_key_value_heads: 1,
        head_dim: HEAD_DIM,
        max_position_embeddings: MAX_POSITIONS,
        rms_norm_eps: 1e-6,
        query_pre_attn_scalar: HEAD_DIM as f64,
        sliding_window: SLIDING_WINDOW,
        layer_types: (0..LAYERS).map(layer).collect(),
        rope_theta: 1_000_000.0,
        rope_local_base_freq: 10_000.0,
        rope_scaling_factor: 1.0,
        tie_word_embeddings: true,
        pad_token_id: 0,
        bos_token_id: 2,
        eos_token_ids: vec![1, 5],
    }
}

fn is_full(layer: usize) -> bool {
    (layer + 1).is_multiple_of(6)
}

/// A model of first weights: normal with a standard deviation of 0.02, norms at zero (Gemma
/// multiplies by one plus the stored weight).
pub fn initial(config: &Gemma3Config, rng: &mut Rng) -> Result<Gemma3> {
    let mut weights = Weights::new("first weights", Default::default());
    let mut put = |name: String, dims: &[usize], scale: f64| -> Result<()> {
        let values = (0..dims.iter().product()).map(|_| (scale * rng.normal()) as f32).collect::<Vec<_>>();
        weights.tensors.insert(name, Tensor::from_vec(values, dims, &candle_core::Device::Cpu)?);
        Ok(())
    };
    put("model.embed_tokens.weight".into(), &[config.vocab_size, HIDDEN], INITIALIZER_RANGE)?;
    put("model.norm.weight".into(), &[HIDDEN], 0.0)?;
    for layer in 0..LAYERS {
        let queries = HEADS * HEAD_DIM;
        for (name, dims) in [
            ("self_attn.q_proj", [queries, HIDDEN]),
            ("self_attn.k_proj", [HEAD_DIM, HIDDEN]),
            ("self_attn.v_proj", [HEAD_DIM, HIDDEN]),
            ("self_attn.o_proj", [HIDDEN, queries]),
            ("mlp.gate_proj", [INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", [INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", [HIDDEN, INTERMEDIATE]),
        ] {
            put(format!("model.layers.{layer}.{name}.weight"), &dims, INITIALIZER_RANGE)?;
        }
        for (name, dim) in [
            ("self_attn.q_norm", HEAD_DIM),
            ("self_attn.k_norm", HEAD_DIM),
            ("input_layernorm", HIDDEN),
            ("post_attention_layernorm", HIDDEN),
            ("pre_feedforward_layernorm", HIDDEN),
            ("post_feedforward_layernorm", HIDDEN),
        ] {
            put(format!("model.layers.{layer}.{name}.weight"), &[dim], 0.0)?;
        }
    }
    Ok(Gemma3::new(config, &weights, &Device::Cpu)?)
}

/// Writes `model.safetensors` in bf16, and returns the model as a reader will see it.
pub fn write_weights(path: &Path, model: &Gemma3) -> Result<Gemma3> {
    let mut rounded = Weights::new(path.display().to_string(), Default::default());
    let mut bytes = Vec::new();
    for (name, tensor) in model.named_weights()?.tensors {
        let half = tensor.to_dtype(DType::BF16)?;
        let values = half.flatten_all()?.to_vec1::<half::bf16>()?;
        bytes.push((
            name.clone(),
            half.dims().to_vec(),
            values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>(),
        ));
        rounded.tensors.insert(name, half.to_dtype(DType::F32)?);
    }
    let views = bytes
        .iter()
        .map(|(name, dims, bytes)| Ok((name, TensorView::new(Dtype::BF16, dims.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let file = safetensors::serialize(views, Some(metadata))?;
    emoji_lab::files::write_bytes_atomic(path, &file)?;
    Ok(Gemma3::new(model.config(), &rounded, &Device::Cpu)?)
}

/// Reads what [`write_weights`] wrote.
pub fn read_weights(path: &Path, config: &Gemma3Config) -> Result<Gemma3> {
    let mut weights = Weights::new(path.display().to_string(), Default::default());
    for (name, tensor) in candle_core::safetensors::load(path, &candle_core::Device::Cpu)? {
        weights.tensors.insert(name, tensor.to_dtype(DType::F32)?);
    }
    Ok(Gemma3::new(config, &weights, &Device::Cpu)?)
}

/// Writes `config.json` in transformers' present form.
pub fn write_config(folder: &Path, vocab_size: usize) -> Result<()> {
    let layer = |i| if is_full(i) { "full_attention" } else { "sliding_attention" };
    let config = json!({
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": null,
        "bos_token_id": 2,
        "dtype": "bfloat16",
        "eos_token_id": [1, 5],
        "final_logit_softcapping": null,
        "head_dim": HEAD_DIM,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": HIDDEN,
        "initializer_range": INITIALIZER_RANGE,
        "intermediate_size": INTERMEDIATE,
        "layer_types": (0..LAYERS).map(layer).collect::<Vec<_>>(),
        "max_position_embeddings": MAX_POSITIONS,
        "model_type": "gemma3_text",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": HEAD_DIM,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": { "rope_theta": 1_000_000.0, "rope_type": "default" },
            "sliding_attention": { "rope_theta": 10_000.0, "rope_type": "default" },
        },
        "sliding_window": SLIDING_WINDOW,
        "tie_word_embeddings": true,
        "use_bidirectional_attention": false,
        "use_cache": true,
        "vocab_size": vocab_size,
    });
    write_json(&folder.join("config.json"), &config)
}
