//! What is done about `checkpoint-N` folders that are there already: too many of them, and what killed runs
//! left.

use std::fs;
use std::path::{Path, PathBuf};

use super::dir::{CheckpointDir, PREFIX, last_part, missing_from, names, step_of};
use crate::error::{Error, Result};
use crate::files::{is_another_live_process, is_stage, process_of, put_back_what_is_missing};
use crate::train::trainer_state::TRAINER_STATE_FILE;

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

impl CheckpointDir {
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
        output_dir: impl AsRef<Path>,
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

    /// Removes what a killed run left half-written in `output_dir`, and returns what it removed.
    ///
    /// Call it before training, when nothing is being written. What another live process is
    /// writing stays. A checkpoint that was set aside to be replaced and never was is put back.
    ///
    /// # Errors
    /// [`Error::Io`] if a leftover cannot be removed.
    pub fn clean_up(output_dir: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
        let output_dir = output_dir.as_ref();
        let mut removed = Vec::new();
        let left = names(output_dir)?;
        if !left.is_empty() {
            put_back_what_is_missing(output_dir)
                .map_err(|e| Error::io(output_dir, "putting back what a killed process took away", e))?;
        }
        for name in left {
            // Each process that was at it put its mark after the name: `checkpoint-5.77-0.part.old.part`.
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

#[cfg(test)]
mod tests {
    use super::super::dir::tests::{fill, steps, with_steps};
    use super::*;

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
        assert!(CheckpointDir::clean_up(at("nowhere")).unwrap().is_empty());
    }
}
