//! Every parameter trained on the GPU, sums of many micro-batches, and cuts of the larger Gemmas.

use emoji_lab::lora::LoraConfig;
use emoji_lab::model::{Gemma3, PackedTokens};
use emoji_lab::quant::QuantConfig;
use emoji_lab::train::{Batch, Buffer, Finetune};
use emoji_lab::{DType, Device};

use super::{SHAPES, Shape, VOCAB};
use super::{all, batches, close, compare_steps, gpu, large_model, model, optimizer, relative, rows, start};

/// All of `base`, without adapters.
fn whole(base: &Gemma3, state_dtype: DType) -> Finetune {
    Finetune::new(base, &QuantConfig::none(), None, optimizer(state_dtype), 1.0, 42).unwrap()
}

#[test]
fn every_parameter_is_trained_as_on_the_cpu() {
    let Some(device) = gpu() else { return };
    for shape in &SHAPES {
        for accumulated in [1, 3] {
            let base = model(shape, 7);
            let label = format!(
                "every parameter, {} heads of {}, {accumulated} × accumulated",
                shape.heads, shape.dim
            );
            let of = |device: &Device| whole(&base.to_device(device), DType::F32).with_embedding_rate(0.5);
            compare_steps(&label, of(&device), of(&Device::Cpu), accumulated);
        }
    }
}

/// Norms do not decay: with a learning rate and gradients of zero they alone stay.
#[test]
fn norms_do_not_decay_and_matrices_do() {
    let Some(device) = gpu() else { return };
    let optimizer = emoji_lab::ops::adamw::AdamW { weight_decay: 0.5, ..optimizer(DType::F32) };
    let base = model(&SHAPES[0], 7);
    let of = |device: &Device| {
        Finetune::new(&base.to_device(device), &QuantConfig::none(), None, optimizer, 1.0, 42).unwrap()
    };
    let (mut ours, mut theirs) = (of(&device), of(&Device::Cpu));
    for batch in batches(3, 5) {
        let batch = std::slice::from_ref(&batch);
        ours.step(batch, 1e-2).unwrap();
        theirs.step(batch, 1e-2).unwrap();
    }
    close("decay", &ours, &theirs, Buffer::Values, 1e-2);
}

#[test]
fn every_parameter_in_bf16() {
    let Some(device) = gpu() else { return };
    let Ok(bf16) = device.with_dtype(DType::BF16) else {
        println!("skipped: this GPU has no bf16");
        return;
    };
    for shape in &SHAPES {
        for state_dtype in [DType::F32, DType::BF16] {
            let base = model(shape, 7);
            let run = |device: &Device, state| {
                let mut finetune = whole(&base.to_device(device), state);
                let step = |batch: &Batch| finetune.step(std::slice::from_ref(batch), 5e-4).unwrap().loss;
                let losses: Vec<f64> = batches(12, 5).iter().map(step).collect();
                (losses, all(&finetune, Buffer::Values))
            };
            let (ours, again, theirs) =
                (run(&bf16, state_dtype), run(&bf16, state_dtype), run(&device, DType::F32));
            assert!(ours == again, "two runs differ");
            let worst = ours.0.iter().zip(&theirs.0).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
            println!(
                "every parameter in bf16, {} heads, moments in {state_dtype:?}: losses off by {worst:.1e}",
                shape.heads
            );
            assert!(worst < 3e-2);
        }
    }
}

/// How far the gradients of `ours` are from those of `theirs`, all of them together and those of the
/// embedding.
fn off(ours: &Finetune, theirs: &Finetune) -> (f64, f64) {
    let (ours, theirs) = (all(ours, Buffer::Gradients), all(theirs, Buffer::Gradients));
    let flat = |all: &[(String, Vec<f32>)]| all.iter().flat_map(|(_, v)| v.clone()).collect::<Vec<_>>();
    (relative(&flat(&ours), &flat(&theirs)), relative(&ours[0].1, &theirs[0].1))
}

