//! Several GPUs against one of them, which accumulates as many batches. Where there is one GPU or none, it
//! is said, and what can be said without them is looked at.

use std::path::Path;
use std::time::Instant;

use emoji_lab::model::generate_batch_ids;
use emoji_lab::prelude::*;
use emoji_lab::train::StepResult;

use super::*;

/// All GPUs and the first of them, in f32; none where there are not two, said aloud.
fn gpus() -> Option<(Device, Device)> {
    let all = match Device::cuda_all() {
        Ok(all) => all,
        Err(error) => {
            assert!(error.to_string().starts_with("device cuda:0"), "{error}");
            println!("skipped on GPUs: {error}");
            return None;
        }
    };
    if all.count() < 2 {
        println!("skipped: there is one GPU, {all}");
        let error = Device::cuda_list(&[0, 1]).unwrap_err().to_string();
        assert!(error.contains("cuda:1: the driver shows no"), "{error}");
        return None;
    }
    println!("{all}");
    Some((all.with_dtype(DType::F32).unwrap(), Device::cuda(0).unwrap().with_dtype(DType::F32).unwrap()))
}

fn train(mut finetune: Finetune, steps: &[usize]) -> (Finetune, Vec<StepResult>) {
    let all = batches(steps.iter().sum(), 3);
    let mut first = 0;
    let mut results = vec![];
    for count in steps {
        results.push(finetune.step(&all[first..first + count], 1e-3).unwrap());
        first += count;
    }
    (finetune, results)
}

fn recipes() -> Vec<(&'static str, Shape, LoraConfig, QuantConfig)> {
    let whole = LoraConfig { lora_dropout: 0.25, ..LoraConfig::default() };
    let of_rows = |ids: Vec<u32>| LoraConfig {
        modules_to_save: vec![],
        trainable_token_indices: TokenIndices::Ids(ids),
        ..whole.clone()
    };
    let adapters = LoraConfig { modules_to_save: vec![], ..whole.clone() };
    let untied = LoraConfig { ensure_weight_tying: false, ..whole.clone() };
    let some: Vec<u32> = (0..VOCAB as u32).filter(|id| id % 3 != 1).collect();
    vec![
        ("adapters and embedding", SHAPES[0], whole.clone(), QuantConfig::default()),
        ("the same, sizes of 270M", SHAPES[3], whole.clone(), QuantConfig::default()),
        ("rows, tied", SHAPES[0], of_rows(some.clone()), QuantConfig::default()),
        ("rows, own head", SHAPES[1], of_rows(some), QuantConfig::none()),
        ("adapters alone", SHAPES[2], adapters, QuantConfig::default()),
        ("own embedding, own head", SHAPES[1], untied, QuantConfig::none()),
    ]
}

#[test]
fn a_step_is_that_of_one_gpu_with_accumulation() {
    let Some((all_gpus, one)) = gpus() else { return };
    let count = all_gpus.count();
    // Whole turns, accumulated ones, ones in which not every GPU has a batch.
    let steps = [count, count, 2 * count, count + 1, 1, count - 1, 3 * count];
    for (name, shape, lora, quant) in recipes() {
        let base = model(&shape, 7);
        let of = |device: &Device| train(start(&base.to_device(device), &lora, &quant, DType::F32), &steps);
        let ((ours, results), (theirs, expected)) = (of(&all_gpus), of(&one));
        assert_eq!((ours.ranks(), theirs.ranks()), (count, 1));
        for (ours, theirs) in results.iter().zip(&expected) {
            assert_eq!(ours.tokens, theirs.tokens);
            assert!((ours.loss / theirs.loss - 1.0).abs() < 1e-5, "{name}: {ours:?} {theirs:?}");
            assert!((ours.grad_norm / theirs.grad_norm - 1.0).abs() < 1e-4, "{name}: {ours:?} {theirs:?}");
        }
        close(&format!("{name}, last gradients"), &ours, &theirs, Buffer::Gradients, 1e-2);
        close(&format!("{name}, values"), &ours, &theirs, Buffer::Values, 1e-2);
        let held_out = batches(7, 11);
        for (a, b) in ours.losses(&held_out).unwrap().iter().zip(theirs.losses(&held_out).unwrap()) {
            assert!(a.rows == b.rows && (a.sum / b.sum - 1.0).abs() < 1e-5, "{name}: {a:?} {b:?}");
        }
        // The first step's gradients are not yet of different models.
        let first =
            |device: &Device| train(start(&base.to_device(device), &lora, &quant, DType::F32), &steps[..1]).0;
        close(&format!("{name}, first gradients"), &first(&all_gpus), &first(&one), Buffer::Gradients, 1e-4);
    }
}

