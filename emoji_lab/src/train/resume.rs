//! A run that goes on: its checkpoints are written, found again and taken up.

use std::path::Path;

use super::checkpoint::{Checkpoint, CheckpointDir, ToWrite, TrainingState, Writing, died, last_part};
use super::config::Strategy;
use super::identity::RunIdentity;
use super::output::TrainOutput;
use super::plan::Plan;
use super::trainer::SftTrainer;
use crate::display::say;
use crate::error::{Error, Result};

/// Said where parameters are wanted that an error has left between two steps.
pub(super) fn off() -> Error {
    Error::training(
        "an error ended the last call while later steps were on their way, so that the parameters belong to no step",
        "Call train() or resume(), which go back to the run's last checkpoint, or make a new SftTrainer",
    )
}

impl SftTrainer {
    /// Goes on with a run that was stopped: from where this trainer stands if it was interrupted,
    /// else (after a restart of the kernel) from the latest checkpoint of this run in `output_dir`.
    /// Checkpoints of other runs (other settings, rows or base model) are passed over, and so is one
    /// that cannot be read, with a line that says so.
    ///
    /// # Errors
    /// [`Error::Training`] if there is nothing to go on with: this trainer's run is at its end, or a
    /// new trainer finds no checkpoint, or only those of other runs; what differs is named.
    pub fn resume(&mut self) -> Result<TrainOutput> {
        match self.state.global_step {
            0 => {
                self.load_latest(usize::MAX)?;
                self.train()
            }
            step if step < self.plan()?.total_steps || self.off => self.train(),
            step => Err(Error::training(
                format!("nothing to resume: all {step} steps are done"),
                "To train anew, make a new SftTrainer; to train longer, one with a higher num_train_epochs",
            )),
        }
    }

    /// Takes up the run saved in `checkpoint` and trains on to its end, with the same numbers as if it
    /// had never stopped. [`resume`](Self::resume) takes the latest.
    ///
    /// # Errors
    /// [`Error::Training`] if there is no checkpoint, it is of another run (what differs is named), or
    /// it is past this run's end.
    pub fn resume_from_checkpoint(&mut self, checkpoint: impl AsRef<Path>) -> Result<TrainOutput> {
        let checkpoint = CheckpointDir::open(checkpoint)?;
        self.load_checkpoint(&checkpoint.path)?;
        self.train()
    }

    /// Whether checkpoints are written beside the steps: a GPU leaves the host time for it, a CPU's steps do not.
    fn saves_beside(&self) -> bool {
        self.base.gemma.device().is_cuda()
    }

    /// Begins what the first checkpoint waits for otherwise, where the host has time for it.
    pub(super) fn prepare_checkpoints(&mut self) {
        if self.args.save_strategy == Strategy::No || !self.saves_beside() {
            return;
        }
        self.expect_checkpoint();
        if self.knows_base || self.reading_base.is_some() {
            return;
        }
        let (mut identity, base) = (self.identity.clone(), self.base.clone());
        let tokenizer = self.tokenizer.clone();
        self.reading_base = Some(std::thread::spawn(move || {
            identity.add_base(&base)?;
            tokenizer.make()?;
            Ok(identity)
        }));
    }

    /// The run that this is. Completed when it is first asked for: it reads every weight of the base.
    pub(super) fn identity(&mut self) -> Result<&RunIdentity> {
        if !self.knows_base {
            match self.reading_base.take() {
                None => self.identity.add_base(&self.base)?,
                Some(reading) => {
                    self.identity = reading.join().unwrap_or_else(|_| Err(died("reads the base model")))?;
                }
            }
            self.knows_base = true;
        }
        Ok(&self.identity)
    }

