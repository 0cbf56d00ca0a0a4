//! Is it emoji? The two tests of the notebook, with the verdicts of Python's `emoji` 2.16.

use std::sync::OnceLock;

use super::filter::{AnswerFilter, DropReason};
use super::tree::{ROOT, Tree};

/// Which rows a dataset keeps, by the emoji in their answer. An empty one is never kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EmojiFilter {
    /// Each character is an emoji by itself (the notebook's Hub dataset cell). Strict: ❤️, ☀️,
    /// flags, keycaps and families are several characters, and not each of them is an emoji.
    EveryCharacter,
    /// Nothing but emoji, whole sequences counted as one (the notebook's own-CSV cell).
    #[default]
    PurelyEmoji,
    /// Any text.
    None,
}

impl EmojiFilter {
    /// Whether a row with this answer stays.
    pub fn keeps(self, emoji: &str) -> bool {
        !emoji.is_empty()
            && match self {
                Self::EveryCharacter => is_every_character_emoji(emoji),
                Self::PurelyEmoji => purely_emoji(emoji),
                Self::None => true,
            }
    }
}

impl AnswerFilter for EmojiFilter {
    fn reason_to_drop(&self, answer: &str) -> Option<DropReason> {
        match self {
            _ if self.keeps(answer) => None,
            Self::EveryCharacter if purely_emoji(answer) => Some(DropReason::SeveralCharacters),
            _ => Some(DropReason::TextBesideEmoji),
        }
    }

    fn way_out(&self) -> String {
        "Put emoji there, or load with a filter that keeps more: EmojiFilter::PurelyEmoji, or \
         EmojiFilter::None for any text"
            .into()
    }
}

/// Whether every character of `text` is an emoji on its own; `false` for an empty text.
///
/// As the notebook's `is_only_emoji`: `text and all(emoji.is_emoji(c) for c in text)`.
pub fn is_every_character_emoji(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| forms().kind_of(&[c]).is_some())
}

/// Whether `text` consists of emoji only; `true` for an empty text, as in Python.
///
/// As `emoji.purely_emoji`: variation selectors do not count, and neither do zero width joiners
/// after an emoji.
pub fn purely_emoji(text: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    let mut after_emoji = false;
    tokenize(&chars, Joiners::Kept).iter().all(|token| {
        if token.is_match {
            after_emoji = true;
            return true;
        }
        after_emoji && chars[token.start] == JOINER
    })
}

/// The emoji in `text`, in order: the `emoji` fields of Python's `emoji.emoji_list`.
pub fn emoji_list(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let tokens = tokenize(&chars, Joiners::Dropped);
    tokens.iter().filter(|t| t.is_match).map(|t| chars[t.start..t.end].iter().collect()).collect()
}

const JOINER: char = '\u{200d}';
const TEXT_STYLE: char = '\u{fe0e}';
const EMOJI_STYLE: char = '\u{fe0f}';

/// Unicode's emoji components that stand on their own in its list: five skin tones, four kinds of
/// hair. The `emojis` crate leaves them out.
const COMPONENTS: [char; 9] = [
    '\u{1f3fb}',
    '\u{1f3fc}',
    '\u{1f3fd}',
    '\u{1f3fe}',
    '\u{1f3ff}',
    '\u{1f9b0}',
    '\u{1f9b1}',
    '\u{1f9b2}',
    '\u{1f9b3}',
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Emoji,
    Component,
}

/// Every emoji that Python's `EMOJI_DATA` lists, as a tree of characters.
///
/// `EMOJI_DATA` is Unicode's emoji-test.txt. It equals, entry for entry (emoji 2.16.0: 5,244), the
/// fully-qualified emoji that the `emojis` crate holds (both of Unicode 18), the same with some or
/// all of their U+FE0F left out (minimally qualified and unqualified), and the nine components.
struct Forms(Tree<Kind>);

impl Forms {
    /// `form`, and `form` without each choice of its U+FE0F.
    fn insert_with_unqualified(&mut self, form: &str) {
        let chars: Vec<char> = form.chars().collect();
        let styles: Vec<usize> = (0..chars.len()).filter(|&i| chars[i] == EMOJI_STYLE).collect();
        for dropped in 0..1u32 << styles.len() {
            let stays =
                |i: &usize| styles.iter().position(|s| s == i).is_none_or(|bit| dropped >> bit & 1 == 0);
            self.0.insert((0..chars.len()).filter(stays).map(|i| chars[i]), Kind::Emoji);
        }
    }

    fn next(&self, node: u32, c: char) -> Option<u32> {
        self.0.next(node, c)
    }

    /// What `chars` is as a whole.
    fn kind_of(&self, chars: &[char]) -> Option<Kind> {
        let node = chars.iter().try_fold(ROOT, |node, &c| self.next(node, c))?;
        self.0.value(node)
    }

    /// Whether some emoji begins with `c`.
    fn begins(&self, c: char) -> bool {
        self.next(ROOT, c).is_some()
    }
}

/// Every fully-qualified emoji: Unicode's RGI set, as emoji-test.txt lists it, each with every skin
/// tone.
pub(super) fn fully_qualified() -> impl Iterator<Item = &'static str> {
    emojis::iter().flat_map(|emoji| match emoji.skin_tones() {
        // The crate's iterator leaves out skin tones; an emoji's own list has them all.
        Some(tones) => tones.map(emojis::Emoji::as_str).collect(),
        None => vec![emoji.as_str()],
    })
}

fn forms() -> &'static Forms {
    static FORMS: OnceLock<Forms> = OnceLock::new();
    FORMS.get_or_init(|| {
        let mut forms = Forms(Tree::new());
        fully_qualified().for_each(|emoji| forms.insert_with_unqualified(emoji));
        COMPONENTS.iter().for_each(|&c| forms.0.insert([c], Kind::Component));
        forms
    })
}

