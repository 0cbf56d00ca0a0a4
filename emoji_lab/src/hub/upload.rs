//! What a push would send: the files of a folder, and how they differ from what the Hub has.

use std::path::{Path, PathBuf};

use super::hash::FileIds;
use super::listing::RemoteFile;
use super::progress::bytes;
use super::push::RepositoryCard;
use super::token::{Token, looks_like_token};
use crate::error::{Error, Result};

/// Files up to this size are searched for tokens before they are sent.
const SEARCHED: u64 = 4 << 20;

/// What happens to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileState {
    /// It would be sent.
    Planned,
    /// It was sent.
    Sent,
    /// The repository had it already.
    Unchanged,
}

/// A file of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedFile {
    /// Its path in the repository.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// What happened to it.
    pub state: FileState,
}

/// Where a file's bytes are.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    File(PathBuf),
    Text(String),
}

/// A file to send.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    pub path: String,
    pub source: Source,
    pub size: u64,
}

impl Upload {
    /// Its hashes: reads the file.
    pub fn ids(&self) -> Result<FileIds> {
        match &self.source {
            Source::Text(text) => Ok(FileIds::of_bytes(text.as_bytes())),
            Source::File(path) => {
                FileIds::of_file(path).map_err(|e| Error::io(path, "hashing a file to push", e))
            }
        }
    }

    /// Its whole content.
    pub fn read(&self) -> Result<Vec<u8>> {
        match &self.source {
            Source::Text(text) => Ok(text.clone().into_bytes()),
            Source::File(path) => {
                std::fs::read(path).map_err(|e| Error::io(path, "reading a file to push", e))
            }
        }
    }
}

/// The folder's files, and the card as `README.md` with its picture.
///
/// Hidden files, half-written ones (`.part`, `.incomplete`) and training checkpoints stay here. A file
/// that holds an access token is an error: what is pushed cannot be called back.
pub(crate) fn plan_uploads(
    folder: &Path,
    card: &dyn RepositoryCard,
    repo_id: &str,
    token: Option<&Token>,
) -> Result<Vec<Upload>> {
    let mut files = Vec::new();
    walk(folder, &mut |relative, path| {
        files.push(Upload { path: relative.to_string(), source: Source::File(path.to_path_buf()), size: 0 });
    })
    .map_err(|e| Error::io(folder, "listing the folder to push", e))?;
    if files.is_empty() {
        return Err(Error::hub(
            repo_id,
            format!("the folder {} has no file to push", folder.display()),
            "Save the model there first: merged.save_pretrained(&folder)?",
        ));
    }
    for file in &mut files {
        if let Source::File(path) = &file.source {
            file.size =
                std::fs::metadata(path).map_err(|e| Error::io(path, "reading a file to push", e))?.len();
        }
    }
    let mut made = vec![("README.md", card.readme(repo_id))];
    made.extend(card.pictures());
    for (name, text) in made {
        files.retain(|file| file.path != name);
        files.push(Upload { path: name.to_string(), size: text.len() as u64, source: Source::Text(text) });
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    for file in files.iter().filter(|file| file.size <= SEARCHED) {
        let content = file.read()?;
        let has_this = token.is_some_and(|token| contains(&content, token.secret().as_bytes()));
        if has_this || looks_like_token(&content) {
            return Err(Error::hub(
                repo_id,
                format!("{} holds what looks like an access token; nothing was sent", file.path),
                "Remove it from the file, and revoke the token if the file was shown to anyone",
            ));
        }
    }
    Ok(files)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

/// Calls `found` for every file under `root` that a push would take, with its path in the repository.
pub(crate) fn walk(root: &Path, found: &mut dyn FnMut(&str, &Path)) -> std::io::Result<()> {
    let mut folders = vec![(String::new(), root.to_path_buf())];
    while let Some((prefix, folder)) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let left_out = name.starts_with('.') || name.ends_with(".part") || name.ends_with(".incomplete");
            if left_out {
                continue;
            }
            let relative = format!("{prefix}{name}");
            // The target of a link counts: a snapshot of the cache is made of links. A link to a
            // folder is not followed, as it may lead in a circle.
            let meta = std::fs::metadata(&path)?;
            if meta.is_file() {
                found(&relative, &path);
            } else if meta.is_dir() && !path.is_symlink() && !name.starts_with("checkpoint-") {
                folders.push((format!("{relative}/"), path));
            }
        }
    }
    Ok(())
}

