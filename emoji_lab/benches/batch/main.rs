//! What a batch gains over one stream, on the CPU: the same prompts answered one after the other and
//! side by side.
//!
//!     cargo bench -p emoji_lab --bench batch -- [MODEL [DATA [ROWS [TOKENS]]]]
//!
//! MODEL and DATA are what `load_model` and `load_dataset` take (default: both embedded), ROWS how many
//! prompts (256), TOKENS the most an answer has (32).

use std::time::{Duration, Instant};

use emoji_lab::model::Model;
use emoji_lab::prelude::*;

/// Runs of each way; the fastest counts, for others may be using the machine.
const RUNS: usize = 3;

fn main() -> Result<()> {
    // `cargo bench` says `--bench` to it.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let given = |i: usize, default: &str| arguments.get(i).cloned().unwrap_or_else(|| default.to_string());
    let model = load_model(&given(0, "embedded"), &Device::Cpu)?;
    let data = load_dataset(&given(1, "embedded"), EmojiFilter::PurelyEmoji)?;
    let rows = number("ROWS", &given(2, "256"))?.min(data.len());
    let config = GenerationConfig::greedy(number("TOKENS", &given(3, "32"))?);
    let asked = data.examples.iter().take(rows).map(|row| data.task.prompt(&row.text));
    let prompts: Vec<Vec<u32>> =
        asked.map(|messages| model.tokenizer.encode_chat(&messages, true)).collect::<Result<_>>()?;
    let mut stop = model.stop_ids()?;
    stop.extend(model.tokenizer.end_of_turn());

    let mut table =
        Table::new(format!("{}: {rows} answers of at most {} tokens", model.origin, config.max_new_tokens));
    for column in ["", "seconds", "tokens/s", "gain", "answers of one stream"] {
        table = table.column(column, emoji_lab::display::Align::Right);
    }
    let (one, answers) = fastest(|| one_by_one(&model, &prompts, &config, &stop))?;
    let tokens: usize = answers.iter().map(Vec::len).sum();
    for size in [1, 4, 16, 64, rows] {
        let (time, batched) = match size {
            1 => (one, answers.clone()),
            _ => fastest(|| in_parts(&model, &prompts, size, &config, &stop))?,
        };
        let same = batched.iter().zip(&answers).filter(|(a, b)| a == b).count();
        table = table.row([
            if size == 1 { "one by one".to_string() } else { format!("calls of {size}") },
            format!("{:.3}", time.as_secs_f64()),
            format!("{:.0}", tokens as f64 / time.as_secs_f64()),
            format!("{:.2}", one.as_secs_f64() / time.as_secs_f64()),
            format!("{same} of {rows}"),
        ]);
    }
    say!("{table}");
    Ok(())
}

fn number(name: &'static str, given: &str) -> Result<usize> {
    given.parse().map_err(|_| Error::setting(name, given, "give a whole number"))
}

type Answers = Vec<Vec<u32>>;

fn fastest(answer: impl Fn() -> Result<Answers>) -> Result<(Duration, Answers)> {
    let (mut best, mut answers) = (Duration::MAX, vec![]);
    for _ in 0..RUNS {
        let started = Instant::now();
        answers = answer()?;
        best = best.min(started.elapsed());
    }
    Ok((best, answers))
}

fn one_by_one(
    model: &Model,
    prompts: &[Vec<u32>],
    config: &GenerationConfig,
    stop: &[u32],
) -> Result<Answers> {
    prompts.iter().map(|prompt| model.gemma.generate(prompt, config, stop)).collect()
}

/// `size` prompts a call.
fn in_parts(
    model: &Model,
    prompts: &[Vec<u32>],
    size: usize,
    config: &GenerationConfig,
    stop: &[u32],
) -> Result<Answers> {
    let parts = prompts.chunks(size).map(|part| model.gemma.generate_batch(part, config, stop));
    Ok(parts.collect::<Result<Vec<_>>>()?.concat())
}