/// Characters `start..end` of a text.
#[derive(Clone, Copy)]
struct Token {
    start: usize,
    end: usize,
    /// Found as an emoji; the rest are single characters (which may be listed as emoji, yet stand
    /// where a longer sequence broke off).
    is_match: bool,
}

impl Token {
    fn len(&self) -> usize {
        self.end - self.start
    }
}

/// Whether a joiner between two emoji that are no sequence together is a token of its own.
#[derive(Clone, Copy, PartialEq)]
enum Joiners {
    Kept,
    Dropped,
}

/// Cuts a text into emoji and single characters, by the rules of Python's `emoji.tokenizer`.
///
/// From a character that begins some emoji, it goes down the tree as far as the text follows, and
/// takes what it read if that is an emoji, with no look back at a shorter one. What came out
/// too long is mended at the joiner: a joiner after an emoji is marked as one that joins nothing,
/// and reading starts again before that emoji, up to the mark. Variation selectors outside of an
/// emoji vanish. The corner cases are Python's, so that the same rows are kept.
fn tokenize(chars: &[char], joiners: Joiners) -> Vec<Token> {
    let forms = forms();
    let mut marked = vec![false; chars.len()];
    let mut tokens: Vec<Token> = Vec::new();
    // Tokens before this one stay; those from it on can still be taken back. A character that
    // begins no emoji settles all before it.
    let mut settled = 0;
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let single = Token { start: at, end: at + 1, is_match: false };
        if marked[at] {
            if joiners == Joiners::Kept {
                tokens.push(single);
            }
            at += 1;
        } else if let Some(mut node) = forms.next(ROOT, c) {
            let mut end = at + 1;
            while let Some(next) = chars.get(end).filter(|_| !marked[end]).and_then(|&c| forms.next(node, c))
            {
                node = next;
                end += 1;
            }
            if forms.0.value(node).is_some() {
                tokens.push(Token { start: at, end, is_match: true });
                at = end;
            } else {
                tokens.push(single);
                at += 1;
            }
        } else if let Some(kind) = joined_kind(forms, chars, at, &tokens[settled..]) {
            marked[at] = true;
            at = take_back(chars, at, kind, &mut tokens, settled);
        } else {
            settled = tokens.len();
            if c != TEXT_STYLE && c != EMOJI_STYLE {
                tokens.push(single);
            }
            at += 1;
        }
    }
    tokens
}

/// If `at` is a joiner right after an emoji: which kind of emoji.
fn joined_kind(forms: &Forms, chars: &[char], at: usize, open: &[Token]) -> Option<Kind> {
    let last = open.last()?;
    let behind = chars.get(at.checked_sub(1)?)?;
    if chars[at] != JOINER || !forms.begins(*behind) {
        return None;
    }
    forms.kind_of(&chars[last.start..last.end])
}

/// Takes back the emoji before the joiner at `at`, and gives the place to read on from.
fn take_back(chars: &[char], at: usize, kind: Kind, tokens: &mut Vec<Token>, settled: usize) -> usize {
    let open = &tokens[settled..];
    // A component goes with what it modifies, unless that is a joiner.
    let wanted = if kind == Kind::Component { 2 } else { 1 };
    let taken = &open[open.len().saturating_sub(wanted)..];
    let mut from = at - taken.iter().map(Token::len).sum::<usize>();
    let mut gone = taken.len();
    if kind == Kind::Component && chars[from] == JOINER {
        from += 1;
        gone = 1;
    }
    tokens.truncate(tokens.len() - gone);
    from
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/text/emoji.jsonl");

    /// Verdicts of Python's emoji 2.16.0. `EMOJI_LAB_EMOJI_JSONL` names another file of the same
    /// form, such as one from `tests/python/emoji_fuzz.py`.
    #[test]
    fn verdicts_are_pythons() {
        let path = std::env::var("EMOJI_LAB_EMOJI_JSONL").unwrap_or_else(|_| GOLDEN.into());
        let lines = std::fs::read_to_string(&path).unwrap();
        let mut checked = 0;
        for line in lines.lines() {
            let golden: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = golden["s"].as_str().unwrap();
            assert_eq!(purely_emoji(text), golden["purely_emoji"], "purely_emoji of {text:?}");
            assert_eq!(is_every_character_emoji(text), golden["all_chars_emoji"], "characters of {text:?}");
            assert_eq!(serde_json::json!(emoji_list(text)), golden["list"], "list of {text:?}");
            checked += 1;
        }
        assert!(checked > 1000, "{path} has {checked} lines");
    }

    #[test]
    fn as_many_forms_as_python_lists() {
        let count = |kind| forms().0.values().filter(|k| *k == kind).count();
        assert_eq!((count(Kind::Emoji), count(Kind::Component)), (5235, 9));
    }

    #[test]
    fn what_each_filter_keeps() {
        let cases = [
            ("🎉", true, true),
            ("🎉🏽", true, true),
            ("❤️", false, true),
            ("❤", true, true),
            ("🇵🇹", false, true),
            ("1️⃣", false, true),
            ("👨‍👩‍👧", false, true),
            ("🎉!", false, false),
            ("🎉 🎉", false, false),
            ("beach", false, false),
            ("7", false, false),
        ];
        for (text, every, purely) in cases {
            assert_eq!(EmojiFilter::EveryCharacter.keeps(text), every, "{text}");
            assert_eq!(EmojiFilter::PurelyEmoji.keeps(text), purely, "{text}");
            assert!(EmojiFilter::None.keeps(text));
        }
        for filter in [EmojiFilter::EveryCharacter, EmojiFilter::PurelyEmoji, EmojiFilter::None] {
            assert!(!filter.keeps(""));
        }
    }
}
