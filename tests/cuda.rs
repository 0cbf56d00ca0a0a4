//! The GPU against the CPU: the same model, rows, seed and dropout on both, in f32.
//!
//! Activations and gradients on the GPU begin as NaN, so what a kernel leaves out does not pass for
//! a zero. Without a GPU the error is looked at instead, and the comparisons say that they are
//! skipped.
#![cfg(feature = "cuda")]

#[path = "cuda_batch.rs"]
mod batch;
#[path = "cuda_ranks.rs"]
mod ranks;
#[path = "cuda_resume.rs"]
mod resume;
#[path = "cuda_whole.rs"]
mod whole;

use candle_core::Tensor;
use emoji_lab::lora::{LoraConfig, TokenIndices};
use emoji_lab::model::{Gemma3, Gemma3Config, GenerationConfig, Weights, tensor_shapes};
use emoji_lab::ops::adamw::AdamW;
use emoji_lab::quant::QuantConfig;
use emoji_lab::rng::Philox;
use emoji_lab::train::{Batch, Buffer, Finetune, Row};
use emoji_lab::{DType, Device};

fn optimizer(state_dtype: DType) -> AdamW {
    AdamW { state_dtype, ..AdamW::default() }
}

/// At rank 24 the embedding learns half as fast as the adapters.
fn start(base: &Gemma3, lora: &LoraConfig, quant: &QuantConfig, state_dtype: DType) -> Finetune {
    let rate = if lora.r == 24 { 0.5 } else { 1.0 };
    Finetune::new(base, quant, Some(lora), optimizer(state_dtype), 1.0, 42).unwrap().with_embedding_rate(rate)
}

/// The GPU in f32, or none, said aloud.
fn gpu() -> Option<Device> {
    match Device::cuda(0) {
        Ok(device) => Some(device.with_dtype(DType::F32).unwrap()),
        Err(error) => {
            let text = error.to_string();
            assert!(text.starts_with("device cuda:0: "), "{text}");
            assert!(text.contains("Device::Cpu"), "no way out: {text}");
            println!("skipped on the GPU: {text}");
            None
        }
    }
}

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    hidden: usize,
    inner: usize,
    window: usize,
    tied: bool,
}

const SHAPES: [Shape; 4] = [
    Shape { heads: 4, kv_heads: 1, dim: 32, hidden: 64, inner: 128, window: 6, tied: true },
    Shape { heads: 2, kv_heads: 2, dim: 8, hidden: 40, inner: 72, window: 3, tied: false },
    Shape { heads: 6, kv_heads: 3, dim: 48, hidden: 136, inner: 200, window: 64, tied: true },
    Shape { heads: 4, kv_heads: 1, dim: 256, hidden: 640, inner: 264, window: 16, tied: true },
];
const VOCAB: usize = 520;

fn config_json(shape: &Shape, layers: usize, vocab: usize) -> String {
    format!(
        r#"{{"model_type": "gemma3_text", "vocab_size": {vocab}, "hidden_size": {}, "intermediate_size": {},
        "num_hidden_layers": {layers}, "num_attention_heads": {}, "num_key_value_heads": {}, "head_dim": {},
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": {}, "sliding_window": {},
        "sliding_window_pattern": 2, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "tie_word_embeddings": {}, "hidden_activation": "gelu_pytorch_tanh", "bos_token_id": 2,
        "eos_token_id": 1, "pad_token_id": 0, "attention_bias": false}}"#,
        shape.hidden,
        shape.inner,
        shape.heads,
        shape.kv_heads,
        shape.dim,
        shape.dim,
        shape.window,
        shape.tied
    )
}

fn model(shape: &Shape, seed: u64) -> Gemma3 {
    let config = Gemma3Config::from_json(&config_json(shape, 4, VOCAB), "tests/cuda.rs").unwrap();
    let mut random = Philox::new(seed, 0);
    let mut weights = Weights::new("random", Default::default());
    for (name, dims) in tensor_shapes(&config) {
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| (random.next_f32() - 0.5) * 0.3).collect();
        weights.tensors.insert(name, Tensor::from_vec(values, dims, &candle_core::Device::Cpu).unwrap());
    }
    Gemma3::new(&config, &weights, &Device::Cpu).unwrap()
}

