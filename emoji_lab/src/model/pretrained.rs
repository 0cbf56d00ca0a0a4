//! A model from wherever it is: the embedded one, a folder, a `.gguf` file, the Hub.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::config::Gemma3Config;
use super::gguf::{Rounding, open_gguf};
use super::save::gemma_generation_config;
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use crate::error::{Error, Result};

/// What a model's files hold, before it is put on a device.
#[derive(Debug, Clone)]
pub struct Pretrained {
    /// The model's shape.
    pub config: Gemma3Config,
    /// Its weights, f32 on the CPU.
    pub weights: Weights,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// `generation_config.json`, or Gemma's where there is none.
    pub generation_config: Value,
    /// Where it came from, as the caller named it.
    pub origin: String,
}

const FORMS: &str = "A model is \"embedded\" (the small one that comes along), a transformers folder, \
                     a .gguf file, or a Hugging Face Hub id such as google/gemma-3-270m-it";

/// Opens the model that `source` names: `"embedded"`, a transformers folder, a `.gguf` file, or a
/// Hub repository id `owner/name`, which is downloaded first.
///
/// What exists on disk wins over a repository of that name.
///
/// # Errors
/// [`Error::Model`] if `source` is none of the four, or what it names is incomplete, damaged or not
/// a Gemma 3; [`Error::Hub`] if it cannot be downloaded.
pub fn open_pretrained(source: &str) -> Result<Pretrained> {
    let path = Path::new(source);
    if source == "embedded" {
        embedded()
    } else if path.is_dir() {
        from_folder(path, source)
    } else if path.is_file() {
        from_file(path, source)
    } else if is_repo_id(source) {
        from_folder(&crate::hub::download_model(source, None)?, source)
    } else {
        let problem = if source.is_empty() { "no model is named" } else { "no such file or folder" };
        let subject = if source.is_empty() { "\"\"" } else { source };
        Err(Error::model(subject, problem, FORMS))
    }
}

fn from_folder(folder: &Path, origin: &str) -> Result<Pretrained> {
    let path = folder.join("config.json");
    if !path.is_file() {
        let mut help = "A transformers folder has one: fetch or save the whole folder";
        if folder.join("adapter_config.json").is_file() {
            help = "It holds an adapter: merge it with merge_adapters(&base_model, &folder)";
        } else if has_gguf(folder) {
            help = "It holds a .gguf file: name the file itself";
        }
        return Err(Error::model(folder.display(), "no config.json in the folder", help));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "reading the file", e))?;
    let config = Gemma3Config::from_json(&text, &path.display().to_string())?;
    // Tokenizer and weights each keep one core busy for part of their time.
    let (tokenizer, weights) =
        rayon::join(|| Tokenizer::from_dir(folder), || Weights::from_folder(folder, &config));
    let tokenizer = tokenizer?.for_model(config.vocab_size)?;
    let path = folder.join("generation_config.json");
    let generation_config = if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "reading the file", e))?;
        serde_json::from_str::<Value>(&text)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(|| Error::model(path.display(), "not a JSON object", "Fetch the file again"))?
    } else {
        gemma_generation_config(&tokenizer)
    };
    Ok(Pretrained { weights: weights?, config, tokenizer, generation_config, origin: origin.to_string() })
}

fn from_file(path: &Path, origin: &str) -> Result<Pretrained> {
    let mut magic = [0u8; 4];
    let read = File::open(path).and_then(|mut file| file.read(&mut magic));
    read.map_err(|e| Error::io(path, "reading the file", e))?;
    let is_named_gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if &magic != b"GGUF" && !is_named_gguf {
        let help = match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors" | "json") => "Name the folder that it is in, not the file",
            _ => FORMS,
        };
        return Err(Error::model(path.display(), "not a .gguf file", help));
    }
    let model = open_gguf(path, Rounding::Bf16)?;
    let tokenizer = model.tokenizer.for_model(model.config.vocab_size)?;
    Ok(Pretrained {
        generation_config: gemma_generation_config(&tokenizer),
        config: model.config,
        weights: model.weights,
        tokenizer,
        origin: origin.to_string(),
    })
}

/// The small model that comes along in the library; `assets/README.md` says how it was made.
fn embedded() -> Result<Pretrained> {
    pretrained_from_bytes(
        include_str!("../../assets/tiny/config.json"),
        include_bytes!("../../assets/tiny/model.safetensors"),
        include_bytes!("../../assets/tiny/tokenizer.json"),
        include_str!("../../assets/tiny/tokenizer_config.json"),
        "embedded",
    )
}

