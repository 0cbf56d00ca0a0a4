//! A dataset's rows from the Hub: the files of its training split.

use std::path::{Path, PathBuf};

use super::cache::RepoCache;
use super::client::HubClient;
use super::configs::Named;
use super::dataset_files::{SplitQuery, named_files, split_files};
use super::download::{find_state, not_cached};
use super::env::HubEnv;
use super::errors::repo_error;
use super::fetch::fetch_file;
use super::listing::{RemoteFile, is_commit, is_inside, list_files};
use super::repo::{Repo, RepoKind};
use super::runtime::outside_runtime;
use crate::display::say;
use crate::error::{Error, Result};
use crate::table_files::FileOptions;

/// How the address of a file on the Hub begins, as Python's `HfFileSystem` writes it.
pub(crate) const HF_DATASETS: &str = "hf://datasets/";
/// The file that says which files a dataset is made of.
const CARD: &str = "README.md";
/// A card longer than this is not one that a person wrote.
const LONGEST_CARD: u64 = 4 << 20;
/// A folder with more files than this is not a dataset's.
const MOST_FILES: usize = 50_000;

/// Downloads the training split of a dataset and gives its files in the shared cache, in order.
///
/// `id` is one of
/// - `owner/name`: the files that the dataset's card names for the split `train` of its default
///   configuration; without such a card, those whose names say so (`train.csv`,
///   `data/train-00000-of-00002.parquet`, a folder `train/`), or the only table there is;
/// - `hf://datasets/owner/name/data/test.csv`: this file, or those that a pattern as
///   `data/test-*.parquet` matches. A branch, tag or commit stands after the name:
///   `hf://datasets/owner/name@v1/rows.csv`.
///
/// With `HF_HUB_OFFLINE=1`, or without a network, what is in the cache is used.
///
/// # Errors
/// [`Error::Dataset`] if there is no such file, more than one to choose from, part of a table, or
/// only parquet while this crate is built without its feature `parquet`; [`Error::Hub`] as with
/// [`download_model`](crate::model::download_model).
pub fn download_dataset(id: &str) -> Result<Vec<PathBuf>> {
    download_dataset_with(&HubEnv::from_env(), id, None)
}

/// [`download_dataset`] with settings of one's own, at a branch, tag or commit.
pub fn download_dataset_with(env: &HubEnv, id: &str, revision: Option<&str>) -> Result<Vec<PathBuf>> {
    let address = Address::parse(id);
    let repo = Repo::new(RepoKind::Dataset, &address.repo, revision.or(address.revision.as_deref()))?;
    Ok(outside_runtime(|| tables(env, &repo, address.file.as_deref(), SplitQuery::TRAIN))?.paths)
}

/// The files of a split, and what the dataset's card says about them.
#[derive(Debug)]
pub(crate) struct SplitFiles {
    pub paths: Vec<PathBuf>,
    pub options: FileOptions,
}

/// [`download_dataset`] for any split and configuration, with what the card says about the files.
pub(crate) fn dataset_tables(id: &str, split: &str, config: Option<&str>) -> Result<SplitFiles> {
    let address = Address::parse(id);
    let repo = Repo::new(RepoKind::Dataset, &address.repo, address.revision.as_deref())?;
    let query = SplitQuery { split, config };
    outside_runtime(|| tables(&HubEnv::from_env(), &repo, address.file.as_deref(), query))
}

/// The files of a split in a folder, as in a repository: by its card, or by their names.
pub(crate) fn folder_tables(
    source: &str,
    folder: &Path,
    split: &str,
    config: Option<&str>,
) -> Result<SplitFiles> {
    struct Folder<'a>(&'a str);
    impl Named for Folder<'_> {
        fn id(&self) -> &str {
            self.0
        }

        fn address(&self, file: &str) -> String {
            format!("{}/{file}", self.0.trim_end_matches('/'))
        }
    }
    let found = local(folder).and_then(|files| {
        let card = local_card(folder).map_err(std::io::Error::other)?;
        Ok((files, card))
    });
    let (files, card) = found.map_err(|e| Error::io(folder, "listing the dataset's folder", e))?;
    let (chosen, options) =
        split_files(&Folder(source), &files, card.as_deref(), SplitQuery { split, config }).map_err(|e| {
            match e {
                Error::Dataset { subject, problem, help } if files.is_empty() => {
                    Error::dataset(subject, format!("is a folder: {problem}"), help)
                }
                other => other,
            }
        })?;
    Ok(SplitFiles { paths: chosen.into_iter().map(|file| folder.join(&file.path)).collect(), options })
}

