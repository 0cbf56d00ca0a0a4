//! Gemma's tokenizer, rebuilt from what a GGUF keeps of it: the tokens, their scores and types.
//!
//! A `tokenizer.json` lists merges, a GGUF does not. A SentencePiece BPE model merges first the
//! pair whose result has the highest score, so the merges are every split of every token into two
//! tokens, ordered by the score of the whole. For Gemma 3 this gives `tokenizer.json`'s 514,906
//! merges in their order (checked), hence the same ids.

use rayon::prelude::*;
use serde_json::{Map, json};
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BpeBuilder, Merges, Vocab};

use super::gguf_token_types::{BYTE, CONTROL, SPECIAL, USER_DEFINED, scores, types};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// The `tokenizer.ggml.*` metadata.
pub(crate) struct TokenList<'a> {
    pub(crate) tokens: &'a [&'a str],
    /// How early the merge that makes a token is done. Without them (or if they are all the same)
    /// the order of the ids is taken, which in Gemma's vocabulary is that of its scores.
    pub(crate) scores: Option<&'a [f32]>,
    /// llama.cpp's token types. Without them (or if they are all the same) they are told by the
    /// tokens' places and spelling.
    pub(crate) types: Option<&'a [i64]>,
    /// Rows of the embedding: a token from there on cannot be used.
    pub(crate) rows: usize,
    pub(crate) bos: u32,
    pub(crate) eos: u32,
    pub(crate) pad: u32,
    pub(crate) unk: Option<u32>,
    pub(crate) model_max_length: usize,
    pub(crate) chat_template: Option<&'a str>,
}

/// Builds the tokenizer; `origin` names the file in errors.
pub(crate) fn tokenizer_from_list(list: &TokenList, origin: &str) -> Result<Tokenizer> {
    let wrong = |problem: String| Error::model(origin, problem, "Fetch another .gguf of this model");
    let count = list.tokens.len();
    let lengths = [
        ("scores", list.scores.map_or(count, <[f32]>::len)),
        ("token types", list.types.map_or(count, <[i64]>::len)),
    ];
    if lengths.iter().any(|(_, length)| *length != count) {
        let [scores, types] = lengths.map(|(name, length)| format!("{length} {name}"));
        return Err(wrong(format!("it has {count} tokens, {scores} and {types}")));
    }
    let types = types(list);
    let scores = scores(list, &types);
    let spelled: Vec<String> =
        list.tokens.iter().zip(&types).map(|(token, &kind)| spelling(token, kind)).collect();
    // A token of ordinary text that has no row is never made: its parts have rows. Others stay, so
    // that a text with one is an error that names it.
    let usable = |id: usize| id < list.rows || matches!(types[id], CONTROL | USER_DEFINED);
    let ids: Vec<usize> = (0..count).filter(|id| usable(*id)).collect();
    let vocab: Vocab = ids.iter().map(|&id| (spelled[id].clone(), id as u32)).collect();
    if vocab.len() != ids.len() {
        return Err(wrong(format!("{} of its {count} tokens are there twice", ids.len() - vocab.len())));
    }
    let name = |id: u32| spelled.get(id as usize).map(String::as_str);
    let named = |what: &str, id: u32| name(id).ok_or_else(|| wrong(format!("no {what} token {id}")));
    let (bos, eos, pad) = (named("bos", list.bos)?, named("eos", list.eos)?, named("padding", list.pad)?);
    let unk = list.unk.and_then(name).or_else(|| spelled.iter().map(String::as_str).find(|t| *t == "<unk>"));

    let merges = merges(&spelled, &scores, &types, &vocab);
    let mut builder = BpeBuilder::new().vocab_and_merges(vocab, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unk) = unk {
        builder = builder.unk_token(unk.to_string());
    }
    let model = builder.build().map_err(|e| wrong(format!("its tokens do not fit together ({e})")))?;

    let special: Vec<&str> =
        [Some(bos), Some(eos), Some(pad), unk].into_iter().flatten().chain(SPECIAL).collect();
    let mut inner = shell(bos, list.bos, origin)?;
    inner.with_model(model);
    let added = spelled.iter().zip(&types).filter(|(_, kind)| matches!(**kind, CONTROL | USER_DEFINED));
    let added = added.map(|(token, _)| {
        AddedToken::from(token.clone(), special.contains(&token.as_str())).normalized(false)
    });
    inner.add_tokens(added).map_err(|e| wrong(format!("its control tokens do not work ({e})")))?;

    let mut config = Map::new();
    config.insert("add_bos_token".into(), json!(true));
    config.insert("add_eos_token".into(), json!(false));
    config.insert("bos_token".into(), json!(bos));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    config.insert("eos_token".into(), json!(eos));
    config.insert("model_max_length".into(), json!(list.model_max_length));
    config.insert("pad_token".into(), json!(pad));
    config.insert("padding_side".into(), json!("left"));
    config.insert("tokenizer_class".into(), json!("GemmaTokenizer"));
    if let Some(unk) = unk {
        config.insert("unk_token".into(), json!(unk));
    }
    config.insert("use_default_system_prompt".into(), json!(false));
    if let Some(template) = list.chat_template {
        config.insert("chat_template".into(), json!(template));
    }
    Tokenizer::new(inner, config, origin)?.for_model(list.rows)
}

