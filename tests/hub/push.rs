//! `push_to_hub`: what arrives, what is shown, what is refused before anything is sent.

use std::fs;
use std::path::Path;

use emoji_lab::card::{CardSample, ModelCard};
use emoji_lab::export::{Engine, Library, OnnxVariant, WebConfig, export_onnx, export_web_with};
use emoji_lab::hub::{FileState, HubEnv, Login, PushConfig, PushKind, login_with, push_to_hub};
use emoji_lab::train::LogEntry;

use crate::stand_in::{StandIn, Uploads};
use crate::{CONFIG, TOKENIZER, assert_says, noise};

/// A model folder as `save_pretrained` leaves it.
pub fn model_folder(home: &Path, weights: &[u8]) -> std::path::PathBuf {
    let folder = home.join("merged");
    fs::create_dir_all(folder.join("sub")).unwrap();
    for (name, bytes) in [
        ("config.json", CONFIG),
        ("tokenizer.json", TOKENIZER),
        ("model.safetensors", weights),
        ("sub/empty.txt", b""),
        (".hidden", b"x"),
        ("half.safetensors.1.part", b"x"),
    ] {
        fs::write(folder.join(name), bytes).unwrap();
    }
    folder
}

pub fn a_card() -> ModelCard {
    ModelCard {
        datasets: vec!["kr15t3n/text2emoji".into()],
        settings: vec![("learning_rate".into(), "5e-5".into())],
        log_history: vec![LogEntry {
            loss: Some(2.0),
            eval_loss: Some(2.5),
            epoch: 1.0,
            step: 4,
            ..Default::default()
        }],
        plot: Some("<svg xmlns=\"http://www.w3.org/2000/svg\"/>".into()),
        evaluation: vec![("eval_loss".into(), 2.5)],
        samples: vec![CardSample {
            text: "beach".into(), base: Some("Sure!".into()), tuned: "🏖️🌊".into()
        }],
        ..Default::default()
    }
}

pub fn logged_in(hub: &StandIn, env: &HubEnv) -> Login {
    hub.account("ann", "hf_ann", "write");
    login_with(env, Some("hf_ann")).unwrap()
}

fn config() -> PushConfig {
    PushConfig { repo_name: "myemoji".into(), ..Default::default() }
}

#[test]
fn a_model_and_its_card_arrive_as_one_commit() {
    // Basic and multipart are ours; Xet is hf-hub's, checked in `clients` as well.
    for how in [Uploads::Basic, Uploads::Multipart(700_000), Uploads::Xet] {
        let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
        hub.uploads(how);
        let weights = noise(2_500_000, 51);
        let folder = model_folder(home.path(), &weights);
        let login = logged_in(&hub, &hub.env(home.path()));
        let report = push_to_hub(&login, &folder, &config(), &a_card()).unwrap();

        assert_eq!((report.repo_id.as_str(), report.private), ("ann/myemoji", true));
        assert!(hub.store().repos["models/ann/myemoji"].private);
        let commits = hub.store().repos["models/ann/myemoji"].commits.clone();
        assert_eq!(commits.len(), 2, "{how:?}: the repository's first commit, and one for the push");
        assert_eq!(report.commit.as_deref(), Some(commits[1].id.as_str()));
        assert_eq!(commits[1].message, "Upload model");
        let names: Vec<_> = commits[1].files.keys().map(String::as_str).collect();
        let expected = [
            ".gitattributes",
            "README.md",
            "config.json",
            "loss.svg",
            "model.safetensors",
            "sub/empty.txt",
            "tokenizer.json",
        ];
        assert_eq!(names, expected, "{how:?}");
        assert!(hub.content("models/ann/myemoji", "model.safetensors").unwrap() == weights, "{how:?}");
        let card = String::from_utf8(hub.content("models/ann/myemoji", "README.md").unwrap()).unwrap();
        assert_eq!(card, report.card);
        assert_says(
            &card,
            &["license: gemma", "base_model: google/gemma-3-270m-it", "# myemoji", "ann/myemoji"],
        );
        assert_says(
            &report.to_string(),
            &["Pushed to", "private", "model.safetensors", "2.5 MB", "sent", "license: gemma"],
        );
        for seen in hub.seen().iter().filter(|seen| seen.server == "storage") {
            // Xet storage has tokens of its own.
            assert!(seen.authorization.as_deref().is_none_or(|text| text == "Bearer xet-token"), "{seen:?}");
        }
    }
}

