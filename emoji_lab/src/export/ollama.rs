//! How Ollama is to ask an exported model: a `Modelfile`, or the files that the Hub keeps in its place.
//!
//! Ollama's own template for Gemma 3 gives the system text a user turn of its own, which is not what
//! was trained; it takes no Jinja. So the model's chat template is rendered once around placeholders,
//! and what it writes around them becomes a template in Ollama's language (Go's `text/template`).
//!
//! A value in a Modelfile stands in `"""`, without any escapes: it ends at the first `"""` that a line
//! ends with, and characters that Go does not call printable (also the joiners in emoji) are dropped.
//! What cannot be written so stands in the template as a Go string, in ASCII, where any text can.

use std::fmt::Write;

use serde_json::json;

use crate::data::Message;
use crate::error::{Error, Result};
use crate::model::Tokenizer;

/// Placeholders: letters, so that no template changes them.
const SYSTEM: &str = "EmojiLabSystemPlace";
const PROMPT: &str = "EmojiLabPromptPlace";
const ANSWER: &str = "EmojiLabAnswerPlace";

/// How a model is asked, in pieces of text around the places of system text, prompt and answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asking {
    before_system: String,
    /// The system text as it stands in a `Modelfile`; blanks at its end are in `between`, since some
    /// programs trim what they are given.
    system: String,
    between: String,
    /// Before the prompt where there is no system text.
    before_prompt: String,
    after_prompt: String,
    after_answer: String,
    /// The text of the token that ends a turn.
    stop: Option<String>,
}

/// How the model of `tokenizer` is asked with `system_prompt`; blank for none. `<bos>` is left out:
/// Ollama puts it there.
///
/// # Errors
/// [`Error::Model`] if the chat template refuses a system text, or writes it or the prompt otherwise
/// than once and as it is.
pub(super) fn asking(tokenizer: &Tokenizer, system_prompt: &str, origin: &str) -> Result<Asking> {
    let odd = || {
        let problem = "its chat template writes a conversation in a way that Ollama's templates cannot";
        Error::model(origin, problem, "Export it without a Modelfile (modelfile: false, hub_files: false)")
    };
    let ask = |system: &str| [Message::system(system), Message::user(PROMPT)];
    let bos = tokenizer.token(tokenizer.bos()).unwrap_or_default();
    let render = |messages: &[Message], open: bool| -> Result<String> {
        let text = tokenizer.apply_chat_template(messages, open)?;
        Ok(text.strip_prefix(&bos).map(str::to_string).unwrap_or(text))
    };
    let with = render(&ask(SYSTEM), true)?;
    let (before_system, rest) = halves(&with, SYSTEM).ok_or_else(odd)?;
    let (between, after_prompt) = halves(rest, PROMPT).ok_or_else(odd)?;
    let alone = render(&[Message::user(PROMPT)], true)?;
    let (before_prompt, after_alone) = halves(&alone, PROMPT).ok_or_else(odd)?;
    let [system, prompt] = ask(SYSTEM);
    let whole = render(&[system, prompt, Message::assistant(ANSWER)], false)?;
    let (before_answer, after_answer) = halves(&whole, ANSWER).ok_or_else(odd)?;
    if before_answer != with || after_alone != after_prompt {
        return Err(odd());
    }
    // What the template makes of the text itself: one that trims it has no blanks at its end.
    let mut shown = String::new();
    if !system_prompt.trim().is_empty() {
        let asked = render(&ask(system_prompt), true)?;
        let (head, _) = asked.rsplit_once(PROMPT).ok_or_else(odd)?;
        let inside = head.strip_prefix(before_system).and_then(|text| text.strip_suffix(between));
        shown = inside.ok_or_else(odd)?.to_string();
    }
    let trimmed = shown.trim_end();
    Ok(Asking {
        before_system: before_system.to_string(),
        between: format!("{}{between}", &shown[trimmed.len()..]),
        system: trimmed.to_string(),
        before_prompt: before_prompt.to_string(),
        after_prompt: after_prompt.to_string(),
        after_answer: after_answer.to_string(),
        stop: tokenizer.end_of_turn().and_then(|id| tokenizer.token(id)),
    })
}

