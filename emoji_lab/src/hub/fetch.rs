//! One file from the Hub into the cache: resumed if it breaks, checked before it gets its name.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, RANGE};

use super::cache::RepoCache;
use super::explain::repo_error;
use super::hash::ContentHash;
use super::listing::RemoteFile;
use super::progress::{Progress, bytes};
use super::repo::Repo;
use super::request::Request;
use super::trouble::Trouble;
use super::wire::{Wire, host};
use crate::error::{Error, Result};

/// Downloads `file` as of `commit` unless its content is in the cache; gives the snapshot's path.
///
/// The content gets its place in the cache only with the size and the hash that the Hub's listing
/// names. A part that is left over from a broken download is gone on with.
pub(crate) fn fetch_file(
    wire: &Wire,
    cache: &RepoCache,
    repo: &Repo,
    commit: &str,
    file: &RemoteFile,
) -> Result<PathBuf> {
    if !cache.has(file) {
        let _lock = cache.lock(file)?;
        // Another process may have been the one that was waited for.
        if !cache.has(file) {
            fetch_blob(wire, cache, repo, commit, file)?;
        }
    }
    cache.link(commit, file)
}

fn fetch_blob(wire: &Wire, cache: &RepoCache, repo: &Repo, commit: &str, file: &RemoteFile) -> Result<()> {
    let partial = cache.partial(file);
    let had_part = fs::metadata(&partial).is_ok_and(|meta| meta.len() > 0);
    let blob = cache.blob(file);
    let mut problem = Flaw::Size(0);
    // A part from an earlier run may be the wrong one's: then a whole new download decides.
    for _ in 0..if had_part { 2 } else { 1 } {
        match fetch_part(wire, repo, commit, file, &partial)? {
            None => {
                return fs::rename(&partial, &blob)
                    .map_err(|e| Error::io(&blob, "storing a file in the Hugging Face cache", e));
            }
            Some(flaw) => {
                problem = flaw;
                remove(&partial)?;
            }
        }
    }
    let problem = match problem {
        Flaw::Size(size) => {
            format!("{} has {} where the Hub's list says {}", file.path, bytes(size), bytes(file.size))
        }
        Flaw::Hash => {
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
enum Flaw {
    Size(u64),
    Hash,
}

/// Brings `partial` to its end and checks it; `None` means that it is right.
fn fetch_part(
    wire: &Wire,
    repo: &Repo,
    commit: &str,
    file: &RemoteFile,
    partial: &Path,
) -> Result<Option<Flaw>> {
    let io = |e| Error::io(partial, "writing a download into the Hugging Face cache", e);
    let mut hash = ContentHash::like(&file.id, file.size);
    let mut out = OpenOptions::new().create(true).append(true).read(true).open(partial).map_err(io)?;
    let mut done = hash_part(&mut out, &mut hash).map_err(io)?;
    if done > file.size {
        return Ok(Some(Flaw::Size(done)));
    }
    let mut progress = Progress::new(&file.path, file.size, done);
    let mut tries_left = wire.patience().tries;
    let mut wait = wire.patience().first_wait;
    // An empty file is asked for as well: a gated repository shows itself by it.
    while done < file.size || file.size == 0 {
        let before = done;
        let attempt = open(wire, repo, commit, file, done).and_then(|(mut response, from_start)| {
            if from_start && done > 0 {
                out.set_len(0).map_err(|e| Trouble::Local(e.to_string()))?;
                (done, hash) = (0, ContentHash::like(&file.id, file.size));
            }
            while let Some(chunk) = wire.chunk(&mut response)? {
                let chunk = chunk.as_ref();
                if done + chunk.len() as u64 > file.size {
                    done += chunk.len() as u64;
                    return Ok(());
                }
                out.write_all(chunk).map_err(|e| Trouble::Local(format!("{}: {e}", partial.display())))?;
                hash.update(chunk);
                done += chunk.len() as u64;
                progress.at(done);
            }
            // A body without a length can end early and look whole.
            if done < file.size {
                let why = "the body ended early".to_string();
                return Err(Trouble::Cut { host: host(response.url()), why });
            }
            Ok(())
        });
        match attempt {
            Ok(()) => break,
            Err(trouble) if done > before && matches!(trouble, Trouble::Cut { .. }) => {
                tries_left = wire.patience().tries;
                wait = wire.patience().first_wait;
            }
            Err(trouble) => {
                tries_left = tries_left.saturating_sub(1);
                if tries_left == 0 || !matches!(trouble, Trouble::Cut { .. }) {
                    out.sync_all().map_err(io)?;
                    return Err(repo_error(wire, repo, &file.path, trouble));
                }
                wait = wait.saturating_mul(2);
            }
        }
        std::thread::sleep(wait);
    }
    if done != file.size {
        return Ok(Some(Flaw::Size(done)));
    }
    out.sync_all().map_err(io)?;
    if hash.finish() != file.id {
        return Ok(Some(Flaw::Hash));
    }
    progress.done();
    Ok(None)
}

/// Asks for the file from byte `done` on; says whether the server starts at the beginning anyway.
fn open(
    wire: &Wire,
    repo: &Repo,
    commit: &str,
    file: &RemoteFile,
    done: u64,
) -> Result<(reqwest::Response, bool), Trouble> {
    let mut request = Request::get(repo.resolve(&wire.endpoint, commit, &file.path));
    // A compressed answer has other bytes than the ones that are counted.
    request.headers.push((ACCEPT_ENCODING, "identity".to_string()));
    if done > 0 {
        request.headers.push((RANGE, format!("bytes={done}-")));
    }
    let response = wire.send(&request).map_err(|trouble| match trouble {
        // The signed address of a storage server ran out: the Hub gives a new one.
        Trouble::Refused(refusal)
            if refusal.status.as_u16() == 403 && refusal.host != host(&wire.endpoint) =>
        {
            let why = format!("HTTP 403 {}", refusal.message);
            Trouble::Cut { host: refusal.host, why }
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
    Err(Trouble::Nonsense {
        host: host(response.url()),
        why: format!("it sends the range \"{}\"", wire.one_line(range)),
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
