//! The shared Hugging Face cache: the folders that Python's `huggingface_hub` reads and writes.
//!
//! ```text
//! models--google--gemma-3-270m-it/
//!   blobs/<etag>                 the content, named by its hash
//!   refs/main                    the commit that `main` was when it was last asked for
//!   snapshots/<commit>/<path>    symbolic links into blobs
//! .locks/models--…/<etag>.lock   one writer a blob, across processes
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::env::HubEnv;
use super::listing::{RemoteFile, is_commit};
use super::repo::Repo;
use crate::error::{Error, Result};
use crate::files::{part_name, write_bytes_atomic};

/// One repository's part of the cache.
#[derive(Debug, Clone)]
pub(crate) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub fn new(env: &HubEnv, repo: &Repo) -> Self {
        let folder = format!("{}--{}", repo.kind.plural(), repo.id.replace('/', "--"));
        Self { root: env.cache_dir.join(&folder), locks: env.cache_dir.join(".locks").join(&folder) }
    }

    /// The folder of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Where a file's content is.
    pub fn blob(&self, file: &RemoteFile) -> PathBuf {
        self.root.join("blobs").join(file.id.hex())
    }

    /// Where a download that is not whole is kept. Python's clean-up knows the ending.
    pub fn partial(&self, file: &RemoteFile) -> PathBuf {
        self.root.join("blobs").join(format!("{}.incomplete", file.id.hex()))
    }

    /// The commit that a revision was when it was last asked for.
    pub fn known_commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|text| is_commit(text))
    }

    /// Notes which commit a branch or tag is.
    pub fn remember_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.known_commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        make_parent(&path)?;
        write_bytes_atomic(&path, commit.as_bytes())
    }

    /// Whether the content is there, with the right size.
    pub fn has(&self, file: &RemoteFile) -> bool {
        fs::metadata(self.blob(file)).is_ok_and(|meta| meta.is_file() && meta.len() == file.size)
    }

    /// Waits until no other process writes this blob, and keeps others out until the lock is dropped.
    pub fn lock(&self, file: &RemoteFile) -> Result<BlobLock> {
        let path = self.locks.join(format!("{}.lock", file.id.hex()));
        make_parent(&path)?;
        make_parent(&self.blob(file))?;
        let fail = |e| Error::io(&path, "locking a file of the Hugging Face cache", e);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
        for round in 0.. {
            match lock.try_lock() {
                Ok(()) => break,
                Err(fs::TryLockError::WouldBlock) if round == 0 => {
                    crate::say!("  {}: waiting for another download of it", file.path);
                }
                Err(fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(200)),
                // Some network file systems know no locks; Python goes on without, too. What is
                // written is checked by hash before it gets its name, so only time can be lost.
                Err(fs::TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => break,
                Err(fs::TryLockError::Error(e)) => return Err(fail(e)),
            }
        }
        Ok(BlobLock { _file: lock })
    }

    /// Makes the snapshot's entry for a blob that is there; gives its path.
    pub fn link(&self, commit: &str, file: &RemoteFile) -> Result<PathBuf> {
        let pointer = self.snapshot(commit).join(&file.path);
        let blob = self.blob(file);
        if same_file(&pointer, &blob) {
            return Ok(pointer);
        }
        make_parent(&pointer)?;
        let up = file.path.split('/').count() + 1;
        let target: PathBuf = std::iter::repeat_n("..", up).chain(["blobs", file.id.hex()]).collect();
        // It gets its name when it is whole: another process may be reading what is there, or just about to link it, too.
        let beside = part_name(&pointer);
        let made = match symlink(&target, &beside) {
            // Without links (Windows, some network drives) the snapshot holds a copy, as Python's does.
            Err(_) => fs::copy(&blob, &beside).map(|_| ()),
            Ok(()) => Ok(()),
        };
        match made.and_then(|()| fs::rename(&beside, &pointer)) {
            Ok(()) => Ok(pointer),
            Err(e) => {
                let _ = fs::remove_file(&beside);
                Err(Error::io(&pointer, "linking a file of the Hugging Face cache", e))
            }
        }
    }
}

/// Held while a blob is written.
pub(crate) struct BlobLock {
    _file: File,
}

fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent)
        .map_err(|e| Error::io(parent, "creating a folder of the Hugging Face cache", e))
}

fn same_file(pointer: &Path, blob: &Path) -> bool {
    match (fs::canonicalize(pointer), fs::canonicalize(blob)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

#[cfg(unix)]
fn symlink(target: &Path, pointer: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _pointer: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::hub::hash::ContentId;

    /// Who has linked a file finds it, whoever else links it at the same time, and an older entry is replaced.
    #[test]
    fn a_file_that_is_linked_is_never_missing() {
        let home = tempfile::tempdir().unwrap();
        let cache = RepoCache { root: home.path().join("model"), locks: home.path().join(".locks") };
        let file = |id: &str| RemoteFile {
            path: "folder/config.json".into(),
            size: 5,
            id: ContentId::GitBlob(id.repeat(40)),
        };
        let (older, newer) = (file("a"), file("b"));
        for (file, content) in [(&older, "older"), (&newer, "newer")] {
            make_parent(&cache.blob(file)).unwrap();
            fs::write(cache.blob(file), content).unwrap();
        }
        for round in 0..100 {
            let commit = format!("{round:040}");
            if round % 2 == 1 {
                cache.link(&commit, &older).unwrap();
            }
            let together = Barrier::new(4);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        together.wait();
                        let path = cache.link(&commit, &newer).unwrap();
                        assert_eq!(fs::read_to_string(path).unwrap(), "newer", "round {round}");
                    });
                }
            });
            let names = fs::read_dir(cache.snapshot(&commit).join("folder")).unwrap();
            assert_eq!(names.count(), 1, "something unfinished is left");
        }
    }
}
