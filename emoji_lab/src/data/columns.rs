//! The two columns of a table that are wanted: finding them, and what is said if they are not there.

use super::show::shown;
use crate::error::{Error, Result};
use crate::task::{Task, purely_emoji};

/// How many columns an error lists.
const MOST: usize = 12;

/// The names of the two columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Columns {
    pub text: String,
    pub answer: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self::of(&Task::emoji())
    }
}

impl Columns {
    /// Those that a task names.
    pub fn of(task: &Task) -> Self {
        Self { text: task.text_column.clone(), answer: task.answer_column.clone() }
    }
}

/// How well a column's name is the wanted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Match {
    /// Except for blanks and quotes around it, and for capitals.
    Loose,
    /// To the letter.
    Exact,
}

/// How well the column's name `has` is the `wanted` one.
pub(super) fn matches(has: &str, wanted: &str) -> Option<Match> {
    match has == wanted {
        true => Some(Match::Exact),
        false => (bare(has) == bare(wanted)).then_some(Match::Loose),
    }
}

/// A name without what people and programs leave around it, in small letters.
fn bare(name: &str) -> String {
    let around = |c: char| {
        c.is_whitespace() || c.is_control() || matches!(c, '\u{feff}' | '\u{200b}' | '"' | '\'' | '“' | '”')
    };
    name.trim_matches(around).to_lowercase()
}

impl Columns {
    /// The places of the text and of the emoji in a header. A name that is exactly the wanted one goes
    /// before one that is so except for blanks, quotes or capitals; of equal names the first is taken,
    /// as by pandas.
    ///
    /// `at` is what an error names.
    pub fn find<S: AsRef<str>>(&self, at: &str, header: &[S]) -> Result<(usize, usize)> {
        match (self.place(at, header, &self.text)?, self.place(at, header, &self.answer)?) {
            (Some(text), Some(emoji)) => Ok((text, emoji)),
            _ => Err(self.wrong(at, header)),
        }
    }

    fn place<S: AsRef<str>>(&self, at: &str, header: &[S], wanted: &str) -> Result<Option<usize>> {
        if let Some(exact) = header.iter().position(|name| name.as_ref() == wanted) {
            return Ok(Some(exact));
        }
        let alike: Vec<usize> =
            (0..header.len()).filter(|&i| matches(header[i].as_ref(), wanted).is_some()).collect();
        match alike.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            several => {
                let names: Vec<String> = several.iter().map(|&i| shown(header[i].as_ref())).collect();
                Err(Error::dataset(
                    at,
                    format!("{} columns could be `{wanted}`: {}", several.len(), names.join(", ")),
                    format!("Name exactly one of them {wanted}"),
                ))
            }
        }
    }

    /// How many of the two columns a header has.
    pub fn found<S: AsRef<str>>(&self, header: &[S]) -> usize {
        let has = |wanted: &str| header.iter().any(|name| matches(name.as_ref(), wanted).is_some());
        usize::from(has(&self.text)) + usize::from(has(&self.answer))
    }

    /// Whether a row holds the columns' own names.
    pub fn are(&self, text: &str, emoji: &str) -> bool {
        matches(text, &self.text).is_some() && matches(emoji, &self.answer).is_some()
    }

    /// The error for a table whose columns are others.
    pub fn wrong<S: AsRef<str>>(&self, at: &str, header: &[S]) -> Error {
        let names: Vec<&str> = header.iter().map(AsRef::as_ref).collect();
        let mut list: Vec<String> = names.iter().take(MOST).map(|name| shown(name)).collect();
        if names.len() > MOST {
            list.push(format!("and {} more", names.len() - MOST));
        }
        let has = |wanted: &str| names.iter().any(|name| matches(name, wanted).is_some());
        let missing = match (has(&self.text), has(&self.answer)) {
            (true, _) => format!("there is no column `{}`", self.answer),
            (_, true) => format!("there is no column `{}`", self.text),
            _ => format!("there are no columns `{}` and `{}`", self.text, self.answer),
        };
        let problem = match list.is_empty() {
            true => format!("{missing}, nor any other"),
            false => format!("{missing}; the columns are {}", list.join(", ")),
        };
        Error::dataset(at, problem, self.way_out(&names))
    }

    fn way_out(&self, names: &[&str]) -> String {
        let is = |name: &&&str, words: &[&str]| words.contains(&bare(name).as_str());
        if let Some(talk) = names.iter().find(|name| is(name, &TALK)) {
            return format!(
                "Its rows are conversations already (`{talk}`); here they are made from two columns: save the \
                 user's words as a column `{}` and the answer as `{}`",
                self.text, self.answer
            );
        }
        if names.iter().any(|name| !name.is_empty() && purely_emoji(name)) {
            return format!(
                "The first row looks like data: put a line with the columns' names above it, as {},{}",
                self.text, self.answer
            );
        }
        let (text, emoji) = self.guess(names).unwrap_or(("…", "…"));
        format!(
            "Name two of the columns `{}` and `{}`, or say which they are: load_dataset(source, &Task {{ \
             text_column: {text:?}.into(), answer_column: {emoji:?}.into(), ..Task::emoji() }})",
            self.text, self.answer
        )
    }

    /// Which columns may be meant. This is only ever said, never done.
    fn guess<'a>(&'a self, names: &[&'a str]) -> Option<(&'a str, &'a str)> {
        let known = |wanted: &str| names.iter().copied().find(|name| matches(name, wanted).is_some());
        let (text, emoji) = (known(&self.text), known(&self.answer));
        let rest: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| !is_index(name) && Some(*name) != text && Some(*name) != emoji)
            .collect();
        let word = |words: &[&str]| rest.iter().copied().find(|name| words.contains(&bare(name).as_str()));
        match (text, emoji, rest.as_slice()) {
            (Some(text), _, [other]) => Some((text, other)),
            (_, Some(emoji), [other]) => Some((other, emoji)),
            (Some(text), _, _) => Some((text, word(&EMOJI)?)),
            (_, Some(emoji), _) => Some((word(&TEXT)?, emoji)),
            (_, _, [first, second]) => match word(&EMOJI) == Some(*first) || word(&TEXT) == Some(*second) {
                true => Some((second, first)),
                false => Some((first, second)),
            },
            _ => Some((word(&TEXT)?, word(&EMOJI)?)),
        }
    }
}

