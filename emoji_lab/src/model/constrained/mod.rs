//! Answers that keep to a [`Constraint`](crate::task::Constraint), and several answers to one prompt.
//!
//! A constraint speaks of characters, a model of tokens: one token may hold several emoji, and one
//! emoji may take several tokens, down to single bytes. [`Spelling`] says which tokens can follow at
//! which place of a word, and how many it takes at least to end one; it is made once for a tokenizer.
//! [`Walk`] is how far one answer is, with the words that it may not say again. A token may be chosen
//! if from behind it some word can still be ended with the tokens that are left, so an answer is never
//! cut within a word and never stuck.
//!
//! Tokens that no answer can hold need no logits: the head is multiplied with the rows of those that
//! can. Of Gemma's 262,144 tokens these are some 1,500, and the head is most of what a token costs.

mod held;
mod run;
mod spelling;
#[cfg(test)]
mod tests;
mod walk;

pub(super) use held::{Held, HeldTo};
pub(super) use run::follow_one;
pub use run::generate_samples;
pub(crate) use run::{answers, samples};
pub(super) use spelling::Spellings;
