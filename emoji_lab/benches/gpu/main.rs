//! How fast training and generation are on a GPU, with the floor beside it.
//!
//! `cargo bench -p emoji_lab --features cuda --bench gpu -- [--gguf FILE] [--data CSV]
//!  [--split JSON] [--dtype bf16|f32] [--moments f32|bf16] [--device cuda:0]
//!  [--rounds 3] [--only steps|generation] [--out DIR]`
//!
//! Without `--gguf` the model has Gemma 3 270M's sizes and random weights, and rows are random
//! tokens of the real rows' lengths: speed does not depend on the values. With `--gguf` and `--data`
//! the whole lesson is timed, twice, and a table ends it: measured, asked for, and the floor. A
//! step's time is taken by device events, and is the median of all steps.

mod generation;
mod lesson;
mod random;
mod sizes;
mod steps;
mod table;

use std::process::ExitCode;

use emoji_lab::ops::adamw::AdamW;
use emoji_lab::{DType, Device, Result};

const USAGE: &str = "usage: cargo bench -p emoji_lab --features cuda --bench gpu -- [--gguf FILE [--data CSV] [--split JSON]] [--dtype bf16|f32] [--moments f32|bf16] [--device cuda:0] [--rounds 3] [--only steps|generation] [--out DIR]";

/// What the command line says.
pub struct Options {
    gguf: Option<String>,
    data: Option<String>,
    split: Option<String>,
    out: String,
    rounds: usize,
    only: Option<String>,
    device: Device,
    moments: DType,
}

impl Options {
    fn optimizer(&self) -> AdamW {
        AdamW { state_dtype: self.moments, ..AdamW::default() }
    }
}

fn options() -> Option<Options> {
    let (mut gguf, mut data, mut split) = (None, None, None);
    let (mut device, mut dtype, mut out) = ("cuda".to_string(), None, "bench-gpu-run".to_string());
    let (mut rounds, mut only, mut moments) = (3, None, DType::F32);
    // `cargo bench` says `--bench` to it.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--gguf" => gguf = Some(args.next()?),
            "--data" => data = Some(args.next()?),
            "--split" => split = Some(args.next()?),
            "--device" => device = args.next()?,
            "--out" => out = args.next()?,
            "--only" => only = Some(args.next()?),
            "--rounds" => rounds = args.next()?.parse().ok()?,
            "--moments" => moments = args.next()?.parse().ok()?,
            "--dtype" => dtype = Some(args.next()?.parse::<DType>().ok()?),
            _ => return None,
        }
    }
    let device = Device::by_name(&device).and_then(|device| match dtype {
        Some(dtype) => device.with_dtype(dtype),
        None => Ok(device),
    });
    let device = device.map_err(|error| eprintln!("{error}")).ok()?;
    Some(Options { gguf, data, split, out, rounds, only, device, moments })
}

fn run(options: &Options) -> Result<()> {
    println!("{}, computing in {}", options.device, options.device.dtype().as_str());
    match &options.gguf {
        None => {
            let model = sizes::model(&options.device)?;
            if options.only.as_deref() != Some("steps") {
                generation::bench(&model)?;
            }
            model.release_device();
            if options.only.as_deref() == Some("generation") {
                return Ok(());
            }
            let batches = random::batches(4, 262_144);
            steps::bench(&model, &batches, options.rounds, options.optimizer()).map(|_| ())
        }
        Some(gguf) => lesson::bench(gguf, options),
    }
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