/// A token as `tokenizer.json` spells it. llama.cpp writes the spaces of user-defined tokens out.
fn spelling(token: &str, kind: i64) -> String {
    if kind == USER_DEFINED { token.replace(' ', "▁") } else { token.to_string() }
}

/// Every split of a token into two tokens, best first.
fn merges(spelled: &[String], scores: &[f32], types: &[i64], vocab: &Vocab) -> Merges {
    struct Merge {
        score: f32,
        left_chars: usize,
        right_chars: usize,
        token: usize,
        left_bytes: usize,
    }
    let mut found: Vec<Merge> = spelled
        .par_iter()
        .enumerate()
        .filter(|(id, text)| !matches!(types[*id], CONTROL | BYTE) && vocab.contains_key(text.as_str()))
        .flat_map_iter(|(token, text)| {
            // SentencePiece gives what its user defined the score 0, above every learned token;
            // llama.cpp overwrites that with -1000.
            let score = if types[token] == USER_DEFINED { 0.0 } else { scores[token] };
            let chars = text.chars().count();
            text.char_indices().enumerate().skip(1).filter_map(move |(left_chars, (left_bytes, _))| {
                let (left, right) = text.split_at(left_bytes);
                let known = vocab.contains_key(left) && vocab.contains_key(right);
                known.then_some(Merge {
                    score,
                    left_chars,
                    right_chars: chars - left_chars,
                    token,
                    left_bytes,
                })
            })
        })
        .collect();
    // Among splits of equal score the longer left part comes first, as in tokenizer.json.
    found.par_sort_by(|a, b| {
        let key = |m: &Merge| (m.left_chars, m.right_chars);
        b.score.total_cmp(&a.score).then_with(|| key(b).cmp(&key(a))).then_with(|| a.token.cmp(&b.token))
    });
    found
        .into_par_iter()
        .map(|merge| {
            let (left, right) = spelled[merge.token].split_at(merge.left_bytes);
            (left.to_string(), right.to_string())
        })
        .collect()
}

