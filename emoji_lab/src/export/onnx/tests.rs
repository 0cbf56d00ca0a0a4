//! The folder as it lies on disk. What runtimes compute from it is compared in `tests/python` and `tests/node`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use candle_core::Tensor;

use super::*;
use crate::device::Device;
use crate::export::tests::{embedded, small};
use crate::model::gguf::writer::{golden_config, golden_weights};
use crate::model::{LayerType, load_model};
use crate::protobuf::Message;

/// The fields of a message: their numbers, and values or contents.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for place in 0.. {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = vec![];
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let (number, inside) = match tag & 7 {
            0 => (varint(&mut bytes), 0),
            2 => (0, varint(&mut bytes) as usize),
            5 => (0, 4),
            other => panic!("wire type {other}"),
        };
        found.push((tag >> 3, number, bytes[..inside].to_vec()));
        bytes = &bytes[inside..];
    }
    found
}

fn all(message: &[u8], field: u64) -> Vec<Vec<u8>> {
    fields(message).into_iter().filter(|(number, ..)| *number == field).map(|(.., inside)| inside).collect()
}

fn texts(message: &[u8], field: u64) -> Vec<String> {
    all(message, field).into_iter().map(|bytes| String::from_utf8(bytes).unwrap()).collect()
}

/// A node: operator, inputs, outputs, and its whole numbers among the attributes.
struct Node {
    op: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    ints: Vec<(String, i64)>,
}

