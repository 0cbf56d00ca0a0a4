//! The trainer as a whole, on the embedded model: resuming, accumulation, checkpoints, merging.

use std::path::Path;

use emoji_lab::lora::Adapter;
use emoji_lab::model::{Gemma3, PackedTokens, save_pretrained_folder};
use emoji_lab::prelude::*;
use emoji_lab::train::{Buffer, Slot};

fn rows(count: usize) -> ChatDataset {
    let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
    format_chat(&dataset).take(count)
}

fn settings(output_dir: &Path) -> SftConfig {
    SftConfig {
        output_dir: output_dir.to_path_buf(),
        num_train_epochs: 2.0,
        learning_rate: 2e-3,
        logging_strategy: Strategy::Steps(1),
        eval_strategy: Strategy::Epoch,
        save_strategy: Strategy::Steps(1),
        report_to_tensorboard: false,
        progress_lines: 0,
        ..SftConfig::default()
    }
}

fn trainer(args: &SftConfig, rows: &ChatDataset) -> SftTrainer {
    let model = load_model("embedded", &Device::Cpu).unwrap();
    let lora = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
    SftTrainer::new(&model, rows, Some(rows), &QuantConfig::default(), Some(&lora), args).unwrap()
}

fn losses(log: &[LogEntry]) -> Vec<(usize, Option<u64>, Option<u64>)> {
    let bits = |value: Option<f64>| value.map(f64::to_bits);
    log.iter().filter(|e| e.train_loss.is_none()).map(|e| (e.step, bits(e.loss), bits(e.eval_loss))).collect()
}

/// Stopping after any step, mid-epoch and with dropout on, and going on in a new process' place
/// gives the same bits as never stopping: losses, parameters and the optimizer's moments.
#[test]
fn resuming_goes_on_bit_for_bit_from_every_step() {
    assert!(LoraConfig::default().lora_dropout > 0.0);
    let data = rows(18); // 5 batches an epoch, the last one of 2 rows
    let plain = settings(Path::new(""));
    // 3 steps per epoch, the last one of a single batch.
    let scheduled = SftConfig {
        gradient_accumulation_steps: 2,
        lr_scheduler_type: Scheduler::Cosine,
        warmup_steps: 2,
        ..plain.clone()
    };
    for (args, steps) in [(plain, 10), (scheduled, 6)] {
        let dir = tempfile::tempdir().unwrap();
        let settings = |output: &Path| SftConfig { output_dir: output.to_path_buf(), ..args.clone() };
        let mut whole = trainer(&settings(&dir.path().join("whole")), &data);
        whole.train().unwrap();
        let last = |output: &Path, file: &str| {
            std::fs::read(output.join(format!("checkpoint-{steps}")).join(file)).unwrap()
        };
        for step in 1..steps {
            let output = dir.path().join(format!("from-{step}"));
            let mut resumed = trainer(&settings(&output), &data);
            let checkpoint = dir.path().join(format!("whole/checkpoint-{step}"));
            resumed.resume_from_checkpoint(&checkpoint).unwrap();
            assert_eq!(
                losses(resumed.log_history()),
                losses(whole.log_history()),
                "resumed after step {step} of {steps}"
            );
            for file in ["adapter_model.safetensors", "optimizer.safetensors", "training_state.json"] {
                let same = last(&output, file) == last(&dir.path().join("whole"), file);
                assert!(same, "resumed after step {step} of {steps}: another {file}");
            }
        }
    }
}

