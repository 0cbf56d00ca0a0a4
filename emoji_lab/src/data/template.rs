//! A model's own chat template (Jinja), rendered as transformers' `apply_chat_template` does.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::chat::{Message, Role};
use crate::error::{Error, Result};

/// Gemma 3's format in a template of our own, for models that come without one (a GGUF file).
const GEMMA: &str = include_str!("../../assets/gemma3_chat_template.jinja");
const NAME: &str = "chat_template";

/// A compiled chat template, with the special tokens it writes.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    bos_token: String,
    eos_token: String,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("source", &format_args!("{} characters", self.source.chars().count()))
            .field("bos_token", &self.bos_token)
            .field("eos_token", &self.eos_token)
            .finish()
    }
}

impl ChatTemplate {
    /// Compiles `source` as transformers does: Jinja with `trim_blocks` and `lstrip_blocks`,
    /// Python's string, list and dict methods, and `raise_exception`.
    ///
    /// # Errors
    /// [`Error::Model`] with the line if `source` is not valid Jinja.
    pub fn new(
        source: impl Into<String>,
        bos_token: impl Into<String>,
        eos_token: impl Into<String>,
    ) -> Result<Self> {
        let source: String = source.into();
        let mut environment = Environment::new();
        // Delimiters stay at their defaults, so that this cannot fail.
        if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
            environment.set_syntax(syntax);
        }
        environment.set_unknown_method_callback(|state, value, method, arguments| {
            match (method, value.as_str(), arguments) {
                ("strip", Some(text), []) => Ok(python_strip(text.into(), None).into()),
                _ => unknown_method_callback(state, value, method, arguments),
            }
        });
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("trim", python_strip);
        environment.add_template_owned(NAME, source.clone()).map_err(|e| {
            failed(&e, "is not valid Jinja", "Take chat_template from the model's tokenizer_config.json")
        })?;
        Ok(Self {
            environment: Arc::new(environment),
            source: source.into(),
            bos_token: bos_token.into(),
            eos_token: eos_token.into(),
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

    /// Writes a conversation as the model reads it; with `add_generation_prompt`, up to where the
    /// model's answer begins. Special tokens are in the text: encode it without adding more.
    ///
    /// # Errors
    /// [`Error::Model`] if there are no messages or the template refuses them (as Gemma's does
    /// when user and assistant do not take turns).
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        const HELP: &str = "Give at most one system message, first, and then user and assistant in turn";
        if messages.is_empty() {
            return Err(Error::model("chat template", "there are no messages to render", HELP));
        }
        let message = |m: &Message| context! { role => role_name(m.role), content => m.content.as_str() };
        let values = context! {
            messages => messages.iter().map(message).collect::<Vec<Value>>(),
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            tools => (),
            documents => (),
        };
        let template = self.environment.get_template(NAME).map_err(|e| failed(&e, "is missing", HELP))?;
        template.render(values).map_err(|e| failed(&e, "refuses these messages", HELP))
    }
}

/// Python's `str.strip`: without `chars`, Unicode white space and four control characters that
/// Rust does not count as such.
fn python_strip(text: Cow<'_, str>, chars: Option<Cow<'_, str>>) -> String {
    let strips = |c: char| match &chars {
        Some(chars) => chars.contains(c),
        None => c.is_whitespace() || ('\x1c'..='\x1f').contains(&c),
    };
    text.trim_matches(strips).to_owned()
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}

fn failed(error: &minijinja::Error, what: &str, help: &str) -> Error {
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let said = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let said = said.trim_end_matches('.').replace('\n', " ");
    Error::model(format!("chat template{line}"), format!("{what}: {said}"), help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Conversation;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/text/chat.jsonl");

    fn check_golden(template: &ChatTemplate) {
        let lines = std::fs::read_to_string(GOLDEN).unwrap();
        let mut checked = 0;
        for line in lines.lines() {
            let golden: serde_json::Value = serde_json::from_str(line).unwrap();
            let conversation: Conversation = serde_json::from_str(line).unwrap();
            assert_eq!(template.render(&conversation.messages, false).unwrap(), golden["text"]);
            assert_eq!(template.render(&conversation.prompt(), true).unwrap(), golden["prompt"]);
            checked += 1;
        }
        assert!(checked > 50, "{GOLDEN} has {checked} lines");
    }

    #[test]
    fn our_gemma_template_writes_the_golden_text() {
        check_golden(&ChatTemplate::gemma().unwrap());
    }

    #[test]
    fn gemmas_own_template_writes_the_golden_text() {
        let path = crate::settings::setting("EMOJI_LAB_TOKENIZER_CONFIG", "");
        let Ok(config) = std::fs::read_to_string(&path) else {
            println!("skipped: EMOJI_LAB_TOKENIZER_CONFIG names no tokenizer_config.json of Gemma 3");
            return;
        };
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let source = config["chat_template"].as_str().unwrap();
        let template = ChatTemplate::new(source, "<bos>", "<eos>").unwrap();
        check_golden(&template);
        let ours = ChatTemplate::gemma().unwrap();
        let (system, user) = (|| Message::system("\n s "), || Message::user("\u{1c}\u{85}u\u{a0}\n"));
        let model = || Message::assistant(" a<>&\"' {{ x }} ");
        for messages in [
            vec![user()],
            vec![system(), user(), model(), user()],
            vec![user(), model(), user(), model()],
            vec![system()],
            vec![model()],
            vec![user(), user()],
            vec![user(), system()],
            vec![system(), system()],
            vec![Message::user("")],
        ] {
            for prompt in [false, true] {
                let (a, b) = (template.render(&messages, prompt), ours.render(&messages, prompt));
                assert_eq!(a.ok(), b.ok(), "{messages:?}");
            }
        }
    }

    #[test]
    fn turns_that_do_not_alternate() {
        let template = ChatTemplate::gemma().unwrap();
        let error = template.render(&[Message::user("a"), Message::user("b")], true).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("Conversation roles must alternate user/assistant"), "{said}");
        assert_eq!(said.lines().count(), 1);
        assert!(template.render(&[], true).unwrap_err().to_string().contains("no messages"));
    }

    #[test]
    fn templates_that_are_no_templates() {
        let error = ChatTemplate::new("{{ bos_token }}\n{% for %}", "", "").unwrap_err().to_string();
        assert!(error.starts_with("model chat template, line 2: is not valid Jinja: "), "{error}");
    }

    #[test]
    fn blocks_leave_no_white_space_and_python_methods_work() {
        let source = "  {% for m in messages %}\n{{ m.role.upper() }}:{{ m['content'].strip() }}{{ eos_token }}\n  {% endfor %}\n";
        let template = ChatTemplate::new(source, "<b>", "</s>").unwrap();
        let text = template.render(&[Message::user(" a "), Message::assistant("b")], false).unwrap();
        assert_eq!(text, "USER:a</s>\nASSISTANT:b</s>\n");
        assert_eq!(template.source(), source);
    }

    #[test]
    fn can_be_kept_in_a_cell_and_shared() {
        fn owned<T: Clone + fmt::Debug + Send + Sync + 'static>(_: &T) {}
        let template = ChatTemplate::gemma().unwrap();
        owned(&template);
        assert!(format!("{template:?}").len() < 200);
    }
}
