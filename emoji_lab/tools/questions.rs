//! Which rows a model is asked, and what this crate answers: shared by the tools beside it.

use std::path::Path;

use emoji_lab::data::{ChatDataset, Conversation, format_chat, held_out_rows, load_dataset, split_at_rows};
use emoji_lab::model::{Gemma3, KvCache, Model};
use emoji_lab::task::{EmojiFilter, Task};
use emoji_lab::{Error, Result};
use serde_json::{Value, json};

/// The longest answer, in tokens.
const LONGEST: usize = 24;

/// The first `count` rows of `data`, the embedded ones if there is none; with a `split` of those that are
/// held out.
pub fn questions(data: Option<&str>, split: Option<&Path>, count: usize) -> Result<ChatDataset> {
    let chat = match data {
        None => format_chat(&load_dataset("embedded", EmojiFilter::None)?),
        Some(data) => format_chat(&load_dataset(data, Task::emoji())?),
    };
    let rows = match split {
        None => chat,
        Some(file) => split_at_rows(&chat, &held_out_rows(file)?)?.test,
    };
    Ok(rows.take(count))
}

/// The token ids with which the rows are asked.
pub fn prompts(model: &Model, rows: &ChatDataset) -> Result<Vec<Vec<u32>>> {
    let ask = |row: &Conversation| model.tokenizer.encode_chat(&row.prompt(), true);
    rows.conversations.iter().map(ask).collect()
}

/// The greedy answers, each with the token of `stop` that ends it, and at each token how far its logit is
/// above the next one's.
pub fn answers(gemma: &Gemma3, stop: &[u32], prompts: &[Vec<u32>]) -> Result<Vec<Value>> {
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
            if stop.contains(&(first.0 as u32)) {
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
