//! What the command line says.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use emoji_lab::data::held_out_rows;
use emoji_lab::prelude::*;

/// Which rows are held out.
pub enum Split {
    Seed(u64),
    Rows(Vec<usize>),
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed(seed) => write!(f, "split by seed {seed}"),
            Self::Rows(_) => write!(f, "split of the file"),
        }
    }
}

pub struct Options {
    pub model: String,
    pub data: String,
    pub splits: Vec<Split>,
    pub seeds: Vec<u64>,
    pub device: String,
    pub epochs: f64,
    pub rows: usize,
    /// Rows trained on at most.
    pub train_rows: usize,
    /// Samples of a consensus; 1 for none.
    pub samples: usize,
    pub only: Option<Vec<usize>>,
    /// Where each run's adapter is kept.
    pub save: Option<PathBuf>,
}

impl Options {
    pub fn from_arguments() -> Result<Self> {
        let mut options = Self {
            model: "embedded".into(),
            data: "embedded".into(),
            splits: vec![],
            seeds: vec![1, 2, 3],
            device: "auto".into(),
            epochs: 3.0,
            rows: usize::MAX,
            train_rows: usize::MAX,
            samples: 1,
            only: None,
            save: None,
        };
        // `cargo bench` says `--bench` to it.
        let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
        while let Some(name) = arguments.next() {
            let value = arguments.next().unwrap_or_default();
            match name.as_str() {
                "--model" => options.model = value,
                "--data" => options.data = value,
                "--split" => options.splits.push(Split::Rows(held_out_rows(&value)?)),
                "--split-seed" => options.splits.push(Split::Seed(number(&name, &value)?)),
                "--seeds" => options.seeds = numbers(&name, &value)?,
                "--device" => options.device = value,
                "--epochs" => options.epochs = number(&name, &value)?,
                "--rows" => options.rows = number(&name, &value)?,
                "--train-rows" => options.train_rows = number(&name, &value)?,
                "--samples" => options.samples = number(&name, &value)?,
                "--save" => options.save = Some(PathBuf::from(value)),
                "--only" => options.only = Some(numbers(&name, &value)?),
                _ => {
                    let help = "there are --model, --data, --split, --split-seed, --seeds, --device, \
                                --epochs, --rows, --train-rows, --samples, --only, --save";
                    return Err(Error::setting("option", name, help));
                }
            }
        }
        if options.splits.is_empty() {
            options.splits.push(Split::Seed(42));
        }
        Ok(options)
    }
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| Error::setting("option", format!("{name} {value}"), "give a number"))
}

fn numbers<T: FromStr>(name: &str, value: &str) -> Result<Vec<T>> {
    value.split(',').map(|part| number(name, part.trim())).collect()
}
