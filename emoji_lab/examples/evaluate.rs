//! Measures a model on the rows of a dataset that are held out, beside a look-up in the others.
//!
//!     cargo run --release -p emoji_lab --example evaluate -- [MODEL [DATA [SPLIT]]]
//!
//! MODEL and DATA are what `load_model` and `load_dataset` take (default: both embedded). SPLIT is a
//! file with the numbers of the held-out rows, from 0, as `{"test": [3, 14]}`; without one a tenth is
//! held out, with seed 42.

use emoji_lab::data::split_at_rows;
use emoji_lab::prelude::*;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |i: usize| arguments.get(i).map_or("embedded", String::as_str);
    let chat = format_chat(&load_dataset(given(1), Task::emoji())?);
    let splits = match arguments.get(2) {
        None => train_test_split(&chat, 0.1, 42)?,
        Some(path) => split_at_rows(&chat, &held_out(path)?)?,
    };
    let config = EvaluationConfig::default();
    let nearest = look_up(&splits.train, &splits.test, &config)?;
    let model = load_model(given(0), &best_device()?)?;
    let base = evaluate(&model, &splits.test, &config)?;
    say!("{}\n{base}\n", compare_evaluations(&[("look-up", &nearest), (&model.origin, &base)])?);
    say!("{}", base.difference(&nearest)?);
    Ok(())
}

fn held_out(path: &str) -> Result<Vec<usize>> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, "reading the split", error))?;
    let rows = serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|split| split["test"].as_array()?.iter().map(|row| Some(row.as_u64()? as usize)).collect());
    rows.ok_or_else(|| Error::dataset(path, "is no split", "Give a file such as {\"test\": [3, 14]}"))
}
