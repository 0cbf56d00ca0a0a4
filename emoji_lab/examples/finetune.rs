//! The lesson as a program: `cargo run --release --example finetune -- [MODEL] [ROWS] [FOLDER]`.
//!
//! Without arguments it tunes the embedded tiny model on the embedded rows, in about a minute on two
//! cores. MODEL is a Hub id, a folder or a .gguf file, ROWS a table or a dataset of the Hub.

use emoji_lab::prelude::*;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: &str| arguments.next().unwrap_or_else(|| default.to_string());
    let (model, rows, folder) = (next("embedded"), next("embedded"), next("emoji-model"));

    let dataset = load_dataset(&rows, Task::emoji())?;
    say!("{}", dataset.report);
    let splits = train_test_split(&format_chat(&dataset), 0.1, 42)?;

    let base = load_model(&model, &best_device()?)?;
    let (quant, lora) = (QuantConfig::default(), LoraConfig::default());
    let args = SftConfig {
        output_dir: format!("{folder}-run").into(),
        // The tiny model has not seen half the internet: it needs larger steps.
        learning_rate: if base.is_embedded() { 1e-3 } else { 5e-5 },
        ..SftConfig::default()
    };
    let mut trainer = SftTrainer::new(&base, &splits.train, Some(&splits.test), &quant, Some(&lora), &args)?;
    say!("{}", trainer.parameter_report());
    say!("{}", trainer.train()?);

    let adapter = format!("{folder}-adapter");
    trainer.save_model(&adapter)?;
    let tuned = merge_adapters(&quantize(&base, &quant)?, &adapter)?;
    tuned.save_pretrained(&folder)?;

    let texts = ["let's go to the beach", "pizza tonight", "happy birthday"];
    say!("{}", compare(&dataset.task, &base, &tuned, &texts, &GenerationConfig::default())?);
    say!("the model is in {folder}, its adapter in {adapter}");
    Ok(())
}
