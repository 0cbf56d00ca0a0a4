//! Adapters of every kind that PEFT and the tools beside it write, merged as PEFT merges them.
//!
//! tests/python/make_peft.py made them, and what PEFT computed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use emoji_lab::lora::Adapter;
use emoji_lab::model::{Gemma3, Gemma3Config, Weights, tensor_shapes};
use emoji_lab::prelude::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/peft")
}

fn config() -> Gemma3Config {
    let fields = serde_json::json!({
        "model_type": "gemma3_text", "vocab_size": 24, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "sliding_window": 8, "query_pre_attn_scalar": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "layer_types": ["sliding_attention", "full_attention"],
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": true
    });
    Gemma3Config::from_json(&fields.to_string(), "config.json").unwrap()
}

/// The formula of make_peft.py.
fn base() -> Gemma3 {
    let config = config();
    let mut shapes = tensor_shapes(&config);
    shapes.sort();
    let mut weights = Weights::default();
    for (index, (name, shape)) in shapes.into_iter().enumerate() {
        let count: usize = shape.iter().product();
        let value = |k: usize| ((0.37 * k as f64 + 1.3 * index as f64).sin() * 0.2) as f32;
        let values: Vec<f32> = (0..count).map(value).collect();
        weights.tensors.insert(name, Tensor::from_vec(values, shape, &candle_core::Device::Cpu).unwrap());
    }
    Gemma3::new(&config, &weights, &Device::Cpu).unwrap()
}

fn summary(tensor: &Tensor) -> [f64; 5] {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    let at = |i: usize| f64::from(values[i]);
    let squares: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    [
        squares.sqrt(),
        values.iter().map(|v| f64::from(*v)).sum(),
        at(0),
        at(values.len() / 2),
        at(values.len() - 1),
    ]
}

type Expected = BTreeMap<String, BTreeMap<String, [f64; 5]>>;

fn expected() -> Expected {
    serde_json::from_str(&std::fs::read_to_string(fixtures().join("expected.json")).unwrap()).unwrap()
}

fn assert_merged(kind: &str, gemma: &Gemma3, expected: &BTreeMap<String, [f64; 5]>) {
    let ours = gemma.named_weights().unwrap().tensors;
    let names: Vec<&String> = ours.keys().collect();
    assert_eq!(names, expected.keys().collect::<Vec<_>>(), "{kind}: whether head and embedding are one");
    for (name, want) in expected {
        let have = summary(&ours[name]);
        // 1e-6 of the norm; sums add up that many of such errors.
        let bound = 1e-6 * want[0].max(1e-3);
        let sums = bound * (ours[name].elem_count() as f64).sqrt();
        for (i, (have, want)) in have.iter().zip(want).enumerate() {
            let bound = if i == 1 { sums } else { bound };
            assert!((have - want).abs() <= bound, "{kind}: {name}, number {i} is {have}, PEFT has {want}");
        }
    }
}

#[test]
fn merged_weights_are_pefts() {
    let expected = expected();
    assert_merged("base", &base(), &expected["base"]);
    assert!(expected.len() > 20);
    for (kind, weights) in expected.iter().filter(|(kind, _)| *kind != "base") {
        assert_ne!(weights, &expected["base"], "{kind} would not notice an adapter that is passed over");
        let adapter = Adapter::load(fixtures().join(kind)).unwrap_or_else(|e| panic!("{kind}: {e}"));
        let merged = emoji_lab::lora::merge_into(&base(), &adapter).unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert_merged(kind, &merged, weights);
        // Saved again it is the same adapter, in PEFT's names.
        let copy = tempfile::tempdir().unwrap();
        adapter.save(copy.path()).unwrap();
        let again = Adapter::load(copy.path()).unwrap_or_else(|e| panic!("{kind}, saved again: {e}"));
        assert_merged(kind, &emoji_lab::lora::merge_into(&base(), &again).unwrap(), weights);
    }
}

/// A copy of an adapter with some fields changed.
fn changed(kind: &str, fields: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(fixtures().join(kind).join(file), dir.path().join(file)).unwrap();
    }
    let path = dir.path().join("adapter_config.json");
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for (name, value) in fields {
        config[*name] = value.clone();
    }
    std::fs::write(path, config.to_string()).unwrap();
    dir
}

#[test]
fn what_cannot_be_honoured_is_named() {
    use serde_json::json;
    for (field, value) in [
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("loftq")),
        ("lora_bias", json!(true)),
        ("layer_replication", json!([[0, 1], [0, 2]])),
        ("target_parameters", json!(["mlp.experts"])),
        ("trainable_token_indices", json!("all")),
        ("trainable_token_indices", json!([1, -2])),
        ("trainable_token_indices", json!({"norm": [1]})),
        ("alora_invocation_tokens", json!([1])),
        ("use_qalora", json!(true)),
        ("a_field_of_tomorrow", json!(3)),
        ("peft_type", json!("IA3")),
        ("r", json!(0)),
        ("lora_alpha", json!("8")),
    ] {
        let dir = changed("suffixes", &[(field, value.clone())]);
        let error = Adapter::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("adapter_config.json"), "{field} = {value}: {error}");
    }
}

/// What the settings name and the file lacks, and the other way round: never the unchanged base.
#[test]
fn settings_and_tensors_that_disagree_are_named() {
    use serde_json::json;
    let merge = |dir: &Path| {
        let adapter = Adapter::load(dir).map_err(|e| e.to_string())?;
        emoji_lab::lora::merge_into(&base(), &adapter).map(|_| ()).map_err(|e| e.to_string())
    };
    for (fields, says) in [
        (json!(["self_attn.k_proj"]), "is not one that the settings ask for"),
        (json!(["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"]), "mlp.up_proj.lora_A.weight"),
        (json!(".*nothing.*"), "is not one that the settings ask for"),
    ] {
        let dir = changed("suffixes", &[("target_modules", fields)]);
        let error = merge(dir.path()).unwrap_err();
        assert!(error.contains(says), "{error} should say {says}");
    }
    let dir = changed("regex", &[("target_modules", json!(r".*\.layers\.[01]\.self_attn\.(q|v)_proj"))]);
    let error = merge(dir.path()).unwrap_err();
    assert!(error.contains("no tensor model.layers.0.self_attn.q_proj.lora_A.weight"), "{error}");
    let dir = changed("dora", &[("use_dora", json!(false))]);
    assert!(merge(dir.path()).unwrap_err().contains("lora_magnitude_vector"));
    let rows = "trainable_token_indices";
    for (kind, ids, says) in [
        (
            "token-rows",
            json!([7, 3]),
            "has shape [3, 16], axis 0 should be 2, one per id of trainable_token_indices",
        ),
        ("token-rows", json!([7, 3, 7]), "has a token twice"),
        ("token-rows", json!([7, 3, 999]), "the row of token 999, the model has 24 tokens"),
        ("token-rows", json!(null), "trainable_tokens_delta is not one that the settings ask for"),
        ("suffixes", json!([1, 2]), "no tensor model.embed_tokens.token_adapter.trainable_tokens_delta"),
    ] {
        let error = merge(changed(kind, &[(rows, ids)]).path()).unwrap_err();
        assert!(error.contains(says), "{error} should say {says}");
    }
    let dir = changed("suffixes", &[("use_dora", json!(true))]);
    assert!(merge(dir.path()).unwrap_err().contains("use_dora = true"));
}
