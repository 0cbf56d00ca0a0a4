//! A dataset's rows from the Hub: the files of its training split.

use std::path::PathBuf;

use super::cache::RepoCache;
use super::download::{find_state, not_cached};
use super::env::HubEnv;
use super::explain::repo_error;
use super::fetch::fetch_file;
use super::listing::{RemoteFile, is_commit, is_inside, list_files};
use super::repo::{Repo, RepoKind};
use super::tables::{named_files, training_files};
use super::wire::{Wire, off_runtime};
use crate::error::{Error, Result};

/// How the address of a file on the Hub begins, as Python's `HfFileSystem` writes it.
pub(crate) const HF_DATASETS: &str = "hf://datasets/";
/// The file that says which files a dataset is made of.
const CARD: &str = "README.md";
/// A card longer than this is not one that a person wrote.
const LONGEST_CARD: u64 = 4 << 20;

/// Downloads the training split of a dataset and gives its files in the shared cache, in order.
///
/// `id` is one of
/// - `owner/name`: the files that the dataset's card names for the split `train` of its default
///   configuration; without such a card, those whose names say so (`train.csv`,
///   `data/train-00000-of-00002.parquet`, a folder `train/`), or the only table there is;
/// - `hf://datasets/owner/name/data/test.csv`: this file, or those that a pattern as
///   `data/test-*.parquet` matches. A branch, tag or commit stands behind the name:
///   `hf://datasets/owner/name@v1/rows.csv`.
///
/// With `HF_HUB_OFFLINE=1`, or without a network, what is in the cache is used.
///
/// # Errors
/// [`Error::Dataset`] if there is no such file, more than one to choose from, part of a table, or
/// only parquet while this crate is built without its feature `parquet`; [`Error::Hub`] as with
/// [`download_model`](super::download_model).
pub fn download_dataset(id: &str) -> Result<Vec<PathBuf>> {
    download_dataset_with(&HubEnv::from_env(), id, None)
}

/// [`download_dataset`] with settings of one's own, at a branch, tag or commit.
pub fn download_dataset_with(env: &HubEnv, id: &str, revision: Option<&str>) -> Result<Vec<PathBuf>> {
    let address = Address::parse(id);
    let repo = Repo::new(RepoKind::Dataset, &address.repo, revision.or(address.revision.as_deref()))?;
    off_runtime(|| tables(env, &repo, address.file.as_deref()))
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

fn tables(env: &HubEnv, repo: &Repo, wanted: Option<&str>) -> Result<Vec<PathBuf>> {
    let cache = RepoCache::new(env, repo);
    let commit = cache.known_commit(&repo.revision);
    let cached = commit.as_deref().and_then(|commit| cached_tables(&cache, repo, commit, wanted));
    if env.offline {
        let missing = commit.map(|_| vec![wanted.unwrap_or("its training split").to_string()]);
        return cached.map(from_cache).ok_or_else(|| not_cached(env, repo, missing));
    }
    // A choice needs the whole list of files, which the cache need not have; one named file does not.
    let is_one =
        |paths: &Vec<PathBuf>| wanted.is_some_and(|name| paths.len() == 1 && paths[0].ends_with(name));
    if let Some(paths) = cached.as_ref().filter(|paths| is_one(paths) && is_commit(&repo.revision)) {
        return Ok(paths.clone());
    }
    let wire = Wire::new(env, env.download_token()?)?;
    let state = match find_state(&wire, repo, cached.is_some()) {
        Ok(state) => state,
        Err(trouble) => {
            return match cached {
                Some(paths) if trouble.may_pass() => {
                    crate::say!("{}: the Hub does not answer", repo.subject());
                    Ok(from_cache(paths))
                }
                _ => Err(repo_error(&wire, repo, "asking for it", trouble)),
            };
        }
    };
    let files = list_files(&wire, repo, &state.commit)?;
    let fetch = |file: &RemoteFile| fetch_file(&wire, &cache, repo, &state.commit, file);
    let chosen = match wanted {
        Some(name) => named_files(repo, &files, name)?,
        None => {
            let card = files.iter().find(|file| file.path == CARD && file.size <= LONGEST_CARD);
            let card = card.map(&fetch).transpose()?.map(|path| read_card(&path)).transpose()?;
            training_files(repo, &files, card.as_deref())?
        }
    };
    let paths = chosen.into_iter().map(fetch).collect::<Result<Vec<_>>>()?;
    // Last, so that a branch never leads to a part of a split.
    cache.remember_commit(&repo.revision, &state.commit)?;
    Ok(paths)
}

fn read_card(path: &std::path::Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "reading the dataset's card", e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Says which files are used: the cache holds what was asked for earlier, which need not be all.
fn from_cache(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let names: Vec<_> = paths.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    crate::say!("  from the cache: {}", names.join(", "));
    paths
}

/// The tables that a cached snapshot holds, chosen by the same rules as online.
fn cached_tables(cache: &RepoCache, repo: &Repo, commit: &str, wanted: Option<&str>) -> Option<Vec<PathBuf>> {
    let snapshot = cache.snapshot(commit);
    let mut files = Vec::new();
    super::plan::walk(&snapshot, &mut |relative, path| {
        let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
        // Only names are looked at here; an empty file's id stands in for the ids.
        let id = super::hash::ContentId::GitBlob(super::hash::FileIds::of_bytes(b"").git);
        files.push(RemoteFile { path: relative.to_string(), size, id });
    })
    .ok()?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let chosen = match wanted {
        Some(name) => named_files(repo, &files, name),
        None => {
            let card = snapshot.join(CARD);
            let card = if card.is_file() { Some(read_card(&card).ok()?) } else { None };
            training_files(repo, &files, card.as_deref())
        }
    };
    let paths = chosen.ok()?.into_iter().filter(|file| is_inside(&file.path));
    Some(paths.map(|file| snapshot.join(&file.path)).collect())
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
