//! `words.csv`: the words that have an emoji, and the labels they give a sentence.

use std::collections::HashMap;
use std::path::Path;

use crate::Result;

/// One line of `words.csv`.
pub struct Word {
    pub group: String,
    pub emoji: String,
    pub forms: Vec<String>,
    pub gloss: String,
}

impl Word {
    /// The first form without its article: "a burger" gives "burger".
    pub fn bare(&self) -> &str {
        let form = self.forms[0].as_str();
        ["a ", "an ", "the ", "my "].iter().find_map(|article| form.strip_prefix(article)).unwrap_or(form)
    }
}

/// All words, and the index from their triggers.
pub struct Words {
    pub all: Vec<Word>,
    triggers: HashMap<Vec<String>, usize>,
    longest: usize,
}

/// A trigger found in a sentence: as it is written there, and its emoji.
#[derive(Debug, PartialEq)]
pub struct Hit<'a> {
    pub surface: String,
    pub emoji: &'a str,
}

impl Words {
    /// Reads `words.csv`.
    pub fn read(path: &Path) -> Result<Self> {
        let mut reader = csv::Reader::from_path(path)?;
        let mut words = Self { all: Vec::new(), triggers: HashMap::new(), longest: 0 };
        for record in reader.deserialize() {
            let (group, emoji, forms, triggers, gloss): (String, String, String, String, String) = record?;
            for trigger in triggers.split('|') {
                let key = split(trigger).into_iter().map(|w| w.to_lowercase()).collect::<Vec<_>>();
                words.longest = words.longest.max(key.len());
                if words.triggers.insert(key, words.all.len()).is_some() {
                    return Err(format!("{}: two words have the trigger {trigger}", path.display()).into());
                }
            }
            let forms = forms.split('|').map(String::from).collect();
            words.all.push(Word { group, emoji, forms, gloss });
        }
        Ok(words)
    }

    /// The words of `group`, by index.
    pub fn group(&self, group: &str) -> Vec<usize> {
        (0..self.all.len()).filter(|&i| self.all[i].group == group).collect()
    }

    /// The triggers in `sentence`, left to right, the longest first where two overlap; a word's
    /// second mention counts no more than once.
    pub fn find(&self, sentence: &str) -> Vec<Hit<'_>> {
        let parts = split(sentence);
        let mut hits: Vec<Hit> = Vec::new();
        let mut at = 0;
        while at < parts.len() {
            let found = (1..=self.longest.min(parts.len() - at)).rev().find_map(|len| {
                let key: Vec<String> = parts[at..at + len].iter().map(|w| w.to_lowercase()).collect();
                self.triggers.get(&key).map(|&index| (len, index))
            });
            match found {
                Some((len, index)) => {
                    let emoji = self.all[index].emoji.as_str();
                    if hits.iter().all(|hit| hit.emoji != emoji) {
                        hits.push(Hit { surface: parts[at..at + len].join(" "), emoji });
                    }
                    at += len;
                }
                None => at += 1,
            }
        }
        hits
    }

    /// The emoji of `sentence`: those of its first four hits.
    pub fn emoji(&self, sentence: &str) -> String {
        self.find(sentence).iter().take(4).map(|hit| hit.emoji).collect()
    }
}

/// A sentence's words, without punctuation.
fn split(sentence: &str) -> Vec<&str> {
    sentence
        .split(|c: char| !(c.is_alphanumeric() || c == '\'' || c == '-'))
        .filter(|word| !word.is_empty())
        .collect()
}
