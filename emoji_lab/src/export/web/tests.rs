//! Pages are written with a library that is made up: its packages are small, and served from here.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::library::Part;
use super::releases::WLLAMA;
use super::*;
use crate::data::Message;
use crate::device::Device;
use crate::model::load_model;

const EVIL: &str =
    "</script><img src=x onerror=alert(1)>\"'\\\n---\n{{ x }}\u{1b}[2J\u{2028}EVCXR_BEGIN_CONTENT";

pub(super) fn embedded() -> Model {
    load_model("embedded", &Device::Cpu).unwrap()
}

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// The content of a file of the made-up library.
fn content(part: &Part) -> Vec<u8> {
    format!("made up: {}\n", part.file).repeat(50).into_bytes()
}

fn archive(package: &Package, spoil: bool) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(vec![], Compression::fast()));
    for part in package.parts {
        let mut bytes = content(part);
        bytes[0] ^= u8::from(spoil);
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, format!("package/{}", part.inside), bytes.as_slice()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// The pinned release's names, with other contents.
pub(super) fn made_up(release: &Release) -> &'static Release {
    let made = release.packages.iter().map(|package| {
        let parts = package.parts.iter().map(|part| {
            let bytes = content(part);
            let integrity = leak(format!("sha384-{}", STANDARD.encode(Sha384::digest(&bytes))));
            Part { key: part.key, file: part.file, inside: part.inside, bytes: bytes.len() as u64, integrity }
        });
        let parts: &'static [Part] = Box::leak(parts.collect::<Vec<_>>().into_boxed_slice());
        let package = Package { name: package.name, version: package.version, integrity: "", parts };
        let sum = STANDARD.encode(Sha512::digest(archive(&package, false)));
        Package { integrity: leak(format!("sha512-{sum}")), ..package }
    });
    let packages = Box::leak(made.collect::<Vec<_>>().into_boxed_slice());
    Box::leak(Box::new(Release { packages, ..*release }))
}

/// A registry on the loopback that answers as often as there are answers, and then is gone.
fn registry(answers: Vec<(u16, Vec<u8>)>) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/", listener.local_addr().unwrap());
    let serve = std::thread::spawn(move || {
        let mut asked = vec![];
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut head, mut byte) = (vec![], [0]);
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
                head.push(byte[0]);
            }
            asked.push(String::from_utf8(head).unwrap().lines().next().unwrap().to_string());
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
        asked
    });
    (address, serve)
}

/// A folder with the library's files as npm lays them out.
pub(super) fn node_modules(root: &Path, release: &Release) -> PathBuf {
    for package in release.packages {
        for part in package.parts {
            let path = root.join("node_modules").join(package.name).join(part.inside);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content(part)).unwrap();
        }
    }
    root.join("node_modules")
}

pub(super) fn nobody(_: &Package) -> Result<String> {
    panic!("the registry was asked")
}

pub(super) fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        match entry.path().is_dir() {
            true => {
                let inside = contents(&entry.path()).into_iter();
                found.extend(inside.map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
            }
            false => drop(found.insert(name, fs::read(entry.path()).unwrap())),
        }
    }
    found
}

/// The SHA-256 of bytes, in hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file of the page as an engine has it.
pub(super) fn own(engine: Engine, wanted: &str) -> String {
    engine.page().into_iter().find(|(name, _)| *name == wanted).unwrap().1
}

pub(super) fn read_settings(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join(SETTINGS)).unwrap()).unwrap()
}

