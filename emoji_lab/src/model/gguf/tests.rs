use super::out::Out;
use super::writer::{Gguf, Random, golden_config, golden_gguf, golden_weights};
use super::*;

fn open(file: &Gguf) -> Result<GgufModel> {
    gguf_from_bytes(&file.bytes(), "test.gguf", Rounding::None)
}

fn message(change: impl FnOnce(&mut Gguf)) -> String {
    let mut file = golden_gguf();
    change(&mut file);
    open(&file).expect_err("must be refused").to_string()
}

#[test]
fn reads_shape_weights_and_tokenizer() {
    let model = open(&golden_gguf()).unwrap();
    assert_eq!(model.config, golden_config());
    let golden = golden_weights();
    assert_eq!(model.weights.tensors.len(), golden.tensors.len());
    for (name, tensor) in &golden.tensors {
        let close = (model.weights.tensors[name].as_ref() - tensor).unwrap().abs().unwrap();
        // One was added and taken away again in f32.
        assert!(close.flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap() < 2e-7, "{name}");
    }
    assert_eq!(model.tokenizer.stop_ids(), [1, 6]);
}

#[test]
fn rounds_to_bf16_after_taking_the_one_from_norms() {
    let model = gguf_from_bytes(&golden_gguf().bytes(), "test.gguf", Rounding::Bf16).unwrap();
    let exact = open(&golden_gguf()).unwrap();
    for (name, tensor) in &exact.weights.tensors {
        let wanted = tensor.to_dtype(candle_core::DType::BF16).unwrap();
        let wanted = wanted.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap();
        let got = model.weights.tensors[name].flatten_all().unwrap();
        assert_eq!(got.to_vec1::<f32>().unwrap(), wanted.to_vec1::<f32>().unwrap(), "{name}");
    }
}

#[test]
fn an_output_tensor_unties_the_head() {
    let mut file = golden_gguf();
    let (_, kind, dims, data) = file.tensors[0].clone();
    file.tensors.push(("output.weight".into(), kind, dims, data));
    let model = open(&file).unwrap();
    assert!(!model.config.tie_word_embeddings);
    assert!(model.weights.tensors.contains_key("lm_head.weight"));
}

#[test]
fn reads_the_keys_that_newer_files_have() {
    let mut file = golden_gguf();
    file.set_f32("gemma3.rope.freq_base_swa", 20_000.0);
    file.set_u32("gemma3.attention.sliding_window_pattern", 3);
    file.set_text("gemma3.rope.scaling.type", "linear");
    file.set_f32("gemma3.rope.scaling.factor", 8.0);
    file.set_text("tokenizer.chat_template", "{{ bos_token }}{{ messages[0]['content'] }}");
    let model = open(&file).unwrap();
    assert_eq!(model.config.rope_local_base_freq, 20_000.0);
    assert_eq!(model.config.sliding_window_pattern(), Some(3));
    assert_eq!(model.config.rope_scaling_factor, 8.0);
    assert!(model.tokenizer.chat_template().source().starts_with("{{ bos_token }}{{"));
    file.set("gemma3.attention.sliding_window_pattern", Out(vec![9, 0, 0, 0, 7, 0, 0, 0]).u64(6));
    file.metadata.last_mut().unwrap().1.extend([0, 1, 1, 1, 1, 1]);
    let config = open(&file).unwrap().config;
    assert_eq!(config.layer_types[0], crate::model::LayerType::FullAttention);
    assert_eq!(config.layer_types[5], crate::model::LayerType::SlidingAttention);
}

