//! The model as a web page: one folder of static files, with nothing to install and no server to run.
//!
//! ```no_run
//! # use emoji_lab::prelude::*;
//! # use emoji_lab::export::{Engine, Library, WebConfig, export_web_with, serve_page};
//! let model = load_model("myemoji-merged", &Device::Cpu)?;
//! let page = export_web(&model, "web")?;
//! println!("{page}"); // `python3 -m http.server --directory web` shows it
//! println!("{}", serve_page(&page)?); // and so does this process
//! // Another task, by its own words, and the library from a folder:
//! let config = WebConfig {
//!     task: Task::one_of("Say the mood of this text in one word: ", ["joy", "sadness"]),
//!     library: Library::Folder("node_modules".into()),
//!     ..WebConfig::default()
//! };
//! export_web_with(&model, "moods", &config)?;
//! // On a GPU where the visitor's browser has one; and published, once `dry_run` is out:
//! let config = WebConfig { engine: Engine::Onnx(OnnxVariant::Q8), ..WebConfig::default() };
//! let page = export_web_with(&model, "web-onnx", &config)?;
//! let to = PushConfig { kind: PushKind::Space, repo_name: "myemoji-page".into(), ..PushConfig::default() };
//! let to = PushConfig { dry_run: Some("dry".into()), ..to };
//! println!("{}", push_to_hub(&login(None)?, "web-onnx", &to, &page)?);
//! # Ok::<(), Error>(())
//! ```
//!
//! The page asks the model beside it through a library in WebAssembly, the [`Engine`]. Its own files are
//! `page/*`, as they are; what differs from page to page is in `page.json`, which it reads as data.

mod engine;
mod library;
mod npm;
mod releases;
mod report;
mod serve;
mod settings;

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

pub use engine::Engine;
pub use library::Library;
pub use report::{WebFile, WebReport};
pub use serve::{ServedPage, serve_page};

use crate::error::{Error, Result};
use crate::files::{write_bytes_atomic, write_into_dir};
use crate::model::Model;
use crate::task::Task;
use library::{CDN, Package, Release};

const SETTINGS: &str = "page.json";
const INDEX: &str = "index.html";

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
    /// What runs the model in the browser, and how the model is stored for it.
    pub engine: Engine,
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
            engine: Engine::default(),
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
    write(model, dir.as_ref(), config, config.engine.release(), npm::registry)
}

fn write(
    model: &Model,
    dir: &Path,
    config: &WebConfig,
    release: &Release,
    registry: impl Fn(&Package) -> Result<String>,
) -> Result<WebReport> {
    let started = Instant::now();
    if !(1..=1024).contains(&config.max_new_tokens) {
        return Err(Error::setting("max_new_tokens", config.max_new_tokens, "use a number from 1 to 1024"));
    }
    let page = config.engine.page();
    refuse_other_pages(dir, config.engine, &page, release)?;
    let (found, whence) = library::find(&config.library, release, dir, registry)?;

    let readme = settings::readme(config);
    let mut files = vec![];
    let mut notes = vec![];
    write_into_dir(dir, INDEX, |stage| {
        let (of_model, of_export) = config.engine.write_model(model, stage)?;
        notes = of_export;
        let settings = settings::settings(model, config, release, &of_model)?;
        files.extend(of_model.into_iter().map(|file| WebFile { name: file.name, bytes: file.bytes }));
        let mut put = |name: &str, bytes: &[u8]| {
            files.push(WebFile { name: name.to_string(), bytes: bytes.len() as u64 });
            write_bytes_atomic(stage.join(name), bytes)
        };
        for file in &found {
            put(file.file, &file.bytes)?;
        }
        for (name, text) in &page {
            match (*name, &config.library) {
                (INDEX, Library::Link) => put(name, linking(text).as_bytes())?,
                _ => put(name, text.as_bytes())?,
            }
        }
        put(SETTINGS, format!("{settings:#}\n").as_bytes())?;
        put("NOTICE.txt", settings::notice(model, config, release).as_bytes())?;
        put("README.md", readme.as_bytes())
    })?;

    if config.library == Library::Link {
        notes.push(format!("Whoever opens the page fetches the library from {CDN}, by version and hash."));
    }
    for left in config.engine.left(dir) {
        notes.push(format!("{left} is of an earlier page. This one does not read it: it can go."));
    }
    files.sort_by_key(|file| std::cmp::Reverse(file.bytes));
    let seconds = started.elapsed().as_secs_f64();
    let library = format!("{} {}, {whence}", release.name, release.version);
    Ok(WebReport { dir: dir.to_path_buf(), files, library, readme, notes, seconds })
}

/// The page's markup where the library comes from elsewhere: the policy lets it.
fn linking(index: &str) -> String {
    let host = CDN.trim_end_matches("/npm/");
    index
        .replace("script-src 'self'", "script-src 'self' blob:")
        .replace("connect-src 'self'", &format!("connect-src 'self' blob: {host}"))
}

/// A folder whose files of these names are not a page of ours is left alone.
fn refuse_other_pages(dir: &Path, engine: Engine, page: &[(&str, String)], release: &Release) -> Result<()> {
    let own = page.iter().map(|(name, _)| *name).chain([SETTINGS, "NOTICE.txt", "README.md"]);
    let parts = release.parts().map(|(_, part)| part.file);
    let names = own.chain(parts).map(str::to_string).chain(engine.model_names());
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

#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod tests;
