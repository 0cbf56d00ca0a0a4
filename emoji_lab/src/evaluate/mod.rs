//! How good are the answers? Measured by what people see, not by the loss.
//!
//! [`evaluate`] asks a model every row of a held-out part and has the task's [judge](crate::task::Judge) compare each answer
//! with the row's; [`look_up`] answers the same rows without any model, from the training rows alone,
//! which is what a model has to beat. Both give an [`Evaluation`]: a value for each row, means with
//! their intervals, the worst rows. [`compare_evaluations`] puts several side by side, and
//! [`Evaluation::difference`] compares two row by row, which sees much smaller differences than the
//! two means do.
//!
//! A judge can also choose: [`consensus`] is the answer, of several drawn, that agrees best with the
//! others, and [`suggest`] gives a few that differ.
//!
//! ```
//! use emoji_lab::prelude::*;
//! let chat = format_chat(&load_dataset("embedded", EmojiFilter::PurelyEmoji)?);
//! let splits = train_test_split(&chat, 0.02, 42)?;
//! let model = load_model("embedded", &Device::Cpu)?;
//! let config = EvaluationConfig::default();
//! let nearest = look_up(&splits.train, &splits.test, &config)?;
//! let base = evaluate(&model, &splits.test, &config)?;
//! say!("{}", compare_evaluations(&[("look-up", &nearest), ("base", &base)])?);
//! assert!(nearest.score().mean > base.score().mean);
//! # Ok::<(), Error>(())
//! ```

mod bootstrap;
mod compare;
mod config;
mod consensus;
mod difference;
mod evaluation;
mod look_up;
mod questions;
mod run;
mod show;
mod suggest;
#[cfg(test)]
mod tests;
mod tf_idf;

pub use bootstrap::Estimate;
pub use compare::compare_evaluations;
pub use config::EvaluationConfig;
pub use consensus::{Consensus, consensus};
pub use difference::Difference;
pub use evaluation::{EvaluatedRow, Evaluation};
pub use look_up::look_up;
pub use questions::{Question, Questions};
pub use run::{evaluate, judge_answers};
pub use suggest::suggest;