#[test]
fn says_what_is_wrong() {
    let cases: [(&str, String); 12] = [
        ("is llama, this is for Gemma 3", message(|f| f.set_text("general.architecture", "llama"))),
        ("no gemma3.block_count", message(|f| f.metadata.retain(|(k, _)| k != "gemma3.block_count"))),
        ("num_hidden_layers is 4000000", message(|f| f.set_u32("gemma3.block_count", 4_000_000))),
        ("no tensor blk.6.attn_norm.weight", message(|f| f.set_u32("gemma3.block_count", 7))),
        ("token_embd.weight has shape [512, 64]", message(|f| f.set_u32("gemma3.embedding_length", 32))),
        ("no tensor output_norm.weight", message(|f| f.tensors.retain(|t| t.0 != "output_norm.weight"))),
        ("stored as Q2_K, which is not read", message(|f| f.tensors[3].1 = 10)),
        ("stored as the unknown type 99", message(|f| f.tensors[3].1 = 99)),
        ("tokenizer.ggml.model is gpt2", message(|f| f.set_text("tokenizer.ggml.model", "gpt2"))),
        ("token_type in its metadata is not", message(|f| f.set_u32("tokenizer.ggml.token_type", 1))),
        ("bos_token_id 512 is outside", message(|f| f.set_u32("tokenizer.ggml.bos_token_id", 512))),
        ("final", message(|f| f.set_f32("gemma3.final_logit_softcapping", 30.0)).replace("logit", "final")),
    ];
    for (wanted, text) in cases {
        assert!(text.contains(wanted) && text.contains("test.gguf"), "{wanted}: {text}");
    }
}

#[test]
fn the_vocabulary_is_as_large_as_the_embedding() {
    let (tokens, scores, types) = super::writer::tiny_tokens();
    let mut file = golden_gguf();
    let more = (
        [&tokens[..], &["<image_soft_token>".to_string()]].concat(),
        [&scores[..], &[0.0]].concat(),
        [&types[..], &[4]].concat(),
    );
    file.set_tokens(&more.0, &more.1, &more.2);
    let model = open(&file).unwrap();
    assert_eq!(model.config, golden_config());
    assert!(model.tokenizer.encode("<image_soft_token>").unwrap_err().to_string().contains("id 512"));
    // Rows that only fill up.
    let mut file = golden_gguf();
    file.set_tokens(&tokens[..500], &scores[..500], &types[..500]);
    assert_eq!(open(&file).unwrap().config.vocab_size, 512);
    assert_eq!(open(&file).unwrap().tokenizer.vocab_size(), 500);
}

#[test]
fn stop_tokens_come_from_every_key() {
    let mut file = golden_gguf();
    file.set_u32("tokenizer.ggml.eot_token_id", 6);
    file.set_u32s("tokenizer.ggml.eos_token_ids", &[1, 4, 9000]);
    file.set_u32("tokenizer.ggml.padding_token_id", u32::MAX);
    let config = open(&file).unwrap().config;
    assert_eq!((config.eos_token_ids, config.pad_token_id), (vec![1, 6, 4], 0));
}

#[test]
fn keys_that_other_tools_leave_out_or_call_otherwise() {
    let without = |keys: &[&str], more: &dyn Fn(&mut Gguf)| {
        let mut file = golden_gguf();
        file.metadata.retain(|(key, _)| !keys.contains(&key.trim_start_matches("gemma3.")));
        more(&mut file);
        open(&file)
    };
    let derived = [
        "attention.key_length",
        "attention.value_length",
        "attention.head_count_kv",
        "feed_forward_length",
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
    ];
    assert_eq!(without(&derived, &|_| {}).unwrap().config, golden_config());
    let ollama = without(&derived, &|f| {
        f.set_f32("gemma3.rope.global.freq_base", 5e5);
        f.set_f32("gemma3.rope.local.freq_base", 3e4);
        f.set_f32("gemma3.final_logit_softcapping", 30.0);
        f.set_u32("gemma3.text.feed_forward_length", 128);
        f.set_u32s("gemma3.attention.head_count_kv", &[1; 6]);
    });
    let config = ollama.unwrap().config;
    assert_eq!((config.rope_theta, config.rope_local_base_freq), (5e5, 3e4));
    let none = without(&["attention.sliding_window"], &|_| {}).unwrap_err().to_string();
    assert!(none.contains("no gemma3.attention.sliding_window"), "{none}");
    let zero = without(&[], &|f| f.set_u32("gemma3.attention.sliding_window", 0)).unwrap().config;
    assert_eq!(zero.sliding_window, zero.max_position_embeddings);
}

