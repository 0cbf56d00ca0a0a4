//! Generation and training on the CPU beside other programs, in turn: llama.cpp on the same GGUF, transformers on
//! the same folder of bf16, TRL's trainer on the same batches.
//!
//!     emoji_lab/benches/cpu/run MODEL.gguf [RUNS [TOKENS [DATA]]]
//!
//! installs the peers and runs `cargo bench -p emoji_lab --bench cpu -- MODEL.gguf [RUNS [TOKENS [DATA]]]`. RUNS is
//! how often each way is measured (5), TOKENS how many tokens an answer has (64), DATA the rows that are trained on
//! (embedded). A peer that is not there is said to be skipped.
//! EMOJI_LAB_ORACLE_VENV is the virtual environment with transformers, RAYON_NUM_THREADS the number of threads for all.
//!
//! Every line of the table is measured in pairs, one of ours and one of the peer's after it; medians are shown, and
//! the median of the pairs' ratios, which what else the machine does falls on alike.

mod peer;
mod training;

use std::time::Instant;

use emoji_lab::display::Align;
use emoji_lab::model::Model;
use emoji_lab::prelude::*;

use peer::Peer;

/// Rows side by side.
const BATCH: usize = 32;
/// Tokens of a long prompt.
const LONG: usize = 500;
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn main() -> Result<()> {
    // `cargo bench` says `--bench` to it.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(gguf) = arguments.first() else {
        return Err(Error::setting("MODEL.gguf", "", "name a .gguf file of Gemma 3"));
    };
    let number = |name: &'static str, i: usize, default: usize| match arguments.get(i) {
        None => Ok(default),
        Some(given) => given.parse().map_err(|_| Error::setting(name, given, "give a whole number")),
    };
    let (runs, tokens) = (number("RUNS", 1, 5)?.max(1), number("TOKENS", 2, 64)?.max(2));
    let threads = rayon::current_num_threads().to_string();
    let mut shown = Table::new(format!("{gguf}, {threads} threads of {}", machine()));
    for column in ["", "unit", "ours", "peer", "", "ours is better by"] {
        shown = shown.column(column, Align::Right);
    }

    let data = arguments.get(3).map_or("embedded", String::as_str);
    let model = load_model(gguf, &Device::Cpu)?;
    let (short, long) = prompts(&model)?;
    let script = format!("{ROOT}/tests/node/times.mjs");
    if let Some(mut llama) = Peer::start("llama.cpp", "node", &[&script, gguf, &threads]) {
        let row = |what: &'static str, rates| Row { what, unit: "tokens/s", more_is_better: true, rates };
        let pairs = pairs(runs, || Ok((greedy(&model, &short, tokens)?, rate(&mut llama, &short, tokens)?)))?;
        shown = row("greedy, the GGUF", pairs).show(shown, llama.name);
        let first = |what: &'static str, rates| Row { what, unit: "s", more_is_better: false, rates };
        let pairs = pairs_of_firsts(runs, &model, &mut llama, &long)?;
        shown = first("500 tokens to the first", pairs).show(shown, llama.name);
        let pairs = pairs_of_loads(runs, gguf, &short, &mut llama)?;
        shown = first("loading to the first token", pairs).show(shown, llama.name);
    }
    let rates = pairs(runs, || Ok((batch(&model, &short, tokens)?, greedy(&model, &short, tokens)?)))?;
    let side_by_side = Row { what: "32 answers side by side", unit: "tokens/s", more_is_better: true, rates };
    shown = side_by_side.show(shown, "one stream");

    let folder = std::env::temp_dir().join(format!("emoji_lab-bench-cpu-{}", std::process::id()));
    let folder = folder.display().to_string();
    let with_folder = beside_transformers(&model, &folder, &short, (runs, tokens), &threads, shown)
        .and_then(|shown| training::beside_trl(&model, &folder, data, runs, &threads, shown));
    // It goes whether or not that went well.
    let removed = std::fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, "removing the folder", e));
    say!("{}", with_folder?);
    removed
}

