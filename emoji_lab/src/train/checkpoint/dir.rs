//! `checkpoint-N` folders: found, judged whole, written whole.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::write_dir_atomic;
use crate::train::trainer_state::TRAINER_STATE_FILE;

pub(super) const PREFIX: &str = "checkpoint-";

/// A whole checkpoint folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckpointDir {
    /// Optimizer steps done when it was written.
    pub step: usize,
    /// The folder, `OUTPUT_DIR/checkpoint-STEP`.
    pub path: PathBuf,
}

impl CheckpointDir {
    /// The whole checkpoints in `output_dir`, earliest step first. An `output_dir` that does not
    /// exist has none.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn list(output_dir: impl AsRef<Path>) -> Result<Vec<Self>> {
        let output_dir = output_dir.as_ref();
        let mut found: Vec<Self> = names(output_dir)?
            .iter()
            .filter_map(|name| Some(Self { step: step_of(name)?, path: output_dir.join(name) }))
            .filter(|checkpoint| missing_from(&checkpoint.path).is_none())
            .collect();
        found.sort();
        Ok(found)
    }

    /// The folders in `output_dir` that are named like a checkpoint and are none, with the file that is
    /// missing or cut short in each.
    pub(in crate::train) fn list_cut(output_dir: &Path) -> Result<Vec<(Self, &'static str)>> {
        let named = names(output_dir)?;
        let named = named.iter().filter_map(|name| Some(Self::at(output_dir, step_of(name)?)));
        let mut cut: Vec<_> = named
            .filter(|checkpoint| checkpoint.path.is_dir())
            .filter_map(|checkpoint| Some((missing_from(&checkpoint.path)?, checkpoint)))
            .map(|(file, checkpoint)| (checkpoint, file))
            .collect();
        cut.sort();
        Ok(cut)
    }

    /// Where the checkpoint of `step` is, or would be.
    pub(in crate::train) fn at(output_dir: &Path, step: usize) -> Self {
        Self { step, path: output_dir.join(format!("{PREFIX}{step}")) }
    }

    /// The whole checkpoint of the latest step, if there is one.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn last(output_dir: impl AsRef<Path>) -> Result<Option<Self>> {
        Ok(Self::list(output_dir)?.pop())
    }

    /// The checkpoint in the folder `path`, as a person names it.
    ///
    /// # Errors
    /// [`Error::Training`] if it is not a checkpoint folder or lacks a file; the way out names the
    /// checkpoints beside it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let problem = match (step_of(&name), missing_from(path)) {
            (_, _) if !path.is_dir() => format!("{} is not a folder", path.display()),
            (None, _) => format!("{} is not named checkpoint-N", path.display()),
            (_, Some(file)) => format!("{} holds no {file}", path.display()),
            (Some(step), None) => return Ok(Self { step, path: path.to_path_buf() }),
        };
        // The output folder itself is an easy thing to name instead.
        let beside = [path, path.parent().unwrap_or(path)].map(|dir| Self::list(dir).unwrap_or_default());
        let steps: Vec<String> =
            beside.iter().flatten().map(|found| found.path.display().to_string()).collect();
        let help = match steps.is_empty() {
            true => "There is no checkpoint to resume from here: start without resume_from_checkpoint".into(),
            false => format!("Resume from one of {}", steps.join(", ")),
        };
        Err(Error::training(problem, help))
    }

    /// Writes `output_dir/checkpoint-STEP`: `fill` puts the files into the folder it is given,
    /// which takes its name only when they are all on disk.
    ///
    /// # Errors
    /// What `fill` returns, or [`Error::Io`]. No folder is left then.
    pub fn write(
        output_dir: impl AsRef<Path>,
        step: usize,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let path = output_dir.as_ref().join(format!("{PREFIX}{step}"));
        write_dir_atomic(&path, |part| {
            fill(part)?;
            match missing_from(part) {
                Some(file) => Err(Error::training(
                    format!("the checkpoint of step {step} was written without {file}"),
                    "This is a fault of emoji_lab",
                )),
                None => Ok(()),
            }
        })?;
        Ok(Self { step, path })
    }

    /// Moves what is not of this run out of the way of `checkpoint-STEP`, which is about to be written:
    /// it keeps its files under a name that says what it is. Returns that name.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be renamed.
    pub fn set_aside(&self) -> Result<PathBuf> {
        let name = |n: usize| format!("another-run-{n}-{PREFIX}{}", self.step);
        let free = (1..).map(|n| self.path.with_file_name(name(n))).find(|path| !path.exists());
        let aside = free.unwrap_or_else(|| self.path.with_file_name(name(0)));
        fs::rename(&self.path, &aside).map_err(|e| Error::io(&self.path, "setting a checkpoint aside", e))?;
        Ok(aside)
    }
}

/// The name at the end of a path that was noted here or on a machine with other separators.
pub(in crate::train) fn last_part(noted: &str) -> &str {
    noted.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default()
}

/// `checkpoint-12` is 12; anything else, `checkpoint-12.part` among it, is none.
pub(super) fn step_of(name: &str) -> Option<usize> {
    let step = name.strip_prefix(PREFIX)?.parse().ok()?;
    (format!("{PREFIX}{step}") == name).then_some(step)
}

