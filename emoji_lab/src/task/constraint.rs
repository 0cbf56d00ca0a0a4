//! What an answer may look like, while it is being generated.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use super::emoji::fully_qualified;
use super::tree::{ROOT, Tree};
use crate::display::thousands;
use crate::error::{Error, Result};

/// The words that answers are put together from: emoji, or labels. Cloning shares them.
#[derive(Clone)]
pub struct Words(Arc<List>);

struct List {
    words: Vec<String>,
    /// Each word's place in `words`.
    tree: Tree<u32>,
}

impl Words {
    /// These words, each once and without blanks around it; empty ones are left out.
    pub fn new<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> Self {
        let mut list = List { words: vec![], tree: Tree::new() };
        let mut places: HashMap<String, u32> = HashMap::new();
        for word in words {
            let word = word.as_ref().trim();
            let place = places.len() as u32;
            if !word.is_empty() && !places.contains_key(word) {
                places.insert(word.to_string(), place);
                list.tree.insert(word.chars(), place);
                list.words.push(word.to_string());
            }
        }
        Self(Arc::new(list))
    }

    /// The emoji that Unicode recommends for general interchange (RGI), fully qualified, with every
    /// skin tone: ❤️ is among them, ❤ without its U+FE0F is not.
    pub fn emoji() -> Self {
        static EMOJI: OnceLock<Words> = OnceLock::new();
        EMOJI.get_or_init(|| Self::new(fully_qualified())).clone()
    }

    /// How many words there are.
    pub fn len(&self) -> usize {
        self.0.words.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The words, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.words.iter().map(String::as_str)
    }

    pub(crate) fn tree(&self) -> &Tree<u32> {
        &self.0.tree
    }

    /// Where `c` leads from `node`, and the word that it ends, if it begins another. A word that can go
    /// on goes on: where `joy` and `joyful` are words, an `f` after `joy` belongs to it.
    pub(crate) fn step(&self, node: u32, c: char) -> Option<(u32, Option<u32>)> {
        let tree = self.tree();
        match tree.next(node, c) {
            Some(next) => Some((next, None)),
            None => Some((tree.next(ROOT, c)?, Some(tree.value(node)?))),
        }
    }

    /// The nodes that `word` leads through, its end the last.
    pub(crate) fn way(&self, word: u32) -> Vec<u32> {
        let mut node = ROOT;
        let mut way = vec![];
        for c in self.0.words[word as usize].chars() {
            node = self.tree().next(node, c).unwrap_or(ROOT);
            way.push(node);
        }
        way
    }

    /// The places of the words that `text` is put together from.
    fn split(&self, text: &str) -> Option<Vec<u32>> {
        let (mut node, mut found) = (ROOT, vec![]);
        for c in text.chars() {
            let (next, ended) = self.step(node, c)?;
            found.extend(ended);
            node = next;
        }
        match text.is_empty() {
            true => Some(found),
            false => {
                found.push(self.tree().value(node)?);
                Some(found)
            }
        }
    }
}

impl PartialEq for Words {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.words == other.0.words
    }
}

impl Eq for Words {}

impl fmt::Display for Words {
    /// All of few words, the number of many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.len() {
            0..=8 => f.write_str(&self.0.words.join(", ")),
            many if *self == Self::emoji() => write!(f, "{} emoji", thousands(many as u64)),
            many => write!(f, "{} words", thousands(many as u64)),
        }
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Words({self})")
    }
}

/// What an answer may be: one or more words of a list, one right after the other.
///
/// A task has one ([`Task::constraint`](super::Task::constraint)), and generation keeps to it where
/// [`GenerationConfig::constraint`](crate::model::GenerationConfig::constraint) has it. Another is a
/// value:
///
/// ```
/// use emoji_lab::prelude::*;
/// let three = Constraint { max_words: 3, ..Constraint::emoji() };
/// assert!(three.allows("🏖️🌊🇵🇹"));
/// assert!(!three.allows("🏖️🏖️") && !three.allows("🏖️ 🌊") && !three.allows(""));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    /// The words that there are.
    pub words: Words,
    /// The most words of an answer.
    pub max_words: usize,
    /// How often a word may stand in an answer; 1 for no repeats.
    pub max_times: usize,
}

impl Constraint {
    /// One to eight emoji ([`Words::emoji`]), none of them twice.
    pub fn emoji() -> Self {
        Self { words: Words::emoji(), max_words: 8, max_times: 1 }
    }

    /// One of these words.
    pub fn one_of<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> Self {
        Self { words: Words::new(words), max_words: 1, max_times: 1 }
    }

    /// Whether `answer` is such an answer.
    pub fn allows(&self, answer: &str) -> bool {
        self.places(answer).is_some()
    }

