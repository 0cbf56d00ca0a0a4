//! One file from the Hub into the cache: resumed if it breaks, checked before it gets its name.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, RANGE};

use super::cache::RepoCache;
use super::client::{HubClient, host};
use super::errors::repo_error;
use super::hash::ContentHash;
use super::listing::RemoteFile;
use super::progress::{Progress, bytes};
use super::repo::Repo;
use super::request::Request;
use super::request_error::RequestError;
use crate::error::{Error, Result};

/// Downloads `file` as of `commit` unless its content is in the cache; gives the snapshot's path.
///
/// The content gets its place in the cache only with the size and the hash that the Hub's listing
/// names. A part that is left over from a broken download is gone on with.
pub(crate) fn fetch_file(
    client: &HubClient,
    cache: &RepoCache,
    repo: &Repo,
    commit: &str,
    file: &RemoteFile,
) -> Result<PathBuf> {
    if !cache.has(file) {
        let _lock = cache.lock(file)?;
        // Another process may have been the one that was waited for.
        if !cache.has(file) {
            fetch_blob(client, cache, repo, commit, file)?;
        }
    }
    cache.link(commit, file)
}

fn fetch_blob(
    client: &HubClient,
    cache: &RepoCache,
    repo: &Repo,
    commit: &str,
    file: &RemoteFile,
) -> Result<()> {
    let partial = cache.partial(file);
    let had_part = fs::metadata(&partial).is_ok_and(|meta| meta.len() > 0);
    let blob = cache.blob(file);
    let mut problem = Mismatch::Size(0);
    // A part from an earlier run may be the wrong one's: then a whole new download decides.
    for _ in 0..if had_part { 2 } else { 1 } {
        match fetch_part(client, repo, commit, file, &partial)? {
            None => {
                return fs::rename(&partial, &blob)
                    .map_err(|e| Error::io(&blob, "storing a file in the Hugging Face cache", e));
            }
            Some(mismatch) => {
                problem = mismatch;
                remove(&partial)?;
            }
        }
    }
    let problem = match problem {
        Mismatch::Size(size) => {
            format!("{} has {} where the Hub's list says {}", file.path, bytes(size), bytes(file.size))
        }
        Mismatch::Hash => {
            format!("the content of {} does not have the hash that the Hub's list names", file.path)
        }
    };
    Err(Error::hub(
        repo.subject(),
        format!("{problem}; it was thrown away"),
        "Run the step again; if it stays so, a proxy or mirror between here and the Hub changes files",
    ))
}

/// Why a download that came to its end is not kept.
enum Mismatch {
    Size(u64),
    Hash,
}

/// Brings `partial` to its end and checks it; `None` means that it is right.
fn fetch_part(
    client: &HubClient,
    repo: &Repo,
    commit: &str,
    file: &RemoteFile,
    partial: &Path,
) -> Result<Option<Mismatch>> {
    let io = |e| Error::io(partial, "writing a download into the Hugging Face cache", e);
    let mut hash = ContentHash::like(&file.id, file.size);
    let mut out = OpenOptions::new().create(true).append(true).read(true).open(partial).map_err(io)?;
    let mut done = hash_part(&mut out, &mut hash).map_err(io)?;
    if done > file.size {
        return Ok(Some(Mismatch::Size(done)));
    }
    let mut progress = Progress::new(&file.path, file.size, done);
    let mut tries_left = client.retry_policy().max_attempts;
    let mut wait = client.retry_policy().base_wait;
    // An empty file is asked for as well: a gated repository shows itself by it.
    while done < file.size || file.size == 0 {
        let before = done;
        let attempt = open(client, repo, commit, file, done).and_then(|(mut response, from_start)| {
            if from_start && done > 0 {
                out.set_len(0).map_err(|e| RequestError::Local(e.to_string()))?;
                (done, hash) = (0, ContentHash::like(&file.id, file.size));
            }
            while let Some(chunk) = client.chunk(&mut response)? {
                let chunk = chunk.as_ref();
                if done + chunk.len() as u64 > file.size {
                    done += chunk.len() as u64;
                    return Ok(());
                }
                out.write_all(chunk)
                    .map_err(|e| RequestError::Local(format!("{}: {e}", partial.display())))?;
                hash.update(chunk);
                done += chunk.len() as u64;
                progress.at(done);
            }
            // A body without a length can end early and look whole.
            if done < file.size {
                let why = "the body ended early".to_string();
                return Err(RequestError::Interrupted { host: host(response.url()), why });
            }
            Ok(())
        });
        match attempt {
            Ok(()) => break,
            Err(error) if done > before && matches!(error, RequestError::Interrupted { .. }) => {
                tries_left = client.retry_policy().max_attempts;
                wait = client.retry_policy().base_wait;
            }
            Err(error) => {
                tries_left = tries_left.saturating_sub(1);
                if tries_left == 0 || !matches!(error, RequestError::Interrupted { .. }) {
                    out.sync_all().map_err(io)?;
                    return Err(repo_error(client, repo, &file.path, error));
                }
                wait = wait.saturating_mul(2);
            }
        }
        std::thread::sleep(wait);
    }
    if done != file.size {
        return Ok(Some(Mismatch::Size(done)));
    }
    out.sync_all().map_err(io)?;
    if hash.finish() != file.id {
        return Ok(Some(Mismatch::Hash));
    }
    progress.done();
    Ok(None)
}

/// Asks for the file from byte `done` on; says whether the server starts at the beginning anyway.
fn open(
    client: &HubClient,
    repo: &Repo,
    commit: &str,
    file: &RemoteFile,
    done: u64,
) -> Result<(reqwest::Response, bool), RequestError> {
    let mut request = Request::get(repo.resolve(&client.endpoint, commit, &file.path));
    // A compressed answer has other bytes than the ones that are counted.
    request.headers.push((ACCEPT_ENCODING, "identity".to_string()));
    if done > 0 {
        request.headers.push((RANGE, format!("bytes={done}-")));
    }
    let response = client.send(&request).map_err(|error| match error {
        // The signed address of a storage server ran out: the Hub gives a new one.
        RequestError::Status(response)
            if response.status.as_u16() == 403 && response.host != host(&client.endpoint) =>
        {
            let why = format!("HTTP 403 {}", response.message);
            RequestError::Interrupted { host: response.host, why }
        }
        other => other,
    })?;
    if response.status().as_u16() != 206 {
        return Ok((response, true));
    }
    let range =
        response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if range.starts_with(&format!("bytes {done}-")) {
        return Ok((response, false));
    }
    Err(RequestError::InvalidResponse {
        host: host(response.url()),
        why: format!("it sends the range \"{}\"", client.one_line(range)),
    })
}

/// Hashes what is there; gives its length.
fn hash_part(part: &mut File, hash: &mut ContentHash) -> std::io::Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let n = part.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { return Ok(done) };
        hash.update(bytes);
        done += n as u64;
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path, "removing a wrong download", e)),
        _ => Ok(()),
    }
}
