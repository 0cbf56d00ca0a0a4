//! Writes what Python's libraries are to read, with what we compute beside it.
//!
//! `cargo run --release -p emoji_lab --example export_for_python -- DIR`
//!
//! `tests/python/oracle.py` says what DIR holds and checks it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use emoji_lab::model::{Gemma3, PackedTokens, Tokenizer, write_safetensors};
use emoji_lab::prelude::*;
use emoji_lab::task::SYSTEM_PROMPT;
use emoji_lab::train::Batch;
use emoji_lab::{DType, Tensor};
use serde_json::{Value, json};

const TEXTS: [&str; 3] = ["let's go to the beach", "Happy birthday, dear Ada!", "rain again"];

/// Right-padded ids and mask, and the model's logits with zeros on the padding.
fn export(dir: &Path, gemma: &Gemma3, tokenizer: &Tokenizer) -> Result<()> {
    let rows: Vec<Vec<u32>> = TEXTS
        .iter()
        .map(|text| tokenizer.encode_chat(&Task::emoji().prompt(*text), true))
        .collect::<Result<_>>()?;
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let logits = gemma.logits(&gemma.hidden_states(&PackedTokens::new(&rows))?)?;
    let vocab = gemma.config().vocab_size;
    let (mut ids, mut mask, mut padded, mut start) = (vec![], vec![], vec![], 0);
    for row in &rows {
        let padding = columns - row.len();
        ids.extend(row.iter().map(|&id| i64::from(id)).chain(vec![i64::from(tokenizer.pad()); padding]));
        mask.extend([vec![1i64; row.len()], vec![0; padding]].concat());
        padded.push(logits.narrow(0, start, row.len())?);
        padded.push(Tensor::zeros((padding, vocab), DType::F32, &candle_core::Device::Cpu)?);
        start += row.len();
    }
    let shape = (rows.len(), columns);
    let tensors = BTreeMap::from([
        ("input_ids".to_string(), Tensor::from_vec(ids, shape, &candle_core::Device::Cpu)?),
        ("attention_mask".to_string(), Tensor::from_vec(mask, shape, &candle_core::Device::Cpu)?),
        ("logits".to_string(), Tensor::cat(&padded, 0)?.reshape((rows.len(), columns, vocab))?),
    ]);
    write_safetensors(dir.join("ours.safetensors"), &tensors, None)
}

/// The model's greedy answer, for the folder's pipeline to give too.
fn export_answer(dir: &Path, model: &Model) -> Result<()> {
    const MAX_NEW_TOKENS: usize = 24;
    let config = GenerationConfig::greedy(MAX_NEW_TOKENS);
    let answers = TEXTS.iter().map(|text| {
        let messages = Task::emoji().prompt(*text);
        let answer = generate(model, &messages, &config)?;
        Ok(json!({"messages": messages, "max_new_tokens": MAX_NEW_TOKENS, "answer": answer}))
    });
    write_json(&dir.join("ours.json"), &Value::Array(answers.collect::<Result<_>>()?))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, value.to_string()).map_err(|e| Error::io(path, "writing", e))
}

fn write_rows(path: &Path, dataset: &ChatDataset) -> Result<()> {
    let lines: String =
        dataset.conversations.iter().map(|row| format!("{}\n", json!({"messages": row.messages}))).collect();
    std::fs::write(path, lines).map_err(|e| Error::io(path, "writing", e))
}

/// Batches concatenated: the tokens and their targets, how long each row is, how many rows a batch has.
fn pack(tensors: &mut BTreeMap<String, Tensor>, name: &str, batches: &[Batch]) -> Result<()> {
    let ids = batches.iter().flat_map(|b| &b.tokens.ids).map(|&id| i64::from(id)).collect();
    let targets = batches.iter().flat_map(|b| &b.targets).copied().collect();
    let lengths = batches.iter().flat_map(|b| &b.tokens.segments).map(|row| row.q_len as i64).collect();
    let rows = batches.iter().map(|b| b.rows as i64).collect();
    for (part, values) in [("ids", ids), ("targets", targets), ("lengths", lengths), ("rows", rows)] {
        let values: Vec<i64> = values;
        let len = values.len();
        tensors.insert(format!("{name}.{part}"), Tensor::from_vec(values, len, &candle_core::Device::Cpu)?);
    }
    Ok(())
}

/// Conversations of one to three questions and answers; in every other one a system prompt, and in
/// every fifth a question without an answer at the end.
fn talks(rows: &ChatDataset) -> ChatDataset {
    let talk = |(i, rows): (usize, &[Conversation])| {
        let turns = rows.iter().take(1 + i % 3);
        let mut messages: Vec<Message> = turns
            .flat_map(|row| [Message::user(row.user_text()), Message::assistant(row.assistant_text())])
            .collect();
        if i.is_multiple_of(2) {
            messages.insert(0, Message::system(SYSTEM_PROMPT));
        }
        if i.is_multiple_of(5) {
            messages.push(Message::user("and what else?"));
        }
        Conversation { messages }
    };
    ChatDataset::new(rows.conversations.windows(3).enumerate().map(talk).collect())
}

