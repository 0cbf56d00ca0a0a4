//! What the text that names a model means: the embedded one, a path, or a Hub repository.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::hub::is_repository_id;

pub(super) const FORMS: &str = "A model is \"embedded\" (the small one that comes along), a transformers folder, \
                                a .gguf file, or a Hugging Face Hub id such as google/gemma-3-270m-it";

/// Where a model is.
#[derive(Debug, PartialEq)]
pub(super) enum Source {
    /// The small model that comes along.
    Embedded,
    /// A transformers folder.
    Folder(PathBuf),
    /// A file, which should be a `.gguf`.
    File(PathBuf),
    /// A Hub repository, and its branch, tag or commit if one is named.
    Hub { id: String, revision: Option<String> },
}

impl Source {
    /// Reads `source`. What exists on disk wins over a repository of that name; `~/`, `file://` and
    /// addresses of the Hub's pages are understood.
    ///
    /// # Errors
    /// [`Error::Model`] that says what it was taken for and what to write instead.
    pub(super) fn parse(source: &str) -> Result<Self> {
        // Blanks around a name are a slip of the hand, unless there is a file of exactly that name.
        let named = if as_path(source).symlink_metadata().is_ok() { source } else { source.trim() };
        if named == "embedded" {
            return Ok(Self::Embedded);
        }
        let path = as_path(named);
        if path.is_dir() {
            return Ok(Self::Folder(path));
        }
        if path.is_file() {
            return Ok(Self::File(path));
        }
        let refused = |problem: &str, help: String| Err(Error::model(source, problem, help));
        if named.is_empty() {
            return Err(Error::model("\"\"", "no model is named", FORMS));
        }
        if path.symlink_metadata().is_ok() {
            return refused("a link to something that is not there", "Fetch or save the model again".into());
        }
        if let Some(rest) = after_hub_host(named) {
            return of_address(source, rest);
        }
        if named.contains("://") && !named.starts_with("file://") {
            return refused("an address on the web that is not the Hub's", FORMS.into());
        }
        let id = named.trim_end_matches('/');
        if is_repo_id(id) {
            return Ok(Self::Hub { id: id.to_string(), revision: None });
        }
        if let Some(help) = ollama_help(named) {
            return refused("no such file or folder; it reads like a name of Ollama's", help);
        }
        refused("no such file or folder", FORMS.into())
    }
}

/// `named` as a path: without `file://`, with the home folder in place of a leading `~`.
fn as_path(named: &str) -> PathBuf {
    let named = match named.strip_prefix("file://") {
        Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest).replace("%20", " "),
        None => named.to_string(),
    };
    let below_home = match named.as_str() {
        "~" => Some(""),
        other => other.strip_prefix("~/"),
    };
    match (below_home, std::env::var_os("HOME").filter(|home| !home.is_empty())) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(named),
    }
}

/// What follows the Hub's name in an address of it, with or without `https://`.
fn after_hub_host(named: &str) -> Option<&str> {
    if let Some(rest) = named.strip_prefix("hf://") {
        return Some(rest);
    }
    let rest = named.strip_prefix("https://").or_else(|| named.strip_prefix("http://")).unwrap_or(named);
    let rest = rest.strip_prefix("www.").unwrap_or(rest);
    ["huggingface.co/", "hf.co/"].iter().find_map(|host| rest.strip_prefix(host))
}

/// The repository that an address of the Hub leads to: `owner/name`, `owner/name/tree/REVISION`.
fn of_address(source: &str, rest: &str) -> Result<Source> {
    let refused = |problem: &str, help: String| Err(Error::model(source, problem, help));
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let rest = rest.strip_prefix("models/").unwrap_or(rest);
    let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
    if let Some(kind @ ("datasets" | "spaces" | "collections" | "papers" | "buckets")) =
        parts.first().copied()
    {
        return refused("an address of the Hub, but not of a model", format!("It is of its {kind}. {FORMS}"));
    }
    let [owner, name, more @ ..] = parts.as_slice() else {
        return refused("an address of the Hub that names no model", FORMS.into());
    };
    let (name, tag) = name.split_once(':').map_or((*name, None), |(name, tag)| (name, Some(tag)));
    let id = format!("{owner}/{name}");
    if !is_repo_id(&id) {
        return refused("an address of the Hub that names no model", FORMS.into());
    }
    if let Some(tag) = tag {
        let help = format!("Download the .gguf from https://huggingface.co/{id}/tree/main and give its path");
        return refused(&format!("it names the {tag} .gguf of a repository"), help);
    }
    match more {
        [] => Ok(Source::Hub { id, revision: None }),
        ["tree" | "commit", revision] => Ok(Source::Hub { id, revision: Some(revision.to_string()) }),
        ["blob" | "resolve" | "raw", revision, file @ ..] if !file.is_empty() => {
            let file = file.join("/");
            match file.ends_with(".gguf") {
                true => refused(
                    "it names one .gguf file on the Hub",
                    format!("Download it (hf download {id} {file}) and give its path"),
                ),
                false => refused(
                    "it names one file of a model on the Hub",
                    format!("Name the model: {id}, as of {revision}"),
                ),
            }
        }
        ["tree", ..] => {
            let help = format!("Download that folder (hf download {id}) and give its path");
            refused("it names a folder inside a repository", help)
        }
        _ => refused("an address of the Hub that names no model", format!("Name the model: {id}")),
    }
}