/// Batches of rows of odd lengths, some ids more than once, the prompt of every third left out of
/// the loss.
fn batches(count: usize, seed: u64) -> Vec<Batch> {
    let mut random = Philox::new(seed, 1);
    let mut row = |i: usize| {
        let len = 2 + random.below(37) as usize;
        let ids = (0..len)
            .map(|_| random.below(if i.is_multiple_of(2) { VOCAB as u64 } else { 9 }) as u32)
            .collect();
        Row::after(ids, if i.is_multiple_of(3) { len / 2 } else { 0 })
    };
    (0..count).map(|b| Batch::from_rows(&(0..1 + b % 4).map(&mut row).collect::<Vec<_>>())).collect()
}

fn relative(ours: &[f32], theirs: &[f32]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (a, b) in ours.iter().zip(theirs) {
        difference += (f64::from(*a) - f64::from(*b)).powi(2);
        norm += f64::from(*b).powi(2);
    }
    assert!(ours.iter().all(|v| v.is_finite()));
    (difference / norm.max(1e-30)).sqrt()
}

fn all(finetune: &Finetune, buffer: Buffer) -> Vec<(String, Vec<f32>)> {
    let values = |slot| finetune.read(buffer, slot).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    finetune.slots().iter().map(|slot| (slot.name.clone(), values(slot))).collect()
}

fn close(what: &str, ours: &Finetune, theirs: &Finetune, buffer: Buffer, tolerance: f64) {
    let mut worst = (0.0, String::new());
    for ((name, ours), (_, theirs)) in all(ours, buffer).iter().zip(all(theirs, buffer)) {
        // A tensor whose gradients nearly cancel has more rounding than value.
        if theirs.iter().all(|v| v.abs() < 1e-7) {
            continue;
        }
        let error = relative(ours, &theirs);
        assert!(error < tolerance, "{what}: {name} differs by {error:.2e}");
        if error > worst.0 {
            worst = (error, name.clone());
        }
    }
    println!("{what}: worst {:.1e} ({})", worst.0, worst.1);
}

fn compare(shape: &Shape, lora: &LoraConfig, quant: &QuantConfig, accumulated: usize, device: &Device) {
    let base = model(shape, 7);
    let label = format!(
        "{} heads of {}, r {}, {} × accumulated, 4 bit {}",
        shape.heads, shape.dim, lora.r, accumulated, quant.load_in_4bit
    );
    let of = |device: &Device| start(&base.to_device(device), lora, quant, DType::F32);
    compare_steps(&label, of(device), of(&Device::Cpu), accumulated);
}

/// Four steps of a trainer on the GPU and of the same on the CPU.
fn compare_steps(label: &str, mut gpu: Finetune, mut host: Finetune, accumulated: usize) {
    let steps = batches(4 * accumulated, 3);
    for (i, step) in steps.chunks(accumulated).enumerate() {
        let (ours, theirs) = (gpu.step(step, 1e-3).unwrap(), host.step(step, 1e-3).unwrap());
        assert_eq!(ours.tokens, theirs.tokens);
        assert!(
            (ours.loss / theirs.loss - 1.0).abs() < 1e-5,
            "{label}: loss {} and {}",
            ours.loss,
            theirs.loss
        );
        assert!((ours.grad_norm / theirs.grad_norm - 1.0).abs() < 1e-4, "{label}: norms {ours:?} {theirs:?}");
        // AdamW's first steps go by a gradient's sign: where it is nearly zero rounding decides, and
        // from the second step on the two models are no longer quite the same.
        let tolerance = if i == 0 { 1e-4 } else { 1e-2 };
        close(&format!("{label}, gradients of step {}", i + 1), &gpu, &host, Buffer::Gradients, tolerance);
    }
    close(&format!("{label}, values"), &gpu, &host, Buffer::Values, 1e-2);
    close(&format!("{label}, first moments"), &gpu, &host, Buffer::ExpAvg, 1e-2);
    let held_out = batches(7, 11);
    for (ours, theirs) in gpu.losses(&held_out).unwrap().iter().zip(host.losses(&held_out).unwrap()) {
        assert_eq!(ours.rows, theirs.rows);
        assert!((ours.sum / theirs.sum - 1.0).abs() < 1e-5, "{label}: evaluation {ours:?} {theirs:?}");
    }
    // What is given out is what was trained, not what training began with.
    let given = gpu.model().unwrap().to_device(&Device::Cpu);
    for (batch, theirs) in held_out.iter().zip(host.losses(&held_out).unwrap()) {
        let ours = given.loss(&batch.tokens, &batch.targets).unwrap();
        assert!((ours.sum / theirs.sum - 1.0).abs() < 1e-5, "{label}: model() {ours:?} {theirs:?}");
    }
}