#[test]
fn a_checkpoint_of_other_settings_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(8);
    let args = SftConfig { max_steps: Some(1), ..settings(dir.path()) };
    trainer(&args, &data).train().unwrap();
    let mut other = trainer(&SftConfig { learning_rate: 1e-3, ..args.clone() }, &data);
    let error = other.resume().unwrap_err().to_string();
    assert!(error.contains("another run: learning_rate: 0.002 there, 0.001 here."), "{error}");
    let error = trainer(&args, &rows(12)).resume().unwrap_err().to_string();
    assert!(error.contains("training rows: 8 there, 12 here"), "{error}");
    // The same rows and settings on another model.
    let mut model = load_model("embedded", &Device::Cpu).unwrap();
    let folder = dir.path().join("other-base");
    let mut weights = model.gemma.named_weights().unwrap().tensors;
    let norm = weights["model.norm.weight"].clone();
    weights.insert("model.norm.weight".to_string(), (norm * 1.001).unwrap());
    let (config, generation) = (model.gemma.config().clone(), model.generation_config.clone());
    save_pretrained_folder(&folder, &config, &weights, &model.tokenizer, &generation, emoji_lab::DType::F32)
        .unwrap();
    model = load_model(folder.to_str().unwrap(), &Device::Cpu).unwrap();
    let lora = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
    let mut other =
        SftTrainer::new(&model, &data, Some(&data), &QuantConfig::default(), Some(&lora), &args).unwrap();
    let error = other.resume().unwrap_err().to_string();
    assert!(error.contains("weights of the base model") && error.contains("embedded there"), "{error}");
    let empty = SftConfig { output_dir: dir.path().join("none"), ..args };
    let error = trainer(&empty, &data).resume().unwrap_err().to_string();
    assert!(error.contains("holds no checkpoint"), "{error}");
}

fn checkpoints(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("checkpoint-"))
        .collect();
    names.sort();
    names
}

fn bytes(dir: &Path, checkpoint: &str) -> Vec<u8> {
    std::fs::read(dir.join(checkpoint).join("adapter_model.safetensors")).unwrap()
}

/// A second run in the folder of a first: nothing of the first one goes, and the second one's
/// checkpoints are there to go on from.
#[test]
fn runs_in_the_same_folder_leave_each_other_alone() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(8);
    let args = SftConfig { eval_strategy: Strategy::No, save_total_limit: Some(1), ..settings(dir.path()) };
    trainer(&SftConfig { max_steps: Some(9), save_strategy: Strategy::Steps(3), ..args.clone() }, &data)
        .train()
        .unwrap();
    assert_eq!(checkpoints(dir.path()), ["checkpoint-9"]);
    let first = bytes(dir.path(), "checkpoint-9");
    // Other settings, fewer steps: the first run's number stays the highest.
    let other = SftConfig { learning_rate: 1e-3, max_steps: Some(4), ..args.clone() };
    trainer(&other, &data).train().unwrap();
    assert_eq!(checkpoints(dir.path()), ["checkpoint-4", "checkpoint-9"]);
    assert!(bytes(dir.path(), "checkpoint-9") == first);
    // After a restart its own checkpoint is found, not the highest number.
    let mut longer = trainer(&SftConfig { max_steps: Some(5), ..other.clone() }, &data);
    assert_eq!(longer.resume().unwrap().global_step, 5);
    assert_eq!(checkpoints(dir.path()), ["checkpoint-5", "checkpoint-9"]);
    // A number that is taken: the other run's checkpoint keeps its files under another name.
    trainer(&SftConfig { max_steps: Some(9), ..other }, &data).train().unwrap();
    assert_eq!(checkpoints(dir.path()), ["another-run-1-checkpoint-9", "checkpoint-9"]);
    assert!(bytes(dir.path(), "another-run-1-checkpoint-9") == first);
    assert!(bytes(dir.path(), "checkpoint-9") != first);
}

#[test]
fn a_run_by_steps_ends_with_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let args = SftConfig {
        max_steps: Some(5),
        save_strategy: Strategy::Steps(2),
        eval_strategy: Strategy::Steps(2),
        ..settings(dir.path())
    };
    let mut trainer = trainer(&args, &rows(8));
    trainer.train().unwrap();
    assert_eq!(checkpoints(dir.path()), ["checkpoint-2", "checkpoint-4", "checkpoint-5"]);
    // As transformers has it, it ends with an evaluation, too.
    let evaluated: Vec<usize> =
        trainer.log_history().iter().filter(|e| e.eval_loss.is_some()).map(|e| e.step).collect();
    assert_eq!(evaluated, [2, 4, 5]);
}

