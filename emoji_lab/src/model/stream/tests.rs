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

/// The model of the same values in f32 tensors.
fn of_values(gemma: &Gemma3) -> Gemma3 {
    let mut values = gemma.clone();
    let make = |weight: ParameterMut<'_>| {
        *weight.value = weight.value.to_tensor()?.into();
        Ok(())
    };
    values.visit_parameters(&mut { make }).unwrap();
    // No copy in bf16 either.
    values.on_device.set_on_host(Default::default());
    values
}

fn logits(gemma: &Gemma3, prompt: &[u32]) -> Vec<f32> {
    let mut cache = KvCache::new(gemma.config(), prompt.len()).unwrap();
    gemma.decode(prompt, &mut cache).unwrap().to_vec1().unwrap()
}

/// How far logits are from others, as a part of these' size.
fn distance(ours: &[f32], wanted: &[f32]) -> f64 {
    let size = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>().sqrt();
    size(&mut ours.iter().zip(wanted).map(|(a, b)| a - b)) / size(&mut wanted.iter().copied())
}

/// The logits after `prompt` are those of the f32 tensors alone: the same bits, or nearly so of blocks, which may be
/// multiplied with rounded numbers.
fn compare_with_values(gemma: &Gemma3, prompt: &[u32], exactly: bool) {
    let (ours, wanted) = (logits(gemma, prompt), logits(&of_values(gemma), prompt));
    let distance = distance(&ours, &wanted);
    assert!(if exactly { ours == wanted } else { distance < 2e-4 }, "{distance:e}");
}

/// The real model's logits from its file's blocks, where there is such a file.
#[test]
fn a_real_file_answers_as_its_values_do() {
    let Some(path) = std::env::var_os("EMOJI_LAB_GGUF").filter(|path| std::path::Path::new(path).exists())
    else {
        println!("the real model: skipped: EMOJI_LAB_GGUF is not a file");
        return;
    };
    let model = crate::model::load_model(path.to_str().unwrap(), &crate::Device::Cpu).unwrap();
    let rows = crate::data::load_dataset("embedded", crate::task::EmojiFilter::PurelyEmoji).unwrap();
    let prompts: Vec<Vec<u32>> =
        rows.examples.iter().take(64).map(|row| model.tokenizer.encode(&row.text).unwrap()).collect();
    let values = of_values(&model.gemma);
    let mut distances: Vec<f64> = prompts
        .iter()
        .map(|prompt| distance(&logits(&model.gemma, prompt), &logits(&values, prompt)))
        .collect();
    distances.sort_by(f64::total_cmp);
    let config = crate::model::GenerationConfig::greedy(16);
    let answers = |gemma: &Gemma3| gemma.generate_batch(&prompts, &config, &[]).unwrap();
    let same =
        answers(&model.gemma).iter().zip(answers(&values)).filter(|(ours, wanted)| *ours == wanted).count();
    let (middle, last) = (distances[32], distances[63]);
    println!(
        "logits within {middle:.1e} (median), {last:.1e} of their size; {same} of 64 answers of 16 tokens are the same"
    );
    assert!(last < 5e-3 && same >= 58);
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
