//! Several files that belong together: all of them or none.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{file_name, keep_permissions, left_by_dead, part_name, sweep, sync_parent, unfinished};
use crate::error::{Error, Result};

/// What new files are gathered in before they take their places, as `.emoji_lab-new.PID-N.part`.
const STAGE: &str = ".emoji_lab-new";
/// Where the files that they replace wait until all is done.
const OLD: &str = ".emoji_lab-old";

/// Makes the directory `path` through a temporary name beside it: `fill` writes into the
/// temporary directory, which takes its name only when everything in it is on disk.
///
/// For a folder that this program named itself, as `checkpoint-12`: an existing `path` is replaced
/// with all that is in it. The old one goes only after the new one is whole; if it cannot take its
/// place, the old one is put back.
///
/// # Errors
/// What `fill` returns, or [`Error::Io`].
pub fn write_dir_atomic(path: impl AsRef<Path>, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let part = part_name(path);
    fs::create_dir_all(&part).map_err(|e| Error::io(&part, "creating the folder", e))?;
    let attempt = fill(&part).and_then(|()| {
        sync(&part)
            .and_then(|()| take_place(&part, path))
            .and_then(|()| sync_parent(path))
            .map_err(|e| Error::io(path, "writing the folder", e))
    });
    if attempt.is_err() {
        let _ = fs::remove_dir_all(&part);
    }
    attempt
}

fn take_place(part: &Path, path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return fs::rename(part, path),
        Err(e) => return Err(e),
        Ok(there) if !there.is_dir() => return Err(io::ErrorKind::NotADirectory.into()),
        Ok(_) => {}
    }
    // rename(2) cannot replace a folder that has files in it, so the old one steps aside under a name
    // that readers ignore.
    let old = path.with_file_name(format!("{}.old.part", file_name(path)));
    let _ = fs::remove_dir_all(&old);
    fs::rename(path, &old)?;
    if let Err(e) = fs::rename(part, path) {
        fs::rename(&old, path)?;
        return Err(e);
    }
    sync_parent(path)?;
    fs::remove_dir_all(&old)
}

/// Writes files into the folder `dir`, which a person named: what else is in it stays, as with
/// Python's `save_pretrained`. `fill` writes them into a folder that it is given, or into folders in it;
/// when all are on disk they take their places one by one, `last` at the end (what says that the others
/// are there).
///
/// `dir` is made if it is missing, as are folders in it. If it is a link to a folder, they go to where it leads. A file that
/// is a link is replaced by a file; what the link led to stays.
///
/// # Errors
/// What `fill` returns, or [`Error::Io`] if they cannot be written; `dir` is as it was then.
pub fn write_into_dir(
    dir: impl AsRef<Path>,
    last: &str,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let dir = dir.as_ref();
    let fail = |doing| move |e| Error::io(dir, doing, e);
    let made = make_dirs(dir).map_err(fail("creating the folder"))?;
    let attempt = put_back_what_is_missing(dir)
        .and_then(|()| sweep(dir, is_stage))
        .map_err(fail("removing what a killed process left"))
        .and_then(|()| stage_and_swap(dir, last, fill));
    if attempt.is_err() {
        remove_empty(&made);
    }
    attempt
}

/// Whether a name, without `.PID-N.part`, is one of [`write_into_dir`]'s own folders.
pub(crate) fn is_stage(name: &str) -> bool {
    name == STAGE || name == OLD
}

/// Makes `dir` and the folders above it that are missing; returns those, outermost first.
fn make_dirs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let missing: Vec<&Path> = dir
        .ancestors()
        .take_while(|folder| !folder.as_os_str().is_empty() && fs::symlink_metadata(folder).is_err())
        .collect();
    let mut made = Vec::new();
    for folder in missing.iter().rev() {
        match fs::create_dir(folder) {
            Ok(()) => made.push(folder.to_path_buf()),
            // Another process made it, or it is a way of naming the one above: `a/.`, `a/b/..`.
            Err(_) if folder.is_dir() => {}
            Err(e) => {
                remove_empty(&made);
                return Err(e);
            }
        }
    }
    match dir.is_dir() {
        true => Ok(made),
        false => Err(io::ErrorKind::NotADirectory.into()),
    }
}

/// Removes folders that were made here, unless something is in them by now.
fn remove_empty(made: &[PathBuf]) {
    for folder in made.iter().rev() {
        let _ = fs::remove_dir(folder);
    }
}

/// A process that was killed while files changed places may have taken one away before its successor
/// was there: those come back out of its folder of old files.
pub(crate) fn put_back_what_is_missing(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_left = entry.file_type()?.is_dir()
            && entry.file_name().to_str().and_then(left_by_dead).is_some_and(|of| of == OLD);
        if !is_left {
            continue;
        }
        for name in files_in(&entry.path())? {
            let path = dir.join(&name);
            if fs::symlink_metadata(&path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
                make_dirs(path.parent().unwrap_or(dir))?;
                fs::rename(entry.path().join(&name), path)?;
            }
        }
    }
    Ok(())
}

