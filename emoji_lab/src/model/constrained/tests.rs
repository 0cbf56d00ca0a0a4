//! Masks never lead nowhere, always allow what is right, and answers are what was asked for.

use std::collections::HashSet;
use std::sync::Arc;

use super::spelling::Spelling;
use super::walk::Walk;
use super::*;
use crate::data::load_dataset;
use crate::model::{GenerationConfig, Model, Tokenizer, answer_text, generate, generate_ids, load_model};
use crate::rng::Philox;
use crate::task::{Constraint, EmojiFilter, Task, Words, emoji_list, purely_emoji};

fn embedded() -> Model {
    load_model("embedded", &crate::Device::Cpu).unwrap()
}

/// The embedded tokenizer, and Gemma's own where a file of it is named.
fn tokenizers() -> Vec<Tokenizer> {
    let mut all = vec![embedded().tokenizer];
    match std::env::var("EMOJI_LAB_TOKENIZER").ok().and_then(|path| std::fs::read(path).ok()) {
        Some(json) => {
            let config = r#"{"bos_token": "<bos>", "eos_token": "<eos>"}"#;
            all.push(
                Tokenizer::from_bytes(&json, config, "tokenizer.json").unwrap().for_model(262_144).unwrap(),
            );
        }
        None => println!("skipped: EMOJI_LAB_TOKENIZER names no tokenizer.json of Gemma 3"),
    }
    all
}

fn spelling(constraint: &Constraint, tokenizer: &Tokenizer) -> Arc<Spelling> {
    tokenizer.spellings().of(&constraint.words, tokenizer).unwrap()
}

/// Whether the tokens of `text` can be said with `limit` tokens, and the answer then ends.
fn can_say(walk: &Walk, tokenizer: &Tokenizer, text: &str, limit: usize) -> bool {
    let tokens = tokenizer.encode(text).unwrap();
    let mut walk = walk.clone();
    let said = tokens.iter().enumerate().all(|(i, token)| {
        let fits = i < limit && walk.allowed(limit - i).contains(token);
        if fits {
            walk.read(*token);
        }
        fits
    });
    said && walk.may_end()
}

#[test]
fn every_emoji_can_be_said_in_its_own_tokens() {
    let constraint = Constraint::emoji();
    let emoji: Vec<&str> = constraint.words.iter().collect();
    for tokenizer in tokenizers() {
        let walk = Walk::new(spelling(&constraint, &tokenizer), &constraint);
        let mut rng = Philox::new(5, 0);
        for one in &emoji {
            let mut some: Vec<&str> = vec![one];
            for _ in 0..rng.below(3) {
                let other = emoji[rng.below(emoji.len() as u64) as usize];
                if !some.contains(&other) {
                    some.push(other);
                }
            }
            assert!(can_say(&walk, &tokenizer, one, tokenizer.encode(one).unwrap().len()), "{one}");
            assert!(can_say(&walk, &tokenizer, &some.concat(), 200), "{some:?}");
        }
        for wrong in
            ["🎉🎉", "🎉🎂🎉", "beach", "🎉 ", " 🎉", "🇵", "👨\u{200d}", "\u{fe0f}", "❤", "1", "❤️❤️"]
        {
            assert!(!can_say(&walk, &tokenizer, wrong, 200), "{wrong:?}");
        }
        assert!(!walk.may_end());
    }
}