#[test]
fn steps_are_the_cpus() {
    let Some(device) = gpu() else { return };
    let whole = LoraConfig { lora_dropout: 0.25, ..LoraConfig::default() };
    let some = LoraConfig {
        r: 3,
        target_modules: vec!["q_proj".into(), "v_proj".into(), "down_proj".into()],
        modules_to_save: vec![],
        ..whole.clone()
    };
    let high = LoraConfig { r: 24, lora_dropout: 0.0, ensure_weight_tying: false, ..whole.clone() };
    // Of the embedding some rows, whether the batches hold them or not.
    let rows = LoraConfig {
        modules_to_save: vec![],
        trainable_token_indices: TokenIndices::Ids((0..VOCAB as u32).filter(|id| id % 3 != 1).collect()),
        ..whole.clone()
    };
    for shape in &SHAPES {
        for quant in [QuantConfig::default(), QuantConfig::none()] {
            compare(shape, &whole, &quant, 1, &device);
        }
        compare(shape, &rows, &QuantConfig::default(), 1, &device);
        compare(shape, &rows, &QuantConfig::none(), 3, &device);
        compare(shape, &some, &QuantConfig::default(), 1, &device);
        compare(shape, &high, &QuantConfig::none(), 3, &device);
        for r in [65, 128, 256] {
            compare(shape, &LoraConfig { r, ..whole.clone() }, &QuantConfig::default(), 1, &device);
        }
    }
}

#[test]
fn greedy_tokens_are_the_cpus() {
    let Some(device) = gpu() else { return };
    for shape in &SHAPES {
        let base = model(shape, 5);
        let gpu = base.to_device(&device);
        for length in [1, 2, 5, 17, 70] {
            let prompt: Vec<u32> = (0..length).map(|i| (i * 31 + length) % VOCAB as u32).collect();
            assert_eq!(gpu.greedy(&prompt, 30).unwrap(), base.greedy(&prompt, 30).unwrap(), "{length}");
        }
        assert!(gpu.greedy(&[VOCAB as u32], 1).unwrap_err().to_string().contains("ids below"));
    }
}

#[test]
fn drawn_tokens_are_the_cpus() {
    let Some(device) = gpu() else { return };
    let all = GenerationConfig {
        max_new_tokens: 30,
        do_sample: true,
        top_k: 0,
        top_p: 1.0,
        ..GenerationConfig::default()
    };
    let configs = [
        all.clone(),
        GenerationConfig { temperature: 0.6, seed: 7, ..all.clone() },
        GenerationConfig { temperature: 3.0, seed: 8, ..all.clone() },
        GenerationConfig { top_k: 12, ..all.clone() },
        GenerationConfig { top_p: 0.8, ..all.clone() },
        GenerationConfig { top_k: 64, top_p: 0.95, repetition_penalty: 1.3, ..all.clone() },
        GenerationConfig { do_sample: false, repetition_penalty: 1.5, ..all.clone() },
        GenerationConfig::greedy(30),
    ];
    // A random model can be sure of its next token: then two seeds draw the same.
    let mut others = 0;
    for shape in &SHAPES {
        let base = model(shape, 5);
        let gpu = base.to_device(&device);
        for length in [1, 17, 70] {
            let prompt: Vec<u32> = (0..length).map(|i| (i * 31 + length) % VOCAB as u32).collect();
            for config in &configs {
                let ours = gpu.generate(&prompt, config, &[]).unwrap();
                assert_eq!(ours, base.generate(&prompt, config, &[]).unwrap(), "{length}, {config:?}");
                assert_eq!(ours, gpu.generate(&prompt, config, &[]).unwrap(), "{length}, {config:?} again");
                // Ends where the CPU ends: before the first of these.
                let stop = [ours[20], ours[11]];
                let end = ours.iter().position(|token| stop.contains(token)).unwrap();
                assert_eq!(gpu.generate(&prompt, config, &stop).unwrap(), ours[..end]);
            }
            let seeds = [1, 2].map(|seed| GenerationConfig { seed, temperature: 3.0, ..all.clone() });
            let [one, two] = seeds.map(|config| gpu.generate(&prompt, &config, &[]).unwrap());
            others += usize::from(one != two);
        }
    }
    println!(
        "{} settings, {} models: the CPU's tokens; {others} of 12 differ by seed",
        configs.len(),
        SHAPES.len()
    );
    assert!(others >= 6, "{others} of 12");
}

