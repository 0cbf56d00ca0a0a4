//! The text of a file, and which encoding it may be in if it is not UTF-8.

use std::borrow::Cow;

use encoding_rs::{BIG5, EUC_JP, EUC_KR, Encoding, GB18030, SHIFT_JIS, UTF_8};

use crate::error::{Error, Result};

const HELP: &str = "Save the file again as UTF-8 (in a spreadsheet: \"CSV UTF-8\")";
/// How many bytes a guess looks at.
const SEEN: usize = 1 << 16;

/// The text of a file: UTF-8, UTF-16 with its byte order mark, or the encoding that the dataset's
/// card declares; without its byte order mark.
pub(super) fn decode<'a>(
    name: &str,
    bytes: &'a [u8],
    declared: Option<&'static Encoding>,
) -> Result<Cow<'a, str>> {
    let not_utf8 = |what: &str| Error::dataset(name, format!("the file is {what}, not UTF-8"), HELP);
    if bytes.starts_with(&[0xff, 0xfe, 0, 0]) || bytes.starts_with(&[0, 0, 0xfe, 0xff]) {
        return Err(not_utf8("UTF-32"));
    }
    if let Some((encoding, mark)) = Encoding::for_bom(bytes).filter(|(encoding, _)| *encoding != UTF_8) {
        return whole(name, &bytes[mark..], encoding);
    }
    if let Some(encoding) = declared.filter(|encoding| *encoding != UTF_8) {
        return whole(name, bytes, encoding);
    }
    if let Some(wide) = wide(bytes) {
        return Err(not_utf8(&format!("{wide} without a byte order mark")));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Cow::Borrowed(text.strip_prefix('\u{feff}').unwrap_or(text))),
        Err(e) => {
            let line = line_at(bytes, e.valid_up_to());
            let bad = &bytes[e.valid_up_to()..];
            let byte = bad.first().copied().unwrap_or_default();
            Err(Error::dataset(
                format!("{name}, line {line}"),
                format!("not UTF-8 (byte 0x{byte:02x}){}", what_else(bytes, bad, e.error_len())),
                HELP,
            ))
        }
    }
}

/// The text of bytes in another encoding, if they are nothing else.
fn whole<'a>(name: &str, bytes: &'a [u8], encoding: &'static Encoding) -> Result<Cow<'a, str>> {
    let text = encoding.decode_without_bom_handling_and_without_replacement(bytes);
    text.ok_or_else(|| {
        Error::dataset(
            name,
            format!("the file says that it is {}, and some of it is not", encoding.name()),
            format!("It may be cut off or mix encodings. {HELP}"),
        )
    })
}

/// The line of the byte at `place`.
pub(super) fn line_at(bytes: &[u8], place: usize) -> usize {
    let before = &bytes[..place.min(bytes.len())];
    let ends = |i: &usize| before[*i] == b'\n' || (before[*i] == b'\r' && bytes.get(i + 1) != Some(&b'\n'));
    1 + (0..before.len()).filter(ends).count()
}

/// Whether text is in units of two or four bytes: of its first characters, which are a header's or
/// JSON's, every second byte is zero.
fn wide(bytes: &[u8]) -> Option<&'static str> {
    let start = &bytes[..bytes.len().min(24) & !3];
    let zeros = |width: usize, at: usize| {
        start.iter().skip(at).step_by(width).filter(|byte| **byte == 0).count() * width * 4 >= start.len() * 3
    };
    let none = |width: usize, at: usize| start.iter().skip(at).step_by(width).all(|byte| *byte != 0);
    match start.len() < 8 {
        true => None,
        false if none(4, 0) && (1..4).all(|at| zeros(4, at)) => Some("UTF-32"),
        false if none(4, 3) && (0..3).all(|at| zeros(4, at)) => Some("UTF-32"),
        false if none(2, 0) && zeros(2, 1) => Some("UTF-16"),
        false if none(2, 1) && zeros(2, 0) => Some("UTF-16"),
        false => None,
    }
}

