//! Training only the rows of the embedding that occur, and its learning rate apart from the adapters'.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::Tensor;
use emoji_lab::lora::Adapter;
use emoji_lab::model::{EMBED_TOKENS, Gemma3, PackedTokens};
use emoji_lab::prelude::*;

fn rows(count: usize) -> ChatDataset {
    format_chat(&load_dataset("embedded", Task::emoji()).unwrap()).take(count)
}

fn settings(output_dir: &Path) -> SftConfig {
    SftConfig {
        output_dir: output_dir.to_path_buf(),
        num_train_epochs: 1.0,
        learning_rate: 2e-3,
        logging_strategy: Strategy::Steps(1),
        save_strategy: Strategy::Steps(1),
        report_to_tensorboard: false,
        progress_lines: 0,
        ..SftConfig::default()
    }
}

fn lora() -> LoraConfig {
    LoraConfig {
        r: 4,
        lora_alpha: 8.0,
        modules_to_save: vec![],
        trainable_token_indices: TokenIndices::Occurring,
        ..LoraConfig::default()
    }
}

fn trainer(args: &SftConfig, lora: &LoraConfig, rows: &ChatDataset) -> SftTrainer {
    let model = load_model("embedded", &Device::Cpu).unwrap();
    SftTrainer::new(&model, rows, Some(rows), &QuantConfig::default(), Some(lora), args).unwrap()
}

fn embedding(gemma: &Gemma3) -> Vec<Vec<f32>> {
    gemma.named_weights().unwrap().tensors[EMBED_TOKENS].to_vec2().unwrap()
}

fn occurring(trainer: &SftTrainer) -> BTreeSet<u32> {
    trainer.epoch_batches(0).iter().flat_map(|batch| batch.tokens.ids.clone()).collect()
}

fn logits(gemma: &Gemma3) -> Vec<Vec<f32>> {
    let tokens = PackedTokens::new(&[vec![2u32, 9, 300, 41, 7], vec![2, 500, 501]]);
    gemma.logits(&gemma.hidden_states(&tokens).unwrap()).unwrap().to_vec2().unwrap()
}

fn furthest(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Rows that occur move, no other does; the adapter's file has these rows alone, and merged gives the
/// model that was trained.
#[test]
fn only_rows_that_occur_are_trained() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(24);
    let mut trainer = trainer(&settings(dir.path()), &LoraConfig { lora_dropout: 0.0, ..lora() }, &data);
    let ids = occurring(&trainer);
    let (base, hidden) = (trainer.base_model().clone(), trainer.finetune().config().hidden_size);
    let of_adapters: usize =
        trainer.finetune().slots().iter().filter(|slot| slot.name.contains("lora_")).map(|s| s.len()).sum();
    assert_eq!(trainer.finetune().trainable(), of_adapters + ids.len() * hidden);
    let report = trainer.parameter_report().to_string();
    assert!(report.contains("Rows of embedding and head, tied"), "{report}");
    trainer.train().unwrap();

    let (before, after) = (embedding(&base.gemma), embedding(&trainer.model().unwrap()));
    for (id, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(before != after, ids.contains(&(id as u32)), "row {id}");
    }
    let folder = dir.path().join("adapter");
    trainer.save_model(&folder).unwrap();
    let adapter = Adapter::load(&folder).unwrap();
    assert_eq!(
        adapter.config.lora.trainable_token_indices.ids().unwrap(),
        ids.iter().copied().collect::<Vec<_>>()
    );
    let name = "model.embed_tokens.token_adapter.trainable_tokens_delta";
    assert_eq!(adapter.tensors[name].dims(), [ids.len(), hidden]);
    assert!(!adapter.tensors.contains_key(EMBED_TOKENS));
    let again = dir.path().join("again");
    adapter.save(&again).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        assert_eq!(
            std::fs::read(folder.join(file)).unwrap(),
            std::fs::read(again.join(file)).unwrap(),
            "{file}"
        );
    }

    let trained = trainer.model().unwrap();
    let merged = merge_adapters(&quantize(&base, &QuantConfig::default()).unwrap(), &folder).unwrap();
    assert_eq!(embedding(&merged.gemma), after);
    assert!(merged.gemma.config().tie_word_embeddings);
    assert!(furthest(&logits(&trained), &logits(&merged.gemma)) < 1e-4);
    assert!(furthest(&logits(&trained), &logits(&base.gemma)) > 1e-2, "nothing was learned");
}

/// What a model with rows beside its table computes is what one with the rows in it computes.
#[test]
fn losses_and_answers_are_those_of_the_whole_table() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(12);
    let mut trainer = trainer(&settings(dir.path()), &lora(), &data);
    trainer.train().unwrap();
    let beside = trainer.model().unwrap();
    let weights = beside.named_weights().unwrap();
    let plain = LoraConfig { trainable_token_indices: TokenIndices::None, ..lora() };
    let base = trainer.base_model();
    let put_in =
        Gemma3::new(base.gemma.config(), &base.gemma.named_weights().unwrap(), &Device::Cpu).unwrap();
    let mut with_table = put_in.named_weights().unwrap();
    with_table.tensors.insert(EMBED_TOKENS.into(), weights.tensors[EMBED_TOKENS].clone());
    let put_in =
        Model { gemma: Gemma3::new(put_in.config(), &with_table, &Device::Cpu).unwrap(), ..base.clone() };
    let mut other = SftTrainer::new(
        &put_in,
        &data,
        Some(&data),
        &QuantConfig::default(),
        Some(&plain),
        &settings(dir.path()),
    )
    .unwrap();
    for slot in trainer.finetune().slots().to_vec() {
        if slot.name.contains("lora_") {
            let value: Tensor = trainer.finetune().value(&slot).unwrap();
            other.finetune_mut().load([(slot.name.as_str(), &value)]).unwrap();
        }
    }
    let other = other.model().unwrap();
    assert!(furthest(&logits(&beside), &logits(&other)) < 1e-5);
    for batch in trainer.epoch_batches(0) {
        let ours = beside.loss(&batch.tokens, &batch.targets).unwrap().sum;
        let theirs = other.loss(&batch.tokens, &batch.targets).unwrap().sum;
        assert!((ours / theirs - 1.0).abs() < 1e-6, "{ours} and {theirs}");
    }
    for prompt in [vec![2u32, 9, 300], vec![2, 500, 41, 7]] {
        assert_eq!(beside.greedy(&prompt, 12).unwrap(), other.greedy(&prompt, 12).unwrap());
    }
}

