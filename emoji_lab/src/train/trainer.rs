//! Supervised fine-tuning from settings to a saved adapter: what TRL calls `SFTTrainer`.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::batch::{Batch, Row};
use super::checkpoint::CheckpointDir;
use super::config::SftConfig;
use super::finetune::{Finetune, Pending, StepResult};
use super::identity::RunIdentity;
use super::interrupt::InterruptGuard;
use super::log::LogEntry;
use super::output::TrainOutput;
use super::resume::off;
use super::rows::{batches_in_order, epoch_order, longest_batch, tokenize};
use super::schedule::warmup_steps;
use super::snapshot::{ModelSnapshot, Writing};
use super::tensorboard::EventWriter;
use super::trainer_state::{TRAINER_STATE_FILE, TrainerState};
use crate::data::ChatDataset;
use crate::display::{ParameterReport, Progress, say};
use crate::error::{Error, Result};
use crate::lora::LoraConfig;
use crate::model::Model;
use crate::quant::QuantConfig;

/// Fine-tunes a copy of a model; the model it was given stays as it is.
#[derive(Debug)]
pub struct SftTrainer {
    pub(super) args: SftConfig,
    pub(super) lora: Option<LoraConfig>,
    pub(super) base: Model,
    pub(super) finetune: Finetune,
    train_rows: Vec<Row>,
    eval_batches: Vec<Batch>,
    pub(super) state: TrainerState,
    pub(super) position: Position,
    /// The run that this is; complete once `knows_base`.
    pub(super) identity: RunIdentity,
    pub(super) knows_base: bool,
    /// Whether an error left the parameters between steps: they are then read back from a checkpoint.
    pub(super) off: bool,
    /// What is still to be done after the last step.
    pub(super) due: Due,
    /// The checkpoint that the run was taken up from.
    pub(super) resumed_from: Option<PathBuf>,
    pub(super) events: Option<EventWriter>,
    /// What HF's Trainer counts for a token that is trained on.
    flops_per_token: f64,
    /// The checkpoint that is being written beside the training.
    pub(super) writing: Option<Writing>,
}

/// Where a run stands beyond its step count: everything that resuming needs to go on bit for bit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Forward passes done in training; dropout's randomness is a function of it.
    pub(super) passes: u64,
    /// Sum of step losses since the last log entry.
    pub(super) loss_since_log: f64,
    /// Step of the last log entry.
    pub(super) logged_step: usize,
    /// Sum of all step losses.
    pub(super) loss_total: f64,
    /// Tokens trained on.
    pub(super) tokens: usize,
    /// Last gradient norm.
    pub(super) grad_norm: f64,
    /// Last learning rate.
    pub(super) learning_rate: f64,
    /// The run that it is.
    pub(super) identity: RunIdentity,
}

/// What is to be done after a step and has not been: an error in the middle leaves the rest for the
/// next call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// Whether the last step's work is not finished.
    pub(super) any: bool,
    logged: bool,
    evaluated: bool,
}

/// Sizes of a run, from the settings and the number of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    batches_per_epoch: usize,
    steps_per_epoch: usize,
    pub(super) total_steps: usize,
    warmup: usize,
}

/// A step on its way, with what it is to be counted as.
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

fn looked_at(ahead: &VecDeque<Submitted>) -> bool {
    ahead.back().is_some_and(|step| step.pending.is_looked_at())
}

/// Whether evaluating or saving is due after `step`: as the strategy says, and by steps also at the end, as
/// in transformers (a run by epochs ends with an epoch anyway).
fn is_due_with_the_end(strategy: super::Strategy, plan: &Plan, step: usize) -> bool {
    let end = step == plan.total_steps;
    strategy.is_due(step, end || step.is_multiple_of(plan.steps_per_epoch))
        || end && matches!(strategy, super::Strategy::Steps(_))
}

