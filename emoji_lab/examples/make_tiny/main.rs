//! Makes everything in `assets/` that is not written by hand: `rows.csv`, the tokenizer and the
//! tiny Gemma 3 that the notebook runs on by default. `assets/README.md` tells what and why.
//!
//! ```text
//! cargo run --release -p emoji_lab --example make_tiny            all of it
//! cargo run --release -p emoji_lab --example make_tiny -- data    rows.csv, and the base's texts
//! cargo run --release -p emoji_lab --example make_tiny -- tokenizer   and the tokenizer and config
//! ```
//!
//! The base's texts are written to `target/make_tiny/chats.jsonl` for whoever wants to read them.

mod chats;
mod model;
mod patterns;
mod rng;
mod rows;
mod tokenizer;
mod words;

use std::path::{Path, PathBuf};

use emoji_lab::files::write_bytes_atomic;

use rng::Rng;
use words::Words;

/// What can go wrong here only stops this program.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Decides the rows, the base's texts and the model's first weights.
const SEED: u64 = 42;

fn main() -> Result<()> {
    let what = std::env::args().nth(1).unwrap_or_else(|| "all".into());
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let tiny = assets.join("tiny");
    let read = |name: &str| {
        let path = assets.join("text").join(name);
        std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
    };

    let words = Words::read(&assets.join("text/words.csv"))?;
    let rows = rows::make(&read("rows.txt")?, &words, &mut Rng::new(SEED))?;
    let sources = chats::Sources {
        posts: read("posts.txt")?,
        chat: read("chat.txt")?,
        instructions: read("instructions.txt")?,
    };
    let chats = chats::make(&sources, &words, &rows, &mut Rng::new(SEED + 1))?;
    write_rows(&assets.join("rows.csv"), &rows)?;
    write_chats(&chats)?;
    println!("{} words, {} rows, {} chats", words.all.len(), rows.len(), chats.len());
    if what == "data" {
        return Ok(());
    }
    std::fs::create_dir_all(&tiny)?;
    let vocab_size = tokenizer::make(&tiny, &words, &rows, &chats)?;
    model::write_config(&tiny, vocab_size)?;
    println!("{vocab_size} tokens");
    Ok(())
}

fn write_rows(path: &Path, rows: &[rows::Row]) -> Result<()> {
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(["text", "emoji"])?;
    for row in rows {
        out.write_record([&row.text, &row.emoji])?;
    }
    Ok(write_bytes_atomic(path, &out.into_inner()?)?)
}

fn write_chats(chats: &[emoji_lab::data::Conversation]) -> Result<()> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/make_tiny");
    std::fs::create_dir_all(&folder)?;
    let mut text = String::new();
    for chat in chats {
        text.push_str(&serde_json::to_string(chat)?);
        text.push('\n');
    }
    Ok(write_bytes_atomic(&folder.join("chats.jsonl"), text.as_bytes())?)
}