#[test]
fn a_run_repeats_itself_bit_for_bit() {
    let Some(device) = gpu() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let Ok(device) = device.with_dtype(dtype) else {
            println!("skipped in {}: the GPU has none", dtype.as_str());
            continue;
        };
        let base = model(&SHAPES[0], 1).to_device(&device);
        let run = |lora: &LoraConfig, state_dtype| {
            let mut finetune = start(&base, lora, &QuantConfig::default(), state_dtype);
            let step = |b: &Batch| finetune.step(std::slice::from_ref(b), 1e-3).unwrap().loss;
            let losses: Vec<f64> = batches(6, 2).iter().map(step).collect();
            (losses, all(&finetune, Buffer::Values), all(&finetune, Buffer::ExpAvgSq))
        };
        let whole = LoraConfig::default();
        let trainable_token_indices = TokenIndices::Ids((3..90).collect());
        let rows = LoraConfig { modules_to_save: vec![], trainable_token_indices, ..whole.clone() };
        for lora in [&whole, &rows] {
            assert!(run(lora, DType::F32) == run(lora, DType::F32));
            assert!(run(lora, DType::BF16) == run(lora, DType::BF16));
        }
    }
}

#[test]
fn bf16_moments_are_the_cpus() {
    let Some(device) = gpu() else { return };
    for shape in &SHAPES[..2] {
        let base = model(shape, 7);
        let of = |device: &Device| {
            start(&base.to_device(device), &LoraConfig::default(), &QuantConfig::default(), DType::BF16)
        };
        let (mut gpu, mut host) = (of(&device), of(&Device::Cpu));
        for (i, batch) in batches(5, 3).iter().enumerate() {
            let batch = std::slice::from_ref(batch);
            let (ours, theirs) = (gpu.step(batch, 1e-3).unwrap(), host.step(batch, 1e-3).unwrap());
            assert!((ours.loss / theirs.loss - 1.0).abs() < 1e-4, "{ours:?} {theirs:?}");
            if i > 0 {
                continue;
            }
            // The same random words round the same way, but where a last bit of f32 decides.
            for buffer in [Buffer::ExpAvg, Buffer::ExpAvgSq] {
                for ((name, ours), (_, theirs)) in all(&gpu, buffer).iter().zip(all(&host, buffer)) {
                    assert!(ours.iter().all(|v| v.to_bits() & 0xffff == 0), "{name} is not bf16");
                    let other = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
                    assert!(other * 100 <= ours.len() + 100, "{name}: {other} of {} differ", ours.len());
                }
            }
        }
        close("bf16 moments: values", &gpu, &host, Buffer::Values, 1e-2);
        close("bf16 moments: second", &gpu, &host, Buffer::ExpAvgSq, 2e-2);
    }
}

