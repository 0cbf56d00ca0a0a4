//! A dataset's table from the Hub.

use std::path::PathBuf;

use super::cache::RepoCache;
use super::choose::table_file;
use super::download::{find_state, from_cache, not_cached};
use super::env::HubEnv;
use super::fetch::fetch_file;
use super::listing::{RemoteFile, is_commit, is_inside, list_files};
use super::repo::{Repo, RepoKind};
use super::wire::{Wire, off_runtime};
use crate::error::{Error, Result};

/// Downloads the table of a dataset repository and gives its path in the shared cache: the csv or
/// jsonl file of the training split, or the only one there is.
///
/// `id` is `owner/name`, or `owner/name/path/to/file.csv` to choose the file. With `HF_HUB_OFFLINE=1`,
/// or without a network, what is in the cache is used.
///
/// # Errors
/// [`Error::Dataset`] if there is no such file, only parquet, or more than one to choose from;
/// [`Error::Hub`] as with [`download_model`](super::download_model).
pub fn download_dataset(id: &str) -> Result<PathBuf> {
    download_dataset_with(&HubEnv::from_env(), id, None)
}

/// [`download_dataset`] with settings of one's own, at a branch, tag or commit.
pub fn download_dataset_with(env: &HubEnv, id: &str, revision: Option<&str>) -> Result<PathBuf> {
    let mut parts = id.splitn(3, '/');
    let repo_id = [parts.next(), parts.next()].into_iter().flatten().collect::<Vec<_>>().join("/");
    let repo = Repo::new(RepoKind::Dataset, &repo_id, revision)?;
    off_runtime(|| table(env, &repo, parts.next()))
}

fn table(env: &HubEnv, repo: &Repo, wanted: Option<&str>) -> Result<PathBuf> {
    let cache = RepoCache::new(env, repo);
    let commit = cache.known_commit(&repo.revision);
    let cached = commit.as_deref().and_then(|commit| cached_table(&cache, repo, commit, wanted));
    if env.offline {
        let missing = commit.map(|_| vec![wanted.unwrap_or("a csv or jsonl table").to_string()]);
        return cached.ok_or_else(|| not_cached(env, repo, missing));
    }
    // Without a name the choice needs the whole list of files, which the cache need not have.
    if let Some(path) = cached.as_ref().filter(|_| wanted.is_some() && is_commit(&repo.revision)) {
        return Ok(path.clone());
    }
    let wire = Wire::new(env, env.download_token()?)?;
    let state = match find_state(&wire, repo, cached.is_some()) {
        Ok(state) => state,
        Err(trouble) => return from_cache(&wire, repo, cached, trouble),
    };
    let files = list_files(&wire, repo, &state.commit)?;
    let file = match wanted {
        Some(name) => {
            files.iter().find(|file| file.path == name).ok_or_else(|| no_such_table(repo, &files, name))?
        }
        None => table_file(repo, &files)?,
    };
    let path = fetch_file(&wire, &cache, repo, &state.commit, file)?;
    cache.remember_commit(&repo.revision, &state.commit)?;
    Ok(path)
}

fn no_such_table(repo: &Repo, files: &[RemoteFile], name: &str) -> Error {
    let names: Vec<&str> = files.iter().take(12).map(|file| file.path.as_str()).collect();
    Error::dataset(&repo.id, format!("it has no file {name}"), format!("It has {}", names.join(", ")))
}

/// The table that a cached snapshot holds, chosen by the same rules as online.
fn cached_table(cache: &RepoCache, repo: &Repo, commit: &str, wanted: Option<&str>) -> Option<PathBuf> {
    let snapshot = cache.snapshot(commit);
    if let Some(name) = wanted {
        return Some(snapshot.join(name)).filter(|path| is_inside(name) && path.is_file());
    }
    let mut files = Vec::new();
    super::plan::walk(&snapshot, &mut |relative, path| {
        let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
        // Only names are looked at here; an empty file's id stands in for the ids.
        let id = super::hash::ContentId::GitBlob(super::hash::FileIds::of_bytes(b"").git);
        files.push(RemoteFile { path: relative.to_string(), size, id });
    })
    .ok()?;
    let file = table_file(repo, &files).ok()?;
    Some(snapshot.join(&file.path)).filter(|path| path.is_file())
}
