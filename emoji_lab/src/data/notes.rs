//! What looks wrong about rows without being a reason to drop them, or says why they were dropped.

use encoding_rs::WINDOWS_1252;

use crate::task::purely_emoji;

/// What was noticed about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noticed {
    /// UTF-8 that was read as Windows-1252 or Latin-1 and saved again: `ðŸŽ‰` for 🎉.
    EncodedTwice,
    /// Emoji with blanks around them.
    BlanksAround,
    /// Emoji with blanks, commas or brackets between them, as `🍕, 🎉` or `['🍕', '🎉']`.
    Listed,
    /// Names of emoji, as `:pizza:`.
    Shortcodes,
    /// Emoji joined to one that Unicode does not list.
    UnknownSequence,
    /// Rows with too many fields, passed over as the dataset's card asks (`on_bad_lines`).
    BadLines,
}

impl Noticed {
    /// What it is, and what to do.
    pub(super) fn says(self) -> &'static str {
        match self {
            Self::EncodedTwice => "looks encoded twice: save it again from the original as UTF-8",
            Self::BlanksAround => "emoji with blanks around them: remove the blanks",
            Self::Listed => "emoji with blanks, commas or brackets between them: write them side by side",
            Self::Shortcodes => {
                "names of emoji: write the emoji (Python: emoji.emojize(…, language=\"alias\"))"
            }
            Self::UnknownSequence => "emoji joined to one that Unicode does not list",
            Self::BadLines => "with too many fields, passed over as the dataset's card asks",
        }
    }
}

/// A thing that was noticed, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What it is.
    pub what: Noticed,
    /// How many rows.
    pub rows: usize,
    /// The number of the first, as in [`Dropped::lines`](super::Dropped::lines).
    pub first: usize,
    /// What the first one has there; empty if that is not known.
    pub example: String,
}

/// What an `emoji` value that is no emoji looks like.
pub(super) fn near_emoji(value: &str) -> Option<Noticed> {
    let trimmed = value.trim();
    if trimmed.is_empty() {
        return None;
    }
    if trimmed != value && purely_emoji(trimmed) {
        return Some(Noticed::BlanksAround);
    }
    let between = |c: char| c.is_whitespace() || ",;'\"[]()/|+&、，".contains(c);
    let mut parts = value.split(between).filter(|part| !part.is_empty()).peekable();
    if parts.peek().is_some() && parts.all(purely_emoji) && value.contains(between) {
        return Some(Noticed::Listed);
    }
    let is_name = |part: &str| {
        part.len() > 1
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_+-".contains(c))
    };
    let inner = trimmed.strip_prefix(':').and_then(|rest| rest.strip_suffix(':'));
    let mut names = inner.into_iter().flat_map(|inner| inner.split(':')).map(str::trim).peekable();
    if names.peek().is_some() && names.all(|name| name.is_empty() || name == "," || is_name(name)) {
        return Some(Noticed::Shortcodes);
    }
    let parts: String =
        value.chars().filter(|c| !matches!(c, '\u{200d}' | '\u{fe0e}' | '\u{fe0f}')).collect();
    (!parts.is_empty() && parts != value && purely_emoji(&parts)).then_some(Noticed::UnknownSequence)
}

/// Whether a text is UTF-8 that was taken for Windows-1252 or Latin-1, at least in a part.
pub(super) fn is_encoded_twice(text: &str) -> bool {
    // Every character above ASCII would begin with one of these.
    if !text.contains(|c| ('\u{c2}'..='\u{f4}').contains(&c)) {
        return false;
    }
    text.split(|c: char| c.is_ascii()).filter(|run| run.chars().nth(1).is_some()).any(|run| {
        let latin: Option<Vec<u8>> = run.chars().map(|c| u8::try_from(c).ok()).collect();
        let is_utf8 = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
        let (windows, _, unknown) = WINDOWS_1252.encode(run);
        latin.is_some_and(|bytes| is_utf8(&bytes)) || (!unknown && is_utf8(&windows))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_near_to_emoji_are_told_apart() {
        use Noticed::*;
        for (value, what) in [
            (" ☀️", Some(BlanksAround)),
            ("🎉\n", Some(BlanksAround)),
            ("🍕, 🎉", Some(Listed)),
            ("🍕 🎉", Some(Listed)),
            ("['🍕', '🎉']", Some(Listed)),
            ("[\"🍕\"]", Some(Listed)),
            (":pizza:", Some(Shortcodes)),
            (":pizza: :+1:", Some(Shortcodes)),
            (":pizza::tada:", Some(Shortcodes)),
            ("beach", None),
            ("🎉!", None),
            (":-)", None),
            ("12:30:45", None),
            ("", None),
            (" ", None),
            ("🍕 and 🎉", None),
        ] {
            assert_eq!(near_emoji(value), what, "{value:?}");
        }
    }

    #[test]
    fn text_encoded_twice_is_seen() {
        for text in ["🎉", "☀️", "café", "naïve – 100 €", "日本"] {
            let bytes = text.as_bytes();
            let (windows, ..) = WINDOWS_1252.decode(bytes);
            let latin: String = bytes.iter().map(|byte| *byte as char).collect();
            assert!(is_encoded_twice(&windows), "{windows}");
            assert!(is_encoded_twice(&latin), "{text}");
            assert!(!is_encoded_twice(text), "{text}");
            assert!(is_encoded_twice(&format!("sun {windows} sea")), "{windows}");
        }
        for fine in ["Ãrea", "übergroß, größer", "§ é à ù", "Crème brûlée", "Øresund", ""] {
            assert!(!is_encoded_twice(fine), "{fine}");
        }
    }
}