/// What is written to the GPU comes back as it was: f32 values of a head that is kept in halves too.
#[test]
fn values_come_back_as_they_were_written() {
    let Some(device) = gpu() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let Ok(device) = device.with_dtype(dtype) else { continue };
        for (tied, state_dtype) in [(true, DType::F32), (true, DType::BF16), (false, DType::F32)] {
            let base = model(&SHAPES[if tied { 0 } else { 1 }], 3);
            let mut finetune =
                start(&base.to_device(&device), &LoraConfig::default(), &QuantConfig::default(), state_dtype);
            let host = start(&base, &LoraConfig::default(), &QuantConfig::default(), state_dtype);
            assert!(all(&finetune, Buffer::Values) == all(&host, Buffer::Values));
            let mut random = Philox::new(9, 0);
            for buffer in [Buffer::Values, Buffer::Gradients, Buffer::ExpAvg, Buffer::ExpAvgSq] {
                let in_bf16 = match buffer {
                    Buffer::Values => false,
                    Buffer::Gradients => dtype == DType::BF16,
                    Buffer::ExpAvg | Buffer::ExpAvgSq => state_dtype == DType::BF16,
                };
                let keep = if in_bf16 { 0xffff_0000 } else { !0 };
                for slot in &finetune.slots().to_vec() {
                    let mut value = || f32::from_bits((random.next_f32() - 0.5).to_bits() & keep);
                    let values: Vec<f32> = (0..slot.len()).map(|_| value()).collect();
                    let tensor = Tensor::new(values.as_slice(), &candle_core::Device::Cpu).unwrap();
                    finetune.write(buffer, slot, &tensor).unwrap();
                    let read = finetune.read(buffer, slot).unwrap().flatten_all().unwrap();
                    assert!(
                        read.to_vec1::<f32>().unwrap() == values,
                        "{} {buffer:?} in {dtype:?}",
                        slot.name
                    );
                }
            }
        }
    }
}

/// The first losses in bf16 are those in f32, except for rounding (at most 2e-2).
#[test]
fn bf16_losses_are_near() {
    let Some(device) = gpu() else { return };
    let Ok(bf16) = device.with_dtype(DType::BF16) else {
        println!("skipped: this GPU has no bf16");
        return;
    };
    for state_dtype in [DType::F32, DType::BF16] {
        let base = model(&SHAPES[3], 7);
        let of = |device: &Device, state| {
            start(&base.to_device(device), &LoraConfig::default(), &QuantConfig::default(), state)
        };
        let (mut ours, mut theirs) = (of(&bf16, state_dtype), of(&device, DType::F32));
        let mut worst = 0f64;
        for batch in batches(20, 5) {
            let batch = std::slice::from_ref(&batch);
            let (ours, theirs) = (ours.step(batch, 5e-4).unwrap(), theirs.step(batch, 5e-4).unwrap());
            worst = worst.max((ours.loss / theirs.loss - 1.0).abs());
        }
        println!("20 losses in bf16, moments in {state_dtype:?}: worst {worst:.1e}");
        assert!(worst < 2e-2);
    }
}

