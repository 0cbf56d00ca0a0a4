use super::*;
use crate::model::ParameterMut;
use crate::model::gguf::writer::{golden_config, golden_weights};

fn golden() -> Gemma3 {
    Gemma3::new(&golden_config(), &golden_weights(), &crate::Device::Cpu).unwrap()
}

/// Logits of a sequence that is read token by token: as tensors, and as a stream.
fn compare(gemma: &Gemma3, stored: &StoredWeights) {
    let prompt = [2, 40, 41, 7, 300];
    let mut cache = KvCache::new(gemma.config(), 64).unwrap();
    gemma.decode(&prompt, &mut cache).unwrap();
    Team::with(|team| {
        let mut stream = Stream::new(gemma, stored, &cache, 2).unwrap().unwrap();
        // Longer than the golden model's window.
        for token in (0..40).map(|i| i * 37 % 512) {
            let wanted = gemma.decode(&[token], &mut cache).unwrap().to_vec1::<f32>().unwrap();
            stream.read(team, &[token]).unwrap();
            assert!(stream.logits(team).unwrap() == wanted, "token {token}");
            let likeliest = wanted.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
            assert_eq!(stream.likeliest(team).unwrap() as usize, likeliest);
        }
    });
}

#[test]
fn its_logits_are_those_of_the_tensors() {
    let gemma = golden();
    compare(&gemma, &StoredWeights::default());
    compare(&gemma, &gemma.on_device.on_host(&gemma).unwrap());
}

#[test]
fn the_likeliest_is_the_lowest_of_equals_and_a_number() {
    let mut logits = vec![-1.0; 200];
    for at in [150, 70, 190] {
        logits[at] = 3.0;
    }
    logits[3] = f32::NAN;
    assert_eq!(Likeliest::of(&logits, 1000).token, Some(1070));
    assert_eq!(Likeliest::of(&[f32::NAN, f32::NEG_INFINITY], 0).token, None);
}

#[test]
fn adapters_and_four_bits_are_no_stream() {
    let cache = KvCache::new(&golden_config(), 1).unwrap();
    let mut gemma = golden();
    let stored = StoredWeights::default();
    assert!(Stream::new(&gemma, &stored, &cache, 0).unwrap().is_some());
    let weight = match &gemma.layers[1].up_proj.weight {
        crate::ops::lora_linear::Weight::Dense(weight) => weight.clone(),
        other => panic!("{other:?}"),
    };
    let packed = crate::quant::Nf4Tensor::quantize(&weight, 64).unwrap();
    gemma.layers[1].up_proj.weight = crate::ops::lora_linear::Weight::Nf4(packed);
    assert!(Stream::new(&gemma, &stored, &cache, 0).unwrap().is_none());
}

#[test]
fn blocks_of_a_file_answer_as_their_values_do() {
    use crate::export::{GgufType, export_gguf};

    let folder = tempfile::tempdir().unwrap();
    let base = crate::model::load_model("embedded", &crate::Device::Cpu).unwrap();
    let prompt = base.tokenizer.encode("a day at the beach").unwrap();
    let prompts = [prompt.clone(), prompt[1..].to_vec(), prompt[..3].to_vec(), prompt[2..].to_vec()];
    for kind in [GgufType::Q8_0, GgufType::Q4_0, GgufType::Bf16] {
        let path = folder.path().join(format!("{kind:?}.gguf"));
        export_gguf(&base, &path, kind).unwrap();
        let gemma = crate::model::load_model(path.to_str().unwrap(), &crate::Device::Cpu).unwrap().gemma;
        let stored = gemma.on_device.on_host(&gemma).unwrap();
        assert!(stored.get(&gemma.head().value).is_some(), "{kind:?}");
        assert!(gemma.linears().all(|linear| match &linear.weight {
            crate::ops::lora_linear::Weight::Dense(weight) => stored.get(weight).is_some(),
            crate::ops::lora_linear::Weight::Nf4(_) => false,
        }));
        compare_with_values(&gemma, &prompt, matches!(kind, GgufType::Bf16));
        let answer = gemma.greedy(&prompt, 40).unwrap();
        let config = crate::model::GenerationConfig::greedy(40);
        let batch = gemma.generate_batch(&prompts, &config, &[]).unwrap();
        assert_eq!(batch[0], answer, "{kind:?}");
        for (prompt, batch) in prompts.iter().zip(batch) {
            assert_eq!(gemma.greedy(prompt, 40).unwrap(), batch, "{kind:?}");
        }
        // Nothing of it asked for f32.
        assert!(gemma.head().value.dense().is_none(), "{kind:?}");
        // A tensor that is exchanged is no longer the file's.
        let mut other = gemma.clone();
        let head = &mut other.embed_tokens.value;
        *head = head.to_tensor().unwrap().affine(-1.0, 0.0).unwrap().into();
        assert_ne!(other.greedy(&prompt, 1).unwrap(), gemma.greedy(&prompt, 1).unwrap());
        gemma.release_device();
        assert_eq!(gemma.greedy(&prompt, 40).unwrap(), answer);
    }
}

/// The logits after `prompt` are those of the f32 tensors alone: the same bits, or nearly so of blocks, which may be multiplied
/// with rounded numbers.
fn compare_with_values(gemma: &Gemma3, prompt: &[u32], exactly: bool) {
    let mut values = gemma.clone();
    let make = |weight: ParameterMut<'_>| {
        *weight.value = weight.value.to_tensor()?.into();
        Ok(())
    };
    values.visit_parameters(&mut { make }).unwrap();
    // No copy in bf16 either.
    values.on_device.set_on_host(Default::default());
    let logits = |gemma: &Gemma3| {
        let mut cache = KvCache::new(gemma.config(), prompt.len()).unwrap();
        gemma.decode(prompt, &mut cache).unwrap().to_vec1::<f32>().unwrap()
    };
    let (ours, wanted) = (logits(gemma), logits(&values));
    if exactly {
        return assert!(ours == wanted);
    }
    let size = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>().sqrt();
    let error = size(&mut ours.iter().zip(&wanted).map(|(a, b)| a - b)) / size(&mut wanted.iter().copied());
    // A tenth of a thousandth: with eight bits, as llama.cpp has them, it would be a hundredth.
    assert!(error < 2e-4, "{error:e}");
}

#[test]
fn a_model_that_is_trained_gets_no_copies() {
    let mut gemma = golden();
    let head = &mut gemma.embed_tokens.value;
    let half = head.to_dtype(candle_core::DType::BF16).unwrap();
    *head = half.to_dtype(candle_core::DType::F32).unwrap().into();
    let copies = |gemma: &Gemma3| crate::model::stored::for_generation(gemma).unwrap();
    assert!(copies(&gemma).get(&gemma.head().value).is_some());
    gemma.norm.weight.gradient = Some(gemma.norm.weight.value.zeros_like().unwrap());
    assert!(copies(&gemma).get(&gemma.head().value).is_none());
}