/// Gemma's `tokenizer.json` without vocabulary, merges and added tokens.
fn shell(bos: &str, bos_id: u32, origin: &str) -> Result<tokenizers::Tokenizer> {
    let special = |type_id: u8| json!({"SpecialToken": {"id": bos, "type_id": type_id}});
    let sequence = |id: &str, type_id: u8| json!({"Sequence": {"id": id, "type_id": type_id}});
    let mut shell = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "},
            "behavior": "MergedWithPrevious", "invert": false},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special(0), sequence("A", 0)],
            "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
            "special_tokens": {},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]},
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    });
    shell["post_processor"]["special_tokens"][bos] = json!({"id": bos, "ids": [bos_id], "tokens": [bos]});
    serde_json::from_value(shell).map_err(|e| {
        Error::model(origin, format!("the tokenizer cannot be built ({e})"), "This is a fault of emoji_lab")
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::gguf::writer::{Random, tiny_tokens};

    pub(crate) fn tiny_tokenizer() -> Tokenizer {
        build(&tiny_tokens()).unwrap()
    }

    fn build((tokens, scores, types): &(Vec<String>, Vec<f32>, Vec<i64>)) -> Result<Tokenizer> {
        build_with(tokens, Some(scores), Some(types), 512)
    }

    fn build_with(
        tokens: &[String],
        scores: Option<&[f32]>,
        types: Option<&[i64]>,
        rows: usize,
    ) -> Result<Tokenizer> {
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let list = TokenList {
            tokens: &tokens,
            scores,
            types,
            rows,
            bos: 2,
            eos: 1,
            pad: 0,
            unk: Some(3),
            model_max_length: 256,
            chat_template: None,
        };
        tokenizer_from_list(&list, "test.gguf")
    }

    #[test]
    fn merges_by_score_and_falls_back_to_bytes() {
        let tokenizer = tiny_tokenizer();
        let pieces = |text: &str| -> Vec<String> {
            tokenizer.encode(text).unwrap().into_iter().map(|id| tokenizer.token(id).unwrap()).collect()
        };
        assert_eq!(pieces("hello the world"), ["hello", "▁the", "▁wo", "rld"]);
        assert_eq!(pieces("a    b"), ["a", "▁▁▁▁", "b"]);
        assert_eq!(pieces("a\n\n\nb"), ["a", "\n\n\n", "b"]);
        assert_eq!(pieces("é🎉🎉"), ["<0xC3>", "<0xA9>", "🎉🎉"]);
        assert_eq!(pieces("<bos><start_of_turn>model"), ["<bos>", "<start_of_turn>", "mo", "de", "l"]);
    }

    #[test]
    fn decodes_what_it_encodes() {
        let tokenizer = tiny_tokenizer();
        for text in ["", " ", "  hello \n\n the 😂", "日本語\t\u{200d}é\0", "▁ x"] {
            let ids = tokenizer.encode(text).unwrap();
            // A literal ▁ is the one thing that this tokenizer cannot tell from a space.
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text.replace('▁', " "));
        }
        let ids = tokenizer.encode("<bos>hello<end_of_turn>").unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "<bos>hello<end_of_turn>");
    }

    #[test]
    fn refuses_lists_that_do_not_fit_together() {
        let (tokens, scores, types) = tiny_tokens();
        let said = |list| build(&list).unwrap_err().to_string();
        assert!(said((tokens.clone(), scores[1..].to_vec(), types.clone())).contains("511 scores"));
        let mut twice = tokens.clone();
        twice[400] = "hello".into();
        assert!(said((twice, scores.clone(), types.clone())).contains("there twice"));
        let short = (tokens[..1].to_vec(), scores[..1].to_vec(), types[..1].to_vec());
        assert!(said(short).contains("no bos token 2"));
    }

    #[test]
    fn types_and_scores_that_say_nothing_are_told_by_the_tokens() {
        let (tokens, scores, types) = tiny_tokens();
        let wanted = tiny_tokenizer();
        let (ones, zeros) = (vec![1; 512], vec![0.0; 512]);
        // Control tokens alone typed as ordinary ones, as converters of early 2025 did.
        let mut early = types.clone();
        early[..7].copy_from_slice(&[1, 1, 1, 2, 1, 1, 1]);
        for (name, scores, types) in [
            ("types all 1", Some(&scores), Some(&ones)),
            ("no types", Some(&scores), None),
            ("no scores", None, Some(&types)),
            ("scores all 0", Some(&zeros), Some(&types)),
            ("neither", None, None),
            ("early types", Some(&scores), Some(&early)),
        ] {
            let scores = scores.map(Vec::as_slice);
            let read = build_with(&tokens, scores, types.map(Vec::as_slice), 512).unwrap();
            for text in [
                "hello the world",
                "<bos><start_of_turn>user\n\nhello   the 🎉🎉 é<end_of_turn>\n<eos><unused3>",
                "a    b\n\n\nc",
            ] {
                assert_eq!(read.encode(text).unwrap(), wanted.encode(text).unwrap(), "{name}: {text}");
            }
            assert_eq!(read.stop_ids(), wanted.stop_ids(), "{name}");
            assert_eq!(read.decode(&[2, 6], true).unwrap(), "", "{name}");
        }
    }

    #[test]
    fn tokens_without_a_row_are_named_or_left_out() {
        let (mut tokens, mut scores, mut types) = tiny_tokens();
        for (token, kind) in [("<image_soft_token>", 4), ("▁thell", 1)] {
            tokens.push(token.into());
            scores.push(5.0);
            types.push(kind);
        }
        let read = build_with(&tokens, Some(&scores), Some(&types), 512).unwrap();
        assert_eq!(read.encode(" thello").unwrap(), tiny_tokenizer().encode(" thello").unwrap());
        let said = read.encode("hello <image_soft_token>").unwrap_err().to_string();
        assert!(said.contains("<image_soft_token> (id 512)"), "{said}");
        // Saved and read again it is the same.
        let folder = tempfile::tempdir().unwrap();
        read.save_pretrained(folder.path()).unwrap();
        let again = Tokenizer::from_dir(folder.path()).unwrap().for_model(512).unwrap();
        assert!(again.encode("<image_soft_token>").is_err());
        assert_eq!(again.encode(" thello").unwrap(), read.encode(" thello").unwrap());
        // More rows than tokens only fill up.
        let few = build_with(&tokens[..512], Some(&scores[..512]), Some(&types[..512]), 600).unwrap();
        assert_eq!(few.encode("hello").unwrap(), tiny_tokenizer().encode("hello").unwrap());
        assert_eq!(few.decode(&[599], false).unwrap(), "");
    }

    #[test]
    fn odd_scores_and_types_do_no_harm() {
        let (tokens, mut scores, mut types) = tiny_tokens();
        (scores[300], scores[301], types[302], types[303]) = (f32::NAN, f32::INFINITY, -7, i64::MAX);
        let tokenizer = build(&(tokens, scores, types)).unwrap();
        assert!(!tokenizer.encode("hello the world").unwrap().is_empty());
    }

    /// Gemma 3's own file and its own `tokenizer.json` say the same about every text.
    #[test]
    fn equal_to_the_real_tokenizer_json() {
        let named = |variable: &str| {
            let path = std::env::var(variable).ok().filter(|path| std::path::Path::new(path).is_file());
            if path.is_none() {
                println!("skipped: {variable} names no such file of Gemma 3");
            }
            path
        };
        let (Some(gguf), Some(json)) = (named("EMOJI_LAB_GGUF"), named("EMOJI_LAB_TOKENIZER")) else {
            return;
        };
        let rebuilt = crate::model::open_pretrained(&gguf).unwrap().tokenizer;
        let config = r#"{"bos_token": "<bos>", "eos_token": "<eos>"}"#;
        let real = Tokenizer::from_bytes(&std::fs::read(json).unwrap(), config, "tokenizer.json").unwrap();
        let mut random = Random(3);
        let size = rebuilt.vocab_size();
        for round in 0..3000 {
            let mut text = String::new();
            for _ in 0..random.below(12) {
                match random.below(5) {
                    // Any character there is, emoji, runs of blanks, any token, plain words.
                    0 => text.extend(char::from_u32(random.below(0x11_0000) as u32)),
                    1 => text.extend(char::from_u32(0x1F300 + random.below(0x800) as u32)),
                    2 => {
                        text += &[" ", "\n", "\t", "▁", "\u{200d}"][random.below(5)].repeat(random.below(40))
                    }
                    3 => text += &rebuilt.token(random.below(size) as u32).unwrap(),
                    _ => text += ["the cat", " is", "n't", "  5,000 ", "Straße"][random.below(5)],
                }
            }
            let ids = rebuilt.encode(&text).unwrap();
            assert_eq!(ids, real.encode(&text).unwrap(), "round {round}: {text:?}");
            assert_eq!(rebuilt.decode(&ids, true).unwrap(), real.decode(&ids, true).unwrap(), "{text:?}");
        }
    }
}