    /// Takes up the latest checkpoint of this run that can be read, of step `up_to` or earlier.
    fn load_latest(&mut self, up_to: usize) -> Result<()> {
        let output_dir = self.args.output_dir.clone();
        let mut found = CheckpointDir::list(&output_dir)?;
        found.retain(|checkpoint| checkpoint.step <= up_to);
        found.reverse();
        for (cut, file) in CheckpointDir::list_cut(&output_dir)? {
            if cut.step <= up_to && found.first().is_none_or(|last| cut.step > last.step) {
                let path = cut.path.display();
                say(format_args!("{path} is passed over: its {file} is missing or cut short"));
            }
        }
        let here = self.identity()?.clone();
        let mut unreadable = None;
        let mut other_run = None;
        for checkpoint in &found {
            match TrainingState::load(&checkpoint.path) {
                Ok(there) if there.identity.is(&here) => {}
                Ok(there) => {
                    let differences = there.identity.differences(&here);
                    other_run.get_or_insert_with(|| another_run(&checkpoint.path, &differences));
                    continue;
                }
                Err(error) => {
                    other_run.get_or_insert(error);
                    continue;
                }
            }
            if checkpoint.step > self.plan()?.total_steps {
                // An earlier one would fit, but it is not what the run had come to.
                return Err(self.past_the_end(&checkpoint.path)?);
            }
            match self.load_checkpoint(&checkpoint.path) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    say(format_args!("{error}; trying the checkpoint before it"));
                    unreadable.get_or_insert(error);
                }
            }
        }
        Err(unreadable.or(other_run).unwrap_or_else(|| {
            Error::training(
                format!("{} holds no checkpoint", output_dir.display()),
                "Start with train(), with a save_strategy other than No",
            )
        }))
    }

    /// The error, where it is a device's with the checkpoint that the run can go on from, if there is one.
    pub(super) fn with_last_checkpoint(&mut self, error: Error) -> Error {
        let Error::Device { subject, problem, help } = error else { return error };
        let found = CheckpointDir::list(&self.args.output_dir).unwrap_or_default();
        let last = self.identity().ok().and_then(|here| {
            found.iter().rev().find(|checkpoint| TrainingState::is_of(&checkpoint.path, here))
        });
        let help = match last {
            Some(last) => format!("{help}. The last whole checkpoint is {}", last.path.display()),
            None => help,
        };
        Error::Device { subject, problem, help }
    }

    fn past_the_end(&self, dir: &Path) -> Result<Error> {
        Ok(Error::training(
            format!(
                "{} is past the end of this run, which has {} steps",
                dir.display(),
                self.plan()?.total_steps
            ),
            "Raise num_train_epochs or max_steps to go on from it, or merge it as it is with merge_adapters",
        ))
    }

    /// After an error that left the parameters between steps: the last checkpoint of this run.
    pub(super) fn back_to_a_whole_step(&mut self) -> Result<()> {
        if !self.off {
            return Ok(());
        }
        let step = self.state.global_step;
        // An earlier run with the same settings may have left later ones.
        let resumed_from = self.resumed_from.clone();
        let back = self.load_latest(step).or_else(|error| match &resumed_from {
            Some(path) => self.load_checkpoint(path),
            None => Err(error),
        });
        back.map_err(|error| {
            Error::training(
                format!("the parameters belong to no step after the last error, and there is no checkpoint to go back to ({error})"),
                "Make a new SftTrainer, and start with its train()",
            )
        })?;
        say(format_args!(
            "after the last error: back from step {step} to the checkpoint of step {}",
            self.state.global_step
        ));
        Ok(())
    }

    /// Says once, at the start of a call, what the folder holds of other runs, and that a finished run
    /// has nothing left to do.
    pub(super) fn say_what_is_there(&mut self, plan: &Plan) -> Result<()> {
        if self.state.global_step >= plan.total_steps && !self.due.any {
            say(format_args!("all {} steps are done already", plan.total_steps));
            return Ok(());
        }
        let found = CheckpointDir::list(&self.args.output_dir)?;
        if found.is_empty() {
            return Ok(());
        }
        let here = self.identity()?.clone();
        let others: Vec<_> =
            found.iter().filter(|checkpoint| !TrainingState::is_of(&checkpoint.path, &here)).collect();
        if let Some(first) = others.first() {
            let names: Vec<String> =
                others.iter().map(|other| format!("checkpoint-{}", other.step)).collect();
            let differs = match TrainingState::load(&first.path) {
                Ok(there) => there.identity.differences(&here).join("; "),
                Err(_) => "not written by this trainer".to_string(),
            };
            say(format_args!(
                "{} also holds {} of another run ({differs}), which stay",
                self.args.output_dir.display(),
                names.join(", ")
            ));
        }
        Ok(())
    }

    /// On a GPU, copies what the last step left, and begins to write it beside what is done before the checkpoint is
    /// complete.
    pub(super) fn begin_saving_beside(&mut self) -> Result<()> {
        if self.saves_beside() { self.begin_saving() } else { Ok(()) }
    }

    /// Begins to write the checkpoint of the last step, if that has not begun.
    fn begin_saving(&mut self) -> Result<()> {
        let step = self.state.global_step;
        if self.writing.as_ref().is_some_and(|writing| writing.waits_for_rest(step)) {
            return Ok(());
        }
        self.finish_writing()?;
        let to_write = ToWrite {
            step,
            format: self.weights_format(),
            output_dir: self.args.output_dir.clone(),
            save_total_limit: self.args.save_total_limit,
        };
        let writing = Writing::begin(to_write);
        let given = self.give_tensors(&writing);
        self.writing = Some(writing);
        given
    }

    /// Part after part: one is written while the next is copied.
    fn give_tensors(&self, writing: &Writing) -> Result<()> {
        writing.give_moments(self.moments()?);
        writing.give_weights(self.weights()?);
        Ok(())
    }

    /// Writes the checkpoint of the last step; on a GPU training goes on beside it.
    pub(super) fn save_checkpoint(&mut self) -> Result<()> {
        self.begin_saving()?;
        let rest = self.rest()?;
        if let Some(writing) = &mut self.writing {
            writing.give_rest(rest);
        }
        if !self.saves_beside() {
            return self.finish_writing();
        }
        self.expect_checkpoint();
        Ok(())
    }

    /// Waits for the checkpoint that is being written, if one is; one that was not completed is given up.
    pub(super) fn finish_writing(&mut self) -> Result<()> {
        if let Some(writing) = self.writing.take()
            && let Some(written) = writing.finish()?
        {
            self.say_saved(&written);
        }
        Ok(())
    }

    fn say_saved(&self, written: &CheckpointDir) {
        if self.args.progress_lines > 0 {
            say(format_args!("checkpoint saved to {}", written.path.display()));
        }
    }

    fn load_checkpoint(&mut self, dir: &Path) -> Result<()> {
        self.finish_writing()?;
        let there = TrainingState::load(dir)?;
        let differences = there.identity.differences(self.identity()?);
        if !differences.is_empty() {
            return Err(another_run(dir, &differences));
        }
        if there.global_step > self.plan()?.total_steps {
            return Err(self.past_the_end(dir)?);
        }
        self.restore(Checkpoint::load(dir, &self.weights_format())?)?;
        self.resumed_from = Some(dir.to_path_buf());
        Ok(())
    }

    /// Loads the parameters of the best checkpoint, and returns its path. It is looked for by its name
    /// in `output_dir`, beside the checkpoint that was resumed, and where it was when it was noted: the
    /// folder may have been moved since. Without it the parameters stay those of the last step, which is
    /// said: all the training is not lost for it.
    pub(super) fn load_best(&mut self) -> Result<Option<String>> {
        let Some(noted) = self.state.best_model_checkpoint.clone() else { return Ok(None) };
        let name = last_part(&noted);
        let beside = self.resumed_from.as_deref().and_then(Path::parent).map(|folder| folder.join(name));
        let here = self.identity()?.clone();
        let places = [Some(self.args.output_dir.join(name)), beside, Some(Path::new(&noted).to_path_buf())];
        let found = places.into_iter().flatten().find(|path| TrainingState::is_of(path, &here));
        let Some(path) = found else {
            say(format_args!(
                "the best checkpoint, {name}, is no longer in {}: the parameters are those of the last step",
                self.args.output_dir.display()
            ));
            return Ok(None);
        };
        match self.weights_format().load(&path) {
            Ok(weights) => {
                self.put_weights(&weights)?;
                Ok(Some(path.display().to_string()))
            }
            Err(error) => {
                say(format_args!("the best checkpoint: {error}. The parameters are those of the last step"));
                Ok(None)
            }
        }
    }
}