/// What is before and after the one `place` in `text`.
fn halves<'a>(text: &'a str, place: &str) -> Option<(&'a str, &'a str)> {
    text.split_once(place).filter(|(_, after)| !after.contains(place))
}

impl Asking {
    /// The `Modelfile` for the file called `gguf` in the same folder.
    ///
    /// # Errors
    /// [`Error::Setting`] if a Modelfile cannot name that file.
    pub(super) fn modelfile(&self, gguf: &str) -> Result<String> {
        if !gguf.chars().all(is_plain) || gguf.contains('\n') || gguf.ends_with(' ') {
            let help =
                "a Modelfile can name files of letters, digits, spaces, - . and _; or set modelfile: false";
            return Err(Error::setting("path", gguf, help));
        }
        let as_value = !self.system.is_empty() && is_value(&self.system);
        let fallback = if as_value { "" } else { self.system.as_str() };
        let mut text = String::from("# Asks as the model was trained: ollama create NAME -f Modelfile\n");
        let _ = writeln!(text, "FROM ./{gguf}\nTEMPLATE \"\"\"{}\"\"\"", self.template(fallback));
        if as_value {
            let _ = writeln!(text, "SYSTEM \"\"\"{}\"\"\"", self.system);
        }
        if let Some(stop) = self.stop.as_ref().filter(|stop| is_value(stop)) {
            let _ = writeln!(text, "PARAMETER stop \"\"\"{stop}\"\"\"");
        }
        text.push_str("PARAMETER temperature 0\n");
        Ok(text)
    }

    /// The Hub's files: their names and contents.
    pub(super) fn hub_files(&self) -> [(&'static str, String); 3] {
        let mut params = json!({"temperature": 0});
        if let Some(stop) = &self.stop {
            params["stop"] = json!([stop]);
        }
        [
            ("template", self.template("")),
            ("system", self.system.clone()),
            ("params", format!("{params:#}\n")),
        ]
    }

    /// The template in Ollama's language. `fallback` is the system text where none is given.
    fn template(&self, fallback: &str) -> String {
        let prompt = format!("{{{{ .Prompt }}}}{}", literal(&self.after_prompt));
        let otherwise = match fallback.is_empty() {
            true => literal(&self.before_prompt),
            false => {
                format!("{}{}{}", literal(&self.before_system), go_string(fallback), literal(&self.between))
            }
        };
        format!(
            "{{{{ if .System }}}}{}{{{{ .System }}}}{}{{{{ else }}}}{otherwise}{{{{ end }}}}{prompt}{{{{ .Response }}}}{}",
            literal(&self.before_system),
            literal(&self.between),
            literal(&self.after_answer),
        )
    }
}

/// Whether a Modelfile and a template hold the character as it is: printable for every Go.
fn is_plain(c: char) -> bool {
    c == '\n' || matches!(c, ' '..='~') || (!c.is_ascii() && c.is_alphanumeric())
}

/// Whether a value of a Modelfile can be this text.
fn is_value(text: &str) -> bool {
    text.chars().all(is_plain) && !text.contains("\"\"\"")
}

/// `text` in a template, where it stands for itself.
fn literal(text: &str) -> String {
    let stands = |c: char| is_plain(c) && !matches!(c, '"' | '{' | '}');
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let end = rest.find(|other| stands(other) != stands(c)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        match stands(c) {
            true => out.push_str(run),
            false => out.push_str(&go_string(run)),
        }
        rest = after;
    }
    out
}

/// An action of a template that writes `text`: a Go string in ASCII.
fn go_string(text: &str) -> String {
    let mut out = String::from("{{ \"");
    for c in text.chars() {
        match c {
            ' ' | '0'..='9' | 'A'..='Z' | 'a'..='z' => out.push(c),
            _ => {
                let _ = write!(out, "\\U{:08x}", u32::from(c));
            }
        }
    }
    out.push_str("\" }}");
    out
}

#[cfg(test)]
#[path = "ollama_tests.rs"]
mod tests;
