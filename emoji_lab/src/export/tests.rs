//! What is exported is loaded again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::Tensor;
use serde_json::json;

use super::*;
use crate::data::{Message, load_dataset};
use crate::device::Device;
use crate::model::gguf::writer::{golden_config, golden_weights};
use crate::model::gguf_tokenizer::tests::tiny_tokenizer;
use crate::model::{
    Gemma3, Gemma3Config, GenerationConfig, LayerType, Rounding, Weights, gemma_generation_config,
    generate_ids, load_model, open_gguf,
};
use crate::quant::Nf4Tensor;
use crate::task::EmojiFilter;

pub(super) fn embedded() -> Model {
    load_model("embedded", &Device::Cpu).unwrap()
}

pub(super) fn small(config: &Gemma3Config, weights: &Weights) -> Model {
    let tokenizer = tiny_tokenizer();
    Model {
        gemma: Gemma3::new(config, weights, &Device::Cpu).unwrap(),
        generation_config: gemma_generation_config(&tokenizer),
        tokenizer,
        origin: "small".into(),
    }
}

fn export(model: &Model, kind: GgufType) -> (tempfile::TempDir, PathBuf, ExportReport) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let report = export_gguf(model, &path, kind).unwrap();
    (folder, path, report)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
}

/// How far a value of a row's block may be from where it was: of the value, and of its block's largest.
fn rounding(kind: GgufType, is_table: bool) -> (f32, f32) {
    match kind {
        GgufType::F32 => (0.0, 0.0),
        GgufType::F16 => (4.9e-4, 0.0),
        GgufType::Bf16 => (3.91e-3, 0.0),
        GgufType::Q8_0 => (4.9e-4, 0.5 / 127.0),
        GgufType::Q4_0 if is_table => (4.9e-4, 0.5 / 127.0),
        GgufType::Q4_0 => (4.9e-4, 1.0 / 8.0),
    }
}

fn assert_close(one: &BTreeMap<String, Tensor>, two: &BTreeMap<String, Tensor>, kind: GgufType) {
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    for (name, tensor) in one {
        assert_eq!(tensor.dims(), two[name].dims(), "{name}");
        let is_norm = tensor.dims().len() == 1;
        let (relative, of_block) = rounding(kind, name.contains("embed") || name.contains("lm_head"));
        for (block, back) in values(tensor).chunks(32).zip(values(&two[name]).chunks(32)) {
            let most = block.iter().fold(0f32, |most, v| most.max(v.abs()));
            for (v, b) in block.iter().zip(back) {
                let bound = match is_norm {
                    // Plus one and minus one again, in f32.
                    true => 1.2e-7 * (v.abs() + 1.0),
                    false => {
                        relative * v.abs() + of_block * most * 1.0001 + 1e-7 * (most != 0.0) as u8 as f32
                    }
                };
                let bound = if kind == GgufType::F32 && !is_norm { 0.0 } else { bound };
                assert!((v - b).abs() <= bound, "{kind}, {name}: {v} is {b}");
            }
        }
    }
}

#[test]
fn every_type_is_loaded_again() {
    let model = embedded();
    let rows = load_dataset("embedded", EmojiFilter::None).unwrap();
    for kind in GgufType::ALL {
        let (_folder, path, report) = export(&model, kind);
        let exact = open_gguf(&path, Rounding::None).unwrap();
        assert_eq!(&exact.config, model.gemma.config(), "{kind}");
        assert_close(&model.gemma.named_weights().unwrap().tensors, &exact.weights.tensors, kind);

        let back = load_model(path.to_str().unwrap(), &Device::Cpu).unwrap();
        assert_eq!(back.gemma.config(), model.gemma.config(), "{kind}");
        assert_eq!(back.generation_config, model.generation_config, "{kind}");
        assert_eq!(back.stop_ids().unwrap(), model.stop_ids().unwrap());
        assert_eq!(back.tokenizer.chat_template().source(), model.tokenizer.chat_template().source());
        assert_eq!(back.tokenizer.vocab_size(), model.tokenizer.vocab_size());
        for id in 0..2048 {
            assert_eq!(back.tokenizer.token(id), model.tokenizer.token(id), "{kind}");
        }
        for row in &rows.examples {
            let chat = rows.task.prompt(&row.text);
            let ids = |model: &Model| model.tokenizer.encode_chat(&chat, true).unwrap();
            assert_eq!(ids(&back), ids(&model), "{kind}: {}", row.text);
        }
        assert_eq!(report.bytes, std::fs::metadata(&path).unwrap().len(), "{kind}");
        assert_eq!(report.types.iter().map(|row| row.tensors).sum::<usize>(), exact.weights.tensors.len());
        // The embedded model is bf16: in the wide types it is the same model.
        if matches!(kind, GgufType::F32 | GgufType::Bf16) {
            let prompt = model.tokenizer.encode_chat(&[Message::user("a day at the beach")], true).unwrap();
            let answer = |model: &Model| generate_ids(model, &prompt, &GenerationConfig::greedy(24)).unwrap();
            assert_eq!(answer(&back), answer(&model), "{kind}");
        }
    }
}

