//! How fast several GPUs train beside one of them, with the floor of adding up their gradients.
//!
//! `cargo bench -p emoji_lab --features cuda --bench gpus -- [--devices cuda:all] [--gguf FILE]
//!  [--tokenizer DIR] [--data CSV] [--rounds 2] [--rows 500000] [--steps 200] [--only speed|large]`
//!
//! First rows a second on one GPU and on all, at batches of 4 and 16 rows on each, for Google's recipe
//! (adapters and the whole embedding) and the small one (adapters and the rows of tokens that occur). Then
//! a dataset of `--rows` rows, made of those of `--data` by numbering them, is tokenised, and trained on for
//! `--steps` steps. Without `--gguf` the model has Gemma 3 270M's sizes, random weights and the tokenizer in
//! `--tokenizer`: speed does not depend on the values.

mod large;
#[path = "../gpu/sizes.rs"]
mod sizes;
mod speed;

use std::process::ExitCode;

use emoji_lab::data::{Dataset, load_dataset};
use emoji_lab::lora::{LoraConfig, TokenIndices};
use emoji_lab::model::{Model, Tokenizer, load_model};
use emoji_lab::task::Task;
use emoji_lab::{Device, Result};

const USAGE: &str = "usage: cargo bench -p emoji_lab --features cuda --bench gpus -- [--devices cuda:all] \
                     [--gguf FILE] [--tokenizer DIR] [--data CSV] [--rounds 2] [--rows 500000] [--steps 200] \
                     [--only speed|large]";

/// What the command line says.
pub struct Options {
    devices: String,
    gguf: Option<String>,
    tokenizer: Option<String>,
    data: String,
    rounds: usize,
    rows: usize,
    steps: usize,
    only: Option<String>,
}

fn options() -> Option<Options> {
    let mut options = Options {
        devices: "cuda:all".into(),
        gguf: None,
        tokenizer: None,
        data: "embedded".into(),
        rounds: 2,
        rows: 500_000,
        steps: 200,
        only: None,
    };
    // `cargo bench` says `--bench` to it.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let value = args.next()?;
        match arg.as_str() {
            "--devices" => options.devices = value,
            "--gguf" => options.gguf = Some(value),
            "--tokenizer" => options.tokenizer = Some(value),
            "--data" => options.data = value,
            "--rounds" => options.rounds = value.parse().ok()?,
            "--rows" => options.rows = value.parse().ok()?,
            "--steps" => options.steps = value.parse().ok()?,
            "--only" => options.only = Some(value),
            _ => return None,
        }
    }
    Some(options)
}

impl Options {
    /// The model, on `device`.
    fn model(&self, device: &Device) -> Result<Model> {
        let Some(gguf) = &self.gguf else {
            let embedded = load_model("embedded", &Device::Cpu)?;
            let tokenizer = match &self.tokenizer {
                Some(folder) => Tokenizer::from_dir(folder)?,
                None => embedded.tokenizer,
            };
            let (generation_config, origin) = (embedded.generation_config, "random weights".into());
            return Ok(Model { gemma: sizes::model("270m", device)?, tokenizer, generation_config, origin });
        };
        load_model(gguf, device)
    }

    fn dataset(&self) -> Result<Dataset> {
        load_dataset(&self.data, Task::emoji())
    }
}

/// The two recipes, by name.
pub fn recipes() -> [(&'static str, LoraConfig); 2] {
    let small = LoraConfig {
        modules_to_save: vec![],
        trainable_token_indices: TokenIndices::Occurring,
        ..LoraConfig::default()
    };
    [("Google's recipe", LoraConfig::default()), ("small recipe", small)]
}

fn run(options: &Options) -> Result<()> {
    let all = Device::by_name(&options.devices)?;
    println!("{all}, computing in {}", all.dtype().as_str());
    if options.only.as_deref() != Some("large") {
        speed::bench(options, &all)?;
    }
    if options.only.as_deref() != Some("speed") {
        large::bench(options, &all)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
