//! The model's tokenizer: `tokenizer.json`, its special tokens and its chat template.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::constrained::Spellings;
use crate::data::{ChatTemplate, Message};
use crate::error::{Error, Result};
use crate::files::{write_bytes_atomic, write_into_dir};
use crate::sniff::read_text;

/// The tokens that end an answer of Gemma's: end of sequence, and end of a turn of the chat.
const EOS: &str = "<eos>";
const END_OF_TURN: &str = "<end_of_turn>";

/// How many added tokens (such as `<image_soft_token>`) may lie beyond the embedding's rows; with
/// more of them tokenizer and model are not of one make.
const MOST_WITHOUT_ROW: usize = 64;

/// A model's tokenizer. Clones share one vocabulary, so they cost nothing.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    /// `tokenizer_config.json`, as it is written again.
    config: Arc<Map<String, Value>>,
    template: ChatTemplate,
    origin: Arc<str>,
    /// Rows of the model's embedding, once known: an id from there on is no token of the model.
    rows: Option<usize>,
    bos: u32,
    eos: u32,
    pad: u32,
    end_of_turn: Option<u32>,
    stop: Vec<u32>,
    spellings: Spellings,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("origin", &self.origin)
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and, where they are there,
    /// `chat_template.jinja` and `special_tokens_map.json` from a transformers folder.
    ///
    /// A template in `chat_template.jinja` wins over one in `tokenizer_config.json` (where it may be
    /// a text, or a list of named ones of which `default` counts), that one over one in
    /// `chat_template.json`, which only processors read. Templates in `additional_chat_templates/` are
    /// for other purposes, as tools. Without any, Gemma's own is used (a base model has none).
    ///
    /// # Errors
    /// [`Error::Model`] or [`Error::Io`] that names the missing or damaged file.
    pub fn from_dir(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            let help = match super::folder::in_place_of(folder, "tokenizer.json") {
                Some(help) => help,
                None if folder.join("tokenizer.model").is_file() => {
                    "tokenizer.model alone is not read here: save the tokenizer with transformers once"
                        .to_string()
                }
                None => "Fetch or save the whole model folder".to_string(),
            };
            return Err(Error::model(folder.display(), "no tokenizer.json in the folder", help));
        }
        let read = |name: &str| -> Result<Option<String>> {
            let path = folder.join(name);
            if !path.is_file() {
                return Ok(None);
            }
            read_text(&path).map(Some)
        };
        let object = |name: &str| -> Result<Map<String, Value>> {
            let Some(text) = read(name)? else { return Ok(Map::new()) };
            parse_object(&text, &folder.join(name).display().to_string())
        };
        let mut config = object("tokenizer_config.json")?;
        for (key, value) in object("special_tokens_map.json")? {
            config.entry(key).or_insert(value);
        }
        if let Some(template) = folder_template(folder, &read)? {
            config.insert("chat_template".to_string(), template);
        }
        if config.get("chat_template").is_none_or(Value::is_null)
            && let Some(template) = object("chat_template.json")?.remove("chat_template")
        {
            config.insert("chat_template".to_string(), template);
        }
        let text = read_text(&path)?;
        let origin = path.display().to_string();
        Self::new(parse_tokenizer(text.as_bytes(), &origin)?, config, &origin)
    }

    /// The tokenizer whose `tokenizer.json` and `tokenizer_config.json` are in memory. `origin`
    /// names it in errors.
    ///
    /// # Errors
    /// [`Error::Model`] if one of them is damaged.
    pub fn from_bytes(tokenizer_json: &[u8], tokenizer_config: &str, origin: &str) -> Result<Self> {
        let config = parse_object(tokenizer_config, origin)?;
        Self::new(parse_tokenizer(tokenizer_json, origin)?, config, origin)
    }

    pub(crate) fn new(
        mut inner: tokenizers::Tokenizer,
        config: Map<String, Value>,
        origin: &str,
    ) -> Result<Self> {
        // A tokenizer.json that was saved while it cut or padded would go on doing so.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::model(origin, e, "The tokenizer is damaged"))?;
        let name = |key: &str, default: &str| {
            let value = config.get(key);
            let text = value.and_then(|v| v.as_str().or_else(|| v.get("content")?.as_str()));
            text.unwrap_or(default).to_string()
        };
        let (bos_name, eos_name) = (name("bos_token", "<bos>"), name("eos_token", EOS));
        let id = |token: &str| inner.token_to_id(token);
        let needed = |token: &str| {
            id(token).ok_or_else(|| {
                let help = "A Gemma tokenizer has it: fetch tokenizer.json and tokenizer_config.json again";
                Error::model(origin, format!("the vocabulary has no {token}"), help)
            })
        };
        let bos = needed(&bos_name)?;
        let configured_eos = needed(&eos_name)?;
        // An instruction-tuned model's configuration may name <end_of_turn> here.
        let eos = id(EOS).unwrap_or(configured_eos);
        let end_of_turn = id(END_OF_TURN);
        let pad = id(&name("pad_token", "<pad>")).unwrap_or(eos);
        let stop: BTreeSet<u32> =
            [Some(eos), Some(configured_eos), end_of_turn].into_iter().flatten().collect();
        let template = match template_source(&config, origin)? {
            Some(source) => {
                ChatTemplate::with_tokens(source, template_tokens(&config, &bos_name, &eos_name))?
            }
            None => ChatTemplate::gemma()?,
        };
        Ok(Self {
            inner: Arc::new(inner),
            config: Arc::new(config),
            template,
            origin: origin.into(),
            rows: None,
            bos,
            eos,
            pad,
            end_of_turn,
            stop: stop.into_iter().collect(),
            spellings: Spellings::default(),
        })
    }

    /// The same tokenizer, for a model whose embedding has `rows` rows.
    ///
    /// Gemma's text models share the tokenizer of the multimodal ones, which has one token more
    /// than they have rows (`<image_soft_token>`): encoding that one is then an error, not an index
    /// past the end.
    ///
    /// # Errors
    /// [`Error::Model`] if a token of ordinary text, or more than a few of the added ones, are beyond
    /// the embedding's rows.
    pub fn for_model(mut self, rows: usize) -> Result<Self> {
        let size = self.inner.get_vocab_size(false);
        if size > rows {
            let added = self.inner.get_added_tokens_decoder();
            let beyond = |id: &usize| {
                u32::try_from(*id).is_ok_and(|id| !added.contains_key(&id) && self.token(id).is_some())
            };
            if size - rows > MOST_WITHOUT_ROW || (rows..size).any(|id| beyond(&id)) {
                return Err(Error::model(
                    &self.origin,
                    format!("the tokenizer has {size} tokens, the model's embedding {rows} rows"),
                    "The tokenizer and the model do not belong together",
                ));
            }
        }
        self.rows = Some(rows);
        self.spellings = Spellings::default();
        Ok(self)
    }

    /// The ids of `text`. Nothing is added: a chat template writes `<bos>` itself.
    ///
    /// # Errors
    /// [`Error::Model`] if `text` has a token that the model has no row for.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| self.failed("encoding", e))?;
        self.known(encoding.get_ids())
    }

    /// `ids`, if the model has a row for each.
    fn known(&self, ids: &[u32]) -> Result<Vec<u32>> {
        if let Some(&id) = ids.iter().find(|&&id| self.rows.is_some_and(|rows| id as usize >= rows)) {
            let token = self.token(id).unwrap_or_default();
            return Err(Error::model(
                &self.origin,
                format!("the text has {token} (id {id}), for which the model has no embedding"),
                match token.contains("image") {
                    true => "Take it out of the text: it stands for an image",
                    false => "Take it out of the text, or choose a model whose embedding has a row for it",
                },
            ));
        }
        Ok(ids.to_vec())
    }

    /// The text of `ids`; with `skip_special_tokens`, without `<bos>`, `<end_of_turn>` and the like.
    ///
    /// # Errors
    /// [`Error::Model`] if the decoder fails. Unknown ids are passed over.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.inner.decode(ids, skip_special_tokens).map_err(|e| self.failed("decoding", e))
    }

    /// The text that the model is given for a conversation; with `add_generation_prompt` it ends
    /// where the model's answer begins.
    ///
    /// # Errors
    /// [`Error::Model`] if the template refuses the messages (Gemma's: roles must alternate).
    pub fn apply_chat_template(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.template.render(messages, add_generation_prompt)
    }

    /// [`apply_chat_template`](Self::apply_chat_template) and [`encode`](Self::encode) together.
    ///
    /// # Errors
    /// As those two.
    pub fn encode_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>> {
        self.encode(&self.apply_chat_template(messages, add_generation_prompt)?)
    }

    /// The tokens of a conversation, and for each whether the assistant says it: transformers'
    /// `return_assistant_tokens_mask`.
    ///
    /// What the assistant says is what the template marks with `{% generation %}`; in a template
    /// without the tags, from where the generation prompt ends up to the end of the turn.
    ///
    /// # Errors
    /// As [`encode_chat`](Self::encode_chat), and if a template without the tags writes a
    /// conversation's beginning otherwise than the whole.
    pub fn encode_answers(&self, messages: &[Message]) -> Result<(Vec<u32>, Vec<bool>)> {
        let (text, spans) = self.template.render_answers(messages)?;
        // Unlike `encode_fast` this notes where in the text each token is.
        let encoding = self.inner.encode(text, false).map_err(|e| self.failed("encoding", e))?;
        let ids = self.known(encoding.get_ids())?;
        let said = |(start, end): &(usize, usize)| {
            spans.iter().any(|span| *start < span.end && span.start < *end.max(&(start + 1)))
        };
        Ok((ids, encoding.get_offsets().iter().map(said).collect()))
    }

    /// How many tokens there are, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// End of sequence: `<eos>`, whatever `eos_token` the configuration names.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Padding.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// `<end_of_turn>`, which ends an answer in a chat, if the vocabulary has it.
    pub fn end_of_turn(&self) -> Option<u32> {
        self.end_of_turn
    }

    /// The tokens that end an answer as far as the tokenizer knows: `<eos>`, `<end_of_turn>` and the
    /// configured `eos_token`. What a model stops at is [`Model::stop_ids`](super::Model::stop_ids).
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop
    }

    /// The token with this id, as the vocabulary spells it (`▁` for a space).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token, as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The tokens that texts are made of, as the vocabulary spells them, in no order: special ones are
    /// left out, and those that the model has no row for.
    pub(super) fn text_tokens(&self) -> impl Iterator<Item = (u32, String)> {
        let added = self.inner.get_added_tokens_decoder();
        let rows = self.rows.unwrap_or(usize::MAX);
        let is_text =
            move |id: u32| (id as usize) < rows && !added.get(&id).is_some_and(|token| token.special);
        self.inner
            .get_vocab(true)
            .into_iter()
            .map(|(token, id)| (id, token))
            .filter(move |(id, _)| is_text(*id))
    }

    /// How the words of constraints are spelled in this vocabulary.
    pub(super) fn spellings(&self) -> &Spellings {
        &self.spellings
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and
    /// `chat_template.jinja` into the folder `dir`, for transformers' `AutoTokenizer` and for
    /// [`Tokenizer::from_dir`].
    ///
    /// What else is in `dir`, which is made if it is missing, stays.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written; `dir` is as it was then.
    pub fn save_pretrained(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        write_into_dir(dir, "tokenizer_config.json", |stage| self.write_files(stage))
    }

    /// Writes the files of [`save_pretrained`](Self::save_pretrained) one by one.
    pub(crate) fn write_files(&self, dir: &Path) -> Result<()> {
        let text = self.inner.to_string(false).map_err(|e| self.failed("saving", e))?;
        write_bytes_atomic(dir.join("tokenizer.json"), text.as_bytes())?;

        let mut config = self.config.as_ref().clone();
        let mut special = Map::new();
        for (key, id) in [("bos_token", self.bos), ("eos_token", self.eos), ("pad_token", self.pad)] {
            if let (None, Some(token)) = (config.get(key), self.token(id)) {
                config.insert(key.to_string(), json!(token));
            }
        }
        for key in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            if let Some(value) = config.get(key) {
                special.insert(key.to_string(), value.clone());
            }
        }
        config.entry("tokenizer_class").or_insert_with(|| json!("GemmaTokenizer"));
        // Readers before transformers 4.51 know this place only; later ones prefer the file.
        config.insert("chat_template".to_string(), json!(self.template.source()));
        write_json(&dir.join("tokenizer_config.json"), &Value::Object(config))?;
        write_json(&dir.join("special_tokens_map.json"), &Value::Object(special))?;
        write_bytes_atomic(dir.join("chat_template.jinja"), self.template.source().as_bytes())
    }

    /// The library's own tokenizer.
    pub(crate) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// The model's chat template.
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.template
    }

    fn failed(&self, doing: &str, error: tokenizers::Error) -> Error {
        Error::model(&self.origin, format!("{doing} failed ({error})"), "The tokenizer is damaged")
    }
}

