//! kill -9 at random moments: there is always a whole checkpoint to go on from, never half of one,
//! and the end is the one of an unbroken run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use emoji_lab::prelude::*;
use emoji_lab::rng::Philox;
use emoji_lab::train::CheckpointDir;

const VICTIM: &str = "EMOJI_LAB_KILLED_DIR";
const KILLS: usize = 50;

/// A run of 30 steps with a checkpoint after each; goes on where the last one in `dir` ended.
fn train(dir: &Path) {
    let model = load_model("embedded", &Device::Cpu).unwrap();
    let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
    let rows = format_chat(&dataset).take(40);
    let args = SftConfig {
        output_dir: dir.to_path_buf(),
        learning_rate: 2e-3,
        eval_strategy: Strategy::No,
        save_strategy: Strategy::Steps(1),
        save_total_limit: Some(3),
        report_to_tensorboard: false,
        progress_lines: 0,
        ..SftConfig::default()
    };
    let lora = LoraConfig { r: 2, lora_alpha: 4.0, ..LoraConfig::default() };
    let mut trainer =
        SftTrainer::new(&model, &rows, None, &QuantConfig::default(), Some(&lora), &args).unwrap();
    match CheckpointDir::last(dir).unwrap() {
        Some(checkpoint) => trainer.resume_from_checkpoint(&checkpoint.path).unwrap(),
        None => trainer.train().unwrap(),
    };
}

/// Not a test of its own: the process that is killed.
#[test]
fn victim() {
    if let Some(dir) = std::env::var_os(VICTIM) {
        train(&PathBuf::from(dir));
    }
}

fn final_bytes(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("checkpoint-30/adapter_model.safetensors")).unwrap()
}

#[test]
fn killed_at_any_moment_it_can_be_resumed() {
    let temp = tempfile::tempdir().unwrap();
    let unbroken = temp.path().join("unbroken");
    train(&unbroken);
    let expected = final_bytes(&unbroken);

    let mut random = Philox::new(2026, 0);
    let (mut killed, mut finished, mut run) = (0, 0, 0);
    let mut dir = temp.path().join("run-0");
    while killed < KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["victim", "--exact"])
            .env(VICTIM, &dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(random.below(900)));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "the run failed after {killed} kills");
        } else {
            child.kill().unwrap();
            child.wait().unwrap();
            killed += 1;
        }
        // What is there is whole.
        for checkpoint in CheckpointDir::list(&dir).unwrap() {
            emoji_lab::lora::Adapter::load(&checkpoint.path).unwrap();
            CheckpointDir::open(&checkpoint.path).unwrap();
        }
        if dir.join("checkpoint-30").is_dir() {
            assert!(final_bytes(&dir) == expected, "run {run} ended with other parameters");
            finished += 1;
            run += 1;
            std::fs::remove_dir_all(&dir).unwrap();
            dir = temp.path().join(format!("run-{run}"));
        }
    }
    // To the end, whatever state the last kill left.
    train(&dir);
    assert!(final_bytes(&dir) == expected);
    let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".part")), "{left:?}");
    println!("{killed} kills, {} runs finished with the bytes of the unbroken one", finished + 1);
}