/// What keeps a folder from being a whole checkpoint: a file that is missing, or cut short (a copy that
/// was broken off).
pub(super) fn missing_from(dir: &Path) -> Option<&'static str> {
    let weights = ["adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json"];
    if !weights.iter().any(|file| dir.join(file).is_file()) {
        return weights.first().copied();
    }
    let cut = |file: &&&str| {
        dir.join(file).is_file() && file.ends_with(".safetensors") && !is_whole(&dir.join(file))
    };
    if let Some(file) = weights.iter().chain(&["optimizer.safetensors"]).find(cut) {
        return Some(file);
    }
    (!dir.join(TRAINER_STATE_FILE).is_file()).then_some(TRAINER_STATE_FILE)
}

/// Whether a safetensors file is as long as its first bytes say.
fn is_whole(path: &Path) -> bool {
    crate::model::safetensors_len(path)
        .is_some_and(|len| fs::metadata(path).is_ok_and(|file| file.len() == len))
}

pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let fail = |e| Error::io(dir, "looking for checkpoints", e);
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    // Names that are not UTF-8 are none of ours.
    let names = entries.map(|entry| Ok(entry.map_err(fail)?.file_name().into_string().ok()));
    Ok(names.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn fill(dir: &Path) -> Result<()> {
        fs::write(dir.join("adapter_model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
        fs::write(dir.join(TRAINER_STATE_FILE), "{}").unwrap();
        Ok(())
    }

    pub(in super::super) fn steps(dir: &Path) -> Vec<usize> {
        CheckpointDir::list(dir).unwrap().into_iter().map(|checkpoint| checkpoint.step).collect()
    }

    pub(in super::super) fn with_steps(of: &[usize]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for step in of {
            CheckpointDir::write(dir.path(), *step, fill).unwrap();
        }
        dir
    }

    #[test]
    fn whole_checkpoints_are_listed_by_step() {
        let dir = with_steps(&[10, 9, 100]);
        let make = |name: &str| fs::create_dir(dir.path().join(name)).unwrap();
        for name in ["checkpoint-11", "checkpoint-x", "checkpoint-007", "checkpoint-12.77.part", "runs"] {
            make(name);
        }
        fill(&dir.path().join("checkpoint-007")).unwrap();
        fill(&dir.path().join("checkpoint-12.77.part")).unwrap();
        fs::write(dir.path().join("checkpoint-13"), "a file").unwrap();
        assert_eq!(steps(dir.path()), [9, 10, 100]);
        assert_eq!(CheckpointDir::last(dir.path()).unwrap().unwrap().step, 100);
        assert_eq!(steps(&dir.path().join("nowhere")), [0; 0]);
    }

    #[test]
    fn a_failed_write_leaves_nothing_and_keeps_the_old_one() {
        let dir = with_steps(&[5]);
        let broken = CheckpointDir::write(dir.path(), 5, |_| Err(Error::training("no", "help")));
        assert!(broken.is_err());
        let bare = CheckpointDir::write(dir.path(), 6, |_| Ok(())).unwrap_err().to_string();
        assert!(bare.contains("step 6 was written without adapter_model.safetensors"), "{bare}");
        assert_eq!(steps(dir.path()), [5]);
        CheckpointDir::write(dir.path(), 5, fill).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_checkpoint_that_is_in_the_way_is_kept_under_another_name() {
        let dir = with_steps(&[5]);
        let mut names = Vec::new();
        for _ in 0..2 {
            names.push(CheckpointDir::list(dir.path()).unwrap()[0].set_aside().unwrap());
            CheckpointDir::write(dir.path(), 5, fill).unwrap();
        }
        let names: Vec<_> = names.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["another-run-1-checkpoint-5", "another-run-2-checkpoint-5"]);
        assert_eq!(steps(dir.path()), [5], "they are no checkpoints of this folder any more");
    }

    #[test]
    fn a_checkpoint_that_was_copied_in_part_is_none() {
        let dir = with_steps(&[5, 6]);
        for file in ["optimizer.safetensors", "adapter_model.safetensors"] {
            fs::write(dir.path().join("checkpoint-6").join(file), b"\x02\0\0\0\0\0\0\0{").unwrap();
            assert_eq!(steps(dir.path()), [5], "{file}");
            let cut = CheckpointDir::list_cut(dir.path()).unwrap();
            assert!(cut.len() == 1 && cut[0].0.step == 6, "{cut:?}");
        }
    }

    #[test]
    fn what_is_no_checkpoint_is_named_with_what_there_is() {
        let dir = with_steps(&[8]);
        let says = |path: &Path, parts: [&str; 2]| {
            let error = CheckpointDir::open(path).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };
        assert_eq!(CheckpointDir::open(dir.path().join("checkpoint-8")).unwrap().step, 8);
        says(&dir.path().join("checkpoint-7"), ["checkpoint-7 is not a folder", "checkpoint-8"]);
        says(dir.path(), ["is not named checkpoint-N", "checkpoint-8"]);
        fs::remove_file(dir.path().join("checkpoint-8/trainer_state.json")).unwrap();
        says(&dir.path().join("checkpoint-8"), ["holds no trainer_state.json", "no checkpoint to resume"]);
    }
}
