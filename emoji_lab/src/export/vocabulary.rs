//! A tokenizer as a GGUF lists it: tokens, scores, types.
//!
//! llama.cpp's `llama` tokenizer knows no merges. Of all pairs of neighbours whose text is a token it
//! joins the one with the highest score, the left one of equals. So each token's score says when the
//! first merge that makes it comes: minus its place among the tokens that are merged, and after them
//! the characters in the order of their ids. For Gemma 3 these are the numbers of Google's own file.
//!
//! What llama.cpp cannot do as `tokenizer.json` does: a run of `▁` that a text itself has, and not
//! blanks, is no token to it. It looks for runs of blanks in the text as it is, before they become `▁`.

use std::collections::HashMap;

use rayon::prelude::*;
use serde::Deserialize;
use serde_json::json;

use crate::error::{Error, Result};
use crate::model::Tokenizer;

/// llama.cpp's token types.
const NORMAL: u32 = 1;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;
const UNUSED: u32 = 5;
const BYTE: u32 = 6;

/// The score of what is never merged.
const NEVER: f32 = -1000.0;

/// What a GGUF keeps of a tokenizer.
pub(super) struct Vocabulary {
    /// One for each row of the embedding.
    pub(super) tokens: Vec<String>,
    pub(super) scores: Vec<f32>,
    pub(super) types: Vec<u32>,
    /// The token for what has none.
    pub(super) unknown: Option<u32>,
    /// Pairs of tokens whose text is a token and that the tokenizer does not merge, while llama.cpp
    /// does. None in Gemma's own.
    pub(super) more_pairs: usize,
}

/// The `model` of a `tokenizer.json`, as far as it is asked for; the crate shows it in no other way.
#[derive(Deserialize)]
struct Bpe {
    #[serde(rename = "type")]
    kind: String,
    unk_token: Option<String>,
    byte_fallback: bool,
    merges: Vec<(String, String)>,
}

/// The vocabulary of `tokenizer` for a model with `rows` rows. `origin` names the model in errors.
///
/// # Errors
/// [`Error::Model`] if the tokenizer is not in Gemma's form, which is the one that llama.cpp's `llama`
/// tokenizer repeats.
pub(super) fn vocabulary(tokenizer: &Tokenizer, rows: usize, origin: &str) -> Result<Vocabulary> {
    let refused = |what: &str| {
        let help = "Export a model with Gemma's own tokenizer";
        Error::model(origin, format!("the tokenizer {what}, which a GGUF of Gemma's kind cannot say"), help)
    };
    let inner = tokenizer.inner();
    let text = serde_json::to_string(inner.get_model()).map_err(|e| refused(&format!("is odd ({e})")))?;
    let bpe: Bpe = serde_json::from_str(&text).map_err(|_| refused("is no BPE"))?;
    drop(text);
    if bpe.kind != "BPE" || !bpe.byte_fallback {
        return Err(refused("is no BPE with bytes to fall back on"));
    }
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    if serde_json::to_value(inner.get_normalizer()).ok() != Some(spaces) {
        return Err(refused("changes texts otherwise than by ▁ for a space"));
    }
    let mut spelled = vec![None; rows];
    let ids = inner.get_vocab(true);
    for (token, &id) in &ids {
        // Tokens beyond the rows, as <image_soft_token>, are none of the model's.
        if let Some(place) = spelled.get_mut(id as usize) {
            *place = Some(token.as_str());
        }
    }
    let added = inner.get_added_tokens_decoder();
    let types = (0..).zip(&spelled).map(|(id, token)| match token {
        None => UNUSED,
        Some(token) => match added.get(&id) {
            Some(about) if about.special || is_set_aside(token) => CONTROL,
            Some(_) => USER_DEFINED,
            None if is_byte(token) => BYTE,
            None => NORMAL,
        },
    });
    let types: Vec<u32> = types.collect();
    let id_of = |text: &str| ids.get(text).copied().filter(|id| (*id as usize) < rows);
    let scores = scores(&bpe.merges, &types, &id_of);
    let more_pairs = pairs(&spelled, &types, &id_of).saturating_sub(bpe.merges.len());
    let unknown = bpe.unk_token.as_deref().and_then(id_of);
    let token = |(id, token): (usize, &Option<&str>)| match token {
        // As llama.cpp's own converter names rows that only fill up.
        None => format!("[PAD{id}]"),
        // What is matched as a whole is matched before spaces become ▁.
        Some(token) if types[id] == USER_DEFINED => token.replace('▁', " "),
        Some(token) => (*token).to_string(),
    };
    let tokens = spelled.iter().enumerate().map(token).collect();
    Ok(Vocabulary { tokens, scores, types, unknown, more_pairs })
}

