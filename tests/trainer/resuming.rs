//! A run that was stopped goes on from a checkpoint with the same numbers, or says why it cannot.

use std::path::Path;

use emoji_lab::model::save_pretrained_folder;
use emoji_lab::prelude::*;

use super::{losses, rows, settings, trainer};

/// Stopping after any step, mid-epoch and with dropout on, and going on in a new process' place
/// gives the same bits as never stopping: losses, parameters and the optimizer's moments.
#[test]
fn resuming_goes_on_bit_for_bit_from_every_step() {
    assert!(LoraConfig::default().lora_dropout > 0.0);
    let data = rows(18); // 5 batches per epoch, the last one of 2 rows
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
