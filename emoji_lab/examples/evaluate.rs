//! Measures a model on the rows of a dataset that are held out, beside a look-up in the others.
//!
//!     cargo run --release -p emoji_lab --example evaluate -- [MODEL [DATA [SPLIT]]]
//!
//! MODEL and DATA are what `load_model` and `load_dataset` take (default: both embedded). SPLIT is a
//! file with the numbers of the held-out rows, from 0, as `{"test": [3, 14]}`; without one a tenth is
//! held out, with seed 42.

use emoji_lab::data::{held_out_rows, split_at_rows};
use emoji_lab::prelude::*;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |i: usize| arguments.get(i).map_or("embedded", String::as_str);
    let chat = format_chat(&load_dataset(given(1), Task::emoji())?);
    let splits = match arguments.get(2) {
        None => train_test_split(&chat, 0.1, 42)?,
        Some(path) => split_at_rows(&chat, &held_out_rows(path)?)?,
    };
    let config = EvaluationConfig::default();
    let nearest = look_up(&splits.train, &splits.test, &config)?;
    let model = load_model(given(0), &best_device()?)?;
    let base = evaluate(&model, &splits.test, &config)?;
    say!("{}\n{base}\n", compare_evaluations(&[("look-up", &nearest), (&model.origin, &base)])?);
    say!("{}", base.difference(&nearest)?);
    Ok(())
}