#[test]
fn in_bf16_it_is_within_the_usual_bar() {
    let Some((all_gpus, one)) = gpus() else { return };
    let (Ok(all_gpus), Ok(one)) = (all_gpus.with_dtype(DType::BF16), one.with_dtype(DType::BF16)) else {
        return println!("skipped in bf16: the GPUs have none");
    };
    let steps = vec![all_gpus.count(); 6];
    for (name, shape, lora, quant) in recipes() {
        let base = model(&shape, 7);
        let of =
            |device: &Device| train(start(&base.to_device(device), &lora, &quant, DType::BF16), &steps).1;
        for (ours, theirs) in of(&all_gpus).iter().zip(of(&one)) {
            assert!((ours.loss / theirs.loss - 1.0).abs() < 1e-2, "{name}: {ours:?} {theirs:?}");
        }
    }
}

#[test]
fn several_gpus_repeat_themselves_bit_for_bit() {
    let Some((all_gpus, _)) = gpus() else { return };
    let steps = [all_gpus.count(), all_gpus.count() + 1, 2 * all_gpus.count(), 1];
    for dtype in [DType::F32, DType::BF16] {
        let Ok(device) = all_gpus.with_dtype(dtype) else { continue };
        for (name, shape, lora, quant) in recipes() {
            let base = model(&shape, 1).to_device(&device);
            for moments in [DType::F32, DType::BF16] {
                let run = || {
                    let (finetune, results) = train(start(&base, &lora, &quant, moments), &steps);
                    let losses: Vec<(f64, f64)> = results.iter().map(|r| (r.loss, r.grad_norm)).collect();
                    (losses, all(&finetune, Buffer::Values), all(&finetune, Buffer::ExpAvgSq))
                };
                assert!(run() == run(), "{name}, {dtype:?}, moments in {moments:?}");
            }
        }
    }
}

fn args(dir: &Path, accumulation: usize) -> SftConfig {
    SftConfig {
        output_dir: dir.to_path_buf(),
        num_train_epochs: 2.0,
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: accumulation,
        learning_rate: 1e-3,
        logging_strategy: Strategy::Steps(1),
        eval_strategy: Strategy::Epoch,
        save_strategy: Strategy::Steps(3),
        save_total_limit: None,
        predict_with_generate: true,
        max_predict_samples: 20,
        report_to_tensorboard: false,
        progress_lines: 0,
        ..SftConfig::default()
    }
}

fn trainer(device: &Device, dir: &Path) -> SftTrainer {
    let base = load_model("embedded", device).unwrap();
    let rows = format_chat(&load_dataset("embedded", Task::emoji()).unwrap());
    let (train, test) = (rows.take(41), rows.take(30));
    // Two batches a step, whoever does them.
    let args = args(dir, 2 / device.count());
    let (quant, lora) = (QuantConfig::default(), LoraConfig::default());
    SftTrainer::new(&base, &train, Some(&test), &quant, Some(&lora), &args).unwrap()
}

fn losses(trainer: &SftTrainer) -> Vec<(usize, f64)> {
    let of = |e: &emoji_lab::train::LogEntry| Some((e.step, e.loss.or(e.eval_loss)?));
    trainer.log_history().iter().filter_map(of).collect()
}

