//! Text that is not ours (rows, prompts, answers, names of files and models) on its way to a
//! notebook or a terminal: the one way out.
//!
//! Such text may hold anything. The Rust kernel reads its own protocol from what a cell prints, so a
//! row could open a block of HTML, end the cell or never end it; a terminal and Jupyter obey escape
//! sequences, carriage returns and backspaces; a browser obeys controls of direction. None of them
//! gets through here, and none vanishes: each is shown for what it is.

use std::borrow::Cow;
use std::fmt::Display;

use unicode_width::UnicodeWidthChar;

/// What every word of the kernel's protocol begins with.
const PROTOCOL: &str = "EVCXR_";
/// The same to the eye, but not to the kernel: with a zero-width space.
const NO_PROTOCOL: &str = "EVCXR\u{200b}_";
/// Marks that one character may carry. The fullest stacks of Tibetan have nine; hundreds of them
/// would cover the lines above and below.
const MARKS: usize = 10;
/// The black flag, which tag characters make one of England, Scotland or Wales.
const BLACK_FLAG: char = '\u{1f3f4}';
const LAST_TAG: char = '\u{e007f}';

/// `text` so that it stays text wherever it is printed, and hides nothing.
///
/// Emoji and the writing of every language pass unchanged, line ends and tabs too. Control
/// characters become their pictures (escape is `␛`), controls of direction, separators of lines and
/// tag characters outside of a flag their number (`⟨U+202E⟩`), and what a character carries beyond
/// ten combining marks a count. Every `EVCXR_` is broken by a zero-width space.
///
/// Nothing that means something in HTML is added, so finished HTML can be made plain as well.
pub fn plain(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\n' | b'\t')) && !text.contains(PROTOCOL) {
        return Cow::Borrowed(text);
    }
    let (mut out, mut marks) = (String::with_capacity(text.len()), 0);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if is_mark(c) {
            marks += 1;
            if marks <= MARKS {
                out.push(c);
            }
            continue;
        }
        end_marks(&mut out, &mut marks);
        match c {
            '\n' | '\t' => out.push(c),
            // The line end of Windows.
            '\r' if rest.as_str().starts_with('\n') => {}
            '\0'..='\x1f' => out.extend(char::from_u32(0x2400 + u32::from(c))),
            '\x7f' => out.push('␡'),
            BLACK_FLAG => {
                let tags = &rest.as_str()[..tags_of_a_flag(rest.as_str())];
                out.push(c);
                out.push_str(tags);
                rest = rest.as_str()[tags.len()..].chars();
            }
            c if is_unseen(c) => out.push_str(&format!("⟨U+{:04X}⟩", u32::from(c))),
            c => out.push(c),
        }
    }
    end_marks(&mut out, &mut marks);
    // At the end: nothing that is done above can join the word again.
    if out.contains(PROTOCOL) {
        out = out.replace(PROTOCOL, NO_PROTOCOL);
    }
    if out == text { Cow::Borrowed(text) } else { Cow::Owned(out) }
}

/// [`plain`] text on one line: line ends are shown as `↵`.
pub fn plain_line(text: impl Display) -> String {
    plain(&text.to_string()).replace('\n', "↵")
}

/// Whether `c` has no column of its own but sits on the character before it. Joiners and variation
/// selectors count as well, as a flood of them is one, too.
fn is_mark(c: char) -> bool {
    c.width() == Some(0) && !is_unseen(c) && !c.is_control()
}

/// Says how many marks were too many.
fn end_marks(out: &mut String, marks: &mut usize) {
    if *marks > MARKS {
        out.push_str(&format!("⟨{} more marks⟩", *marks - MARKS));
    }
    *marks = 0;
}

/// Bytes of the tags at the start of `text` that make a black flag the flag of a region: three to
/// six small letters and digits, and the end.
fn tags_of_a_flag(text: &str) -> usize {
    let is_code = |c: &char| matches!(c, '\u{e0030}'..='\u{e0039}' | '\u{e0061}'..='\u{e007a}');
    let code = text.chars().take_while(is_code).count();
    let bytes = code * LAST_TAG.len_utf8();
    match (3..=6).contains(&code) && text[bytes..].starts_with(LAST_TAG) {
        true => bytes + LAST_TAG.len_utf8(),
        false => 0,
    }
}

