//! Writing files so that nothing half-written is ever left behind, and nothing of anyone else's goes.
//!
//! | what is written | by | what else is there |
//! |---|---|---|
//! | one file | [`write_atomic`] | stays |
//! | several files that belong together, into a folder that a person named | [`write_into_dir`] | stays |
//! | a folder that this program named itself, as `checkpoint-12` | [`write_dir_atomic`] | is replaced with it |
//!
//! What is not finished has a name that ends in `.PID.part`, PID being the process that writes it;
//! what a killed process left is taken away by the next one that writes to the same place.

mod folder;
mod leftovers;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

pub(crate) use folder::is_stage;
pub use folder::{write_dir_atomic, write_into_dir};
pub(crate) use leftovers::{is_another_live_process, sweep};

/// Writes `path` through a temporary name beside it: write, sync, rename.
///
/// After a crash the file is either the old one or the whole new one. A link at `path` is replaced,
/// what it points to stays: in the Hugging Face cache that is a file which other programs share.
///
/// # Errors
/// [`Error::Io`] that names `path`; what was there is there then, and nothing beside it.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let part = part_name(path);
    let attempt = || {
        if path.is_dir() {
            return Err(std::io::Error::from(std::io::ErrorKind::IsADirectory));
        }
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
///
/// # Errors
/// As [`write_atomic`].
pub fn write_bytes_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |out| out.write_all(bytes))
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
        _ => File::open(".")?.sync_all(),
    }
}
