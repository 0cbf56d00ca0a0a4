//! Judges answers that another program gave.
//!
//! ```text
//! cargo run --release -p emoji_lab --example judge_answers -- MODEL ANSWERS.json [--data DATA] [--split FILE]
//!     [--rows N]
//! ```
//!
//! `ANSWERS.json` is `{"name": [[token ids of the first row's answer], …], …}`; `MODEL`'s tokenizer turns them into
//! texts. The rows are those of the example `export_onnx` with the same options.

#[path = "../questions.rs"]
#[allow(dead_code, reason = "the exports beside this tool use the rest")]
mod questions;

use std::collections::BTreeMap;

use emoji_lab::evaluate::{EvaluationConfig, compare_evaluations, judge_answers};
use emoji_lab::model::load_model;
use emoji_lab::{Device, Error, Result, say};
use questions::Options;

fn main() -> Result<()> {
    let options = Options::read("there are --data, --split and --rows", |_, _| Ok(false))?;
    let model = load_model(&options.model, &Device::Cpu)?;
    let rows = options.questions()?;
    let path = &options.out;
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "reading the answers", e))?;
    let all: BTreeMap<String, Vec<Vec<u32>>> = serde_json::from_str(&text)
        .map_err(|e| Error::dataset(path.display(), e, "write a list of token ids for each row"))?;
    let mut found = vec![];
    for (name, answers) in all {
        let text = |ids: &Vec<u32>| Ok(model.tokenizer.decode(ids, true)?.trim().to_string());
        let texts = answers.iter().map(text).collect::<Result<Vec<_>>>()?;
        let judged = judge_answers(&name, &rows, &texts, &EvaluationConfig::default())?;
        found.push((name, judged));
    }
    say!("{}", compare_evaluations(&found)?);
    Ok(())
}
