//! `checkpoint-N` folders: found, written whole, rotated, and swept of what killed runs left.

use std::fs;
use std::path::{Path, PathBuf};

use super::trainer_state::TRAINER_STATE_FILE;
use crate::error::{Error, Result};
use crate::files::{
    is_another_live_process, is_stage, process_of, put_back_what_is_missing, write_dir_atomic,
};

const PREFIX: &str = "checkpoint-";

/// The files that are written into `output_dir` itself, each through a name that ends in `.PID-N.part`.
const OUR_FILES: [&str; 9] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    TRAINER_STATE_FILE,
];

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
    pub fn list(output_dir: &Path) -> Result<Vec<Self>> {
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
    pub(super) fn list_cut(output_dir: &Path) -> Result<Vec<(Self, &'static str)>> {
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
    pub(super) fn at(output_dir: &Path, step: usize) -> Self {
        Self { step, path: output_dir.join(format!("{PREFIX}{step}")) }
    }

    /// The whole checkpoint of the latest step, if there is one.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn last(output_dir: &Path) -> Result<Option<Self>> {
        Ok(Self::list(output_dir)?.pop())
    }

    /// The checkpoint in the folder `path`, as a person names it.
    ///
    /// # Errors
    /// [`Error::Training`] if it is not a checkpoint folder or lacks a file; the way out names the
    /// checkpoints beside it.
    pub fn open(path: &Path) -> Result<Self> {
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
    pub fn write(output_dir: &Path, step: usize, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let path = output_dir.join(format!("{PREFIX}{step}"));
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

    /// Removes the earliest checkpoints of a run until `save_total_limit` are left, and returns the
    /// removed ones. `written`, which the run has just written, and `keep_best` always stay, even above
    /// the limit; `None` and 0 mean no limit.
    ///
    /// Only checkpoints up to `written` count, and only those that `is_of_this_run` knows: what another
    /// run left in the folder is not this run's to remove.
    ///
    /// # Errors
    /// [`Error::Io`] if a folder cannot be removed.
    pub fn rotate(
        output_dir: &Path,
        save_total_limit: Option<usize>,
        written: &Self,
        keep_best: Option<&Path>,
        is_of_this_run: impl Fn(&Self) -> bool,
    ) -> Result<Vec<Self>> {
        let Some(limit @ 1..) = save_total_limit else { return Ok(Vec::new()) };
        let mut found = Self::list(output_dir)?;
        found.retain(|checkpoint| checkpoint.step < written.step && is_of_this_run(checkpoint));
        // By name: the folder may have been moved since the best one's path was noted.
        let best = keep_best.and_then(Path::to_str).map(last_part);
        let is_best = |checkpoint: &Self| best.is_some() && checkpoint.path.to_str().map(last_part) == best;
        let protected = 1 + usize::from(!is_best(written) && found.iter().any(is_best));
        let excess = (found.len() + 1).saturating_sub(limit.max(protected));
        found.retain(|checkpoint| !is_best(checkpoint));
        found.truncate(excess);
        for checkpoint in &found {
            checkpoint.remove()?;
        }
        Ok(found)
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

    /// Removes what a killed run left half-written in `output_dir`, and returns what it removed.
    ///
    /// Call it before training, when nothing is being written. What another live process is
    /// writing stays. A checkpoint that was set aside to be replaced and never was is put back.
    ///
    /// # Errors
    /// [`Error::Io`] if a leftover cannot be removed.
    pub fn clean_up(output_dir: &Path) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        let left = names(output_dir)?;
        if !left.is_empty() {
            put_back_what_is_missing(output_dir)
                .map_err(|e| Error::io(output_dir, "putting back what a killed process took away", e))?;
        }
        for name in left {
            // Each process that was at it put its mark behind the name: `checkpoint-5.77-0.part.old.part`.
            let (mut of, mut marks) = (name.as_str(), Vec::new());
            while let Some((rest, mark)) = of.strip_suffix(".part").and_then(|rest| rest.rsplit_once('.')) {
                (of, marks) = (rest, [marks, vec![mark]].concat());
            }
            let is_file_of_ours = OUR_FILES.contains(&of);
            let is_stage = is_stage(of);
            if marks.is_empty() || step_of(of).is_none() && !is_file_of_ours && !is_stage {
                continue;
            }
            let path = output_dir.join(&name);
            let whole = output_dir.join(of);
            let is_mark = |mark: &&str| matches!(*mark, "old" | "gone") || process_of(mark).is_some();
            let is_alive = |mark: &&str| process_of(mark).is_some_and(is_another_live_process);
            if !marks.iter().all(is_mark) || marks.iter().any(is_alive) {
                continue;
            }
            if marks == ["old"] && !whole.exists() && missing_from(&path).is_none() {
                fs::rename(&path, &whole).map_err(|e| Error::io(&path, "putting a checkpoint back", e))?;
                continue;
            }
            let result = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            result.map_err(|e| Error::io(&path, "removing what a killed run left", e))?;
            removed.push(path);
        }
        Ok(removed)
    }

    /// Takes the name away first: a kill half-way leaves no half checkpoint under it.
    fn remove(&self) -> Result<()> {
        let gone = self.path.with_file_name(format!("{PREFIX}{}.gone.part", self.step));
        let remove = || {
            let _ = fs::remove_dir_all(&gone);
            fs::rename(&self.path, &gone)?;
            fs::remove_dir_all(&gone)
        };
        remove().map_err(|e| Error::io(&self.path, "removing an old checkpoint", e))
    }
}

/// The name at the end of a path that was noted here or on a machine with other separators.
pub(super) fn last_part(noted: &str) -> &str {
    noted.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default()
}

/// `checkpoint-12` is 12; anything else, `checkpoint-12.part` among it, is none.
fn step_of(name: &str) -> Option<usize> {
    let step = name.strip_prefix(PREFIX)?.parse().ok()?;
    (format!("{PREFIX}{step}") == name).then_some(step)
}

/// What keeps a folder from being a whole checkpoint: a file that is missing, or cut short (a copy that
/// was broken off).
fn missing_from(dir: &Path) -> Option<&'static str> {
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

fn names(dir: &Path) -> Result<Vec<String>> {
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
mod tests {
    use super::*;

    fn fill(dir: &Path) -> Result<()> {
        fs::write(dir.join("adapter_model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
        fs::write(dir.join(TRAINER_STATE_FILE), "{}").unwrap();
        Ok(())
    }

    fn steps(dir: &Path) -> Vec<usize> {
        CheckpointDir::list(dir).unwrap().into_iter().map(|checkpoint| checkpoint.step).collect()
    }

    fn with_steps(of: &[usize]) -> tempfile::TempDir {
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

    fn rotate(dir: &Path, limit: Option<usize>, written: usize, best: Option<usize>, of: &[usize]) -> usize {
        // As it was noted, elsewhere or on Windows.
        let best = best.map(|step| PathBuf::from(format!(r"C:\elsewhere\checkpoint-{step}")));
        let written = CheckpointDir { step: written, path: dir.join(format!("checkpoint-{written}")) };
        let is_ours = |checkpoint: &CheckpointDir| of.contains(&checkpoint.step);
        CheckpointDir::rotate(dir, limit, &written, best.as_deref(), is_ours).unwrap().len()
    }

    #[test]
    fn rotation_keeps_the_last_and_the_best() {
        // As transformers' rotate_checkpoints: (limit, best, what is left of 1 2 3 4).
        let cases: [(Option<usize>, Option<usize>, &[usize]); 8] = [
            (None, None, &[1, 2, 3, 4]),
            (Some(0), None, &[1, 2, 3, 4]),
            (Some(9), Some(1), &[1, 2, 3, 4]),
            (Some(2), None, &[3, 4]),
            (Some(2), Some(1), &[1, 4]),
            (Some(3), Some(2), &[2, 3, 4]),
            (Some(1), Some(2), &[2, 4]),
            (Some(1), Some(4), &[4]),
        ];
        for (limit, best, left) in cases {
            let dir = with_steps(&[1, 2, 3, 4]);
            let removed = rotate(dir.path(), limit, 4, best, &[1, 2, 3, 4]);
            assert_eq!(steps(dir.path()), left, "{limit:?} {best:?}");
            assert_eq!(removed, 4 - left.len());
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), left.len());
        }
    }

    #[test]
    fn rotation_leaves_what_was_just_written_and_what_is_not_of_this_run() {
        // (limit, just written, of this run, what is left of 100 200 300 900)
        let cases: [(usize, usize, &[usize], &[usize]); 4] = [
            (1, 100, &[100], &[100, 200, 300, 900]),
            (1, 300, &[100, 200, 300], &[300, 900]),
            (3, 300, &[100, 200, 300], &[100, 200, 300, 900]),
            // An earlier run with the same settings left the later ones.
            (1, 200, &[100, 200, 300, 900], &[200, 300, 900]),
        ];
        for (limit, written, ours, left) in cases {
            let dir = with_steps(&[100, 200, 300, 900]);
            rotate(dir.path(), Some(limit), written, None, ours);
            assert_eq!(steps(dir.path()), left, "{limit} {written}");
        }
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
    fn what_killed_runs_left_goes() {
        let dir = with_steps(&[3, 4]);
        let at = |name: &str| dir.path().join(name);
        // Process 1 is alive everywhere this runs; no process has the largest id.
        let dead = i32::MAX;
        let (running, half) = ("checkpoint-5.1.part".to_string(), format!("checkpoint-5.{dead}-4.part"));
        let nested = format!("checkpoint-5.{dead}.part.{dead}.part");
        let nested_old = format!("checkpoint-5.{dead}.part.old.part");
        let stage = format!(".emoji_lab-new.{dead}.part");
        let stale = [
            half,
            "checkpoint-3.old.part".into(),
            "checkpoint-1.gone.part".into(),
            nested,
            nested_old,
            stage,
        ];
        for name in stale.iter().chain([&running, &"checkpoint-9.old.part".to_string()]) {
            fs::create_dir(at(name)).unwrap();
        }
        fill(&at("checkpoint-9.old.part")).unwrap();
        let file = format!("adapter_model.safetensors.{dead}.part");
        for name in [file.as_str(), "notes.part", "notes.txt.4.part"] {
            fs::write(at(name), "").unwrap();
        }
        let mut removed = CheckpointDir::clean_up(dir.path()).unwrap();
        removed.sort();
        let mut gone: Vec<_> = stale.iter().map(|name| at(name)).chain([at(&file)]).collect();
        gone.sort();
        assert_eq!(removed, gone);
        assert!(at(&running).exists() && at("notes.part").exists() && at("notes.txt.4.part").exists());
        assert_eq!(steps(dir.path()), [3, 4, 9], "the one that was set aside is back");
        assert!(CheckpointDir::clean_up(&at("nowhere")).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_checkpoint_is_named_with_what_there_is() {
        let dir = with_steps(&[8]);
        let says = |path: &Path, parts: [&str; 2]| {
            let error = CheckpointDir::open(path).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };
        assert_eq!(CheckpointDir::open(&dir.path().join("checkpoint-8")).unwrap().step, 8);
        says(&dir.path().join("checkpoint-7"), ["checkpoint-7 is not a folder", "checkpoint-8"]);
        says(dir.path(), ["is not named checkpoint-N", "checkpoint-8"]);
        fs::remove_file(dir.path().join("checkpoint-8/trainer_state.json")).unwrap();
        says(&dir.path().join("checkpoint-8"), ["holds no trainer_state.json", "no checkpoint to resume"]);
    }
}
