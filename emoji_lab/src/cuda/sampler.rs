//! Tokens drawn on the GPU.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::placed::Placed;
use crate::gpu::pointer::DevicePtr;
use crate::ops::sample::Rule;
use crate::ops::sample::cuda::{BINS, Chosen, HISTOGRAMS, SampleBuffers, SampleRule, TOKENS};

/// What choosing a token by a [`Rule`] reads and writes, for one or more rows (sequences).
pub(super) struct Sampler {
    gpu: Gpu,
    buffers: Placed<SampleBuffers>,
}

impl Sampler {
    /// For logits of `vocab` tokens in `rows` rows.
    pub(super) fn new(gpu: &Gpu, vocab: usize, rows: usize) -> Result<Self> {
        let blocks = vocab.div_ceil(TOKENS);
        let buffers = Placed::zeros(gpu, "sampling", |layout| SampleBuffers {
            rule: layout.take(rows),
            seen: layout.take(rows * vocab.div_ceil(32)),
            x: layout.take(rows * vocab),
            tops: layout.take(rows * blocks),
            top: layout.take(rows),
            histograms: layout.take(rows * HISTOGRAMS * BINS),
            thresholds: layout.take(rows * HISTOGRAMS),
            best: layout.take(rows * blocks),
            best_row: layout.take(rows * blocks),
            vocab: vocab as i32,
            blocks: blocks as i32,
        })?;
        Ok(Self { gpu: gpu.clone(), buffers })
    }

    /// From now on chooses by `rule`, after the tokens of `prompt`, which are within the vocabulary.
    pub(super) fn begin(&self, rule: &Rule, prompt: &[u32]) -> Result<()> {
        self.see(0, prompt)?;
        self.rules(&[*rule])
    }

    /// From now on chooses by `rules`, one for each row.
    pub(super) fn rules(&self, rules: &[Rule]) -> Result<()> {
        let rules: Vec<SampleRule> = rules.iter().map(SampleRule::from).collect();
        self.buffers.write_at(self.buffers.rule, &rules)
    }

    /// What has been seen in `row` are the tokens of `prompt`, which are within the vocabulary. A rule
    /// without a penalty does not ask.
    pub(super) fn see(&self, row: usize, prompt: &[u32]) -> Result<()> {
        let mut seen = vec![0u32; (self.buffers.vocab as usize).div_ceil(32)];
        for token in prompt {
            seen[*token as usize / 32] |= 1 << (token % 32);
        }
        self.buffers.write_at(self.buffers.seen.at(&self.gpu, row * seen.len()), &seen)
    }