/// Sixty-four batches of a row, added up, are as near to f32 as one batch of 64 rows.
#[test]
fn micro_batches_in_bf16_are_as_near_as_one_batch() {
    let Some(device) = gpu() else { return };
    let Ok(bf16) = device.with_dtype(DType::BF16) else {
        println!("skipped: this GPU has no bf16");
        return;
    };
    let lora = LoraConfig { lora_dropout: 0.0, ..LoraConfig::default() };
    for (shape, tied) in [(&SHAPES[0], true), (&SHAPES[0], false), (&SHAPES[3], true)] {
        for adapters in [true, false] {
            let base = model(&Shape { tied, ..*shape }, 7);
            let of = |device: &Device| match adapters {
                true => start(&base.to_device(device), &lora, &QuantConfig::none(), DType::F32),
                false => whole(&base.to_device(device), DType::F32),
            };
            let lengths: Vec<usize> = (0..64).map(|i| 5 + i * 7 % 23).collect();
            let one = [rows(&lengths, 3)];
            let many: Vec<Batch> = split(&one[0]);
            let (mut exact, mut once, mut summed) = (of(&device), of(&bf16), of(&bf16));
            exact.step(&one, 1e-3).unwrap();
            once.step(&one, 1e-3).unwrap();
            // A step of one batch before it: what it leaves must not be added.
            let loss = summed.losses(&one).unwrap()[0].sum;
            summed.step(&many[..1], 0.0).unwrap();
            assert_eq!(loss, summed.losses(&one).unwrap()[0].sum);
            summed.step(&many, 1e-3).unwrap();
            let (one_off, many_off) = (off(&once, &exact), off(&summed, &exact));
            println!(
                "{} heads, tied {tied}, adapters {adapters}: 1 × 64 is {:.2e} from f32 (embedding {:.2e}), 64 × 1 {:.2e} ({:.2e})",
                shape.heads, one_off.0, one_off.1, many_off.0, many_off.1
            );
            assert!(many_off.0 <= 1.1 * one_off.0 && many_off.1 <= 1.1 * one_off.1);
            // And back to steps of one batch.
            assert!(summed.step(&one, 1e-3).unwrap().loss.is_finite());
        }
    }
}

/// A batch's rows as batches of one.
fn split(batch: &Batch) -> Vec<Batch> {
    let segments = batch.tokens.segments.iter();
    let rows = segments.map(|segment| segment.q_start..segment.q_start + segment.q_len);
    let row = |range: std::ops::Range<usize>| Batch {
        tokens: PackedTokens::new(&[&batch.tokens.ids[range.clone()]]),
        targets: batch.targets[range].to_vec(),
        rows: 1,
    };
    rows.map(row).collect()
}

/// Two layers of the sizes of Gemma 3 1B and 4B: adapters and the embedding, every parameter, answers.
#[test]
fn layers_of_1b_and_4b_are_the_cpus() {
    let Some(device) = gpu() else { return };
    let sizes = [
        ("1B", Shape { heads: 4, kv_heads: 1, dim: 256, hidden: 1152, inner: 6912, window: 16, tied: true }),
        (
            "4B",
            Shape { heads: 8, kv_heads: 4, dim: 256, hidden: 2560, inner: 10_240, window: 16, tied: true },
        ),
    ];
    for (name, shape) in sizes {
        let base = large_model(&shape, 2, VOCAB);
        let on_gpu = base.to_device(&device);
        let batch = [rows(&[9, 5, 30], 3)];
        for adapters in [true, false] {
            let of = |model: &Gemma3| match adapters {
                true => start(model, &LoraConfig::default(), &QuantConfig::default(), DType::F32),
                false => whole(model, DType::F32),
            };
            let (mut ours, mut theirs) = (of(&on_gpu), of(&base));
            let (a, b) = (ours.step(&batch, 1e-3).unwrap(), theirs.step(&batch, 1e-3).unwrap());
            assert!((a.loss / b.loss - 1.0).abs() < 1e-5, "{name}: {a:?} {b:?}");
            assert!((a.grad_norm / b.grad_norm - 1.0).abs() < 1e-4, "{name}: {a:?} {b:?}");
            close(&format!("{name}, adapters {adapters}"), &ours, &theirs, Buffer::Gradients, 1e-3);
        }
        let prompt: Vec<u32> = (0..12).map(|i| i * 41 % VOCAB as u32).collect();
        assert_eq!(on_gpu.greedy(&prompt, 8).unwrap(), base.greedy(&prompt, 8).unwrap(), "{name}");
    }
}
