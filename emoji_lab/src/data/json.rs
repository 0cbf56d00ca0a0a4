//! JSON, read in place: from value to value, past what nobody needs, however deep it is.
//!
//! It also takes what Python's `json` writes though JSON has no such words: `NaN`, `Infinity`.

/// What a value is, by how it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Bool,
    Number,
    String,
    List,
    Object,
}

impl Kind {
    /// What an error calls it.
    pub fn says(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "true or false",
            Self::Number => "a number",
            Self::String => "a string",
            Self::List => "a list",
            Self::Object => "an object",
        }
    }
}

/// Something that is not JSON, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Malformed {
    /// The byte of the text.
    pub at: usize,
    /// What is wrong there.
    pub what: String,
}

type Result<T> = std::result::Result<T, Malformed>;

/// Words that stand for a value; the last ones are Python's and JavaScript's.
const WORDS: [(&str, Kind); 9] = [
    ("null", Kind::Null),
    ("true", Kind::Bool),
    ("false", Kind::Bool),
    ("NaN", Kind::Null),
    ("Infinity", Kind::Number),
    ("-Infinity", Kind::Number),
    ("None", Kind::Null),
    ("True", Kind::Bool),
    ("False", Kind::Bool),
];

/// A place in a JSON text.
#[derive(Debug, Clone)]
pub(super) struct Json<'a> {
    text: &'a str,
    /// The next byte.
    pub at: usize,
}

impl<'a> Json<'a> {
    /// From byte `at` of `text` on.
    pub fn new(text: &'a str, at: usize) -> Self {
        Self { text, at }
    }