    /// Chooses in each row the token after its state's position, where one is wanted.
    ///
    /// # Safety
    /// `logits` must be `[rows, vocab]`; `to` must have no more rows than there are here.
    pub(super) unsafe fn choose(&self, logits: DevicePtr<f32>, to: Chosen) -> Result<()> {
        // SAFETY: the buffers are laid out for this vocabulary; histograms begin as zeros, and are left so.
        unsafe { self.buffers.choose(&self.gpu, logits, to) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::gpu::graph::capture;
    use crate::gpu::memory::Memory;
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

    /// What the GPU chooses for `logits`, `count` times at one place after another.
    fn on_card(gpu: &Gpu, logits: &[f32], prompt: &[u32], rule: &Rule, count: usize) -> Vec<u32> {
        let sampler = Sampler::new(gpu, logits.len(), 1).unwrap();
        let values = Memory::from_slice(gpu, logits, "logits").unwrap();
        let state =
            DecodeState { token: 0, position: prompt.len() as i32 - 1, count: 0, limit: count as i32 };
        let state = Memory::from_slice(gpu, &[state], "the state").unwrap();
        let written = Memory::<i32>::poisoned(gpu, count, "tokens").unwrap();
        sampler.begin(rule, prompt).unwrap();
        for _ in 0..count {
            let to = Chosen { written: written.ptr(), state: state.ptr(), rows: 1, room: count };
            // SAFETY: the buffers have the sizes asked for.
            unsafe { sampler.choose(values.ptr(), to).unwrap() };
        }
        let mut tokens = vec![0; count];
        written.read(0, &mut tokens).unwrap();
        tokens.into_iter().map(|token| token as u32).collect()
    }

    #[test]
    fn tokens_are_the_cpus() {
        let gpu = match Gpu::open(0) {
            Ok(gpu) => gpu.with_own_streams().unwrap(),
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

    /// Every row by a rule of its own, after a prompt of its own; some want fewer tokens, or none.
    #[test]
    fn rows_draw_what_each_draws_alone() {
        let gpu = match Gpu::open(0) {
            Ok(gpu) => gpu.with_own_streams().unwrap(),
            Err(error) => return println!("skipped: no GPU ({error})"),
        };
        let (rules, most) = (rules(), 3);
        for vocab in [5, 2049, 20_000] {
            let rows = rules.len();
            let values: Vec<Vec<f32>> = (0..rows as u64).map(|row| logits(vocab, 7 * row)).collect();
            let prompts: Vec<Vec<u32>> = (0..rows)
                .map(|row| (row % 3..vocab.min(900)).step_by(3).map(|id| id as u32).collect())
                .collect();
            let wanted = |row: usize| row % (most + 1);
            let state = |row: usize| DecodeState {
                token: -1,
                position: prompts[row].len() as i32 - 1,
                count: 0,
                limit: wanted(row) as i32,
            };
            let states: Vec<DecodeState> = (0..rows).map(state).collect();
            let sampler = Sampler::new(&gpu, vocab, rows).unwrap();
            let at = Memory::from_slice(&gpu, &values.concat(), "logits").unwrap();
            let state = Memory::from_slice(&gpu, &states, "the states").unwrap();
            let written = Memory::<i32>::poisoned(&gpu, rows * most, "tokens").unwrap();
            sampler.rules(&rules).unwrap();
            prompts.iter().enumerate().for_each(|(row, prompt)| sampler.see(row, prompt).unwrap());
            let to = Chosen { written: written.ptr(), state: state.ptr(), rows, room: most };
            for _ in 0..most {
                // SAFETY: the buffers have the sizes asked for.
                unsafe { sampler.choose(at.ptr(), to).unwrap() };
            }
            let (mut tokens, mut after) = (vec![0; rows * most], states.clone());
            written.read(0, &mut tokens).unwrap();
            state.read(0, &mut after).unwrap();
            for row in 0..rows {
                let tensor = host::tensor(values[row].clone(), vocab).unwrap();
                let mut seen = prompts[row].clone();
                for _ in 0..wanted(row) {
                    seen.push(cpu::next_token(&tensor, &seen, &rules[row]).unwrap());
                }
                let mut expected: Vec<i32> = seen[prompts[row].len()..].iter().map(|id| *id as i32).collect();
                let last = expected.last().copied().unwrap_or(-1);
                expected.resize(most, -1);
                assert_eq!(tokens[row * most..][..most], expected, "row {row}, {:?}", rules[row]);
                let now = (after[row].token, after[row].position as usize + 1, after[row].count as usize);
                assert_eq!(now, (last, seen.len(), wanted(row)), "row {row}");
            }
        }
    }

    #[test]
    fn time_of_a_choice() {
        let gpu = match Gpu::open(0) {
            Ok(gpu) => gpu.with_own_streams().unwrap(),
            Err(error) => return println!("skipped: no GPU ({error})"),
        };
        let (vocab, count) = (262_144, 2000);
        let sampler = Sampler::new(&gpu, vocab, 1).unwrap();
        let values = Memory::from_slice(&gpu, &logits(vocab, 1), "logits").unwrap();
        let written = Memory::zeros(&gpu, 1, "tokens").unwrap();
        let state = Memory::from_slice(&gpu, &[DecodeState::default()], "the state").unwrap();
        let to = Chosen { written: written.ptr(), state: state.ptr(), rows: 1, room: 1 };
        // SAFETY: the buffers have the sizes asked for; nothing is written past the limit, which is 0.
        let choose = || unsafe { sampler.choose(values.ptr(), to) };
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
