//! The model's tokenizer: `tokenizer.json`, its special tokens and its chat template.

mod config;
mod files;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::constrained::Spellings;
use crate::data::{ChatTemplate, Message};
use crate::error::{Error, Result};
use config::{template_source, template_tokens};
pub(crate) use files::{TokenizerFiles, write_json};
use files::{parse_object, parse_tokenizer};

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
