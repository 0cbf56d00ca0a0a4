//! Supervised fine-tuning: settings, batches, trainer, optimizer, checkpoints, logs.

mod arena;
mod batch;
mod finetune;
mod log;

pub use arena::{Arena, Slot};
pub use batch::{Batch, Row};
pub use finetune::{Finetune, StepResult};
pub use log::LogEntry;
