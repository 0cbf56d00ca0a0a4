//! The Hub's steps against a stand-in Hub on the loopback: see `stand_in`.

mod clients;
mod dataset;
mod download;
mod faults;
mod login;
mod push;
mod push_faults;
mod secrets;
mod sharded;
mod stand_in;

use std::fs;
use std::path::Path;

use stand_in::StandIn;

/// Bytes that do not compress and do not repeat.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

const CONFIG: &[u8] = br#"{"model_type": "gemma3_text"}"#;
/// The smallest tokenizer that can be one of Gemma's.
const TOKENIZER: &[u8] =
    br#"{"version": "1.0", "model": {"type": "BPE", "vocab": {"<bos>": 0, "<eos>": 1}, "merges": []}}"#;

/// A model repository with one file of weights; gives the commit.
fn a_model(hub: &StandIn, id: &str, weights: &[u8]) -> String {
    hub.repo(
        &format!("models/{id}"),
        &[
            (".gitattributes", b"* text=auto\n"),
            ("README.md", b"# a model\n"),
            ("chat_template.jinja", b"{{ messages }}"),
            ("config.json", CONFIG),
            ("generation_config.json", b"{}"),
            ("model.safetensors", weights),
            ("pytorch_model.bin", b"pickled"),
            ("tokenizer.json", TOKENIZER),
            ("tokenizer_config.json", b"{}"),
        ],
    )
}

/// Every file below a folder, with its content.
fn files_below(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                found.push((path.strip_prefix(root).unwrap_or(&path).display().to_string(), bytes));
            }
        }
    }
    found.sort();
    found
}

/// Asserts that a text holds each of some parts.
#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "\"{part}\" is not in: {text}");
    }
}
