//! Writing files so that nothing half-written is ever left behind.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes `path` through a temporary name beside it: write, sync, rename.
///
/// After a crash the file is either the old one or the whole new one.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let part = part_name(path);
    let attempt = || {
        let mut out = BufWriter::new(File::create(&part)?);
        write(&mut out)?;
        out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        fs::rename(&part, path)?;
        sync_parent(path)
    };
    attempt().map_err(|e| {
        let _ = fs::remove_file(&part);
        Error::io(path, "writing", e)
    })
}

/// [`write_atomic`] for bytes that are already there.
pub fn write_bytes_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |out| out.write_all(bytes))
}

/// Makes the directory `path` through a temporary name beside it: `fill` writes into the
/// temporary directory, which takes its name only when everything in it is on disk.
///
/// An existing `path` is replaced; the old one goes only after the new one is whole.
pub fn write_dir_atomic(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let part = part_name(path);
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).map_err(|e| Error::io(&part, "creating the folder", e))?;
    let attempt = fill(&part).and_then(|()| {
        let finish = || {
            for entry in fs::read_dir(&part)? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    File::open(entry.path())?.sync_all()?;
                }
            }
            File::open(&part)?.sync_all()?;
            if path.exists() {
                // rename(2) cannot replace a folder that has files in it, so the old one steps
                // aside under a name that readers ignore.
                let old = path.with_file_name(format!("{}.old.part", file_name(path)));
                let _ = fs::remove_dir_all(&old);
                fs::rename(path, &old)?;
                fs::rename(&part, path)?;
                fs::remove_dir_all(&old)?;
            } else {
                fs::rename(&part, path)?;
            }
            sync_parent(path)
        };
        finish().map_err(|e: std::io::Error| Error::io(path, "writing the folder", e))
    });
    if attempt.is_err() {
        let _ = fs::remove_dir_all(&part);
    }
    attempt
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn part_name(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}.{}.part", file_name(path), std::process::id()))
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}
