//! The steps themselves: accumulation, settings, gradients.

use emoji_lab::prelude::*;
use emoji_lab::train::Buffer;

use super::{rows, settings, trainer};

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

fn vec_tensor(value: f32, len: usize) -> emoji_lab::Tensor {
    emoji_lab::Tensor::full(value, len, &candle_core::Device::Cpu).unwrap()
}
