//! `text/emoji.jsonl` and `text/chat.jsonl`.

use emoji_lab::data::{ChatTemplate, Message};
use emoji_lab::model::{Rounding, Tokenizer, open_gguf};
use emoji_lab::task::{emoji_list, is_every_character_emoji, purely_emoji};
use emoji_lab::{Error, Result};
use serde_json::Value;

use crate::Options;
use crate::files::{ids, json_lines};
use crate::report::Report;

pub fn check(options: &Options, report: &mut Report) -> Result<()> {
    let emoji = options.dir.join("text/emoji.jsonl");
    if emoji.is_file() {
        let lines = json_lines(&emoji)?;
        let wrong = |differs: &dyn Fn(&Value, &str) -> bool| {
            lines.iter().filter(|line| line["s"].as_str().is_none_or(|s| differs(line, s))).count()
        };
        let count = wrong(&|line, s| line["purely_emoji"].as_bool() != Some(purely_emoji(s)));
        report.equal("emoji: purely_emoji verdicts", count, lines.len());
        let count = wrong(&|line, s| line["all_chars_emoji"].as_bool() != Some(is_every_character_emoji(s)));
        report.equal("emoji: every-character verdicts", count, lines.len());
        let count = wrong(&|line, s| {
            line["list"].as_array().is_some_and(|list| !list.iter().eq(emoji_list(s).iter()))
        });
        report.equal("emoji: lists of emoji", count, lines.len());
    } else {
        report.skip("emoji", "no text/emoji.jsonl");
    }
    let chat = options.dir.join("text/chat.jsonl");
    if !chat.is_file() {
        report.skip("chat", "no text/chat.jsonl");
        return Ok(());
    }
    let lines = json_lines(&chat)?;
    let template = ChatTemplate::gemma()?;
    let wrong = lines.iter().filter(|line| texts(line, &|m, g| template.render(m, g)).is_err()).count();
    report.equal("chat: texts, Gemma's template", wrong, lines.len());
    let mut any = false;
    for (from, tokenizer) in tokenizers(options) {
        any = true;
        report.guard(&format!("chat: {from}"), |report| {
            let tokenizer = tokenizer?;
            let wrong = lines
                .iter()
                .filter(|line| texts(line, &|m, g| tokenizer.apply_chat_template(m, g)).is_err())
                .count();
            report.equal(&format!("chat: texts, {from}"), wrong, lines.len());
            let differs = |line: &&Value| {
                let messages = messages(line);
                [("ids", false), ("prompt_ids", true)].into_iter().any(|(key, prompt)| {
                    let messages = if prompt { without_answer(&messages) } else { &messages };
                    tokenizer.encode_chat(messages, prompt).ok() != Some(ids(&line[key]))
                })
            };
            report.equal(
                &format!("chat: token ids, {from}"),
                lines.iter().filter(differs).count(),
                lines.len(),
            );
            Ok(())
        });
    }
    if !any {
        report.skip("chat: token ids", "give --tokenizer FILE or --gguf FILE");
    }
    Ok(())
}

fn tokenizers(options: &Options) -> Vec<(&'static str, Result<Tokenizer>)> {
    let mut found = vec![];
    if let Some(file) = &options.tokenizer {
        found.push(("tokenizer.json", from_file(file)));
    }
    if let Some(file) = &options.gguf {
        found.push(("rebuilt from the GGUF", open_gguf(file, Rounding::default()).map(|m| m.tokenizer)));
    }
    found
}

fn from_file(file: &std::path::Path) -> Result<Tokenizer> {
    let read =
        |path: &std::path::Path| std::fs::read(path).map_err(|e| Error::io(path, "reading the tokenizer", e));
    let config = file.with_file_name("tokenizer_config.json");
    let config =
        if config.is_file() { String::from_utf8_lossy(&read(&config)?).into_owned() } else { "{}".into() };
    Tokenizer::from_bytes(&read(file)?, &config, &file.display().to_string())
}

fn messages(line: &Value) -> Vec<Message> {
    serde_json::from_value(line["messages"].clone()).unwrap_or_default()
}

/// The messages without the answer at their end.
fn without_answer(messages: &[Message]) -> &[Message] {
    match messages.split_last() {
        Some((last, prompt)) if last.role == emoji_lab::data::Role::Assistant => prompt,
        _ => messages,
    }
}

/// Whether both texts of a line come out as written.
fn texts(line: &Value, render: &dyn Fn(&[Message], bool) -> Result<String>) -> Result<()> {
    let messages = messages(line);
    for (key, prompt) in [("text", false), ("prompt", true)] {
        let shown = if prompt { without_answer(&messages) } else { &messages };
        if Some(render(shown, prompt)?.as_str()) != line[key].as_str() {
            return Err(Error::model(key, "another text", "See text/chat.jsonl"));
        }
    }
    Ok(())
}