/// The parts of an id.
#[derive(Debug, PartialEq)]
struct Address {
    repo: String,
    revision: Option<String>,
    file: Option<String>,
}

impl Address {
    fn parse(id: &str) -> Self {
        let Some(address) = id.strip_prefix(HF_DATASETS) else {
            return Self { repo: id.to_string(), revision: None, file: None };
        };
        let mut parts: Vec<&str> = address.trim_end_matches('/').split('/').collect();
        let rest = parts.split_off(parts.len().min(2));
        let repo = parts.join("/");
        let (repo, revision) = match repo.split_once('@') {
            Some((repo, revision)) => (repo.to_string(), Some(revision.to_string())),
            None => (repo, None),
        };
        // The Hub's own branches have slashes: refs/convert/parquet, refs/pr/1. Others write %2F.
        let in_refs = revision.as_deref() == Some("refs") && rest.len() >= 2;
        let (revision, rest) = match in_refs {
            true => (Some(format!("refs/{}", rest[..2].join("/"))), &rest[2..]),
            false => (revision.map(|name| name.replace("%2F", "/").replace("%2f", "/")), &rest[..]),
        };
        Self { repo, revision, file: (!rest.is_empty()).then(|| rest.join("/")) }
    }
}

fn tables(env: &HubEnv, repo: &Repo, file: Option<&str>, query: SplitQuery) -> Result<SplitFiles> {
    let cache = RepoCache::new(env, repo);
    let commit = cache.known_commit(&repo.revision);
    let cached = commit.as_deref().and_then(|commit| cached_tables(&cache, repo, commit, file, query));
    if env.offline {
        let split = if query.split == "train" { "its training split" } else { query.split };
        let missing = commit.map(|_| vec![file.unwrap_or(split).to_string()]);
        return cached.map(from_cache).ok_or_else(|| not_cached(env, repo, missing));
    }
    // A choice needs the whole list of files, which the cache need not have; one named file does not.
    let is_one = |paths: &[PathBuf]| file.is_some_and(|name| paths.len() == 1 && paths[0].ends_with(name));
    let cached = match cached {
        Some(files) if is_one(&files.paths) && is_commit(&repo.revision) => return Ok(files),
        other => other,
    };
    let client = HubClient::new(env, env.download_token()?)?;
    let state = match find_state(&client, repo, cached.is_some()) {
        Ok(state) => state,
        Err(error) => {
            return match cached {
                Some(files) if error.is_transient() => {
                    say(format_args!("{}: the Hub does not answer", repo.subject()));
                    Ok(from_cache(files))
                }
                _ => Err(repo_error(&client, repo, "asking for it", error)),
            };
        }
    };
    let files = list_files(&client, repo, &state.commit)?;
    let fetch = |file: &RemoteFile| fetch_file(&client, &cache, repo, &state.commit, file);
    let (chosen, options) = match file {
        Some(name) => (named_files(repo, &files, name)?, FileOptions::default()),
        None => {
            let card = files.iter().find(|file| file.path == CARD && file.size <= LONGEST_CARD);
            let card = card.map(&fetch).transpose()?.map(|path| read_card(&path)).transpose()?;
            split_files(repo, &files, card.as_deref(), query)?
        }
    };
    let paths = chosen.into_iter().map(fetch).collect::<Result<Vec<_>>>()?;
    // Last, so that a branch never leads to a part of a split.
    cache.remember_commit(&repo.revision, &state.commit)?;
    Ok(SplitFiles { paths, options })
}