/// The line for the model as a folder in bf16.
fn beside_transformers(
    model: &Model,
    folder: &str,
    prompt: &[u32],
    (runs, tokens): (usize, usize),
    threads: &str,
    shown: Table,
) -> Result<Table> {
    model.save_pretrained_as(folder, candle_core::DType::BF16)?;
    let bf16 = load_model(folder, &Device::Cpu)?;
    let venv = std::env::var("EMOJI_LAB_ORACLE_VENV").unwrap_or_default();
    let script = format!("{ROOT}/tests/python/times.py");
    let python = format!("{venv}/bin/python");
    let Some(mut peer) = Peer::start("transformers, bf16", &python, &[&script, folder, threads]) else {
        return Ok(shown);
    };
    let rates = pairs(runs, || Ok((greedy(&bf16, prompt, tokens)?, rate(&mut peer, prompt, tokens)?)))?;
    let row = Row { what: "greedy, a folder in bf16", unit: "tokens/s", more_is_better: true, rates };
    Ok(row.show(shown, peer.name))
}

/// The processor's name.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    name.map_or(std::env::consts::ARCH, str::trim).to_string()
}

/// A short prompt, and one of [`LONG`] tokens.
fn prompts(model: &Model) -> Result<(Vec<u32>, Vec<u32>)> {
    let text = "let's go to the beach and then tell me a long story about the sea";
    let short = model.tokenizer.encode(text)?;
    let long = short.iter().cycle().take(LONG).copied().collect();
    Ok((short, long))
}

type Pairs = Vec<(f64, f64)>;

/// Ours and the peer's, one after the other; a run before the first is for nothing.
fn pairs(runs: usize, mut pair: impl FnMut() -> Result<(f64, f64)>) -> Result<Pairs> {
    pair()?;
    (0..runs).map(|_| pair()).collect()
}

fn seconds(work: impl FnOnce() -> Result<Vec<u32>>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

/// Tokens a second behind the first.
fn greedy(model: &Model, prompt: &[u32], tokens: usize) -> Result<f64> {
    let first = seconds(|| model.gemma.greedy(prompt, 1))?;
    let all = seconds(|| model.gemma.greedy(prompt, tokens))?;
    Ok((tokens - 1) as f64 / (all - first))
}

/// The same of a peer.
fn rate(peer: &mut Peer, prompt: &[u32], tokens: usize) -> Result<f64> {
    let (first, all) = peer.generate(prompt, tokens)?;
    Ok((tokens - 1) as f64 / (all - first))
}

/// Tokens a second of [`BATCH`] answers to prompts that differ from the first token on.
fn batch(model: &Model, prompt: &[u32], tokens: usize) -> Result<f64> {
    let prompts: Vec<Vec<u32>> =
        (0..BATCH).map(|i| prompt.iter().cycle().skip(i).take(prompt.len()).copied().collect()).collect();
    let ask = |tokens: usize| {
        let config = GenerationConfig::greedy(tokens);
        let started = Instant::now();
        model.gemma.generate_batch(&prompts, &config, &[])?;
        Ok::<f64, Error>(started.elapsed().as_secs_f64())
    };
    let (first, all) = (ask(1)?, ask(tokens)?);
    Ok(((tokens - 1) * BATCH) as f64 / (all - first))
}

fn pairs_of_firsts(runs: usize, model: &Model, peer: &mut Peer, prompt: &[u32]) -> Result<Pairs> {
    pairs(runs, || Ok((seconds(|| model.gemma.greedy(prompt, 1))?, peer.generate(prompt, 1)?.0)))
}

fn pairs_of_loads(runs: usize, gguf: &str, prompt: &[u32], peer: &mut Peer) -> Result<Pairs> {
    let ours = || seconds(|| load_model(gguf, &Device::Cpu)?.gemma.greedy(prompt, 1));
    pairs(runs, || Ok((ours()?, peer.load()? + peer.generate(prompt, 1)?.0)))
}

/// A line of the table.
struct Row {
    what: &'static str,
    unit: &'static str,
    more_is_better: bool,
    rates: Pairs,
}

impl Row {
    fn show(self, table: Table, peer: &str) -> Table {
        let median = |value: &dyn Fn(&(f64, f64)) -> f64| {
            let mut values: Vec<f64> = self.rates.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let better = |(ours, theirs): &(f64, f64)| match self.more_is_better {
            true => ours / theirs,
            false => theirs / ours,
        };
        table.row([
            self.what.to_string(),
            self.unit.to_string(),
            format!("{:.3}", median(&|pair| pair.0)),
            format!("{:.3}", median(&|pair| pair.1)),
            peer.to_string(),
            format!("{:.2} ×", median(&better)),
        ])
    }
}
