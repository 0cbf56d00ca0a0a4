//! What a tool is told, which rows it asks a model, and what this crate answers: shared by the tools beside it.

use std::path::{Path, PathBuf};

use emoji_lab::data::{ChatDataset, Conversation, format_chat, held_out_rows, load_dataset, split_at_rows};
use emoji_lab::model::{Gemma3, KvCache, Model};
use emoji_lab::task::{EmojiFilter, Task};
use emoji_lab::{Error, Result};
use serde_json::{Value, json};

/// The longest answer, in tokens.
const LONGEST: usize = 24;

/// What both exports are told.
pub struct Options {
    pub model: String,
    pub out: PathBuf,
    pub data: Option<String>,
    pub split: Option<PathBuf>,
    pub rows: usize,
}

impl Options {
    /// From the arguments of this process: `MODEL OUT [--data DATA] [--split FILE] [--rows N]`, and options that
    /// `other` takes, which says whether it knows one. `all` names them in an error.
    pub fn read(all: &str, mut other: impl FnMut(&str, &str) -> Result<bool>) -> Result<Self> {
        let (mut plain, mut data, mut split, mut rows) = (vec![], None, None, 24);
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            if !argument.starts_with("--") {
                plain.push(argument);
                continue;
            }
            let value = arguments.next().unwrap_or_default();
            match argument.as_str() {
                "--rows" => rows = number(&argument, &value)?,
                "--data" => data = Some(value),
                "--split" => split = Some(PathBuf::from(value)),
                _ if other(&argument, &value)? => {}
                _ => return Err(Error::setting("option", argument, all)),
            }
        }
        let [model, out] = plain.try_into().map_err(|plain: Vec<String>| {
            Error::setting("arguments", plain.join(" "), "give a model and a folder to write to")
        })?;
        Ok(Self { model, out: PathBuf::from(out), data, split, rows })
    }

    /// The rows that are asked.
    pub fn questions(&self) -> Result<ChatDataset> {
        questions(self.data.as_deref(), self.split.as_deref(), self.rows)
    }
}

/// The whole number that is given for `option`.
pub fn number(option: &str, value: &str) -> Result<usize> {
    value.parse().map_err(|_| Error::setting("option", format!("{option} {value}"), "use a whole number"))
}

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
