//! The task's metric in training: logged beside the loss, best checkpoint by it, early stopping.

use emoji_lab::prelude::*;
use emoji_lab::train::TrainerState;

fn rows() -> DatasetSplits {
    let dataset = load_dataset("embedded", Task::emoji()).unwrap();
    train_test_split(&format_chat(&dataset).take(120), 0.2, 1).unwrap()
}

fn trainer(args: &SftConfig) -> Result<SftTrainer> {
    let (base, rows) = (load_model("embedded", &Device::Cpu)?, rows());
    let lora = LoraConfig::default();
    SftTrainer::new(&base, &rows.train, Some(&rows.test), &QuantConfig::default(), Some(&lora), args)
}

fn args(folder: &std::path::Path) -> SftConfig {
    SftConfig {
        output_dir: folder.to_path_buf(),
        num_train_epochs: 3.0,
        learning_rate: 2e-3,
        predict_with_generate: true,
        max_predict_samples: 16,
        progress_lines: 0,
        ..SftConfig::default()
    }
}

#[test]
fn answers_are_measured_at_each_evaluation_and_the_best_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let args = SftConfig {
        metric_for_best_model: Some("f1".into()),
        load_best_model_at_end: true,
        ..args(folder.path())
    };
    let mut run = trainer(&args).unwrap();
    let outcome = run.train().unwrap();
    let scores: Vec<(usize, f64)> = run
        .log_history()
        .iter()
        .filter(|entry| entry.eval_loss.is_some())
        .map(|entry| (entry.step, entry.metric("f1").unwrap()))
        .collect();
    assert_eq!(scores.len(), 3);
    let best = scores.iter().copied().reduce(|best, now| if now.1 > best.1 { now } else { best }).unwrap();
    assert!(best.1 > 0.2, "{scores:?}");
    let state = run.state();
    assert_eq!((state.best_metric, state.best_global_step), (Some(best.1), Some(best.0)));
    assert!(outcome.best_checkpoint.unwrap().ends_with(&format!("checkpoint-{}", best.0)));

    // The parameters are the best checkpoint's, and they answer as they did then.
    let now = run.evaluate_answers().unwrap();
    assert_eq!((now.rows.len(), now.mean("f1")), (16, Some(best.1)));
    // Files: HF's names.
    let file = folder.path().join(format!("checkpoint-{}/trainer_state.json", scores[2].0));
    let saved = TrainerState::load(&file).unwrap();
    assert_eq!(saved.log_history.last().unwrap().metric("f1"), Some(scores[2].1));
    assert_eq!(saved.best_metric, state.best_metric);
    let events: Vec<u8> = std::fs::read_dir(folder.path().join("runs"))
        .unwrap()
        .flat_map(|run| std::fs::read_dir(run.unwrap().path()).unwrap())
        .flat_map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .collect();
    for tag in ["eval/f1", "eval/only_emoji", "eval/gen_len"] {
        assert!(events.windows(tag.len()).any(|part| part == tag.as_bytes()), "{tag}");
    }
    let plot = plot_losses(run.log_history()).unwrap();
    assert!(plot.to_string().contains("Answers best: ") && plot.verdict.answers_best.is_some(), "{plot}");
}

#[test]
fn a_run_that_gets_nowhere_ends_and_stays_ended() {
    let folder = tempfile::tempdir().unwrap();
    // A falling loss is no better where more is better.
    let args = SftConfig {
        predict_with_generate: false,
        greater_is_better: Some(true),
        early_stopping_patience: Some(2),
        num_train_epochs: 8.0,
        ..args(folder.path())
    };
    let mut run = trainer(&args).unwrap();
    let outcome = run.train().unwrap();
    assert!(outcome.stopped_early && outcome.global_step == 3 * 24, "{outcome}");
    assert!(outcome.to_string().contains("ended early"), "{outcome}");
    let counter = |state: &TrainerState| {
        let callback = &state.stateful_callbacks["EarlyStoppingCallback"];
        callback["attributes"]["early_stopping_patience_counter"].as_u64()
    };
    assert_eq!(counter(run.state()), Some(2));
    // A resumed run knows that it is over.
    let mut again = trainer(&args).unwrap();
    let outcome = again.resume().unwrap();
    assert!(outcome.stopped_early && outcome.global_step == 72, "{outcome}");
    // Without the setting the same checkpoint goes on.
    let mut longer =
        trainer(&SftConfig { early_stopping_patience: None, num_train_epochs: 4.0, ..args }).unwrap();
    assert_eq!(longer.resume().unwrap().global_step, 96);
}

#[test]
fn a_metric_that_is_not_measured_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = SftConfig { metric_for_best_model: Some("bleu".into()), ..args(folder.path()) };
    let error = trainer(&wrong).unwrap_err().to_string();
    assert!(error.contains("metric_for_best_model = bleu") && error.contains("f1, first_right"), "{error}");
}

/// A trained model answers on a GPU as on the CPU; without a GPU it says so.
#[cfg(feature = "cuda")]
#[test]
fn answers_are_measured_on_a_gpu_too() {
    use emoji_lab::DType;
    let device = match Device::cuda(0).and_then(|device| device.with_dtype(DType::F32)) {
        Ok(device) => device,
        Err(error) => return println!("skipped: no GPU ({error})"),
    };
    let folder = tempfile::tempdir().unwrap();
    let (base, rows) = (load_model("embedded", &device).unwrap(), rows());
    let args = SftConfig { num_train_epochs: 1.0, ..args(folder.path()) };
    let (quant, lora) = (QuantConfig::default(), LoraConfig::default());
    let mut run = SftTrainer::new(&base, &rows.train, Some(&rows.test), &quant, Some(&lora), &args).unwrap();
    run.train().unwrap();
    let entry = run.log_history().iter().rev().find(|entry| entry.eval_loss.is_some()).unwrap();
    let there = run.evaluate_answers().unwrap();
    assert_eq!(entry.metric("f1"), there.mean("f1"));
    assert!(there.score().mean > 0.1, "{there}");
    // The same adapters on the same NF4 base, on the CPU.
    let cpu = load_model("embedded", &Device::Cpu).unwrap();
    let mut host = SftTrainer::new(&cpu, &rows.train, Some(&rows.test), &quant, Some(&lora), &args).unwrap();
    for slot in host.finetune().slots().to_vec() {
        let value = run.finetune().value(&slot).unwrap();
        host.finetune_mut().write(emoji_lab::train::Buffer::Values, &slot, &value).unwrap();
    }
    let here = host.evaluate_answers().unwrap();
    let same = here.rows.iter().zip(&there.rows).filter(|(a, b)| a.answer == b.answer).count();
    assert!(same >= 15, "{same} of 16 answers are the same");
}