fn stage_and_swap(dir: &Path, last: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (stage, old) = (dir.join(unfinished(STAGE)), dir.join(unfinished(OLD)));
    // One at a time: files of two calls that change places in one folder would be one call's or the other's.
    static SWAP: Mutex<()> = Mutex::new(());
    let attempt = fs::create_dir(&stage)
        .map_err(|e| Error::io(dir, "creating a folder in it", e))
        .and_then(|()| fill(&stage))
        .and_then(|()| {
            let _one = SWAP.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            swap(dir, last, &stage, &old).map_err(|(path, e)| Error::io(path, "writing", e))
        });
    let _ = fs::remove_dir_all(&stage);
    attempt
}

/// Moves the files of `stage` into `dir`, or changes nothing. `old` is made for the files that were
/// there, and goes with them, unless one could not be put back.
fn swap(dir: &Path, last: &str, stage: &Path, old: &Path) -> Result<(), (PathBuf, io::Error)> {
    let at = |path: &Path| {
        let path = path.to_path_buf();
        move |e| (path, e)
    };
    sync(stage).map_err(at(dir))?;
    let mut names = files_in(stage).map_err(at(dir))?;
    names.sort_by_key(|name| (name == Path::new(last), name.clone()));
    // What cannot work is refused before anything has moved.
    for name in &names {
        let path = dir.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|there| there.is_dir()) {
            return Err((path, io::ErrorKind::IsADirectory.into()));
        }
    }
    fs::create_dir(old).map_err(at(dir))?;
    let (mut moved, mut made) = (Vec::new(), Vec::new());
    let mut move_all = |moved: &mut Vec<Move>| {
        for folder in folders_of(&names) {
            made.extend(make_dirs(&dir.join(folder)).map_err(at(&dir.join(folder)))?);
            fs::create_dir_all(old.join(folder)).map_err(at(dir))?;
        }
        for name in &names {
            let path = dir.join(name);
            let kept = old.join(name);
            let new = stage.join(name);
            moved.push(Move { was_there: false, came: false, path, kept });
            let step = moved.last_mut().expect("one was pushed");
            let mut take_place = || {
                keep_permissions(&step.path, &new)?;
                step.was_there = keep_aside(&step.path, &step.kept)?;
                fs::rename(&new, &step.path)
            };
            take_place().map_err(at(&dir.join(name)))?;
            step.came = true;
        }
        for folder in folders_of(&names).into_iter().chain([Path::new("")]) {
            File::open(dir.join(folder)).and_then(|dir| dir.sync_all()).map_err(at(dir))?;
        }
        Ok(())
    };
    let result = move_all(&mut moved);
    let lost: Vec<_> = match result {
        Ok(()) => Vec::new(),
        Err(_) => moved.iter().rev().filter_map(|step| step.undo().err()).collect(),
    };
    if result.is_err() {
        remove_empty(&made);
    }
    match lost.into_iter().next() {
        // The only copy of a file: it stays where it is, and the error says where that is.
        Some(e) => {
            let why = format!("{e}; the files that were here are in {}: move them back", old.display());
            Err((dir.to_path_buf(), io::Error::new(e.kind(), why)))
        }
        None => {
            let _ = fs::remove_dir_all(old);
            result
        }
    }
}

/// The files in a folder and in the folders in it, as paths in it.
fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = PathBuf::from(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => found.extend(files_in(&entry.path())?.iter().map(|inside| name.join(inside))),
            false => found.push(name),
        }
    }
    Ok(found)
}

/// The folders that files of these names lie in, each once.
fn folders_of(names: &[PathBuf]) -> BTreeSet<&Path> {
    names.iter().filter_map(|name| name.parent()).filter(|folder| !folder.as_os_str().is_empty()).collect()
}

/// One file's way into its place.
struct Move {
    path: PathBuf,
    /// Where the file that was at `path` is kept, if there was one.
    kept: PathBuf,
    was_there: bool,
    came: bool,
}

impl Move {
    fn undo(&self) -> io::Result<()> {
        match (self.was_there, self.came) {
            (true, _) => fs::rename(&self.kept, &self.path),
            (false, true) => fs::remove_file(&self.path),
            (false, false) => Ok(()),
        }
    }
}

/// Keeps what is at `path` under the name `kept`; says whether there was something.
///
/// By a second name for the same file where that can be had, so that `path` is never without a file.
fn keep_aside(path: &Path, kept: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
        Ok(_) => fs::hard_link(path, kept).or_else(|_| fs::rename(path, kept)).map(|()| true),
    }
}

/// Waits until the files of a folder, and of the folders in it, are on disk.
fn sync(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}
