//! Checks this crate against what the Python stack computed.
//!
//! `cargo run --release -p emoji_lab --example golden -- DIR [--gguf FILE] [--tokenizer FILE]`
//!
//! DIR is laid out like the golden folder that `tests/README.md` describes. Every check is a row
//! with its measured error and its bar; what DIR does not hold is skipped by name. The exit status
//! is 1 if a check falls short.

mod files;
mod forward;
mod nf4;
mod real;
mod report;
mod text;
mod training;

use std::path::PathBuf;
use std::process::ExitCode;

use emoji_lab::Result;
use report::Report;

const USAGE: &str = "usage: golden DIR [--gguf FILE] [--tokenizer FILE]";

/// What the command line says.
struct Options {
    dir: PathBuf,
    gguf: Option<PathBuf>,
    tokenizer: Option<PathBuf>,
}

fn options() -> Option<Options> {
    let (mut dir, mut gguf, mut tokenizer) = (None, None, None);
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--gguf") => gguf = Some(PathBuf::from(args.next()?)),
            Some("--tokenizer") => tokenizer = Some(PathBuf::from(args.next()?)),
            Some(flag) if flag.starts_with("--") => return None,
            _ if dir.is_none() => dir = Some(PathBuf::from(arg)),
            _ => return None,
        }
    }
    Some(Options { dir: dir?, gguf, tokenizer })
}

fn run(options: &Options, report: &mut Report) -> Result<()> {
    let base = forward::check(&options.dir, report)?;
    nf4::check(&options.dir, report)?;
    training::check(&options.dir, base.as_ref(), report)?;
    text::check(options, report)?;
    real::check(options, report)
}

fn main() -> ExitCode {
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
