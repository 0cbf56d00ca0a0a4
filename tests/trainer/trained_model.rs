//! What a trainer gives out, merges and saves is the model that it trained.

use emoji_lab::lora::Adapter;
use emoji_lab::model::{Gemma3, PackedTokens};
use emoji_lab::prelude::*;
use emoji_lab::train::Slot;

use super::{rows, settings, trainer};

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
