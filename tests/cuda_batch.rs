//! Answers side by side on the GPU: those of one stream, and the CPU's.

use std::time::Instant;

use emoji_lab::data::load_dataset;
use emoji_lab::model::{
    Gemma3, GenerationConfig, KvCache, Model, generate_batch, generate_samples, load_model,
};
use emoji_lab::prelude::*;
use emoji_lab::rng::Philox;

use super::{SHAPES, Shape, VOCAB, gpu, large_model, model};

/// More prompts than rows, of 1 to 90 tokens in no order of length; one is longer than what is read in a
/// pass, and all but the first few are longer than most windows.
fn prompts(count: usize, vocab: usize) -> Vec<Vec<u32>> {
    let mut random = Philox::new(3, 7);
    let mut prompt = |len: usize| (0..len).map(|_| random.below(vocab as u64) as u32).collect::<Vec<u32>>();
    (0..count).map(|i| prompt(if i == 70 { 700 } else { 1 + i * 37 % 90 })).collect()
}

fn configs() -> [GenerationConfig; 5] {
    let draw = GenerationConfig { do_sample: true, ..GenerationConfig::greedy(21) };
    [
        GenerationConfig::greedy(21),
        GenerationConfig::greedy(1),
        GenerationConfig { seed: 7, ..draw.clone() },
        GenerationConfig { temperature: 2.0, top_k: 0, repetition_penalty: 1.3, ..draw },
        GenerationConfig { repetition_penalty: 1.5, ..GenerationConfig::greedy(21) },
    ]
}

#[test]
fn many_answers_are_one_streams() {
    let Some(device) = gpu() else { return };
    let prompts = prompts(150, VOCAB);
    // Every twentieth token ends an answer, so that rows are free at different times.
    let stop: Vec<u32> = (0..VOCAB as u32).step_by(20).collect();
    for shape in &SHAPES {
        let base = model(shape, 5);
        let card = base.to_device(&device);
        for (i, config) in configs().into_iter().enumerate() {
            // Without an end, and with one.
            for stop in [&[][..], &stop].into_iter().skip(usize::from(i > 0)) {
                let one: Vec<Vec<u32>> =
                    prompts.iter().map(|prompt| card.generate(prompt, &config, stop).unwrap()).collect();
                let ours = card.generate_batch(&prompts, &config, stop).unwrap();
                let wrong = one.iter().zip(&ours).filter(|(one, ours)| one != ours).count();
                assert_eq!(wrong, 0, "of {} with {config:?}", prompts.len());
                // Of some of them, in another order: the same rows beside others.
                let other: Vec<Vec<u32>> = prompts.iter().rev().step_by(3).cloned().collect();
                let others = card.generate_batch(&other, &config, stop).unwrap();
                assert!(others.iter().eq(ours.iter().rev().step_by(3)), "{config:?}");
            }
        }
        let config = GenerationConfig::greedy(21);
        assert_eq!(
            card.generate_batch(&prompts[..80], &config, &[]).unwrap(),
            base.generate_batch(&prompts[..80], &config, &[]).unwrap()
        );
        let said = card.generate_batch(&[vec![1], vec![VOCAB as u32]], &config, &[]).unwrap_err().to_string();
        assert!(said.contains("ids below"), "{said}");
        assert!(card.generate_batch(&[], &config, &[]).unwrap().is_empty());
    }
}

fn embedded(device: &Device) -> (Model, Task, Vec<Vec<emoji_lab::data::Message>>) {
    let model = load_model("embedded", device).unwrap();
    let rows = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
    let asked = rows.examples.iter().take(100).map(|row| rows.task.prompt(&row.text)).collect();
    (model, rows.task, asked)
}

#[test]
fn samples_and_constrained_answers_are_the_cpus() {
    let Some(device) = gpu() else { return };
    let (card, task, asked) = embedded(&device);
    let (base, ..) = embedded(&Device::Cpu);
    let free = GenerationConfig::greedy(24);
    let held = GenerationConfig { constraint: task.constraint.clone(), ..free.clone() };
    let draw = GenerationConfig { do_sample: true, temperature: 2.0, ..held.clone() };
    for config in [&free, &held, &draw] {
        let ours = generate_batch(&card, &asked, config).unwrap();
        let theirs = generate_batch(&base, &asked, config).unwrap();
        let wrong = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
        assert_eq!(wrong, 0, "of {} with {config:?}", asked.len());
        if let Some(constraint) = &config.constraint {
            assert!(ours.iter().all(|answer| constraint.allows(answer)), "{ours:?}");
        }
        assert_eq!(ours, generate_batch(&card, &asked, config).unwrap());
    }
    for config in [&free, &held] {
        // More of them than there are rows.
        for n in [1, 12, 100] {
            let ours = generate_samples(&card, &asked[0], n, config).unwrap();
            assert_eq!(ours, generate_samples(&base, &asked[0], n, config).unwrap(), "{n}, {config:?}");
        }
    }
}

/// The same in small, for an emulator of GPUs: more prompts than rows, which end at different times.
#[test]
fn a_few_answers_are_one_streams() {
    let Some(device) = gpu() else { return };
    let prompts: Vec<Vec<u32>> =
        prompts(150, VOCAB).into_iter().filter(|prompt| prompt.len() < 14).chain(prompts(70, 90)).collect();
    let prompts: Vec<Vec<u32>> =
        prompts.iter().take(70).map(|prompt| prompt[..prompt.len().min(9)].into()).collect();
    let stop: Vec<u32> = (0..VOCAB as u32).step_by(6).collect();
    let base = model(&SHAPES[1], 5);
    let card = base.to_device(&device);
    for config in configs() {
        let config = GenerationConfig { max_new_tokens: config.max_new_tokens.min(6), ..config };
        let theirs = base.generate_batch(&prompts, &config, &stop).unwrap();
        let lengths: std::collections::BTreeSet<usize> = theirs.iter().map(Vec::len).collect();
        println!("lengths {lengths:?}");
        assert_eq!(card.generate_batch(&prompts, &config, &stop).unwrap(), theirs, "{config:?}");
        let one = card.generate(&prompts[3], &config, &stop).unwrap();
        assert_eq!(one, theirs[3]);
    }
}

