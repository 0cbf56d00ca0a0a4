//! The base model and the tuned one, asked the same.

use crate::display::{Comparison, ComparisonRow};
use crate::error::Result;
use crate::model::{GenerationConfig, Model, generate};
use crate::task::Task;

/// Asks both models the same texts, as the task puts them, side by side.
///
/// # Errors
/// As [`generate`].
pub fn compare<S: AsRef<str>>(
    task: &Task,
    base: &Model,
    tuned: &Model,
    texts: &[S],
    config: &GenerationConfig,
) -> Result<Comparison> {
    let mut rows = Vec::with_capacity(texts.len());
    for text in texts {
        let text = text.as_ref();
        let messages = task.prompt(text);
        rows.push(ComparisonRow {
            prompt: text.to_string(),
            base: generate(base, &messages, config)?,
            tuned: generate(tuned, &messages, config)?,
            expected: None,
        });
    }
    Ok(Comparison { rows })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Conversation, Message};
    use crate::device::Device;
    use crate::model::load_model;
    use crate::train::{SftConfig, tokens_in_training};
    use serde_json::{Value, json};

    const ANSWER: &str =
        "hi\nEVCXR_PANIC_NOTIFICATION\nEVCXR_BEGIN_CONTENT text/html\n<img src=x>\u{1b}[8m\u{202e}\rgone";

    /// The embedded model with a tokenizer that makes [`ANSWER`] of all that it decodes, and has a
    /// token named like a word of the kernel's; a template that says it, too.
    fn hostile(folder: &std::path::Path) -> Model {
        let tiny = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny"));
        for file in std::fs::read_dir(tiny).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
        let path = folder.join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let token = tokenizer["added_tokens"].as_array_mut().unwrap().last_mut().unwrap();
        let (name, id) = (token["content"].as_str().unwrap().to_string(), token["id"].clone());
        token["content"] = json!("EVCXR_PANIC_NOTIFICATION");
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocab.remove(&name);
        vocab.insert("EVCXR_PANIC_NOTIFICATION".into(), id);
        tokenizer["decoder"]["decoders"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "Replace", "pattern": {"Regex": "(?s)^.+$"}, "content": ANSWER}));
        std::fs::write(&path, tokenizer.to_string()).unwrap();
        let turn = "<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n{{ m.content }}";
        let template = format!(
            "{{{{ bos_token }}}}{{% for m in messages %}}{turn}{ANSWER}<end_of_turn>\n{{% endfor %}}\
             {{% if add_generation_prompt %}}<start_of_turn>model\n{{% endif %}}"
        );
        std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
        load_model(folder.to_str().unwrap(), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_hostile_models_answers_and_tokens_are_shown_as_text() {
        let folder = tempfile::tempdir().unwrap();
        let model = hostile(folder.path());
        let config = GenerationConfig { max_new_tokens: 4, ..Default::default() };
        let comparison = compare(&Task::emoji(), &model, &model, &[ANSWER, "שלום"], &config).unwrap();
        // What was asked and answered is kept as it is; showing it makes it plain.
        assert_eq!((comparison.rows[0].prompt.as_str(), comparison.rows[1].tuned.as_str()), (ANSWER, ANSWER));

        let conversation =
            Conversation { messages: vec![Message::user(ANSWER), Message::assistant("🏖️")] };
        let strip = tokens_in_training(&conversation, &model.tokenizer, &SftConfig::default()).unwrap();
        let table = (comparison.to_text(), comparison.to_html(), comparison.to_string());
        for shown in [table.0, table.1, table.2, strip.to_text(), strip.to_html(), conversation.to_string()] {
            assert!(!shown.contains("EVCXR_") && shown.contains("PANIC_NOTIFICATION"), "{shown}");
            assert!(
                !shown.contains(['\u{1b}', '\u{202e}', '\r']) && !shown.contains("<img src=x>\u{1b}"),
                "{shown}"
            );
        }
        assert!(
            !comparison.to_html().contains("<img") && comparison.to_html().contains("&lt;img src=x&gt;␛[8m")
        );
    }
}
