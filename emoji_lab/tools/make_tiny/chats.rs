//! What the base model learns from: short chats, what words mean, posts with emoji, and standing
//! instructions that are answered in words. Nothing in it asks for emoji.

use std::collections::HashSet;

use emoji_lab::data::{Conversation, Message, Role};

use crate::Result;
use crate::patterns::{Filled, Filler, capitalised, lines};
use crate::rng::Rng;
use crate::rows::{Row, dressed};
use crate::words::Words;

/// The texts that patterns come from.
pub struct Sources {
    pub posts: String,
    pub chat: String,
    pub instructions: String,
}

/// How many conversations of a kind.
const CHATS_PER_PATTERN: usize = 60;
const POSTS_PER_PATTERN: usize = 60;
const INSTRUCTED: usize = 4000;
const MEANINGS_PER_WORD: usize = 8;

/// Makes the conversations, shuffled; no person's sentence in them is a row's.
pub fn make(sources: &Sources, words: &Words, rows: &[Row], rng: &mut Rng) -> Result<Vec<Conversation>> {
    let mut filler = Filler::new(words);
    let mut all = Vec::new();
    let mut sentences = Vec::new();
    for line in lines(&sources.chat) {
        let (user, answer) = line.split_once(" => ").ok_or_else(|| format!("chat.txt: {line}: no =>"))?;
        let times = if line.contains('{') { CHATS_PER_PATTERN } else { CHATS_PER_PATTERN / 2 };
        for _ in 0..times {
            let asked = filler.fill(user, rng)?;
            let answer = reply(&filler.fill(answer, rng)?.text, &asked, words, rng)?;
            all.push(chat("", &dressed(asked.text, rng), &answer));
        }
    }
    for line in lines(&sources.posts) {
        for _ in 0..POSTS_PER_PATTERN {
            let text = filler.fill(line, rng)?.text;
            let emoji = words.emoji(&text);
            if emoji.is_empty() {
                return Err(format!("posts.txt: {text}: none of its words has an emoji").into());
            }
            sentences.push(text.clone());
            let ask = ["Show me a post", "What is new?", "Write a post", "What did you post today?"];
            all.push(chat("", ask[rng.below(ask.len())], &format!("{} {emoji}", dressed(text, rng))));
        }
    }
    let instructions: Vec<(&str, &str)> =
        lines(&sources.instructions).filter_map(|line| line.split_once(" => ")).collect();
    for _ in 0..INSTRUCTED {
        let (instruction, answer) = instructions[rng.below(instructions.len())];
        let text = &sentences[rng.below(sentences.len())];
        let keywords: Vec<String> = words.find(text).into_iter().map(|hit| hit.surface).collect();
        let answer = answer
            .replace("{about}", &keywords.join(" and "))
            .replace("{list}", &keywords.join(", "))
            .replace("{text}", text);
        all.push(chat(&format!("{instruction} "), &dressed(text.clone(), rng), &capitalised(&answer)));
    }
    for word in words.all.iter().filter(|word| !word.gloss.is_empty()) {
        for _ in 0..MEANINGS_PER_WORD {
            let (form, emoji, gloss) = (&word.forms[0], &word.emoji, &word.gloss);
            let (user, answer) = match rng.below(4) {
                0 => (format!("what is {form}?"), format!("{}: {gloss}. {emoji}", capitalised(form))),
                1 => (format!("what does {emoji} mean?"), format!("{emoji} is {form}: {gloss}.")),
                2 => {
                    (format!("explain the word {}", word.bare()), format!("{}. {emoji}", capitalised(gloss)))
                }
                _ => (gloss.clone(), format!("That must be {form}. {emoji}")),
            };
            all.push(chat("", &dressed(user, rng), &answer));
        }
    }
    let rows: HashSet<String> = rows.iter().map(|row| row.text.to_lowercase()).collect();
    let asked = crate::rows::ASKED.map(str::to_lowercase);
    all.retain(|conversation| {
        conversation.messages.iter().all(|message| {
            let text = message.content.to_lowercase();
            !rows.contains(&text) && asked.iter().all(|asked| !text.contains(asked))
        })
    });
    rng.shuffle(&mut all);
    Ok(all)
}

/// Puts the person's words into an answer: `<0>` bare, `<=0>` as it was written, `<gloss0>` what
/// it means; `@` is the emoji of what the person said, left out in two answers of five.
fn reply(answer: &str, asked: &Filled, words: &Words, rng: &mut Rng) -> Result<String> {
    let mut text = answer.to_string();
    for (i, slot) in asked.slots.iter().enumerate() {
        let word = &words.all[slot.word];
        text = text
            .replace(&format!("<{i}>"), word.bare())
            .replace(&format!("<={i}>"), &slot.form)
            .replace(&format!("<gloss{i}>"), &word.gloss);
    }
    if text.contains('<') {
        return Err(format!("chat.txt: {answer}: it names a word that the person did not say").into());
    }
    let emoji = if rng.chance(60) { words.emoji(&asked.text) } else { String::new() };
    Ok(capitalised(text.replace('@', &emoji).trim()))
}

fn chat(system: &str, user: &str, answer: &str) -> Conversation {
    let message = |role, content: &str| Message { role, content: content.to_string() };
    let mut messages = Vec::new();
    if !system.is_empty() {
        messages.push(message(Role::System, system));
    }
    messages.extend([message(Role::User, user), message(Role::Assistant, answer)]);
    Conversation { messages }
}
