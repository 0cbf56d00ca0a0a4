//! What training costs on the CPU, by what is trained: a step, memory, a checkpoint.
//!
//! ```text
//! cargo bench -p emoji_lab --bench train -- [--model MODEL] [--data DATA] [--steps 12] [--dtype f32]
//! cargo bench -p emoji_lab --bench train -- --ops
//! ```
//!
//! MODEL and DATA are what `load_model` and `load_dataset` take; each is the embedded one by default. `--dtype both`
//! takes each recipe in f32 and in bf16, where the processor has that.
//! Steps are those of the notebook's settings (batches of 4). Every recipe has a process of its own, for its
//! memory is the most that the process ever had (Linux alone says it); steps are the median of all but the
//! first. With `--ops`: where the time of a step goes, op by op.

mod ops;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use emoji_lab::prelude::*;

/// What the processes are told apart by.
const RECIPES: [&str; 3] = [
    "Google's: adapters and the whole embedding",
    "exact base, adapters and the rows that occur",
    "exact base, adapters alone",
];

struct Options {
    model: String,
    data: String,
    steps: usize,
    /// f32, bf16 or both.
    dtype: String,
    /// The recipe that this process is for.
    recipe: Option<usize>,
    /// Whether single ops are measured instead.
    ops: bool,
}

impl Options {
    fn from_arguments() -> Result<Self> {
        let mut options = Self {
            model: "embedded".into(),
            data: "embedded".into(),
            steps: 12,
            dtype: "f32".into(),
            recipe: None,
            ops: false,
        };
        // `cargo bench` says `--bench` to it.
        let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
        while let Some(name) = arguments.next() {
            if name == "--ops" {
                options.ops = true;
                continue;
            }
            let value = arguments.next().unwrap_or_default();
            let number =
                || value.parse().map_err(|_| Error::setting("option", &value, "give a whole number"));
            match name.as_str() {
                "--model" => options.model = value,
                "--data" => options.data = value,
                "--dtype" => options.dtype = value,
                "--steps" => options.steps = number()?,
                "--recipe" => options.recipe = Some(number()?),
                _ => {
                    return Err(Error::setting(
                        "option",
                        name,
                        "there are --model, --data, --steps, --dtype and --ops",
                    ));
                }
            }
        }
        if !["f32", "bf16", "both"].contains(&options.dtype.as_str()) {
            return Err(Error::setting("--dtype", options.dtype, "give f32, bf16 or both"));
        }
        if options.steps < 2 {
            return Err(Error::setting(
                "--steps",
                options.steps,
                "take at least 2: the first does not count",
            ));
        }
        Ok(options)
    }
}

fn main() -> Result<()> {
    let options = Options::from_arguments()?;
    if options.ops {
        say!("{}", ops::table()?);
        return Ok(());
    }
    match options.recipe {
        Some(recipe) => measure(&options, recipe),
        None => all(&options),
    }
}

/// Each recipe in a process of its own, and the table of what they say.
fn all(options: &Options) -> Result<()> {
    let title = format!("{}: a training step on the CPU, batches of 4", options.model);
    let mut table = Table::new(title).column("What is trained", Align::Left).column("in", Align::Left);
    for name in ["numbers", "step", "of the first", "memory", "checkpoint"] {
        table = table.column(name, Align::Right);
    }
    let mut first = None;
    let dtypes: &[&str] = if options.dtype == "both" { &["f32", "bf16"] } else { &[&options.dtype] };
    for ((number, name), dtype) in
        RECIPES.iter().enumerate().flat_map(|recipe| dtypes.iter().map(move |dtype| (recipe, dtype)))
    {
        let program =
            std::env::current_exe().map_err(|e| Error::io(Path::new("this program"), "finding", e))?;
        let run = Command::new(&program)
            .args(["--model", &options.model, "--data", &options.data])
            .args(["--steps", &options.steps.to_string(), "--recipe", &number.to_string(), "--dtype", dtype])
            .output()
            .map_err(|e| Error::io(&program, "starting it once more", e))?;
        let said = String::from_utf8_lossy(&run.stdout).into_owned();
        let values: Vec<f64> = said
            .lines()
            .last()
            .unwrap_or_default()
            .split(' ')
            .filter_map(|value| value.parse().ok())
            .collect();
        let [numbers, step, memory, checkpoint] = values[..] else {
            let problem = format!("{name}: the process said {said}{}", String::from_utf8_lossy(&run.stderr));
            return Err(Error::training(problem, "Run it alone, with --recipe"));
        };
        let against = step / *first.get_or_insert(step);
        let bytes = |bytes: f64| match bytes >= 1e9 {
            true => format!("{:.2} GB", bytes / 1e9),
            false => format!("{:.1} MB", bytes / 1e6),
        };
        table = table.row([
            name.to_string(),
            dtype.to_string(),
            format!("{:.2} M", numbers / 1e6),
            format!("{step:.3} s"),
            format!("{against:.2}"),
            bytes(memory),
            bytes(checkpoint),
        ]);
    }
    say!("{table}");
    Ok(())
}

fn measure(options: &Options, recipe: usize) -> Result<()> {
    let alone = LoraConfig { modules_to_save: vec![], ..LoraConfig::default() };
    let rows = LoraConfig { trainable_token_indices: TokenIndices::Occurring, ..alone.clone() };
    let (quant, lora) = match recipe {
        0 => (QuantConfig::default(), LoraConfig::default()),
        1 => (QuantConfig::none(), rows),
        _ => (QuantConfig::none(), alone),
    };
    let out = std::env::temp_dir().join(format!("emoji_lab-train-{}", std::process::id()));
    let args = SftConfig {
        output_dir: out.clone(),
        max_steps: Some(1),
        eval_strategy: Strategy::No,
        save_strategy: Strategy::Steps(1),
        report_to_tensorboard: false,
        progress_lines: 0,
        ..SftConfig::default()
    };
    let dtype = if options.dtype == "bf16" { DType::BF16 } else { DType::F32 };
    let base = load_model(&options.model, &Device::Cpu.with_dtype(dtype)?)?;
    let chat = format_chat(&load_dataset(&options.data, Task::emoji())?);
    let mut trainer = SftTrainer::new(&base, &chat, None, &quant, Some(&lora), &args)?;
    let trainable = trainer.finetune().trainable();
    let mut seconds = vec![];
    for batch in trainer.epoch_batches(0).into_iter().take(options.steps) {
        let started = Instant::now();
        trainer.finetune_mut().step(&[batch], args.learning_rate)?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    let memory = peak_memory();
    seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    let step = seconds[seconds.len() / 2];
    // A run of one step, for its checkpoint.
    SftTrainer::new(&base, &chat, None, &quant, Some(&lora), &args)?.train()?;
    let checkpoint = folder_bytes(&out.join("checkpoint-1"))?;
    // A folder of this process, in the temporary one.
    let _ = std::fs::remove_dir_all(&out);
    println!("{trainable} {step} {memory} {checkpoint}");
    Ok(())
}

/// The most memory that this process ever had, in bytes; NaN where the system does not say.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.map_or(f64::NAN, |kilobytes| kilobytes * 1024.0)
}

fn folder_bytes(folder: &Path) -> Result<f64> {
    let failed = |e| Error::io(folder, "reading the checkpoint", e);
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        bytes += entry.and_then(|entry| entry.metadata()).map_err(failed)?.len();
    }
    Ok(bytes as f64)
}