/// Tokens taken at random, for chance finds dead ends sooner than a model does.
#[test]
fn no_way_leads_nowhere_and_each_ends_in_an_answer() {
    let few = Words::new(["❤️", "❤️‍🔥", "❤️‍🩹", "👋", "👋🏽", "🇵🇹", "🇵🇱", "1️⃣", "😂", "👨‍👩‍👧", "👨"]);
    let labels = Words::new(["joy", "joyful", "a joy", "happy ending", "äöü"]);
    for tokenizer in tokenizers() {
        let mut rng = Philox::new(9, 0);
        let mut longest = 0;
        for round in 0..3000 {
            let words = [&few, &labels, &Words::emoji()][round % 3].clone();
            let (max_words, max_times) = (1 + rng.below(5) as usize, 1 + rng.below(2) as usize);
            let constraint = Constraint { words, max_words, max_times };
            let spelling = spelling(&constraint, &tokenizer);
            let limit = spelling.shortest() as usize + rng.below(20) as usize;
            let mut walk = Walk::new(spelling.clone(), &constraint);
            let mut tokens = vec![];
            loop {
                let allowed = walk.allowed(limit - tokens.len());
                let distinct: HashSet<u32> = allowed.iter().copied().collect();
                assert_eq!(distinct.len(), allowed.len());
                assert!(allowed.iter().all(|token| spelling.tokens.binary_search(token).is_ok()));
                if allowed.is_empty() || (walk.may_end() && rng.below(8) == 0) {
                    break;
                }
                // Bytes are few among many: they get half of the turns.
                let bytes: Vec<u32> =
                    allowed.iter().copied().filter(|token| spelling.byte_of(*token).is_some()).collect();
                let from = if !bytes.is_empty() && rng.below(2) == 0 { &bytes } else { &allowed };
                let token = from[rng.below(from.len() as u64) as usize];
                walk.read(token);
                tokens.push(token);
            }
            let text = tokenizer.decode(&tokens, true).unwrap();
            assert!(walk.may_end(), "round {round}: stuck behind {text:?}, {constraint}");
            assert!(constraint.allows(&text), "round {round}: {text:?} is not {constraint}");
            assert!(tokens.len() <= limit);
            longest = longest.max(tokens.len());
        }
        assert!(longest > 15, "{longest}");
    }
}

#[test]
fn a_word_that_was_said_still_begins_others() {
    let tokenizer = embedded().tokenizer;
    let constraint =
        Constraint { words: Words::new(["❤️", "❤️‍🔥", "🎉"]), max_words: 4, max_times: 1 };
    let walk = Walk::new(spelling(&constraint, &tokenizer), &constraint);
    for right in ["❤️❤️‍🔥🎉", "❤️‍🔥❤️", "🎉❤️❤️‍🔥"] {
        assert!(can_say(&walk, &tokenizer, right, 60), "{right}");
    }
    for wrong in ["❤️❤️", "❤️🎉❤️", "❤️‍🔥❤️❤️‍🔥"] {
        assert!(!can_say(&walk, &tokenizer, wrong, 60), "{wrong}");
    }
    // Once both are said, nothing begins with ❤.
    let mut walk = walk;
    for token in tokenizer.encode("❤️❤️‍🔥").unwrap() {
        walk.read(token);
    }
    let party = tokenizer.encode("🎉").unwrap();
    let first_byte = tokenizer.token_to_id("<0xF0>").unwrap();
    let mut allowed = walk.allowed(60);
    allowed.sort_unstable();
    let mut wanted = vec![party[0], first_byte];
    wanted.sort_unstable();
    assert_eq!(allowed, wanted);
    // With one token left it is not begun by its first byte.
    assert_eq!(walk.allowed(1), party);
    assert!(walk.allowed(0).is_empty() && walk.may_end());
}

/// The embedded model before training answers with sentences.
#[test]
fn a_model_that_speaks_is_held_to_emoji() {
    let model = embedded();
    let rows = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
    let prompts: Vec<_> = rows.examples.iter().take(50).map(|row| rows.task.prompt(&row.text)).collect();
    let free = GenerationConfig::greedy(24);
    let held = GenerationConfig { constraint: rows.task.constraint.clone(), ..free.clone() };
    let talks = |answer: &String| !purely_emoji(answer);
    let said: Vec<String> = prompts.iter().map(|prompt| generate(&model, prompt, &free).unwrap()).collect();
    assert!(said.iter().filter(|answer| talks(answer)).count() > 25, "{said:?}");
    let twice = Constraint { max_times: 2, max_words: 3, ..Constraint::emoji() };
    let draw = GenerationConfig { do_sample: true, temperature: 2.0, ..held.clone() };
    for config in [held.clone(), GenerationConfig { constraint: Some(twice), ..held.clone() }, draw] {
        let constraint = config.constraint.clone().unwrap();
        let together: Vec<String> = answers(&model, &prompts, &config)
            .unwrap()
            .iter()
            .map(|answer| answer_text(&model, answer).unwrap())
            .collect();
        for (prompt, answer) in prompts.iter().zip(&together) {
            assert_eq!(generate(&model, prompt, &config).unwrap(), *answer);
            assert!(constraint.allows(answer) && purely_emoji(answer), "{answer}");
            assert!((1..=constraint.max_words).contains(&emoji_list(answer).len()), "{answer}");
        }
        let different: HashSet<&String> = together.iter().collect();
        assert!(different.len() > 5, "{different:?}");
    }
    // However few tokens there are, the answer is whole.
    for (limit, prompt) in (1..6).zip(&prompts) {
        let few = GenerationConfig { max_new_tokens: limit, ..held.clone() };
        let answer = generate(&model, prompt, &few).unwrap();
        assert!(held.constraint.as_ref().is_some_and(|constraint| constraint.allows(&answer)), "{answer}");
    }
}

