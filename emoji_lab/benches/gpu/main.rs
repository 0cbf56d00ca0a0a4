//! How fast training and generation are on a GPU, with the floor beside it.
//!
//! ```text
//! cargo bench -p emoji_lab --features cuda --bench gpu -- [--size 270m|1b|4b|12b] [--model MODEL]
//!     [--tokenizer DIR] [--data CSV] [--split JSON] [--trains google|rows|adapters|whole] [--rank 16] [--rows 4]
//!     [--accumulated 1] [--moments f32|bf16] [--nf4 yes|no] [--checkpoints yes|no] [--batches 569]
//!     [--dtype bf16|f32] [--device cuda:0] [--rounds 3] [--only steps|generation] [--out DIR]
//! ```
//!
//! Without `--model` it is one of Gemma 3's sizes with random weights, and rows are random tokens of the
//! real rows' lengths: speed does not depend on the values. With `--model` (what `load_model` takes) and
//! `--data` the whole lesson is timed, twice, and a table ends it: measured, asked for, and the floor. With `--data`
//! alone so it is for random weights, and the tokenizer in `--tokenizer`. A step's time is taken by device events,
//! and is the median of all steps.

mod generation;
mod lesson;
mod random;
mod recipe;
mod sizes;
mod steps;
mod table;

use std::process::ExitCode;

use emoji_lab::model::{Model, Tokenizer, load_model};
use emoji_lab::{DType, Device, Error, Result};
use recipe::Recipe;

/// What the command line says.
pub struct Options {
    size: String,
    model: Option<String>,
    tokenizer: Option<String>,
    data: Option<String>,
    split: Option<String>,
    out: String,
    rounds: usize,
    batches: usize,
    checkpoints: bool,
    only: Option<String>,
    device: Device,
    recipe: Recipe,
}

fn options() -> Result<Options> {
    let recipe = Recipe {
        trains: "google".into(),
        rank: 16,
        rows: 4,
        accumulated: 1,
        moments: DType::F32,
        four_bit: true,
    };
    let mut o = Options {
        size: "270m".into(),
        model: None,
        tokenizer: None,
        data: None,
        split: None,
        out: "bench-gpu-run".into(),
        rounds: 3,
        batches: 569,
        checkpoints: true,
        only: None,
        device: Device::Cpu,
        recipe,
    };
    let (mut device, mut dtype) = ("cuda".to_string(), None);
    // `cargo bench` says `--bench` to it.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let value = args.next().unwrap_or_default();
        let wrong = |help: &str| Error::setting("option", format!("{arg} {value}"), help);
        let number = || value.parse().map_err(|_| wrong("give a whole number"));
        let a_type = || value.parse::<DType>().map_err(|_| wrong("give f32 or bf16"));
        match arg.as_str() {
            "--size" => o.size = value,
            "--model" => o.model = Some(value),
            "--tokenizer" => o.tokenizer = Some(value),
            "--data" => o.data = Some(value),
            "--split" => o.split = Some(value),
            "--device" => device = value,
            "--out" => o.out = value,
            "--only" => o.only = Some(value),
            "--trains" => o.recipe.trains = value,
            "--nf4" => o.recipe.four_bit = value == "yes",
            "--checkpoints" => o.checkpoints = value == "yes",
            "--rounds" => o.rounds = number()?,
            "--batches" => o.batches = number()?,
            "--rank" => o.recipe.rank = number()?,
            "--rows" => o.recipe.rows = number()?,
            "--accumulated" => o.recipe.accumulated = number()?,
            "--moments" => o.recipe.moments = a_type()?,
            "--dtype" => dtype = Some(a_type()?),
            _ => return Err(wrong("the top of benches/gpu/main.rs names them")),
        }
    }
    o.device = Device::by_name(&device)?;
    if let Some(dtype) = dtype {
        o.device = o.device.with_dtype(dtype)?;
    }
    Ok(o)
}

impl Options {
    /// The model to time, with its tokenizer.
    fn load(&self) -> Result<Model> {
        if let Some(model) = &self.model {
            return load_model(model, &self.device);
        }
        let embedded = load_model("embedded", &Device::Cpu)?;
        let tokenizer = match &self.tokenizer {
            Some(folder) => Tokenizer::from_dir(folder)?,
            None => embedded.tokenizer,
        };
        let (generation_config, origin) = (embedded.generation_config, "random weights".into());
        Ok(Model { gemma: sizes::model(&self.size, &self.device)?, tokenizer, generation_config, origin })
    }
}

fn run(options: &Options) -> Result<()> {
    println!("{}, computing in {}", options.device, options.device.dtype().as_str());
    if options.model.is_some() || options.data.is_some() {
        return lesson::bench(options);
    }
    let model = sizes::model(&options.size, &options.device)?;
    if options.only.as_deref() != Some("steps") {
        generation::bench(&model)?;
        generation::side_by_side(&model)?;
    }
    model.release_device();
    if options.only.as_deref() == Some("generation") {
        return Ok(());
    }
    let vocab = model.config().vocab_size as u64;
    let batches = random::batches(options.batches, options.recipe.rows, vocab);
    steps::bench(&model, &batches, options.rounds, &options.recipe).map(|_| ())
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
