//! Settings of generation.

use crate::error::{Error, Result};
use crate::ops::sample::Rule;
use crate::task::Constraint;

/// How text is generated. Names are transformers', except for the constraint's.
///
/// ```
/// use emoji_lab::prelude::*;
/// let task = Task::emoji();
/// let only_emoji = GenerationConfig { constraint: task.constraint.clone(), ..GenerationConfig::greedy(32) };
/// let model = load_model("embedded", &Device::Cpu)?;
/// let answer = generate(&model, &task.prompt("let's go to the beach"), &only_emoji)?;
/// assert!(task.constraint.unwrap().allows(&answer));
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// Whether to draw from the model's distribution; off takes the likeliest token each time.
    pub do_sample: bool,
    /// Divides the logits when sampling: below 1 safer, above 1 wilder. Without `do_sample` it has no
    /// say, nor have `top_k`, `top_p` and `seed`.
    pub temperature: f64,
    /// Draw from this many likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Draw from the fewest likeliest tokens whose probabilities reach this sum; 1 for all, 0 for the
    /// likeliest alone.
    pub top_p: f64,
    /// Divides the logits of tokens that were there before (Keskar et al. 2019); 1 for none.
    pub repetition_penalty: f64,
    /// Seed of the draws.
    pub seed: u64,
    /// What an answer may be, as [`Task::constraint`](crate::task::Task::constraint) has it: other tokens
    /// are out of the question, whatever their logits, before temperature, `top_k` and `top_p` look at
    /// them. An answer ends by itself, is never empty and never cut within a word. `None` for any text.
    ///
    /// It is computed on the CPU, also for a model on a GPU.
    pub constraint: Option<Constraint>,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            do_sample: false,
            temperature: 1.0,
            top_k: 64,
            top_p: 0.95,
            repetition_penalty: 1.0,
            seed: 42,
            constraint: None,
        }
    }
}

impl GenerationConfig {
    /// The likeliest token each time.
    #[must_use]
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, ..Self::default() }
    }

    /// Settings of sampling are looked at only where there is sampling, as in transformers.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the setting which cannot work.
    pub fn validate(&self) -> Result<()> {
        if self.max_new_tokens == 0 {
            return Err(Error::setting("max_new_tokens", 0, "use 1 or more"));
        }
        if self.do_sample && !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(Error::setting(
                "temperature",
                self.temperature,
                "with do_sample: true use a number above 0; for the likeliest token each time, do_sample: false",
            ));
        }
        if self.do_sample && !(0.0..=1.0).contains(&self.top_p) {
            return Err(Error::setting("top_p", self.top_p, "use a share from 0 to 1, which is all tokens"));
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return Err(Error::setting(
                "repetition_penalty",
                self.repetition_penalty,
                "use a number above 0; 1 for none, 1.1 is usual",
            ));
        }
        self.constraint.as_ref().map_or(Ok(()), Constraint::validate)
    }

    /// How each token is chosen.
    pub(crate) fn rule(&self) -> Rule {
        let penalty = self.repetition_penalty as f32;
        match self.do_sample {
            false => Rule { penalty, ..Rule::GREEDY },
            true => Rule {
                seed: self.seed,
                top_p: self.top_p,
                // Below that the likeliest token is drawn all the same, and logits must stay finite.
                temperature: self.temperature.max(1e-6) as f32,
                penalty,
                top_k: self.top_k,
                draw: true,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_sampling_its_settings_have_no_say() {
        let greedy = GenerationConfig::greedy(8);
        for odd in [
            GenerationConfig { temperature: 0.0, ..greedy.clone() },
            GenerationConfig { temperature: f64::NAN, ..greedy.clone() },
            GenerationConfig { temperature: -1.0, top_p: 7.0, ..greedy.clone() },
            GenerationConfig { top_p: 0.0, top_k: 0, ..greedy.clone() },
        ] {
            odd.validate().unwrap();
            assert_eq!(odd.rule(), greedy.rule());
            let said = GenerationConfig { do_sample: true, repetition_penalty: 0.0, ..odd.clone() };
            assert!(said.validate().is_err());
            // The penalty has a say in both.
            assert!(GenerationConfig { repetition_penalty: 0.0, ..odd }.validate().is_err());
        }
        assert!(GenerationConfig::greedy(0).validate().is_err());
    }

    #[test]
    fn with_sampling_they_are_looked_at() {
        let draw = GenerationConfig { do_sample: true, ..GenerationConfig::greedy(8) };
        draw.validate().unwrap();
        GenerationConfig { top_p: 0.0, top_k: 0, ..draw.clone() }.validate().unwrap();
        let said = GenerationConfig { temperature: 0.0, ..draw.clone() }.validate().unwrap_err().to_string();
        assert!(said.contains("temperature = 0") && said.contains("do_sample: false"), "{said}");
        for (name, wrong) in [
            ("temperature", GenerationConfig { temperature: f64::NAN, ..draw.clone() }),
            ("top_p", GenerationConfig { top_p: 1.5, ..draw.clone() }),
            ("top_p", GenerationConfig { top_p: f64::NAN, ..draw.clone() }),
            ("repetition_penalty", GenerationConfig { repetition_penalty: -1.0, ..draw.clone() }),
        ] {
            assert!(wrong.validate().unwrap_err().to_string().contains(name));
        }
    }
}
