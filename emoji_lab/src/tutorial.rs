//! The lesson step by step, on the tiny model and the rows that come with this crate: it runs in seconds,
//! without a network. Every block is a test.
//!
//! # Rows
//! [`load_dataset`](crate::data::load_dataset) reads a file, a dataset of the Hub, or the embedded rows,
//! and keeps those whose answer fits the [`Task`](crate::task::Task): here those with emoji alone. What
//! it dropped, and why, is in the report.
//!
//! ```
//! use emoji_lab::prelude::*;
//!
//! let rows = load_dataset("embedded", Task::emoji())?;
//! say!("{rows}");
//! assert!(rows.len() > 800 && rows.report.rows_kept == rows.len());
//! # Ok::<(), emoji_lab::Error>(())
//! ```
//!
//! # Conversations
//! A chat model learns conversations: a system message that says what to do, the person's text, the
//! model's answer. Their order is shuffled by a seed before a tenth is held out.
//!
//! ```
//! # use emoji_lab::prelude::*;
//! # let rows = load_dataset("embedded", Task::emoji())?;
//! let splits = train_test_split(&format_chat(&rows), 0.1, 42)?;
//! assert!(splits.train.len() > 8 * splits.test.len());
//!
//! let model = load_model("embedded", &Device::Cpu)?;
//! let prompt = rows.task.prompt("let's go to the beach");
//! let text = model.tokenizer.apply_chat_template(&prompt, true)?;
//! assert!(text.starts_with("<bos><start_of_turn>user\n") && text.ends_with("<start_of_turn>model\n"));
//! # Ok::<(), emoji_lab::Error>(())
//! ```
//!
//! # Training
//! QLoRA: the model's linear layers are frozen in four bits ([`quant`](crate::quant)), and small adapters
//! beside them learn ([`lora`](crate::lora)). The defaults are those of Google's notebook; here are twenty
//! steps instead of three epochs.
//!
//! ```
//! # use emoji_lab::prelude::*;
//! # let rows = load_dataset("embedded", Task::emoji())?;
//! # let splits = train_test_split(&format_chat(&rows), 0.1, 42)?;
//! # let base = load_model("embedded", &Device::Cpu)?;
//! # let folder = std::env::temp_dir().join(format!("emoji_lab-tutorial-{}", std::process::id()));
//! let args = SftConfig {
//!     output_dir: folder.clone(),
//!     max_steps: Some(20),
//!     learning_rate: 1e-3,
//!     eval_strategy: Strategy::Steps(10),
//!     save_strategy: Strategy::No,
//!     ..SftConfig::default()
//! };
//! let lora = LoraConfig::default();
//! let quant = QuantConfig::default();
//! let mut trainer =
//!     SftTrainer::new(&base, &splits.train, Some(&splits.test), &quant, Some(&lora), &args)?;
//! let before = trainer.evaluate()?;
//! trainer.train()?;
//! assert!(trainer.evaluate()? < before);
//!
//! // The adapter is a folder that PEFT reads, and so does `merge_adapters`. It goes into the base that it
//! // was trained on: the one in 4 bits.
//! trainer.save_model(folder.join("adapter"))?;
//! let tuned = merge_adapters(&quantize(&base, &quant)?, folder.join("adapter"))?;
//! let both = compare(&rows.task, &base, &tuned, &["let's go to the beach"], &GenerationConfig::default())?;
//! say!("{both}");
//! # std::fs::remove_dir_all(folder).ok();
//! # Ok::<(), emoji_lab::Error>(())
//! ```
//!
//! # And then
//! [`plot_losses`](crate::plot::plot_losses) draws the curves, [`Model::save_pretrained`] writes a folder
//! that transformers reads, [`push_to_hub`](crate::hub::push_to_hub) publishes it with a card (or shows
//! what it would publish: [`PushConfig::dry_run`](crate::hub::PushConfig)).
//!
//! [`Model::save_pretrained`]: crate::model::Model::save_pretrained
