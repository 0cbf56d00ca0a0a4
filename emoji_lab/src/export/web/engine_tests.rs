//! What an engine has of its own: the page's files, the pinned releases, the model's files.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::releases::{TRANSFORMERS_JS, WLLAMA};
use super::tests::{contents, embedded, made_up, nobody, node_modules, own, read_settings, sha256};
use super::{Engine, INDEX, Library, WebConfig, WebReport, write};
use crate::export::OnnxVariant;

const ONNX: Engine = Engine::Onnx(OnnxVariant::Q8);

#[test]
fn the_pinned_hashes_are_hashes() {
    let bytes = |text: &str, kind: &str| STANDARD.decode(text.strip_prefix(kind).unwrap()).unwrap().len();
    for package in WLLAMA.packages.iter().chain(TRANSFORMERS_JS.packages) {
        assert_eq!(bytes(package.integrity, "sha512-"), 64);
        for part in package.parts {
            assert_eq!(bytes(part.integrity, "sha384-"), 48, "{}", part.file);
        }
    }
}

#[test]
fn the_page_puts_texts_in_as_text_alone() {
    for engine in [Engine::default(), ONNX] {
        for (name, text) in engine.page() {
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "Function(",
                "srcdoc",
            ] {
                assert!(!text.contains(word), "{name} has {word}");
            }
        }
        let index = own(engine, INDEX);
        assert!(!index.contains("unsafe-inline") && !index.contains("'unsafe-eval'"));
        assert!(
            index.contains("default-src 'none'") && !index.contains("<style") && !index.contains("style=")
        );
        assert_eq!(index.matches("<script").count(), 1);
        assert_eq!(index.contains("worker-src 'self' blob:"), engine == ONNX);
    }
}

#[test]
fn an_onnx_page_has_its_own_library_and_model() {
    let root = tempfile::tempdir().unwrap();
    let (dir, release, model) = (root.path().join("web"), made_up(&TRANSFORMERS_JS), embedded());
    let library = Library::Folder(node_modules(root.path(), release));
    let config = WebConfig { engine: ONNX, library: library.clone(), ..WebConfig::default() };
    let report = write(&model, &dir, &config, release, nobody).unwrap();
    let there = contents(&dir);
    assert!(!there.keys().any(|name| name.contains("wllama") || name.contains("gguf")), "{:?}", there.keys());
    for name in ["worker.js", "sample.js", "transformers.js", "transformers-LICENSE.txt", "NOTICE.txt"] {
        assert!(there.contains_key(name), "{name}");
    }
    for file in &report.files {
        assert_eq!(file.bytes, there[&file.name].len() as u64, "{}", file.name);
    }
    let settings = read_settings(&dir);
    let files = settings["model"]["files"].as_array().unwrap();
    assert_eq!(files.len(), 6);
    for file in files {
        let bytes = &there[file["file"].as_str().unwrap()];
        assert_eq!(file["bytes"], json!(bytes.len()));
        assert_eq!(file["sha256"], sha256(bytes));
        assert_eq!(file["begins"], json!(bytes[..4]));
    }
    assert_eq!(settings["model"]["kind"], "ONNX q8");
    assert_eq!(settings["model"]["stop"], json!([1, 5]));
    assert_eq!(settings["library"]["files"]["glue"]["url"], "ort-wasm-simd-threaded.asyncify.mjs");
    assert_eq!(settings["library"]["licence"]["url"], "transformers-LICENSE.txt");
    let notice = String::from_utf8(there["NOTICE.txt"].clone()).unwrap();
    assert!(notice.contains("Microsoft Corporation") && notice.contains("WITHOUT WARRANTY"), "{notice}");
    assert!(report.to_string().contains("Transformers.js 4.3.1, from "));

    // Over a page of the other engine; what that one alone had stays, and is named.
    let other = made_up(&WLLAMA);
    let gguf =
        WebConfig { library: Library::Folder(node_modules(root.path(), other)), ..WebConfig::default() };
    let report = write(&model, &dir, &gguf, other, nobody).unwrap();
    let left = |report: &WebReport| -> Vec<String> {
        let notes = report.notes.iter().filter_map(|note| note.split_once(" is of an earlier page"));
        notes.map(|(name, _)| name.to_string()).collect()
    };
    assert_eq!(left(&report), ["model/onnx/model_quantized.onnx_data"]);
    let report = write(&model, &dir, &config, release, nobody).unwrap();
    assert_eq!(left(&report), ["model.gguf"]);
    let four = WebConfig { engine: Engine::Onnx(OnnxVariant::Q4), ..config.clone() };
    let report = write(&model, &dir, &four, release, nobody).unwrap();
    assert_eq!(left(&report), ["model/onnx/model_quantized.onnx_data", "model.gguf"]);
    // A folder that is somebody's, with a file where the model's would come.
    let theirs = root.path().join("theirs");
    fs::create_dir_all(theirs.join("model")).unwrap();
    fs::write(theirs.join("model/config.json"), "mine").unwrap();
    let said = write(&model, &theirs, &config, release, nobody).unwrap_err().to_string();
    assert!(said.contains("it has a model/config.json that no export of a page"), "{said}");
}
