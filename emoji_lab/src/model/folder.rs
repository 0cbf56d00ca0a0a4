//! What a folder holds in place of the file that was looked for, and what to do about it.

use std::path::Path;

use crate::error::{Error, Result};

/// Endings of files that are still on their way.
pub(super) const UNFINISHED: [&str; 5] = ["part", "incomplete", "crdownload", "download", "aria2"];

/// How many folders are looked at for a model below the one that was named.
const MOST_FOLDERS: usize = 500;
const DEEPEST: usize = 3;

/// What to do about a folder without `config.json`.
pub(super) fn without_config(folder: &Path) -> String {
    let names = names(folder);
    if names.iter().any(|name| name == "adapter_config.json") {
        return "It holds an adapter: merge it with merge_adapters(&base_model, &folder)".to_string();
    }
    if let Some(gguf) = names.iter().find(|name| name.ends_with(".gguf") && !name.starts_with('.')) {
        return format!("It holds {gguf}: name the file itself");
    }
    if let Some(instead) = in_place_of(folder, "config.json") {
        return instead;
    }
    if let Some(below) = folders_below_with(folder, "config.json") {
        return format!("The model lies in {below}: name that folder");
    }
    if let Some(below) = folders_below_with(folder, "adapter_config.json") {
        return format!("It holds adapters, in {below}: merge one with merge_adapters(&base_model, &folder)");
    }
    if let Some(other) = names.iter().find(|name| is_weights_of_another_kind(name)) {
        return format!(
            "It holds {other}, which is not read here: save the model with transformers as safetensors"
        );
    }
    "A transformers folder has one: fetch or save the whole folder".to_string()
}

/// What to do about a folder without `model.safetensors` and its index.
pub(super) fn without_weights(folder: &Path) -> String {
    let names = names(folder);
    if names.iter().any(|name| name == "adapter_model.safetensors" || name == "adapter_config.json") {
        return "It holds an adapter: merge it with merge_adapters(&base_model, &folder)".to_string();
    }
    for wanted in ["model.safetensors", "model.safetensors.index.json"] {
        if let Some(instead) = in_place_of(folder, wanted) {
            return instead;
        }
    }
    let pickled = |name: &&String| {
        name.starts_with("pytorch_model") && (name.ends_with(".bin") || name.ends_with(".bin.index.json"))
    };
    if let Some(name) = names.iter().find(pickled) {
        return format!("Its {name} is not read here: save the model as safetensors");
    }
    if let Some(other) = names.iter().find(|name| name.ends_with(".safetensors") && !name.starts_with('.')) {
        return format!("It holds {other}: if those are all its weights, call the file model.safetensors");
    }
    if let Some(gguf) = names.iter().find(|name| name.ends_with(".gguf")) {
        return format!("It holds {gguf}: name the file itself");
    }
    if let Some(other) = names.iter().find(|name| is_weights_of_another_kind(name)) {
        return format!("Its {other} is not read here: save the model as safetensors");
    }
    "A transformers folder has one, or model.safetensors.index.json and its shards".to_string()
}

/// What stands for the file `wanted` without being it: a dangling link, a placeholder, a part.
pub(super) fn in_place_of(folder: &Path, wanted: &str) -> Option<String> {
    let path = folder.join(wanted);
    if path.is_symlink() && !path.exists() {
        return Some(format!("Its {wanted} is a link to a file that is not there: fetch the model again"));
    }
    let names = names(folder);
    let has = |name: String| names.contains(&name);
    if has(format!(".{wanted}.icloud")) {
        return Some(format!("{wanted} is in iCloud and not on this disk: download it in the Finder first"));
    }
    if let Some(ending) = UNFINISHED.iter().find(|ending| has(format!("{wanted}.{ending}"))) {
        return Some(format!(
            "It holds {wanted}.{ending}, a download that has not come to its end: download it again"
        ));
    }
    if has(format!("._{wanted}")) {
        return Some(format!("It holds ._{wanted}, a side file of macOS: copy {wanted} itself"));
    }
    None
}

fn is_weights_of_another_kind(name: &str) -> bool {
    let endings = [
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".h5",
        ".msgpack",
        ".onnx",
        ".tflite",
        ".task",
        ".litertlm",
        ".npz",
        ".keras",
    ];
    endings.iter().any(|ending| name.to_ascii_lowercase().ends_with(ending))
}