#[test]
fn a_classifier_answers_with_a_label() {
    let model = embedded();
    let task = Task::one_of("Say the mood of this text in one word: ", ["joy", "sadness", "anger"]);
    let config = GenerationConfig { constraint: task.constraint.clone(), ..GenerationConfig::greedy(16) };
    for text in ["what a day!", "my dog is ill", "they stole my bike"] {
        let answer = generate(&model, &task.prompt(text), &config).unwrap();
        assert!(["joy", "sadness", "anger"].contains(&answer.as_str()), "{answer}");
    }
}

#[test]
fn samples_differ_and_repeat_with_the_seed() {
    let model = embedded();
    let task = Task::emoji();
    let asked = ["a day at the beach", "pizza"].map(|text| task.prompt(text));
    let config = GenerationConfig { constraint: task.constraint.clone(), ..GenerationConfig::greedy(24) };
    for config in [GenerationConfig { constraint: None, ..config.clone() }, config] {
        let drawn = generate_samples(&model, &asked[0], 12, &config).unwrap();
        assert_eq!(drawn, generate_samples(&model, &asked[0], 12, &config).unwrap());
        assert_eq!(drawn[..5], generate_samples(&model, &asked[0], 5, &config).unwrap());
        let different: HashSet<&String> = drawn.iter().collect();
        assert!(different.len() > 6, "{drawn:?}");
        let first = GenerationConfig { do_sample: true, ..config.clone() };
        assert_eq!(drawn[0], generate(&model, &asked[0], &first).unwrap());
        let other = GenerationConfig { seed: 43, ..config.clone() };
        assert_ne!(drawn, generate_samples(&model, &asked[0], 12, &other).unwrap());
        // The same among others' answers.
        let both = samples(&model, &asked, 40, &config).unwrap();
        let texts: Vec<String> =
            both[0][..12].iter().map(|answer| answer_text(&model, answer).unwrap()).collect();
        assert_eq!(texts, drawn);
        assert_eq!((both.len(), both[1].len()), (2, 40));
    }
    let said = generate_samples(&model, &asked[0], 0, &GenerationConfig::default()).unwrap_err().to_string();
    assert!(said.starts_with("setting samples = 0"), "{said}");
}

#[test]
fn what_cannot_work_says_why() {
    let mut model = embedded();
    let prompt = Task::emoji().prompt("pizza");
    let flags = Constraint::one_of(["🇵🇹"]);
    let config = GenerationConfig { constraint: Some(flags), ..GenerationConfig::greedy(3) };
    let said = generate(&model, &prompt, &config).unwrap_err().to_string();
    assert!(
        said.starts_with("setting max_new_tokens = 3") && said.contains("one of 🇵🇹 takes 8 tokens"),
        "{said}"
    );
    let enough = GenerationConfig { max_new_tokens: 8, ..config.clone() };
    assert_eq!(generate(&model, &prompt, &enough).unwrap(), "🇵🇹");
    let ids = model.tokenizer.encode_chat(&prompt, true).unwrap();
    assert_eq!(generate_ids(&model, &ids, &enough).unwrap().len(), 8);
    let said = model.gemma.generate(&ids, &enough, &[]).unwrap_err().to_string();
    assert!(said.starts_with("setting constraint = one of 🇵🇹") && said.contains("evaluate"), "{said}");
    let none = GenerationConfig { constraint: Some(Constraint::one_of([""])), ..config };
    assert!(generate(&model, &prompt, &none).unwrap_err().to_string().starts_with("setting words = none"));
    // A model that ends answers with the very token that they need.
    let party = model.tokenizer.encode("🎉").unwrap()[0];
    model.generation_config["eos_token_id"] = serde_json::json!(party);
    let one =
        GenerationConfig { constraint: Some(Constraint::one_of(["🎉"])), ..GenerationConfig::greedy(1) };
    let said = generate(&model, &prompt, &one).unwrap_err().to_string();
    assert!(said.contains("eos_token_id"), "{said}");
}
