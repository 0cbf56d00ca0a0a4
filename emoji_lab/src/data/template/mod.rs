//! A model's own chat template (Jinja), rendered as transformers' `apply_chat_template` does.

mod clock;
mod environment;
mod json;
mod page;
mod python;
mod tags;

use std::error::Error as _;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use minijinja::{Environment, ErrorKind, Value, context};

use super::chat::{Message, Role};
use crate::error::{Error, Result};

/// Gemma 3's format in a template of our own, for models that come without one (a GGUF file).
const GEMMA: &str = include_str!("../../../assets/gemma3_chat_template.jinja");
const NAME: &str = "chat_template";

/// The most text that a template may write: this much, and some times what it was given.
const LONGEST: usize = 4 << 20;
const TIMES: usize = 16;

/// From here on a source can chain what needs more stack than a thread has, in bytes.
const LONG_SOURCE: usize = 8 << 10;

/// Longer ones are no templates, in bytes.
const LONGEST_SOURCE: usize = 64 << 10;

/// A compiled chat template, with the special tokens it writes.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    /// Names and texts, as `bos_token` and `<bos>`.
    tokens: Arc<[(String, String)]>,
    /// Whether it has `{% generation %}` tags.
    marks_answers: bool,
}

/// What a template makes of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rendered {
    /// The text.
    text: String,
    /// Byte ranges of what `{% generation %}` tags mark.
    spans: Vec<Range<usize>>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("source", &format_args!("{} characters", self.source.chars().count()))
            .field("tokens", &self.tokens)
            .finish()
    }
}

impl ChatTemplate {
    /// Compiles `source` as transformers does: Jinja with `trim_blocks` and `lstrip_blocks`,
    /// Python's string, list and dict methods, `raise_exception`, `strftime_now`, a `tojson` that
    /// escapes nothing for HTML, and `{% generation %}` tags.
    ///
    /// # Errors
    /// [`Error::Model`] with the line if `source` is not valid Jinja.
    pub fn new(
        source: impl Into<String>,
        bos_token: impl Into<String>,
        eos_token: impl Into<String>,
    ) -> Result<Self> {
        let tokens = [("bos_token".to_owned(), bos_token.into()), ("eos_token".to_owned(), eos_token.into())];
        Self::with_tokens(source, tokens)
    }

