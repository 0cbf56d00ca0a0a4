//! The two files of an adapter's folder, or what the folder is instead.

use std::path::{Path, PathBuf};

use super::adapter::{CONFIG_FILE, TENSOR_FILE};
use crate::error::{Error, Result};
use crate::sniff::disguise_of;

/// `adapter_config.json` and `adapter_model.safetensors` of `dir`.
///
/// # Errors
/// [`Error::Model`] that says what is there instead, and what to name.
pub(super) fn files(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let (config, tensors) = (dir.join(CONFIG_FILE), dir.join(TENSOR_FILE));
    if dir.is_file() {
        let help = "Name the folder that it is in";
        return Err(Error::model(dir.display(), "a file, not an adapter's folder", help));
    }
    if !dir.exists() {
        let help = "Name the folder of trainer.save_model, a checkpoint-N folder, or one that PEFT wrote";
        return Err(Error::model(dir.display(), "there is no such folder", help));
    }
    for (path, name) in [(&config, CONFIG_FILE), (&tensors, TENSOR_FILE)] {
        if !path.is_file() {
            return Err(Error::model(dir.display(), format!("no {name} in this folder"), instead(dir, name)));
        }
        if let Some(disguise) = disguise_of(path) {
            // An empty file of tensors is said by its reader to be cut short, as others are.
            if std::fs::metadata(path).is_ok_and(|file| file.len() > 0) {
                return Err(Error::model(path.display(), disguise.problem, disguise.help));
            }
        }
    }
    Ok((config, tensors))
}

/// What to name instead of this folder, by what is in it.
fn instead(dir: &Path, missing: &str) -> String {
    let has = |name: &str| dir.join(name).is_file();
    let entries = || std::fs::read_dir(dir).into_iter().flatten().flatten();
    let below = |name: &str| {
        let mut found: Vec<String> = entries()
            .filter(|entry| entry.path().join(name).is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        found.sort();
        found
    };
    if missing == TENSOR_FILE && has("adapter_model.bin") {
        return "Its adapter_model.bin is a pickle, which can run code and is not read here: load it in PEFT and save it \
                with save_pretrained(folder, safe_serialization=True)"
            .to_string();
    }
    if has("adapters.safetensors") {
        return "It holds an adapter of MLX, whose matrices lie the other way round: convert it to PEFT's format"
            .to_string();
    }
    if has("config.json") {
        return "It holds a whole model: open it with load_model".to_string();
    }
    match below(CONFIG_FILE) {
        found if !found.is_empty() => format!("Name one of the adapters in it: {}", found.join(", ")),
        _ => {
            "An adapter folder holds adapter_config.json and adapter_model.safetensors: choose the folder of \
              trainer.save_model, or a checkpoint-N folder"
                .to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_adapter_is_said_with_what_to_name() {
        let dir = tempfile::tempdir().unwrap();
        let says = |part: &str| {
            let error = files(dir.path()).unwrap_err().to_string();
            assert!(error.contains(part), "{error} should say {part}");
        };
        says("choose the folder of trainer.save_model");
        std::fs::create_dir(dir.path().join("checkpoint-3")).unwrap();
        std::fs::write(dir.path().join("checkpoint-3").join(CONFIG_FILE), "{}").unwrap();
        says("Name one of the adapters in it: checkpoint-3");
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        says("open it with load_model");
        std::fs::write(dir.path().join(CONFIG_FILE), "version https://git-lfs.github.com/spec/v1\n").unwrap();
        says("adapter_config.json: is a Git LFS pointer");
        std::fs::write(dir.path().join(CONFIG_FILE), "{}").unwrap();
        std::fs::write(dir.path().join("adapter_model.bin"), "x").unwrap();
        says("a pickle, which can run code");
        std::fs::write(dir.path().join(TENSOR_FILE), "version https://git-lfs.github.com/spec/v1\n").unwrap();
        says("adapter_model.safetensors: is a Git LFS pointer");
        assert!(files(&dir.path().join("nowhere")).unwrap_err().to_string().contains("no such folder"));
        assert!(files(&dir.path().join("config.json")).unwrap_err().to_string().contains("Name the folder"));
    }
}