fn another_run(dir: &Path, differences: &[String]) -> Error {
    Error::training(
        format!("{} is of another run: {}", dir.display(), differences.join("; ")),
        "Give the settings, rows and base model it was made with, or start anew with train()",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{format_chat, load_dataset};
    use crate::device::Device;
    use crate::lora::LoraConfig;
    use crate::model::load_model;
    use crate::quant::QuantConfig;
    use crate::task::EmojiFilter;
    use crate::train::{SftConfig, Strategy};

    /// A run of 10 steps, a checkpoint after every fourth and at the end.
    fn trainer(output_dir: &Path, save_strategy: Strategy) -> SftTrainer {
        let model = load_model("embedded", &Device::Cpu).unwrap();
        let rows = format_chat(&load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap()).take(20);
        let args = SftConfig {
            output_dir: output_dir.to_path_buf(),
            max_steps: Some(10),
            learning_rate: 2e-3,
            logging_strategy: Strategy::Steps(1),
            eval_strategy: Strategy::No,
            save_strategy,
            report_to_tensorboard: false,
            progress_lines: 0,
            ..SftConfig::default()
        };
        let lora = LoraConfig { r: 2, lora_alpha: 4.0, ..LoraConfig::default() };
        SftTrainer::new(&model, &rows, None, &QuantConfig::default(), Some(&lora), &args).unwrap()
    }

    fn end(dir: &Path) -> Vec<Vec<u8>> {
        ["adapter_model.safetensors", "optimizer.safetensors", "training_state.json", "trainer_state.json"]
            .map(|file| std::fs::read(dir.join("checkpoint-10").join(file)).unwrap())
            .into()
    }

    /// Whatever was on its way when a step failed, the run's end is that of a run without a failure.
    #[test]
    fn after_an_error_no_step_is_done_twice() {
        let dir = tempfile::tempdir().unwrap();
        let unbroken = dir.path().join("unbroken");
        trainer(&unbroken, Strategy::Steps(4)).train().unwrap();
        for ahead in [0, 1, 2, 3] {
            for fails_at in [5, 6, 7, 10] {
                let broken = dir.path().join(format!("{ahead}-{fails_at}"));
                let mut run = trainer(&broken, Strategy::Steps(4));
                run.finetune = run.finetune.rehearse(ahead, fails_at);
                let error = run.train().unwrap_err().to_string();
                assert!(error.contains("rehearsed"), "{error}");
                // What a person does then: the same cell again, or resume().
                if fails_at % 2 == 0 { run.train() } else { run.resume() }.unwrap();
                assert!(end(&broken) == end(&unbroken), "{ahead} ahead, step {fails_at} failed");
            }
        }
    }

    #[test]
    fn parameters_of_no_step_are_not_saved_and_not_trained_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = trainer(dir.path(), Strategy::No);
        run.finetune = run.finetune.rehearse(2, 6);
        run.train().unwrap_err();
        let error = run.save_model(dir.path().join("a")).unwrap_err().to_string();
        assert!(error.contains("belong to no step"), "{error}");
        let error = run.train().unwrap_err().to_string();
        assert!(error.contains("no checkpoint to go back to") && error.contains("new SftTrainer"), "{error}");
        assert!(!dir.path().join("a").exists());
    }
}
