use std::path::Path;
use std::time::Duration;

use candle_core::DType;

use super::cpu::{Fails, Meeting};
use super::*;
use crate::data::{ChatDataset, format_chat, load_dataset};
use crate::device::Device;
use crate::lora::{LoraConfig, TokenIndices};
use crate::model::load_model;
use crate::ops::adamw::AdamW;
use crate::quant::QuantConfig;
use crate::rng::Philox;
use crate::task::EmojiFilter;
use crate::train::engine::Settings;
use crate::train::{Finetune, LogEntry, Row, SftConfig, SftTrainer, Strategy};

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-5 * a.abs().max(b.abs()).max(1e-3)
}

#[test]
fn sums_are_those_of_a_plain_loop() {
    for ranks in 1..=4usize {
        let meeting = Meeting::of(ranks);
        let numbers = |rank: usize, round: usize| -> Vec<f64> {
            let mut random = Philox::new(rank as u64, round as u64);
            (0..50 + round).map(|_| f64::from(random.next_f32()) - 0.5).collect()
        };
        let sums: Vec<Vec<Vec<f64>>> = std::thread::scope(|scope| {
            let own = |rank: usize| {
                let meeting = meeting.clone();
                scope.spawn(move || {
                    let sum = |round| meeting.sum(rank, &numbers(rank, round)).unwrap();
                    (0..20).map(sum).collect()
                })
            };
            let threads: Vec<_> = (0..ranks).map(own).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for round in 0..20 {
            let mut expected = vec![0.0; 50 + round];
            for rank in 0..ranks {
                expected.iter_mut().zip(numbers(rank, round)).for_each(|(sum, one)| *sum += one);
            }
            assert!(sums.iter().all(|of_rank| of_rank[round] == expected), "{ranks} ranks, round {round}");
        }
    }
}

#[test]
fn who_waits_is_let_go() {
    let meeting = Meeting::of(2);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| meeting.sum(0, &[1.0]));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        meeting.abort();
        let said = waiting.join().unwrap().unwrap_err().to_string();
        assert!(said.starts_with("device cpu:0: another device has failed"), "{said}");
    });
    assert!(meeting.sum(1, &[1.0]).is_err(), "also who comes later");
}

/// Batches of different lengths, of different numbers of targets.
fn batches(count: usize) -> Vec<Batch> {
    let mut random = Philox::new(3, 0);
    (0..count)
        .map(|i| {
            let mut row = |len: usize, prompt: usize| {
                Row::after((0..len).map(|_| random.below(2_000) as u32).collect(), prompt)
            };
            Batch::from_rows(&[row(5 + i % 4, 0), row(9 - i % 3, 1 + i % 2)])
        })
        .collect()
}

fn settings(state_dtype: DType) -> Settings {
    let optimizer = AdamW { state_dtype, ..AdamW::default() };
    Settings { optimizer, max_grad_norm: 0.5, seed: 7 }
}

fn finetune(lora: Option<&LoraConfig>, settings: Settings) -> Finetune {
    let model = load_model("embedded", &Device::Cpu).unwrap();
    let quant = if lora.is_some() { QuantConfig::default() } else { QuantConfig::none() };
    let Settings { optimizer, max_grad_norm, seed } = settings;
    Finetune::new(&model.gemma, &quant, lora, optimizer, max_grad_norm, seed).unwrap()
}

/// What steps of these numbers of batches give, and the parameters and moments after them.
fn train(mut finetune: Finetune, steps: &[usize]) -> (Vec<StepResult>, Vec<Vec<f32>>) {
    let all = batches(steps.iter().sum());
    let (mut first, mut results) = (0, vec![]);
    for (i, count) in steps.iter().enumerate() {
        // A warmup's first step moves nothing.
        let rate = if i == 0 { 0.0 } else { 1e-3 };
        results.push(finetune.step(&all[first..first + count], rate).unwrap());
        first += count;
    }
    let flat = |buffer: Buffer| {
        let parts = finetune.slots().iter().map(|slot| finetune.read(buffer, slot).unwrap().flatten_all());
        Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>().unwrap(), 0).unwrap().to_vec1().unwrap()
    };
    (results, [Buffer::Values, Buffer::Gradients, Buffer::ExpAvg, Buffer::ExpAvgSq].map(flat).into())
}

