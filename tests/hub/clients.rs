//! The stand-in speaks the Hub's protocol: hf-hub and Python's huggingface_hub use it as they use the
//! Hub, and share their cache with ours.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use emoji_lab::hub::{HubEnv, download_dataset_with, login_with, push_to_hub};
use emoji_lab::model::download_model_with;
use hf_hub::{HFClient, HFClientSync};

use crate::push::{a_card, logged_in, model_folder};
use crate::stand_in::{StandIn, Uploads};
use crate::{a_model, assert_says, noise};

fn hf_hub_client(hub: &StandIn, cache: PathBuf) -> HFClientSync {
    HFClient::builder().endpoint(&hub.endpoint).token("hf_ann").cache_dir(cache).build_sync().unwrap()
}

#[test]
fn hf_hub_downloads_from_it_and_shares_the_cache() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.account("ann", "hf_ann", "write");
    let weights = noise(2_000_000, 81);
    a_model(&hub, "ann/tiny", &weights);
    // Theirs first, ours from their cache.
    let client = hf_hub_client(&hub, home.path().join("hub"));
    let theirs = client.model("ann", "tiny").snapshot_download().send().unwrap();
    assert!(fs::read(theirs.join("model.safetensors")).unwrap() == weights);
    let offline = HubEnv { offline: true, ..hub.env(home.path()) };
    assert_eq!(download_model_with(&offline, "ann/tiny", None).unwrap(), theirs);
    // Ours first, theirs from our cache.
    let other = tempfile::tempdir().unwrap();
    let ours = download_model_with(&hub.env(other.path()), "ann/tiny", None).unwrap();
    let client = hf_hub_client(&hub, other.path().join("hub"));
    let again = client.model("ann", "tiny").snapshot_download().local_files_only(true).send().unwrap();
    assert_eq!(again, ours);
}

#[test]
fn hf_hub_uploads_to_it_through_xet() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.account("ann", "hf_ann", "write");
    hub.uploads(Uploads::Xet);
    let weights = noise(3_000_000, 82);
    let folder = model_folder(home.path(), &weights);
    let client = hf_hub_client(&hub, home.path().join("hub"));
    client
        .create_repository()
        .repo_id("ann/up")
        .repo_type(hf_hub::RepoTypeModel)
        .private(true)
        .send()
        .unwrap();
    client.model("ann", "up").upload_folder().folder_path(folder).send().unwrap();
    assert!(hub.content("models/ann/up", "model.safetensors").unwrap() == weights);
    assert!(hub.store().repos["models/ann/up"].private);
}

