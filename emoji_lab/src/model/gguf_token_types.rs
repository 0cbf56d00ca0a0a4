//! What the tokens of a GGUF's list are, and in which order they are merged; told by the tokens
//! themselves where a file says nothing of it, or the same of all.

use super::gguf_tokenizer::TokenList;

/// llama.cpp's token types.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
pub(super) const BYTE: i64 = 6;

/// Control tokens that `tokenizer.json` marks as special, so that decoding can leave them out.
pub(super) const SPECIAL: [&str; 5] =
    ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"];

/// The tokens' types: the file's own, except for those that every Gemma has as control tokens, or told
/// by place and spelling. Before the bytes a Gemma vocabulary has what is matched as a whole
/// (control tokens, runs of newlines and spaces, tags), after them what is merged.
pub(super) fn types(list: &TokenList) -> Vec<i64> {
    let said = list.types.filter(|types| types.iter().any(|kind| *kind != types[0]));
    let ids = [Some(list.bos), Some(list.eos), Some(list.pad), list.unk];
    let is_control = |id: usize, token: &str| {
        SPECIAL.contains(&token)
            || ["<bos>", "<eos>", "<pad>", "<unk>", "<mask>"].contains(&token)
            || ids.iter().any(|known| known.is_some_and(|known| known as usize == id))
    };
    let first_byte = list.tokens.iter().position(|token| is_byte(token)).unwrap_or(0);
    let tokens = list.tokens.iter().enumerate();
    tokens
        .map(|(id, token)| match said.map(|types| types[id]) {
            Some(UNKNOWN | UNUSED) => CONTROL,
            Some(NORMAL) | None if is_control(id, token) => CONTROL,
            Some(kind) => kind,
            None if is_byte(token) => BYTE,
            None if token.starts_with("<unused") && token.ends_with('>') => CONTROL,
            None if id < first_byte => USER_DEFINED,
            None => NORMAL,
        })
        .collect()
}

/// The tokens' scores: the file's own, or by the order of the ids.
pub(super) fn scores(list: &TokenList, types: &[i64]) -> Vec<f32> {
    let merged = |id: &usize| types[*id] == NORMAL;
    let said = list.scores.filter(|scores| {
        let mut known = (0..scores.len()).filter(merged).map(|id| scores[id]);
        let first = known.next();
        known.any(|score| Some(score) != first)
    });
    match said {
        Some(scores) => scores.to_vec(),
        None => (0..list.tokens.len()).map(|id| -(id as f32)).collect(),
    }
}

/// Whether a token stands for one byte: `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}
