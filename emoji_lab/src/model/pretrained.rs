//! A model from wherever it is: the embedded one, a folder, a `.gguf` file, the Hub.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::config::Gemma3Config;
use super::folder;
use super::generation_json::{read_generation_config, with_stop_tokens};
use super::gguf::{Rounding, read_gguf};
use super::save::gemma_generation_config;
use super::source::{FORMS, Source};
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use crate::display::say;
use crate::error::{Error, Result};
use crate::sniff::{disguise_of, read_text};

/// What a model's files hold, before it is put on a device.
#[derive(Debug, Clone)]
pub struct Pretrained {
    /// The model's shape.
    pub config: Gemma3Config,
    /// Its weights, f32 on the CPU.
    pub weights: Weights,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// `generation_config.json`, or Gemma's where there is none. Its `eos_token_id` is there: the
    /// file's own, else those of `config.json` or the GGUF with the tokenizer's.
    pub generation_config: Value,
    /// Where it came from, as the caller named it.
    pub origin: String,
}

/// Opens the model that `source` names: `"embedded"`, a transformers folder, a `.gguf` file (of a
/// split one any part), or a Hub repository id `owner/name`, which is downloaded first.
///
/// What exists on disk wins over a repository of that name. `~/…`, `file://…` and the address of a
/// model's page on the Hub are understood, too.
///
/// The values of a `.gguf` are what its blocks say, to the bit (transformers' `gguf_file=` rounds them to the
/// type that it is asked for). The blocks are kept, too: generation on the CPU reads them in place of the
/// values.
///
/// A head of its own (`lm_head.weight`) that is stored beside `tie_word_embeddings: true` is used,
/// and said in a line, if it is not the embedding.
///
/// # Errors
/// [`Error::Model`] if `source` is none of the four, or what it names is incomplete, damaged or not
/// a Gemma 3; [`Error::Hub`] if it cannot be downloaded.
pub fn open_pretrained(source: &str) -> Result<Pretrained> {
    open_files(source).map(Pretrained::made)
}

/// [`open_pretrained`], weights left as the files have them.
pub(super) fn open_files(source: &str) -> Result<Pretrained> {
    match Source::parse(source)? {
        Source::Embedded => embedded(),
        Source::Folder(path) => from_folder(&path, source),
        Source::File(path) => from_file(&path, source),
        Source::Hub { id, revision } => {
            from_folder(&super::download::download_model(&id, revision.as_deref())?, &id)
        }
    }
}

fn from_folder(folder: &Path, origin: &str) -> Result<Pretrained> {
    let config = read_config(folder)?;
    let generation_config = read_generation_config(folder)?;
    // Tokenizer and weights each keep one core busy for part of their time.
    let (tokenizer, weights) =
        rayon::join(|| Tokenizer::from_dir(folder), || Weights::open_folder(folder, &config));
    together(config, weights?, tokenizer?, generation_config, origin)
}

/// Reads and judges the `config.json` in `folder`.
///
/// # Errors
/// [`Error::Model`] that names the file, or says what the folder holds in its place.
pub(super) fn read_config(folder: &Path) -> Result<Gemma3Config> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Err(Error::model(
            folder.display(),
            "no config.json in the folder",
            folder::without_config(folder),
        ));
    }
    Gemma3Config::from_json(&read_text(&path)?, &path.display().to_string())
}

/// Puts together what came from a model's files, and settles what they disagree on.
fn together(
    mut config: Gemma3Config,
    mut weights: Weights,
    tokenizer: Tokenizer,
    generation_config: Option<Value>,
    origin: &str,
) -> Result<Pretrained> {
    if weights.settle_head(&mut config)? {
        say(format!(
            "{origin}: lm_head.weight is not the embedding although config.json says tie_word_embeddings: true; \
             the head that is stored is used, and the model is untied"
        ));
    }
    let tokenizer = tokenizer.for_model(config.vocab_size)?;
    let generation_config = generation_config.unwrap_or_else(|| {
        let mut gemmas = gemma_generation_config(&tokenizer);
        gemmas["eos_token_id"] = Value::Null;
        gemmas
    });
    let generation_config = with_stop_tokens(generation_config, &config.eos_token_ids, &tokenizer);
    Ok(Pretrained { config, weights, tokenizer, generation_config, origin: origin.to_string() })
}

