//! For tests: writes small GGUF files.

use super::super::config::Gemma3Config;
use super::super::parameters::Parameter;
use super::super::weights::Weights;
use super::out::Out;

/// A GGUF file in the making: entries are already in the file's form.
#[derive(Clone, Default)]
pub(crate) struct Gguf {
    pub(crate) metadata: Vec<(String, Vec<u8>)>,
    /// Name, type id, dimensions innermost first, data.
    pub(crate) tensors: Vec<(String, u32, Vec<u64>, Vec<u8>)>,
}

impl Gguf {
    pub(crate) fn set(&mut self, key: &str, value: Out) {
        self.metadata.retain(|(k, _)| k != key);
        self.metadata.push((key.to_string(), value.0));
    }

    pub(crate) fn set_u32(&mut self, key: &str, value: u32) {
        self.set(key, Out::default().u32(4).u32(value));
    }

    pub(crate) fn set_f32(&mut self, key: &str, value: f32) {
        self.set(key, Out::default().u32(6).u32(value.to_bits()));
    }

    pub(crate) fn set_text(&mut self, key: &str, value: &str) {
        self.set(key, Out::default().u32(8).text(value));
    }

    pub(crate) fn set_tokens(&mut self, tokens: &[String], scores: &[f32], types: &[i64]) {
        let list = |kind: u32| Out::default().u32(9).u32(kind).u64(tokens.len() as u64);
        self.set("tokenizer.ggml.tokens", tokens.iter().fold(list(8), |out, token| out.text(token)));
        self.set("tokenizer.ggml.scores", scores.iter().fold(list(6), |out, score| out.u32(score.to_bits())));
        self.set("tokenizer.ggml.token_type", types.iter().fold(list(5), |out, &kind| out.u32(kind as u32)));
    }

    pub(crate) fn set_u32s(&mut self, key: &str, values: &[u32]) {
        let list = Out::default().u32(9).u32(4).u64(values.len() as u64);
        self.set(key, values.iter().fold(list, |out, &value| out.u32(value)));
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Out(b"GGUF".to_vec()).u32(3);
        out = out.u64(self.tensors.len() as u64).u64(self.metadata.len() as u64);
        for (key, value) in &self.metadata {
            out = out.text(key);
            out.0.extend(value);
        }
        let alignment = match self.metadata.iter().find(|(key, _)| key == "general.alignment") {
            Some((_, value)) if value.len() == 8 => {
                u32::from_le_bytes([value[4], value[5], value[6], value[7]])
            }
            _ => 32,
        };
        let alignment = alignment.max(1) as usize;
        let mut offset = 0u64;
        for (name, kind, dims, data) in &self.tensors {
            out = out.text(name).u32(dims.len() as u32);
            for &dim in dims {
                out = out.u64(dim);
            }
            out = out.u32(*kind).u64(offset);
            offset += data.len().next_multiple_of(alignment) as u64;
        }
        for (_, _, _, data) in &self.tensors {
            out.0.resize(out.0.len().next_multiple_of(alignment), 0);
            out.0.extend(data);
        }
        out.0
    }
}

/// 512 tokens as a Gemma GGUF lists them: specials, newlines, spaces, bytes, letters, pairs.
pub(crate) fn tiny_tokens() -> (Vec<String>, Vec<f32>, Vec<i64>) {
    let mut tokens: Vec<(String, i64)> = Vec::new();
    for special in ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"] {
        tokens.push((special.to_string(), 3));
    }
    for n in 1..=4 {
        tokens.push(("\n".repeat(n), 4));
    }
    for n in 2..=4 {
        tokens.push((" ".repeat(n), 4));
    }
    for byte in 0..=255 {
        tokens.push((format!("<0x{byte:02X}>"), 6));
    }
    // Pairs first, as a trained vocabulary has them: the better a pair, the lower its id.
    for pair in [
        "he", "▁t", "in", "hel", "lo", "hello", "the", "▁the", "ing", "▁w", "▁wo", "ld", "rld", "🎉🎉", "mo",
        "de", "el",
    ] {
        tokens.push((pair.to_string(), 1));
    }
    for letter in "▁ abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'🎉😂"
        .chars()
        .filter(|c| *c != ' ')
    {
        tokens.push((letter.to_string(), 1));
    }
    for n in 0.. {
        if tokens.len() == 512 {
            break;
        }
        tokens.push((format!("<unused{n}>"), 3));
    }
    let first = tokens.iter().position(|(_, kind)| *kind == 1).unwrap();
    let scores = tokens.iter().enumerate().map(|(id, (_, kind))| match kind {
        1 => -((id - first) as f32),
        6 => 0.0,
        _ => -1000.0,
    });
    let scores = scores.collect();
    let (tokens, types) = tokens.into_iter().unzip();
    (tokens, scores, types)
}

/// The golden tiny model as a GGUF, all tensors in F32.
pub(crate) fn golden_gguf() -> Gguf {
    let config = golden_config();
    let weights = golden_weights();
    let mut file = Gguf::default();
    file.set_text("general.architecture", "gemma3");
    for (key, value) in [
        ("block_count", config.num_hidden_layers),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("context_length", config.max_position_embeddings),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("attention.sliding_window", config.sliding_window),
    ] {
        file.set_u32(&format!("gemma3.{key}"), value as u32);
    }
    file.set_f32("gemma3.attention.layer_norm_rms_epsilon", 1e-6);
    file.set_f32("gemma3.rope.freq_base", 1e6);
    file.set_text("tokenizer.ggml.model", "llama");
    let (tokens, scores, types) = tiny_tokens();
    file.set_tokens(&tokens, &scores, &types);
    for (key, id) in [("bos", 2), ("eos", 1), ("unknown", 3), ("padding", 0)] {
        file.set_u32(&format!("tokenizer.ggml.{key}_token_id"), id);
    }
    for parameter in Parameter::all(&config) {
        let stored = parameter.gguf_name().unwrap();
        let plus = if parameter.is_norm() { 1.0 } else { 0.0 };
        let shape = parameter.shape(&config, 0);
        let values = weights.tensors[&parameter.name()].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let data = values.iter().flat_map(|v| (v + plus).to_le_bytes()).collect();
        let dims = shape.iter().rev().map(|&dim| dim as u64).collect();
        file.tensors.push((stored, 0, dims, data));
    }
    file
}

pub(crate) fn golden_config() -> Gemma3Config {
    let text = include_str!("../../../../tests/fixtures/golden/model/config.json");
    Gemma3Config::from_json(text, "golden").unwrap()
}

pub(crate) const GOLDEN_BYTES: &[u8] =
    include_bytes!("../../../../tests/fixtures/golden/model/model.safetensors");

pub(crate) fn golden_weights() -> Weights {
    Weights::from_safetensors_bytes(GOLDEN_BYTES, "golden", &golden_config()).unwrap()
}

/// Deterministic numbers for the fuzz tests (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}
