//! Another task than emoji goes the whole way: rows, training, answers, measure, comparison, card.

use emoji_lab::prelude::*;

const MOODS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../notebooks/moods.csv");

/// The task of the lesson's last exercise.
fn moods() -> Task {
    Task {
        name: "moods".into(),
        description: "name the mood of a text".into(),
        answer_column: "mood".into(),
        example: "what a lovely morning".into(),
        ..Task::one_of(
            "Say the mood of this text in one word: ",
            ["joy", "sadness", "anger", "fear", "love", "surprise"],
        )
    }
}

#[test]
fn moods_are_learnt_measured_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = load_dataset(MOODS, moods()).unwrap();
    let report = dataset.report.to_string();
    for part in ["270  kept", "none of the labels", "an empty answer", "filter one of joy, sadness"] {
        assert!(report.contains(part), "{part} in {report}");
    }
    assert!(dataset.to_string().contains(", mood: \""), "{dataset}");

    let splits = train_test_split(&format_chat(&dataset), 0.2, 42).unwrap();
    assert_eq!(splits.test.conversations[0].prompt()[0].content, dataset.task.system_prompt);
    let base = load_model("embedded", &Device::Cpu).unwrap();
    let args = SftConfig {
        output_dir: folder.path().join("run"),
        num_train_epochs: 4.0,
        learning_rate: 3e-3,
        assistant_only_loss: true,
        eval_strategy: Strategy::No,
        save_strategy: Strategy::No,
        ..SftConfig::default()
    };
    let (quant, lora) = (QuantConfig::default(), LoraConfig::default());
    let mut trainer = SftTrainer::new(&base, &splits.train, None, &quant, Some(&lora), &args).unwrap();
    trainer.train().unwrap();
    trainer.save_model(folder.path().join("adapter")).unwrap();
    let tuned = merge_adapters(&base, folder.path().join("adapter")).unwrap();

    // The rows bring their judge along.
    let config = EvaluationConfig::default();
    let before = evaluate(&base, &splits.test, &config).unwrap();
    let after = evaluate(&tuned, &splits.test, &config).unwrap();
    assert_eq!(after.measures[0].name, "accuracy");
    assert_eq!(before.mean("a_label"), Some(0.0), "{before}");
    assert_eq!(after.mean("a_label"), Some(1.0), "{after}");
    // One of six by chance is 0.17.
    assert!(after.score().low > 0.3, "{after}");
    let nearest = look_up(&splits.train, &splits.test, &config).unwrap();
    compare_evaluations(&[("look-up", &nearest), ("tuned", &after)]).unwrap();

    let generation = GenerationConfig::greedy(8);
    let both = compare(&dataset.task, &base, &tuned, &["so happy: we won"], &generation).unwrap();
    let asked = generate(&tuned, &dataset.task.prompt("so happy: we won"), &generation).unwrap();
    assert_eq!(both.rows[0].tuned, asked);

    let card = trainer.model_card(&dataset).with_samples(&both).to_markdown("me/moods");
    for part in [
        "fine-tuned to name the mood of a text.",
        "Say the mood of this text in one word: ",
        "what a lovely morning",
        "  - moods\n",
    ] {
        assert!(card.contains(part), "{part} in {card}");
    }
    assert!(!card.contains("emoji\n") && !card.contains("beach"), "{card}");
}
