//! Supervised fine-tuning: settings, batches, trainer, optimizer, checkpoints, logs.

mod batch;
mod best;
mod checkpoint;
mod config;
mod cpu;
mod curves;
pub(crate) mod engine;
mod finetune;
mod identity;
mod interrupt;
pub(crate) mod layout;
mod log;
mod loss_table;
mod output;
mod parameters;
mod plan;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod ranks;
#[cfg(test)]
mod rehearsal;
mod resume;
mod rows;
mod run;
mod schedule;
mod tensorboard;
mod trainer;
mod trainer_state;

pub use batch::{Batch, Row};
pub use checkpoint::CheckpointDir;
pub use config::{SftConfig, Strategy};
pub use curves::{LossCurves, LossPoint, LossRow, MetricCurve};
pub use engine::{DeviceMemory, StepResult};
pub use finetune::{Finetune, Pending};
pub use layout::{Buffer, Slot};
pub use log::LogEntry;
pub use loss_table::loss_table;
pub use output::TrainOutput;
pub use rows::tokens_in_training;
pub use schedule::{Scheduler, warmup_steps};
pub use tensorboard::EventWriter;
pub use trainer::SftTrainer;
pub use trainer_state::{TRAINER_STATE_FILE, TrainerState};