/// A Python that has huggingface_hub: `EMOJI_LAB_PYTHON`, or `python3`.
fn python() -> Option<String> {
    let python = std::env::var("EMOJI_LAB_PYTHON").unwrap_or_else(|_| "python3".to_string());
    let found = Command::new(&python).args(["-c", "import huggingface_hub"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    println!("skipped: {python} has no huggingface_hub (name one that has it in EMOJI_LAB_PYTHON)");
    None
}

/// Runs `client.py` in a home of its own; gives what it printed.
fn run_python(
    python: &str,
    hub: &StandIn,
    home: &std::path::Path,
    task: &[&str],
    variables: &[(&str, &str)],
) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/hub/client.py");
    let output = Command::new(python)
        .arg(script)
        .args(task)
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_TOKEN", "hf_ann")
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .env("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{task:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text.trim().to_string()
}

#[test]
fn python_downloads_from_it_and_shares_the_cache() {
    let Some(python) = python() else { return };
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.account("ann", "hf_ann", "write");
    let weights = noise(2_000_000, 83);
    a_model(&hub, "ann/tiny", &weights);
    hub.repo("datasets/ann/rows", &[("train.csv", b"text,emoji\n")]);
    assert_eq!(run_python(&python, &hub, home.path(), &["whoami"], &[]), "ann");
    // Theirs first, ours from their cache.
    let theirs =
        PathBuf::from(run_python(&python, &hub, home.path(), &["snapshot", "model", "ann/tiny"], &[]));
    assert!(fs::read(theirs.join("model.safetensors")).unwrap() == weights);
    let rows =
        PathBuf::from(run_python(&python, &hub, home.path(), &["snapshot", "dataset", "ann/rows"], &[]));
    let offline = HubEnv { offline: true, ..hub.env(home.path()) };
    assert_eq!(download_model_with(&offline, "ann/tiny", None).unwrap(), theirs);
    assert_eq!(download_dataset_with(&offline, "ann/rows", None).unwrap(), [rows.join("train.csv")]);
    // Ours first, theirs from our cache, without a network.
    let other = tempfile::tempdir().unwrap();
    let ours = download_model_with(&hub.env(other.path()), "ann/tiny", None).unwrap();
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        let found =
            run_python(&python, &hub, other.path(), &["file", "ann/tiny", file], &[("HF_HUB_OFFLINE", "1")]);
        assert_eq!(PathBuf::from(found), ours.join(file));
    }
    // And their whole snapshot on top of ours fetches only what ours leaves out.
    let before = hub.count("GET", "/objects/");
    run_python(
        &python,
        &hub,
        other.path(),
        &["snapshot", "model", "ann/tiny"],
        &[("HF_HUB_DISABLE_XET", "1")],
    );
    assert_eq!(hub.count("GET", "/objects/") - before, 1, "pytorch_model.bin alone");
}

#[test]
fn python_uploads_to_it() {
    let Some(python) = python() else { return };
    for (how, variables) in [
        (Uploads::Basic, vec![("HF_HUB_DISABLE_XET", "1")]),
        (Uploads::Multipart(900_000), vec![("HF_HUB_DISABLE_XET", "1")]),
        (Uploads::Xet, vec![]),
    ] {
        let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
        hub.account("ann", "hf_ann", "write");
        hub.uploads(how);
        let weights = noise(2_500_000, 84);
        let folder = model_folder(home.path(), &weights);
        run_python(&python, &hub, home.path(), &["upload", "ann/up", folder.to_str().unwrap()], &variables);
        assert!(hub.content("models/ann/up", "model.safetensors").unwrap() == weights, "{how:?}");
        assert!(hub.store().repos["models/ann/up"].private, "{how:?}");
        assert_eq!(hub.store().repos["models/ann/up"].commits.len(), 2, "{how:?}");
    }
}

#[test]
fn python_reads_the_card_that_was_pushed() {
    let Some(python) = python() else { return };
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let env = hub.env(home.path());
    let folder = model_folder(home.path(), &noise(1000, 85));
    let mut card = a_card();
    card.language = vec!["en".into(), "no".into()];
    card.tags.extend([
        "a: b # c".into(),
        "\"quoted\"\n---\nline".into(),
        "true".into(),
        "1.0".into(),
        "🏖️".into(),
    ]);
    let config = emoji_lab::hub::PushConfig { repo_name: "carded".into(), ..Default::default() };
    push_to_hub(&logged_in(&hub, &env), &folder, &config, &card).unwrap();
    let read = run_python(&python, &hub, home.path(), &["card", "ann/carded"], &[]);
    let read: serde_json::Value = serde_json::from_str(&read).unwrap();
    assert_eq!(read["base_model"], "google/gemma-3-270m-it");
    assert_eq!(read["license"], "gemma");
    assert_eq!(read["library_name"], "transformers");
    assert_eq!(read["pipeline_tag"], "text-generation");
    assert_eq!(read["language"], serde_json::json!(["en", "no"]));
    assert_eq!(read["datasets"], serde_json::json!(["kr15t3n/text2emoji"]));
    assert_eq!(read["tags"], serde_json::json!(card.tags));
    assert_eq!(read["eval"], serde_json::json!([["eval_loss", 2.5, "kr15t3n/text2emoji"]]));
    assert_says(read["text"].as_str().unwrap(), &["# carded", "![Training and validation loss](loss.svg)"]);
    assert_eq!(login_with(&env, Some("hf_ann")).unwrap().user(), Some("ann"));
}