#[test]
fn a_page_has_its_files_and_says_so() {
    let root = tempfile::tempdir().unwrap();
    let (dir, release, model) = (root.path().join("a/web"), made_up(&WLLAMA), embedded());
    let config =
        WebConfig { library: Library::Folder(node_modules(root.path(), release)), ..WebConfig::default() };
    let report = write(&model, &dir, &config, release, nobody).unwrap();
    let there = contents(&dir);
    let names: Vec<_> = there.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "NOTICE.txt",
            "README.md",
            "answers.js",
            "app.js",
            "engine.js",
            "files.js",
            "index.html",
            "model.gguf",
            "model.js",
            "page.json",
            "style.css",
            "wllama-LICENSE.txt",
            "wllama-compat.js",
            "wllama-compat.wasm",
            "wllama.js",
            "wllama.wasm",
        ]
    );
    assert_eq!(report.files.len(), there.len());
    for file in &report.files {
        assert_eq!(file.bytes, there[&file.name].len() as u64, "{}", file.name);
    }
    for (name, text) in config.engine.page() {
        assert_eq!(there[name], text.as_bytes(), "{name}");
    }
    let settings = read_settings(&dir);
    assert_eq!(settings["title"], "Translate text into emoji");
    let gguf = &there["model.gguf"];
    assert_eq!(settings["model"]["bytes"], json!(gguf.len()));
    let file = json!({"file": "model.gguf", "bytes": gguf.len(), "sha256": sha256(gguf), "begins": b"GGUF"});
    assert_eq!(settings["model"]["files"], json!([file]));
    assert_eq!(settings["terms"]["name"], "the Apache License 2.0");
    assert_eq!(settings["library"]["files"]["other_wasm"]["url"], "wllama-compat.wasm");
    // It asks as the model was trained.
    let asked = format!(
        "{}hi{}",
        settings["prompt"]["before"].as_str().unwrap(),
        settings["prompt"]["after"].as_str().unwrap()
    );
    let trained = model.tokenizer.apply_chat_template(&config.task.prompt("hi"), true).unwrap();
    assert_eq!(format!("<bos>{asked}"), trained);
    let back = load_model(dir.join("model.gguf").to_str().unwrap(), &Device::Cpu).unwrap();
    assert_eq!(back.gemma.config(), model.gemma.config());
    let text = report.to_string();
    for part in ["model.gguf", "Together", "python3 -m http.server --directory", "wllama 3.13.0, from "] {
        assert!(text.contains(part), "{part} in {text}");
    }

    // Once more: an earlier page is replaced, with what else is there left alone.
    fs::write(dir.join("notes.txt"), "mine").unwrap();
    let plain = WebConfig { task: Task { system_prompt: " ".into(), ..Task::emoji() }, ..config };
    write(&model, &dir, &plain, release, nobody).unwrap();
    assert_eq!(contents(&dir).len(), there.len() + 1);
    let alone = model.tokenizer.apply_chat_template(&[Message::user("hi")], true).unwrap();
    assert!(
        alone.starts_with(&format!("<bos>{}", read_settings(&dir)["prompt"]["before"].as_str().unwrap()))
    );
}

#[test]
fn the_library_comes_from_npm_by_its_hash() {
    let root = tempfile::tempdir().unwrap();
    let (dir, release, model) = (root.path().join("web"), made_up(&WLLAMA), embedded());
    let good = |package: &Package| (200, archive(package, false));
    let cases = [
        (vec![good(&release.packages[0]), (200, archive(&release.packages[1], true))], "has another hash"),
        (vec![(200, b"<html>".to_vec())], "has another hash"),
        (vec![(404, vec![])], "says HTTP 404"),
    ];
    for (answers, problem) in cases {
        let (address, _) = registry(answers);
        let said = write(&model, &dir, &WebConfig::default(), release, |_| Ok(address.clone()))
            .unwrap_err()
            .to_string();
        assert!(said.starts_with("setting library = Library::Npm: @wllama/wllama"), "{said}");
        assert!(
            said.contains(problem) && said.contains("Library::Folder") && said.contains("Library::Link"),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1);
        assert!(contents(root.path()).is_empty(), "{problem}: something is left");
    }
    let (address, serve) = registry(release.packages.iter().map(good).collect());
    let report = write(&model, &dir, &WebConfig::default(), release, |_| Ok(address.clone())).unwrap();
    assert!(report.library.contains(&address), "{}", report.library);
    assert_eq!(
        serve.join().unwrap(),
        [
            "GET /@wllama/wllama/-/wllama-3.13.0.tgz HTTP/1.1",
            "GET /@wllama/wllama-compat/-/wllama-compat-3.13.0.tgz HTTP/1.1"
        ]
    );
    // What is there already is not asked for again; what has changed is.
    write(&model, &dir, &WebConfig::default(), release, nobody).unwrap();
    fs::write(dir.join("wllama.js"), content(&release.packages[0].parts[0]).to_ascii_uppercase()).unwrap();
    let before = contents(&dir);
    let said =
        write(&model, &dir, &WebConfig::default(), release, |_| Ok(address.clone())).unwrap_err().to_string();
    assert!(said.contains("no connection to 127.0.0.1"), "{said}");
    assert_eq!(contents(&dir), before);
}

#[test]
fn a_folder_must_hold_this_release() {
    let root = tempfile::tempdir().unwrap();
    let (dir, release, model) = (root.path().join("web"), made_up(&WLLAMA), embedded());
    let modules = node_modules(root.path(), release);
    let page = |folder: &Path| {
        let config = WebConfig { library: Library::Folder(folder.into()), ..WebConfig::default() };
        write(&model, &dir, &config, release, nobody)
    };
    let said = page(&root.path().join("nowhere")).unwrap_err().to_string();
    assert!(said.contains("it has no esm/index.js of @wllama/wllama@3.13.0"), "{said}");
    let script = modules.join("@wllama/wllama/esm/index.js");
    for other in [content(&release.packages[0].parts[0]).to_ascii_uppercase(), b"short".to_vec()] {
        fs::write(&script, other).unwrap();
        let said = page(&modules).unwrap_err().to_string();
        assert!(said.contains("its hash differs") && said.contains("npm install"), "{said}");
        assert!(!dir.exists());
    }
    fs::write(&script, content(&release.packages[0].parts[0])).unwrap();
    page(root.path()).unwrap();
    // An exported page is such a folder, too.
    page(&dir).unwrap();
}

