use super::*;
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
            stream.read(team, token).unwrap();
            assert!(stream.logits() == wanted, "token {token}");
            let likeliest = wanted.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
            assert_eq!(stream.likeliest() as usize, likeliest);
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
