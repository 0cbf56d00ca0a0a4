//! The tokenizer: BPE in the form of Gemma's, trained on the texts in `assets/`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use emoji_lab::data::Conversation;
use emoji_lab::files::write_bytes_atomic;
use serde_json::{Value, json};
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::tokenizer::Trainer;

use crate::Result;
use crate::rows::Row;
use crate::words::Words;

/// Tokens in the vocabulary, at most.
const VOCAB_SIZE: usize = 2048;

/// Gemma's control tokens, in its order; the first four have Gemma's ids too.
const SPECIAL: [&str; 6] = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"];

/// Runs of newlines that are tokens of their own, as in Gemma's tokenizer.
const RUNS: [&str; 3] = ["\n", "\n\n", "\n\n\n"];

/// Words of the chat format and of the notebook's instruction, which stand in every prompt: they
/// are fed this often, so that each becomes one token.
const FRAME: (&str, usize) = ("user model Translate this text to emoji: emoji", 200);

/// Gemma's chat format as a template of our own: the same text for messages that are plain text.
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}\
{% if messages[0]['role'] == 'system' %}\
{% set prefix = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}\
{% else %}{% set prefix = '' %}{% set turns = messages %}{% endif %}\
{% for message in turns %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\
{% endif %}\
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' \
+ (prefix if loop.first else '') + (message['content'] | trim) + '<end_of_turn>\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}";

/// Trains the tokenizer, writes `tokenizer.json` and `tokenizer_config.json` into `folder` and
/// returns the size of the vocabulary.
pub fn make(folder: &Path, words: &Words, rows: &[Row], chats: &[Conversation]) -> Result<usize> {
    let mut texts: Vec<String> = FRAME.0.split(' ').map(String::from).collect();
    texts.push(FRAME.0.into());
    texts = (0..FRAME.1).flat_map(|_| texts.clone()).collect();
    texts.extend(rows.iter().flat_map(|row| [row.text.clone(), row.emoji.clone()]));
    texts.extend(chats.iter().flat_map(|chat| chat.messages.iter().map(|message| message.content.clone())));
    // Every form and every emoji once more than the minimum, so that none is left in pieces.
    for word in &words.all {
        texts.extend([word.emoji.clone(), word.emoji.clone()]);
        texts.extend(word.forms.iter().flat_map(|form| [form.clone(), format!(" {form}")]));
    }

    let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let first = SPECIAL.iter().chain(&RUNS).map(|s| s.to_string()).chain(bytes);
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .min_frequency(2)
        .vocab_size(VOCAB_SIZE)
        .special_tokens(first.map(|content| AddedToken::from(content, true)).collect())
        .initial_alphabet((' '..='~').filter(|c| *c != ' ').chain(['▁']).collect::<HashSet<char>>())
        .build();
    trainer.feed(texts.iter(), |text| Ok(pieces(text))).map_err(|e| e.to_string())?;
    let mut bpe = BPE::default();
    trainer.train(&mut bpe).map_err(|e| e.to_string())?;

    let trained: Value = serde_json::to_value(&bpe)?;
    let vocab: BTreeMap<u64, &String> = trained["vocab"]
        .as_object()
        .ok_or("the trained vocabulary is no map")?
        .iter()
        .filter_map(|(token, id)| Some((id.as_u64()?, token)))
        .collect();
    let vocab: serde_json::Map<String, Value> =
        vocab.into_iter().map(|(id, token)| (token.clone(), id.into())).collect();
    let size = vocab.len();

    let added = |(id, content): (usize, &&str)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": id < SPECIAL.len(),
        })
    };
    let added: Vec<Value> = SPECIAL.iter().chain(&RUNS).enumerate().map(added).collect();
    let bos = |type_id: u8| json!({ "SpecialToken": { "id": "<bos>", "type_id": type_id } });
    let part = |id: &str, type_id: u8| json!({ "Sequence": { "id": id, "type_id": type_id } });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        "pre_tokenizer": {
            "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos(0), part("A", 0)],
            "pair": [bos(0), part("A", 0), bos(1), part("B", 1)],
            "special_tokens": { "<bos>": { "id": "<bos>", "ids": [2], "tokens": ["<bos>"] } },
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
                { "type": "ByteFallback" },
                { "type": "Fuse" },
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": "<unk>",
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": trained["merges"],
        },
    });
    let decoder: serde_json::Map<String, Value> = added
        .iter()
        .map(|token| {
            let mut entry = token.clone();
            let id = entry.as_object_mut().and_then(|entry| entry.shift_remove("id"));
            (id.map(|id| id.to_string()).unwrap_or_default(), entry)
        })
        .collect();
    let config = json!({
        "add_bos_token": true,
        "add_eos_token": false,
        "added_tokens_decoder": decoder,
        "bos_token": "<bos>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": "<end_of_turn>",
        "model_max_length": crate::model::MAX_POSITIONS,
        "pad_token": "<pad>",
        "padding_side": "left",
        "spaces_between_special_tokens": false,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": false,
    });
    write_json(&folder.join("tokenizer.json"), &tokenizer)?;
    write_json(&folder.join("tokenizer_config.json"), &config)?;
    Ok(size)
}

/// Writes `value` as indented JSON.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(write_bytes_atomic(path, text.as_bytes())?)
}

/// Cuts a text where no token may reach across: before a space, and around everything that is
/// neither a letter nor a digit. So an emoji is one token, the same after a space and after
/// another emoji, and the merges give the same tokens on a whole text, which Gemma's tokenizer
/// does not cut.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    let mut open = false;
    for c in text.chars() {
        let (c, joins) = match c {
            ' ' => ('▁', false),
            c => (c, open && c.is_ascii_alphanumeric()),
        };
        match pieces.last_mut() {
            Some(piece) if joins => piece.push(c),
            _ => pieces.push(c.to_string()),
        }
        open = c == '▁' || c.is_ascii_alphanumeric();
    }
    pieces.retain(|piece| piece != "\n");
    pieces
}