#[test]
fn sizes_fall_and_four_bits_keep_eight_in_the_embedding() {
    let model = embedded();
    let sizes: Vec<u64> = GgufType::ALL.iter().map(|kind| export(&model, *kind).2.bytes).collect();
    assert!(sizes[0] > sizes[1] && sizes[1] == sizes[2] && sizes[2] > sizes[3] && sizes[3] > sizes[4]);
    let (_folder, _, report) = export(&model, GgufType::Q4_0);
    let counts: BTreeMap<&str, usize> =
        report.types.iter().map(|row| (row.name.as_str(), row.tensors)).collect();
    assert_eq!(counts, BTreeMap::from([("F32", 37), ("Q4_0", 42), ("Q8_0", 1)]));
    let text = report.to_string();
    assert!(
        text.contains("Q4_0") && text.contains("Together") && text.contains("Beside it: Modelfile"),
        "{text}"
    );
}

#[test]
fn an_untied_head_goes_along() {
    let untied = Gemma3Config { tie_word_embeddings: false, ..golden_config() };
    let mut weights = golden_weights();
    let head = weights.tensors["model.embed_tokens.weight"].affine(-0.5, 0.01).unwrap();
    weights.tensors.insert("lm_head.weight".into(), head);
    let model = small(&untied, &weights);
    for kind in GgufType::ALL {
        let (_folder, path, _) = export(&model, kind);
        let back = open_gguf(&path, Rounding::None).unwrap();
        assert!(!back.config.tie_word_embeddings);
        assert_close(&weights.tensors, &back.weights.tensors, kind);
    }
}

#[test]
fn a_quantised_base_is_exported_as_it_computes() {
    let mut model = embedded();
    for layer in &mut model.gemma.layers {
        for (_, linear) in layer.linears_mut() {
            let crate::ops::lora_linear::Weight::Dense(dense) = &linear.weight else { unreachable!() };
            let packed = Nf4Tensor::quantize(dense, 64).unwrap();
            linear.weight = crate::ops::lora_linear::Weight::Nf4(packed);
        }
    }
    let (_folder, path, _) = export(&model, GgufType::F32);
    let back = open_gguf(&path, Rounding::None).unwrap();
    assert_close(&model.gemma.named_weights().unwrap().tensors, &back.weights.tensors, GgufType::F32);
}