/// What to write in place of a name of Ollama's such as `gemma3:270m`; none if it is not one.
fn ollama_help(named: &str) -> Option<String> {
    let named = named.strip_prefix("ollama://").unwrap_or(named);
    let (model, tag) = named.split_once(':').unwrap_or((named, "latest"));
    let plain = |part: &str, more: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let is_gemma = model == "gemma3";
    if !(is_gemma || named.contains(':')) || !plain(model, "-_./") || !plain(tag, "-_.") {
        return None;
    }
    let blob = format!("give the path of its blob, which `ollama show {named} --modelfile` names after FROM");
    let size = tag.split('-').next().unwrap_or_default();
    let size = if size == "latest" { "4b" } else { size };
    Some(match is_gemma && ["270m", "1b", "4b", "12b", "27b"].contains(&size) {
        true => format!("On the Hub it is google/gemma-3-{size}-it; or {blob}"),
        false => format!("Give the Hub id of a Gemma 3, as google/gemma-3-270m-it; or {blob}"),
    })
}

/// Whether `source` can be a Hub repository: `owner/name` in the Hub's alphabet.
pub(super) fn is_repo_id(source: &str) -> bool {
    // A path that ends so was meant as a file.
    let is_file_name = [".gguf", ".safetensors", ".json", ".bin", ".part", ".incomplete"]
        .iter()
        .any(|end| source.ends_with(end));
    !is_file_name && is_repository_id(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(source: &str) -> String {
        Source::parse(source).expect_err("must be refused").to_string()
    }

    #[test]
    fn what_is_none_of_the_four_is_told_what_they_are() {
        for source in
            ["", "gemma", "no/such/folder", "./model", "models/x.gguf", "a b/c", "/nowhere", "~/no/model"]
        {
            let said = refused(source);
            assert!(said.contains("embedded") && said.contains("google/gemma-3-270m-it"), "{said}");
        }
        assert!(is_repo_id("google/gemma-3-270m-it") && is_repo_id("me/my_model.v2"));
        assert!(!is_repo_id("a/b/c") && !is_repo_id("../model") && !is_repo_id("~/model"));
    }

    #[test]
    fn a_folder_whose_name_ends_in_blanks_is_found() {
        let root = tempfile::tempdir().unwrap();
        for name in ["model ", "model\r\u{2028}", "plain"] {
            let folder = root.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            assert_eq!(Source::parse(folder.to_str().unwrap()).unwrap(), Source::Folder(folder.clone()));
        }
        let plain = root.path().join("plain");
        assert_eq!(Source::parse(&format!(" {}\n", plain.display())).unwrap(), Source::Folder(plain));
    }

    #[test]
    fn addresses_of_the_hub_name_their_repository() {
        let hub = |revision: Option<&str>| Source::Hub {
            id: "google/gemma-3-270m-it".into(),
            revision: revision.map(str::to_string),
        };
        for (source, revision) in [
            ("google/gemma-3-270m-it", None),
            (" google/gemma-3-270m-it/ ", None),
            ("https://huggingface.co/google/gemma-3-270m-it", None),
            ("http://www.huggingface.co/google/gemma-3-270m-it/", None),
            ("hf.co/google/gemma-3-270m-it?library=transformers", None),
            ("huggingface.co/google/gemma-3-270m-it", None),
            ("hf://google/gemma-3-270m-it", None),
            ("https://huggingface.co/google/gemma-3-270m-it/tree/main", Some("main")),
            ("https://huggingface.co/google/gemma-3-270m-it/commit/ac82b4e8", Some("ac82b4e8")),
        ] {
            assert_eq!(Source::parse(source).unwrap(), hub(revision), "{source}");
        }
        for (source, wanted) in [
            ("https://huggingface.co/a/b-GGUF/resolve/main/b-Q8_0.gguf", "hf download a/b-GGUF b-Q8_0.gguf"),
            ("https://huggingface.co/a/b/blob/main/model.safetensors", "Name the model: a/b"),
            ("hf.co/a/b-GGUF:Q4_K_M", "Q4_K_M .gguf"),
            ("https://huggingface.co/datasets/a/b", "not of a model"),
            ("https://huggingface.co/", "names no model"),
            ("https://huggingface.co/a/b/discussions/1", "Name the model: a/b"),
            ("https://huggingface.co/a/b/tree/main/fp16", "folder inside a repository"),
            ("https://github.com/a/b", "not the Hub's"),
            ("gemma3:270m", "google/gemma-3-270m-it"),
            ("gemma3:1b-it-qat", "google/gemma-3-1b-it"),
            ("gemma3", "google/gemma-3-4b-it"),
            ("llama3.2:latest", "ollama show llama3.2:latest --modelfile"),
        ] {
            let said = refused(source);
            assert!(said.contains(wanted), "{source}: {said}");
        }
    }

    #[test]
    fn paths_come_in_several_forms() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("my model");
        std::fs::create_dir(&folder).unwrap();
        let named = folder.to_str().unwrap();
        for source in
            [named.to_string(), format!("{named}/"), format!("file://{}", named.replace(' ', "%20"))]
        {
            let Source::Folder(found) = Source::parse(&source).unwrap() else { panic!("{source}") };
            assert_eq!(found.canonicalize().unwrap(), folder.canonicalize().unwrap());
        }
        assert!(as_path("~/x").ends_with("x"));
        assert!(std::env::var_os("HOME").is_none_or(|home| as_path("~/x") == Path::new(&home).join("x")));
        #[cfg(unix)]
        {
            let link = root.path().join("link");
            std::os::unix::fs::symlink(root.path().join("gone"), &link).unwrap();
            assert!(refused(link.to_str().unwrap()).contains("a link to something that is not there"));
        }
    }
}