    /// The same with all special tokens that the template can name, as `("pad_token", "<pad>")`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_tokens(
        source: impl Into<String>,
        tokens: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        const HELP: &str = "Take chat_template from the model's tokenizer_config.json";
        let source: String = source.into();
        if source.len() > LONGEST_SOURCE {
            let problem = format!("has {} bytes", source.len());
            return Err(Error::model("chat template", problem, HELP));
        }
        // As Jinja reads it: a line ends in \n.
        let jinja = source.replace("\r\n", "\n").replace('\r', "\n");
        let retagged = tags::retag(&jinja);
        let mut environment = environment::environment();
        with_stack(|| environment.add_template_owned(NAME, retagged.source))?
            .map_err(|e| failed(&e, "is not valid Jinja", HELP))?;
        Ok(Self {
            environment: Arc::new(environment),
            source: source.into(),
            tokens: tokens.into_iter().collect(),
            marks_answers: retagged.marks,
        })
    }

    /// Gemma 3's format, with its tokens `<bos>` and `<end_of_turn>`.
    ///
    /// # Errors
    /// None in practice: the template comes with this crate, and a test compiles it.
    pub fn gemma() -> Result<Self> {
        Self::new(GEMMA, "<bos>", "<end_of_turn>")
    }

    /// The template's text, to be saved beside the model.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template marks what the assistant says with `{% generation %}` tags.
    pub fn marks_answers(&self) -> bool {
        self.marks_answers
    }

    /// Writes a conversation as the model reads it; with `add_generation_prompt`, up to where the
    /// model's answer begins. Special tokens are in the text: encode it without adding more.
    ///
    /// # Errors
    /// [`Error::Model`] if there are no messages, if the template refuses them (as Gemma's does
    /// when user and assistant do not take turns), or if it is at fault itself: it does not end, or
    /// calls what transformers does not have.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_marked(messages, add_generation_prompt).map(|rendered| rendered.text)
    }

    fn render_marked(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Rendered> {
        if messages.is_empty() {
            return Err(Error::model("chat template", "there are no messages to render", TURNS));
        }
        let message = |m: &Message| context! { role => role_name(m.role), content => m.content.as_str() };
        self.render_values(messages.iter().map(message).collect(), add_generation_prompt)
    }

    /// The text of a whole conversation, and the byte ranges of what the assistant says in it: what
    /// `{% generation %}` tags mark, or without them each answer from the end of the generation prompt to
    /// the end of its turn.
    ///
    /// # Errors
    /// As [`Self::render`], and [`Error::Model`] if the template writes the beginning of a conversation
    /// otherwise than the whole.
    pub(crate) fn render_answers(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        let Rendered { text, mut spans } = self.render_marked(messages, false)?;
        if self.marks_answers {
            return Ok((text, spans));
        }
        for (i, _) in messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant) {
            let start = match &messages[..i] {
                [] => String::new(),
                before => self.render(before, true)?,
            };
            let end =
                if i + 1 == messages.len() { text.clone() } else { self.render(&messages[..=i], false)? };
            if i == 0 || !end.starts_with(&start) || !text.starts_with(&end) {
                let problem = format!(
                    "without {{% generation %}} tags it does not show where the answer in message {i} is: the \
                     conversation up to there is written otherwise"
                );
                return Err(Error::model("chat template", problem, TAGS));
            }
            spans.push(start.len()..end.len());
        }
        Ok((text, spans))
    }

    fn render_values(&self, messages: Vec<Value>, add_generation_prompt: bool) -> Result<Rendered> {
        let given: usize =
            messages.iter().filter_map(|m| m.get_attr("content").ok()?.as_str().map(str::len)).sum();
        let values = context! {
            messages => messages,
            add_generation_prompt => add_generation_prompt,
            tools => (),
            documents => (),
            ..Value::from_pairs(self.tokens.iter().map(|(name, text)| (name.as_str(), text.as_str())))
        };
        let template =
            self.environment.get_template(NAME).map_err(|e| failed(&e, "is missing", OTHER_TEMPLATE))?;
        let render = || {
            let mut page = page::Page::new(LONGEST + TIMES * given);
            template.render_captured_to(values, &mut page).map(drop).map(|()| page.finish())
        };
        // As deep as its expressions can be chained.
        let made = if self.source.len() > LONG_SOURCE { with_stack(render)? } else { render() };
        made.map(|(text, spans)| Rendered { text, spans }).map_err(|error| refusal(&error))
    }
}

/// Runs `f` where it may go deep: a long chain of operators is taken apart link in link.
fn with_stack<R: Send>(f: impl FnOnce() -> R + Send) -> Result<R> {
    const BYTES: usize = 512 << 20;
    let spawned = std::thread::scope(|scope| {
        std::thread::Builder::new().stack_size(BYTES).spawn_scoped(scope, f).map(|thread| thread.join())
    });
    match spawned {
        Ok(Ok(made)) => Ok(made),
        _ => Err(Error::model("chat template", "there is no memory to compile it", "Close other programs")),
    }
}

const TURNS: &str = "Give at most one system message, first, and then user and assistant in turn";
const TAGS: &str = "Put {% generation %} and {% endgeneration %} around answers in the template, or set assistant_only_loss: false";
const OTHER_TEMPLATE: &str = "The template is at fault, not the messages: take the one of the original model";

/// Whose fault it is that a template gives up.
fn refusal(error: &minijinja::Error) -> Error {
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.is::<environment::Raised>() {
            return failed(error, "refuses these messages", TURNS);
        }
        if let Some(cause) = cause.downcast_ref::<minijinja::Error>()
            && matches!(cause.kind(), ErrorKind::OutOfFuel | ErrorKind::WriteFailure)
        {
            return endless(cause);
        }
        source = cause.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel | ErrorKind::WriteFailure => endless(error),
        _ => failed(error, "cannot be rendered", OTHER_TEMPLATE),
    }
}

fn endless(error: &minijinja::Error) -> Error {
    let problem = "does not end, or writes far more than it is given";
    Error::model(place(error), problem, OTHER_TEMPLATE)
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

fn place(error: &minijinja::Error) -> String {
    error.line().map_or_else(|| "chat template".to_owned(), |line| format!("chat template, line {line}"))
}

fn failed(error: &minijinja::Error, what: &str, help: &str) -> Error {
    let said = match (error.kind(), error.detail()) {
        (ErrorKind::SyntaxError | ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    let said = said.trim_end_matches('.').replace(['\n', '\r'], " ");
    Error::model(place(error), format!("{what}: {said}"), help)
}

#[cfg(test)]
mod tests;