#[test]
fn pushing_twice_sends_nothing_twice() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let folder = model_folder(home.path(), &noise(2_000_000, 52));
    let login = logged_in(&hub, &hub.env(home.path()));
    let first = push_to_hub(&login, &folder, &config(), &a_card()).unwrap();
    let again = push_to_hub(&login, &folder, &config(), &a_card()).unwrap();
    assert_eq!(again.commit, first.commit);
    assert!(again.files.iter().all(|file| file.state == FileState::Unchanged));
    assert_says(&again.to_string(), &["has all of it already"]);
    assert_eq!(hub.store().repos["models/ann/myemoji"].commits.len(), 2);

    // A changed file alone is sent; one that is gone here stays there, and is named.
    fs::write(folder.join("config.json"), b"{\"changed\": true}").unwrap();
    fs::remove_file(folder.join("sub/empty.txt")).unwrap();
    let third = push_to_hub(&login, &folder, &config(), &a_card()).unwrap();
    let sent: Vec<_> =
        third.files.iter().filter(|file| file.state == FileState::Sent).map(|file| &file.path).collect();
    assert_eq!(sent, ["config.json"]);
    assert_eq!(third.others, ["sub/empty.txt"]);
    assert_eq!(hub.store().repos["models/ann/myemoji"].commits.len(), 3);
    assert_eq!(hub.count("PUT", "/objects/"), 1);
}

#[test]
fn a_dry_run_needs_no_login_and_sends_nothing() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let folder = model_folder(home.path(), &noise(2_000_000, 53));
    let login = login_with(&hub.env(home.path()), None).unwrap();
    let out = home.path().join("out/dry");
    let config = PushConfig { dry_run: Some(out.clone()), ..config() };
    for _ in 0..2 {
        let report = push_to_hub(&login, &folder, &config, &a_card()).unwrap();
        assert_eq!(report.commit, None);
        assert_says(&report.to_string(), &["Dry run, nothing was sent", "your-name/myemoji", "6 files"]);
        assert_eq!(fs::read_to_string(out.join("README.md")).unwrap(), report.card);
        assert_says(&fs::read_to_string(out.join("files.txt")).unwrap(), &["model.safetensors", "2.0 MB"]);
        assert!(out.join("loss.svg").is_file());
    }
    assert!(hub.seen().is_empty());
    // A folder with other things in it is not replaced.
    let config = PushConfig { dry_run: Some(folder.clone()), ..config };
    let error = push_to_hub(&login, &folder, &config, &a_card()).unwrap_err().to_string();
    assert_says(&error, &["dry_run", "new or empty"]);
    assert!(folder.join("model.safetensors").is_file());
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_made() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let env = hub.env(home.path());
    let folder = model_folder(home.path(), &noise(1000, 54));
    let error = |login: &Login, config: &PushConfig| {
        push_to_hub(login, &folder, config, &a_card()).unwrap_err().to_string()
    };
    let nobody = login_with(&env, None).unwrap();
    assert_says(&error(&nobody, &config()), &["needs a login", "write access", "dry_run"]);
    hub.account("bob", "hf_bob", "read");
    let reader = login_with(&env, Some("hf_bob")).unwrap();
    assert_says(&error(&reader, &config()), &["cannot write to repositories of bob", "write access"]);
    let offline = login_with(&HubEnv { offline: true, ..env.clone() }, Some("hf_bob")).unwrap();
    assert_says(&error(&offline, &config()), &["HF_HUB_OFFLINE"]);
    let ann = logged_in(&hub, &env);
    assert_says(
        &error(&ann, &PushConfig { repo_name: "a name".into(), ..config() }),
        &["not a repository id"],
    );
    let foreign = PushConfig { repo_name: "google/gemma".into(), ..config() };
    assert_says(&error(&ann, &foreign), &["google/gemma", "making the repository", "HTTP 403", "rights"]);
    fs::write(folder.join("notes.md"), "HF_TOKEN=hf_abcdefghijABCDEFGHIJ0123456789").unwrap();
    let text = error(&ann, &config());
    assert_says(&text, &["notes.md", "access token", "nothing was sent"]);
    assert!(!text.contains("abcdefghij"));
    assert!(hub.store().repos.is_empty());
}

