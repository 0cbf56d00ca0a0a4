//! What another program must say of exported files.

use std::path::Path;

use emoji_lab::data::{ChatDataset, Conversation, load_dataset};
use emoji_lab::model::{Gemma3, KvCache, Model, Rounding, open_gguf};
use emoji_lab::task::EmojiFilter;
use emoji_lab::{Device, Error, Result};
use serde_json::{Value, json};

/// The longest answer, in tokens.
const LONGEST: usize = 24;

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

/// The token ids with which the rows are asked.
pub fn prompts(model: &Model, rows: &ChatDataset) -> Result<Vec<Vec<u32>>> {
    let ask = |row: &Conversation| model.tokenizer.encode_chat(&row.prompt(), true);
    rows.conversations.iter().map(ask).collect()
}

/// The greedy answers of the file `path`, each with the stop token that ends it, and at each token how
/// far its logit is above the next one's.
pub fn answers(path: &Path, prompts: &[Vec<u32>]) -> Result<Vec<Value>> {
    let files = open_gguf(path, Rounding::None)?;
    let gemma = Gemma3::new(&files.config, &files.weights, &Device::Cpu)?;
    drop(files.weights);
    let mut answers = vec![];
    for prompt in prompts {
        let mut cache = KvCache::new(gemma.config(), prompt.len() + LONGEST)?;
        let (mut ids, mut margins) = (prompt.clone(), vec![]);
        while ids.len() < prompt.len() + LONGEST {
            let logits = gemma.decode(&ids[cache.len()..], &mut cache)?.to_vec1::<f32>()?;
            let best = |except: Option<usize>| {
                let others = logits.iter().enumerate().filter(|(id, _)| Some(*id) != except);
                others.fold((0, f32::NEG_INFINITY), |best, (id, v)| if *v > best.1 { (id, *v) } else { best })
            };
            let first = best(None);
            margins.push(first.1 - best(Some(first.0)).1);
            ids.push(first.0 as u32);
            if files.config.eos_token_ids.contains(&(first.0 as u32)) {
                break;
            }
        }
        answers.push(json!({"ids": ids[prompt.len()..], "margins": margins}));
    }
    Ok(answers)
}

pub fn write(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, value.to_string()).map_err(|e| Error::io(path, "writing", e))
}