#[test]
fn a_checkpoint_past_the_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(8);
    let args = SftConfig { max_steps: Some(4), eval_strategy: Strategy::No, ..settings(dir.path()) };
    trainer(&args, &data).train().unwrap();
    let mut shorter = trainer(&SftConfig { max_steps: Some(2), ..args.clone() }, &data);
    let path = dir.path().join("checkpoint-4");
    let error = shorter.resume_from_checkpoint(&path).unwrap_err().to_string();
    assert!(error.contains("past the end of this run, which has 2 steps"), "{error}");
    let error = shorter.resume().unwrap_err().to_string();
    assert!(error.contains("past the end of this run"), "{error}");
    // One that fits can be named; then all is done.
    let fits = dir.path().join("checkpoint-2");
    assert_eq!(shorter.resume_from_checkpoint(&fits).unwrap().global_step, 2);
    assert!(shorter.resume().unwrap_err().to_string().contains("all 2 steps are done"));
    assert_eq!(shorter.train().unwrap().global_step, 2);
}

/// The path of the best checkpoint is noted when it is written; the folder may have moved since.
#[test]
fn the_best_checkpoint_is_found_after_a_move() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(10);
    let (a, moved) = (dir.path().join("a"), dir.path().join("moved"));
    let args = |output: &Path, steps: usize| SftConfig {
        max_steps: Some(steps),
        eval_strategy: Strategy::Steps(1),
        load_best_model_at_end: true,
        ..settings(output)
    };
    trainer(&args(&a, 4), &data).train().unwrap();
    std::fs::rename(&a, &moved).unwrap();
    // As if step 1 had been the best.
    let path = moved.join("checkpoint-4/trainer_state.json");
    let mut state = emoji_lab::train::TrainerState::load(&path).unwrap();
    state.best_metric = Some(0.001);
    state.best_global_step = Some(1);
    state.best_model_checkpoint = Some(a.join("checkpoint-1").display().to_string());
    state.save(&path).unwrap();
    let mut resumed = trainer(&args(&moved, 6), &data);
    let output = resumed.resume().unwrap();
    assert_eq!(output.best_checkpoint, Some(moved.join("checkpoint-1").display().to_string()));
    resumed.save_model(dir.path().join("end")).unwrap();
    assert!(bytes(dir.path(), "end") == bytes(&moved, "checkpoint-1"));
    // It was removed: the run ends well all the same, with the last step's parameters.
    std::fs::remove_dir_all(moved.join("checkpoint-1")).unwrap();
    let mut resumed = trainer(&args(&moved, 7), &data);
    let output = resumed.resume().unwrap();
    assert_eq!((output.global_step, output.best_checkpoint), (7, None));
    resumed.save_model(dir.path().join("end")).unwrap();
    assert!(bytes(dir.path(), "end") == bytes(&moved, "checkpoint-7"));
}

/// A checkpoint that cannot be read is passed over for the one before it; files of two checkpoints in
/// one folder are not taken for one.
#[test]
fn damaged_checkpoints_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(8);
    let args = SftConfig { max_steps: Some(3), eval_strategy: Strategy::No, ..settings(dir.path()) };
    trainer(&args, &data).train().unwrap();
    let at = |step: usize, file: &str| dir.path().join(format!("checkpoint-{step}/{file}"));
    std::fs::copy(at(1, "training_state.json"), at(3, "training_state.json")).unwrap();
    let longer = SftConfig { max_steps: Some(4), ..args };
    let error = trainer(&longer, &data).resume_from_checkpoint(dir.path().join("checkpoint-3"));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("training_state.json is of step 1, trainer_state.json of step 3"), "{error}");
    assert_eq!(trainer(&longer, &data).resume().unwrap().global_step, 4);
}

/// Eight rows one at a time, added up, are eight rows at once: the means are weighted by tokens.
#[test]
fn accumulated_gradients_are_those_of_the_whole_batch() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(16);
    let run = |batch: usize, accumulation: usize| {
        let args = SftConfig {
            per_device_train_batch_size: batch,
            gradient_accumulation_steps: accumulation,
            num_train_epochs: 3.0,
            save_strategy: Strategy::No,
            eval_strategy: Strategy::No,
            ..settings(dir.path())
        };
        let model = load_model("embedded", &Device::Cpu).unwrap();
        // Without dropout: its mask depends on how rows are put together.
        let lora = LoraConfig { r: 4, lora_dropout: 0.0, ..LoraConfig::default() };
        let mut trainer =
            SftTrainer::new(&model, &data, None, &QuantConfig::default(), Some(&lora), &args).unwrap();
        trainer.train().unwrap();
        trainer.log_history().iter().filter_map(|e| e.loss).collect::<Vec<_>>()
    };
    let (whole, accumulated) = (run(8, 1), run(1, 8));
    assert_eq!(whole.len(), 6);
    for (whole, accumulated) in whole.iter().zip(&accumulated) {
        assert!((whole - accumulated).abs() / whole < 1e-5, "{whole} and {accumulated}");
    }
}

