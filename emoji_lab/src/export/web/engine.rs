//! What runs the model in the browser of whoever opens the page: which library, which files of the page,
//! which form of the model.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::library::Release;
use super::releases::{TRANSFORMERS_JS, WLLAMA};
use crate::error::{Error, Result};
use crate::export::{
    GgufConfig, GgufType, OnnxConfig, OnnxVariant, export_gguf_with, export_onnx_with, onnx,
};
use crate::model::Model;

/// The GGUF file beside the page.
const GGUF: &str = "model.gguf";
/// The folder of ONNX files beside the page.
const FOLDER: &str = "model";
/// Larger files no browser takes in one piece.
const LARGEST: u64 = 2_000_000_000;

/// What runs the model in the browser, and how the model is stored for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// wllama, which is llama.cpp in WebAssembly, on a GGUF file. A token of Gemma 3 270M takes a sixth of a
    /// second on one thread.
    Gguf(GgufType),
    /// Transformers.js on ONNX files: on WebGPU where the browser has it, else in WebAssembly, where a token
    /// takes nearly half a second on one thread.
    Onnx(OnnxVariant),
}

impl Default for Engine {
    fn default() -> Self {
        Self::Gguf(GgufType::default())
    }
}

impl fmt::Display for Engine {
    /// As the page says it: `Q8_0`, `ONNX q8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gguf(kind) => kind.fmt(f),
            Self::Onnx(variant) => write!(f, "ONNX {variant}"),
        }
    }
}

/// The page's files that every engine has.
const PAGE: [(&str, &str); 6] = [
    ("index.html", include_str!("page/index.html")),
    ("style.css", include_str!("page/style.css")),
    ("app.js", include_str!("page/app.js")),
    ("answers.js", include_str!("page/answers.js")),
    ("files.js", include_str!("page/files.js")),
    ("model.js", include_str!("page/model.js")),
];

/// A file of the model that the page fetches.
pub(super) struct ModelFile {
    /// Its path in the page's folder.
    pub(super) name: String,
    pub(super) bytes: u64,
    sha256: String,
    /// What it begins with, up to four bytes.
    begins: Vec<u8>,
}

impl ModelFile {
    pub(super) fn to_json(&self) -> Value {
        json!({"file": self.name, "bytes": self.bytes, "sha256": self.sha256, "begins": self.begins})
    }
}

impl Engine {
    pub(super) fn release(self) -> &'static Release {
        match self {
            Self::Gguf(_) => &WLLAMA,
            Self::Onnx(_) => &TRANSFORMERS_JS,
        }
    }

    /// The page's own files: their names, and what is in them.
    pub(super) fn page(self) -> Vec<(&'static str, String)> {
        let mut page: Vec<_> = PAGE.iter().map(|(name, text)| (*name, (*text).to_string())).collect();
        match self {
            Self::Gguf(_) => page.push(("engine.js", include_str!("page/wllama.js").to_string())),
            Self::Onnx(_) => {
                // Its worker is a file of the page.
                page[0].1 = page[0].1.replace("worker-src blob:", "worker-src 'self' blob:");
                for (name, text) in [
                    ("engine.js", include_str!("page/onnx.js")),
                    ("worker.js", include_str!("page/worker.js")),
                    ("sample.js", include_str!("page/sample.js")),
                ] {
                    page.push((name, text.to_string()));
                }
            }
        }
        page
    }

    /// Writes the model into the folder `stage`; what the page fetches of it, and what its maker should know.
    ///
    /// # Errors
    /// As [`export_gguf_with`] and [`export_onnx_with`]; [`Error::Setting`] for what no browser loads.
    pub(super) fn write_model(self, model: &Model, stage: &Path) -> Result<(Vec<ModelFile>, Vec<String>)> {
        let (names, notes) = match self {
            Self::Gguf(kind) => {
                let config = GgufConfig { kind, modelfile: false, ..GgufConfig::default() };
                let report = export_gguf_with(model, stage.join(GGUF), &config)?;
                (vec![GGUF.to_string()], report.notes)
            }
            Self::Onnx(variant) => {
                let config = OnnxConfig { variants: vec![variant], ..OnnxConfig::default() };
                let report = export_onnx_with(model, stage.join(FOLDER), &config)?;
                (in_folder(variant), report.notes)
            }
        };
        let files = names.into_iter().map(|name| read(stage, name)).collect::<Result<Vec<_>>>()?;
        if files.iter().any(|file| file.bytes > LARGEST) {
            let help =
                "a file of the model comes to more than 2 GB, which no browser loads: use a smaller type";
            return Err(Error::setting("engine", self, help));
        }
        Ok((files, notes))
    }

    /// What the page tells the engine beside the files.
    pub(super) fn settings(self, model: &Model) -> Result<Value> {
        Ok(match self {
            Self::Gguf(_) => json!({}),
            Self::Onnx(variant) => json!({
                "folder": FOLDER, "dtype": variant.as_str(),
                "bos": model.tokenizer.bos(), "stop": model.stop_ids()?,
            }),
        })
    }

    /// Large files in `dir` that a page of another engine or type has left there.
    pub(super) fn left(self, dir: &Path) -> Vec<String> {
        let own = self.model_names();
        let of_onnx =
            OnnxVariant::ALL.map(|variant| format!("{FOLDER}/{}/{}", onnx::FOLDER, variant.data_file()));
        let all = of_onnx.into_iter().chain([GGUF.to_string()]);
        all.filter(|name| !own.contains(name) && dir.join(name).exists()).collect()
    }

    /// The names that a page of this engine has beside its own files and the library's.
    pub(super) fn model_names(self) -> Vec<String> {
        match self {
            Self::Gguf(_) => vec![GGUF.to_string()],
            Self::Onnx(variant) => in_folder(variant),
        }
    }
}

/// The files that Transformers.js asks for.
fn in_folder(variant: OnnxVariant) -> Vec<String> {
    let of_onnx = |name: &str| format!("{}/{name}", onnx::FOLDER);
    let graph = [of_onnx(variant.file()), of_onnx(&variant.data_file())];
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
        .into_iter()
        .map(str::to_string)
        .chain(graph)
        .map(|name| format!("{FOLDER}/{name}"))
        .collect()
}

/// What a file is known by: its size, hash and beginning.
fn read(stage: &Path, name: String) -> Result<ModelFile> {
    let path: PathBuf = stage.join(&name);
    let look = || {
        let mut file = File::open(&path)?;
        let (mut hash, mut piece, mut begins) = (Sha256::new(), vec![0; 1 << 20], vec![]);
        loop {
            match file.read(&mut piece)? {
                0 => return Ok((begins, hash.finalize())),
                count => {
                    let missing = 4usize.saturating_sub(begins.len()).min(count);
                    begins.extend_from_slice(&piece[..missing]);
                    hash.update(&piece[..count]);
                }
            }
        }
    };
    let fail = |e| Error::io(&path, "reading the model again", e);
    let (begins, hash) = look().map_err(fail)?;
    let bytes = fs::metadata(&path).map_err(fail)?.len();
    let sha256 = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(ModelFile { name, bytes, sha256, begins })
}
