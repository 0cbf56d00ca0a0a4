//! The recipes that are compared, the first of which the others are measured against.

use emoji_lab::prelude::*;

use crate::options::Options;

pub fn recipes(options: &Options) -> Vec<Recipe> {
    let tiny = options.model == "embedded";
    let rate = |real: f64| if tiny { 20.0 * real } else { real };
    let googles = SftConfig {
        output_dir: std::env::temp_dir().join(format!("emoji_lab-quality-{}", std::process::id())),
        num_train_epochs: options.epochs,
        learning_rate: if tiny { 2e-3 } else { 5e-5 },
        eval_strategy: Strategy::No,
        save_strategy: Strategy::No,
        report_to_tensorboard: false,
        progress_lines: 0,
        ..SftConfig::default()
    };
    let answer = SftConfig { assistant_only_loss: true, ..googles.clone() };
    let falling = |learning_rate: f64, embedding: Option<f64>| SftConfig {
        learning_rate: rate(learning_rate),
        embedding_learning_rate: embedding.map(rate),
        lr_scheduler_type: Scheduler::Cosine,
        warmup_ratio: 0.05,
        ..answer.clone()
    };
    let (nf4, exact) = (QuantConfig::default(), QuantConfig::none());
    let lora = LoraConfig::default();
    let alone = LoraConfig { modules_to_save: vec![], ..lora.clone() };
    let rows = LoraConfig { trainable_token_indices: TokenIndices::Occurring, ..alone.clone() };
    let small = LoraConfig { r: 8, lora_alpha: 16.0, ..rows.clone() };
    let all = vec![
        Recipe::new("Google's", &nf4, &lora, &googles),
        Recipe::new("answer only, 2e-4 cosine", &nf4, &lora, &falling(2e-4, None)),
        Recipe::new("exact base, 3e-4, embedding 5e-5", &exact, &lora, &falling(3e-4, Some(5e-5))),
        Recipe::new("rows that occur, 3e-4, rows 1e-4", &exact, &rows, &falling(3e-4, Some(1e-4))),
        Recipe::new("… rank 8", &exact, &small, &falling(3e-4, Some(1e-4))),
        Recipe::new("adapters alone, 5e-4", &exact, &alone, &falling(5e-4, None)),
    ];
    match &options.only {
        None => all,
        Some(only) => only.iter().filter_map(|i| all.get(*i).cloned()).collect(),
    }
}
