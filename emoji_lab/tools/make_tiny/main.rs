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
mod train;
mod words;

use std::path::{Path, PathBuf};

use emoji_lab::data::{Conversation, Message};
use emoji_lab::files::write_bytes_atomic;
use emoji_lab::model::Gemma3;
use emoji_lab::task::{Task, is_every_character_emoji};

use rng::Rng;
use words::Words;

/// What can go wrong here only stops this program.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Decides the rows, the base's texts and the model's first weights.
const SEED: u64 = 42;

/// How the base is trained.
const PRETRAINING: train::Settings =
    train::Settings { epochs: 4, batch_size: 16, learning_rate: 4e-3, seed: SEED + 3 };

/// The learning rate of the notebook's run on the tiny model.
const NOTEBOOK_RATE: f64 = 2e-3;

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
    if what == "tokenizer" {
        return Ok(());
    }

    let codec = train::Codec::read(&tiny)?;
    let path = tiny.join("model.safetensors");
    let config = model::config(vocab_size);
    let base = if what == "rehearse" {
        model::read_weights(&path, &config)?
    } else {
        let first = model::initial(&config, &mut Rng::new(SEED + 2))?;
        model::write_weights(&path, &train::pretrain(&first, &codec, &chats, &PRETRAINING)?)?
    };
    rehearse(&base, &codec, &rows)
}

/// Fine-tunes the base as the notebook does, and prints what both say.
fn rehearse(base: &Gemma3, codec: &train::Codec, rows: &[rows::Row]) -> Result<()> {
    let rate = std::env::args().nth(2).map_or(Ok(NOTEBOOK_RATE), |rate| rate.parse())?;
    for text in ["hello", "what is a burger?", "I am eating pizza", "We are going to the beach"] {
        println!("base: {text} -> {}", codec.answer(base, &[Message::user(text)])?);
    }
    let clean = rows.iter().filter(|row| is_every_character_emoji(&row.emoji));
    let chats: Vec<Conversation> = clean.map(|row| row.conversation()).collect();
    let (test, train) = chats.split_at(chats.len() / 10);
    let tuned = train::rehearse(base, codec, (train, test), rate)?;
    for text in rows::ASKED {
        let prompt = Task::emoji().prompt(text);
        println!(
            "{text} -> base: {} -> tuned: {}",
            codec.answer(base, &prompt)?,
            codec.answer(&tuned, &prompt)?
        );
    }
    let mut same = 0;
    for (i, row) in test.iter().enumerate() {
        let answer = codec.answer(&tuned, &row.prompt())?;
        same += usize::from(answer == row.assistant_text());
        if i < 25 {
            println!("{} -> {} (tuned: {answer})", row.user_text(), row.assistant_text());
        }
    }
    println!("{same} of {} held-out rows answered with the very same emoji", test.len());
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

fn write_chats(chats: &[Conversation]) -> Result<()> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/make_tiny");
    std::fs::create_dir_all(&folder)?;
    let mut text = String::new();
    for chat in chats {
        text.push_str(&serde_json::to_string(chat)?);
        text.push('\n');
    }
    Ok(write_bytes_atomic(folder.join("chats.jsonl"), text.as_bytes())?)
}