#[test]
fn checkpoints_are_rotated_and_the_best_one_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(12);
    let args = SftConfig {
        num_train_epochs: 3.0,
        save_strategy: Strategy::Epoch,
        save_total_limit: Some(2),
        load_best_model_at_end: true,
        ..settings(dir.path())
    };
    let mut trainer = trainer(&args, &data);
    let output = trainer.train().unwrap();
    let mut kept: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("checkpoint-"))
        .collect();
    kept.sort();
    assert_eq!(kept, ["checkpoint-6", "checkpoint-9"]);
    let best = trainer.state().best_metric.unwrap();
    assert!((trainer.evaluate().unwrap() - best).abs() < 1e-12);
    assert!(output.best_checkpoint.unwrap().contains("checkpoint-"));
    // Training on what is evaluated: the loss falls.
    let evals: Vec<f64> = trainer.log_history().iter().filter_map(|e| e.eval_loss).collect();
    assert!(evals.windows(2).all(|pair| pair[1] < pair[0]), "{evals:?}");
}

/// What is merged, saved and loaded again computes what the adapter on the unrounded base computes.
#[test]
fn merged_saved_and_reloaded_it_is_the_adapter_on_the_base() {
    for tied in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let data = rows(8);
        let model = load_model("embedded", &Device::Cpu).unwrap();
        let lora = LoraConfig { r: 4, ensure_weight_tying: tied, ..LoraConfig::default() };
        let args = SftConfig { save_strategy: Strategy::No, ..settings(dir.path()) };
        let mut trainer =
            SftTrainer::new(&model, &data, Some(&data), &QuantConfig::none(), Some(&lora), &args).unwrap();
        trainer.train().unwrap();
        let adapter = dir.path().join("adapter");
        trainer.save_model(&adapter).unwrap();
        assert_eq!(Adapter::load(&adapter).unwrap().config.tied, tied);

        let merged = merge_adapters(&model, &adapter).unwrap();
        let folder = dir.path().join("merged");
        merged.save_pretrained(&folder).unwrap();
        let reloaded = load_model(folder.to_str().unwrap(), &Device::Cpu).unwrap();
        assert_eq!(reloaded.gemma.config().tie_word_embeddings, tied);
        let logits = |gemma: &Gemma3| logits(gemma, &model.tokenizer);
        let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let trained = logits(&trainer.model().unwrap());
        assert!(apart(&trained, &logits(&merged.gemma)) < 1e-4);
        assert_eq!(logits(&merged.gemma), logits(&reloaded.gemma));
        // The base itself is as it was.
        assert!(apart(&trained, &logits(&model.gemma)) > 1e-2);
        // Asking for tokens works on the folder alone.
        let answer =
            generate(&reloaded, &Task::emoji().prompt("let's go to the beach"), &GenerationConfig::greedy(8))
                .unwrap();
        assert!(answer.chars().count() <= 64);
    }
}