/// Every parameter trained, with a weight decay that shows: norms do not decay.
fn export_full(dir: &Path, base: &Model, train: &ChatDataset, args: &SftConfig) -> Result<()> {
    let dir = dir.join("full");
    let args = SftConfig {
        output_dir: dir.join("run"),
        num_train_epochs: 1.0,
        weight_decay: 2.0,
        eval_strategy: Strategy::No,
        save_strategy: Strategy::No,
        load_best_model_at_end: false,
        report_to_tensorboard: false,
        ..args.clone()
    };
    let mut trainer = SftTrainer::new(base, train, None, &QuantConfig::none(), None, &args)?;
    trainer.train()?;
    trainer.save_model(dir.join("model"))?;
    write_json(&dir.join("args.json"), &json!({"num_train_epochs": 1.0, "weight_decay": args.weight_decay}))
}

/// Adapters and the rows of the embedding that occur, which learn at a rate of their own.
fn export_rows(dir: &Path, base: &Model, train: &ChatDataset, args: &SftConfig) -> Result<()> {
    let dir = dir.join("rows");
    let lora = LoraConfig {
        r: 4,
        lora_alpha: 8.0,
        lora_dropout: 0.0,
        modules_to_save: vec![],
        trainable_token_indices: TokenIndices::Occurring,
        ..LoraConfig::default()
    };
    let args = SftConfig {
        output_dir: dir.join("run"),
        num_train_epochs: 1.0,
        embedding_learning_rate: Some(5e-4),
        eval_strategy: Strategy::No,
        save_strategy: Strategy::No,
        load_best_model_at_end: false,
        report_to_tensorboard: false,
        ..args.clone()
    };
    let mut trainer = SftTrainer::new(base, train, None, &QuantConfig::none(), Some(&lora), &args)?;
    trainer.save_model(dir.join("init"))?;
    trainer.train()?;
    trainer.save_model(dir.join("final"))?;
    let args = json!({"num_train_epochs": 1.0, "embedding_learning_rate": args.embedding_learning_rate});
    write_json(&dir.join("args.json"), &args)
}

/// A run that Python repeats from the same start, on the same rows in the same order. It has what is
/// easily done in another way: rows that are cut, a last batch of one row, a last step of one batch,
/// a warmup and a schedule. No dropout: the masks cannot be the same.
fn export_twin(out: &Path, base: &Model, splits: &DatasetSplits) -> Result<()> {
    let dir = out.join("twin");
    let (train, test) = (splits.train.clone().take(19), splits.train.clone().take(10));
    let rows = train.conversations.iter().map(|row| base.tokenizer.encode_chat(&row.messages, false));
    let mut lengths: Vec<usize> = rows.map(|row| Ok(row?.len())).collect::<Result<_>>()?;
    lengths.sort_unstable();
    // Every fourth row is cut, by a token at least.
    let max_length = lengths[lengths.len() * 3 / 4] - 1;
    let lora = LoraConfig { r: 4, lora_alpha: 8.0, lora_dropout: 0.0, ..LoraConfig::default() };
    let args = SftConfig {
        output_dir: dir.join("run"),
        num_train_epochs: 2.0,
        per_device_train_batch_size: 2,
        per_device_eval_batch_size: 4,
        gradient_accumulation_steps: 3,
        learning_rate: 2e-3,
        lr_scheduler_type: Scheduler::Cosine,
        warmup_steps: 2,
        max_length,
        logging_strategy: Strategy::Steps(1),
        load_best_model_at_end: true,
        progress_lines: 0,
        ..SftConfig::default()
    };
    let new = |args: &SftConfig| {
        SftTrainer::new(base, &train, Some(&test), &QuantConfig::none(), Some(&lora), args)
    };
    let mut trainer = new(&args)?;
    trainer.save_model(dir.join("init"))?;
    trainer.train()?;

    write_rows(&dir.join("train.jsonl"), &train)?;
    write_rows(&dir.join("eval.jsonl"), &test)?;
    let longest = lengths[lengths.len() - 1];
    let args_json = json!({
        "num_train_epochs": args.num_train_epochs,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "per_device_eval_batch_size": args.per_device_eval_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": args.lr_scheduler_type.name(),
        "warmup_steps": args.warmup_steps,
        "weight_decay": args.weight_decay,
        "adam_beta1": args.adam_beta1,
        "adam_beta2": args.adam_beta2,
        "adam_epsilon": args.adam_epsilon,
        "max_grad_norm": args.max_grad_norm,
        "max_length": args.max_length,
        "load_best_model_at_end": args.load_best_model_at_end,
        "seed": args.seed,
    });
    write_json(&dir.join("args.json"), &args_json)?;
    // Cut less: a row whose prompt alone fills `max_length` is refused here, and left out by TRL.
    let answers = new(&SftConfig { assistant_only_loss: true, max_length: longest - 1, ..args.clone() })?;
    let mut tensors = BTreeMap::new();
    // Several answers in one conversation.
    let talks = talks(&train);
    write_rows(&dir.join("talks.jsonl"), &talks)?;
    let only = SftConfig { assistant_only_loss: true, eval_strategy: Strategy::No, ..SftConfig::default() };
    let talking = SftTrainer::new(base, &talks, None, &QuantConfig::none(), Some(&lora), &only)?;
    pack(&mut tensors, "talks", &talking.epoch_batches(0))?;
    let order: Vec<i64> = talking.epoch_order(0).into_iter().map(|row| row as i64).collect();
    let len = order.len();
    tensors.insert("talks.order".to_string(), Tensor::from_vec(order, len, &candle_core::Device::Cpu)?);
    export_full(&dir, base, &train, &args)?;
    export_rows(&dir, base, &train, &args)?;
    pack(&mut tensors, "eval", trainer.eval_batches())?;
    pack(&mut tensors, "answers", &answers.epoch_batches(0))?;
    for epoch in 0..2 {
        pack(&mut tensors, &format!("train.{epoch}"), &trainer.epoch_batches(epoch))?;
        let order: Vec<i64> = trainer.epoch_order(epoch).into_iter().map(|row| row as i64).collect();
        let len = order.len();
        tensors.insert(format!("order.{epoch}"), Tensor::from_vec(order, len, &candle_core::Device::Cpu)?);
    }
    write_safetensors(dir.join("batches.safetensors"), &tensors, None)?;

    let mut schedules = vec![];
    for scheduler in
        [Scheduler::Constant, Scheduler::ConstantWithWarmup, Scheduler::Linear, Scheduler::Cosine]
    {
        for (warmup, total) in [(0, 10), (3, 10), (7, 597), (12, 10)] {
            let factors: Vec<f64> = (0..total).map(|step| scheduler.factor(step, warmup, total)).collect();
            schedules.push(
                json!({"name": scheduler.name(), "warmup": warmup, "total": total, "factors": factors}),
            );
        }
    }
    write_json(&dir.join("schedules.json"), &Value::Array(schedules))
}