fn from_file(path: &Path, origin: &str) -> Result<Pretrained> {
    let mut magic = [0u8; 4];
    let read = File::open(path).and_then(|mut file| file.read(&mut magic));
    read.map_err(|e| Error::io(path, "reading the file", e))?;
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if folder::UNFINISHED.contains(&ending.as_str()) {
        let help = "Let the download come to its end, and name the file that it makes";
        return Err(Error::model(path.display(), "is a download that has not come to its end", help));
    }
    if &magic != b"GGUF" {
        if let Some(found) = disguise_of(path) {
            return Err(Error::model(path.display(), found.problem, found.help));
        }
        if ending != "gguf" {
            let help = match ending.as_str() {
                "safetensors" | "json" => "Name the folder that it is in, not the file",
                _ => FORMS,
            };
            return Err(Error::model(path.display(), "not a .gguf file", help));
        }
    }
    folder::refuse_unfinished(path)?;
    let model = read_gguf(path, Rounding::None)?;
    together(model.config, model.weights, model.tokenizer, model.generation_config, origin)
}

/// The small model that comes along in the library; `assets/README.md` says how it was made.
fn embedded() -> Result<Pretrained> {
    read_bytes(
        (
            include_str!("../../assets/tiny/config.json"),
            include_bytes!("../../assets/tiny/model.safetensors"),
        ),
        (
            include_bytes!("../../assets/tiny/tokenizer.json"),
            include_str!("../../assets/tiny/tokenizer_config.json"),
        ),
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
    read_bytes((config, safetensors), (tokenizer_json, tokenizer_config), origin).map(Pretrained::made)
}

impl Pretrained {
    fn made(self) -> Self {
        Self { weights: self.weights.made(), ..self }
    }
}

fn read_bytes(
    (config, safetensors): (&str, &[u8]),
    (tokenizer_json, tokenizer_config): (&[u8], &str),
    origin: &str,
) -> Result<Pretrained> {
    let config = Gemma3Config::from_json(config, origin)?;
    let weights = Weights::open_safetensors_bytes(safetensors, origin, &config)?;
    let tokenizer = Tokenizer::from_bytes(tokenizer_json, tokenizer_config, origin)?;
    together(config, weights, tokenizer, None, origin)
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

    fn save_golden(dir: &Path) {
        let (tokenizer, config) = (tiny_tokenizer(), golden_config());
        let generation = gemma_generation_config(&tokenizer);
        save_pretrained_folder(dir, &config, &golden_weights().tensors, &tokenizer, &generation, DType::F32)
            .unwrap();
    }

    #[test]
    fn a_head_beside_a_tied_configuration_is_used_and_saved_again() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        save_golden(&dir);
        let mut tensors = golden_weights().tensors;
        let head = (&tensors["model.embed_tokens.weight"] * -1.0).unwrap();
        tensors.insert("lm_head.weight".into(), head);
        crate::model::write_safetensors(dir.join("model.safetensors"), &tensors, None).unwrap();
        let model = crate::model::load_model(dir.to_str().unwrap(), &crate::Device::Cpu).unwrap();
        assert!(!model.gemma.config().tie_word_embeddings);
        let again = root.path().join("again");
        model.save_pretrained(&again).unwrap();
        let read = open_pretrained(again.to_str().unwrap()).unwrap();
        assert!(!read.config.tie_word_embeddings);
        let values = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&read.weights.tensors["lm_head.weight"]), values(&tensors["lm_head.weight"]));
        // A copy of the embedding is nothing to keep.
        tensors.insert("lm_head.weight".into(), tensors["model.embed_tokens.weight"].clone());
        crate::model::write_safetensors(dir.join("model.safetensors"), &tensors, None).unwrap();
        let read = open_pretrained(dir.to_str().unwrap()).unwrap();
        assert!(read.config.tie_word_embeddings && !read.weights.tensors.contains_key("lm_head.weight"));
    }

    #[test]
    fn stop_tokens_are_those_of_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        save_golden(&dir);
        let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let stops = |generation: Option<&str>, eos: &str| {
            let config = config.replacen("\"eos_token_id\": 1", &format!("\"eos_token_id\": {eos}"), 1);
            std::fs::write(dir.join("config.json"), config).unwrap();
            let path = dir.join("generation_config.json");
            match generation {
                Some(text) => std::fs::write(path, text).unwrap(),
                None => std::fs::remove_file(path).unwrap(),
            }
            open_pretrained(dir.to_str().unwrap()).unwrap().generation_config["eos_token_id"].clone()
        };
        use serde_json::json;
        assert_eq!(stops(Some(r#"{"eos_token_id": [1, 5, 9]}"#), "1"), json!([1, 5, 9]));
        assert_eq!(stops(Some(r#"{"eos_token_id": 9}"#), "[1, 7]"), json!(9));
        assert_eq!(stops(Some(r#"{"eos_token_id": null}"#), "[1, 9]"), json!([1, 6, 9]));
        assert_eq!(stops(Some("{}"), "9"), json!([1, 6, 9]));
        assert_eq!(stops(None, "[1, 9]"), json!([1, 6, 9]));
        std::fs::write(dir.join("generation_config.json"), r#"{"eos_token_id": "<eos>"}"#).unwrap();
        let said = refused(&dir);
        assert!(said.contains("generation_config.json") && said.contains("eos_token_id"), "{said}");
    }

    #[test]
    fn every_file_of_a_folder_that_is_a_pointer_is_named() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        save_golden(&dir);
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 268 \n";
        for name in [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "model.safetensors",
        ] {
            let whole = std::fs::read(dir.join(name)).unwrap();
            for (text, wanted) in
                [(pointer, "Git LFS pointer"), ("<!DOCTYPE html><html>", "web page"), ("", "is empty")]
            {
                std::fs::write(dir.join(name), text).unwrap();
                let said = refused(&dir);
                assert!(said.contains(name) && said.contains(wanted), "{name}: {said}");
            }
            std::fs::write(dir.join(name), whole).unwrap();
        }
        open_pretrained(dir.to_str().unwrap()).unwrap();
        for (name, bytes, wanted) in [
            ("tiny.gguf", pointer.as_bytes(), "git lfs pull"),
            ("sha256-abc", pointer.as_bytes(), "git lfs pull"),
            ("page.gguf", b"<!DOCTYPE html>", "web page"),
            (
                "pytorch_model.bin",
                b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0archive/data.pkl",
                "PyTorch",
            ),
            ("model.pt", b"\x80\x02}q\0", "pickle"),
            ("tiny.gguf.part", b"GGUF\x03\0\0\0", "has not come to its end"),
            ("zeros.gguf", &[0; 600], "zeros"),
        ] {
            std::fs::write(root.path().join(name), bytes).unwrap();
            let said = refused(root.path().join(name));
            assert!(said.contains(name) && said.contains(wanted), "{name}: {said}");
        }
        // The folder above.
        std::fs::remove_file(root.path().join("tiny.gguf")).unwrap();
        let folder = root.path().join("above");
        std::fs::create_dir(&folder).unwrap();
        std::fs::rename(&dir, folder.join("model")).unwrap();
        assert!(refused(&folder).contains("The model lies in model"));
    }

    #[test]
    fn a_gguf_needs_no_ending_and_its_tokens_may_outnumber_the_rows() {
        let (tokens, scores, types) = crate::model::gguf::writer::tiny_tokens();
        let mut file = golden_gguf();
        let tokens = [&tokens[..], &["<image_soft_token>".to_string()]].concat();
        file.set_tokens(&tokens, &[&scores[..], &[0.0]].concat(), &[&types[..], &[4]].concat());
        file.set_u32("tokenizer.ggml.eot_token_id", 9);
        let root = tempfile::tempdir().unwrap();
        for name in ["sha256-1f", "model.bin"] {
            let path = root.path().join(name);
            std::fs::write(&path, file.bytes()).unwrap();
            let model = crate::model::load_model(path.to_str().unwrap(), &crate::Device::Cpu).unwrap();
            assert_eq!(model.gemma.config().vocab_size, 512);
            assert_eq!(model.stop_ids().unwrap(), [1, 6, 9]);
            assert!(model.tokenizer.encode("<image_soft_token>").is_err());
            // What is saved of it opens again.
            let dir = root.path().join("saved");
            model.save_pretrained(&dir).unwrap();
            assert_eq!(open_pretrained(dir.to_str().unwrap()).unwrap().config, *model.gemma.config());
        }
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