#[test]
fn a_private_push_does_not_land_in_public() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.repo("models/ann/myemoji", &[("config.json", b"{}")]);
    let folder = model_folder(home.path(), &noise(1000, 55));
    let login = logged_in(&hub, &hub.env(home.path()));
    let error = push_to_hub(&login, &folder, &config(), &a_card()).unwrap_err().to_string();
    assert_says(&error, &["public", "nothing was sent", "private: false"]);
    assert_eq!(hub.store().repos["models/ann/myemoji"].commits.len(), 1);
    let public = PushConfig { private: false, ..config() };
    assert!(!push_to_hub(&login, &folder, &public, &a_card()).unwrap().private);
}

#[test]
fn an_organisation_can_own_the_model() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let folder = model_folder(home.path(), &noise(1000, 56));
    let login = logged_in(&hub, &hub.env(home.path()));
    let config = PushConfig { repo_name: "lab/myemoji".into(), private: false, ..config() };
    let report = push_to_hub(&login, &folder, &config, &a_card()).unwrap();
    assert_eq!(report.url, format!("{}/lab/myemoji", hub.endpoint));
    assert!(!hub.store().repos["models/lab/myemoji"].private);
}

#[test]
fn a_page_becomes_a_static_space() {
    for how in [Uploads::Basic, Uploads::Xet] {
        let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
        hub.uploads(how);
        let model = emoji_lab::model::load_model("embedded", &emoji_lab::Device::Cpu).unwrap();
        let folder = home.path().join("web");
        let web = WebConfig {
            engine: Engine::Onnx(OnnxVariant::Q8),
            library: Library::Link,
            title: "Mine: \"a\"".into(),
            ..WebConfig::default()
        };
        let page = export_web_with(&model, &folder, &web).unwrap();
        let to =
            |dry_run| PushConfig { kind: PushKind::Space, repo_name: "page".into(), dry_run, ..config() };

        let dry = home.path().join("dry");
        let nobody = login_with(&hub.env(home.path()), None).unwrap();
        let report = push_to_hub(&nobody, &folder, &to(Some(dry.clone())), &page).unwrap();
        assert_says(&report.to_string(), &["nothing was sent", "model/onnx/model_quantized.onnx_data"]);
        assert_says(&fs::read_to_string(dry.join("README.md")).unwrap(), &["sdk: static"]);
        assert!(hub.store().repos.is_empty());

        let login = logged_in(&hub, &hub.env(home.path()));
        let report = push_to_hub(&login, &folder, &to(None), &page).unwrap();
        assert!(report.url.ends_with("/spaces/ann/page"), "{}", report.url);
        assert!(hub.store().repos["spaces/ann/page"].private);
        for name in ["index.html", "README.md", "model/config.json", "model/onnx/model_quantized.onnx_data"] {
            let arrived = hub.content("spaces/ann/page", name).unwrap();
            assert!(arrived == fs::read(folder.join(name)).unwrap(), "{how:?}: {name}");
        }
        let again = push_to_hub(&login, &folder, &to(None), &page).unwrap();
        assert_says(&again.to_string(), &["has all of it already"]);
    }
}

#[test]
fn an_onnx_folder_goes_with_its_model() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let model = emoji_lab::model::load_model("embedded", &emoji_lab::Device::Cpu).unwrap();
    let folder = home.path().join("merged");
    model.save_pretrained(&folder).unwrap();
    export_onnx(&model, &folder, &[OnnxVariant::Q4]).unwrap();
    let login = logged_in(&hub, &hub.env(home.path()));
    push_to_hub(&login, &folder, &config(), &a_card()).unwrap();
    for name in ["model.safetensors", "onnx/model_q4.onnx", "onnx/model_q4.onnx_data"] {
        let arrived = hub.content("models/ann/myemoji", name).unwrap();
        assert!(arrived == fs::read(folder.join(name)).unwrap(), "{name}");
    }
}
