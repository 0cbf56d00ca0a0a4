//! Ask a model for emoji, line by line: `cargo run --release --example chat -- [MODEL]`.

use std::io::BufRead;

use emoji_lab::prelude::*;

fn main() -> Result<()> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "embedded".to_string());
    let model = load_model(&name, &best_device()?)?;
    let task = Task::emoji();
    say!("a text per line; an empty one ends");
    for text in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
        if text.trim().is_empty() {
            break;
        }
        say!("{}", generate(&model, &task.prompt(text), &GenerationConfig::default())?);
    }
    Ok(())
}
