//! The stop button: SIGINT during training. A process of its own, since a signal hits all of it.
#![cfg(unix)]

use std::process::Command;
use std::time::Duration;

use emoji_lab::prelude::*;

fn args(dir: &std::path::Path, logging_strategy: Strategy) -> SftConfig {
    SftConfig {
        output_dir: dir.to_path_buf(),
        num_train_epochs: 4.0,
        learning_rate: 2e-3,
        logging_strategy,
        eval_strategy: Strategy::No,
        save_strategy: Strategy::No,
        report_to_tensorboard: false,
        progress_lines: 0,
        ..SftConfig::default()
    }
}

/// Trains, and presses the button a little later.
fn stopped(trainer: &mut SftTrainer) -> TrainOutput {
    let pid = std::process::id().to_string();
    let button = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    });
    let outcome = trainer.train().unwrap();
    button.join().unwrap();
    outcome
}

#[test]
fn an_interrupt_ends_training_with_a_checkpoint_and_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let model = load_model("embedded", &Device::Cpu).unwrap();
    let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
    let rows = format_chat(&dataset).take(160);
    let new_with = |dir: &std::path::Path, logging_strategy| {
        SftTrainer::new(
            &model,
            &rows,
            None,
            &QuantConfig::default(),
            Some(&LoraConfig::default()),
            &args(dir, logging_strategy),
        )
        .unwrap()
    };
    let new = |dir: &std::path::Path| new_with(dir, Strategy::Steps(1));
    let mut unbroken = new(&dir.path().join("unbroken"));
    let total = unbroken.train().unwrap().global_step;

    // Also where nothing is to be done between two steps, it is the next step that ends it.
    let mut quiet = new_with(&dir.path().join("quiet"), Strategy::Epoch);
    let outcome = stopped(&mut quiet);
    assert!(outcome.global_step < total / 4, "stopped at {}, epochs have {}", outcome.global_step, total / 4);

    let output = dir.path().join("interrupted");
    let mut trainer = new(&output);
    let outcome = stopped(&mut trainer);
    assert!(outcome.global_step < total, "160 steps were over before the interrupt came");
    assert!(outcome.to_text().contains("interrupted"), "{outcome}");
    let checkpoint = output.join(format!("checkpoint-{}", outcome.global_step));
    assert!(checkpoint.is_dir());

    // On in this process, and from the checkpoint in another trainer: the numbers of the unbroken run.
    let losses = |log: &[LogEntry]| log.iter().filter_map(|e| e.loss).map(f64::to_bits).collect::<Vec<_>>();
    assert_eq!(trainer.resume().unwrap().global_step, total);
    assert_eq!(losses(trainer.log_history()), losses(unbroken.log_history()));
    let done = trainer.resume().unwrap_err().to_string();
    assert!(done.contains("nothing to resume") && !done.contains('\n'), "{done}");
    let mut again = new(&output);
    assert_eq!(again.resume().unwrap().global_step, total);
    assert_eq!(losses(again.log_history()), losses(unbroken.log_history()));
    let mut resumed = new(&dir.path().join("resumed"));
    assert!(resumed.resume().unwrap_err().to_string().contains("holds no checkpoint"));
    resumed.resume_from_checkpoint(&checkpoint).unwrap();
    assert_eq!(losses(resumed.log_history()), losses(unbroken.log_history()));
}