fn run(out: &Path) -> Result<()> {
    let base = load_model("embedded", &Device::Cpu)?;
    let folder = out.join("base");
    base.save_pretrained(&folder)?;
    export(&folder, &base.gemma, &base.tokenizer)?;
    // From the folder, so that the adapters name a base that Python finds.
    let base = load_model(&folder.display().to_string(), &Device::Cpu)?;
    let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji)?;
    let splits = train_test_split(&format_chat(&dataset).take(80), 0.1, 42)?;
    for tied in [true, false] {
        let form = if tied { "tied" } else { "untied" };
        let lora = LoraConfig { ensure_weight_tying: tied, ..LoraConfig::default() };
        // The tied run is the one whose logs are read.
        let run_dir = if tied { out.join("logs") } else { out.join("run_untied") };
        let args = SftConfig {
            output_dir: run_dir.clone(),
            num_train_epochs: 2.0,
            learning_rate: 2e-3,
            logging_strategy: Strategy::Steps(1),
            progress_lines: 0,
            ..SftConfig::default()
        };
        // On the unrounded base: Python loads the adapter onto base/ as it is.
        let new = || {
            SftTrainer::new(
                &base,
                &splits.train,
                Some(&splits.test),
                &QuantConfig::none(),
                Some(&lora),
                &args,
            )
        };
        let mut trainer = new()?;
        let steps = trainer.train()?.global_step;
        if tied {
            // Taken up in the middle, in the same folder, as if it had been killed at the end: what
            // it logs again must not be there twice.
            trainer = new()?;
            trainer.resume_from_checkpoint(run_dir.join(format!("checkpoint-{}", steps / 2)))?;
        }
        let adapter = out.join(format!("adapter_{form}"));
        trainer.save_model(&adapter)?;
        export(&adapter, &trainer.model()?, &base.tokenizer)?;
        let merged = merge_adapters(&base, &adapter)?;
        let folder = out.join(format!("merged_{form}"));
        merged.save_pretrained(&folder)?;
        export(&folder, &merged.gemma, &merged.tokenizer)?;
        export_answer(&folder, &merged)?;
    }
    export_twin(out, &base, &splits)
}

fn main() -> ExitCode {
    let Some(out) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: export_for_python DIR");
        return ExitCode::from(2);
    };
    match std::fs::create_dir_all(&out)
        .map_err(|e| Error::io(&out, "creating the folder", e))
        .and_then(|()| run(&out))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
