//! How much memory loading a model takes, beside its files: a process of its own for each look, since the
//! system says only the most that a process ever had.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use candle_core::Tensor;
use emoji_lab::model::{Gemma3Config, load_model, tensor_shapes, write_safetensors};
use emoji_lab::rng::Philox;
use emoji_lab::{DType, Device};

const FOLDER: &str = "EMOJI_LAB_LOADED_FOLDER";

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse::<f64>().unwrap() * 1024.0
}

fn weights_bytes(folder: &Path) -> f64 {
    let files = std::fs::read_dir(folder).unwrap().flatten();
    let weights = files.filter(|file| file.path().extension().is_some_and(|e| e == "safetensors"));
    weights.map(|file| file.metadata().unwrap().len() as f64).sum()
}

/// Not a test of its own: the process that loads the folder. What all of the library takes is there before.
#[test]
fn loads() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let embedded = load_model("embedded", &Device::Cpu).unwrap();
    let before = status("VmRSS");
    let folder = Path::new(&folder);
    let model = load_model(folder.to_str().unwrap(), &Device::Cpu).unwrap();
    let peak = status("VmHWM") - before;
    let file = weights_bytes(folder);
    println!("weights of {:.0} MB: peak {:.0} MB, {:.2} times", file / 1e6, peak / 1e6, peak / file);
    assert!(peak <= 1.3 * file, "{:.2} times the file", peak / file);
    // What was given back is there when it is asked for.
    assert!(model.gemma.greedy(&[2, 3, 4], 2).unwrap().len() <= 2);
    drop((embedded, model));
}

#[test]
fn a_model_in_several_files_is_in_memory_once() {
    let json = r#"{"model_type": "gemma3_text", "vocab_size": 65536, "hidden_size": 640, "intermediate_size": 6912,
        "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256, "sliding_window": 512,
        "sliding_window_pattern": 6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "tie_word_embeddings": true, "hidden_activation": "gelu_pytorch_tanh", "bos_token_id": 2,
        "eos_token_id": 1, "pad_token_id": 0, "attention_bias": false}"#;
    let config = Gemma3Config::from_json(json, "tests/loading.rs").unwrap();
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let embedded = load_model("embedded", &Device::Cpu).unwrap();
    embedded.save_pretrained(folder).unwrap();
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    std::fs::write(folder.join("config.json"), json).unwrap();
    let mut random = Philox::new(3, 0);
    let block: Vec<f32> = (0..1_048_573).map(|_| (random.next_f32() - 0.5) * 0.05).collect();
    let mut numbers = block.iter().copied().cycle();
    let shapes = tensor_shapes(&config);
    let shards = shapes.chunks(shapes.len().div_ceil(3));
    for (number, shard) in (1..).zip(shards.clone()) {
        let mut tensors = BTreeMap::new();
        for (name, dims) in shard {
            let values: Vec<f32> = numbers.by_ref().take(dims.iter().product()).collect();
            let tensor = Tensor::from_vec(values, dims.as_slice(), &candle_core::Device::Cpu).unwrap();
            tensors.insert(name.clone(), tensor);
        }
        let path = folder.join(format!("model-{number:05}-of-{:05}.safetensors", shards.len()));
        write_safetensors(path, &tensors, Some(DType::BF16)).unwrap();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "loads", "--nocapture"])
        .env(FOLDER, folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(
        output.status.success() && said.contains("times"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
