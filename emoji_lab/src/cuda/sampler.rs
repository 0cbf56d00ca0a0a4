//! Tokens drawn on the card.

use super::Gpu;
use super::memory::{Layout, Memory};
use crate::error::Result;
use crate::ops::sample::Rule;
use crate::ops::sample::cuda::{
    self as sample, Buffers, HISTOGRAM_BYTES, SampleRule, THRESHOLD_BYTES, TOKENS,
};

/// What choosing a token by a [`Rule`] reads and writes.
pub(super) struct Sampler {
    gpu: Gpu,
    memory: Memory,
    buffers: Buffers,
}

impl Sampler {
    /// For logits of `vocab` tokens.
    pub(super) fn new(gpu: &Gpu, vocab: usize) -> Result<Self> {
        let blocks = vocab.div_ceil(TOKENS);
        let place = |base: u64| {
            let mut layout = Layout::new(base);
            let buffers = Buffers {
                rule: layout.take(size_of::<SampleRule>()),
                seen: layout.take(vocab.div_ceil(32) * 4),
                x: layout.take(vocab * 4),
                tops: layout.take(blocks * 4),
                top: layout.take(4),
                histograms: layout.take(HISTOGRAM_BYTES),
                thresholds: layout.take(THRESHOLD_BYTES),
                best: layout.take(blocks * 4),
                best_row: layout.take(blocks * 4),
                vocab: vocab as i32,
                blocks: blocks as i32,
            };
            (buffers, layout.end() as usize)
        };
        let memory = Memory::zeros(gpu, place(0).1, "sampling")?;
        Ok(Self { gpu: gpu.clone(), buffers: place(memory.ptr()).0, memory })
    }

    /// From now on chooses by `rule`, after the tokens of `prompt`, which are within the vocabulary.
    pub(super) fn begin(&self, rule: &Rule, prompt: &[u32]) -> Result<()> {
        let mut seen = vec![0u32; (self.buffers.vocab as usize).div_ceil(32)];
        for token in prompt {
            seen[*token as usize / 32] |= 1 << (token % 32);
        }
        self.memory.write((self.buffers.seen - self.memory.ptr()) as usize, &seen)?;
        self.memory.write((self.buffers.rule - self.memory.ptr()) as usize, &[SampleRule::from(rule)])
    }