/// The largest difference, by the largest value.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    let largest = a.iter().fold(1e-30f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

/// Several devices do the step that one does which accumulates as much: dropout, clipping, both learning
/// rates, bf16 moments' rounding, steps of fewer batches than there are devices.
#[test]
fn a_step_is_that_of_one_device_with_accumulation() {
    let steps = [4, 4, 3, 1, 2, 6];
    let of_rows = LoraConfig { trainable_token_indices: TokenIndices::Ids((0..900).collect()), ..adapters() };
    for (lora, dtype) in
        [(Some(LoraConfig::default()), DType::F32), (Some(of_rows), DType::BF16), (None, DType::F32)]
    {
        let settings = settings(dtype);
        let new = || finetune(lora.as_ref(), settings).with_embedding_rate(0.5);
        let (one, at_end) = train(new(), &steps);
        for ranks in [2, 3] {
            let fails = vec![None; ranks];
            let (several, there) = train(new().on_cpus(settings, &fails).unwrap(), &steps);
            for (a, b) in one.iter().zip(&several) {
                assert!(close(a.loss, b.loss) && close(a.grad_norm, b.grad_norm), "{a:?} {b:?}");
                assert_eq!(a.tokens, b.tokens);
            }
            for (buffer, (a, b)) in at_end.iter().zip(&there).enumerate() {
                // Where rounding to bf16 is at the edge, a last bit decides.
                let bar = if dtype == DType::BF16 && buffer != 1 { 2e-2 } else { 1e-5 };
                assert!(apart(a, b) < bar, "{ranks} ranks, buffer {buffer}: {}", apart(a, b));
            }
            let (again, once_more) = train(new().on_cpus(settings, &fails).unwrap(), &steps);
            assert!(again == several && once_more == there, "another run, other bits");
        }
    }
}

fn adapters() -> LoraConfig {
    LoraConfig { modules_to_save: vec![], ..LoraConfig::default() }
}

/// All ranks have the same bits, also in moments of random rounding.
#[test]
fn ranks_stay_the_same() {
    let settings = settings(DType::BF16);
    let finetune = finetune(Some(&LoraConfig::default()), settings);
    let all = batches(7);
    let mut ranks =
        super::cpu::ranks(&finetune.model().unwrap(), &finetune.layout, settings, &[None; 3]).unwrap();
    for (number, batches) in [(1, &all[..4]), (2, &all[4..])] {
        let step = Step {
            number,
            learning_rate: 1e-3,
            embedding_learning_rate: 1e-3,
            targets: batches.iter().map(Batch::target_count).sum(),
            first_pass: 4 * (number as u64 - 1),
            passes_apart: 1,
            last_pass: 4 * (number as u64 - 1) + batches.len() as u64 - 1,
            check: Some(number),
        };
        let ticket = ranks.submit(batches, &step).unwrap();
        ranks.wait(ticket).unwrap();
    }
    for buffer in [Buffer::Values, Buffer::Gradients, Buffer::ExpAvg, Buffer::ExpAvgSq] {
        for slot in finetune.slots() {
            let values = ranks
                .each(|_| {
                    let slot = slot.clone();
                    Box::new(move |rank| Ok(rank.read(buffer, &slot)?.flatten_all()?.to_vec1::<f32>()?))
                })
                .unwrap();
            assert!(values.iter().all(|of_rank| *of_rank == values[0]), "{buffer:?} of {}", slot.name);
        }
    }
}

#[test]
fn losses_are_those_of_one_device() {
    let settings = settings(DType::F32);
    let new = || finetune(Some(&adapters()), settings);
    let all = batches(7);
    let one = new().losses(&all).unwrap();
    for ranks in [2, 3, 8] {
        let several = new().on_cpus(settings, &vec![None; ranks]).unwrap();
        let there = several.losses(&all).unwrap();
        assert!(one.iter().zip(&there).all(|(a, b)| (a.sum, a.rows) == (b.sum, b.rows)));
        assert_eq!((there.len(), several.ranks()), (7, ranks));
        assert!(several.losses(&[]).unwrap().is_empty());
    }
}

