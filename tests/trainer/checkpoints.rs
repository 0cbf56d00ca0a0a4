//! Which checkpoints a run writes, keeps, and finds again.

use std::path::Path;

use emoji_lab::prelude::*;

use super::{bytes, rows, settings, trainer};

fn checkpoints(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("checkpoint-"))
        .collect();
    names.sort();
    names
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
