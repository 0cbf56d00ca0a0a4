//! Several files that belong together: all of them or none.

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
/// Python's `save_pretrained`. `fill` writes them into a folder that it is given; when all are on disk
/// they take their places one by one, `last` at the end (what says that the others are there).
///
/// `dir` is made if it is missing. If it is a link to a folder, they go to where it leads. A file that
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
        for kept in fs::read_dir(entry.path())? {
            let kept = kept?;
            let path = dir.join(kept.file_name());
            if fs::symlink_metadata(&path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
                fs::rename(kept.path(), path)?;
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
    let mut names = Vec::new();
    for entry in fs::read_dir(stage).map_err(at(dir))? {
        names.push(entry.map_err(at(dir))?.file_name());
    }
    names.sort_by_key(|name| (name == last, name.clone()));
    // What cannot work is refused before anything has moved.
    for name in &names {
        let path = dir.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|there| there.is_dir()) {
            return Err((path, io::ErrorKind::IsADirectory.into()));
        }
    }
    fs::create_dir(old).map_err(at(dir))?;
    let mut moved = Vec::new();
    let move_all = |moved: &mut Vec<Move>| {
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
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))
    };
    let result = move_all(&mut moved);
    let lost: Vec<_> = match result {
        Ok(()) => Vec::new(),
        Err(_) => moved.iter().rev().filter_map(|step| step.undo().err()).collect(),
    };
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::files::write_bytes_atomic;

    fn contents(dir: &Path) -> BTreeMap<String, String> {
        fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let text = match entry.file_type().unwrap().is_dir() {
                    true => "a folder".to_string(),
                    false => fs::read_to_string(entry.path()).unwrap(),
                };
                (entry.file_name().into_string().unwrap(), text)
            })
            .collect()
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
    }

    fn write(dir: &Path) -> Result<()> {
        write_into_dir(dir, "config.json", |stage| {
            write_bytes_atomic(stage.join("config.json"), b"new config")?;
            write_bytes_atomic(stage.join("weights"), b"new weights")
        })
    }

    #[test]
    fn files_are_added_to_a_folder() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        write(&dir).unwrap();
        assert_eq!(contents(&dir), map(&[("config.json", "new config"), ("weights", "new weights")]));
        fs::write(dir.join("config.json"), "old config").unwrap();
        fs::write(dir.join("notes.txt"), "mine").unwrap();
        fs::create_dir(dir.join(format!("{STAGE}.{}-3.part", i32::MAX))).unwrap();
        write(&dir.join(".")).unwrap();
        write(&dir.join("../b/")).unwrap();
        assert_eq!(
            contents(&dir),
            map(&[("config.json", "new config"), ("notes.txt", "mine"), ("weights", "new weights")])
        );
    }

    #[test]
    fn a_failure_leaves_everything_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        let fails = |stage: &Path| {
            write_bytes_atomic(stage.join("config.json"), b"new")?;
            Err(Error::training("no", "help"))
        };
        assert!(write_into_dir(&dir, "config.json", fails).is_err());
        assert!(contents(root.path()).is_empty(), "no folder is left");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.json"), "old").unwrap();
        assert!(write_into_dir(&dir, "config.json", fails).is_err());
        // A folder lies where a file is to go.
        fs::create_dir(dir.join("weights")).unwrap();
        let said = write(&dir).unwrap_err().to_string();
        assert!(said.contains("weights"), "{said}");
        assert_eq!(contents(&dir), map(&[("config.json", "old"), ("weights", "a folder")]));
        // The folder's own name is a file.
        fs::write(root.path().join("file"), "x").unwrap();
        assert!(write(&root.path().join("file")).is_err());
        assert_eq!(fs::read_to_string(root.path().join("file")).unwrap(), "x");
    }

    #[test]
    fn what_has_moved_is_put_back_when_the_next_move_fails() {
        let root = tempfile::tempdir().unwrap();
        let (dir, stage, old) = (root.path().join("d"), root.path().join("s"), root.path().join("o"));
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir_all(&stage).unwrap();
        for name in ["a", "b", "config.json"] {
            fs::write(stage.join(name), "new").unwrap();
        }
        fs::write(dir.join("a"), "old a").unwrap();
        fs::write(dir.join("config.json"), "old config").unwrap();
        let before = contents(&dir);
        // The last one to move is gone from under it, and what is there cannot be kept aside either.
        fs::remove_file(stage.join("config.json")).unwrap();
        fs::create_dir(stage.join("config.json")).unwrap();
        assert!(swap(&dir, "config.json", &stage, &old).is_err());
        assert_eq!(contents(&dir), before);
    }

    #[test]
    fn what_a_killed_process_took_away_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        // As `rename` leaves it where files have only one name: one old file aside, one new one in place.
        let old = dir.join(format!("{OLD}.{}-3.part", i32::MAX));
        fs::create_dir(&old).unwrap();
        fs::write(old.join("a"), "old a").unwrap();
        fs::write(old.join("weights"), "old weights").unwrap();
        fs::write(dir.join("weights"), "half").unwrap();
        write(dir).unwrap();
        assert_eq!(
            contents(dir),
            map(&[("a", "old a"), ("config.json", "new config"), ("weights", "new weights")])
        );
    }

    #[test]
    fn what_cannot_be_put_back_is_kept_and_named() {
        let root = tempfile::tempdir().unwrap();
        let (dir, stage, old) = (root.path().join("d"), root.path().join("s"), root.path().join("o"));
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir_all(&stage).unwrap();
        let step = Move { path: dir.join("x/a"), kept: dir.join("kept"), was_there: true, came: false };
        fs::write(&step.kept, "the only copy").unwrap();
        assert!(step.undo().is_err());
        assert_eq!(fs::read_to_string(&step.kept).unwrap(), "the only copy");
        // The folder for the files that were there cannot be made: nothing has moved.
        fs::write(&old, "a file").unwrap();
        fs::write(stage.join("a"), "new").unwrap();
        assert!(swap(&dir, "a", &stage, &old).is_err());
        assert!(!dir.join("a").exists() && old.is_file());
    }

    #[test]
    fn two_calls_at_once_do_not_mix() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("d");
        std::thread::scope(|scope| {
            for text in ["one", "two", "three", "four"] {
                let dir = &dir;
                scope.spawn(move || {
                    for _ in 0..20 {
                        write_into_dir(dir, "config.json", |stage| {
                            for name in ["config.json", "weights"] {
                                write_bytes_atomic(stage.join(name), text.as_bytes())?;
                            }
                            Ok(())
                        })
                        .unwrap();
                    }
                });
            }
        });
        let left = contents(&dir);
        assert_eq!(left.keys().collect::<Vec<_>>(), ["config.json", "weights"]);
        assert_eq!(left["config.json"], left["weights"], "both files are of one call");
    }

    #[cfg(unix)]
    #[test]
    fn permissions_stay() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("config.json");
        let private = fs::Permissions::from_mode(0o600);
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, private).unwrap();
        write(root.path()).unwrap();
        assert_eq!((mode(), fs::read_to_string(&path).unwrap().as_str()), (0o600, "new config"));
        write_bytes_atomic(&path, b"newer").unwrap();
        assert_eq!(mode(), 0o600);
    }

    #[cfg(unix)]
    #[test]
    fn links_to_folders_lead_on_and_links_to_files_are_replaced() {
        use std::os::unix::fs::symlink;
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("real")).unwrap();
        symlink(at("real"), at("link")).unwrap();
        fs::write(at("shared"), "others read this").unwrap();
        symlink(at("shared"), at("real/weights")).unwrap();
        write(&at("link")).unwrap();
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(at("real/weights")).unwrap(), "new weights");
        assert_eq!(fs::read_to_string(at("shared")).unwrap(), "others read this");
    }

    #[test]
    fn a_whole_folder_that_cannot_take_its_place_leaves_the_old_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("checkpoint-1");
        let fill =
            |text: &'static str| move |part: &Path| write_bytes_atomic(part.join("a"), text.as_bytes());
        write_dir_atomic(&path, fill("one")).unwrap();
        write_dir_atomic(&path, fill("two")).unwrap();
        assert_eq!(contents(&path), map(&[("a", "two")]));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        // The new one is gone before it can be moved: the old one is put back.
        assert!(take_place(&root.path().join("nowhere"), &path).is_err());
        assert_eq!(contents(&path), map(&[("a", "two")]));
        fs::write(root.path().join("file"), "x").unwrap();
        assert!(write_dir_atomic(root.path().join("file"), fill("three")).is_err());
        assert_eq!(fs::read_to_string(root.path().join("file")).unwrap(), "x");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }
}