#[test]
fn settings_that_cannot_work_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(8);
    let model = load_model("embedded", &Device::Cpu).unwrap();
    let run = |args: &SftConfig, lora: &LoraConfig, quant: &QuantConfig, eval: bool| {
        let eval = eval.then_some(&data);
        let error = SftTrainer::new(&model, &data, eval, quant, Some(lora), args)
            .and_then(|mut t| t.train().map(|_| ()));
        error.unwrap_err().to_string()
    };
    let (args, lora, quant) = (settings(dir.path()), LoraConfig::default(), QuantConfig::default());
    for (args, lora, quant, eval, name) in [
        (
            SftConfig { learning_rate: -1.0, ..args.clone() },
            lora.clone(),
            quant.clone(),
            true,
            "learning_rate",
        ),
        (
            SftConfig { num_train_epochs: 0.0, ..args.clone() },
            lora.clone(),
            quant.clone(),
            true,
            "num_train_epochs",
        ),
        (
            SftConfig { per_device_train_batch_size: 0, ..args.clone() },
            lora.clone(),
            quant.clone(),
            true,
            "per_device_train_batch_size",
        ),
        (SftConfig { max_length: 1, ..args.clone() }, lora.clone(), quant.clone(), true, "max_length"),
        (
            SftConfig { save_strategy: Strategy::Steps(0), ..args.clone() },
            lora.clone(),
            quant.clone(),
            true,
            "save_strategy",
        ),
        (SftConfig { warmup_ratio: 2.0, ..args.clone() }, lora.clone(), quant.clone(), true, "warmup_ratio"),
        (args.clone(), LoraConfig { r: 0, ..lora.clone() }, quant.clone(), true, "r = 0"),
        (args.clone(), LoraConfig { lora_dropout: 1.0, ..lora.clone() }, quant.clone(), true, "lora_dropout"),
        (
            args.clone(),
            LoraConfig { target_modules: vec!["query".into()], ..lora.clone() },
            quant.clone(),
            true,
            "target_modules",
        ),
        (args.clone(), lora.clone(), QuantConfig { blocksize: 60, ..quant.clone() }, true, "blocksize"),
        (args.clone(), lora.clone(), quant.clone(), false, "eval_strategy"),
    ] {
        let error = run(&args, &lora, &quant, eval);
        assert!(error.starts_with("setting ") && error.contains(name), "{name}: {error}");
        assert!(!error.contains('\n'), "one line: {error}");
    }
}

/// Every parameter can be trained, without LoRA: the checkpoint is then a whole model.
#[test]
fn without_lora_every_parameter_is_trained_and_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(8);
    let model = load_model("embedded", &Device::Cpu).unwrap();
    let args = SftConfig { num_train_epochs: 1.0, learning_rate: 1e-3, ..settings(dir.path()) };
    let new = || SftTrainer::new(&model, &data, Some(&data), &QuantConfig::none(), None, &args).unwrap();
    let mut whole = new();
    whole.train().unwrap();
    let mut resumed = new();
    resumed.resume_from_checkpoint(dir.path().join("checkpoint-1")).unwrap();
    assert_eq!(losses(whole.log_history()), losses(resumed.log_history()));
    let saved = load_model(dir.path().join("checkpoint-2").to_str().unwrap(), &Device::Cpu).unwrap();
    assert_eq!(saved.num_parameters(), model.num_parameters());
    let error = SftTrainer::new(&model, &data, None, &QuantConfig::default(), None, &args).unwrap_err();
    assert!(error.to_string().contains("QuantConfig::none()"), "{error}");
}

/// The first step of a warmup has a learning rate of 0, as in transformers: B is zero for another
/// step, and so is A's gradient, which must not be taken for a parameter that is forgotten.
#[test]
fn a_warmup_starts_at_zero_and_trains() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(16);
    let args = SftConfig {
        max_steps: Some(6),
        lr_scheduler_type: Scheduler::Linear,
        warmup_steps: 2,
        eval_strategy: Strategy::No,
        ..settings(dir.path())
    };
    let mut whole = trainer(&args, &data);
    let start = dir.path().join("start");
    whole.save_model(&start).unwrap();
    let output = whole.train().unwrap();
    assert_eq!(output.global_step, 6);
    let entries = output.log_history.iter();
    let rates: Vec<f64> = entries.filter_map(|e| e.learning_rate.map(|rate| rate / 2e-3)).collect();
    for (rate, want) in rates.iter().zip([0.0, 0.5, 1.0, 0.75, 0.5, 0.25]) {
        assert!((rate - want).abs() < 1e-15, "{rates:?}");
    }
    let bytes = |folder: &Path| std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    assert!(bytes(&start) == bytes(&dir.path().join("checkpoint-1")), "a step at rate 0 moved something");
    assert!(bytes(&start) != bytes(&dir.path().join("checkpoint-2")), "a step above 0 moved nothing");
    // Taken up between the step that moved nothing and the first that does.
    let again = SftConfig { output_dir: dir.path().join("again"), ..args };
    let mut resumed = trainer(&again, &data);
    resumed.resume_from_checkpoint(dir.path().join("checkpoint-1")).unwrap();
    assert!(bytes(&dir.path().join("checkpoint-6")) == bytes(&again.output_dir.join("checkpoint-6")));
}