    fn wrong<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(Malformed { at: self.at, what: what.into() })
    }

    /// The next byte that is not blank.
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while matches!(bytes.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    /// Whether nothing but blanks follows.
    pub fn is_at_end(&mut self) -> bool {
        self.peek().is_none()
    }

    /// What the next value is.
    pub fn kind(&mut self) -> Result<Kind> {
        let first = self.peek();
        let rest = self.text.get(self.at..).unwrap_or_default();
        if let Some((_, kind)) = WORDS.iter().find(|(word, _)| rest.starts_with(word)) {
            return Ok(*kind);
        }
        match first {
            Some(b'"') => Ok(Kind::String),
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::List),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b'\'') => {
                self.wrong("strings stand in double quotes (Python's repr is not JSON: json.dumps)")
            }
            Some(b'/' | b'#') => self.wrong("JSON has no comments"),
            Some(_) => self.wrong("expected a value"),
            None => self.wrong("the text ends where a value should be"),
        }
    }

    /// Passes over the next value.
    pub fn skip(&mut self) -> Result<()> {
        let mut open = Vec::new();
        loop {
            match self.kind()? {
                Kind::Object | Kind::List => {
                    let close = if self.text.as_bytes()[self.at] == b'{' { b'}' } else { b']' };
                    self.at += 1;
                    open.push(close);
                    if self.peek() != Some(close) {
                        self.name_in(close)?;
                        continue;
                    }
                    self.at += 1;
                    open.pop();
                }
                Kind::String => self.skip_string()?,
                _ => self.skip_word()?,
            }
            loop {
                let Some(&close) = open.last() else { return Ok(()) };
                if self.next_member(close)? {
                    self.name_in(close)?;
                    break;
                }
                open.pop();
            }
        }
    }

    fn name_in(&mut self, close: u8) -> Result<()> {
        if close == b']' {
            return Ok(());
        }
        self.before_name()?;
        self.skip_string()?;
        self.colon()
    }

    /// Goes into a list or object; whether it has a first member.
    pub fn enter(&mut self) -> Result<bool> {
        let close = match self.peek() {
            Some(b'{') => b'}',
            Some(b'[') => b']',
            _ => return self.wrong("expected a list or an object"),
        };
        self.at += 1;
        let empty = self.peek() == Some(close);
        self.at += usize::from(empty);
        Ok(!empty)
    }

    /// Behind a member of what `close` ends: whether another follows.
    pub fn next_member(&mut self, close: u8) -> Result<bool> {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                match self.peek() {
                    Some(next) if next == close => self.wrong("there is a comma after the last value"),
                    Some(b'/' | b'#') => self.wrong("JSON has no comments"),
                    _ => Ok(true),
                }
            }
            Some(next) if next == close => {
                self.at += 1;
                Ok(false)
            }
            Some(b'/' | b'#') => self.wrong("JSON has no comments"),
            Some(_) => self.wrong(format!("expected `,` or `{}`", close as char)),
            None => self.wrong(format!("the text ends before `{}`", close as char)),
        }
    }

    fn before_name(&mut self) -> Result<()> {
        match self.peek() {
            Some(b'"') => Ok(()),
            Some(b'/' | b'#') => self.wrong("JSON has no comments"),
            Some(b'\'') => {
                self.wrong("strings stand in double quotes (Python's repr is not JSON: json.dumps)")
            }
            None => self.wrong("the text ends where a key should be"),
            _ => self.wrong("key must be a string"),
        }
    }

    fn colon(&mut self) -> Result<()> {
        match self.peek() {
            Some(b':') => {
                self.at += 1;
                Ok(())
            }
            _ => self.wrong("expected `:` after the key"),
        }
    }

    /// The name of an object's next member, with the colon after it.
    pub fn name(&mut self) -> Result<String> {
        self.before_name()?;
        let name = self.string()?;
        self.colon()?;
        Ok(name)
    }

    fn skip_word(&mut self) -> Result<()> {
        let rest = &self.text[self.at..];
        let length = match WORDS.iter().find(|(word, _)| rest.starts_with(word)) {
            Some((word, _)) => word.len(),
            None => rest
                .bytes()
                .take_while(|byte| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'))
                .count(),
        };
        self.at += length;
        match self.text.as_bytes().get(self.at) {
            Some(byte) if byte.is_ascii_alphanumeric() || *byte == b'"' => self.wrong("expected a value"),
            _ => Ok(()),
        }
    }

    fn skip_string(&mut self) -> Result<()> {
        self.pieces(|_, _| Ok(()))
    }

    /// The next value, a string.
    pub fn string(&mut self) -> Result<String> {
        let mut out = String::new();
        self.pieces(|json, piece| {
            match piece {
                Piece::Plain(text) => out.push_str(text),
                Piece::Escape(b'u') => out.push(json.unicode()?),
                Piece::Escape(escape) => out.push(match escape {
                    b'b' => '\u{8}',
                    b'f' => '\u{c}',
                    b'n' => '\n',
                    b'r' => '\r',
                    b't' => '\t',
                    same => same as char,
                }),
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// Gives the parts of the string that begins here; after `\u` its digits are still to be read.
    fn pieces(&mut self, mut piece: impl FnMut(&mut Self, Piece<'a>) -> Result<()>) -> Result<()> {
        let bytes = self.text.as_bytes();
        let open = self.at;
        self.at += 1;
        loop {
            let start = self.at;
            while bytes.get(self.at).is_some_and(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1f)) {
                self.at += 1;
            }
            piece(self, Piece::Plain(&self.text[start..self.at]))?;
            match bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => match bytes.get(self.at + 1) {
                    Some(&escape @ (b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' | b'u')) => {
                        self.at += 2;
                        piece(self, Piece::Escape(escape))?;
                    }
                    Some(_) => return self.wrong("no such escape: a backslash in a text is written twice"),
                    None => return self.wrong("the text ends within a string"),
                },
                Some(b'\n' | b'\r') => {
                    return Err(Malformed { at: open, what: "a string is not closed on its line".into() });
                }
                Some(_) => {
                    return self
                        .wrong("a tab or another control character in a string: write it as an escape");
                }
                None => {
                    return Err(Malformed { at: open, what: "a string is never closed".into() });
                }
            }
        }
    }

    /// The character whose digits come next, with its second half if it has one.
    fn unicode(&mut self) -> Result<char> {
        let start = self.at;
        let first = self.digits()?;
        let is_pair = (0xd800..0xdc00).contains(&first) && self.text[self.at..].starts_with("\\u");
        let code = match is_pair {
            true => {
                self.at += 2;
                match self.digits()? {
                    second @ 0xdc00..0xe000 => 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00),
                    _ => first,
                }
            }
            false => first,
        };
        char::from_u32(code).ok_or_else(|| Malformed {
            at: start.saturating_sub(2),
            what: format!("\\u{first:04x} is half of a character (a lone surrogate)"),
        })
    }

    fn digits(&mut self) -> Result<u32> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let hex = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        match hex.and_then(|hex| u32::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(code) => {
                self.at += 4;
                Ok(code)
            }
            None => self.wrong("four hexadecimal digits belong after \\u"),
        }
    }
}

enum Piece<'a> {
    Plain(&'a str),
    Escape(u8),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(text: &str) -> std::result::Result<(), String> {
        let mut json = Json::new(text, 0);
        json.skip().map_err(|e| format!("{}: {}", e.at, e.what))?;
        assert!(json.is_at_end(), "{text}");
        Ok(())
    }

    #[test]
    fn values_are_passed_over() {
        for text in [
            "null",
            " true ",
            "-1.5e-7",
            "\"a\\\"b\\u0041\"",
            "[]",
            "{}",
            "[1, [2, {\"a\": []}], \"x\"]",
            "{\"a\": NaN, \"b\": -Infinity, \"c\": None, \"d\": {\"e\": Infinity}}",
            "\"\\ud83c\"",
        ] {
            assert_eq!(skipped(text), Ok(()), "{text}");
        }
        // Any depth, without a call for each level.
        let deep = format!("{}{}", "[{\"a\":".repeat(200_000), "1");
        assert!(skipped(&deep).unwrap_err().contains("ends before `}`"));
        let deep = format!("{deep}{}", "}]".repeat(200_000));
        assert_eq!(skipped(&deep), Ok(()));
    }

    #[test]
    fn strings_are_unescaped() {
        let string = |text: &str| Json::new(text, 0).string().map_err(|e| (e.at, e.what));
        assert_eq!(string("\"two\\nlines \\ud83c\\uDF89 \\/ é\""), Ok("two\nlines 🎉 / é".into()));
        assert_eq!(string("\"\"x"), Ok(String::new()));
        for half in ["\"ab\\ud83c\"", "\"ab\\ud83c\\u0041\"", "\"ab\\udf89\\ud83c\"", "\"ab\\ud83cx\""] {
            let (at, what) = string(half).unwrap_err();
            assert!(at == 3 && what.contains("a lone surrogate"), "{half}: {at} {what}");
        }
        assert!(string("\"\\x41\"").unwrap_err().1.contains("no such escape"));
        assert!(string("\"\\u12").unwrap_err().1.contains("four hexadecimal digits"));
        assert!(string("\"\\u12é\"").is_err());
        assert!(string("\"a\nb\"").unwrap_err().1.contains("not closed on its line"));
        assert!(string("\"a\tb\"").unwrap_err().1.contains("control character"));
        assert!(string("\"a").unwrap_err().1.contains("never closed"));
    }

    #[test]
    fn what_is_not_json_is_placed() {
        let says = |text: &str, expected: &str| assert_eq!(skipped(text), Err(expected.into()), "{text}");
        says("[1,]", "3: there is a comma after the last value");
        says("{\"a\": 1,}", "8: there is a comma after the last value");
        says("{\"a\" 1}", "5: expected `:` after the key");
        says("{a: 1}", "1: key must be a string");
        says("[1 2]", "3: expected `,` or `]`");
        says("[1, // two\n2]", "4: JSON has no comments");
        says("[tru]", "1: expected a value");
        says("[nullx]", "5: expected a value");
        says("[1", "2: the text ends before `]`");
        assert!(skipped("{'a': 1}").unwrap_err().contains("json.dumps"));
        assert!(skipped("").unwrap_err().contains("the text ends"));
    }
}
