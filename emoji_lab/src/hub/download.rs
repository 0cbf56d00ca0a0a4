//! A model's files from the Hub.

use std::path::{Path, PathBuf};

use super::cache::RepoCache;
use super::client::HubClient;
use super::env::HubEnv;
use super::errors::repo_error;
use super::fetch::fetch_file;
use super::listing::{RemoteFile, RepoState, is_commit, list_files, repo_state};
use super::model_files::{CONFIG, INDEX, missing_files, side_files, weight_files};
use super::progress::bytes;
use super::repo::{Repo, RepoKind};
use super::request::Retry;
use super::request_error::RequestError;
use super::runtime::outside_runtime;
use crate::display::say;
use crate::error::{Error, Result};

/// What is looked at before the large files are asked for. Each is given the snapshot's folder.
pub(crate) struct SnapshotCheck<'a> {
    /// Once `config.json` is there.
    pub config: &'a (dyn Fn(&Path) -> Result<()> + Sync),
    /// Once all small files are there, and before weights are asked for.
    pub side_files: &'a (dyn Fn(&Path) -> Result<()> + Sync),
}

/// A model's snapshot folder in the cache, downloaded where it is not there: see
/// [`download_model`](crate::model::download_model).
pub(crate) fn model_snapshot(
    env: &HubEnv,
    repo_id: &str,
    revision: Option<&str>,
    check: &SnapshotCheck<'_>,
) -> Result<PathBuf> {
    let repo = Repo::new(RepoKind::Model, repo_id, revision)?;
    outside_runtime(|| snapshot_of(env, &repo, check))
}

fn snapshot_of(env: &HubEnv, repo: &Repo, check: &SnapshotCheck<'_>) -> Result<PathBuf> {
    let cache = RepoCache::new(env, repo);
    let cached = cache.known_commit(&repo.revision).map(|commit| cache.snapshot(&commit));
    let missing = cached.as_deref().map(missing_files);
    let whole = cached.filter(|_| missing.as_ref().is_some_and(Vec::is_empty));
    if env.offline {
        return whole.ok_or_else(|| not_cached(env, repo, missing));
    }
    if let Some(snapshot) = whole.as_ref().filter(|_| is_commit(&repo.revision)) {
        return Ok(snapshot.clone());
    }
    let client = HubClient::new(env, env.download_token()?)?;
    let state = match find_state(&client, repo, whole.is_some()) {
        Ok(state) => state,
        Err(error) => return from_cache(&client, repo, whole, error),
    };
    let files = list_files(&client, repo, &state.commit)?;
    let side = side_files(repo, &files)?;
    announce(&cache, repo, &state, &side);
    let mut index = None;
    for file in side {
        let path = fetch_file(&client, &cache, repo, &state.commit, file)?;
        if file.path == INDEX {
            index = Some(path);
        } else if file.path == CONFIG {
            judge(&env.cache_dir, repo, (check.config)(&cache.snapshot(&state.commit)))?;
        }
    }
    let weights = weight_files(repo, &files, index.as_deref())?;
    let to_fetch: u64 = weights.iter().filter(|file| !cache.has(file)).map(|file| file.size).sum();
    if to_fetch > 0 {
        judge(&env.cache_dir, repo, (check.side_files)(&cache.snapshot(&state.commit)))?;
        crate::say!("  weights: {} to download into {}", bytes(to_fetch), env.cache_dir.display());
    }
    for file in weights {
        fetch_file(&client, &cache, repo, &state.commit, file)?;
    }
    // Last, so that a branch never leads to a snapshot that is not whole.
    cache.remember_commit(&repo.revision, &state.commit)?;
    Ok(cache.snapshot(&state.commit))
}

/// What is wrong with a file of `repo`, by the repository's name in place of the cache's path.
fn judge(cache: &Path, repo: &Repo, read: Result<()>) -> Result<()> {
    match read {
        Ok(_) => Ok(()),
        Err(Error::Model { subject, problem, help }) if subject.starts_with(&cache.display().to_string()) => {
            let file = Path::new(&subject).file_name().map(|name| name.to_string_lossy().into_owned());
            let subject = format!("{}, {}", repo.id, file.unwrap_or_default());
            Err(Error::Model { subject, problem, help })
        }
        Err(other) => Err(other),
    }
}

/// Which commit the revision is. With a snapshot to fall back on, one try is enough.
pub(crate) fn find_state(
    client: &HubClient,
    repo: &Repo,
    has_fallback: bool,
) -> Result<RepoState, RequestError> {
    repo_state(client, repo, if has_fallback { Retry::Never } else { Retry::Transient })
}

/// The cached snapshot if the Hub cannot be asked; the error if there is none or the Hub said no.
pub(crate) fn from_cache(
    client: &HubClient,
    repo: &Repo,
    whole: Option<PathBuf>,
    error: RequestError,
) -> Result<PathBuf> {
    match whole {
        Some(snapshot) if error.is_transient() => {
            say(format!("{}: the Hub does not answer; using what is in the cache", repo.subject()));
            Ok(snapshot)
        }
        _ => Err(repo_error(client, repo, "asking for it", error)),
    }
}

/// The error for an offline step whose files are not all there.
pub(crate) fn not_cached(env: &HubEnv, repo: &Repo, missing: Option<Vec<String>>) -> Error {
    let problem = match missing {
        Some(files) => format!("HF_HUB_OFFLINE is set, and the cache lacks {}", files.join(", ")),
        None => format!("HF_HUB_OFFLINE is set, and it is not in the cache {}", env.cache_dir.display()),
    };
    Error::hub(
        repo.subject(),
        problem,
        "Unset HF_HUB_OFFLINE once to download it, or use the embedded model and data",
    )
}

fn announce(cache: &RepoCache, repo: &Repo, state: &RepoState, files: &[&RemoteFile]) {
    let commit = state.commit.get(..8).unwrap_or_default();
    if files.iter().any(|file| !cache.has(file)) {
        say(format!("downloading {} (commit {commit})", repo.subject()));
    }
}
