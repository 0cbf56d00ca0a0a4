//! Writing files so that nothing half-written is ever left behind, and nothing of anyone else's goes.
//!
//! | what is written | by | what else is there |
//! |---|---|---|
//! | one file | [`write_atomic`] | stays |
//! | several files that belong together, into a folder that a person named | [`write_into_dir`] | stays |
//! | a folder that this program named itself, as `checkpoint-12` | [`write_dir_atomic`] | is replaced with it |
//!
//! What is not finished has a name that ends in `.PID-N.part`, PID being the process that writes it and
//! N the count of its writes; what a killed process left is taken away by the next one that writes to the
//! same place.

mod folder;
mod leftovers;
mod on_its_way;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};
use on_its_way::OnItsWay;

pub(crate) use folder::{is_stage, put_back_what_is_missing};
pub use folder::{write_dir_atomic, write_into_dir};
pub(crate) use leftovers::{is_another_live_process, left_by_dead, process_of, sweep};

/// Writes `path` through a temporary name beside it: write, sync, rename.
///
/// After a crash the file is either the old one or the whole new one. A link at `path` is replaced,
/// what it points to stays: in the Hugging Face cache that is a file which other programs share. A file
/// that only its owner may read is replaced by one that only its owner may read.
///
/// # Errors
/// [`Error::Io`] that names `path`; what was there is there then, and nothing beside it.
pub fn write_atomic(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let part = part_name(path);
    let attempt = || {
        if path.is_dir() {
            return Err(std::io::Error::from(std::io::ErrorKind::IsADirectory));
        }
        let mut out = BufWriter::new(OnItsWay::new(File::create_new(&part)?));
        write(&mut out)?;
        out.into_inner().map_err(|e| e.into_error())?.sync()?;
        keep_permissions(path, &part)?;
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
pub fn write_bytes_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |out| out.write_all(bytes))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A name in the same folder that no other call has, of this process or of another, until what is written is whole.
pub(crate) fn part_name(path: &Path) -> PathBuf {
    path.with_file_name(unfinished(&file_name(path)))
}

/// `NAME.PID-N.part`, a name that no other call has, of this process or of another.
fn unfinished(name: &str) -> String {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    format!("{name}.{}-{call}.part", std::process::id())
}

/// Gives the file `new`, which is to replace the file `old`, the permissions of that one.
fn keep_permissions(old: &Path, new: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(old) {
        Ok(there) if there.is_file() => fs::set_permissions(new, there.permissions()),
        _ => Ok(()),
    }
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