/// Refuses a file that aria2 has made in its full length and not yet filled.
///
/// # Errors
/// [`Error::Model`] if its control file lies beside it.
pub(super) fn refuse_unfinished(path: &Path) -> Result<()> {
    let mut control = path.as_os_str().to_owned();
    control.push(".aria2");
    match Path::new(&control).is_file() {
        false => Ok(()),
        true => Err(Error::model(
            path.display(),
            "is a download that has not come to its end: aria2's control file lies beside it",
            "Let aria2 finish it",
        )),
    }
}

/// The folders below `folder` that hold the file `wanted`, the first few by name.
fn folders_below_with(folder: &Path, wanted: &str) -> Option<String> {
    let mut found = vec![];
    let mut left = MOST_FOLDERS;
    let mut look_at = vec![(folder.to_path_buf(), 0)];
    while let Some((path, depth)) = look_at.pop() {
        if depth > 0 && path.join(wanted).is_file() {
            found.push(path.strip_prefix(folder).unwrap_or(&path).display().to_string());
            continue;
        }
        if depth == DEEPEST {
            continue;
        }
        for name in names(&path) {
            let below = path.join(name);
            if left > 0 && below.is_dir() {
                left -= 1;
                look_at.push((below, depth + 1));
            }
        }
    }
    found.sort();
    match found.len() {
        0 => None,
        1..=3 => Some(found.join(" or ")),
        more => Some(format!("{}, {} or one of {} more", found[0], found[1], more - 2)),
    }
}

/// The names of what is in `folder`, sorted; none if it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        folder
    }

    #[test]
    fn a_folder_without_its_configuration_says_what_it_holds() {
        for (files, wanted) in [
            (&["adapter_config.json"][..], "merge_adapters"),
            (&["a.gguf", "b.gguf"], "It holds a.gguf: name the file itself"),
            (&["snapshots/abc/config.json", "refs/main"], "lies in snapshots/abc: name that folder"),
            (&["one/config.json", "two/config.json"], "lies in one or two"),
            (&["checkpoint-9/adapter_config.json", "runs/x"], "adapters, in checkpoint-9"),
            (&[".config.json.icloud"], "iCloud"),
            (&["config.json.part"], "has not come to its end"),
            (&["._config.json"], "side file of macOS"),
            (&["flax_model.msgpack"], "flax_model.msgpack, which is not read"),
            (&["gemma.task"], "gemma.task, which is not read"),
            (&[], "A transformers folder has one"),
        ] {
            let said = without_config(with(files).path());
            assert!(said.contains(wanted), "{files:?}: {said}");
        }
    }

    #[test]
    fn a_file_that_is_still_being_filled_is_refused() {
        let folder = with(&["model.safetensors"]);
        let path = folder.path().join("model.safetensors");
        assert!(refuse_unfinished(&path).is_ok());
        std::fs::write(folder.path().join("model.safetensors.aria2"), "x").unwrap();
        assert!(
            refuse_unfinished(&path).unwrap_err().to_string().contains("model.safetensors: is a download")
        );
    }

    #[test]
    fn a_folder_without_weights_says_what_it_holds() {
        for (files, wanted) in [
            (&["pytorch_model.bin"][..], "pytorch_model.bin is not read here"),
            (&["pytorch_model.bin.index.json"], "pytorch_model.bin.index.json is not read here"),
            (&["model.safetensors.incomplete"], "has not come to its end"),
            (&["._model.safetensors"], "side file of macOS"),
            (&[".model.safetensors.icloud"], "iCloud"),
            (&["model.fp16.safetensors"], "call the file model.safetensors"),
            (&["tf_model.h5"], "tf_model.h5 is not read"),
            (&["model.Q8_0.gguf"], "name the file itself"),
            (&["adapter_model.safetensors"], "merge_adapters"),
            (&[], "index.json and its shards"),
        ] {
            let said = without_weights(with(files).path());
            assert!(said.contains(wanted), "{files:?}: {said}");
        }
        #[cfg(unix)]
        {
            let folder = with(&[]);
            let link = folder.path().join("model.safetensors");
            std::os::unix::fs::symlink("../../blobs/gone", link).unwrap();
            assert!(without_weights(folder.path()).contains("a link to a file that is not there"));
        }
    }
}
