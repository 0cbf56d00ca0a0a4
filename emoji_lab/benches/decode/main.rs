//! What a constraint, several draws and suggestions cost on the CPU.
//!
//!     cargo bench -p emoji_lab --bench decode -- [MODEL [TOKENS]]
//!
//! MODEL is what `load_model` takes (default: embedded), TOKENS how many tokens an answer has where all
//! have the same number (32).

use std::time::{Duration, Instant};

use emoji_lab::display::Align;
use emoji_lab::model::{Model, generate_ids};
use emoji_lab::prelude::*;

/// Runs of each way, taken in turn; the fastest counts, for others may be using the machine.
const RUNS: usize = 5;
const TEXT: &str = "let's go to the beach with my dog";

fn main() -> Result<()> {
    // `cargo bench` says `--bench` to it.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let given = |i: usize, default: &str| arguments.get(i).cloned().unwrap_or_else(|| default.to_string());
    let model = load_model(&given(0, "embedded"), &Device::Cpu)?;
    let given = given(1, "32");
    let tokens: usize = given.parse().map_err(|_| Error::setting("TOKENS", &given, "give a whole number"))?;
    let task = Task::emoji();
    say!("{}", tokens_of_one_stream(&model, &task, tokens)?);
    say!("{}", whole_answers(&model, &task)?);
    Ok(())
}

fn table(title: String, columns: &[&str]) -> Table {
    columns.iter().fold(Table::new(title), |table, column| table.column(*column, Align::Right))
}

fn held(to: Constraint, config: &GenerationConfig) -> GenerationConfig {
    GenerationConfig { constraint: Some(to), ..config.clone() }
}

/// What is timed.
type Way<'a> = Box<dyn Fn() -> Result<()> + 'a>;

/// The fastest of some runs of each way, taken in turn.
fn fastest(ways: &[Way<'_>]) -> Result<Vec<Duration>> {
    let mut best = vec![Duration::MAX; ways.len()];
    for _ in 0..RUNS {
        for (best, way) in best.iter_mut().zip(ways) {
            let started = Instant::now();
            way()?;
            *best = (*best).min(started.elapsed());
        }
    }
    Ok(best)
}

/// Nothing stops these answers, so that all are of the same length.
fn tokens_of_one_stream(model: &Model, task: &Task, tokens: usize) -> Result<Table> {
    let mut model = model.clone();
    model.generation_config["eos_token_id"] = serde_json::json!([]);
    let prompt = model.tokenizer.encode_chat(&task.prompt(TEXT), true)?;
    let often = Constraint { max_words: tokens, max_times: tokens, ..Constraint::emoji() };
    let once = Constraint { max_words: tokens, ..Constraint::emoji() };
    let greedy = GenerationConfig::greedy(tokens);
    let draw = GenerationConfig { do_sample: true, ..greedy.clone() };
    let ways = [
        ("greedy", greedy.clone()),
        ("greedy, held to emoji", held(often, &greedy)),
        ("greedy, held to emoji, none twice", held(once.clone(), &greedy)),
        ("drawn", draw.clone()),
        ("drawn, held to emoji, none twice", held(once, &draw)),
    ];
    let ask = |config: &GenerationConfig, count: usize| -> Result<()> {
        let config = GenerationConfig { max_new_tokens: count, ..config.clone() };
        let answer = generate_ids(&model, &prompt, &config)?;
        assert_eq!(answer.len(), count);
        Ok(())
    };
    // The prompt's pass gives the first token: what the others take is the difference.
    let runs: Vec<Way<'_>> = ways
        .iter()
        .flat_map(|(_, config)| [1, tokens].map(|count| (config, count)))
        .map(|(config, count)| Box::new(move || ask(config, count)) as Way<'_>)
        .collect();
    let times = fastest(&runs)?;
    let per_token: Vec<f64> = times
        .chunks(2)
        .map(|pair| (pair[1].as_secs_f64() - pair[0].as_secs_f64()) * 1e3 / (tokens - 1).max(1) as f64)
        .collect();
    let mut shown = table(format!("{}: a token of one stream", model.origin), &["", "ms", "against free"]);
    for (i, (name, _)) in ways.iter().enumerate() {
        let free = per_token[if i < 3 { 0 } else { 3 }];
        shown = shown.row([
            name.to_string(),
            format!("{:.2}", per_token[i]),
            format!("{:.2}", per_token[i] / free),
        ]);
    }
    Ok(shown)
}

fn whole_answers(model: &Model, task: &Task) -> Result<Table> {
    let free = GenerationConfig::greedy(32);
    let config = held(Constraint::emoji(), &free);
    let prompt = task.prompt(TEXT);
    let (free, config, prompt) = (&free, &config, &prompt);
    let ways: [(&str, Way<'_>); 5] = [
        ("generate, free", Box::new(move || generate(model, prompt, free).map(drop))),
        ("generate", Box::new(move || generate(model, prompt, config).map(drop))),
        ("consensus of 16", Box::new(move || consensus(model, task, TEXT, 16, config).map(drop))),
        ("suggest 3", Box::new(move || suggest(model, task, TEXT, 3).map(drop))),
        ("the vocabulary, once a tokenizer", Box::new(move || fresh(model, prompt, config))),
    ];
    let (names, runs): (Vec<_>, Vec<_>) = ways.into_iter().unzip();
    let times = fastest(&runs)?;
    let mut shown = table(format!("{}: a text, held to emoji", model.origin), &["", "ms"]);
    for (name, time) in names.iter().zip(times) {
        shown = shown.row([name.to_string(), format!("{:.1}", time.as_secs_f64() * 1e3)]);
    }
    Ok(shown)
}

/// An answer of one token with a tokenizer that has not been held to anything.
fn fresh(model: &Model, prompt: &[Message], config: &GenerationConfig) -> Result<()> {
    let tokenizer = model.tokenizer.clone().for_model(model.gemma.config().vocab_size)?;
    let model = Model { tokenizer, ..model.clone() };
    generate(&model, prompt, &GenerationConfig { max_new_tokens: 1, ..config.clone() }).map(drop)
}