/// Whether `c` cannot be seen and does something to what stands beside it, or carries hidden text.
/// What writing needs stays: joiners, the zero-width space of Khmer and Thai, the soft hyphen.
fn is_unseen(c: char) -> bool {
    matches!(c,
        // C1: controls that are one character, as the sequence introducer U+009B.
        '\u{80}'..='\u{9f}'
        // Direction.
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        // Lines and paragraphs.
        | '\u{2028}' | '\u{2029}'
        // Old switches of shaping, the byte order mark, annotations beside the text.
        | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        // Tags, which spell ASCII that nobody sees.
        | '\u{e0000}'..='\u{e007f}'
        // No characters at all; SVG may not hold the last two of a plane.
        | '\u{fdd0}'..='\u{fdef}')
        || u32::from(c) & 0xfffe == 0xfffe
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGLAND: &str = "🏴\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}";
    const SCOTLAND: &str = "🏴\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}\u{e007f}";

    #[test]
    fn emoji_and_all_writing_pass_byte_for_byte() {
        for text in [
            "",
            "let's go\tto the beach\n",
            "🏖️🌊👨‍👩‍👧‍👦👍🏽🇫🇷1️⃣❤️‍🔥🏴‍☠️🏳️‍🌈",
            ENGLAND,
            SCOTLAND,
            "日本語 한국어 ᄀ\u{1161}\u{11a8} ไทย ខ្មែរ\u{200b}ខ្មែរ",
            "שָׁלוֹם עוֹלָם, مَرْحَبًا بِالعَالَم، می\u{200c}خواهم",
            "नमस्ते क्ष \u{939}\u{94d}\u{200d} தமிழ் বাংলা",
            // The ten-fold power, as Tibetan stacks it.
            "\u{f67}\u{f90}\u{fb5}\u{fa8}\u{fb3}\u{fba}\u{fbc}\u{fbb}\u{f83}",
            "e\u{301} Zürich Straßen\u{ad}bahn ＥＶＣＸＲ EVCXR evcxr_x",
        ] {
            assert!(matches!(plain(text), Cow::Borrowed(same) if same == text), "{text:?} {:?}", plain(text));
        }
    }

    #[test]
    fn the_kernels_words_are_broken_wherever_they_stand() {
        for word in [
            "EVCXR_BEGIN_CONTENT text/html",
            "xEVCXR_BEGIN_CONTENT x",
            "EVCXR_END_CONTENT",
            "EVCXR_PANIC_NOTIFICATION",
            "EVCXR_EXECUTION_COMPLETE",
            "EVCXR_ERROR_OCCURRED",
            "EVCXR_VARIABLE_CHANGED_TYPE:base_model",
            "EVCXR_INPUT_REQUEST:x",
            "a\r\nEVCXR_END_CONTENT\r\nb",
            "EVCXR_EVCXR_",
        ] {
            let shown = plain(word);
            assert!(!shown.contains(PROTOCOL) && shown.contains(NO_PROTOCOL), "{shown:?}");
            assert_eq!(shown.replace('\u{200b}', ""), word.replace("\r\n", "\n"));
        }
        // Nothing that is taken out or put in makes the word anew.
        for between in ["\r", "\0", "\u{7f}", "\u{202e}", "\u{feff}", "\u{e0041}"] {
            assert!(!plain(&format!("EVCXR{between}_BEGIN_CONTENT x")).contains(PROTOCOL));
        }
        assert!(!plain(&format!("EVCXR{}_END_CONTENT", "\u{301}".repeat(50))).contains(PROTOCOL));
    }

    #[test]
    fn what_hides_or_reorders_is_shown() {
        for (text, shown) in [
            ("\u{1b}[31mred\u{1b}[0m", "␛[31mred␛[0m"),
            ("\u{1b}]8;;http://x\u{7}link\u{1b}]8;;\u{7}", "␛]8;;http://x␇link␛]8;;␇"),
            ("\u{9b}2J\u{85}", "⟨U+009B⟩2J⟨U+0085⟩"),
            ("true\rfake", "true␍fake"),
            ("a\u{8}\u{8}b\u{7f}", "a␈␈b␡"),
            ("a\0b", "a␀b"),
            ("one\r\ntwo\r\n", "one\ntwo\n"),
            ("\u{202e}evil\u{202c}", "⟨U+202E⟩evil⟨U+202C⟩"),
            ("\u{2066}\u{2069}\u{200e}\u{200f}\u{61c}", "⟨U+2066⟩⟨U+2069⟩⟨U+200E⟩⟨U+200F⟩⟨U+061C⟩"),
            ("a\u{2028}b\u{2029}c", "a⟨U+2028⟩b⟨U+2029⟩c"),
            ("\u{feff}x\u{fff9}\u{ffff}", "⟨U+FEFF⟩x⟨U+FFF9⟩⟨U+FFFF⟩"),
            // Tags alone, too many, or without an end, are no flag.
            ("x\u{e0041}\u{e007f}", "x⟨U+E0041⟩⟨U+E007F⟩"),
            ("🏴\u{e0067}\u{e0062}\u{e0065}", "🏴⟨U+E0067⟩⟨U+E0062⟩⟨U+E0065⟩"),
        ] {
            assert_eq!(plain(text), shown, "{text:?}");
        }
        let smuggled: String = "🏴".chars().chain(['\u{e0061}'; 40]).chain([LAST_TAG]).collect();
        assert!(!plain(&smuggled).contains('\u{e0061}'));
    }

    #[test]
    fn a_flood_of_marks_is_cut_and_counted() {
        let flood = format!("a{}b\u{301}", "\u{301}".repeat(1000));
        assert_eq!(plain(&flood), format!("a{}⟨990 more marks⟩b\u{301}", "\u{301}".repeat(10)));
        assert_eq!(plain(&"\u{fe0f}".repeat(11)), format!("{}⟨1 more marks⟩", "\u{fe0f}".repeat(10)));
    }

    #[test]
    fn plain_text_stays_plain_and_adds_no_html() {
        let all: String = (0..=0x0011_0000).filter_map(char::from_u32).collect();
        let once = plain(&all).into_owned();
        assert_eq!(plain(&once), once);
        assert!(!once.chars().any(|c| is_unseen(c) || c.is_control() && !matches!(c, '\n' | '\t')));
        for mark in ['<', '>', '&', '"', '\''] {
            assert_eq!(once.matches(mark).count(), 1, "{mark}");
        }
        assert_eq!(plain_line("a\r\nb\u{1b}\nc"), "a↵b␛↵c");
    }
}
