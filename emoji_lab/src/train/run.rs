//! The run: steps, and what is due after each.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::checkpoint::CheckpointDir;
use super::engine::StepResult;
use super::finetune::Pending;
use super::interrupt::InterruptGuard;
use super::log::LogEntry;
use super::output::TrainOutput;
use super::plan::Plan;
use super::tensorboard::EventWriter;
use super::trainer::SftTrainer;
use super::trainer_state::TRAINER_STATE_FILE;
use crate::display::{Progress, say};
use crate::error::{Error, Result};

/// What is to be done after a step and has not been: an error in the middle leaves the rest for the
/// next call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// Whether the last step's work is not finished.
    pub(super) any: bool,
    logged: bool,
    evaluated: bool,
}

/// A submitted step, with what it counts for.
#[derive(Debug)]
struct Submitted {
    pending: Pending,
    learning_rate: f64,
    /// Batches of the epoch up to its end.
    last_batch: usize,
    /// Forward passes of the run up to its end.
    passes: u64,
    /// Tokens with padding, as Trainer counts them.
    padded: usize,
}

/// One call of `train()`.
struct Call {
    /// Steps that were done before it.
    first: usize,
    tokens_before: usize,
    started: Instant,
    progress: Progress,
    /// The epoch whose order of rows is at hand, and that order.
    order: (usize, Vec<usize>),
}

impl SftTrainer {
    /// Trains to the end of the run, from where it stands: the start, or a resumed checkpoint.
    ///
    /// Prints a few progress lines; logs, evaluates and writes checkpoints as the settings say.
    /// An interrupt (SIGINT, the notebook's stop button) ends it after the running step with a
    /// checkpoint; [`resume`](Self::resume) goes on from there. A second interrupt kills the process.
    ///
    /// After an error the run is as it was after its last whole step; if that cannot be (a GPU was
    /// some steps ahead), the next call goes back to this run's last checkpoint first.
    ///
    /// # Errors
    /// [`Error::Training`] if the loss is not finite or a parameter gets no gradient, and if there is no
    /// checkpoint to go back to after an error; [`Error::Io`] if a checkpoint cannot be written.
    /// Checkpoints written before stay.
    pub fn train(&mut self) -> Result<TrainOutput> {
        self.finetune.engine.usable()?;
        self.back_to_a_whole_step()?;
        let mut ahead = VecDeque::new();
        self.run(&mut ahead).map_err(|error| {
            self.after_an_error(ahead);
            self.with_last_checkpoint(error)
        })
    }

    /// Leaves nothing on its way, and the counts as they were after the last whole step.
    fn after_an_error(&mut self, ahead: VecDeque<Submitted>) {
        // A GPU does them all the same, so nobody may count on the parameters.
        self.off |= !ahead.is_empty();
        for step in ahead {
            // What failed first is told.
            let _ = self.finetune.wait(step.pending);
        }
        if self.finetune.steps() != self.state.global_step {
            self.off = true;
        }
        // Dropout of the step that failed is drawn again when it is tried again.
        self.finetune.set_progress(self.state.global_step, self.counters.passes);
        // A checkpoint that is being written is written to its end.
        let _ = self.finish_writing();
    }

    fn run(&mut self, ahead: &mut VecDeque<Submitted>) -> Result<TrainOutput> {
        let plan = self.plan()?;
        let mut call = self.begin(&plan)?;
        let interrupt = InterruptGuard::install();
        while self.state.global_step < plan.total_steps && !self.stopped_early() {
            self.submit_ahead(&plan, &mut call, ahead, &interrupt)?;
            let result = self.complete_next(&plan, ahead)?;
            self.say_progress(&plan, &mut call, &result);
            let saved = self.after_step(&plan)?;
            let is_last = self.state.global_step == plan.total_steps;
            if interrupt.requested() && ahead.is_empty() && !is_last {
                self.stop_here(saved)?;
                break;
            }
        }
        self.finish(&plan, &call)
    }

    /// The folder is made ready, and what an error left undone after the last step is done.
    fn begin(&mut self, plan: &Plan) -> Result<Call> {
        std::fs::create_dir_all(&self.args.output_dir)
            .map_err(|e| Error::io(&self.args.output_dir, "creating output_dir", e))?;
        CheckpointDir::clean_up(&self.args.output_dir)?;
        self.say_what_is_there(plan)?;
        self.prepare_checkpoints();
        if self.due.any {
            self.after_step(plan)?;
        }
        let first = self.state.global_step;
        if self.args.report_to_tensorboard && self.events.is_none() {
            self.events = Some(EventWriter::for_run(&self.args.output_dir, (first > 0).then_some(first))?);
        }
        Ok(Call {
            first,
            tokens_before: self.counters.tokens,
            started: Instant::now(),
            progress: Progress::resumed(first, plan.total_steps, self.args.progress_lines),
            order: (usize::MAX, vec![]),
        })
    }