/// Columns that hold whole conversations.
const TALK: [&str; 4] = ["messages", "conversations", "conversation", "dialog"];
/// What people call the column of texts.
const TEXT: [&str; 12] = [
    "text",
    "input",
    "inputs",
    "prompt",
    "sentence",
    "sentences",
    "question",
    "instruction",
    "phrase",
    "message",
    "source",
    "content",
];
/// What people call the column of emoji.
const EMOJI: [&str; 11] = [
    "emoji",
    "emojis",
    "output",
    "outputs",
    "completion",
    "answer",
    "response",
    "target",
    "label",
    "labels",
    "translation",
];

/// Whether a column is one that pandas or a spreadsheet made by itself.
fn is_index(name: &str) -> bool {
    let name = bare(name);
    name.is_empty()
        || name.starts_with("unnamed: ")
        || name.starts_with("__index_level_")
        || matches!(name.as_str(), "index" | "id" | "idx")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(header: &[&str]) -> Result<(usize, usize), String> {
        Columns::default().find("t", header).map_err(|e| e.to_string())
    }

    #[test]
    fn names_match_without_blanks_quotes_and_capitals() {
        assert_eq!(find(&["emoji", "id", "text"]), Ok((2, 0)));
        for header in [
            ["text", " emoji"],
            ["Text", "EMOJI "],
            ["\u{feff}text", "\tEmoji\r"],
            ["'text'", " \"emoji\""],
            ["text\u{a0}", "\u{200b}emoji"],
        ] {
            assert_eq!(find(&header), Ok((0, 1)), "{header:?}");
        }
        assert!(find(&["texts", "emoji"]).is_err());
    }

    #[test]
    fn the_exact_name_goes_first_and_two_alike_are_asked() {
        assert_eq!(find(&["Text", "text", "emoji"]), Ok((1, 2)));
        assert_eq!(find(&["text", "text", "emoji"]), Ok((0, 2)));
        let error = find(&["Text", " TEXT", "emoji"]).unwrap_err();
        assert!(
            error.contains("2 columns could be `text`: \"Text\", \" TEXT\". Name exactly one"),
            "{error}"
        );
    }

    #[test]
    fn other_columns_are_named_with_the_way_out() {
        let says = |header: &[&str], part: &str| {
            let error = find(header).unwrap_err();
            assert!(error.contains(part) && error.lines().count() == 1, "{error}");
        };
        says(&["a", "b", "c"], "the columns are \"a\", \"b\", \"c\". Name two of the columns `text`");
        says(&["a", "b", "c"], "text_column: \"…\".into()");
        says(&["input", "output"], "text_column: \"input\".into(), answer_column: \"output\".into()");
        says(
            &["Unnamed: 0", "emojis", "sentence"],
            "text_column: \"sentence\".into(), answer_column: \"emojis\"",
        );
        says(
            &["id", "prompt", "x", "completion"],
            "text_column: \"prompt\".into(), answer_column: \"completion\"",
        );
        says(&["text", "label"], "there is no column `emoji`; the columns are \"text\", \"label\"");
        says(&["text", "label"], "text_column: \"text\".into(), answer_column: \"label\"");
        says(&["", "one", "two"], "text_column: \"one\".into(), answer_column: \"two\"");
        says(&["sun", "☀️"], "The first row looks like data: put a line with the columns' names above it");
        says(&["id", "messages"], "conversations already (`messages`)");
        says(&[], "nor any other");
        let own = Columns { text: "Satz".into(), answer: "Bild".into() };
        assert_eq!(own.find("t", &["bild ", "satz"]).unwrap(), (1, 0));
        let error = own.find("t", &["text", "emoji"]).unwrap_err().to_string();
        assert!(error.contains("no columns `Satz` and `Bild`"), "{error}");
    }
}
