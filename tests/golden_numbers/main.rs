//! Checks this crate against what the Python stack computed: a test of the fixtures, and with
//! `tests/golden DIR [--gguf FILE] [--tokenizer FILE]` of any folder that is laid out like them.
//!
//! `--device cuda` runs the training rows on the GPU, `--dtype bf16` in bf16, there or on a CPU that has it, which has
//! wider tolerances; both leave out what the CPU alone computes in f32.
//!
//! Every check is a row with its measured error and its tolerance; what the folder does not hold is skipped
//! by name. The exit status is 1 if a check falls short.

mod files;
mod forward;
mod generation;
mod nf4;
mod real;
mod report;
mod text;
mod training;

use std::path::PathBuf;
use std::process::ExitCode;

use emoji_lab::{DType, Device, Result};
use report::Report;

const USAGE: &str =
    "usage: tests/golden DIR [--gguf FILE] [--tokenizer FILE] [--device cpu|cuda] [--dtype f32|bf16]";
/// What is checked where no folder is named.
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/golden");

/// What the command line says.
struct Options {
    dir: PathBuf,
    gguf: Option<PathBuf>,
    tokenizer: Option<PathBuf>,
    device: Device,
}

/// How far a training run may be from Python's, relative.
#[derive(Debug, Clone, Copy)]
struct Tolerances {
    losses: f64,
    grad_norms: f64,
    adapter: f64,
    /// Absolute, on the real model.
    real_losses: f64,
}

impl Options {
    fn tolerances(&self) -> Tolerances {
        match (self.device.is_cuda(), self.device.dtype()) {
            // bf16 has eight bits: what is left is the sum of their rounding.
            (_, DType::BF16) => {
                Tolerances { losses: 2e-2, grad_norms: 1e-1, adapter: 5e-1, real_losses: 1e-1 }
            }
            (false, _) => Tolerances { losses: 1e-5, grad_norms: 1e-4, adapter: 1e-4, real_losses: 1e-3 },
            (true, _) => Tolerances { losses: 1e-4, grad_norms: 1e-4, adapter: 1e-4, real_losses: 1e-3 },
        }
    }
}

/// Whether `cargo test` runs this among other tests, with options and names for a test harness.
fn is_one_of_many() -> bool {
    !std::env::args().any(|arg| arg == "--dir")
}

/// Whether the names that `cargo test` was given, if any, mean this one.
fn is_meant() -> bool {
    let mut names = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).peekable();
    names.peek().is_none() || names.any(|name| "golden".contains(&name))
}

fn options() -> Option<Options> {
    let (mut dir, mut gguf, mut tokenizer) = (None, None, None);
    let (mut device, mut dtype) = ("cpu".to_string(), DType::F32);
    let mut args = std::env::args_os().skip(1);
    if is_one_of_many() {
        dir = Some(PathBuf::from(FIXTURES));
        args.by_ref().for_each(drop);
    }
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--dir") => dir = Some(PathBuf::from(args.next()?)),
            Some("--gguf") => gguf = Some(PathBuf::from(args.next()?)),
            Some("--tokenizer") => tokenizer = Some(PathBuf::from(args.next()?)),
            Some("--device") => device = args.next()?.into_string().ok()?,
            Some("--dtype") => dtype = args.next()?.to_str()?.parse().ok()?,
            _ => return None,
        }
    }
    let device = Device::by_name(&device).and_then(|device| device.with_dtype(dtype));
    let device = device.map_err(|error| eprintln!("{error}")).ok()?;
    Some(Options { dir: dir?, gguf, tokenizer, device })
}

fn run(options: &Options, report: &mut Report) -> Result<()> {
    if options.device.is_cuda() || options.device.dtype() == DType::BF16 {
        println!("    {} in {}", options.device, options.device.dtype().as_str());
        let base = files::model(&options.dir.join("model"))?.to_device(&options.device);
        generation::check(&base, report)?;
        training::check(options, Some(&base), report)?;
        return real::check(options, report);
    }
    let base = forward::check(&options.dir, report)?;
    nf4::check(&options.dir, report)?;
    training::check(options, base.as_ref(), report)?;
    text::check(options, report)?;
    real::check(options, report)
}

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == "--list") || (is_one_of_many() && !is_meant()) {
        return ExitCode::SUCCESS;
    }
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if !options.dir.is_dir() {
        eprintln!("{} is not a folder\n{USAGE}", options.dir.display());
        return ExitCode::from(2);
    }
    for file in [&options.gguf, &options.tokenizer].into_iter().flatten() {
        if !file.is_file() {
            eprintln!("{} is not a file\n{USAGE}", file.display());
            return ExitCode::from(2);
        }
    }
    let mut report = Report::new();
    if let Err(error) = run(&options, &mut report) {
        report.fail("the run", &error.to_string());
    }
    report.finish()
}