#[test]
fn files_beside_a_model_are_called_what_they_are() {
    let with = |key: &str, value: &str| message(|f| f.set_text(key, value));
    assert!(with("general.type", "mmproj").contains("vision projector"));
    assert!(with("general.architecture", "clip").contains("vision projector"));
    assert!(with("general.type", "adapter").contains("a LoRA adapter in GGUF's form"));
    assert!(with("general.architecture", "gemma3n").contains("is gemma3n, this is for Gemma 3"));
    assert!(message(|f| f.tensors.clear()).contains("a vocabulary and no weights"));
    assert!(message(|f| f.set_u32("split.count", 3)).contains("part 1 of 3"));
    // A vision tower in the same file, in a type that is not read, is in nobody's way.
    let mut file = golden_gguf();
    file.tensors.push(("v.blk.0.attn_k.weight".into(), 10, vec![256], vec![0; 84]));
    assert!(open(&file).is_ok());
}

#[test]
fn a_split_model_is_read_from_all_its_parts() {
    let whole = golden_gguf();
    let folder = tempfile::tempdir().unwrap();
    let path = |n: usize| folder.path().join(format!("tiny-{n:05}-of-00003.gguf"));
    for n in 1..=3usize {
        let mut part = Gguf::default();
        if n == 1 {
            part.metadata = whole.metadata.clone();
        }
        part.set_u32("split.count", 3);
        part.set_u32("split.no", n as u32 - 1);
        part.tensors = whole.tensors.iter().skip(n - 1).step_by(3).cloned().collect();
        std::fs::write(path(n), part.bytes()).unwrap();
    }
    let expected = open(&whole).unwrap();
    for n in 1..=3 {
        let model = open_gguf(path(n), Rounding::None).unwrap();
        assert_eq!(model.config, expected.config);
        assert_eq!(model.weights.parameters(), expected.weights.parameters());
    }
    let renamed = folder.path().join("model.gguf");
    std::fs::copy(path(1), &renamed).unwrap();
    let said = open_gguf(&renamed, Rounding::None).unwrap_err().to_string();
    assert!(said.contains("part 1 of 3") && said.contains("-00001-of-00003.gguf"), "{said}");
    std::fs::copy(path(2), path(3)).unwrap();
    let said = open_gguf(path(1), Rounding::None).unwrap_err().to_string();
    assert!(said.contains("tiny-00003-of-00003.gguf: its name says part 3 of 3"), "{said}");
    std::fs::remove_file(path(3)).unwrap();
    let said = open_gguf(path(2), Rounding::None).unwrap_err().to_string();
    assert!(said.contains("part 2 of 3") && said.contains("tiny-00003-of-00003.gguf"), "{said}");
}

#[test]
fn damaged_files_are_errors() {
    let mut file = golden_gguf();
    // The embedding alone makes every length worth trying; the layers only cost time.
    file.tensors.truncate(4);
    let bytes = file.bytes();
    let mut random = Random(11);
    for length in (0..64).chain((0..200).map(|_| random.below(bytes.len()))) {
        assert!(gguf_from_bytes(&bytes[..length], "cut.gguf", Rounding::None).is_err(), "{length}");
    }
    let whole = golden_gguf().bytes();
    let front = whole.len() - file.tensors[0].3.len();
    for round in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random.below(4) {
            // Half of the damage goes to the counts and names at the very front.
            let at = if round % 2 == 0 { random.below(12_000) } else { random.below(front) };
            bytes[at] = [0, 0xFF, 0x7F, bytes[at] ^ (1 << random.below(8))][random.below(4)];
        }
        // Either it is refused or what changed was a value: no panic and no huge allocation.
        let _ = gguf_from_bytes(&bytes, "damaged.gguf", Rounding::Bf16);
    }
}