#[test]
fn an_adapter_that_is_not_merged_is_refused() {
    use crate::model::{LoraAdapter, Param};
    let mut model = embedded();
    let zeros = |dims: (usize, usize)| {
        Param::frozen(Tensor::zeros(dims, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap())
    };
    model.gemma.layers[2].q_proj.lora =
        Some(LoraAdapter { a: zeros((2, 128)), b: zeros((128, 2)), scale: 1.0, dropout: 0.0 });
    // Rows in place of the embedding's, alone, are no less a part of the model.
    let mut with_rows = embedded();
    let rows = crate::model::token_rows::TokenRows::of(&with_rows.gemma.embed_tokens.value, &[3, 5]).unwrap();
    with_rows.gemma.token_rows = Some(rows);
    for model in [model, with_rows] {
        let folder = tempfile::tempdir().unwrap();
        let said = export_gguf(&model, folder.path().join("m.gguf"), GgufType::Q8_0).unwrap_err().to_string();
        assert!(said.contains("not merged") && said.contains("merge_adapters"), "{said}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn rows_that_blocks_cannot_fill_fall_back_and_are_named() {
    let narrow = Gemma3Config { intermediate_size: 48, ..golden_config() };
    let mut weights = golden_weights();
    for (name, dims) in crate::model::tensor_shapes(&narrow) {
        if name.contains("mlp") {
            let values = Tensor::randn(0f32, 0.02, dims, &candle_core::Device::Cpu).unwrap();
            weights.tensors.insert(name, values);
        }
    }
    let (_folder, path, report) = export(&small(&narrow, &weights), GgufType::Q8_0);
    let layers = narrow.num_hidden_layers;
    let half = report.types.iter().find(|row| row.name == "F16").unwrap();
    assert_eq!(half.tensors, layers);
    let note = report.notes.iter().find(|note| note.contains("blocks of 32")).unwrap();
    assert!(note.contains("blk.0.ffn_down.weight") && !note.contains("ffn_up"), "{note}");
    // <end_of_turn>, which the tokenizer brings, is one more stop token in a file.
    let expected = Gemma3Config { eos_token_ids: vec![1, 6], ..narrow };
    assert_eq!(open_gguf(&path, Rounding::None).unwrap().config, expected);
}

#[test]
fn shapes_and_settings_of_every_kind_come_back() {
    let layers = golden_config().num_hidden_layers;
    let patterns = [
        vec![LayerType::SlidingAttention; layers],
        vec![LayerType::FullAttention; layers],
        (0..layers).map(|n| [LayerType::FullAttention, LayerType::SlidingAttention][n % 2]).collect(),
        crate::model::Gemma3Config::default().layer_types[..layers].to_vec(),
    ];
    for layer_types in patterns {
        let config = Gemma3Config {
            layer_types,
            rope_scaling_factor: 8.0,
            rope_theta: 5e5,
            rope_local_base_freq: 2e4,
            rms_norm_eps: 1e-5,
            ..golden_config()
        };
        let mut model = small(&config, &golden_weights());
        model.generation_config =
            json!({"do_sample": false, "repetition_penalty": 1.25, "eos_token_id": [1, 6, 9]});
        let (_folder, path, report) = export(&model, GgufType::F32);
        let back = load_model(path.to_str().unwrap(), &Device::Cpu).unwrap();
        let expected = Gemma3Config { eos_token_ids: vec![1, 6, 9], ..config.clone() };
        assert_eq!(back.gemma.config(), &expected);
        assert_eq!(back.stop_ids().unwrap(), [1, 6, 9]);
        assert!(report.notes.iter().any(|note| note.contains("also stops at")), "{:?}", report.notes);
        let settings = back.default_generation_config().unwrap();
        assert_eq!((settings.do_sample, settings.repetition_penalty), (false, 1.25));
    }
    let odd = Gemma3Config { query_pre_attn_scalar: 77.0, ..golden_config() };
    let said = export_gguf(&small(&odd, &golden_weights()), "x.gguf", GgufType::F32).unwrap_err().to_string();
    assert!(said.contains("query_pre_attn_scalar is 77"), "{said}");
}

#[test]
fn a_failure_leaves_the_folder_as_it_was() {
    let mut weights = golden_weights();
    let name = "model.layers.1.mlp.down_proj.weight";
    let dims = weights.tensors[name].dims().to_vec();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, "old").unwrap();
    std::fs::write(folder.path().join("Modelfile"), "mine").unwrap();
    for (value, kind, problem) in [
        (f32::NAN, GgufType::Q8_0, "no numbers"),
        (f32::INFINITY, GgufType::F32, "no numbers"),
        (1e5, GgufType::F16, "the most in F16"),
    ] {
        let values = Tensor::full(value, dims.as_slice(), &candle_core::Device::Cpu).unwrap();
        weights.tensors.insert(name.into(), values);
        let said = export_gguf(&small(&golden_config(), &weights), &path, kind).unwrap_err().to_string();
        assert!(said.contains("blk.1.ffn_down.weight") && said.contains(problem), "{said}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(std::fs::read_to_string(folder.path().join("Modelfile")).unwrap(), "mine");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}

#[test]
fn files_go_beside_it_and_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("a/b");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("notes.txt"), "mine").unwrap();
    let model = embedded();
    let names = || {
        let mut names: Vec<String> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let alone = GgufConfig { modelfile: false, ..GgufConfig::default() };
    export_gguf_with(&model, dir.join("m.gguf"), &alone).unwrap();
    assert_eq!(names(), ["m.gguf", "notes.txt"]);
    let all = GgufConfig { hub_files: true, system_prompt: "In emoji:".into(), ..GgufConfig::default() };
    let report = export_gguf_with(&model, dir.join("m.gguf"), &all).unwrap();
    assert_eq!(names(), ["Modelfile", "m.gguf", "notes.txt", "params", "system", "template"]);
    assert_eq!(std::fs::read_to_string(dir.join("system")).unwrap(), "In emoji:");
    assert_eq!(report.beside.len(), 4);
    for path in ["..", "/", "Modelfile"] {
        assert!(export_gguf_with(&model, path, &all).unwrap_err().to_string().contains("path"), "{path}");
    }
}