/// What bytes that are not UTF-8 may be instead. `bad` begins with the first that is not.
fn what_else(bytes: &[u8], bad: &[u8], length: Option<usize>) -> String {
    if length.is_none() {
        return ": the file ends within a character, so it was cut off".to_owned();
    }
    if matches!(bad, [0xed, 0xa0..=0xbf, 0x80..=0xbf, ..]) {
        return ", but CESU-8: its emoji are pairs of surrogates, as some databases and Java write them"
            .to_owned();
    }
    let (mut good, mut wrong) = (0, 0);
    for chunk in bytes.utf8_chunks() {
        good += chunk.valid().chars().filter(|c| !c.is_ascii() && *c != '\u{feff}').count();
        wrong += usize::from(!chunk.invalid().is_empty());
    }
    if good > wrong {
        let places = if wrong == 1 { "1 place" } else { &format!("{wrong} places") };
        return format!(", though the rest is: the file mixes encodings ({places})");
    }
    format!(", probably {}", likely(&bytes[..bytes.len().min(SEEN)]))
}

/// The encoding that text which is not UTF-8 is most likely in.
fn likely(bytes: &[u8]) -> &'static str {
    let high: Vec<u8> = bytes.iter().copied().filter(|byte| *byte >= 0x80).collect();
    let runs = bytes.windows(2).filter(|pair| pair[0] < 0x80 && pair[1] >= 0x80).count().max(1);
    let mostly = |part: usize, of: usize| of > 0 && part * 10 >= of * 8;
    let letters = high.iter().filter(|byte| **byte >= 0xc0).count();
    if high.len() >= runs * 3 && letters * 20 >= high.len() * 19 {
        return "Windows-1251 or another encoding of Cyrillic or Greek";
    }
    if high.len() >= runs * 2 {
        let share = |encoding: &'static Encoding, fits: fn(char) -> bool| {
            // The end may lie within a character.
            let text = (0..4).find_map(|cut| {
                let some = bytes.get(..bytes.len().checked_sub(cut)?)?;
                encoding.decode_without_bom_handling_and_without_replacement(some)
            });
            let other = |text: Cow<str>| {
                let other: Vec<char> = text.chars().filter(|c| !c.is_ascii()).collect();
                other.iter().filter(|c| fits(**c)).count() * 100 / other.len().max(1)
            };
            text.map_or(0, other)
        };
        // Kana are in all Japanese text and in no other; the rest of the encodings read each other's bytes.
        let kana = |c: char| matches!(c, '\u{3041}'..='\u{30fe}');
        let chinese = |c: char| matches!(c, '\u{3000}'..='\u{3020}' | '\u{4e00}'..='\u{9fff}' | '\u{ff00}'..='\u{ffef}');
        let korean = |c: char| matches!(c, '\u{ac00}'..='\u{d7a3}');
        let guesses = [
            (share(SHIFT_JIS, kana) > 30, "Shift-JIS"),
            (share(EUC_JP, kana) > 30, "EUC-JP"),
            (share(EUC_KR, korean) > 80, "EUC-KR"),
            (share(GB18030, chinese) > 80, "GBK or another encoding of Chinese"),
            (share(BIG5, chinese) > 80, "Big5"),
        ];
        if let Some((_, guess)) = guesses.into_iter().find(|(is, _)| *is) {
            return guess;
        }
    }
    match mostly(high.iter().filter(|byte| **byte < 0xa0).count(), high.len()) {
        true => "Mac Roman, Windows-1252 or an old encoding of MS-DOS",
        false => "Windows-1252 or Latin-1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table_files::encoding_by_name;

    fn failure(bytes: &[u8]) -> String {
        decode("t.csv", bytes, None).unwrap_err().to_string()
    }

    fn wide_text(text: &str, big: bool) -> Vec<u8> {
        text.encode_utf16()
            .flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() })
            .collect()
    }

    #[test]
    fn marks_are_taken_off_and_utf16_with_one_is_read() {
        let text = "text,emoji\nsun,☀️🎉\n";
        assert_eq!(decode("t", format!("\u{feff}{text}").as_bytes(), None).unwrap(), text);
        for big in [false, true] {
            assert_eq!(decode("t", &wide_text(&format!("\u{feff}{text}"), big), None).unwrap(), text);
            let error = failure(&wide_text(text, big));
            assert!(
                error.contains("the file is UTF-16 without a byte order mark, not UTF-8. Save"),
                "{error}"
            );
            let cut = wide_text(&format!("\u{feff}{text}"), big);
            let error = failure(&cut[..cut.len() - 1]);
            assert!(error.contains("UTF-16") && error.contains("cut off"), "{error}");
        }
        let four = |mark: &str| {
            format!("{mark}{text}").chars().flat_map(|c| (c as u32).to_le_bytes()).collect::<Vec<_>>()
        };
        assert!(failure(&four("\u{feff}")).contains("the file is UTF-32, not UTF-8"));
        assert!(failure(&four("")).contains("UTF-32 without a byte order mark"));
        // A zero byte is a character of UTF-8.
        assert_eq!(decode("t", b"text,emoji\nsu\0n,x", None).unwrap(), "text,emoji\nsu\0n,x");
    }

    #[test]
    fn what_is_not_utf8_is_named() {
        let file = |row: &[u8]| [b"text,emoji\nok,x\n", row, b",x\nmore,x\n"].concat();
        let says = |row: &[u8], part: &str| {
            let error = failure(&file(row));
            assert!(
                error.starts_with("dataset t.csv, line 3: not UTF-8 (byte 0x") && error.contains(part),
                "{error}"
            );
        };
        says(b"caf\xe9", "(byte 0xe9), probably Windows-1252 or Latin-1. Save");
        says(b"\x82\xb1\x82\xf1\x82\xc9\x82\xbf\x82\xcd", "probably Shift-JIS");
        says(b"\xc4\xe3\xba\xc3\xca\xc0\xbd\xe7", "probably GBK");
        says(b"\xbe\xc8\xb3\xe7\xc7\xcf\xbc\xbc\xbf\xe4", "probably EUC-KR");
        says(b"\xcf\xf0\xe8\xe2\xe5\xf2", "probably Windows-1251");
        says(b"\xed\xa0\xbc\xed\xbe\x89", "but CESU-8");
        says(
            "caf\u{e9} \u{1f389}\u{1f389}"
                .replace('\u{e9}', "\u{1}")
                .as_bytes()
                .iter()
                .map(|b| if *b == 1 { 0xe9 } else { *b })
                .collect::<Vec<_>>()
                .as_slice(),
            "the file mixes encodings (1 place)",
        );
        let cut = "text,emoji\nok,x\nsun,🎉".as_bytes();
        assert!(
            failure(&cut[..cut.len() - 1])
                .contains("line 3: not UTF-8 (byte 0xf0): the file ends within a character")
        );
        assert!(failure(b"a\rb\r\n\xff,").contains("line 3"));
    }

    #[test]
    fn a_declared_encoding_is_read() {
        let read =
            |name: &str, bytes: &[u8]| decode("t", bytes, encoding_by_name(name)).unwrap().into_owned();
        assert_eq!(read("latin_1", b"caf\xe9"), "café");
        assert_eq!(read("cp1252", b"\x80"), "€");
        assert_eq!(read("shift_jis", b"\x82\xb1"), "こ");
        assert_eq!(read("UTF-16", &wide_text("a🎉", false)), "a🎉");
        assert_eq!(read("utf_8_sig", "\u{feff}🎉".as_bytes()), "🎉");
        assert_eq!(encoding_by_name("none of these"), None);
    }
}
