//! The model as a web page: one folder of static files, with nothing to install and no server to run.
//!
//! ```no_run
//! # use emoji_lab::prelude::*;
//! # use emoji_lab::export::{Library, WebConfig, export_web_with};
//! let model = load_model("myemoji-merged", &Device::Cpu)?;
//! let page = export_web(&model, "web")?;
//! println!("{page}"); // `python3 -m http.server --directory web` shows it
//! // Another task, by its own words, and the library from a folder:
//! let config = WebConfig {
//!     task: Task::one_of("Say the mood of this text in one word: ", ["joy", "sadness"]),
//!     library: Library::Folder("node_modules".into()),
//!     ..WebConfig::default()
//! };
//! export_web_with(&model, "web", &config)?;
//! # Ok::<(), Error>(())
//! ```
//!
//! The page asks the GGUF file beside it through wllama, llama.cpp in WebAssembly. Its own files are
//! `page/*`, as they are; what differs from page to page is in `page.json`, which it reads as data.

mod library;
mod npm;
mod report;
mod settings;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use sha2::{Digest, Sha256};

pub use library::Library;
pub use report::{WebFile, WebReport};

use super::{GgufConfig, GgufType, export_gguf_with};
use crate::error::{Error, Result};
use crate::files::{write_bytes_atomic, write_into_dir};
use crate::model::Model;
use crate::task::Task;
use library::{CDN, PACKAGES, Package};

/// The model's file beside the page.
const MODEL: &str = "model.gguf";
const SETTINGS: &str = "page.json";
const INDEX: &str = "index.html";
/// Larger files no browser takes in one piece.
const LARGEST: u64 = 2_000_000_000;

/// The page's own files.
const PAGE: [(&str, &str); 5] = [
    (INDEX, include_str!("page/index.html")),
    ("style.css", include_str!("page/style.css")),
    ("app.js", include_str!("page/app.js")),
    ("answers.js", include_str!("page/answers.js")),
    ("model.js", include_str!("page/model.js")),
];

/// The settings of [`export_web_with`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebConfig {
    /// What the model was taught: its instruction, its example, and, of its description, the heading.
    pub task: Task,
    /// The heading; what the task does if empty.
    pub title: String,
    /// What the model is called. A Hub id, as `owner/name`, becomes a link. The last part of where the
    /// model came from if empty.
    pub model_name: String,
    /// The Hub's name of the model's licence, as on its card. If empty `gemma`, or `apache-2.0` for the
    /// model that comes with this crate.
    pub license: String,
    /// How the model's matrices are stored.
    pub gguf_type: GgufType,
    /// The most tokens of an answer.
    pub max_new_tokens: usize,
    /// Where the library comes from that runs the model in the browser.
    pub library: Library,
}

impl Default for WebConfig {
    /// Text to emoji.
    fn default() -> Self {
        Self {
            task: Task::emoji(),
            title: String::new(),
            model_name: String::new(),
            license: String::new(),
            gguf_type: GgufType::Q8_0,
            max_new_tokens: 32,
            library: Library::Npm,
        }
    }
}

/// Writes a web page that asks `model` into the folder `dir`: a field for a text, three suggestions, a
/// click copies one. It works from any static server (`python3 -m http.server`, a static Space) and
/// sends nothing anywhere. The task is text to emoji; [`export_web_with`] has the other choices.
///
/// # Errors
/// As [`export_web_with`].
pub fn export_web(model: &Model, dir: impl AsRef<Path>) -> Result<WebReport> {
    export_web_with(model, dir, &WebConfig::default())
}

/// [`export_web`] with settings.
///
/// What else is in the folder, which is made if it is missing, stays; an earlier page is replaced.
///
/// # Errors
/// [`Error::Setting`] if the library cannot be had (it says what is missing, and the ways round it), if
/// the folder holds another page, or if a setting cannot work; [`Error::Model`] and [`Error::Io`] as
/// [`export_gguf`](super::export_gguf). The folder is as it was then.
pub fn export_web_with(model: &Model, dir: impl AsRef<Path>, config: &WebConfig) -> Result<WebReport> {
    write(model, dir.as_ref(), config, &PACKAGES, npm::registry)
}

