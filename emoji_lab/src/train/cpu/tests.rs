use super::*;
use crate::device::Device;
use crate::model::load_model;
use crate::ops::adamw::AdamW;
use crate::train::Row;

/// Batches of different lengths, some tokens in several rows.
fn batches(count: usize) -> Vec<Batch> {
    let mut random = Philox::new(3, 0);
    let batch = |i: usize| {
        let mut row = |len: usize| Row::whole((0..len).map(|_| random.below(500) as u32).collect());
        Batch::from_rows(&[row(7 + i % 4), row(12 - i % 3)])
    };
    (0..count).map(batch).collect()
}

/// An engine that trains the embedding and the norms, in factors if it has at least `large` numbers.
fn engine(device: &Device, large: usize, state_dtype: DType) -> CpuEngine {
    let model = load_model("embedded", device).unwrap().gemma;
    let trained = |parameter: Parameter| parameter == Parameter::EmbedTokens || parameter.is_norm();
    let layout = Layout::of(&model, &trained).unwrap();
    let optimizer = AdamW { state_dtype, ..AdamW::default() };
    let settings = Settings { optimizer, max_grad_norm: 0.5, seed: 7 };
    let mut engine = CpuEngine::new(&model, &layout, settings).unwrap();
    engine.head = head_in_factors(&engine.model, &layout, large);
    engine
}

/// Steps of these numbers of batches.
fn train(engine: &mut CpuEngine, steps: &[usize]) -> Vec<StepResult> {
    let all = batches(steps.iter().sum());
    let (mut first, mut results) = (0, vec![]);
    for (number, count) in steps.iter().enumerate() {
        let batches = &all[first..first + count];
        let step = Step {
            number: number + 1,
            learning_rate: 1e-3,
            embedding_learning_rate: 5e-4,
            targets: batches.iter().map(Batch::target_count).sum(),
            first_pass: first as u64,
            passes_apart: 1,
            last_pass: (first + count - 1) as u64,
            check: Some(number + 1),
        };
        let ticket = engine.submit(batches, &step).unwrap();
        results.push(engine.wait(ticket).unwrap());
        first += count;
    }
    results
}

fn buffer(engine: &CpuEngine, buffer: Buffer) -> Vec<f32> {
    let parts = engine.layout.slots().iter();
    parts
        .flat_map(|slot| engine.read(buffer, slot).unwrap().flatten_all().unwrap().to_vec1().unwrap())
        .collect()
}

/// The largest difference, by the largest value.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    let largest = a.iter().fold(1e-30f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

const BUFFERS: [Buffer; 4] = [Buffer::Values, Buffer::Gradients, Buffer::ExpAvg, Buffer::ExpAvgSq];

#[test]
fn an_embedding_in_factors_learns_as_one_with_a_gradient() {
    // The third step has more targets than are worth their factors; the last goes back to them.
    let steps = [1, 2, 5, 1];
    for state_dtype in [DType::F32, DType::BF16] {
        let new = |large| engine(&Device::Cpu, large, state_dtype);
        let (mut one, mut other, mut again) = (new(usize::MAX), new(0), new(0));
        assert!(one.head.is_none() && other.head.is_some());
        for engine in [&mut one, &mut other, &mut again] {
            let results = train(engine, &steps);
            assert_eq!(results.len(), steps.len());
        }
        let (ours, theirs) = (train(&mut other, &steps), train(&mut one, &steps));
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a.loss / b.loss - 1.0).abs() < 1e-5, "{a:?} {b:?}");
            assert!((a.grad_norm / b.grad_norm - 1.0).abs() < 1e-5, "{a:?} {b:?}");
        }
        assert!(other.in_factors && !one.in_factors);
        for which in BUFFERS {
            // Where rounding to bf16 is at the edge, a last bit decides.
            let bar = if state_dtype == DType::BF16 && which != Buffer::Gradients { 2e-2 } else { 2e-5 };
            let difference = apart(&buffer(&one, which), &buffer(&other, which));
            assert!(difference < bar, "{which:?}: {difference}");
        }
        assert_eq!(train(&mut again, &steps), ours, "another run, other bits");
        assert!(BUFFERS.iter().all(|which| buffer(&again, *which) == buffer(&other, *which)));
    }
}

#[test]
fn a_gradient_that_is_written_is_the_gradient() {
    let mut engine = engine(&Device::Cpu, 0, DType::F32);
    train(&mut engine, &[1]);
    let slot = engine.layout.slots()[0].clone();
    assert!(engine.in_factors && engine.gradient_squares().unwrap()[0] > 0.0);
    engine.write(Buffer::Gradients, &slot, &host::zeros(slot.len()).unwrap()).unwrap();
    assert_eq!(engine.gradient_squares().unwrap()[0], 0.0);
}

/// bf16 has eight bits; the bar is that of a GPU.
#[test]
fn in_bf16_losses_are_those_of_f32() {
    let Ok(bf16) = Device::Cpu.with_dtype(DType::BF16) else {
        eprintln!("skipped: no AVX512-BF16");
        return;
    };
    for large in [0, usize::MAX] {
        let steps = [1, 2, 1, 5, 1, 1];
        let (mut one, mut other) =
            (engine(&Device::Cpu, large, DType::F32), engine(&bf16, large, DType::F32));
        let (ours, theirs) = (train(&mut other, &steps), train(&mut one, &steps));
        assert_ne!(ours, theirs);
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a.loss - b.loss).abs() < 2e-2, "{a:?} {b:?}");
            assert!((a.grad_norm / b.grad_norm - 1.0).abs() < 1e-1, "{a:?} {b:?}");
        }
        let again = train(&mut engine(&bf16, large, DType::F32), &steps);
        assert_eq!(again, ours, "another run, other bits");
    }
}