fn rows(count: usize) -> ChatDataset {
    format_chat(&load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap()).take(count)
}

fn args(dir: &Path, accumulation: usize) -> SftConfig {
    SftConfig {
        output_dir: dir.to_path_buf(),
        num_train_epochs: 2.0,
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: accumulation,
        learning_rate: 2e-3,
        logging_strategy: Strategy::Steps(1),
        eval_strategy: Strategy::Epoch,
        save_strategy: Strategy::Steps(1),
        save_total_limit: None,
        max_predict_samples: 5,
        predict_with_generate: true,
        report_to_tensorboard: false,
        progress_lines: 0,
        ..SftConfig::default()
    }
}

/// On one device that accumulates two batches, or on two.
fn trainer(dir: &Path, on_two: bool) -> SftTrainer {
    trainer_that_fails(dir, on_two, None)
}

fn trainer_that_fails(dir: &Path, on_two: bool, fails: Option<(usize, Fails)>) -> SftTrainer {
    let model = load_model("embedded", &Device::Cpu).unwrap();
    let args = args(dir, if on_two { 1 } else { 2 });
    // 13 rows: six batches of two and one of one, so that an epoch's fourth step has a single batch.
    let (train, test) = (rows(13), rows(5));
    let new = SftTrainer::new(&model, &train, Some(&test), &QuantConfig::default(), Some(&adapters()), &args);
    let new = new.unwrap();
    if on_two { new.on_cpus(&[None, fails]).unwrap() } else { new }
}

/// The numbers that a log tells, without times: the step, loss, norm, evaluation loss, tokens and F1.
fn numbers(log: &[LogEntry]) -> Vec<(usize, [Option<f64>; 5])> {
    let of = |e: &LogEntry| {
        let f1 = e.other.get("eval_f1").and_then(serde_json::Value::as_f64);
        (e.step, [e.loss, e.grad_norm, e.eval_loss, e.num_tokens, f1])
    };
    log.iter().map(of).collect()
}

fn assert_alike(one: &SftTrainer, other: &SftTrainer) {
    let (a, b) = (numbers(one.log_history()), numbers(other.log_history()));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        let alike = a.1.iter().zip(&b.1).enumerate().all(|(which, (a, b))| match (a, b) {
            (Some(a), Some(b)) if which < 3 => close(*a, *b),
            (a, b) => a == b,
        });
        assert!(a.0 == b.0 && alike, "{a:?} {b:?}");
    }
}

#[test]
fn a_run_is_alike_on_one_and_on_two_and_goes_on_there() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    let (mut on_one, mut on_two) = (trainer(&one, false), trainer(&two, true));
    on_one.train().unwrap();
    on_two.train().unwrap();
    assert_eq!((on_one.state().max_steps, on_one.state().global_step), (8, 8));
    assert_alike(&on_one, &on_two);
    assert!(on_two.log_history().iter().any(|entry| entry.other.contains_key("eval_f1")));
    let rate = |run: &SftTrainer| {
        let last = run.log_history().last().unwrap();
        last.train_samples_per_second.unwrap() * last.train_runtime.unwrap()
    };
    assert!(close(rate(&on_one), rate(&on_two)), "rows are counted alike");
    for step in [3, 4, 7] {
        for (from, on_two_there) in [(&one, true), (&two, false), (&two, true)] {
            let to = dir.path().join(format!("{step}-{on_two_there}-{}", from.ends_with("two")));
            let mut resumed = trainer(&to, on_two_there);
            resumed.resume_from_checkpoint(from.join(format!("checkpoint-{step}"))).unwrap();
            assert_alike(&resumed, &on_one);
            if on_two_there && from.ends_with("two") {
                for file in ["adapter_model.safetensors", "optimizer.safetensors", "training_state.json"] {
                    let read = |dir: &Path| std::fs::read(dir.join("checkpoint-8").join(file)).unwrap();
                    assert!(read(&to) == read(&two), "{file}, resumed after step {step}");
                }
            }
        }
    }
}

