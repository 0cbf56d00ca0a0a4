//! Patterns such as `let's go to {place}` and the words that fill them.

use crate::Result;
use crate::rng::Rng;
use crate::words::Words;

/// Fills slots, each group's least used word first, so that every word gets its share.
pub struct Filler<'a> {
    words: &'a Words,
    used: Vec<usize>,
}

/// A filled pattern: its text and the words in it, in order.
pub struct Filled {
    pub text: String,
    pub slots: Vec<Slot>,
}

/// One filled slot: the word, and the form it has in the text.
pub struct Slot {
    pub word: usize,
    pub form: String,
}

impl<'a> Filler<'a> {
    pub fn new(words: &'a Words) -> Self {
        Self { words, used: vec![0; words.all.len()] }
    }

    /// Fills every `{group}`, `{group.1}` and `{-group}` of `pattern`.
    pub fn fill(&mut self, pattern: &str, rng: &mut Rng) -> Result<Filled> {
        let mut filled = Filled { text: String::new(), slots: Vec::new() };
        let mut rest = pattern;
        while let Some((before, after)) = rest.split_once('{') {
            let (slot, after) =
                after.split_once('}').ok_or_else(|| format!("pattern {pattern}: no closing brace"))?;
            filled.text.push_str(before);
            let (name, form) = slot.split_once('.').unwrap_or((slot, "0"));
            let (name, bare) = name.strip_prefix('-').map_or((name, false), |name| (name, true));
            let taken: Vec<usize> = filled.slots.iter().map(|slot| slot.word).collect();
            let word = self
                .pick(name, &taken, rng)
                .ok_or_else(|| format!("pattern {pattern}: no word in {name}"))?;
            let entry = &self.words.all[word];
            let form = if bare {
                entry.bare()
            } else {
                let index: usize = form.parse().map_err(|_| format!("pattern {pattern}: no form {form}"))?;
                entry
                    .forms
                    .get(index)
                    .ok_or_else(|| format!("pattern {pattern}: {} has no form {index}", entry.forms[0]))?
            };
            filled.text.push_str(form);
            filled.slots.push(Slot { word, form: form.to_string() });
            rest = after;
        }
        filled.text.push_str(rest);
        Ok(filled)
    }

    /// The least used word of `group` that is not in `taken`, one of them at random.
    fn pick(&mut self, group: &str, taken: &[usize], rng: &mut Rng) -> Option<usize> {
        let candidates: Vec<usize> =
            self.words.group(group).into_iter().filter(|i| !taken.contains(i)).collect();
        let least = candidates.iter().map(|&i| self.used[i]).min()?;
        let least: Vec<usize> = candidates.into_iter().filter(|&i| self.used[i] == least).collect();
        let word = least[rng.below(least.len())];
        self.used[word] += 1;
        Some(word)
    }
}

/// `text` with a capital at its start.
pub fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// The lines of a pattern file that are neither empty nor comments.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}
