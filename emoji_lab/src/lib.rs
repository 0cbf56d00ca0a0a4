//! Fine-tune Gemma 3 for emoji from a Rust notebook, one step per cell.
//!
//! ```no_run
//! use emoji_lab::prelude::*;
//!
//! # fn main() -> Result<()> {
//! let rows = load_dataset("rows.csv", Task::emoji())?;
//! let base = load_model("google/gemma-3-270m-it", &best_device()?)?;
//! let splits = train_test_split(&format_chat(&rows), 0.1, 42)?;
//!
//! let (quant, lora, args) = (QuantConfig::default(), LoraConfig::default(), SftConfig::default());
//! let mut trainer =
//!     SftTrainer::new(&base, &splits.train, Some(&splits.test), &quant, Some(&lora), &args)?;
//! trainer.train()?;
//! trainer.save_model("adapter")?;
//!
//! let tuned = merge_adapters(&quantize(&base, &quant)?, "adapter")?;
//! say!("{}", compare(&rows.task, &base, &tuned, &["let's go to the beach"], &GenerationConfig::default())?);
//! # Ok(())
//! # }
//! ```
//!
//! The steps, in the order of the notebook `notebooks/finetune_gemma3_emoji.ipynb`; [`tutorial`] goes
//! through them with the tiny model that is embedded in this crate:
//!
//! | step | function | module |
//! |---|---|---|
//! | log in | [`hub::login`] | [`hub`] |
//! | say what is taught | [`task::Task`] | [`task`] |
//! | load and clean the rows | [`data::load_dataset`] | [`data`] |
//! | load the model | [`model::load_model`] | [`model`] |
//! | put the rows into chat form | [`data::format_chat`], [`data::train_test_split`] | [`data`] |
//! | ask the model | [`model::generate`] | [`model`] |
//! | configure | [`quant::QuantConfig`], [`lora::LoraConfig`], [`train::SftConfig`] | [`quant`], [`lora`], [`train`] |
//! | train and save the adapter | [`train::SftTrainer`] | [`train`], [`ops`] |
//! | plot the losses | [`plot::plot_losses`] | [`plot`] |
//! | merge | [`lora::merge_adapters`] | [`lora`] |
//! | compare | [`compare::compare`] | [`compare`] |
//! | measure | [`evaluate::evaluate`] | [`evaluate`] |
//! | try other recipes | [`sweep::sweep`] | [`sweep`] |
//! | choose among answers | [`evaluate::consensus`], [`evaluate::suggest`] | [`evaluate`] |
//! | push | [`hub::push_to_hub`] | [`hub`] |
//! | take it elsewhere | [`export::export_gguf`], [`export::export_onnx`], [`export::export_web`] | [`export`] |
//!
//! A cell needs `use emoji_lab::prelude::*;` once. Whole steps take references and return owned
//! values, since a notebook keeps only those; an error is one line ([`Error`]).
#![deny(missing_docs)]

pub mod card;
pub mod compare;
#[cfg(feature = "cuda")]
mod cuda;
pub mod data;
pub mod device;
pub mod display;
pub mod evaluate;
pub mod export;
pub mod files;
#[doc(hidden)]
pub mod fuzzing;
pub mod hub;
pub mod lora;
pub mod model;
pub mod plot;
mod protobuf;
mod python_json;
pub mod quant;
pub mod settings;
mod sniff;
pub mod sweep;
mod table_files;
pub mod task;
pub mod train;
pub mod tutorial;

pub use candle_core::{DType, Tensor};
pub use device::Device;
#[cfg(feature = "cuda")]
pub use emoji_lab_numerics::gpu;
pub use emoji_lab_numerics::{error, ops, rng};
pub(crate) use emoji_lab_numerics::{host, memory};
pub use error::{Error, Result};

/// What a notebook needs.
pub mod prelude {
    pub use crate::card::{CardSample, ModelCard};
    pub use crate::compare::compare;
    pub use crate::data::{
        ChatDataset, Conversation, Dataset, DatasetConfig, DatasetSplits, Example, Message, Role,
        format_chat, load_dataset, load_dataset_with, train_test_split,
    };
    pub use crate::device::best_device;
    pub use crate::display::{Align, Comparison, ParameterReport, Table};
    pub use crate::evaluate::{
        Consensus, Difference, Evaluation, EvaluationConfig, compare_evaluations, consensus, evaluate,
        judge_answers, look_up, suggest,
    };
    pub use crate::export::{GgufType, OnnxVariant, export_gguf, export_onnx, export_web};
    pub use crate::hub::{Login, PushConfig, PushKind, PushReport, login, login_interactive, push_to_hub};
    pub use crate::lora::{LoraConfig, TokenIndices, merge_adapters, quantize};
    pub use crate::model::{
        GenerationConfig, Model, Tokenizer, generate, generate_batch, generate_samples, load_model,
    };
    pub use crate::plot::{LossPlot, plot_losses};
    pub use crate::quant::{QuantConfig, QuantType};
    pub use crate::settings::{setting, setting_or};
    pub use crate::sweep::{Recipe, Sweep, sweep};
    pub use crate::task::{Constraint, EmojiFilter, EmojiJudge, Judge, Measure, OneOf, Task, Unit, Words};
    pub use crate::train::{LogEntry, Scheduler, SftConfig, SftTrainer, Strategy, TrainOutput};
    pub use crate::{DType, Device, Error, Result, say};
}