#[test]
fn another_number_of_devices_without_as_much_accumulation_is_another_run() {
    let dir = tempfile::tempdir().unwrap();
    trainer(dir.path(), true).train().unwrap();
    let model = load_model("embedded", &Device::Cpu).unwrap();
    let args = args(dir.path(), 1);
    let lora = adapters();
    let quant = QuantConfig::default();
    let new = SftTrainer::new(&model, &rows(13), Some(&rows(5)), &quant, Some(&lora), &args);
    let said = new.unwrap().resume().unwrap_err().to_string();
    let differs = "gradient_accumulation_steps (of all devices together): 2 there, 1 here";
    assert!(said.contains(differs), "{said}");
}

#[test]
fn what_fails_on_one_device_alone_can_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, broken] = ["whole", "broken"].map(|name| dir.path().join(name));
    trainer(&whole, true).train().unwrap();
    let mut run = trainer_that_fails(&broken, true, Some((5, Fails::Alone)));
    let said = run.train().unwrap_err().to_string();
    assert_eq!(said, "training: cpu:1: a rehearsed failure. Try again");
    assert_eq!(run.state().global_step, 4);
    run.train().unwrap();
    for file in ["adapter_model.safetensors", "optimizer.safetensors", "training_state.json"] {
        let read = |dir: &Path| std::fs::read(dir.join("checkpoint-8").join(file)).unwrap();
        assert!(read(&broken) == read(&whole), "{file}");
    }
}

#[test]
fn a_device_that_fails_lets_the_others_go_and_names_the_last_checkpoint() {
    for (fails, problem) in [(Fails::Together, "a rehearsed failure"), (Fails::Panics, "a rehearsed panic")] {
        let dir = tempfile::tempdir().unwrap();
        let mut run = trainer_that_fails(dir.path(), true, Some((5, fails)));
        let said = run.train().unwrap_err().to_string();
        assert!(said.starts_with(&format!("device cpu:1: {problem}. ")), "{said}");
        let last = format!("The last whole checkpoint is {}", dir.path().join("checkpoint-4").display());
        assert!(said.ends_with(&last) && said.lines().count() == 1, "{said}");
        // What the ranks have by now is of no step.
        let said = run.train().unwrap_err().to_string();
        assert!(said.starts_with("device cpu:0, cpu:1: one of them has failed"), "{said}");
        assert!(
            run.model().is_err() && run.save_model(dir.path().join("a")).is_err() && run.evaluate().is_err()
        );
        drop(run);
        let mut next = trainer(dir.path(), true);
        next.resume().unwrap();
        assert_eq!(next.state().global_step, 8);
        let other = tempfile::tempdir().unwrap();
        let mut whole = trainer(other.path(), true);
        whole.train().unwrap();
        assert_eq!(numbers(next.log_history()), numbers(whole.log_history()));
    }
}

#[test]
fn what_all_devices_say_is_said_once() {
    let settings = settings(DType::F32);
    let mut finetune = finetune(Some(&adapters()), settings).on_cpus(settings, &[None; 2]).unwrap();
    let slot = finetune.slots()[0].clone();
    let good = finetune.value(&slot).unwrap();
    let values = Tensor::full(f32::NAN, slot.dims.as_slice(), &candle_core::Device::Cpu).unwrap();
    finetune.write(Buffer::Values, &slot, &values).unwrap();
    let said = finetune.step(&batches(2), 1e-3).unwrap_err().to_string();
    assert!(!said.contains("cpu:") && said.contains("not finite"), "{said}");
    // It is no device's fault: with good values it goes on.
    finetune.write(Buffer::Values, &slot, &good).unwrap();
    assert!(finetune.step(&batches(2), 0.0).is_ok());
}

#[test]
fn memory_is_told_for_each_device() {
    let dir = tempfile::tempdir().unwrap();
    let told = trainer(dir.path(), true).parameter_report().notes.join(" ");
    assert!(told.contains("0.00 GB on cpu:0, 0.00 GB on cpu:1"), "{told}");
}
