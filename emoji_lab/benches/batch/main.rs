//! What a batch gains over one stream: the same prompts answered one after the other and side by side.
//!
//!     cargo bench -p emoji_lab --bench batch -- [--device cpu|cuda] [MODEL [DATA [ROWS [TOKENS [SIZES]]]]]
//!
//! `--device cuda` (with `--features cuda`) asks the first GPU, in bf16 where it has that.
//! MODEL and DATA are what `load_model` and `load_dataset` take (default: both embedded), ROWS how many
//! prompts (256), TOKENS the most an answer has (32), SIZES how many prompts a call has (1,4,16,64,256);
//! the first is what the others are compared with. SIZES of 1 alone is one stream by itself, for a
//! comparison of two builds.
//!
//! Each way is taken in turn, several times over, so that what else the machine does falls on all alike;
//! medians are shown. Beside the time stands the processors' (on Linux): it hardly depends on what else
//! runs.

use std::time::Instant;

use emoji_lab::display::Align;
use emoji_lab::model::Model;
use emoji_lab::prelude::*;

/// Runs of each way.
const RUNS: usize = 5;

fn main() -> Result<()> {
    // `cargo bench` says `--bench` to it.
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let device = device(&mut arguments)?;
    let given = |i: usize, default: &str| arguments.get(i).cloned().unwrap_or_else(|| default.to_string());
    let model = load_model(&given(0, "embedded"), &device)?;
    let data = load_dataset(&given(1, "embedded"), EmojiFilter::PurelyEmoji)?;
    let rows = number("ROWS", &given(2, "256"))?.min(data.len());
    let config = GenerationConfig::greedy(number("TOKENS", &given(3, "32"))?);
    let sizes: Vec<usize> =
        given(4, "1,4,16,64,256").split(',').map(|size| number("SIZES", size)).collect::<Result<_>>()?;
    let asked = data.examples.iter().take(rows).map(|row| data.task.prompt(&row.text));
    let prompts: Vec<Vec<u32>> =
        asked.map(|messages| model.tokenizer.encode_chat(&messages, true)).collect::<Result<_>>()?;
    let mut stop = model.stop_ids()?;
    stop.extend(model.tokenizer.end_of_turn());

    let ways = measured(&sizes, |size| ask(&model, &prompts, size, &config, &stop))?;
    let mut table =
        Table::new(format!("{}: {rows} answers of at most {} tokens", model.origin, config.max_new_tokens));
    for column in ["", "seconds", "tokens/s", "gain", "CPU seconds", "gain", "same answers"] {
        table = table.column(column, Align::Right);
    }
    let first = &ways[0];
    let tokens: usize = first.answers.iter().map(Vec::len).sum();
    let gain = |of: fn(&Run) -> f64, way: &Way| {
        let ratios = first.runs.iter().zip(&way.runs).map(|(first, run)| of(first) / of(run));
        format!("{:.2}", median(ratios.collect()))
    };
    for (size, way) in sizes.iter().zip(&ways) {
        let same = way.answers.iter().zip(&first.answers).filter(|(a, b)| a == b).count();
        let seconds = median(way.runs.iter().map(|run| run.seconds).collect());
        let cpu = median(way.runs.iter().map(|run| run.cpu).collect());
        table = table.row([
            if *size == 1 { "one by one".to_string() } else { format!("calls of {size}") },
            format!("{seconds:.3}"),
            format!("{:.0}", tokens as f64 / seconds),
            gain(|run| run.seconds, way),
            format!("{cpu:.2}"),
            gain(|run| run.cpu, way),
            format!("{same} of {rows}"),
        ]);
    }
    say!("{table}");
    Ok(())
}

/// The device that `--device` names, which goes from the arguments.
fn device(arguments: &mut Vec<String>) -> Result<Device> {
    let Some(at) = arguments.iter().position(|arg| arg == "--device") else { return Ok(Device::Cpu) };
    let named: Vec<String> = arguments.drain(at..(at + 2).min(arguments.len())).collect();
    match named.get(1).map(String::as_str) {
        Some("cpu") => Ok(Device::Cpu),
        Some("cuda") => Device::cuda(0),
        other => Err(Error::setting("--device", other.unwrap_or_default(), "give cpu or cuda")),
    }
}

fn number(name: &'static str, given: &str) -> Result<usize> {
    given.parse().map_err(|_| Error::setting(name, given, "give a whole number"))
}

type Answers = Vec<Vec<u32>>;

/// What one run took.
struct Run {
    seconds: f64,
    cpu: f64,
}

/// A way to ask: its runs, and what it answers.
#[derive(Default)]
struct Way {
    runs: Vec<Run>,
    answers: Answers,
}

fn measured(sizes: &[usize], ask: impl Fn(usize) -> Result<Answers>) -> Result<Vec<Way>> {
    let mut ways: Vec<Way> = sizes.iter().map(|_| Way::default()).collect();
    for _ in 0..RUNS {
        for (size, way) in sizes.iter().zip(&mut ways) {
            let (started, cpu) = (Instant::now(), cpu_seconds());
            way.answers = ask(*size)?;
            way.runs.push(Run { seconds: started.elapsed().as_secs_f64(), cpu: cpu_seconds() - cpu });
        }
    }
    Ok(ways)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The time that the processors have worked for this process, in steps of 10 ms; NaN where it is not known.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may have any characters: fields 14 and 15 of the whole are ticks.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / 100.0
}

/// All prompts, `size` a call.
fn ask(
    model: &Model,
    prompts: &[Vec<u32>],
    size: usize,
    config: &GenerationConfig,
    stop: &[u32],
) -> Result<Answers> {
    match size {
        1 => prompts.iter().map(|prompt| model.gemma.generate(prompt, config, stop)).collect(),
        _ => {
            let parts =
                prompts.chunks(size.max(1)).map(|part| model.gemma.generate_batch(part, config, stop));
            Ok(parts.collect::<Result<Vec<_>>>()?.concat())
        }
    }
}