/// A file to send, with its hashes.
pub(crate) type HashedUpload = (Upload, FileIds);

/// Splits a plan into what must be sent and what the repository has already.
pub(crate) fn changed(files: Vec<Upload>, remote: &[RemoteFile]) -> Result<(Vec<HashedUpload>, Vec<Upload>)> {
    let (mut send, mut same) = (Vec::new(), Vec::new());
    for file in files {
        let ids = file.ids()?;
        let there = remote.iter().find(|there| there.path == file.path);
        match there.is_some_and(|there| there.size == ids.size && ids.is(&there.id)) {
            true => same.push(file),
            false => send.push((file, ids)),
        }
    }
    Ok((send, same))
}

/// A list of files for people: one line each, the sizes in a column.
pub(crate) fn listing(files: &[PushedFile]) -> String {
    let width = files.iter().map(|file| file.path.chars().count()).max().unwrap_or(0);
    let line = |file: &PushedFile| {
        let note = match file.state {
            FileState::Planned => "",
            FileState::Sent => "  sent",
            FileState::Unchanged => "  unchanged",
        };
        format!("  {:width$}  {:>9}{note}", file.path, bytes(file.size))
    };
    files.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::ModelCard;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn a_plan_is_the_folder_and_the_card() {
        let dir = folder(&[
            ("config.json", "{}"),
            ("README.md", "old"),
            (".git/config", "x"),
            ("a.part", "x"),
            ("sub/x.txt", "y"),
            ("checkpoint-3/config.json", "{}"),
        ]);
        let card = ModelCard { plot: Some("<svg/>".into()), ..Default::default() };
        let files = plan_uploads(dir.path(), &card, "ann/x", None).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["README.md", "config.json", "loss.svg", "sub/x.txt"]);
        assert!(String::from_utf8(files[0].read().unwrap()).unwrap().starts_with("---\n"));
    }

    #[test]
    fn an_empty_or_missing_folder_is_an_error() {
        let dir = folder(&[(".hidden", "x")]);
        assert!(
            plan_uploads(dir.path(), &ModelCard::default(), "ann/x", None)
                .unwrap_err()
                .to_string()
                .contains("no file to push")
        );
        let gone = dir.path().join("gone");
        assert!(
            plan_uploads(&gone, &ModelCard::default(), "ann/x", None)
                .unwrap_err()
                .to_string()
                .contains("gone")
        );
    }

    #[test]
    fn a_file_with_a_token_is_not_sent() {
        let dir = folder(&[("notes.txt", "my key is hf_abcdefghijABCDEFGHIJ0123456789 ok")]);
        let error = plan_uploads(dir.path(), &ModelCard::default(), "ann/x", None).unwrap_err().to_string();
        assert!(error.contains("notes.txt") && !error.contains("abcdefghij"), "{error}");
        let odd = folder(&[("notes.txt", "key=oddmarker!")]);
        let token = Token::new("oddmarker!").unwrap();
        assert!(plan_uploads(odd.path(), &ModelCard::default(), "ann/x", Some(&token)).is_err());
        assert!(plan_uploads(odd.path(), &ModelCard::default(), "ann/x", None).is_ok());
    }

    #[test]
    fn what_the_hub_has_is_not_sent_again() {
        let dir = folder(&[("a.txt", "one"), ("b.txt", "two")]);
        let files = plan_uploads(dir.path(), &ModelCard::default(), "ann/x", None).unwrap();
        let id = |text: &[u8]| super::super::hash::ContentId::parse(&FileIds::of_bytes(text).git).unwrap();
        let remote = [
            RemoteFile { path: "a.txt".into(), size: 3, id: id(b"one") },
            RemoteFile { path: "b.txt".into(), size: 3, id: id(b"old") },
        ];
        let (send, same) = changed(files, &remote).unwrap();
        assert_eq!(
            send.iter().map(|(file, _)| file.path.as_str()).collect::<Vec<_>>(),
            ["README.md", "b.txt"]
        );
        assert_eq!(same[0].path, "a.txt");
    }
}