fn read_card(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "reading the dataset's card", e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Says which files are used: the cache holds what was asked for earlier, which need not be all.
fn from_cache(files: SplitFiles) -> SplitFiles {
    let names: Vec<_> = files.paths.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    say(format_args!("  from the cache: {}", names.join(", ")));
    files
}

/// The tables that a cached snapshot holds, chosen by the same rules as online.
fn cached_tables(
    cache: &RepoCache,
    repo: &Repo,
    commit: &str,
    file: Option<&str>,
    query: SplitQuery,
) -> Option<SplitFiles> {
    let snapshot = cache.snapshot(commit);
    let files = local(&snapshot).ok()?;
    let (chosen, options) = match file {
        Some(name) => (named_files(repo, &files, name).ok()?, FileOptions::default()),
        None => split_files(repo, &files, local_card(&snapshot).ok()?.as_deref(), query).ok()?,
    };
    let paths = chosen.into_iter().filter(|file| is_inside(&file.path));
    Some(SplitFiles { paths: paths.map(|file| snapshot.join(&file.path)).collect(), options })
}

/// The files of a folder and of the folders in it, by their names. Hidden ones are left out, links to
/// folders not followed.
fn local(folder: &Path) -> std::io::Result<Vec<RemoteFile>> {
    let (mut files, mut seen) = (Vec::new(), 0);
    let mut folders = vec![(String::new(), folder.to_path_buf())];
    while let Some((prefix, folder)) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            // A folder further in that is not ours to read holds nothing for us.
            Err(_) if !prefix.is_empty() => continue,
            Err(e) => return Err(e),
        };
        for entry in entries {
            let path = entry?.path();
            seen += 1;
            if seen > MOST_FILES {
                return Err(std::io::Error::other("too many files to look through: name the file itself"));
            }
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            let relative = format!("{prefix}{name}");
            if name.starts_with('.') || name.ends_with(".incomplete") {
                continue;
            } else if meta.is_dir() && !path.is_symlink() {
                folders.push((format!("{relative}/"), path));
            } else if meta.is_file() {
                // Only names are looked at here; an empty file's id stands in for the ids.
                let id = super::hash::ContentId::GitBlob(super::hash::FileIds::of_bytes(b"").git);
                files.push(RemoteFile { path: relative, size: meta.len(), id });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// The card in a folder, if there is one that a person can have written.
fn local_card(folder: &Path) -> Result<Option<String>> {
    let card = folder.join(CARD);
    let is_card = std::fs::metadata(&card).is_ok_and(|meta| meta.is_file() && meta.len() <= LONGEST_CARD);
    is_card.then(|| read_card(&card)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_parts() {
        let parse = |id: &str| {
            let Address { repo, revision, file } = Address::parse(id);
            (repo, revision.unwrap_or_default(), file.unwrap_or_default())
        };
        let parts = |repo: &str, revision: &str, file: &str| (repo.into(), revision.into(), file.into());
        assert_eq!(parse("a/b"), parts("a/b", "", ""));
        assert_eq!(parse("hf://datasets/a/b"), parts("a/b", "", ""));
        assert_eq!(parse("hf://datasets/a/b/data/x y.csv"), parts("a/b", "", "data/x y.csv"));
        assert_eq!(parse("hf://datasets/a/b@v1/x.csv"), parts("a/b", "v1", "x.csv"));
        assert_eq!(parse("hf://datasets/a/b@x%2Fy/x.csv"), parts("a/b", "x/y", "x.csv"));
        assert_eq!(
            parse("hf://datasets/a/b@refs/convert/parquet/default/train/0000.parquet"),
            parts("a/b", "refs/convert/parquet", "default/train/0000.parquet")
        );
        // What is no id is left for the check of ids to refuse.
        assert_eq!(parse("a/b/c.csv").0, "a/b/c.csv");
        assert_eq!(parse("hf://datasets/a").0, "a");
    }
}