/// The trainer looks at every gradient in the first two steps; one that is forgotten is named.
#[test]
fn a_parameter_without_a_gradient_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let args = SftConfig { max_steps: Some(2), save_strategy: Strategy::No, ..settings(dir.path()) };
    let mut trainer = trainer(&args, &rows(8));
    trainer.train().unwrap();
    let run = trainer.finetune_mut();
    run.check_gradients(2).unwrap();
    let slot = run.slots().iter().find(|slot| slot.name.ends_with("3.mlp.up_proj.lora_A.weight"));
    let slot = slot.unwrap().clone();
    run.write(Buffer::Gradients, &slot, &vec_tensor(0.0, slot.len())).unwrap();
    // A may be without one at step 1 only, while B is zero.
    run.check_gradients(1).unwrap();
    let error = run.check_gradients(2).unwrap_err().to_string();
    assert!(error.contains("model.layers.3.mlp.up_proj.lora_A.weight got no gradient"), "{error}");
    run.write(Buffer::Gradients, &slot, &vec_tensor(f32::NAN, slot.len())).unwrap();
    let error = run.check_gradients(1).unwrap_err().to_string();
    assert!(error.contains("model.layers.3.mlp.up_proj.lora_A.weight is not finite"), "{error}");
}

/// Whatever a trainer gives out is of the last step.
#[test]
fn no_public_value_is_stale() {
    let dir = tempfile::tempdir().unwrap();
    let args = SftConfig { max_steps: Some(2), save_strategy: Strategy::No, ..settings(dir.path()) };
    let mut trainer = trainer(&args, &rows(8));
    let start = trainer.finetune().slots().to_vec();
    let values = |trainer: &SftTrainer, slot: &Slot| {
        trainer.finetune().value(slot).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let before: Vec<Vec<f32>> = start.iter().map(|slot| values(&trainer, slot)).collect();
    let tokenizer = load_model("embedded", &Device::Cpu).unwrap().tokenizer;
    let logits = |gemma: &Gemma3| logits(gemma, &tokenizer);
    let untrained = logits(&trainer.model().unwrap());
    trainer.train().unwrap();
    let after: Vec<Vec<f32>> = start.iter().map(|slot| values(&trainer, slot)).collect();
    assert!(before.iter().zip(&after).all(|(before, after)| before != after), "every parameter moved");
    let adapter = trainer.adapter().unwrap().unwrap();
    for (slot, values) in start.iter().zip(&after) {
        assert!(&adapter.tensors[&slot.name].flatten_all().unwrap().to_vec1::<f32>().unwrap() == values);
    }
    let model = trainer.model().unwrap();
    assert!(logits(&model) != untrained);
    // The model that is given out computes what the trainer evaluates.
    let batches = trainer.eval_batches().to_vec();
    let sum = |loss: emoji_lab::ops::linear_cross_entropy::LossSum| loss.sum;
    let ours: Vec<f64> =
        batches.iter().map(|batch| sum(model.loss(&batch.tokens, &batch.targets).unwrap())).collect();
    let theirs = trainer.finetune_mut().losses(&batches).unwrap();
    assert_eq!(ours, theirs.into_iter().map(sum).collect::<Vec<_>>());
    // A copy: later steps do not change it.
    let then = logits(&model);
    let batch = trainer.epoch_batches(0).swap_remove(0);
    trainer.finetune_mut().step(&[batch], 1e-2).unwrap();
    assert!(logits(&model) == then && logits(&trainer.model().unwrap()) != then);
}

fn logits(gemma: &Gemma3, tokenizer: &Tokenizer) -> Vec<f32> {
    let ids = tokenizer.encode_chat(&Task::emoji().prompt("let's go to the beach"), true).unwrap();
    let hidden = gemma.hidden_states(&PackedTokens::new(&[ids])).unwrap();
    gemma.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn vec_tensor(value: f32, len: usize) -> emoji_lab::Tensor {
    emoji_lab::Tensor::full(value, len, &candle_core::Device::Cpu).unwrap()
}
