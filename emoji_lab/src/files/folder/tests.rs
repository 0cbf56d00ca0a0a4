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
    // The last one to move leads nowhere: it cannot be given the old one's permissions.
    fs::remove_file(stage.join("config.json")).unwrap();
    std::os::unix::fs::symlink("nowhere", stage.join("config.json")).unwrap();
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
    let fill = |text: &'static str| move |part: &Path| write_bytes_atomic(part.join("a"), text.as_bytes());
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

/// What lies below a folder, by its path in it.
fn below(dir: &Path) -> BTreeMap<String, String> {
    let names = files_in(dir).unwrap();
    names.iter().map(|n| (n.display().to_string(), fs::read_to_string(dir.join(n)).unwrap())).collect()
}

#[test]
fn files_go_into_folders_in_it_all_or_none() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    let write = |text: &'static str| {
        write_into_dir(&dir, "config.json", |stage| {
            fs::create_dir_all(stage.join("onnx/deep")).unwrap();
            for name in ["config.json", "onnx/model", "onnx/deep/data"] {
                write_bytes_atomic(stage.join(name), text.as_bytes())?;
            }
            Ok(())
        })
    };
    let all = |text: &str, more: &[(&str, &str)]| {
        let mut all = map(&[("config.json", text), ("onnx/model", text), ("onnx/deep/data", text)]);
        all.extend(map(more));
        all
    };
    write("one").unwrap();
    assert_eq!(below(&dir), all("one", &[]));
    fs::write(dir.join("onnx/notes.txt"), "mine").unwrap();
    write("two").unwrap();
    assert_eq!(below(&dir), all("two", &[("onnx/notes.txt", "mine")]));
    // A folder in the way of a file, far in: nothing has moved.
    fs::remove_file(dir.join("onnx/model")).unwrap();
    fs::create_dir(dir.join("onnx/model")).unwrap();
    assert!(write("three").is_err());
    fs::remove_dir(dir.join("onnx/model")).unwrap();
    let mut left = all("two", &[("onnx/notes.txt", "mine")]);
    left.remove("onnx/model");
    assert_eq!(below(&dir), left);
    // A file in the way of a folder, too; and folders that were made go again.
    fs::remove_dir_all(dir.join("onnx")).unwrap();
    fs::write(dir.join("onnx"), "mine").unwrap();
    assert!(write("three").is_err());
    assert_eq!(contents(&dir), map(&[("config.json", "two"), ("onnx", "mine")]));
}

#[test]
fn what_a_killed_process_left_in_a_folder_comes_back() {
    let root = tempfile::tempdir().unwrap();
    let old = root.path().join(format!("{OLD}.{}-3.part", i32::MAX));
    fs::create_dir_all(old.join("onnx")).unwrap();
    fs::write(old.join("onnx/model"), "theirs").unwrap();
    fs::write(old.join("config.json"), "theirs").unwrap();
    fs::write(root.path().join("config.json"), "new").unwrap();
    put_back_what_is_missing(root.path()).unwrap();
    assert_eq!(fs::read_to_string(root.path().join("onnx/model")).unwrap(), "theirs");
    assert_eq!(fs::read_to_string(root.path().join("config.json")).unwrap(), "new");
}