#[test]
fn a_link_is_pinned_and_nothing_of_the_library_is_written() {
    let root = tempfile::tempdir().unwrap();
    let config = WebConfig { library: Library::Link, ..WebConfig::default() };
    let report = write(&embedded(), root.path(), &config, &WLLAMA, nobody).unwrap();
    assert!(!contents(root.path()).keys().any(|name| name.starts_with("wllama")));
    let settings = read_settings(root.path());
    for (_, part) in WLLAMA.parts().filter(|(_, part)| !part.key.is_empty()) {
        let file = &settings["library"]["files"][part.key];
        assert_eq!(file["integrity"], part.integrity);
        let url = file["url"].as_str().unwrap();
        assert!(
            url.starts_with("https://cdn.jsdelivr.net/npm/@wllama/wllama") && url.contains("@3.13.0/"),
            "{url}"
        );
    }
    let index = fs::read_to_string(root.path().join(INDEX)).unwrap();
    assert!(index.contains("script-src 'self' blob: 'wasm-unsafe-eval'"), "{index}");
    assert!(index.contains("connect-src 'self' blob: https://cdn.jsdelivr.net;"), "{index}");
    assert!(report.to_string().contains("cdn.jsdelivr.net"));
}

#[test]
fn texts_of_others_stay_data() {
    let root = tempfile::tempdir().unwrap();
    let task =
        Task { system_prompt: EVIL.into(), description: EVIL.into(), example: EVIL.into(), ..Task::emoji() };
    let config = WebConfig {
        task,
        title: EVIL.into(),
        model_name: EVIL.into(),
        license: EVIL.into(),
        library: Library::Link,
        ..WebConfig::default()
    };
    let report = write(&embedded(), root.path(), &config, &WLLAMA, nobody).unwrap();
    let settings = read_settings(root.path());
    assert_eq!(settings["title"], EVIL);
    assert_eq!(settings["model"]["name"], EVIL);
    assert_eq!(settings["terms"], json!({"name": EVIL, "url": ""}));
    assert!(settings["prompt"]["before"].as_str().unwrap().contains(EVIL.trim()));
    let there = contents(root.path());
    let page = config.engine.page();
    for (name, text) in page.iter().filter(|(name, _)| *name != INDEX) {
        assert_eq!(there[*name], text.as_bytes(), "{name}");
    }
    assert_eq!(there[INDEX], linking(&own(config.engine, INDEX)).as_bytes());
    let readme = String::from_utf8(there["README.md"].clone()).unwrap();
    let front = readme.split("---\n").nth(1).unwrap();
    let front: serde_yaml_ng::Value = serde_yaml_ng::from_str(front).unwrap();
    assert_eq!(front["title"], EVIL);
    assert_eq!(front["sdk"], "static");
    let text = report.to_string();
    assert!(!text.contains("EVCXR_B") && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn another_page_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let config = WebConfig { library: Library::Link, ..WebConfig::default() };
    for (name, text) in [("index.html", "mine"), ("README.md", "mine"), ("page.json", "{}")] {
        fs::write(root.path().join(name), text).unwrap();
        let said = write(&embedded(), root.path(), &config, &WLLAMA, nobody).unwrap_err().to_string();
        assert!(said.contains(&format!("it has a {name} ")) && said.contains("name a new folder"), "{said}");
        assert_eq!(contents(root.path()).len(), 1);
        fs::remove_file(root.path().join(name)).unwrap();
    }
    let none = WebConfig { max_new_tokens: 0, ..config };
    let said = write(&embedded(), root.path(), &none, &WLLAMA, nobody).unwrap_err().to_string();
    assert!(said.starts_with("setting max_new_tokens = 0"), "{said}");
}

#[test]
fn names_and_terms() {
    let mut model = embedded();
    model.origin = "/home/someone/myemoji".into();
    let with = |name: &str, license: &str| {
        let config = WebConfig { model_name: name.into(), license: license.into(), ..WebConfig::default() };
        let settings = settings::settings(&model, &config, &WLLAMA, &[]).unwrap();
        (settings["model"].clone(), settings["terms"].clone(), settings::notice(&model, &config, &WLLAMA))
    };
    let (name, terms, notice) = with("", "");
    assert_eq!((&name["name"], &name["url"]), (&json!("myemoji"), &json!("")));
    assert_eq!(terms["url"], "https://ai.google.dev/gemma/terms");
    assert!(notice.contains("Gemma is provided under and subject to the Gemma Terms of Use"), "{notice}");
    let (name, terms, notice) = with("ann/emoji-270m", "mit");
    assert_eq!(name["url"], "https://huggingface.co/ann/emoji-270m");
    assert_eq!(terms, json!({"name": "mit", "url": ""}));
    assert!(!notice.contains("Gemma"), "{notice}");
    assert_eq!(with("a/b/../c", "").0["url"], "");
}