/// A model whose files (`config.json`, `model.safetensors`, `tokenizer.json`,
/// `tokenizer_config.json`) are in memory. `origin` names them in errors.
///
/// # Errors
/// As [`open_pretrained`].
pub fn pretrained_from_bytes(
    config: &str,
    safetensors: &[u8],
    tokenizer_json: &[u8],
    tokenizer_config: &str,
    origin: &str,
) -> Result<Pretrained> {
    let config = Gemma3Config::from_json(config, origin)?;
    let weights = Weights::from_safetensors_bytes(safetensors, origin, &config)?;
    let tokenizer =
        Tokenizer::from_bytes(tokenizer_json, tokenizer_config, origin)?.for_model(config.vocab_size)?;
    let generation_config = gemma_generation_config(&tokenizer);
    Ok(Pretrained { config, weights, tokenizer, generation_config, origin: origin.to_string() })
}

fn has_gguf(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| entry.path().extension().is_some_and(|e| e == "gguf"))
}

/// Whether `source` can be a Hub repository: `owner/name` in the Hub's alphabet.
fn is_repo_id(source: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    // A path that ends so was meant as a file.
    let is_file_name = [".gguf", ".safetensors", ".json"].iter().any(|end| source.ends_with(end));
    !is_file_name && source.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name))
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::model::gguf::writer::{GOLDEN_BYTES, golden_config, golden_gguf, golden_weights};
    use crate::model::gguf_tokenizer::tests::tiny_tokenizer;
    use crate::model::save_pretrained_folder;

    fn refused(source: impl AsRef<Path>) -> String {
        open_pretrained(source.as_ref().to_str().unwrap()).expect_err("must be refused").to_string()
    }

    #[test]
    fn what_is_none_of_the_four_is_told_what_they_are() {
        for source in ["", "gemma", "no/such/folder", "./model", "models/x.gguf", "a b/c", "/nowhere"] {
            let said = refused(source);
            assert!(said.contains("embedded") && said.contains("google/gemma-3-270m-it"), "{said}");
        }
        assert!(is_repo_id("google/gemma-3-270m-it") && is_repo_id("me/my_model.v2"));
        assert!(!is_repo_id("a/b/c") && !is_repo_id("../model") && !is_repo_id("~/model"));
    }

    #[test]
    fn a_folder_is_told_which_file_it_lacks() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        let save = || {
            let (tokenizer, config) = (tiny_tokenizer(), golden_config());
            let generation = gemma_generation_config(&tokenizer);
            let tensors = golden_weights().tensors;
            save_pretrained_folder(&dir, &config, &tensors, &tokenizer, &generation, DType::F32).unwrap();
        };
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            save();
            std::fs::remove_file(dir.join(name)).unwrap();
            let said = refused(&dir);
            assert!(said.contains(&format!("no {name}")), "{said}");
        }
        save();
        std::fs::remove_file(dir.join("generation_config.json")).unwrap();
        let model = open_pretrained(dir.to_str().unwrap()).unwrap();
        assert_eq!(model.generation_config["eos_token_id"], serde_json::json!([1, 6]));
        std::fs::write(dir.join("generation_config.json"), "[]").unwrap();
        assert!(refused(&dir).contains("generation_config.json"));
        assert!(refused(dir.join("model.safetensors")).contains("Name the folder"));
    }

    #[test]
    fn opens_a_gguf_and_a_model_in_memory() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("model.gguf");
        std::fs::write(&path, golden_gguf().bytes()).unwrap();
        let model = open_pretrained(path.to_str().unwrap()).unwrap();
        assert_eq!(model.config, golden_config());
        assert!(refused(root.path()).contains("name the file itself"));
        std::fs::write(&path, b"GG").unwrap();
        assert!(refused(&path).contains("cut short"));
        std::fs::write(root.path().join("notes.txt"), b"GG").unwrap();
        assert!(refused(root.path().join("notes.txt")).contains("not a .gguf file"));

        tiny_tokenizer().save_pretrained(root.path()).unwrap();
        let [json, config] = ["tokenizer.json", "tokenizer_config.json"]
            .map(|f| std::fs::read_to_string(root.path().join(f)).unwrap());
        let shape = include_str!("../../../tests/fixtures/golden/model/config.json");
        let model = pretrained_from_bytes(shape, GOLDEN_BYTES, json.as_bytes(), &config, "memory").unwrap();
        assert_eq!(model.weights.parameters(), golden_weights().parameters());
    }
}
