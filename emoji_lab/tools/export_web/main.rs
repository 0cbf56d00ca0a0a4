//! Exports a model as a web page, for `tests/browser/page_run` and to measure it.
//!
//! ```text
//! cargo run --release -p emoji_lab --example export_web -- MODEL OUT [--library FOLDER | --link]
//!     [--license NAME] [--engine Q8_0 | --engine q8] [--expect FILE.json]
//! ```
//!
//! `MODEL` is what `load_model` takes; an engine is named by how it stores the model, as GGUF or as ONNX. With
//! `--expect` the greedy answers to a few texts, computed by this crate, are written for the test to compare:
//! from the exported GGUF file, or else from the model itself.

use std::path::PathBuf;
use std::time::Instant;

use emoji_lab::export::{Engine, GgufType, Library, OnnxVariant, WebConfig, export_web_with};
use emoji_lab::files::write_bytes_atomic;
use emoji_lab::model::{GenerationConfig, generate, load_model};
use emoji_lab::task::Task;
use emoji_lab::{Device, Error, Result, say};
use serde_json::{Map, json};

const TEXTS: [&str; 6] = [
    "let's go to the beach",
    "pizza tonight",
    "happy birthday",
    "I love my dog",
    "see you at the gym",
    "café in the rain, 5 o'clock?",
];

fn main() -> Result<()> {
    let mut config = WebConfig::default();
    let (mut plain, mut expect) = (vec![], None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_default();
        match argument.as_str() {
            "--library" => config.library = Library::Folder(value().into()),
            "--link" => config.library = Library::Link,
            "--license" => config.license = value(),
            "--engine" => config.engine = engine(&value())?,
            "--expect" => expect = Some(PathBuf::from(value())),
            _ => plain.push(argument),
        }
    }
    let [model, out] = plain.try_into().map_err(|plain: Vec<String>| {
        Error::setting("arguments", plain.join(" "), "give a model and a folder to write to")
    })?;
    let started = Instant::now();
    let loaded = load_model(&model, &Device::Cpu)?;
    say!("{model} loaded in {:.1} s", started.elapsed().as_secs_f64());
    let report = export_web_with(&loaded, &out, &config)?;
    say!("{report}");
    say!("{} bytes in {} files", report.bytes(), report.files.len());

    if let Some(path) = expect {
        let file = match config.engine {
            Engine::Gguf(_) => load_model(&format!("{out}/model.gguf"), &Device::Cpu)?,
            Engine::Onnx(_) => loaded,
        };
        let task = Task::emoji();
        let mut answers = Map::new();
        for text in TEXTS {
            let answer =
                generate(&file, &task.prompt(text), &GenerationConfig::greedy(config.max_new_tokens))?;
            answers.insert(text.to_string(), json!(answer.trim()));
        }
        write_bytes_atomic(&path, format!("{:#}\n", json!(answers)).as_bytes())?;
    }
    Ok(())
}

/// `Q8_0` is a GGUF's type, `q8` an ONNX model's.
fn engine(name: &str) -> Result<Engine> {
    match name.parse::<OnnxVariant>() {
        Ok(variant) => Ok(Engine::Onnx(variant)),
        Err(_) => Ok(Engine::Gguf(name.parse::<GgufType>()?)),
    }
}
