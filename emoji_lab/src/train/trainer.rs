//! Supervised fine-tuning from settings to a saved adapter: what TRL calls `SFTTrainer`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::thread::JoinHandle;

use super::batch::{Batch, Row};
use super::checkpoint::{Counters, SharedTokenizer, Writing};
use super::config::SftConfig;
use super::finetune::Finetune;
use super::identity::RunIdentity;
use super::log::LogEntry;
use super::resume::off;
use super::rows::{batches_in_order, epoch_order, longest_batch, tokenize};
use super::run::Due;
use super::tensorboard::EventWriter;
use super::trainer_state::TrainerState;
use crate::data::ChatDataset;
use crate::display::ParameterReport;
use crate::error::{Error, Result};
use crate::lora::{LoraConfig, TokenIndices};
use crate::model::{Gemma3, Model};
use crate::quant::QuantConfig;

/// Fine-tunes a copy of a model; the model it was given stays as it is.
#[derive(Debug)]
pub struct SftTrainer {
    pub(super) args: SftConfig,
    quant: QuantConfig,
    pub(super) lora: Option<LoraConfig>,
    pub(super) base: Model,
    pub(super) finetune: Finetune,
    pub(super) train_rows: Vec<Row>,
    pub(super) eval_batches: Vec<Batch>,
    /// The evaluation rows that are answered.
    pub(super) eval_questions: Option<ChatDataset>,
    pub(super) state: TrainerState,
    pub(super) counters: Counters,
    /// The run that this is; complete once `knows_base`.
    pub(super) identity: RunIdentity,
    pub(super) knows_base: bool,
    /// That run, on a thread that reads the base beside the first steps.
    pub(super) reading_base: Option<JoinHandle<Result<RunIdentity>>>,
    pub(super) tokenizer: SharedTokenizer,
    /// Whether an error left the parameters between steps: they are then read back from a checkpoint.
    pub(super) off: bool,
    /// What is still to be done after the last step.
    pub(super) due: Due,
    /// The checkpoint that the run was taken up from.
    pub(super) resumed_from: Option<PathBuf>,
    pub(super) events: Option<EventWriter>,
    /// What HF's Trainer counts for a token that is trained on.
    pub(super) flops_per_token: f64,
    /// The checkpoint that is being written beside the training.
    pub(super) writing: Option<Writing>,
}

/// The settings with the ids of the tokens whose rows are trained, ascending and each once: where those that
/// occur are, they are looked up in `rows`.
fn with_tokens(lora: &LoraConfig, rows: &[Row]) -> LoraConfig {
    let mut lora = lora.clone();
    let ids: BTreeSet<u32> = match &lora.trainable_token_indices {
        TokenIndices::None => return lora,
        TokenIndices::Occurring => rows.iter().flat_map(|row| row.ids.iter().copied()).collect(),
        TokenIndices::Ids(ids) => ids.iter().copied().collect(),
    };
    lora.trainable_token_indices = TokenIndices::Ids(ids.into_iter().collect());
    lora
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
        let lora = lora.map(|lora| with_tokens(lora, &train_rows));
        let lora = lora.as_ref();
        // The base's form on the GPU makes room for its training; it comes back when it is asked.
        base.gemma.release_device();
        let mut finetune =
            Finetune::new(&base.gemma, quant, lora, args.optimizer(), args.max_grad_norm, args.seed)?
                .with_embedding_rate(args.embedding_rate());
        let eval_batches = batches_in_order(&eval_rows, args.per_device_eval_batch_size);
        let longest_eval = eval_batches.iter().map(|batch| batch.tokens.len()).max().unwrap_or(0);
        finetune.reserve_losses(longest_eval)?;
        finetune.reserve(longest_batch(&train_rows, args.per_device_train_batch_size))?;
        if args.gradient_accumulation_steps > 1 {
            finetune.reserve_sums()?;
        }
        let mut trainer = Self {
            args: args.clone(),
            quant: quant.clone(),
            lora: lora.cloned(),
            base: base.clone(),
            finetune,
            train_rows,
            eval_batches,
            eval_questions: eval_dataset.map(|rows| rows.take(args.max_predict_samples)),
            state: TrainerState::default(),
            counters: Counters::default(),
            identity: RunIdentity::default(),
            knows_base: false,
            reading_base: None,
            tokenizer: SharedTokenizer::new(base.tokenizer.clone()),
            off: false,
            due: Due::default(),
            resumed_from: None,
            events: None,
            writing: None,
            flops_per_token: 0.0,
        };
        // Forward and backward take 6 operations a parameter; looking up an embedding takes none.
        let parameters: u64 = trainer.parameter_report().rows.iter().map(|row| row.parameters).sum();
        let embedding = trainer.finetune.start().embed_tokens.value.elem_count() as u64;
        trainer.flops_per_token = 6.0 * (parameters - embedding) as f64;
        trainer.check_metric()?;
        trainer.take_sizes()?;
        Ok(trainer)
    }

    /// What follows from the settings, the rows and the number of devices.
    pub(super) fn take_sizes(&mut self) -> Result<()> {
        let (args, plan) = (&self.args, self.plan()?);
        // A run is the same on one device that does all batches of a step one after the other.
        let on_one = SftConfig { gradient_accumulation_steps: plan.batches_per_step, ..args.clone() };
        let sizes = (plan.total_steps, plan.warmup);
        self.identity = RunIdentity::new(&on_one, &self.quant, self.lora.as_ref(), &self.train_rows, sizes);
        self.state.max_steps = plan.total_steps;
        self.state.num_train_epochs = plan.total_steps.div_ceil(plan.steps_per_epoch);
        self.state.train_batch_size = Some(args.per_device_train_batch_size);
        self.state.logging_steps = args.logging_strategy.steps();
        self.state.eval_steps = args.eval_strategy.steps();
        self.state.save_steps = args.save_strategy.steps();
        Ok(())
    }

    /// What the model costs to train, part by part, in parameters and bytes.
    pub fn parameter_report(&self) -> ParameterReport {
        super::parameters::report(&self.finetune)
    }

    /// The settings of the run.
    pub fn args(&self) -> &SftConfig {
        &self.args
    }

    /// What the frozen base is stored in.
    pub fn quant_config(&self) -> &QuantConfig {
        &self.quant
    }

    /// The adapters' settings; `None` where every parameter is trained.
    pub fn lora_config(&self) -> Option<&LoraConfig> {
        self.lora.as_ref()
    }

    /// The model that the run started from, as it was.
    pub fn base_model(&self) -> &Model {
        &self.base
    }

    /// Everything logged so far, oldest first.
    pub fn log_history(&self) -> &[LogEntry] {
        &self.state.log_history
    }

    /// What `trainer_state.json` holds.
    pub fn state(&self) -> &TrainerState {
        &self.state
    }

    /// The model as it stands, adapters and all: a copy that later steps do not change.
    ///
    /// # Errors
    /// If the device fails; [`Error::Training`] if an error has left the parameters between two steps.
    pub fn model(&self) -> Result<Gemma3> {
        if self.off {
            return Err(off());
        }
        self.finetune.model()
    }

    /// What is trained, parameter by parameter, and how.
    pub fn finetune(&self) -> &Finetune {
        &self.finetune
    }

    /// The same, to overwrite parameters.
    pub fn finetune_mut(&mut self) -> &mut Finetune {
        &mut self.finetune
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

    pub(super) fn batch(&self, rows: &[usize]) -> Batch {
        Batch::from_rows(rows.iter().map(|&i| &self.train_rows[i]))
    }
}
