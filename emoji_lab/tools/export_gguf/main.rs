//! Exports a model in every type, measures it, and writes what another program must say of the files.
//!
//! ```text
//! cargo run --release -p emoji_lab --example export_gguf -- MODEL OUT [--texts FILE.jsonl]
//!     [--types Q8_0,BF16] [--data DATA] [--split FILE] [--rows N]
//! ```
//!
//! `MODEL` is what `load_model` takes, `DATA` what `load_dataset` does (the embedded rows by default);
//! `FILE` names the held-out rows among them, as `{"test": [3, 14]}`, which are then the ones that are
//! asked. In the folder `OUT` come to lie one `.gguf` a type, with its `Modelfile`, and `expected.json`: the
//! token ids of the texts (`text` and `prompt` of each line of `--texts`, and odd ones that are made up
//! here), and for each file the greedy answers to the first `N` rows, computed by this crate from the values
//! that the file holds. `tests/node` compares them with llama.cpp, which rounds to eight bits what it multiplies
//! eight and four bits with; so the values of these files are also written as F32, for it to compute with them
//! as this crate does. With `--data` the table also has the answers' score.

mod expected;
#[path = "../questions.rs"]
mod questions;

use std::path::{Path, PathBuf};
use std::time::Instant;

use emoji_lab::display::{Align, Table, human_bytes};
use emoji_lab::evaluate::{EvaluationConfig, evaluate};
use emoji_lab::export::{GgufType, export_gguf};
use emoji_lab::model::{Gemma3, Rounding, load_model, open_gguf};
use emoji_lab::{Device, Result, say};
use questions::Options;
use serde_json::json;

/// Also the file of texts, and the types that are written.
fn options() -> Result<(Options, Option<PathBuf>, Vec<GgufType>)> {
    let (mut texts, mut types) = (None, GgufType::ALL.to_vec());
    let all = "there are --texts, --types, --data, --split and --rows";
    let options = Options::read(all, |option, value| {
        match option {
            "--texts" => texts = Some(PathBuf::from(value)),
            "--types" => types = value.split(',').map(str::parse).collect::<Result<_>>()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((options, texts, types))
}

fn main() -> Result<()> {
    let (options, texts, types) = options()?;
    let started = Instant::now();
    let model = load_model(&options.model, &Device::Cpu)?;
    say!("{} loaded in {:.1} s", options.model, started.elapsed().as_secs_f64());

    let texts = expected::texts(&model, texts.as_deref())?;
    let questions = options.questions()?;
    let prompts = questions::prompts(&model, &questions)?;
    let mut files = vec![];
    let mut table = Table::new("Exported")
        .column("Type", Align::Left)
        .column("Size", Align::Right)
        .column("Bytes", Align::Right)
        .column("Seconds", Align::Right);
    if options.data.is_some() {
        table = table.column("Score of the answers [95 %]", Align::Right);
    }
    for &kind in &types {
        let path = options.out.join(format!("model-{kind}.gguf"));
        let report = export_gguf(&model, &path, kind)?;
        say!("{report}");
        let seconds = format!("{:.2}", report.seconds);
        let mut row = vec![kind.to_string(), human_bytes(report.bytes), report.bytes.to_string(), seconds];
        if options.data.is_some() {
            let read = load_model(&path.display().to_string(), &Device::Cpu)?;
            row.push(evaluate(&read, &questions, &EvaluationConfig::default())?.score().to_string());
        }
        table = table.row(row);
        let exact = open_gguf(&path, Rounding::None)?;
        let gemma = Gemma3::new(&exact.config, &exact.weights, &Device::Cpu)?;
        drop(exact.weights);
        let answers = questions::answers(&gemma, &exact.config.eos_token_ids, &prompts)?;
        if matches!(kind, GgufType::Q8_0 | GgufType::Q4_0) {
            let unpacked = options.out.join(format!("model-{kind}-values.gguf"));
            export_gguf(&load_model(&path.display().to_string(), &Device::Cpu)?, &unpacked, GgufType::F32)?;
            let kind = format!("F32 of {kind}");
            files.push(json!({"kind": kind, "file": name(&unpacked), "answers": answers}));
        }
        files.push(json!({"kind": kind.as_str(), "file": name(&path), "answers": answers}));
    }
    let all = json!({"texts": texts, "prompts": prompts, "files": files});
    questions::write(&options.out.join("expected.json"), &all)?;
    say!("{table}");
    Ok(())
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
