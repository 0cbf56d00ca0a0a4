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
    let falling = |learning_rate: f64| SftConfig {
        learning_rate: rate(learning_rate),
        lr_scheduler_type: Scheduler::Cosine,
        warmup_ratio: 0.05,
        ..answer.clone()
    };
    let (nf4, exact) = (QuantConfig::default(), QuantConfig::none());
    let lora = LoraConfig::default();
    let alone = LoraConfig { modules_to_save: vec![], ..lora.clone() };
    let all = vec![
        Recipe::new("Google's", &nf4, &lora, &googles),
        Recipe::new("answer only", &nf4, &lora, &answer),
        Recipe::new("answer only, 2e-4 cosine", &nf4, &lora, &falling(2e-4)),
        Recipe::new("… exact base", &exact, &lora, &falling(2e-4)),
        Recipe::new("adapters alone, 5e-4 cosine, exact base", &exact, &alone, &falling(5e-4)),
    ];
    match &options.only {
        None => all,
        Some(only) => only.iter().filter_map(|i| all.get(*i).cloned()).collect(),
    }
}
