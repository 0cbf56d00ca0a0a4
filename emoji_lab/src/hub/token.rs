//! The access token: a value that cannot be printed, and where it was found.

use std::fmt;
use std::path::PathBuf;

/// What stands in the place of a token wherever text is made.
const HIDDEN: &str = "hf_…";

/// A Hugging Face access token.
///
/// `Debug` and `Display` print `hf_…`; the type is not `Serialize`, and no public method gives the
/// secret back.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token with the white space around it removed; `None` if nothing is left.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_string()))
    }

    /// Whether the token can stand in an HTTP header.
    pub(crate) fn is_plain(&self) -> bool {
        self.0.bytes().all(|b| b.is_ascii_graphic())
    }

    /// The secret itself: only for the header that carries it.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }

    /// `text` without this token in it.
    pub(crate) fn scrub(&self, text: &str) -> String {
        text.replace(&self.0, HIDDEN)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// Where a token came from, in the words that messages use.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenSource {
    /// Given to the step as an argument.
    Argument,
    /// An earlier `login` of this process.
    Session,
    /// An environment variable.
    Variable(&'static str),
    /// A file.
    File(PathBuf),
    /// Typed into the notebook's hidden prompt.
    Prompt,
}

impl fmt::Display for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument => f.write_str("the argument"),
            Self::Session => f.write_str("the login of this session"),
            Self::Variable(name) => f.write_str(name),
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Prompt => f.write_str("the prompt"),
        }
    }
}

/// A token and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundToken {
    /// The token.
    pub token: Token,
    /// Where it was found.
    pub source: TokenSource,
}

/// Whether `text` holds something that looks like an access token: `hf_` and at least 20 letters or
/// digits, none of them part of a longer word before it.
pub(crate) fn looks_like_token(text: &[u8]) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric();
    text.windows(3).enumerate().filter(|(_, w)| *w == b"hf_").any(|(at, _)| {
        let before = at.checked_sub(1).and_then(|i| text.get(i)).copied();
        let length = text.iter().skip(at + 3).take_while(|b| is_word(**b)).count();
        length >= 20 && !before.is_some_and(is_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_does_not_print_itself() {
        let token = Token::new("  hf_secretsecretsecret\n").unwrap();
        let found = FoundToken { token: token.clone(), source: TokenSource::Variable("HF_TOKEN") };
        for text in
            [format!("{token}"), format!("{token:?}"), format!("{found:?}"), format!("{:#?}", Some(&found))]
        {
            assert!(text.contains(HIDDEN) && !text.contains("secret"), "{text}");
        }
        assert_eq!(token.scrub("Bearer hf_secretsecretsecret!"), "Bearer hf_…!");
    }

    #[test]
    fn white_space_is_no_token() {
        assert_eq!(Token::new(" \r\n"), None);
        assert!(!Token::new("hf_a\nb").unwrap().is_plain());
        assert!(Token::new("hf_ab").unwrap().is_plain());
    }

    #[test]
    fn tokens_in_files_are_recognised() {
        assert!(looks_like_token(b"key: hf_abcdefghijABCDEFGHIJ0123456789"));
        assert!(looks_like_token(b"hf_abcdefghijABCDEFGHIJ"));
        assert!(!looks_like_token("hf_…, hf_hub, hf_token_path_variable_name_long".as_bytes()));
        assert!(!looks_like_token(b"self_hf_, xhf_abcdefghijABCDEFGHIJ0123"));
    }
}