    /// The words of `answer`, in their order; `None` if it is not such an answer.
    pub fn split(&self, answer: &str) -> Option<Vec<&str>> {
        let words = self.places(answer)?;
        Some(words.into_iter().map(|word| self.words.0.words[word as usize].as_str()).collect())
    }

    fn places(&self, answer: &str) -> Option<Vec<u32>> {
        let words = self.words.split(answer)?;
        let often = |word| words.iter().filter(|w| *w == word).count();
        let fits = (1..=self.max_words).contains(&words.len());
        (fits && words.iter().all(|word| often(word) <= self.max_times)).then_some(words)
    }

    /// # Errors
    /// [`Error::Setting`] that names the setting which cannot work.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [("max_words", self.max_words), ("max_times", self.max_times)] {
            if value == 0 {
                return Err(Error::setting(name, 0, "an answer has at least one word: use 1 or more"));
            }
        }
        match self.words.is_empty() {
            true => Err(Error::setting("words", "none", "give at least one word that an answer may be")),
            false => Ok(()),
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.max_words, self.max_times) {
            (1, _) => write!(f, "one of {}", self.words),
            (most, 1) => write!(f, "1 to {most} of {}, none twice", self.words),
            (most, times) => write!(f, "1 to {most} of {}, each at most {times} times", self.words),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::purely_emoji;
    use super::*;
    use crate::rng::Philox;

    #[test]
    fn every_emoji_passes_alone_and_among_others() {
        let constraint = Constraint::emoji();
        let emoji: Vec<&str> = constraint.words.iter().collect();
        assert!(emoji.len() > 3700, "{}", emoji.len());
        let mut rng = Philox::new(1, 0);
        for one in &emoji {
            assert_eq!(constraint.split(one), Some(vec![*one]));
            let mut some = vec![*one];
            while some.len() < 5 {
                let other = emoji[rng.below(emoji.len() as u64) as usize];
                if !some.contains(&other) {
                    some.push(other);
                }
            }
            let text = some.concat();
            assert_eq!(constraint.split(&text), Some(some), "{text}");
            assert!(purely_emoji(&text), "{text}");
        }
    }

    #[test]
    fn what_is_no_run_of_emoji_does_not_pass() {
        let constraint = Constraint::emoji();
        for wrong in [
            "",
            " ",
            "beach",
            "🏖️ ",
            "🏖️ 🌊",
            "🏖️!",
            "7",
            "#",
            "7\u{fe0f}",
            "🇵",
            "🇵🇹🇵",
            "\u{200d}",
            "👨\u{200d}",
            "👨\u{200d}👩\u{200d}",
            "\u{fe0f}",
            "🎉\u{fe0f}",
            "❤",
            "☀",
            "🏽",
            "🎉🏽",
            "\u{1f3f4}\u{e0067}",
            "🎉🎉",
            "❤️🔥❤️",
        ] {
            assert!(!constraint.allows(wrong), "{wrong:?}");
        }
        for right in ["❤️❤️‍🔥", "❤️🔥", "👋👋🏽", "7️⃣", "🇵🇹", "👨‍👩‍👧", "🏴󠁧󠁢󠁥󠁮󠁧󠁿🏴"]
        {
            assert!(constraint.allows(right), "{right:?}");
        }
    }

    #[test]
    fn how_many_and_how_often_is_a_setting() {
        let twice = Constraint { max_times: 2, max_words: 3, ..Constraint::emoji() };
        assert!(twice.allows("🎉🎂🎉") && !twice.allows("🎉🎉🎉") && !twice.allows("🎉🎂🎈🎁"));
        let label = Constraint::one_of(["joy", " joyful ", "fear", "", "joy"]);
        assert_eq!(label.words.len(), 3);
        assert!(label.allows("joy") && label.allows("joyful"));
        assert!(!label.allows("joyf") && !label.allows("joyfear") && !label.allows("Joy"));
        assert_eq!(label.to_string(), "one of joy, joyful, fear");
        assert!(Constraint::emoji().to_string().ends_with("emoji, none twice"));
        assert_eq!(label, Constraint::one_of(["joy", "joyful", "fear"]));
        assert_ne!(label, Constraint { max_words: 2, ..label.clone() });
        for (name, wrong) in [
            ("max_words", Constraint { max_words: 0, ..Constraint::emoji() }),
            ("max_times", Constraint { max_times: 0, ..Constraint::emoji() }),
            ("words", Constraint::one_of([""])),
        ] {
            let said = wrong.validate().unwrap_err().to_string();
            assert!(said.starts_with(&format!("setting {name} = ")), "{said}");
        }
    }
}