/// Writes `value` the way transformers does: two spaces, a newline at the end.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = format!("{value:#}\n");
    write_bytes_atomic(path, text.as_bytes())
}

/// The template files of a folder: `chat_template.jinja`, or `default.jinja` among the additional ones.
fn folder_template(folder: &Path, read: &dyn Fn(&str) -> Result<Option<String>>) -> Result<Option<Value>> {
    const ADDITIONAL: &str = "additional_chat_templates/default.jinja";
    if let Some(template) = read("chat_template.jinja")? {
        return Ok(Some(json!(template)));
    }
    match folder.join(ADDITIONAL).is_file() {
        true => Ok(read(ADDITIONAL)?.map(|template| json!(template))),
        false => Ok(None),
    }
}

/// The chat template in a `tokenizer_config.json`: a text, or named ones (a list, or an object) of
/// which the one called default counts.
///
/// # Errors
/// [`Error::Model`] if there are templates and none of them is it.
fn template_source<'a>(config: &'a Map<String, Value>, origin: &str) -> Result<Option<&'a str>> {
    let named: Vec<(&str, &str)> = match config.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => return Ok(Some(source)),
        Some(Value::Array(entries)) => entries
            .iter()
            .filter_map(|entry| Some((entry.get("name")?.as_str()?, entry.get("template")?.as_str()?)))
            .collect(),
        Some(Value::Object(entries)) => {
            entries.iter().filter_map(|(name, template)| Some((name.as_str(), template.as_str()?))).collect()
        }
        Some(_) => vec![],
    };
    if let Some((_, source)) = named.iter().find(|(name, _)| *name == "default") {
        return Ok(Some(source));
    }
    let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
    let problem = match names.is_empty() {
        true => "chat_template is neither a text nor a list of named ones".to_owned(),
        false => format!("chat_template has {}, and none that is called default", names.join(", ")),
    };
    Err(Error::model(origin, problem, "Name one of them default, or write it into chat_template.jinja"))
}

