//! Every reader of what is not ours, as a function of bytes: files that people have, and what a Hub
//! answers. Each may refuse; none may panic, hang, or take more memory than its file justifies.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use emoji_lab::data::{ChatTemplate, Message};
use emoji_lab::fuzzing;
use emoji_lab::lora::Adapter;
use emoji_lab::model::{Gemma3Config, Rounding, Tokenizer};
use emoji_lab::prelude::*;

/// Reads what it is given, or refuses it.
pub type Reader = fn(&[u8]);

/// The readers by name; `seeds/NAME` holds what they begin with.
pub const TARGETS: &[(&str, Reader)] = &[
    ("csv", csv),
    ("jsonl", jsonl),
    ("json", json),
    ("config", config),
    ("adapter_config", adapter_config),
    ("adapter_tensors", adapter_tensors),
    ("safetensors", safetensors),
    ("gguf", gguf),
    ("tokenizer", tokenizer),
    ("tokenizer_config", tokenizer_config),
    ("template", template),
    ("generation_config", generation_config),
    ("trainer_state", trainer_state),
    ("hub_card", hub_card),
    ("hub_listing", hub_listing),
    ("shown", shown),
];

/// A folder of this process, in memory where the system has such a place.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let shared = Path::new("/dev/shm");
        let parent = if shared.is_dir() { shared.to_path_buf() } else { std::env::temp_dir() };
        let folder = parent.join(format!("emoji_lab-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the fuzzers' files");
        folder
    })
}

/// Removes what [`folder`] holds; the fuzzer leaves its files, some kilobytes, to the next start.
pub fn clean_up() {
    let _ = std::fs::remove_dir_all(folder());
}

fn file(name: &str, bytes: &[u8]) -> String {
    let path = folder().join(name);
    std::fs::write(&path, bytes).expect("a file for the fuzzers");
    path.display().to_string()
}

fn table(name: &str, bytes: &[u8]) {
    if let Ok(dataset) = load_dataset(&file(name, bytes), EmojiFilter::PurelyEmoji) {
        let _ = (dataset.report.to_string(), format_chat(&dataset));
    }
}

fn csv(bytes: &[u8]) {
    table("rows.csv", bytes);
}

fn jsonl(bytes: &[u8]) {
    table("rows.jsonl", bytes);
}

fn json(bytes: &[u8]) {
    table("rows.json", bytes);
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn config(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(config) = Gemma3Config::from_json(text, "config.json") {
        let _ = Gemma3Config::from_json(&config.to_json().to_string(), "its own")
            .expect("what it writes it reads");
    }
}

/// Two rows of safetensors: `lora_A` and `lora_B` of one module.
const PAIR: &str = r#"{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]}}"#;
const PEFT: &str =
    r#"{"peft_type":"LORA","r":1,"lora_alpha":2,"target_modules":["q_proj"],"base_model_name_or_path":"x"}"#;

fn adapter(config: &[u8], tensors: &[u8]) {
    let at = folder().join("adapter");
    std::fs::create_dir_all(&at).expect("a folder for an adapter");
    file("adapter/adapter_config.json", config);
    file("adapter/adapter_model.safetensors", tensors);
    let _ = Adapter::load(&at);
}

fn adapter_config(bytes: &[u8]) {
    let mut tensors = (PAIR.len() as u64).to_le_bytes().to_vec();
    tensors.extend_from_slice(PAIR.as_bytes());
    tensors.extend_from_slice(&[0; 16]);
    adapter(bytes, &tensors);
}

fn adapter_tensors(bytes: &[u8]) {
    adapter(PEFT.as_bytes(), bytes);
}

fn safetensors(bytes: &[u8]) {
    let _ = emoji_lab::model::tensors_from_bytes(bytes, "model.safetensors", |name, _| {
        Ok(Some(name.to_string()))
    });
}

fn gguf(bytes: &[u8]) {
    let Ok(model) = emoji_lab::model::gguf_from_bytes(bytes, "model.gguf", Rounding::Bf16) else { return };
    use_tokenizer(&model.tokenizer);
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    if let Ok(ids) = tokenizer.encode("let's go to the beach 🏖️ <end_of_turn>") {
        let _ = tokenizer.decode(&ids, false);
    }
    let _ = tokenizer.decode(&[0, 1, 2, 3, u32::MAX], true);
    let _ = tokenizer.encode_chat(&[Message::user("hi")], true);
}

fn tokenizer(bytes: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_bytes(bytes, "{}", "tokenizer.json") {
        use_tokenizer(&tokenizer);
    }
}

fn tokenizer_config(bytes: &[u8]) {
    const TOKENIZER: &[u8] = include_bytes!("seeds/tokenizer/small.json");
    let Some(text) = text(bytes) else { return };
    if let Ok(tokenizer) = Tokenizer::from_bytes(TOKENIZER, text, "tokenizer_config.json") {
        use_tokenizer(&tokenizer);
    }
}

fn template(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(template) = ChatTemplate::new(text, "<bos>", "<eos>") else { return };
    let messages = [Message::system("be short"), Message::user("a 🏖️"), Message::assistant("b")];
    for (messages, asks) in [(&messages[..], false), (&messages[1..2], true)] {
        if let Ok(text) = template.render(messages, asks) {
            assert!(text.len() < 64 << 20, "a conversation of {} bytes", text.len());
        }
    }
}

fn generation_config(bytes: &[u8]) {
    fuzzing::generation_config(bytes);
}

fn trainer_state(bytes: &[u8]) {
    let path = file("trainer_state.json", bytes);
    let _ = emoji_lab::train::TrainerState::load(Path::new(&path));
}

fn hub_card(bytes: &[u8]) {
    if let Some(text) = text(bytes) {
        fuzzing::hub_card(text);
    }
}

fn hub_listing(bytes: &[u8]) {
    if let Some(text) = text(bytes) {
        fuzzing::hub_listing(text);
    }
}

/// Whatever a text holds, what is shown of it has no word of the kernel's protocol and no control
/// but a tab or a new line.
fn shown(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let plain = emoji_lab::display::plain(&text);
    assert!(!plain.contains("EVCXR_"), "{plain:?}");
    let control = plain.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
    assert_eq!(control, None, "{plain:?}");
    assert_eq!(emoji_lab::display::plain(&plain), plain, "plain text stays as it is");
    let html = emoji_lab::display::escape_html(&text);
    assert!(!html.contains(['<', '"']), "{html:?}");
}