    /// Chooses the token after the state's position.
    ///
    /// # Safety
    /// `logits` must be f32 `[vocab]`, `state` a `DecodeState`, `written` as long as its limit.
    pub(super) unsafe fn choose(&self, logits: u64, written: u64, state: u64) -> Result<()> {
        // SAFETY: the buffers are laid out for this vocabulary; histograms begin as zeros, and are left so.
        unsafe { sample::choose(&self.gpu, logits, self.buffers, written, state) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::cuda::graph::capture;
    use crate::host;
    use crate::ops::decode::cuda::DecodeState;
    use crate::ops::sample::cpu;
    use crate::rng::Philox;

    /// Logits as a model has them: most low, some high, rounded so that there are equals.
    fn logits(vocab: usize, seed: u64) -> Vec<f32> {
        let mut random = Philox::new(seed, 0);
        let mut next = || (0..6).map(|_| random.next_f32()).sum::<f32>() - 3.0;
        (0..vocab).map(|_| (next() * next().abs() * 400.0).round() / 64.0).collect()
    }

    fn rules() -> Vec<Rule> {
        let draw = Rule { draw: true, seed: 11, ..Rule::GREEDY };
        let mut rules = vec![Rule::GREEDY, Rule { penalty: 1.3, ..Rule::GREEDY }];
        for top_k in [0, 1, 2, 64, 700, 5000, usize::MAX] {
            for top_p in [1e-9, 0.5, 0.95, 0.999_999, 1.0] {
                let penalty = if top_k == 64 { 1.5 } else { 1.0 };
                for temperature in [1.0, 0.3, 2.5, 40.0] {
                    rules.push(Rule { top_k, top_p, penalty, temperature, ..draw });
                }
            }
        }
        rules
    }

    /// What the card chooses for `logits`, `count` times at one place after another.
    fn on_card(gpu: &Gpu, logits: &[f32], prompt: &[u32], rule: &Rule, count: usize) -> Vec<u32> {
        let sampler = Sampler::new(gpu, logits.len()).unwrap();
        let values = Memory::from_slice(gpu, logits, "logits").unwrap();
        let state =
            DecodeState { token: 0, position: prompt.len() as i32 - 1, count: 0, limit: count as i32 };
        let state = Memory::from_slice(gpu, &[state], "the state").unwrap();
        let written = Memory::poisoned(gpu, count * 4, "tokens").unwrap();
        sampler.begin(rule, prompt).unwrap();
        for _ in 0..count {
            // SAFETY: the buffers have the sizes asked for.
            unsafe { sampler.choose(values.ptr(), written.ptr(), state.ptr()).unwrap() };
        }
        let mut tokens = vec![0u32; count];
        written.read(0, &mut tokens).unwrap();
        tokens
    }

    #[test]
    fn tokens_are_the_cpus() {
        let gpu = match Gpu::open(0) {
            Ok(gpu) => gpu.new_lane().unwrap(),
            Err(error) => return println!("skipped: no GPU ({error})"),
        };
        for vocab in [5, 520, 2048, 2049, 262_144] {
            let (values, count) = (logits(vocab, vocab as u64), if vocab > 10_000 { 4 } else { 12 });
            let tensor = host::tensor(values.clone(), vocab).unwrap();
            let prompt: Vec<u32> = (0..vocab as u32).step_by(3).take(500).collect();
            let (mut wrong, mut different) = (0, std::collections::HashSet::new());
            let rules = rules();
            for rule in &rules {
                let ours = on_card(&gpu, &values, &prompt, rule, count);
                let mut seen = prompt.clone();
                for _ in 0..count {
                    seen.push(cpu::next_token(&tensor, &seen, rule).unwrap());
                }
                if ours != seen[prompt.len()..] {
                    println!("vocab {vocab}, {rule:?}: {ours:?}, not {:?}", &seen[prompt.len()..]);
                    wrong += 1;
                }
                different.extend(ours);
            }
            println!("vocab {vocab}: {} rules, {} tokens, {wrong} wrong", rules.len(), different.len());
            assert!(wrong == 0, "vocab {vocab}: {wrong} of {} rules", rules.len());
        }
        let odd = [f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NAN];
        for rule in &rules() {
            assert_eq!(on_card(&gpu, &odd, &[1], rule, 1), [0], "{rule:?}");
        }
    }

    #[test]
    fn time_of_a_choice() {
        let gpu = match Gpu::open(0) {
            Ok(gpu) => gpu.new_lane().unwrap(),
            Err(error) => return println!("skipped: no GPU ({error})"),
        };
        let (vocab, count) = (262_144, 2000);
        let sampler = Sampler::new(&gpu, vocab).unwrap();
        let values = Memory::from_slice(&gpu, &logits(vocab, 1), "logits").unwrap();
        let written = Memory::zeros(&gpu, 4, "tokens").unwrap();
        let state = Memory::from_slice(&gpu, &[DecodeState::default()], "the state").unwrap();
        // SAFETY: the buffers have the sizes asked for; nothing is written past the limit, which is 0.
        let choose = || unsafe { sampler.choose(values.ptr(), written.ptr(), state.ptr()) };
        choose().unwrap();
        let graph = capture(&gpu, choose).unwrap();
        for (top_k, top_p) in [(64, 0.95), (64, 1.0), (0, 0.95), (0, 1.0)] {
            let rule = Rule { draw: true, seed: 1, top_k, top_p, penalty: 1.1, ..Rule::GREEDY };
            sampler.begin(&rule, &[1]).unwrap();
            let started = Instant::now();
            for _ in 0..count {
                graph.launch().unwrap();
            }
            gpu.synchronize().unwrap();
            let microseconds = started.elapsed().as_secs_f64() * 1e6 / f64::from(count);
            println!("top_k {top_k}, top_p {top_p}: {microseconds:.1} µs a token of {vocab}");
            assert!(microseconds < 1000.0);
        }
    }
}
