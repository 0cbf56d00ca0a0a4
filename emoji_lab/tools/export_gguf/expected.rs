//! How another program must cut texts into tokens.

use std::path::Path;

use emoji_lab::data::load_dataset;
use emoji_lab::model::Model;
use emoji_lab::task::EmojiFilter;
use emoji_lab::{Error, Result};
use serde_json::{Value, json};

/// Texts with what tokenizers disagree about: runs of blanks and of one character, bytes, emoji of
/// several characters, control tokens in the middle, and words that look like them. No ▁ beside another, or a blank:
/// llama.cpp takes a run of blanks before it writes ▁ for each, and does not find one that is ▁ already.
const ODD: [&str; 16] = [
    "",
    " ",
    "   leading and trailing   ",
    "a\n\n\n\n\nb\n",
    "tab\tand\r\nreturn\0nul",
    "aaaaaaaaaaaaaaaa ooooooooooooooo !!!!!!!!!!!!!!",
    "hahahahahahaha nananananana ......... ???????",
    "👨‍👩‍👧‍👦 🏳️‍🌈 🇯🇵 ❤️ 1️⃣ 🏖️☀️😎",
    "🎉🎉🎉🎉🎉🎉🎉 🔥🔥🔥",
    "Straße, naïve café, Ελλάδα, русский, 日本語, العربية, עברית",
    "▁under▁scores▁and \u{a0}no-break\u{2003}blanks\u{200b}",
    "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "a<end_of_turn>b <eos> c",
    "<start_of_tur n> <0x41> <unused5> [multimodal] <mask",
    "x = {\"key\": [1, 2.5e-3, null]};  // code",
    "\u{fffd}\u{10ffff}\u{e000}",
];

/// The texts, each with its token ids by `model`.
pub fn texts(model: &Model, file: Option<&Path>) -> Result<Vec<Value>> {
    let mut texts: Vec<String> = ODD.iter().map(|text| (*text).to_string()).collect();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "reading the texts", e))?;
        for line in text.lines() {
            let row: Value = serde_json::from_str(line)
                .map_err(|e| Error::dataset(path.display(), e, "each line must be a JSON object"))?;
            texts.extend(["text", "prompt"].iter().filter_map(|key| Some(row[key].as_str()?.to_string())));
        }
    }
    for row in &load_dataset("embedded", EmojiFilter::None)?.examples {
        texts.push(format!("{} {}", row.text, row.answer));
    }
    texts.into_iter().map(|text| Ok(json!({"ids": model.tokenizer.encode(&text)?, "text": text}))).collect()
}
