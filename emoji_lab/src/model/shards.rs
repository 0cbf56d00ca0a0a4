//! A model's weights in several files: those that the index names, or that name themselves.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::sniff::read_text;

/// No model is in more files; a damaged name must not make us look for millions.
const MOST_SHARDS: u32 = 1000;

/// `model-00001-of-0000N.safetensors` and its fellows, if the folder has one of them.
pub(super) fn shards_without_index(folder: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(vec![]) };
    let number_of = |name: &str| -> Option<u32> {
        let (number, count) =
            name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
        number.parse::<u32>().ok()?;
        count.parse().ok()
    };
    let counts: BTreeSet<u32> =
        entries.flatten().filter_map(|entry| number_of(entry.file_name().to_str()?)).collect();
    let counts: Vec<u32> = counts.into_iter().collect();
    match *counts.as_slice() {
        [] => Ok(vec![]),
        [count] if (1..=MOST_SHARDS).contains(&count) => {
            Ok((1..=count).map(|n| folder.join(format!("model-{n:05}-of-{count:05}.safetensors"))).collect())
        }
        _ => Err(Error::model(
            folder.display(),
            format!("no model.safetensors.index.json, and shards of {counts:?} files each"),
            "Fetch the whole model again, its index with it",
        )),
    }
}

/// The files that a `model.safetensors.index.json` lists, in order, each once.
pub(super) fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let origin = index.display();
    let text = read_text(index)?;
    let damaged = |problem: String| Error::model(&origin, problem, "Fetch the file again");
    let value: Value = serde_json::from_str(&text).map_err(|e| damaged(format!("not valid JSON ({e})")))?;
    let map = value
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| damaged("no weight_map in it".to_string()))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| is_plain_file_name(name));
        names.insert(name.ok_or_else(|| damaged(format!("tensor {tensor} is said to be in {file}")))?);
    }
    if names.is_empty() {
        return Err(damaged("its weight_map names no file".to_string()));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// An index comes from elsewhere: its files lie beside it, nowhere else.
fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\'])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::model::gguf::writer::{golden_config, golden_weights};
    use crate::model::{Weights, write_safetensors};

    #[test]
    fn shards_without_an_index_are_read_if_all_are_there() {
        let (golden, config) = (golden_weights().tensors, golden_config());
        let folder = tempfile::tempdir().unwrap();
        let path = |n: usize| folder.path().join(format!("model-{n:05}-of-00003.safetensors"));
        for n in 1..=3usize {
            let part: BTreeMap<_, _> =
                golden.iter().skip(n - 1).step_by(3).map(|(name, t)| (name.clone(), t.clone())).collect();
            write_safetensors(path(n), &part, None).unwrap();
        }
        assert_eq!(Weights::from_folder(folder.path(), &config).unwrap().tensors.len(), golden.len());
        std::fs::remove_file(path(1)).unwrap();
        std::fs::remove_file(path(3)).unwrap();
        let said = Weights::from_folder(folder.path(), &config).unwrap_err().to_string();
        let missing = "model-00001-of-00003.safetensors, model-00003-of-00003.safetensors";
        assert!(said.contains(missing), "{said}");
        std::fs::write(path(2), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
            .unwrap();
        std::fs::copy(path(2), path(1)).unwrap();
        std::fs::copy(path(2), path(3)).unwrap();
        let said = Weights::from_folder(folder.path(), &config).unwrap_err().to_string();
        assert!(said.contains("model-00001-of-00003.safetensors: is a Git LFS pointer"), "{said}");
        std::fs::write(folder.path().join("model-00001-of-00002.safetensors"), "x").unwrap();
        let said = Weights::from_folder(folder.path(), &config).unwrap_err().to_string();
        assert!(said.contains("[2, 3]"), "{said}");
    }

    #[test]
    fn an_index_names_files_beside_it_only() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        for (text, wanted) in [
            ("{", "not valid JSON"),
            ("{}", "no weight_map"),
            (r#"{"weight_map": {"a": "../../etc/passwd"}}"#, "tensor a"),
            (r#"{"weight_map": {"a": 5}}"#, "tensor a"),
            (r#"{"weight_map": {}}"#, "names no file"),
            ("version https://git-lfs.github.com/spec/v1", "index.json: is a Git LFS pointer"),
        ] {
            std::fs::write(&index, text).unwrap();
            let said = Weights::from_folder(folder.path(), &golden_config()).unwrap_err().to_string();
            assert!(said.contains(wanted), "{said}");
        }
    }
}