    /// Submits the next step, and as many after it as the engine has room for, up to where something is
    /// to be done between two steps.
    fn submit_ahead(
        &mut self,
        plan: &Plan,
        call: &mut Call,
        ahead: &mut VecDeque<Submitted>,
        interrupt: &InterruptGuard,
    ) -> Result<()> {
        loop {
            let next = self.state.global_step + ahead.len();
            let stop = next >= plan.total_steps || interrupt.requested() || !self.finetune.has_room();
            if !ahead.is_empty() && (stop || self.pauses_after(plan, next)) {
                return Ok(());
            }
            let epoch = next / plan.steps_per_epoch;
            if call.order.0 != epoch {
                call.order = (epoch, self.epoch_order(epoch));
            }
            ahead.push_back(self.submit(plan, next, &call.order.1)?);
        }
    }

    /// Submits step `step`, counted from 0.
    fn submit(&mut self, plan: &Plan, step: usize, order: &[usize]) -> Result<Submitted> {
        let args = &self.args;
        let size = args.per_device_train_batch_size;
        let first = step % plan.steps_per_epoch * plan.batches_per_step;
        let last = (first + plan.batches_per_step).min(plan.batches_per_epoch);
        let batches: Vec<Batch> =
            order.chunks(size).skip(first).take(last - first).map(|rows| self.batch(rows)).collect();
        let learning_rate =
            args.learning_rate * args.lr_scheduler_type.factor(step, plan.warmup, plan.total_steps);
        let padded: usize = batches.iter().map(Batch::padded_len).sum();
        let pending = self.finetune.submit(&batches, learning_rate)?;
        Ok(Submitted { pending, learning_rate, last_batch: last, passes: self.finetune.passes(), padded })
    }

    /// Waits for the earliest submitted step and counts it.
    fn complete_next(&mut self, plan: &Plan, ahead: &mut VecDeque<Submitted>) -> Result<StepResult> {
        let Some(submitted) = ahead.pop_front() else {
            return Err(Error::training("no step was submitted", "This is a fault of emoji_lab"));
        };
        let step = self.state.global_step;
        let Submitted { pending, learning_rate, last_batch: last, passes, padded } = submitted;
        let result = self.finetune.wait(pending)?;
        let counters = &mut self.counters;
        counters.passes = passes;
        counters.loss_since_log += result.loss;
        counters.loss_total += result.loss;
        counters.tokens += result.tokens;
        counters.grad_norm = result.grad_norm;
        counters.learning_rate = learning_rate;
        self.state.total_flos += padded as f64 * self.flops_per_token;
        self.state.global_step = step + 1;
        let batches_done = step / plan.steps_per_epoch * plan.batches_per_epoch + last;
        self.state.epoch = batches_done as f64 / plan.batches_per_epoch as f64;
        self.due = Due { any: true, logged: false, evaluated: false };
        Ok(result)
    }

    fn say_progress(&self, plan: &Plan, call: &mut Call, result: &StepResult) {
        let step = self.state.global_step;
        let done = (step - call.first) as f64;
        let elapsed = call.started.elapsed().as_secs_f64();
        let rate = (self.counters.tokens - call.tokens_before) as f64 / elapsed;
        let left = Duration::try_from_secs_f64(elapsed / done * (plan.total_steps - step) as f64).ok();
        if let Some(line) = call.progress.line(step, Some(result.loss), Some(rate), left) {
            say(line);
        }
    }

    /// After an interrupt: a checkpoint, if this step did not write one.
    fn stop_here(&mut self, saved: bool) -> Result<()> {
        if !saved {
            self.save_checkpoint()?;
        }
        self.finish_writing()?;
        let step = self.state.global_step;
        say(format_args!("interrupted after step {step}; trainer.resume()? goes on from here"));
        Ok(())
    }