/// Added tokens that no text is meant to have, although `tokenizer.json` does not call them special.
fn is_set_aside(token: &str) -> bool {
    token == "<mask>" || token.strip_prefix("<unused").is_some_and(|rest| rest.ends_with('>'))
}

/// Whether a token stands for one byte: `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

fn scores(
    merges: &[(String, String)],
    types: &[u32],
    id_of: &(impl Fn(&str) -> Option<u32> + Sync),
) -> Vec<f32> {
    let made: Vec<Option<u32>> =
        merges.par_iter().map(|(left, right)| id_of(&format!("{left}{right}"))).collect();
    let mut first = HashMap::new();
    for (rank, id) in made.into_iter().enumerate() {
        if let Some(id) = id {
            first.entry(id as usize).or_insert(rank);
        }
    }
    let normal = || (0..types.len()).filter(|id| types[*id] == NORMAL);
    let mut order: Vec<usize> = normal().filter(|id| first.contains_key(id)).collect();
    order.sort_by_key(|id| first[id]);
    order.extend(normal().filter(|id| !first.contains_key(id)));
    let mut scores: Vec<f32> = types.iter().map(|kind| if *kind == BYTE { 0.0 } else { NEVER }).collect();
    for (place, id) in order.into_iter().enumerate() {
        scores[id] = -(place as f32);
    }
    scores
}

/// How many ways there are to cut a token into two tokens.
fn pairs(spelled: &[Option<&str>], types: &[u32], id_of: &(impl Fn(&str) -> Option<u32> + Sync)) -> usize {
    let merged = |(token, kind): (&Option<&str>, &u32)| match kind {
        &CONTROL | &BYTE | &UNUSED => 0,
        _ => {
            let text = token.unwrap_or_default();
            let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
            cuts.filter(|(left, right)| id_of(left).is_some() && id_of(right).is_some()).count()
        }
    };
    spelled.par_iter().zip(types).map(merged).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf::writer::tiny_tokens;
    use crate::model::gguf_tokenizer::tests::tiny_tokenizer;
    use crate::model::open_pretrained;

    #[test]
    fn what_was_made_from_a_list_gives_the_list() {
        let (tokens, scores, types) = tiny_tokens();
        let list = vocabulary(&tiny_tokenizer(), 512, "tiny").unwrap();
        assert_eq!((list.tokens, list.unknown, list.more_pairs), (tokens, Some(3), 0));
        assert_eq!(list.types.iter().map(|kind| i64::from(*kind)).collect::<Vec<_>>(), types);
        // Scores rank the same; which numbers they are does not matter.
        let ranked = |scores: &[f32]| {
            let mut ids: Vec<usize> = (0..512).filter(|id| types[*id] == 1).collect();
            ids.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            ids
        };
        assert_eq!(ranked(&list.scores), ranked(&scores));
        assert!((0..512).all(|id| types[id] == 1 || list.scores[id] == scores[id]));
    }

    #[test]
    fn scores_fall_with_the_first_merge_and_characters_come_last() {
        let model = open_pretrained("embedded").unwrap();
        let list = vocabulary(&model.tokenizer, 2048, "embedded").unwrap();
        let score = |token: &str| list.scores[list.tokens.iter().position(|t| t == token).unwrap()];
        assert_eq!((score("▁t"), score("▁a"), score("he")), (0.0, -1.0, -2.0));
        assert!(score("▁the") < score("he") && score("t") < score("orange"));
        assert_eq!((score("<bos>"), score("\n\n"), score("<0x0A>")), (-1000.0, -1000.0, 0.0));
        let merged: Vec<f32> =
            (0..2048).filter(|id| list.types[*id] == NORMAL).map(|id| list.scores[id]).collect();
        let mut distinct = merged.clone();
        distinct.sort_by(f32::total_cmp);
        distinct.dedup();
        assert_eq!(distinct.len(), merged.len());
    }

    #[test]
    fn rows_without_a_token_are_filled_up_and_tokens_without_a_row_left_out() {
        let more = vocabulary(&tiny_tokenizer(), 514, "tiny").unwrap();
        assert_eq!(more.tokens[511..], ["<unused154>".to_string(), "[PAD512]".into(), "[PAD513]".into()]);
        assert_eq!(more.types[511..], [CONTROL, UNUSED, UNUSED]);
        let fewer = vocabulary(&tiny_tokenizer(), 500, "tiny").unwrap();
        assert_eq!((fewer.tokens.len(), fewer.scores.len(), fewer.types.len()), (500, 500, 500));
    }
}
