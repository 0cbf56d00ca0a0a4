//! A tokenizer's files: read from a folder, and written into one.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Tokenizer;
use crate::error::{Error, Result};
use crate::files::{write_bytes_atomic, write_into_dir};
use crate::model::folder::in_place_of;
use crate::sniff::read_text;

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and, where they are there,
    /// `chat_template.jinja` and `special_tokens_map.json` from a transformers folder.
    ///
    /// A template in `chat_template.jinja` wins over one in `tokenizer_config.json` (where it may be
    /// a text, or a list of named ones of which `default` counts), that one over one in
    /// `chat_template.json`, which only processors read. Templates in `additional_chat_templates/` are
    /// for other purposes, as tools. Without any, Gemma's own is used (a base model has none).
    ///
    /// # Errors
    /// [`Error::Model`] or [`Error::Io`] that names the missing or damaged file.
    pub fn from_dir(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            let help = match in_place_of(folder, "tokenizer.json") {
                Some(help) => help,
                None if folder.join("tokenizer.model").is_file() => {
                    "tokenizer.model alone is not read here: save the tokenizer with transformers once"
                        .to_string()
                }
                None => "Fetch or save the whole model folder".to_string(),
            };
            return Err(Error::model(folder.display(), "no tokenizer.json in the folder", help));
        }
        let read = |name: &str| -> Result<Option<String>> {
            let path = folder.join(name);
            if !path.is_file() {
                return Ok(None);
            }
            read_text(&path).map(Some)
        };
        let object = |name: &str| -> Result<Map<String, Value>> {
            let Some(text) = read(name)? else { return Ok(Map::new()) };
            parse_object(&text, &folder.join(name).display().to_string())
        };
        let mut config = object("tokenizer_config.json")?;
        for (key, value) in object("special_tokens_map.json")? {
            config.entry(key).or_insert(value);
        }
        if let Some(template) = folder_template(folder, &read)? {
            config.insert("chat_template".to_string(), template);
        }
        if config.get("chat_template").is_none_or(Value::is_null)
            && let Some(template) = object("chat_template.json")?.remove("chat_template")
        {
            config.insert("chat_template".to_string(), template);
        }
        let text = read_text(&path)?;
        let origin = path.display().to_string();
        Self::new(parse_tokenizer(text.as_bytes(), &origin)?, config, &origin)
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and
    /// `chat_template.jinja` into the folder `dir`, for transformers' `AutoTokenizer` and for
    /// [`Tokenizer::from_dir`].
    ///
    /// What else is in `dir`, which is made if it is missing, stays.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written; `dir` is as it was then.
    pub fn save_pretrained(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        write_into_dir(dir, "tokenizer_config.json", |stage| self.write_files(stage))
    }

    /// Writes the files of [`save_pretrained`](Self::save_pretrained) one by one.
    pub(crate) fn write_files(&self, dir: &Path) -> Result<()> {
        self.files()?.write(dir)
    }

    /// The files of [`save_pretrained`](Self::save_pretrained).
    ///
    /// # Errors
    /// [`Error::Model`] if the tokenizer cannot be written as JSON.
    pub(crate) fn files(&self) -> Result<TokenizerFiles> {
        let text = self.inner.to_string(false).map_err(|e| self.failed("saving", e))?;
        let mut config = self.config.as_ref().clone();
        let mut special = Map::new();
        for (key, id) in [("bos_token", self.bos), ("eos_token", self.eos), ("pad_token", self.pad)] {
            if let (None, Some(token)) = (config.get(key), self.token(id)) {
                config.insert(key.to_string(), json!(token));
            }
        }
        for key in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            if let Some(value) = config.get(key) {
                special.insert(key.to_string(), value.clone());
            }
        }
        config.entry("tokenizer_class").or_insert_with(|| json!("GemmaTokenizer"));
        // Readers before transformers 4.51 know this place only; later ones prefer the file.
        config.insert("chat_template".to_string(), json!(self.template.source()));
        Ok(TokenizerFiles([
            ("tokenizer.json", text),
            ("tokenizer_config.json", json_text(&Value::Object(config))),
            ("special_tokens_map.json", json_text(&Value::Object(special))),
            ("chat_template.jinja", self.template.source().to_string()),
        ]))
    }
}

/// A tokenizer's files by their names: for whom writes them several times, since the text of a large vocabulary
/// takes its time.
pub(crate) struct TokenizerFiles([(&'static str, String); 4]);

impl TokenizerFiles {
    /// Writes them into the folder `dir`, one by one.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        self.0.iter().try_for_each(|(name, text)| write_bytes_atomic(dir.join(name), text.as_bytes()))
    }
}

/// `value` as transformers writes it: two spaces, a newline at the end.
fn json_text(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Writes `value` the way transformers does.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_bytes_atomic(path, json_text(value).as_bytes())
}

/// The template files of a folder: `chat_template.jinja`, or `default.jinja` among the additional ones.
fn folder_template(folder: &Path, read: &dyn Fn(&str) -> Result<Option<String>>) -> Result<Option<Value>> {
    const ADDITIONAL: &str = "additional_chat_templates/default.jinja";
    if let Some(template) = read("chat_template.jinja")? {
        return Ok(Some(json!(template)));
    }
    match folder.join(ADDITIONAL).is_file() {
        true => Ok(read(ADDITIONAL)?.map(|template| json!(template))),
        false => Ok(None),
    }
}

pub(super) fn parse_object(text: &str, origin: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(text)
        .map_err(|e| Error::model(origin, format!("not a JSON object ({e})"), "Fetch the file again"))
}

pub(super) fn parse_tokenizer(bytes: &[u8], origin: &str) -> Result<tokenizers::Tokenizer> {
    let damaged = |problem: String| Error::model(origin, problem, "Fetch tokenizer.json again");
    // The library indexes by what the file says: a merge longer than every token makes it panic.
    let parsed = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes));
    match parsed {
        Ok(Ok(tokenizer)) => Ok(tokenizer),
        Ok(Err(e)) => Err(damaged(format!("not a tokenizer.json ({e})"))),
        Err(_) => Err(damaged("its vocabulary and merges contradict each other".to_string())),
    }
}