#[test]
fn a_run_goes_on_on_one_gpu_and_on_two() {
    let Some((_, one)) = gpus() else { return };
    let two = Device::cuda_list(&[0, 1]).unwrap().with_dtype(DType::F32).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [on_one, on_two] = [("one", &one), ("two", &two)].map(|(name, device)| {
        let mut trainer = trainer(device, &dir.path().join(name));
        trainer.train().unwrap();
        trainer
    });
    let alike = |what: &str, ours: &SftTrainer| {
        let (ours, theirs) = (losses(ours), losses(&on_one));
        assert_eq!(ours.len(), theirs.len());
        let mut worst = 0.0f64;
        for (a, b) in ours.iter().zip(&theirs) {
            worst = worst.max((a.1 / b.1 - 1.0).abs());
            // A run's rounding grows with its steps.
            assert!(a.0 == b.0 && (a.1 / b.1 - 1.0).abs() < 1e-3, "{what}: {a:?} {b:?}");
        }
        let (first, other) = (ours[0].1, theirs[0].1);
        assert!((first / other - 1.0).abs() < 1e-5, "{what}: {first} {other}");
        println!("{what}: losses of {} entries differ by {worst:.1e} at most", ours.len());
    };
    alike("two beside one", &on_two);
    println!("{}", on_two.parameter_report());
    assert!(on_two.parameter_report().to_string().contains("on cuda:1"));
    for (from, device) in [("two", &one), ("one", &two), ("two", &two)] {
        let mut resumed = trainer(device, &dir.path().join(format!("{from}-on-{}", device.count())));
        resumed.resume_from_checkpoint(dir.path().join(from).join("checkpoint-3")).unwrap();
        alike(&format!("from {from} on {}", device.count()), &resumed);
        if from == "two" && device.count() == 2 {
            assert_eq!(losses(&resumed), losses(&on_two), "the same bits");
        }
    }
}

#[test]
fn answers_are_those_of_one_gpu() {
    let Some((all_gpus, one)) = gpus() else { return };
    let prompts: Vec<Vec<u32>> =
        (0..253u32).map(|i| (0..3 + i % 40).map(|t| (t * 31 + i * 7) % 2_000).collect()).collect();
    for dtype in [DType::F32, DType::BF16] {
        let (Ok(all_gpus), Ok(one)) = (all_gpus.with_dtype(dtype), one.with_dtype(dtype)) else { continue };
        let [of_all, of_one] = [&all_gpus, &one].map(|device| load_model("embedded", device).unwrap());
        for config in [
            GenerationConfig::greedy(32),
            GenerationConfig { do_sample: true, seed: 5, ..GenerationConfig::greedy(24) },
        ] {
            let answers = |model: &Model| {
                generate_batch_ids(model, &prompts, &config).unwrap();
                let started = Instant::now();
                let answers = generate_batch_ids(model, &prompts, &config).unwrap();
                (answers, started.elapsed().as_secs_f64())
            };
            let ((ours, seconds), (theirs, alone)) = (answers(&of_all), answers(&of_one));
            assert!(ours == theirs, "{dtype:?}, {config:?}");
            println!(
                "253 answers in {dtype:?}: {seconds:.3} s on {} GPUs, {alone:.3} s on one",
                all_gpus.count()
            );
        }
    }
}

#[test]
fn a_gpu_that_is_full_is_named() {
    let Some((all_gpus, _)) = gpus() else { return };
    let base = model(&SHAPES[0], 7).to_device(&all_gpus);
    let lora = LoraConfig::default();
    let mut finetune = start(&base, &lora, &QuantConfig::default(), DType::F32);
    let error = finetune.reserve(1 << 30).unwrap_err().to_string();
    assert!(error.starts_with("device cuda:") && error.contains("out of memory"), "{error}");
    // And training goes on.
    finetune.step(&batches(all_gpus.count(), 1), 1e-3).unwrap();
    // What is wrong with one GPU's batch is said of that GPU, and nothing is applied.
    let mut bad = batches(2, 1);
    bad[1] = Batch::from_rows(&[Row::whole(vec![1, VOCAB as u32])]);
    let before = all(&finetune, Buffer::Values);
    let error = finetune.step(&bad, 1e-3).unwrap_err().to_string();
    assert!(error.contains("cuda:1: token") && error.contains("vocabulary"), "{error}");
    assert!(all(&finetune, Buffer::Values) == before);
    finetune.step(&batches(all_gpus.count(), 1), 1e-3).unwrap();
}
