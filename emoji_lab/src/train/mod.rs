//! Supervised fine-tuning: settings, batches, trainer, optimizer, checkpoints, logs.

mod arena;
mod batch;
mod checkpoint;
mod config;
mod finetune;
mod identity;
mod interrupt;
mod log;
mod output;
mod parameters;
mod resume;
mod rows;
mod schedule;
mod snapshot;
mod tensorboard;
mod trainer;
mod trainer_state;
mod training_state;
mod weights_io;

pub use arena::{Arena, Buffer, Slot};
pub use batch::{Batch, Row};
pub use checkpoint::CheckpointDir;
pub use config::{SftConfig, Strategy};
pub use finetune::{Finetune, Pending, StepResult};
pub use log::LogEntry;
pub use output::TrainOutput;
pub use rows::tokens_in_training;
pub use schedule::{Scheduler, warmup_steps};
pub use tensorboard::EventWriter;
pub use trainer::SftTrainer;
pub use trainer_state::{TRAINER_STATE_FILE, TrainerState};
pub use training_state::TrainingState;