/// What a graph's file says, read by the fields' numbers alone.
struct Read {
    nodes: Vec<Node>,
    tensors: Vec<String>,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

fn read(path: PathBuf) -> Read {
    let bytes = fs::read(path).unwrap();
    let graph = all(&bytes, 7).remove(0);
    let node = |bytes: Vec<u8>| Node {
        op: texts(&bytes, 4).remove(0),
        inputs: texts(&bytes, 1),
        outputs: texts(&bytes, 2),
        ints: all(&bytes, 5)
            .into_iter()
            .filter_map(|attribute| {
                let value = fields(&attribute).into_iter().find(|(number, ..)| *number == 3)?.1;
                Some((texts(&attribute, 1).remove(0), value as i64))
            })
            .collect(),
    };
    let names = |field, of| all(&graph, field).iter().map(|inside| texts(inside, of).remove(0)).collect();
    Read {
        nodes: all(&graph, 1).into_iter().map(node).collect(),
        tensors: names(5, 8),
        inputs: names(11, 1),
        outputs: names(12, 1),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_folder_is_transformers_js() {
    let root = tempfile::tempdir().unwrap();
    let (dir, model) = (root.path().join("a/onnx model"), embedded());
    let report = export_onnx(&model, &dir, &OnnxVariant::ALL).unwrap();
    let in_folder = [
        "model.onnx",
        "model.onnx_data",
        "model_q4.onnx",
        "model_q4.onnx_data",
        "model_quantized.onnx",
        "model_quantized.onnx_data",
    ];
    assert_eq!(names(&dir.join(FOLDER)), in_folder);
    assert_eq!(
        names(&dir),
        [
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "onnx",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    );
    for file in &report.files {
        let size = |name: &str| fs::metadata(dir.join(FOLDER).join(name)).unwrap().len();
        assert_eq!(size(file.name), file.graph_bytes);
        assert_eq!(size(&format!("{}_data", file.name)), file.data_bytes);
    }
    let config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["model_type"], "gemma3_text");
    assert_eq!(config["eos_token_id"], json!([1, 5]));
    let js = &config["transformers.js_config"];
    assert_eq!(js["dtype"], "q8");
    assert_eq!(
        js["use_external_data_format"],
        json!({"model.onnx": 1, "model_quantized.onnx": 1, "model_q4.onnx": 1})
    );
    let tokenizer: Value =
        serde_json::from_slice(&fs::read(dir.join("tokenizer_config.json")).unwrap()).unwrap();
    assert_eq!(tokenizer["chat_template"], model.tokenizer.chat_template().source());
    assert_eq!(report.context, 1024, "the model's own");
    let text = report.to_string();
    assert!(
        text.contains("q4") && text.contains("onnx/model_quantized.onnx") && text.contains("1,024"),
        "{text}"
    );
}

#[test]
fn a_graph_holds_together() {
    let root = tempfile::tempdir().unwrap();
    let model = embedded();
    let shape = model.gemma.config();
    export_onnx(&model, root.path(), &OnnxVariant::ALL).unwrap();
    for variant in OnnxVariant::ALL {
        let graph = read(root.path().join(FOLDER).join(variant.file()));
        let mut known: BTreeSet<&String> = graph.inputs.iter().chain(&graph.tensors).collect();
        assert_eq!(known.len(), graph.inputs.len() + graph.tensors.len(), "{variant}: a name is there twice");
        let mut used = BTreeSet::new();
        for node in &graph.nodes {
            for input in &node.inputs {
                assert!(
                    known.contains(input),
                    "{variant}: {} reads {input}, which is not there yet",
                    node.op
                );
                used.insert(input);
            }
            for output in &node.outputs {
                assert!(known.insert(output), "{variant}: {output} is made twice");
            }
        }
        assert!(graph.outputs.iter().all(|output| known.contains(output)));
        let idle: Vec<_> = graph.tensors.iter().chain(&graph.inputs).filter(|t| !used.contains(t)).collect();
        assert!(idle.is_empty(), "{variant}: {idle:?} are not used");

        let count = |op: &str| graph.nodes.iter().filter(|node| node.op == op).count();
        let layers = shape.num_hidden_layers;
        assert_eq!(count("RMSNormalization"), 6 * layers + 1);
        let (plain, blocks) =
            if variant == OnnxVariant::Fp32 { (7 * layers, 0) } else { (0, 7 * layers + 1) };
        assert_eq!((count("MatMul"), count("MatMulNBits")), (plain, blocks));
        // The embedding is there once: its tensors are the head's, too.
        let of_table = graph.tensors.iter().filter(|name| name.starts_with("model.embed_tokens")).count();
        assert_eq!(of_table, if variant == OnnxVariant::Fp32 { 1 } else { 2 });
        assert!(!graph.tensors.iter().any(|name| name.starts_with("lm_head")));
        let int =
            |node: &Node, name: &str| node.ints.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
        let windows: Vec<_> = graph.nodes.iter().filter_map(|node| int(node, "local_window_size")).collect();
        let wanted = shape.layer_types.iter().map(|kind| match kind {
            LayerType::SlidingAttention => shape.sliding_window as i64,
            LayerType::FullAttention => -1,
        });
        assert_eq!(windows, wanted.collect::<Vec<_>>());
        let bits: BTreeSet<_> = graph.nodes.iter().filter_map(|node| int(node, "bits")).collect();
        let wanted: &[i64] = match variant {
            OnnxVariant::Fp32 => &[],
            OnnxVariant::Q8 => &[8],
            OnnxVariant::Q4 => &[4, 8],
        };
        assert_eq!(bits, wanted.iter().copied().collect());
    }
}

#[test]
fn sizes_fall() {
    let root = tempfile::tempdir().unwrap();
    let report = export_onnx(&embedded(), root.path(), &OnnxVariant::ALL).unwrap();
    let [full, eight, four] = report.files.as_slice() else { panic!() };
    // 4 bytes, 1 and an eighth, a half and an eighth for a number; tables of angles are the same size.
    let angles = 2 * 2 * 4 * 1024 * 16;
    let matrices = |file: &OnnxFile| (file.data_bytes - angles) as f64;
    assert!((matrices(eight) / matrices(full) - 1.125 / 4.0).abs() < 0.1, "{report:?}");
    assert!(matrices(four) < matrices(eight));
}

#[test]
fn an_untied_head_is_a_tensor_of_its_own() {
    let untied = Gemma3Config { tie_word_embeddings: false, ..golden_config() };
    let mut weights = golden_weights();
    let head = weights.tensors["model.embed_tokens.weight"].affine(-0.5, 0.01).unwrap();
    weights.tensors.insert("lm_head.weight".into(), head);
    let root = tempfile::tempdir().unwrap();
    export_onnx(&small(&untied, &weights), root.path(), &OnnxVariant::ALL).unwrap();
    for variant in OnnxVariant::ALL {
        let graph = read(root.path().join(FOLDER).join(variant.file()));
        let head = graph.tensors.iter().filter(|name| name.starts_with("lm_head.weight")).count();
        assert_eq!(head, if variant == OnnxVariant::Fp32 { 1 } else { 2 });
    }
}

#[test]
fn what_cannot_be_exported_is_refused_and_nothing_is_written() {
    use crate::model::{LoraAdapter, Param, token_rows::TokenRows};
    let mut adapted = embedded();
    let zeros = |dims: (usize, usize)| {
        Param::frozen(Tensor::zeros(dims, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap())
    };
    adapted.gemma.layers[2].q_proj.lora =
        Some(LoraAdapter { a: zeros((2, 128)), b: zeros((128, 2)), scale: 1.0, dropout: 0.0 });
    let mut with_rows = embedded();
    with_rows.gemma.token_rows = Some(TokenRows::of(&with_rows.gemma.embed_tokens.value, &[3, 5]).unwrap());
    let of_shape = |config: Gemma3Config| {
        let mut weights = golden_weights();
        for (name, dims) in crate::model::tensor_shapes(&config) {
            let values = Tensor::randn(0f32, 0.02, dims, &candle_core::Device::Cpu).unwrap();
            weights.tensors.insert(name, values);
        }
        small(&config, &weights)
    };
    let narrow = of_shape(Gemma3Config { intermediate_size: 48, ..golden_config() });
    let odd_heads = of_shape(Gemma3Config { head_dim: 24, ..golden_config() });
    let cases = [
        (&adapted, OnnxVariant::Q8, "not merged", "merge_adapters"),
        (&with_rows, OnnxVariant::Fp32, "not merged", "merge_adapters"),
        (&narrow, OnnxVariant::Q4, "intermediate_size is 48", "Fp32"),
        (&odd_heads, OnnxVariant::Fp32, "head_dim is 24", "export_gguf"),
    ];
    for (model, variant, problem, help) in cases {
        let root = tempfile::tempdir().unwrap();
        let said = export_onnx(model, root.path().join("a/b"), &[variant]).unwrap_err().to_string();
        assert!(said.contains(problem) && said.contains(help) && said.lines().count() == 1, "{said}");
        assert!(names(root.path()).is_empty());
    }
    let root = tempfile::tempdir().unwrap();
    export_onnx(&narrow, root.path(), &[OnnxVariant::Fp32]).unwrap();
    let none = OnnxConfig { variants: vec![], ..OnnxConfig::default() };
    let short = OnnxConfig { context: 0, ..OnnxConfig::default() };
    for (config, problem) in [(none, "setting variants = []"), (short, "setting context = 0")] {
        let said = export_onnx_with(&embedded(), root.path(), &config).unwrap_err().to_string();
        assert!(said.starts_with(problem), "{said}");
    }
}

#[test]
fn a_failure_leaves_the_folder_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let model = small(&golden_config(), &golden_weights());
    export_onnx(&model, root.path(), &[OnnxVariant::Fp32]).unwrap();
    fs::write(root.path().join(FOLDER).join("notes.txt"), "mine").unwrap();
    let before = read_all(root.path());
    for (name, value) in [
        ("model.layers.1.mlp.down_proj.weight", f32::NAN),
        ("model.layers.1.mlp.down_proj.weight", f32::INFINITY),
        ("model.layers.0.self_attn.q_norm.weight", f32::NAN),
    ] {
        let mut weights = golden_weights();
        let dims = weights.tensors[name].dims().to_vec();
        let spoiled = Tensor::full(value, dims, &candle_core::Device::Cpu).unwrap();
        weights.tensors.insert(name.into(), spoiled);
        for variant in OnnxVariant::ALL {
            let spoiled = small(&golden_config(), &weights);
            let said = export_onnx(&spoiled, root.path(), &[variant]).unwrap_err().to_string();
            assert!(said.contains(name) && said.contains("no numbers"), "{said}");
            assert_eq!(read_all(root.path()), before);
        }
    }
    // Another variant's files stay, and are named.
    let report = export_onnx(&model, root.path(), &[OnnxVariant::Q8]).unwrap();
    assert!(report.notes[0].starts_with("onnx/model.onnx was there before"), "{:?}", report.notes);
    assert_eq!(fs::read_to_string(root.path().join(FOLDER).join("notes.txt")).unwrap(), "mine");
}

fn read_all(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = vec![];
    for name in names(dir) {
        let path = dir.join(name);
        match path.is_dir() {
            true => found.extend(read_all(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found
}

#[test]
fn a_model_folder_keeps_its_weights_and_loads_again() {
    let root = tempfile::tempdir().unwrap();
    let model = embedded();
    model.save_pretrained(root.path()).unwrap();
    export_onnx(&model, root.path(), &[OnnxVariant::Q4]).unwrap();
    let back = load_model(root.path().to_str().unwrap(), &Device::Cpu).unwrap();
    assert_eq!(back.gemma.config(), model.gemma.config());
    assert_eq!(back.stop_ids().unwrap(), model.stop_ids().unwrap());
}

#[test]
fn names_lead_back() {
    for variant in OnnxVariant::ALL {
        assert_eq!(variant.as_str().to_uppercase().parse::<OnnxVariant>().unwrap(), variant);
    }
    let said = "fp16".parse::<OnnxVariant>().unwrap_err().to_string();
    assert!(said.contains("fp16") && said.contains("q8"), "{said}");
    // The reader of these tests reads what the writer writes.
    let message = Message::default().number(300, 5).text(2, "a");
    assert_eq!(fields(&message.0), [(300, 5, vec![]), (2, 0, b"a".to_vec())]);
}
