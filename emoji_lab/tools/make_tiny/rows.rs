//! `rows.csv`: the sample dataset, made from `rows.txt`.

use std::collections::HashSet;

use emoji_lab::data::{Conversation, Message};
use emoji_lab::task::SYSTEM_PROMPT;

use crate::Result;
use crate::patterns::{Filler, capitalised};
use crate::rng::Rng;
use crate::words::Words;

/// Sentences that the notebook asks the models: they are in neither the rows nor the base's texts,
/// so that the answers are not recited.
pub const ASKED: [&str; 4] =
    ["let's go to the beach", "pizza and a movie tonight", "my cat is sleeping", "happy birthday grandma"];

/// A row of the dataset.
#[derive(Debug, Clone)]
pub struct Row {
    pub text: String,
    pub emoji: String,
}

impl Row {
    /// The row in the notebook's chat form.
    pub fn conversation(&self) -> Conversation {
        let messages =
            vec![Message::system(SYSTEM_PROMPT), Message::user(&self.text), Message::assistant(&self.emoji)];
        Conversation { messages }
    }
}

/// Makes the rows that `rows.txt` describes, shuffled.
pub fn make(source: &str, words: &Words, rng: &mut Rng) -> Result<Vec<Row>> {
    let mut filler = Filler::new(words);
    let mut seen: HashSet<String> = ASKED.iter().map(|text| text.to_lowercase()).collect();
    let mut rows = Vec::new();
    let mut each = 1;
    for line in source.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(count) = line.strip_prefix("# each ") {
            each = count.parse().map_err(|_| format!("rows.txt: {line}: not a number"))?;
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        if let Some((text, emoji)) = line.split_once(" => ") {
            rows.push(Row { text: text.into(), emoji: emoji.into() });
            continue;
        }
        for _ in 0..each {
            let text = filler.fill(line, rng)?.text;
            let emoji = words.emoji(&text);
            if emoji.is_empty() {
                return Err(format!("rows.txt: {text}: none of its words has an emoji").into());
            }
            if seen.insert(text.to_lowercase()) {
                rows.push(Row { text: dressed(text, rng), emoji });
            }
        }
    }
    rng.shuffle(&mut rows);
    Ok(rows)
}

/// Some sentences get a capital, some a full stop or an exclamation mark, as people write.
pub fn dressed(text: String, rng: &mut Rng) -> String {
    let mut text = if rng.chance(35) { capitalised(&text) } else { text };
    match rng.below(10) {
        0 => text.push('.'),
        1 => text.push('!'),
        _ => {}
    }
    text
}
