//! `page.json`, and the texts that a page is made of: whatever a person or a model calls itself stays data.

use serde_json::{Map, Value, json};

use super::WebConfig;
use super::engine::{Engine, ModelFile};
use super::library::{Library, Package, Part, Release};
use crate::data::Message;
use crate::error::{Error, Result};
use crate::export::metadata::name_of;
use crate::model::Model;

/// What the page looks for in `page.json`, and an export before it writes over a page.
pub(super) const FORMAT: &str = "emoji_lab page 1";
/// A placeholder: letters, so that no template changes it.
const PLACE: &str = "EmojiLabPromptPlace";

/// `page.json` of a page for `model`, which lies in these files.
pub(super) fn settings(
    model: &Model,
    config: &WebConfig,
    release: &Release,
    of_model: &[ModelFile],
) -> Result<Value> {
    let (before, after) = prompt(model, &config.task.system_prompt)?;
    let (name, link) = name(model, config);
    let (terms, terms_url) = terms(model, config);
    let linked = config.library == Library::Link;
    let url = |package: &Package, part: &Part| match linked {
        true => package.link(part),
        false => part.file.to_string(),
    };
    let mut files = Map::new();
    for (package, part) in release.parts().filter(|(_, part)| !part.key.is_empty()) {
        let file = json!({"url": url(package, part), "integrity": part.integrity});
        files.insert(part.key.to_string(), file);
    }
    let licence = release.parts().find(|(_, part)| part.key.is_empty());
    let licence = licence.map(|(package, part)| url(package, part)).unwrap_or_default();
    let mut of_engine = json!({
        "name": name, "url": link, "kind": config.engine.to_string(),
        "bytes": of_model.iter().map(|file| file.bytes).sum::<u64>(),
        "files": of_model.iter().map(ModelFile::to_json).collect::<Vec<_>>(),
    });
    if let (Some(all), Value::Object(more)) = (of_engine.as_object_mut(), config.engine.settings(model)?) {
        all.extend(more);
    }
    Ok(json!({
        "format": FORMAT,
        "title": title(config),
        "example": config.task.example.trim(),
        "prompt": {"before": before, "after": after},
        "max_new_tokens": config.max_new_tokens,
        "model": of_engine,
        "terms": {"name": terms, "url": terms_url},
        "library": {
            "name": release.name, "version": release.version, "linked": linked, "files": files,
            "licence": {"name": release.licence, "url": licence},
        },
    }))
}

/// What stands before and after a text in a question, as the model's own chat template writes it.
/// `<bos>` is left out: the library puts it there.
fn prompt(model: &Model, system_prompt: &str) -> Result<(String, String)> {
    let tokenizer = &model.tokenizer;
    let mut messages = vec![Message::user(PLACE)];
    if !system_prompt.trim().is_empty() {
        messages.insert(0, Message::system(system_prompt));
    }
    let text = tokenizer.apply_chat_template(&messages, true)?;
    let bos = tokenizer.token(tokenizer.bos()).unwrap_or_default();
    let text = text.strip_prefix(&bos).unwrap_or(&text);
    match text.split_once(PLACE).filter(|(_, after)| !after.contains(PLACE)) {
        Some((before, after)) => Ok((before.to_string(), after.to_string())),
        None => Err(Error::model(
            &model.origin,
            "its chat template does not write a question once and as it is, so that a page cannot ask it",
            "Export it with export_gguf",
        )),
    }
}

/// The heading: as it was given, or what the task does.
pub(super) fn title(config: &WebConfig) -> String {
    let given = config.title.trim();
    if !given.is_empty() {
        return given.to_string();
    }
    let mut letters = config.task.description.trim().chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// What the model is called, and its page on the Hub where an id was given.
fn name(model: &Model, config: &WebConfig) -> (String, String) {
    let given = config.model_name.trim();
    let plain = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    match (given.is_empty(), given.split_once('/')) {
        (true, _) => (name_of(&model.origin).to_string(), String::new()),
        (false, Some((owner, name))) if plain(owner) && plain(name) => {
            (given.to_string(), format!("https://huggingface.co/{given}"))
        }
        (false, _) => (given.to_string(), String::new()),
    }
}

/// The licence's name on the Hub.
pub(super) fn license<'a>(model: &Model, config: &'a WebConfig) -> &'a str {
    match config.license.trim() {
        "" if model.is_embedded() => "apache-2.0",
        "" => "gemma",
        given => given,
    }
}

/// Whose terms the model is under, and where they stand.
fn terms(model: &Model, config: &WebConfig) -> (String, &'static str) {
    match license(model, config) {
        "gemma" => ("Google’s Gemma Terms of Use".to_string(), "https://ai.google.dev/gemma/terms"),
        "apache-2.0" => ("the Apache License 2.0".to_string(), "https://www.apache.org/licenses/LICENSE-2.0"),
        other => (other.to_string(), ""),
    }
}

/// `README.md`: what the folder is, with the front matter that makes a Space of it.
pub(super) fn readme(config: &WebConfig) -> String {
    format!(
        "---\ntitle: {}\nemoji: 💬\ncolorFrom: indigo\ncolorTo: purple\nsdk: static\npinned: false\n\
         # Two headers with which the model may use several threads.\n\
         custom_headers:\n  cross-origin-embedder-policy: require-corp\n  cross-origin-opener-policy: same-origin\n  \
         cross-origin-resource-policy: cross-origin\n---\n\n{README}",
        yaml_string(&title(config))
    )
}

const README: &str = "\
A page with a small language model that runs in the browser of whoever opens it. Here:

```
python3 -m http.server
```

in this folder, then <http://localhost:8000>. On the Hub, as a static Space:

```
hf upload OWNER/NAME . --repo-type space
```

`NOTICE.txt` says whose terms the model and the library are under.
";

/// A text as YAML's double-quoted string, in ASCII: nothing in it ends the line or the string.
fn yaml_string(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        ' '..='~' => c.to_string(),
        _ => format!("\\U{:08X}", u32::from(c)),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// `NOTICE.txt`: whose work lies in the folder.
pub(super) fn notice(model: &Model, config: &WebConfig, release: &Release) -> String {
    let (name, _) = name(model, config);
    let name: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let form = match config.engine {
        Engine::Gguf(_) => "GGUF",
        Engine::Onnx(_) => "ONNX",
    };
    let of_model = match license(model, config) {
        "gemma" => format!(
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n\
             The model's weights have been modified: converted to {form}, and tuned where its name says so.\n"
        ),
        _ => {
            let (terms, url) = terms(model, config);
            format!("It is under {terms}{}{url}\n", if url.is_empty() { "" } else { ": " })
        }
    };
    format!(
        "The model: {name}\n{of_model}\n{}\nThe page itself: emoji_lab, Apache License 2.0\n",
        release.notice
    )
}
