//! Supervised fine-tuning: settings, batches, trainer, optimizer, checkpoints, logs.

mod log;

pub use log::LogEntry;
