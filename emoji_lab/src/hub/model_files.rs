//! Which files of a model repository are needed.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::listing::{RemoteFile, is_inside};
use super::repo::Repo;
use crate::error::{Error, Result};

/// The index of a model whose weights are in several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// The weights in one file.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// A model's shape.
pub(crate) const CONFIG: &str = "config.json";
/// Without these a model cannot be loaded.
pub(crate) const REQUIRED: [&str; 2] = [CONFIG, "tokenizer.json"];

/// Small files that belong to a model: settings, tokenizer, chat template, licence texts. The
/// sentencepiece `tokenizer.model` is left out: `tokenizer.json` holds the same.
const SIDE_FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
];

/// The small files of a model that its repository has, `config.json` first: a gated repository shows
/// itself before anything large is asked for.
pub(crate) fn side_files<'a>(repo: &Repo, files: &'a [RemoteFile]) -> Result<Vec<&'a RemoteFile>> {
    let chosen: Vec<_> =
        SIDE_FILES.iter().filter_map(|name| files.iter().find(|file| file.path == **name)).collect();
    for name in REQUIRED {
        if !chosen.iter().any(|file| file.path == name) {
            let help = match files.iter().any(|file| file.path.ends_with(".gguf")) {
                true => "It holds .gguf files: download one and give load_model its path",
                false => {
                    "Take the repository of a Gemma 3 text model in transformers' format, as google/gemma-3-270m-it"
                }
            };
            return Err(Error::hub(repo.subject(), format!("it has no {name}"), help));
        }
    }
    Ok(chosen)
}

/// The weight files: those that `index` names, or `model.safetensors`.
pub(crate) fn weight_files<'a>(
    repo: &Repo,
    files: &'a [RemoteFile],
    index: Option<&Path>,
) -> Result<Vec<&'a RemoteFile>> {
    let names = match index {
        Some(index) => shard_names(index)?,
        None => [WEIGHTS.to_string()].into(),
    };
    names
        .iter()
        .map(|name| {
            files.iter().find(|file| file.path == *name).ok_or_else(|| {
                let problem = match index {
                    Some(_) => format!("its {INDEX} names {name}, which it does not have"),
                    None => format!("it has neither {WEIGHTS} nor {INDEX}"),
                };
                let help = "Take a repository with safetensors weights: pickled ones (.bin) can run code, and are not read";
                Error::hub(repo.subject(), problem, help)
            })
        })
        .collect()
}

/// The files that an index names, each once.
pub(crate) fn shard_names(index: &Path) -> Result<BTreeSet<String>> {
    let bad = |problem: String| {
        Error::model(index.display(), problem, "Download it again: remove the file and run the step anew")
    };
    let text = std::fs::read(index).map_err(|e| Error::io(index, "reading the index of the weights", e))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| bad(format!("it is not JSON ({e})")))?;
    let map = value
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| bad("it has no weight_map".into()))?;
    let names: BTreeSet<String> = map.values().filter_map(Value::as_str).map(str::to_string).collect();
    match names.iter().find(|name| !is_inside(name)) {
        Some(name) => Err(bad(format!("it names a file outside of its folder: {name:?}"))),
        None if names.is_empty() => Err(bad("its weight_map is empty".into())),
        None => Ok(names),
    }
}

/// What a model's snapshot folder lacks to be loaded; empty if nothing.
pub(crate) fn missing_files(snapshot: &Path) -> Vec<String> {
    let has = |name: &str| snapshot.join(name).is_file();
    let mut missing: Vec<String> =
        REQUIRED.iter().filter(|name| !has(name)).map(|name| name.to_string()).collect();
    let index = snapshot.join(INDEX);
    let weights = match index.is_file() {
        true => shard_names(&index).unwrap_or_else(|_| [INDEX.to_string()].into()),
        false => [WEIGHTS.to_string()].into(),
    };
    missing.extend(weights.into_iter().filter(|name| name == INDEX || !has(name)));
    missing
}

#[cfg(test)]
mod tests {
    use super::super::hash::FileIds;
    use super::super::repo::RepoKind;
    use super::*;

    fn files(names: &[&str]) -> Vec<RemoteFile> {
        let id = || super::super::hash::ContentId::parse(&FileIds::of_bytes(b"").git).unwrap();
        names.iter().map(|name| RemoteFile { path: name.to_string(), size: 0, id: id() }).collect()
    }

    #[test]
    fn a_model_needs_its_files() {
        let repo = Repo::new(RepoKind::Model, "a/b", None).unwrap();
        let gguf = side_files(&repo, &files(&["x.gguf"])).unwrap_err().to_string();
        assert!(gguf.contains(".gguf"), "{gguf}");
        let chosen =
            files(&["README.md", "tokenizer.model", "tokenizer.json", "config.json", "model.safetensors"]);
        let names: Vec<_> =
            side_files(&repo, &chosen).unwrap().iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["config.json", "tokenizer.json"]);
        assert_eq!(weight_files(&repo, &chosen, None).unwrap()[0].path, "model.safetensors");
        let bin = files(&["config.json", "tokenizer.json", "pytorch_model.bin"]);
        assert!(weight_files(&repo, &bin, None).unwrap_err().to_string().contains("safetensors"));
    }

    #[test]
    fn an_index_names_its_shards() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join(INDEX);
        std::fs::write(
            &index,
            r#"{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors","c":"m-1.safetensors"}}"#,
        )
        .unwrap();
        assert_eq!(shard_names(&index).unwrap().len(), 2);
        assert_eq!(
            missing_files(dir.path()),
            ["config.json", "tokenizer.json", "m-1.safetensors", "m-2.safetensors"]
        );
        for bad in ["", "{}", r#"{"weight_map":{}}"#, r#"{"weight_map":{"a":"../../x"}}"#] {
            std::fs::write(&index, bad).unwrap();
            assert!(shard_names(&index).is_err(), "{bad}");
        }
        assert_eq!(missing_files(dir.path()).last().map(String::as_str), Some(INDEX));
    }
}
