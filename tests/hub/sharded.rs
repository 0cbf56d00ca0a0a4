//! A larger Gemma 3 than the 270M: other proportions, weights in several files, as transformers saves
//! them. The folder and the logits are transformers' own (`tests/python/make_sharded.py`).

use std::fs;
use std::path::Path;

use emoji_lab::Device;
use emoji_lab::model::{
    Gemma3Config, GenerationConfig, PackedTokens, generate_ids, load_model, tensor_shapes,
};
use serde_json::Value;

use crate::assert_says;
use crate::stand_in::StandIn;

/// The fixture's files, and the tokenizer of the embedded model, whose vocabulary it has.
fn upload(hub: &StandIn) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<(String, Vec<u8>)> = crate::files_below(&root.join("fixtures/sharded"));
    let golden = files.iter().position(|(name, _)| name == "golden.json").unwrap();
    let golden = serde_json::from_slice(&files.remove(golden).1).unwrap();
    let tokenizer = fs::read(root.join("../emoji_lab/assets/tiny/tokenizer.json")).unwrap();
    files.push(("tokenizer.json".into(), tokenizer));
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    hub.repo("models/ann/sharded", &files);
    golden
}

#[test]
fn a_sharded_model_of_other_proportions_computes_what_transformers_does() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let golden = upload(&hub);
    let folder = emoji_lab::model::download_model_with(&hub.env(home.path()), "ann/sharded", None).unwrap();
    assert_eq!(hub.count("GET", "/objects/"), 5, "five shards");
    let model = load_model(folder.to_str().unwrap(), &Device::Cpu).unwrap();
    assert_eq!(Some(model.num_parameters() as u64), golden["parameters"].as_u64());

    let numbers =
        |value: &Value| value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect::<Vec<_>>();
    let ids: Vec<u32> = numbers(&golden["ids"]).into_iter().map(|id| id as u32).collect();
    assert!(ids.len() > 2 * model.gemma.config().sliding_window, "longer than the window");
    let (hidden, _) = model.gemma.forward(&PackedTokens::new(&[&ids]), None).unwrap();
    let logits = model.gemma.logits(&hidden).unwrap().to_vec2::<f32>().unwrap();
    let columns = numbers(&golden["columns"]);
    let mut worst = 0f64;
    for (ours, theirs) in logits.iter().zip(golden["logits"].as_array().unwrap()) {
        for (column, expected) in columns.iter().zip(numbers(theirs)) {
            worst = worst.max((f64::from(ours[*column as usize]) - expected).abs());
        }
    }
    println!("worst difference of a logit: {worst:.1e}");
    assert_eq!(logits.len(), ids.len());
    assert!(worst < 1e-4, "{worst}");
    // The cache of keys and values has the same proportions to get right.
    let config = GenerationConfig { max_new_tokens: 8, ..Default::default() };
    let answer = generate_ids(&model, &ids, &config).unwrap();
    assert!(!answer.is_empty());
    let mut all = ids.clone();
    for id in answer {
        let (hidden, _) = model.gemma.forward(&PackedTokens::new(&[&all]), None).unwrap();
        let last = model.gemma.logits(&hidden).unwrap().to_vec2::<f32>().unwrap().pop().unwrap();
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        assert_eq!(id as usize, best);
        all.push(id);
    }
}

#[test]
fn a_shard_of_another_model_is_told() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    upload(&hub);
    let folder = emoji_lab::model::download_model_with(&hub.env(home.path()), "ann/sharded", None).unwrap();
    let load = || load_model(folder.to_str().unwrap(), &Device::Cpu).unwrap_err().to_string();
    fs::remove_file(folder.join("model-00004-of-00005.safetensors")).unwrap();
    assert_says(&load(), &["model-00004-of-00005.safetensors"]);
    fs::copy(
        folder.join("model-00001-of-00005.safetensors"),
        folder.join("model-00004-of-00005.safetensors"),
    )
    .unwrap();
    assert_says(&load(), &["no tensor model.layers.", "incomplete"]);
}

/// `config.json` of google/gemma-3-1b-it, as its repository has it.
const CONFIG_1B: &str = r#"{"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
    "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
    "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262144}"#;

#[test]
fn the_1b_has_its_billion() {
    let config = Gemma3Config::from_json(CONFIG_1B, "gemma-3-1b-it").unwrap();
    let count: usize = tensor_shapes(&config).iter().map(|(_, dims)| dims.iter().product::<usize>()).sum();
    assert_eq!(count, 999_885_952, "what the Hub says of its safetensors");
    assert_eq!((config.sliding_window, config.sliding_window_pattern()), (512, Some(6)));
    assert_eq!(config.layer_types.len(), 26);
}