impl SftTrainer {
    /// Tokenises the datasets and puts a copy of `base` in training form: linear layers in NF4 if
    /// `quant` says so, adapters on them if there is a `lora` config (without one, every parameter
    /// is trained).
    ///
    /// # Errors
    /// [`Error::Setting`] for settings that cannot work, [`Error::Dataset`] for a row that leaves
    /// nothing to learn.
    pub fn new(
        base: &Model,
        train_dataset: &ChatDataset,
        eval_dataset: Option<&ChatDataset>,
        quant: &QuantConfig,
        lora: Option<&LoraConfig>,
        args: &SftConfig,
    ) -> Result<Self> {
        args.validate()?;
        let train_rows = tokenize(train_dataset, "for training", &base.tokenizer, args)?;
        let eval_rows = match eval_dataset {
            Some(dataset) => tokenize(dataset, "for evaluation", &base.tokenizer, args)?,
            None => vec![],
        };
        // The base's form on the card makes room for its training; it comes back when it is asked.
        base.gemma.release_device();
        let mut finetune =
            Finetune::new(&base.gemma, quant, lora, args.optimizer(), args.max_grad_norm, args.seed)?;
        let eval_batches = batches_in_order(&eval_rows, args.per_device_eval_batch_size);
        let longest_eval = eval_batches.iter().map(|batch| batch.tokens.len()).max().unwrap_or(0);
        finetune.reserve(longest_batch(&train_rows, args.per_device_train_batch_size).max(longest_eval))?;
        let mut trainer = Self {
            args: args.clone(),
            lora: lora.cloned(),
            base: base.clone(),
            finetune,
            train_rows,
            eval_batches,
            state: TrainerState::default(),
            position: Position::default(),
            identity: RunIdentity::default(),
            knows_base: false,
            off: false,
            due: Due::default(),
            resumed_from: None,
            events: None,
            writing: None,
            flops_per_token: 0.0,
        };
        // Forward and backward take 6 operations a parameter; looking up an embedding takes none.
        let parameters: u64 = trainer.parameter_report().rows.iter().map(|row| row.parameters).sum();
        let embedding = trainer.finetune.model().embed_tokens.value.elem_count() as u64;
        trainer.flops_per_token = 6.0 * (parameters - embedding) as f64;
        let plan = trainer.plan()?;
        trainer.identity =
            RunIdentity::new(args, quant, lora, &trainer.train_rows, (plan.total_steps, plan.warmup));
        trainer.state.max_steps = plan.total_steps;
        trainer.state.num_train_epochs = plan.total_steps.div_ceil(plan.steps_per_epoch);
        trainer.state.train_batch_size = Some(args.per_device_train_batch_size);
        trainer.state.logging_steps = args.logging_strategy.steps();
        trainer.state.eval_steps = args.eval_strategy.steps();
        trainer.state.save_steps = args.save_strategy.steps();
        Ok(trainer)
    }

    /// What the model costs to train, part by part, in parameters and bytes.
    pub fn parameter_report(&self) -> ParameterReport {
        super::parameters::report(&self.finetune)
    }

    /// Everything logged so far, oldest first.
    pub fn log_history(&self) -> &[LogEntry] {
        &self.state.log_history
    }

    /// What `trainer_state.json` holds.
    pub fn state(&self) -> &TrainerState {
        &self.state
    }

    /// The model being trained and its optimizer.
    pub fn finetune(&self) -> &Finetune {
        &self.finetune
    }

    /// The order in which epoch `epoch` (from 0) goes through the rows of the training dataset.
    ///
    /// It is a function of the number of rows, `seed` and the epoch alone: the numbers 0, 1, 2, …
    /// after [`Philox::shuffle`](crate::rng::Philox::shuffle) with the stream 2⁶² + `epoch` of the
    /// seed.
    pub fn epoch_order(&self, epoch: usize) -> Vec<usize> {
        epoch_order(self.train_rows.len(), self.args.seed, epoch)
    }

    /// What the model gets to see in epoch `epoch`, batch by batch; the last one has the rows that
    /// are left.
    pub fn epoch_batches(&self, epoch: usize) -> Vec<Batch> {
        let order = self.epoch_order(epoch);
        order.chunks(self.args.per_device_train_batch_size).map(|rows| self.batch(rows)).collect()
    }