/// And of constraints and samples.
#[test]
fn a_few_constrained_answers_are_the_cpus() {
    let Some(device) = gpu() else { return };
    let (card, task, asked) = embedded(&device);
    let (base, ..) = embedded(&Device::Cpu);
    let free = GenerationConfig::greedy(5);
    let held = GenerationConfig { constraint: task.constraint.clone(), ..free.clone() };
    let asked = &asked[..3];
    assert_eq!(generate_batch(&card, asked, &held).unwrap(), generate_batch(&base, asked, &held).unwrap());
    for config in [&free, &held] {
        let ours = generate_samples(&card, &asked[0], 3, config).unwrap();
        assert_eq!(ours, generate_samples(&base, &asked[0], 3, config).unwrap());
    }
}

/// How far the logits of two tokens are apart after `tokens`, on the CPU in f32, as a share of the largest.
fn gap(base: &Gemma3, tokens: &[u32], (a, b): (u32, u32)) -> f32 {
    let mut cache = KvCache::new(base.config(), tokens.len()).unwrap();
    let logits = base.decode(tokens, &mut cache).unwrap().to_vec1::<f32>().unwrap();
    let largest = logits.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
    (logits[a as usize] - logits[b as usize]).abs() / largest
}

/// In bf16 products of many rows may round otherwise than those of one.
#[test]
fn in_bf16_answers_part_at_near_ties_alone() {
    let Some(device) = gpu() else { return };
    let Ok(device) = device.with_dtype(DType::BF16) else { return };
    let config = GenerationConfig::greedy(24);
    let (embedded, _, asked) = embedded(&Device::Cpu);
    let ids = asked.iter().map(|messages| embedded.tokenizer.encode_chat(messages, true).unwrap()).collect();
    for (name, base, prompts) in
        [("random", model(&SHAPES[3], 5), prompts(150, VOCAB)), ("embedded", embedded.gemma, ids)]
    {
        let card = base.to_device(&device);
        let ours = card.generate_batch(&prompts, &config, &[]).unwrap();
        assert_eq!(ours, card.generate_batch(&prompts, &config, &[]).unwrap(), "a second time");
        let reversed: Vec<Vec<u32>> = prompts.iter().rev().cloned().collect();
        let others = card.generate_batch(&reversed, &config, &[]).unwrap();
        let moved = others.iter().rev().zip(&ours).filter(|(a, b)| a != b).count();
        let mut gaps = vec![];
        for (prompt, ours) in prompts.iter().zip(&ours) {
            let one = card.generate(prompt, &config, &[]).unwrap();
            if let Some(at) = one.iter().zip(ours).position(|(a, b)| a != b) {
                gaps.push(gap(&base, &[prompt, &one[..at]].concat(), (one[at], ours[at])));
            }
        }
        gaps.sort_by(f32::total_cmp);
        println!(
            "{name}: {} of {} answers part from one stream's, where two logits are {:.4} apart in the median and \
             {:.4} at most (of the largest); {moved} depend on what is beside them",
            gaps.len(),
            prompts.len(),
            gaps.get(gaps.len() / 2).unwrap_or(&0.0),
            gaps.last().unwrap_or(&0.0)
        );
        assert_eq!(moved, 0);
        assert!(gaps.last().is_none_or(|gap| *gap < 0.06), "{gaps:?}");
    }
}

/// 253 prompts of about 40 tokens, 8 tokens each, on a model of Gemma 3 270M's sizes.
#[test]
#[ignore = "a measurement: run it by name"]
fn time_of_many_answers() {
    let Some(device) = gpu() else { return };
    let device = device.with_dtype(DType::BF16).unwrap_or(device);
    let base = gemma_270m();
    let card = base.to_device(&device);
    let mut random = Philox::new(3, 7);
    let prompts: Vec<Vec<u32>> = (0..253)
        .map(|_| (0..30 + random.below(20)).map(|_| random.below(262_144) as u32).collect())
        .collect();
    let greedy = GenerationConfig::greedy(8);
    let draw = GenerationConfig { do_sample: true, ..greedy.clone() };
    let many: Vec<Vec<u32>> = prompts.iter().flat_map(|prompt| vec![prompt.clone(); 16]).collect();
    for round in 0..3 {
        for (name, prompts, config) in [
            ("253 greedy", &prompts, &greedy),
            ("253 drawn", &prompts, &draw),
            ("253 x 16 drawn, as prompts", &many, &draw),
        ] {
            let started = Instant::now();
            let answers = card.generate_batch(prompts, config, &[]).unwrap();
            let tokens: usize = answers.iter().map(Vec::len).sum();
            println!("round {round}: {name}: {:.3} s, {tokens} tokens", started.elapsed().as_secs_f64());
        }
        let started = Instant::now();
        for prompt in &prompts[..64] {
            card.generate(prompt, &greedy, &[]).unwrap();
        }
        println!("round {round}: 64 greedy one by one: {:.3} s", started.elapsed().as_secs_f64());
    }
}

fn gemma_270m() -> Gemma3 {
    let shape = Shape { heads: 4, kv_heads: 1, dim: 256, hidden: 640, inner: 2048, window: 512, tied: true };
    large_model(&shape, 18, 262_144)
}