/// The special tokens that a chat template can name: transformers' `special_tokens_map`, as
/// `pad_token`, and what a model names beside them in `extra_special_tokens`, as `boi_token`.
fn template_tokens(config: &Map<String, Value>, bos: &str, eos: &str) -> Vec<(String, String)> {
    let text = |value: &Value| Some(value.as_str().or_else(|| value.get("content")?.as_str())?.to_owned());
    let mut tokens = vec![("bos_token".to_owned(), bos.to_owned()), ("eos_token".to_owned(), eos.to_owned())];
    for name in ["unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] {
        tokens.extend(config.get(name).and_then(text).map(|token| (name.to_owned(), token)));
    }
    for key in ["extra_special_tokens", "model_specific_special_tokens"] {
        for (name, token) in config.get(key).and_then(Value::as_object).into_iter().flatten() {
            tokens.extend(text(token).map(|token| (name.clone(), token)));
        }
    }
    tokens
}

fn parse_object(text: &str, origin: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(text)
        .map_err(|e| Error::model(origin, format!("not a JSON object ({e})"), "Fetch the file again"))
}

fn parse_tokenizer(bytes: &[u8], origin: &str) -> Result<tokenizers::Tokenizer> {
    let damaged = |problem: String| Error::model(origin, problem, "Fetch tokenizer.json again");
    // The library indexes by what the file says: a merge longer than every token makes it panic.
    let parsed = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes));
    match parsed {
        Ok(Ok(tokenizer)) => Ok(tokenizer),
        Ok(Err(e)) => Err(damaged(format!("not a tokenizer.json ({e})"))),
        Err(_) => Err(damaged("its vocabulary and merges contradict each other".to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Role;
    use crate::model::gguf_tokenizer::tests::tiny_tokenizer;

    fn messages() -> Vec<Message> {
        let say = |role, content: &str| Message { role, content: content.to_string() };
        vec![
            say(Role::System, "Translate this text to emoji: "),
            say(Role::User, "hello the world"),
            say(Role::Assistant, "🎉🎉"),
        ]
    }

    fn refused(folder: &Path) -> String {
        Tokenizer::from_dir(folder).expect_err("must be refused").to_string()
    }

    #[test]
    fn what_it_saves_it_reads() {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = tiny_tokenizer();
        tokenizer.save_pretrained(folder.path()).unwrap();
        let read = Tokenizer::from_dir(folder.path()).unwrap();
        assert_eq!(read.vocab_size(), 512);
        for text in ["hello the world", "  \n\n\t é", "<bos><unused3>🎉🎉<end_of_turn>"] {
            assert_eq!(read.encode(text).unwrap(), tokenizer.encode(text).unwrap());
        }
        let ids = read.encode_chat(&messages()[..2], true).unwrap();
        assert_eq!(ids, tokenizer.encode_chat(&messages()[..2], true).unwrap());
        assert_eq!((ids[0], ids.iter().filter(|&&id| id == read.bos()).count()), (2, 1));
        assert_eq!(
            read.apply_chat_template(&messages(), false).unwrap(),
            "<bos><start_of_turn>user\nTranslate this text to emoji: \n\nhello the world<end_of_turn>\n\
             <start_of_turn>model\n🎉🎉<end_of_turn>\n"
        );
        assert_eq!((read.bos(), read.eos(), read.pad(), read.end_of_turn()), (2, 1, 0, Some(6)));
        assert_eq!(read.stop_ids(), [1, 6]);
        assert_eq!(read.token_to_id("<unk>"), Some(3));
        // Saving again changes nothing.
        let again = tempfile::tempdir().unwrap();
        read.save_pretrained(again.path()).unwrap();
        for name in
            ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
        {
            let [one, two] = [&folder, &again].map(|dir| std::fs::read(dir.path().join(name)).unwrap());
            assert!(one == two, "{name}");
        }
    }

    #[test]
    fn the_template_file_wins_and_an_eos_of_the_configuration_stops_too() {
        let folder = tempfile::tempdir().unwrap();
        tiny_tokenizer().save_pretrained(folder.path()).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "tokenizer_config.json",
            r#"{"eos_token": {"content": "<mask>"},
            "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "a"}]}"#,
        );
        let tokenizer = Tokenizer::from_dir(folder.path()).unwrap();
        assert_eq!((tokenizer.eos(), tokenizer.stop_ids()), (1, &[1, 4, 6][..]));
        assert_ne!(tokenizer.chat_template().source(), "a");
        std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
        assert_eq!(Tokenizer::from_dir(folder.path()).unwrap().chat_template().source(), "a");
        std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
        let tokenizer = Tokenizer::from_dir(folder.path()).unwrap();
        assert_eq!(tokenizer.chat_template().source(), ChatTemplate::gemma().unwrap().source());
    }

    #[test]
    fn templates_are_found_where_people_have_them() {
        let folder = tempfile::tempdir().unwrap();
        tiny_tokenizer().save_pretrained(folder.path()).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let remove = |name: &str| std::fs::remove_file(folder.path().join(name)).unwrap();
        let source = || Tokenizer::from_dir(folder.path()).map(|t| t.chat_template().source().to_owned());
        std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
        write("additional_chat_templates/tool_use.jinja", "tools");
        write("tokenizer_config.json", r#"{"chat_template": {"tool_use": "x", "default": "object"}}"#);
        write("chat_template.json", r#"{"chat_template": "processor"}"#);
        write("chat_template.jinja", "file");
        assert_eq!(source().unwrap(), "file");
        remove("chat_template.jinja");
        assert_eq!(source().unwrap(), "object");
        write("additional_chat_templates/default.jinja", "additional");
        assert_eq!(source().unwrap(), "additional");
        remove("additional_chat_templates/default.jinja");
        write("tokenizer_config.json", r#"{"chat_template": null}"#);
        assert_eq!(source().unwrap(), "processor");
        write("tokenizer_config.json", r#"{"chat_template": [{"name": "tool_use", "template": "no"}]}"#);
        let said = source().unwrap_err().to_string();
        assert!(said.contains("chat_template has tool_use, and none that is called default"), "{said}");
        write("tokenizer_config.json", r#"{"chat_template": 3}"#);
        assert!(source().unwrap_err().to_string().contains("neither a text nor a list"));
    }

    #[test]
    fn templates_can_name_every_special_token() {
        let folder = tempfile::tempdir().unwrap();
        tiny_tokenizer().save_pretrained(folder.path()).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "chat_template.jinja",
            "{{ bos_token ~ eos_token ~ unk_token ~ mask_token ~ boi_token ~ sep_token }}",
        );
        write(
            "tokenizer_config.json",
            r#"{"unk_token": {"content": "<unk>"}, "mask_token": "<mask>", "sep_token": null,
            "extra_special_tokens": {"boi_token": "<boi>"}}"#,
        );
        std::fs::remove_file(folder.path().join("special_tokens_map.json")).unwrap();
        let text =
            Tokenizer::from_dir(folder.path()).unwrap().apply_chat_template(&messages(), true).unwrap();
        assert_eq!(text, "<bos><eos><unk><mask><boi>");
    }

    #[test]
    fn answers_are_marked_token_by_token() {
        let say = |role, content: &str| Message { role, content: content.to_string() };
        let talk = [
            say(Role::User, "hello the user"),
            say(Role::Assistant, "🎉 hello"),
            say(Role::User, "the"),
            say(Role::Assistant, "é"),
        ];
        let plain = tiny_tokenizer();
        let (ids, said) = plain.encode_answers(&talk).unwrap();
        assert_eq!(ids, plain.encode_chat(&talk, false).unwrap());
        let texts = |said: &[bool]| -> Vec<String> {
            let mut parts = vec![];
            for (i, said_too) in said.iter().enumerate().filter(|(_, said)| **said) {
                match parts.last_mut() {
                    Some(part) if said[i - 1] == *said_too => Vec::push(part, ids[i]),
                    _ => parts.push(vec![ids[i]]),
                }
            }
            parts.iter().map(|ids| plain.decode(ids, false).unwrap()).collect()
        };
        // The é is in no token: every one of its bytes is marked.
        assert_eq!(texts(&said), ["🎉 hello<end_of_turn>\n", "é<end_of_turn>\n"]);
        assert_eq!(texts(&plain.encode_answers(&talk[..3]).unwrap().1), ["🎉 hello<end_of_turn>\n"]);
        assert!(plain.encode_answers(&talk[..1]).unwrap().1.iter().all(|said| !said));
    }

    #[test]
    fn a_token_without_an_embedding_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        tiny_tokenizer().save_pretrained(folder.path()).unwrap();
        let path = folder.path().join("tokenizer.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let image = r#""added_tokens":[{"id":512,"content":"<image_soft_token>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},"#;
        std::fs::write(&path, text.replacen(r#""added_tokens":["#, image, 1)).unwrap();
        let tokenizer = Tokenizer::from_dir(folder.path()).unwrap().for_model(512).unwrap();
        assert_eq!(tokenizer.vocab_size(), 513);
        assert!(tokenizer.encode("hello").is_ok());
        let said = tokenizer.encode("hello <image_soft_token>").unwrap_err().to_string();
        assert!(said.contains("<image_soft_token> (id 512)"), "{said}");
        assert!(tokenizer.for_model(400).unwrap_err().to_string().contains("512 tokens"));
    }

    #[test]
    fn missing_and_damaged_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert!(refused(folder.path()).contains("no tokenizer.json"));
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("tokenizer.json", "{");
        assert!(refused(folder.path()).contains("not a tokenizer.json"));
        // A merge that is longer than every token: the library itself would panic.
        write(
            "tokenizer.json",
            r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],
            "normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,
            "model":{"type":"BPE","vocab":{"ab":0},"merges":[["ab","ab"]]}}"#,
        );
        assert!(refused(folder.path()).contains("contradict each other"));
        tiny_tokenizer().save_pretrained(folder.path()).unwrap();
        write("tokenizer_config.json", "[]");
        assert!(refused(folder.path()).contains("tokenizer_config.json"));
        write("tokenizer_config.json", r#"{"bos_token": "<start>"}"#);
        assert!(refused(folder.path()).contains("no <start>"));
    }

    #[test]
    fn a_saved_tokenizer_neither_cuts_nor_pads() {
        let mut inner =
            parse_tokenizer(tiny_tokenizer().inner.to_string(false).unwrap().as_bytes(), "t").unwrap();
        inner.with_padding(Some(Default::default()));
        inner
            .with_truncation(Some(tokenizers::TruncationParams { max_length: 2, ..Default::default() }))
            .unwrap();
        let tokenizer = Tokenizer::new(inner, Map::new(), "t").unwrap();
        assert!(tokenizer.encode("hello the world hello").unwrap().len() > 2);
    }

    #[test]
    fn can_be_shared_between_threads() {
        fn check<T: Send + Sync + Clone + std::fmt::Debug>(_: &T) {}
        check(&tiny_tokenizer());
        assert!(format!("{:?}", tiny_tokenizer()).len() < 200);
    }
}