    /// The batches of an evaluation; none without evaluation rows.
    pub fn eval_batches(&self) -> &[Batch] {
        &self.eval_batches
    }

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
        self.back_to_a_whole_step()?;
        let mut ahead = VecDeque::new();
        let outcome = self.run(&mut ahead);
        if outcome.is_err() {
            self.after_an_error(ahead);
        }
        outcome
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
        self.finetune.set_progress(self.state.global_step, self.position.passes);
        // A checkpoint that is being written is written to its end.
        let _ = self.finish_writing();
    }

    fn run(&mut self, ahead: &mut VecDeque<Submitted>) -> Result<TrainOutput> {
        let plan = self.plan()?;
        std::fs::create_dir_all(&self.args.output_dir)
            .map_err(|e| Error::io(&self.args.output_dir, "creating output_dir", e))?;
        CheckpointDir::clean_up(&self.args.output_dir)?;
        self.say_what_is_there(&plan)?;
        if self.due.any {
            self.after_step(&plan)?;
        }
        let first = self.state.global_step;
        if self.args.report_to_tensorboard && self.events.is_none() {
            self.events = Some(EventWriter::for_run(&self.args.output_dir, (first > 0).then_some(first))?);
        }
        let mut progress = Progress::resumed(first, plan.total_steps, self.args.progress_lines);
        let started = Instant::now();
        let tokens_before = self.position.tokens;
        let mut order = (usize::MAX, vec![]);
        let interrupt = InterruptGuard::install();
        while self.state.global_step < plan.total_steps {
            // A GPU is given steps ahead, up to where something is to be done between two of them.
            loop {
                let next = self.state.global_step + ahead.len();
                let stop = next >= plan.total_steps || interrupt.requested() || !self.finetune.has_room();
                if !ahead.is_empty() && (stop || self.pauses_after(&plan, next) || looked_at(ahead)) {
                    break;
                }
                let epoch = next / plan.steps_per_epoch;
                if order.0 != epoch {
                    order = (epoch, self.epoch_order(epoch));
                }
                ahead.push_back(self.submit(&plan, next, &order.1)?);
            }
            let Some(submitted) = ahead.pop_front() else { break };
            let result = self.complete(&plan, submitted)?;
            let step = self.state.global_step;
            let done = (step - first) as f64;
            let elapsed = started.elapsed().as_secs_f64();
            let rate = (self.position.tokens - tokens_before) as f64 / elapsed;
            let eta = Duration::try_from_secs_f64(elapsed / done * (plan.total_steps - step) as f64).ok();
            if let Some(line) = progress.line(step, Some(result.loss), Some(rate), eta) {
                say(line);
            }
            let saved = self.after_step(&plan)?;
            if interrupt.requested() && step < plan.total_steps && ahead.is_empty() {
                if !saved {
                    self.save_checkpoint()?;
                }
                self.finish_writing()?;
                say(format_args!("interrupted after step {step}; trainer.resume()? goes on from here"));
                break;
            }
        }
        self.finish(&plan, first, started)
    }

    /// Writes the trained adapter (or, without LoRA, the model) and the tokenizer into `dir`.
    ///
    /// What else is in `dir` stays; it may be `output_dir`.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written, [`Error::Training`] if an error has left the
    /// parameters between two steps.
    pub fn save_model(&self, dir: impl AsRef<Path>) -> Result<()> {
        if self.off {
            return Err(off());
        }
        ModelSnapshot::take(self)?.save(dir.as_ref())
    }

    /// Mean loss over the evaluation rows, as HF's Trainer counts it.
    ///
    /// # Errors
    /// [`Error::Setting`] if the trainer was given no evaluation rows.
    pub fn evaluate(&self) -> Result<f64> {
        if self.off {
            return Err(off());
        }
        if self.eval_batches.is_empty() {
            return Err(Error::setting(
                "eval_strategy",
                "on",
                "there are no evaluation rows: give SftTrainer an eval_dataset, or set Strategy::No",
            ));
        }
        self.finetune.evaluate(&self.eval_batches)
    }

    pub(super) fn plan(&self) -> Result<Plan> {
        let args = &self.args;
        let batches_per_epoch = self.train_rows.len().div_ceil(args.per_device_train_batch_size);
        let steps_per_epoch = batches_per_epoch.div_ceil(args.gradient_accumulation_steps);
        let total_steps = match args.max_steps {
            Some(steps) => steps,
            None => (args.num_train_epochs * steps_per_epoch as f64).ceil() as usize,
        };
        if args.eval_strategy != super::Strategy::No && self.eval_batches.is_empty() {
            return Err(Error::setting(
                "eval_strategy",
                format!("{:?}", args.eval_strategy),
                "there are no evaluation rows: give SftTrainer an eval_dataset, or set Strategy::No",
            ));
        }
        let warmup = warmup_steps(args.warmup_steps, args.warmup_ratio, total_steps)?;
        Ok(Plan { batches_per_epoch, steps_per_epoch, total_steps, warmup })
    }

    /// Whether steps after `step` (counted from 1) must wait until it is done, for an evaluation or
    /// a checkpoint.
    fn pauses_after(&self, plan: &Plan, step: usize) -> bool {
        is_due_with_the_end(self.args.eval_strategy, plan, step)
            || is_due_with_the_end(self.args.save_strategy, plan, step)
    }

    fn batch(&self, rows: &[usize]) -> Batch {
        Batch::from_rows(rows.iter().map(|&i| &self.train_rows[i]))
    }

    /// Sends off step `step`, counted from 0.
    fn submit(&mut self, plan: &Plan, step: usize, order: &[usize]) -> Result<Submitted> {
        let args = &self.args;
        let size = args.per_device_train_batch_size;
        let first = step % plan.steps_per_epoch * args.gradient_accumulation_steps;
        let last = (first + args.gradient_accumulation_steps).min(plan.batches_per_epoch);
        let batches: Vec<Batch> =
            order.chunks(size).skip(first).take(last - first).map(|rows| self.batch(rows)).collect();
        let learning_rate =
            args.learning_rate * args.lr_scheduler_type.factor(step, plan.warmup, plan.total_steps);
        let padded: usize = batches.iter().map(Batch::padded_len).sum();
        let pending = self.finetune.submit(&batches, learning_rate)?;
        Ok(Submitted { pending, learning_rate, last_batch: last, passes: self.finetune.passes(), padded })
    }

    /// Waits for the next step and counts it.
    fn complete(&mut self, plan: &Plan, submitted: Submitted) -> Result<StepResult> {
        let step = self.state.global_step;
        let Submitted { pending, learning_rate, last_batch: last, passes, padded } = submitted;
        let result = self.finetune.wait(pending)?;
        let position = &mut self.position;
        position.passes = passes;
        position.loss_since_log += result.loss;
        position.loss_total += result.loss;
        position.tokens += result.tokens;
        position.grad_norm = result.grad_norm;
        position.learning_rate = learning_rate;
        self.state.total_flos += padded as f64 * self.flops_per_token;
        self.state.global_step = step + 1;
        let batches_done = step / plan.steps_per_epoch * plan.batches_per_epoch + last;
        self.state.epoch = batches_done as f64 / plan.batches_per_epoch as f64;
        self.due = Due { any: true, logged: false, evaluated: false };
        Ok(result)
    }

    /// Logs, evaluates and saves, in this order, where it is due; says whether it saved.
    fn after_step(&mut self, plan: &Plan) -> Result<bool> {
        let step = self.state.global_step;
        let end_of_epoch = step.is_multiple_of(plan.steps_per_epoch) || step == plan.total_steps;
        if self.args.logging_strategy.is_due(step, end_of_epoch) && !self.due.logged {
            let position = &self.position;
            self.log(LogEntry {
                loss: Some(position.loss_since_log / (step - position.logged_step) as f64),
                grad_norm: Some(position.grad_norm),
                learning_rate: Some(position.learning_rate),
                num_tokens: Some(position.tokens as f64),
                ..LogEntry::default()
            })?;
            self.position.loss_since_log = 0.0;
            self.position.logged_step = step;
        }
        self.due.logged = true;
        if is_due_with_the_end(self.args.eval_strategy, plan, step) && !self.due.evaluated {
            self.log_evaluation()?;
        }
        self.due.evaluated = true;
        let save = is_due_with_the_end(self.args.save_strategy, plan, step);
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

    fn log_evaluation(&mut self) -> Result<()> {
        let started = Instant::now();
        let eval_loss = self.evaluate()?;
        let seconds = started.elapsed().as_secs_f64();
        let rows: usize = self.eval_batches.iter().map(|b| b.rows).sum();
        if self.args.progress_lines > 0 {
            say(format_args!(
                "epoch {:.2}  validation loss {eval_loss:.4}  ({rows} rows in {seconds:.1} s)",
                self.state.epoch
            ));
        }
        self.log(LogEntry {
            eval_loss: Some(eval_loss),
            eval_runtime: Some(seconds),
            eval_samples_per_second: Some(rows as f64 / seconds),
            eval_steps_per_second: Some(self.eval_batches.len() as f64 / seconds),
            eval_num_tokens: Some(self.position.tokens as f64),
            ..LogEntry::default()
        })?;
        let state = &mut self.state;
        // A loss that is no number is better than none, and worse than any.
        let is_better = eval_loss.is_finite()
            && state.best_metric.is_none_or(|best| !best.is_finite() || eval_loss < best);
        if self.args.load_best_model_at_end && is_better {
            state.best_metric = Some(eval_loss);
            state.best_global_step = Some(state.global_step);
            let path = self.args.output_dir.join(format!("checkpoint-{}", state.global_step));
            state.best_model_checkpoint = Some(path.display().to_string());
        }
        Ok(())
    }

    fn finish(&mut self, plan: &Plan, first: usize, started: Instant) -> Result<TrainOutput> {
        self.finish_writing()?;
        let elapsed = started.elapsed();
        let steps = self.state.global_step - first;
        let seconds = elapsed.as_secs_f64();
        // As HF's Trainer counts: the whole run's rows, by the share of its steps done in this call.
        let whole = match self.args.max_steps {
            Some(total) => {
                total * self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
            }
            None => (self.train_rows.len() as f64 * self.args.num_train_epochs) as usize,
        };
        let rows = whole as f64 * steps as f64 / plan.total_steps as f64;
        let train_loss = self.position.loss_total / self.state.global_step.max(1) as f64;
        let complete = self.state.global_step == plan.total_steps;
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
        self.state.save(&self.args.output_dir.join(TRAINER_STATE_FILE))?;
        let best = match self.args.load_best_model_at_end && complete {
            true => self.load_best()?,
            false => None,
        };
        Ok(TrainOutput {
            global_step: self.state.global_step,
            total_steps: plan.total_steps,
            train_loss,
            seconds,
            tokens: self.position.tokens,
            log_history: self.state.log_history.clone(),
            best_checkpoint: best,
        })
    }
}
