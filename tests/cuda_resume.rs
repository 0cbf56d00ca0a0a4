//! A run on the GPU that was stopped goes on from a checkpoint with the same bits.

use std::path::Path;

use emoji_lab::DType;
use emoji_lab::prelude::*;

use super::gpu;

fn trainer(model: &Model, output: &Path, moments: DType, rows: &ChatDataset) -> SftTrainer {
    let args = SftConfig {
        output_dir: output.to_path_buf(),
        num_train_epochs: 2.0,
        learning_rate: 2e-3,
        optim_state_dtype: moments,
        logging_strategy: Strategy::Steps(1),
        eval_strategy: Strategy::No,
        save_strategy: Strategy::Steps(1),
        report_to_tensorboard: false,
        progress_lines: 0,
        ..SftConfig::default()
    };
    let lora = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
    SftTrainer::new(model, rows, None, &QuantConfig::default(), Some(&lora), &args).unwrap()
}

/// Google's recipe in bf16, where the head's gradient is made in pieces: after any step, mid-epoch and with dropout on.
#[test]
fn resuming_with_a_head_in_pieces_goes_on_bit_for_bit() {
    assert!(LoraConfig::default().lora_dropout > 0.0);
    let Some(device) = gpu().and_then(|device| device.with_dtype(DType::BF16).ok()) else {
        println!("skipped: no GPU with bf16");
        return;
    };
    let rows = format_chat(&load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap()).take(14);
    let model = load_model("embedded", &device).unwrap();
    for moments in [DType::F32, DType::BF16] {
        let dir = tempfile::tempdir().unwrap();
        let whole_dir = dir.path().join("whole");
        let mut whole = trainer(&model, &whole_dir, moments, &rows);
        whole.train().unwrap();
        // No gradient of the head lies in memory.
        let finetune = whole.finetune();
        let head = finetune.slots().iter().map(|slot| slot.len()).max().unwrap();
        let parts = finetune.device_memory().into_iter().flat_map(|memory| memory.parts);
        let gradients: usize = parts.filter(|(what, _)| *what == "gradients").map(|(_, bytes)| bytes).sum();
        assert!(
            gradients < 4 * (finetune.trainable() - head) + 2 * head,
            "{gradients} bytes, {head} of the head"
        );
        let losses = |trainer: &SftTrainer| -> Vec<Option<u64>> {
            trainer.log_history().iter().map(|entry| entry.loss.map(f64::to_bits)).collect()
        };
        let steps = 8;
        let last = |output: &Path, file: &str| {
            std::fs::read(output.join(format!("checkpoint-{steps}")).join(file)).unwrap()
        };
        for step in [1, 3, 4, 7] {
            let output = dir.path().join(format!("from-{step}"));
            let mut resumed = trainer(&model, &output, moments, &rows);
            resumed.resume_from_checkpoint(whole_dir.join(format!("checkpoint-{step}"))).unwrap();
            let moments = moments.as_str();
            assert_eq!(losses(&resumed), losses(&whole), "{moments} moments, after step {step} of {steps}");
            for file in ["adapter_model.safetensors", "optimizer.safetensors", "training_state.json"] {
                let same = last(&output, file) == last(&whole_dir, file);
                assert!(same, "{moments} moments, resumed after step {step} of {steps}: another {file}");
            }
        }
    }
}