/// Too large a batch is an error that says how much was needed and what to do; the trainer lives on.
#[test]
fn too_little_memory_is_an_error() {
    let Some(device) = gpu() else { return };
    let base = model(&SHAPES[3], 7).to_device(&device);
    let mut finetune = start(&base, &LoraConfig::default(), &QuantConfig::default(), DType::F32);
    let steps = batches(2, 5);
    finetune.step(&steps[..1], 1e-3).unwrap();
    let values = all(&finetune, Buffer::Values);
    let text = finetune.reserve(1 << 27).unwrap_err().to_string();
    println!("{text}");
    for part in ["out of memory", "GiB", "are free", "per_device_train_batch_size", "Device::Cpu"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(all(&finetune, Buffer::Values) == values);
    assert!(finetune.step(&steps[1..], 1e-3).unwrap().loss.is_finite());
}

#[test]
fn types_it_cannot_compute_in_are_refused() {
    let f16 = Device::Cpu.with_dtype(DType::F16).unwrap_err().to_string();
    assert!(f16.contains("overflow in f16"), "{f16}");
    assert!(Device::by_name("tpu").unwrap_err().to_string().contains("use auto, cpu, cuda"));
    let Some(device) = gpu() else { return };
    assert!(device.with_dtype(DType::F16).is_err() && device.with_dtype(DType::I64).is_err());
    assert!(Device::cuda(99).unwrap_err().to_string().contains("the driver shows"));
}

/// Rows of these lengths in one batch.
fn rows(lengths: &[usize], seed: u64) -> Batch {
    let mut random = Philox::new(seed, 2);
    let mut row = |len: &usize| Row::whole((0..*len).map(|_| random.below(VOCAB as u64) as u32).collect());
    Batch::from_rows(&lengths.iter().map(&mut row).collect::<Vec<_>>())
}

/// Sixty-four rows of 256 tokens are a usual batch on a large GPU, the embedding trained with them.
#[test]
fn batches_of_many_tokens_are_the_cpus() {
    let Some(device) = gpu() else { return };
    let lora = LoraConfig::default();
    for tied in [true, false] {
        let base = model(&Shape { tied, ..SHAPES[0] }, 7);
        let of = |device: &Device| start(&base.to_device(device), &lora, &QuantConfig::none(), DType::F32);
        for batch in [rows(&[256; 64], 3), rows(&[509; 40], 4)] {
            let batch = std::slice::from_ref(&batch);
            let (mut gpu, mut again, mut host) = (of(&device), of(&device), of(&Device::Cpu));
            let (ours, theirs) = (gpu.step(batch, 1e-3).unwrap(), host.step(batch, 1e-3).unwrap());
            assert!(ours.tokens > 12_288 && ours.tokens == theirs.tokens);
            assert!((ours.loss / theirs.loss - 1.0).abs() < 1e-5, "{ours:?} {theirs:?}");
            assert!((ours.grad_norm / theirs.grad_norm - 1.0).abs() < 1e-4, "{ours:?} {theirs:?}");
            let label = format!("{} tokens, tied {tied}", ours.tokens);
            close(&label, &gpu, &host, Buffer::Gradients, 1e-3);
            again.step(batch, 1e-3).unwrap();
            assert!(all(&gpu, Buffer::Values) == all(&again, Buffer::Values), "{label}: two runs differ");
            let (ours, theirs) = (gpu.losses(batch).unwrap(), host.losses(batch).unwrap());
            assert!((ours[0].sum / theirs[0].sum - 1.0).abs() < 1e-4, "{label}: {ours:?} {theirs:?}");
        }
        if let Ok(bf16) = device.with_dtype(DType::BF16) {
            let (mut ours, mut theirs) = (of(&bf16), of(&device));
            let batch = [rows(&[256; 64], 3)];
            let (ours, theirs) = (ours.step(&batch, 1e-3).unwrap(), theirs.step(&batch, 1e-3).unwrap());
            assert!((ours.loss / theirs.loss - 1.0).abs() < 2e-2, "bf16: {ours:?} {theirs:?}");
        }
    }
}

/// Two layers of the sizes of Gemma 3 12B, whose rows take more shared memory than a block gets unasked.
#[test]
fn layers_of_12b_are_the_cpus() {
    let Some(device) = gpu() else { return };
    let shape =
        Shape { heads: 16, kv_heads: 8, dim: 256, hidden: 3840, inner: 15_360, window: 16, tied: true };
    let base = large_model(&shape, 2, VOCAB);
    let gpu = base.to_device(&device);
    for lora_dropout in [0.0, 0.25] {
        let lora = LoraConfig { lora_dropout, ..LoraConfig::default() };
        let of = |model: &Gemma3| start(model, &lora, &QuantConfig::none(), DType::F32);
        let (mut ours, mut theirs) = match of_or_refusal(&gpu, &lora) {
            Ok(ours) => (ours, of(&base)),
            Err(text) => {
                assert!(text.contains("bytes of shared memory per block"), "{text}");
                println!("refused on this GPU: {text}");
                continue;
            }
        };
        let batch = [rows(&[9, 5, 14], 3)];
        let (a, b) = (ours.step(&batch, 1e-3).unwrap(), theirs.step(&batch, 1e-3).unwrap());
        assert!((a.loss / b.loss - 1.0).abs() < 1e-4, "{a:?} {b:?}");
        assert!((a.grad_norm / b.grad_norm - 1.0).abs() < 1e-3, "{a:?} {b:?}");
        close(&format!("12B, dropout {lora_dropout}"), &ours, &theirs, Buffer::Gradients, 1e-3);
    }
    let prompt: Vec<u32> = (0..12).map(|i| i * 41 % VOCAB as u32).collect();
    assert_eq!(gpu.greedy(&prompt, 8).unwrap(), base.greedy(&prompt, 8).unwrap());
}

fn of_or_refusal(model: &Gemma3, lora: &LoraConfig) -> Result<Finetune, String> {
    Finetune::new(model, &QuantConfig::none(), Some(lora), optimizer(DType::F32), 1.0, 42)
        .map_err(|e| e.to_string())
}

/// As [`model`], of `layers` layers and `vocab` tokens, from a block of random numbers that is repeated.
fn large_model(shape: &Shape, layers: usize, vocab: usize) -> Gemma3 {
    let config = Gemma3Config::from_json(&config_json(shape, layers, vocab), "tests/cuda.rs").unwrap();
    let mut random = Philox::new(7, 0);
    // As many as a prime: rows do not repeat each other.
    let block: Vec<f32> = (0..1_048_573).map(|_| (random.next_f32() - 0.5) * 0.05).collect();
    let mut numbers = block.iter().copied().cycle();
    let mut weights = Weights::new("random", Default::default());
    for (name, dims) in tensor_shapes(&config) {
        let values: Vec<f32> = numbers.by_ref().take(dims.iter().product()).collect();
        weights.tensors.insert(name, Tensor::from_vec(values, dims, &candle_core::Device::Cpu).unwrap());
    }
    Gemma3::new(&config, &weights, &Device::Cpu).unwrap()
}

/// What the kernels do not take is refused by the field's name.
#[test]
fn sizes_beyond_the_kernels_are_named() {
    let Some(device) = gpu() else { return };
    let small = Shape { heads: 4, kv_heads: 2, dim: 8, hidden: 64, inner: 128, window: 6, tied: true };
    for (shape, part) in [
        (Shape { heads: 32, kv_heads: 16, ..small }, "num_attention_heads is 32, and"),
        (Shape { hidden: 68, ..small }, "hidden_size is 68, and"),
        (Shape { inner: 124, ..small }, "intermediate_size is 124, and"),
        (Shape { dim: 264, ..small }, "head_dim is 264, and"),
        (
            Shape { inner: 65_536, hidden: 8, ..small },
            "intermediate_size is 65536: kernel geglu_forward needs",
        ),
    ] {
        let base = model(&shape, 7).to_device(&device);
        let training = of_or_refusal(&base, &LoraConfig::default()).unwrap_err();
        let generating = base.greedy(&[1, 2], 2).unwrap_err().to_string();
        for text in [training, generating] {
            assert!(text.starts_with("device cuda:0: ") && text.contains(part), "{text}");
            assert!(text.contains("Device::Cpu"), "no way out: {text}");
        }
    }
    let base = model(&small, 7).to_device(&device);
    let text = of_or_refusal(&base, &LoraConfig { r: 20_000, ..LoraConfig::default() }).unwrap_err();
    assert!(text.starts_with("setting r = 20000: ") && text.contains("a rank of up to"), "{text}");
}

/// Steps that are sent ahead give what they give one by one, whatever is asked for in between.
#[test]
fn steps_on_their_way_are_not_lost() {
    let Some(device) = gpu() else { return };
    let base = model(&SHAPES[0], 7).to_device(&device);
    let of = || start(&base, &LoraConfig::default(), &QuantConfig::default(), DType::F32);
    let steps: Vec<Batch> = (0..9).map(|i| rows(&[5 + i, 3, 17], i as u64)).collect();
    let held_out = batches(7, 11);
    let mut plain = of();
    let one = |b: &Batch| plain.step(std::slice::from_ref(b), 1e-3).unwrap();
    let expected: Vec<(f64, f64)> = steps.iter().map(one).map(|r| (r.loss, r.grad_norm)).collect();
    let after = plain.losses(&held_out).unwrap();

    let mut ahead = of();
    let (mut pending, mut evaluated) = (vec![], vec![]);
    for (i, batch) in steps.iter().enumerate() {
        // More than there are slots for, and none is waited for.
        pending.push(ahead.submit(std::slice::from_ref(batch), 1e-3).unwrap());
        match i {
            2 => evaluated = ahead.losses(&held_out).unwrap(),
            3 => ahead.reserve(700).unwrap(),
            // An error before anything is sent; the batch is another tokenizer's.
            5 => {
                let mut foreign = rows(&[6], 1);
                foreign.tokens.ids[2] = VOCAB as u32;
                let text = ahead.submit(&[foreign], 1e-3).unwrap_err().to_string();
                assert!(text.contains("outside the vocabulary"), "{text}");
                // Out of memory, and the room is gone with it.
                let text = ahead.reserve(1 << 27).unwrap_err().to_string();
                assert!(text.contains("out of memory") && text.contains("drop(trainer)"), "{text}");
            }
            _ => {}
        }
        assert_eq!((ahead.steps(), ahead.passes()), (i + 1, i as u64 + 1));
    }
    let results = pending.into_iter().map(|p| ahead.wait(p).unwrap());
    let given: Vec<(f64, f64)> = results.map(|r| (r.loss, r.grad_norm)).collect();
    assert_eq!(given, expected);
    assert!(all(&ahead, Buffer::Values) == all(&plain, Buffer::Values));
    assert!(all(&ahead, Buffer::ExpAvgSq) == all(&plain, Buffer::ExpAvgSq));
    let sums = |losses: &[emoji_lab::ops::linear_cross_entropy::LossSum]| -> Vec<f64> {
        losses.iter().map(|l| l.sum).collect()
    };
    assert_eq!(sums(&ahead.losses(&held_out).unwrap()), sums(&after));
    let mut three = of();
    for batch in &steps[..3] {
        three.step(std::slice::from_ref(batch), 1e-3).unwrap();
    }
    assert_eq!(sums(&evaluated), sums(&three.losses(&held_out).unwrap()));
}

/// In bf16 a short batch's gradient of the head is made in pieces and not kept. Its steps are those of a trainer
/// that keeps it, but for rounding.
#[test]
fn a_head_in_pieces_learns_as_one_whose_gradient_is_kept() {
    let Some(device) = gpu().and_then(|device| device.with_dtype(DType::BF16).ok()) else {
        println!("skipped: no GPU with bf16");
        return;
    };
    let parts = |finetune: &Finetune| -> usize {
        let all = finetune.device_memory().into_iter().flat_map(|memory| memory.parts);
        all.filter(|(what, _)| *what == "gradients").map(|(_, bytes)| bytes).sum()
    };
    for (shape, state_dtype) in
        [(&SHAPES[3], DType::F32), (&SHAPES[1], DType::F32), (&SHAPES[0], DType::BF16)]
    {
        let base = model(shape, 7).to_device(&device);
        let of = || start(&base, &LoraConfig::default(), &QuantConfig::default(), state_dtype);
        let (mut pieces, mut kept) = (of(), of());
        kept.reserve_sums().unwrap();
        for (i, batch) in batches(6, 5).iter().enumerate() {
            let step = std::slice::from_ref(batch);
            let (ours, theirs) = (pieces.step(step, 1e-3).unwrap(), kept.step(step, 1e-3).unwrap());
            let label = format!("{} × {}, step {i}", shape.heads, shape.hidden);
            assert!(
                (ours.loss / theirs.loss - 1.0).abs() < if i == 0 { 1e-12 } else { 1e-3 },
                "{label}: {ours:?}"
            );
            let norms = (ours.grad_norm / theirs.grad_norm - 1.0).abs();
            assert!(norms < if i == 0 { 1e-4 } else { 2e-2 }, "{label}: norms differ by {norms:.1e}");
            if i == 0 {
                // What is read is made once more.
                close(&label, &pieces, &kept, Buffer::Gradients, 1e-5);
                pieces.losses(step).unwrap();
                let head = pieces.slots().iter().max_by_key(|slot| slot.len()).unwrap().clone();
                assert_eq!(parts(&kept) - parts(&pieces), 4 * head.len(), "{label}");
                let text = pieces.read(Buffer::Gradients, &head).unwrap_err().to_string();
                assert!(text.contains("is not kept in memory") && text.contains("reserve_sums"), "{text}");
            }
        }
        close("head in pieces: values", &pieces, &kept, Buffer::Values, 1e-2);
        // A longer batch, and several, are taken as ever.
        let long = rows(&[90, 120, 40], 9);
        for step in [std::slice::from_ref(&long), &batches(2, 8)[..]] {
            let (ours, theirs) = (pieces.step(step, 1e-3).unwrap(), kept.step(step, 1e-3).unwrap());
            assert!((ours.loss / theirs.loss - 1.0).abs() < 1e-2, "{ours:?} {theirs:?}");
        }
    }
}