    /// Logs, evaluates and saves, in this order, where it is due; says whether it saved.
    fn after_step(&mut self, plan: &Plan) -> Result<bool> {
        let step = self.state.global_step;
        if self.args.logging_strategy.is_due(step, plan.ends_epoch(step)) && !self.due.logged {
            let counters = &self.counters;
            self.log(LogEntry {
                loss: Some(counters.loss_since_log / (step - counters.logged_step) as f64),
                grad_norm: Some(counters.grad_norm),
                learning_rate: Some(counters.learning_rate),
                num_tokens: Some(counters.tokens as f64),
                ..LogEntry::default()
            })?;
            self.counters.loss_since_log = 0.0;
            self.counters.logged_step = step;
        }
        self.due.logged = true;
        let save = plan.is_due(self.args.save_strategy, step);
        if plan.is_due(self.args.eval_strategy, step) && !self.due.evaluated {
            if save {
                self.begin_saving_beside()?;
            }
            self.log_evaluation(plan)?;
        }
        self.due.evaluated = true;
        if save {
            self.save_checkpoint()?;
        }
        self.due.any = false;
        Ok(save)
    }

    fn log(&mut self, mut entry: LogEntry) -> Result<()> {
        entry.epoch = self.state.epoch;
        entry.step = self.state.global_step;
        if let Some(events) = &mut self.events {
            events.add_log_entry(&entry)?;
        }
        self.state.log_history.push(entry);
        Ok(())
    }

    fn log_evaluation(&mut self, plan: &Plan) -> Result<()> {
        let started = Instant::now();
        let eval_loss = self.evaluate()?;
        let seconds = started.elapsed().as_secs_f64();
        let rows: usize = self.eval_batches.iter().map(|b| b.rows).sum();
        let answers = match self.args.predict_with_generate {
            true => Some(self.evaluate_answers()?),
            false => None,
        };
        if self.args.progress_lines > 0 {
            let epoch = self.state.epoch;
            let mut line =
                format!("epoch {epoch:.2}  validation loss {eval_loss:.4}  ({rows} rows in {seconds:.1} s)");
            if let Some(answers) = &answers {
                let score = answers.score().mean;
                line += &format!("  {} {score:.3}  ({:.1} s)", answers.label(), answers.seconds);
            }
            say(line);
        }
        let mut entry = LogEntry {
            eval_loss: Some(eval_loss),
            eval_runtime: Some(seconds),
            eval_samples_per_second: Some(rows as f64 / seconds),
            eval_steps_per_second: Some(self.eval_batches.len() as f64 / seconds),
            eval_num_tokens: Some(self.counters.tokens as f64),
            ..LogEntry::default()
        };
        if let Some(answers) = &answers {
            Self::put_measures(&mut entry, answers);
        }
        self.log(entry.clone())?;
        let saved = plan.is_due(self.args.save_strategy, self.state.global_step);
        self.note_best(&entry, saved);
        Ok(())
    }

    fn finish(&mut self, plan: &Plan, call: &Call) -> Result<TrainOutput> {
        self.finish_writing()?;
        let steps = self.state.global_step - call.first;
        let seconds = call.started.elapsed().as_secs_f64();
        // As HF's Trainer counts: the whole run's rows, by the share of its steps done in this call.
        let whole = match self.args.max_steps {
            Some(total) => total * self.args.per_device_train_batch_size * plan.batches_per_step,
            None => (self.train_rows.len() as f64 * self.args.num_train_epochs) as usize,
        };
        let rows = whole as f64 * steps as f64 / plan.total_steps as f64;
        let train_loss = self.counters.loss_total / self.state.global_step.max(1) as f64;
        let stopped_early = self.stopped_early();
        let complete = self.state.global_step == plan.total_steps || stopped_early;
        if steps > 0 && complete {
            self.log(LogEntry {
                train_runtime: Some(seconds),
                train_samples_per_second: Some(rows / seconds),
                train_steps_per_second: Some(steps as f64 / seconds),
                total_flos: Some(self.state.total_flos),
                train_loss: Some(train_loss),
                ..LogEntry::default()
            })?;
        }
        if let Some(events) = &mut self.events {
            events.flush()?;
        }
        self.state.save(self.args.output_dir.join(TRAINER_STATE_FILE))?;
        let best = match self.args.load_best_model_at_end && complete {
            true => self.load_best()?,
            false => None,
        };
        Ok(TrainOutput {
            global_step: self.state.global_step,
            total_steps: plan.total_steps,
            train_loss,
            seconds,
            tokens: self.counters.tokens,
            log_history: self.state.log_history.clone(),
            best_checkpoint: best,
            stopped_early,
        })
    }
}