fn write(
    model: &Model,
    dir: &Path,
    config: &WebConfig,
    packages: &'static [Package],
    registry: impl FnOnce() -> Result<String>,
) -> Result<WebReport> {
    let started = Instant::now();
    if !(1..=1024).contains(&config.max_new_tokens) {
        return Err(Error::setting("max_new_tokens", config.max_new_tokens, "use a number from 1 to 1024"));
    }
    refuse_other_pages(dir, packages)?;
    let (found, whence) = library::find(&config.library, packages, dir, registry)?;

    let mut files = vec![];
    let mut notes = vec![];
    write_into_dir(dir, INDEX, |stage| {
        let gguf = GgufConfig { kind: config.gguf_type, modelfile: false, ..GgufConfig::default() };
        let report = export_gguf_with(model, stage.join(MODEL), &gguf)?;
        if report.bytes > LARGEST {
            let help = "the model's file comes to more than 2 GB, which no browser loads: use a smaller type";
            return Err(Error::setting("gguf_type", config.gguf_type, help));
        }
        notes = report.notes;
        files.push(WebFile { name: MODEL, bytes: report.bytes });
        let sha256 = hash(&stage.join(MODEL))?;
        let settings = settings::settings(model, config, packages, report.bytes, &sha256)?;
        let mut put = |name: &'static str, bytes: &[u8]| {
            files.push(WebFile { name, bytes: bytes.len() as u64 });
            write_bytes_atomic(stage.join(name), bytes)
        };
        for file in &found {
            put(file.file, &file.bytes)?;
        }
        for (name, text) in PAGE {
            match (name, &config.library) {
                (INDEX, Library::Link) => put(name, linking(text).as_bytes())?,
                _ => put(name, text.as_bytes())?,
            }
        }
        put(SETTINGS, format!("{settings:#}\n").as_bytes())?;
        put("NOTICE.txt", settings::notice(model, config).as_bytes())?;
        put("README.md", settings::readme(config).as_bytes())
    })?;

    if config.library == Library::Link {
        notes.push(format!("Whoever opens the page fetches the library from {CDN}, by version and hash."));
    }
    files.sort_by_key(|file| std::cmp::Reverse(file.bytes));
    let seconds = started.elapsed().as_secs_f64();
    Ok(WebReport { dir: dir.to_path_buf(), files, library: whence, notes, seconds })
}

/// The page's markup where the library comes from elsewhere: the policy lets it.
fn linking(index: &str) -> String {
    let host = CDN.trim_end_matches("/npm/");
    index
        .replace("script-src 'self'", "script-src 'self' blob:")
        .replace("connect-src 'self'", &format!("connect-src 'self' blob: {host}"))
}

/// A folder whose files of these names are not a page of ours is left alone.
fn refuse_other_pages(dir: &Path, packages: &[Package]) -> Result<()> {
    let parts = packages.iter().flat_map(|package| package.parts).map(|part| part.file);
    let names =
        PAGE.iter().map(|(name, _)| *name).chain(parts).chain([MODEL, SETTINGS, "NOTICE.txt", "README.md"]);
    let Some(there) = names.into_iter().find(|name| fs::symlink_metadata(dir.join(name)).is_ok()) else {
        return Ok(());
    };
    let is_ours = fs::read(dir.join(SETTINGS))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .is_some_and(|read| read["format"] == settings::FORMAT);
    match is_ours {
        true => Ok(()),
        false => Err(Error::setting(
            "dir",
            dir.display(),
            format!("it has a {there} that no export of a page has written: name a new folder"),
        )),
    }
}

/// The SHA-256 of a file, in hex.
fn hash(path: &Path) -> Result<String> {
    let read = || {
        let mut file = File::open(path)?;
        let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(hash.finalize()),
                count => hash.update(&piece[..count]),
            }
        }
    };
    let bytes = read().map_err(|e| Error::io(path, "reading the model again", e))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