#[test]
fn a_run_goes_on_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(14);
    let args = |output: &str| SftConfig {
        embedding_learning_rate: Some(5e-3),
        ..settings(&dir.path().join(output))
    };
    let mut whole = trainer(&args("whole"), &lora(), &data);
    whole.train().unwrap();
    let mut resumed = trainer(&args("resumed"), &lora(), &data);
    resumed.resume_from_checkpoint(dir.path().join("whole/checkpoint-2")).unwrap();
    for file in ["adapter_model.safetensors", "optimizer.safetensors", "training_state.json"] {
        let read = |run: &str| std::fs::read(dir.path().join(run).join("checkpoint-4").join(file)).unwrap();
        assert!(read("whole") == read("resumed"), "another {file}");
    }
    // Other rows of the embedding, or another learning rate of it, are another run.
    let checkpoint = dir.path().join("whole/checkpoint-2");
    let some = LoraConfig { trainable_token_indices: TokenIndices::Ids(vec![9, 8, 9]), ..lora() };
    let said = trainer(&args("other"), &some, &data).resume_from_checkpoint(&checkpoint);
    let said = said.unwrap_err().to_string();
    assert!(said.contains("trainable_token_indices"), "{said}");
    let slow = SftConfig { embedding_learning_rate: None, ..args("other") };
    let said = trainer(&slow, &lora(), &data).resume_from_checkpoint(&checkpoint).unwrap_err().to_string();
    assert!(said.contains("embedding_learning_rate"), "{said}");
}

#[test]
fn an_embedding_moves_at_its_own_rate() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(4);
    let moved = |embedding_learning_rate, lora: &LoraConfig| {
        // The first step of AdamW moves each number by the learning rate.
        let args = SftConfig { embedding_learning_rate, max_steps: Some(1), ..settings(dir.path()) };
        let mut trainer = trainer(&args, lora, &data);
        let base = embedding(&trainer.base_model().gemma);
        trainer.train().unwrap();
        let model = trainer.model().unwrap();
        let slot =
            trainer.finetune().slots().iter().find(|slot| slot.name.contains("lora_B")).unwrap().clone();
        let b = trainer.finetune().value(&slot).unwrap().abs().unwrap().max_all().unwrap();
        (furthest(&embedding(&model), &base), b.to_scalar::<f32>().unwrap())
    };
    let whole = LoraConfig { modules_to_save: LoraConfig::default().modules_to_save, ..lora() };
    let whole = LoraConfig { trainable_token_indices: TokenIndices::None, ..whole };
    for lora in [&lora(), &whole] {
        let (same, b) = moved(None, lora);
        let (slow, of_slow) = moved(Some(2e-4), lora);
        assert_eq!(b, of_slow, "the adapters moved otherwise");
        assert!((same / 2e-3 - 1.0).abs() < 0.02 && (slow / 2e-4 - 1.0).abs() < 0.02, "{same}, {slow}");
    }
}

/// An empty list trains no row, and the adapter is that of adapters alone.
#[test]
fn no_ids_are_no_rows() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(4);
    let none = LoraConfig { trainable_token_indices: TokenIndices::Ids(vec![]), ..lora() };
    let args = SftConfig { max_steps: Some(1), ..settings(dir.path()) };
    let mut trainer = trainer(&args, &none, &data);
    trainer.train().unwrap();
    trainer.save_model(dir.path().join("adapter")).unwrap();
    let adapter = Adapter::load(dir.path().join("adapter")).unwrap();
    assert!(adapter.config.lora.trainable_token_indices.is_none());
    assert!(adapter.tensors.keys().all(|name| name.contains("lora_")));
}

#[test]
fn settings_that_cannot_work_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (data, args) = (rows(4), settings(dir.path()));
    let model = load_model("embedded", &Device::Cpu).unwrap();
    let says = |lora: &LoraConfig, args: &SftConfig| {
        let made = SftTrainer::new(&model, &data, Some(&data), &QuantConfig::default(), Some(lora), args);
        made.unwrap_err().to_string()
    };
    let outside = LoraConfig { trainable_token_indices: TokenIndices::Ids(vec![7, 999_999]), ..lora() };
    let said = says(&outside, &args);
    assert!(said.contains("trainable_token_indices = 999999") && said.contains("2048 tokens"), "{said}");
    let both = LoraConfig { modules_to_save: LoraConfig::default().modules_to_save, ..lora() };
    let said = says(&both, &args);
    assert!(said.contains("modules_to_save trains every row already"), "{said}");
    let wrong = SftConfig { embedding_learning_rate: Some(0.0), ..args };
    let said = says(&lora(), &wrong);
    assert!(said.contains("embedding_learning_rate = 0"), "{said}");
}
