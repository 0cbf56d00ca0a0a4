//! `download_model`: the right files, in the shared cache's places.

use std::fs;

use emoji_lab::hub::HubEnv;
use emoji_lab::model::download_model_with;

use crate::stand_in::{StandIn, sha256};
use crate::{CONFIG, TOKENIZER, a_model, assert_says, noise};

#[test]
fn a_model_comes_into_the_shared_cache() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let weights = noise(3_000_000, 1);
    let commit = a_model(&hub, "ann/tiny", &weights);
    let env = hub.env(home.path());
    let folder = download_model_with(&env, "ann/tiny", None).unwrap();

    let repo = home.path().join("hub/models--ann--tiny");
    assert_eq!(folder, repo.join("snapshots").join(&commit));
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), commit);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), CONFIG);
    let names: Vec<_> = crate::files_below(&folder).into_iter().map(|(name, _)| name).collect();
    let expected = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
    let link = fs::read_link(folder.join("model.safetensors")).unwrap();
    assert_eq!(link.to_str().unwrap(), format!("../../blobs/{}", sha256(&weights)));

    // Again: nothing is fetched a second time.
    let before = hub.count("GET", "/resolve/");
    assert_eq!(download_model_with(&env, "ann/tiny", Some("main")).unwrap(), folder);
    assert_eq!(hub.count("GET", "/resolve/"), before);
    // By commit not even asked for.
    let asked = hub.seen().len();
    assert_eq!(download_model_with(&env, "ann/tiny", Some(&commit)).unwrap(), folder);
    assert_eq!(hub.seen().len(), asked);
}

#[test]
fn a_new_commit_shares_what_did_not_change() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let weights = noise(2_000_000, 2);
    let old = a_model(&hub, "ann/tiny", &weights);
    let env = hub.env(home.path());
    let old_folder = download_model_with(&env, "ann/tiny", None).unwrap();
    let config = br#"{"model_type": "gemma3_text", "new": 1}"#;
    let new = hub.repo(
        "models/ann/tiny",
        &[("config.json", config), ("model.safetensors", &weights), ("tokenizer.json", TOKENIZER)],
    );
    let folder = download_model_with(&env, "ann/tiny", None).unwrap();
    assert!(folder.ends_with(&new) && old_folder.ends_with(&old));
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), config);
    assert_eq!(hub.count("GET", "/objects/"), 1, "the weights came once");
    assert_eq!(download_model_with(&env, "ann/tiny", Some(&old)).unwrap(), old_folder);
}

#[test]
fn sharded_weights_come_through_their_index() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let (one, two) = (noise(1_500_000, 3), noise(1_200_000, 4));
    let index = br#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"}}"#;
    hub.repo(
        "models/ann/big",
        &[
            ("config.json", CONFIG),
            ("model-00001-of-00002.safetensors", &one),
            ("model-00002-of-00002.safetensors", &two),
            ("model.safetensors.index.json", index),
            ("other.safetensors", &noise(50, 5)),
            ("tokenizer.json", TOKENIZER),
        ],
    );
    let folder = download_model_with(&hub.env(home.path()), "ann/big", None).unwrap();
    assert_eq!(fs::read(folder.join("model-00002-of-00002.safetensors")).unwrap(), two);
    assert!(!folder.join("other.safetensors").exists());

    // An index that names what is not there.
    hub.repo(
        "models/ann/torn",
        &[
            ("config.json", CONFIG),
            ("model-00001-of-00002.safetensors", &one),
            ("model.safetensors.index.json", index),
            ("tokenizer.json", TOKENIZER),
        ],
    );
    let error = download_model_with(&hub.env(home.path()), "ann/torn", None).unwrap_err().to_string();
    assert_says(&error, &["model-00002-of-00002.safetensors", "does not have"]);
}

#[test]
fn a_model_that_cannot_be_loaded_is_refused_before_its_weights() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let weights = noise(2_000_000, 12);
    let repo = |id: &str, config: &[u8], tokenizer: &[u8]| {
        let files = [
            ("config.json", config),
            ("model.safetensors", weights.as_slice()),
            ("tokenizer.json", tokenizer),
        ];
        hub.repo(&format!("models/{id}"), &files);
    };
    repo("ann/llama", br#"{"model_type": "llama"}"#, TOKENIZER);
    repo(
        "ann/embedding",
        br#"{"model_type": "gemma3_text", "use_bidirectional_attention": true}"#,
        TOKENIZER,
    );
    repo(
        "ann/awq",
        br#"{"model_type": "gemma3_text", "quantization_config": {"quant_method": "awq"}}"#,
        TOKENIZER,
    );
    repo("ann/mlx", br#"{"model_type": "gemma3_text", "quantization": {"bits": 4}}"#, TOKENIZER);
    repo("ann/tokens", CONFIG, br#"{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}"#);
    let env = hub.env(home.path());
    for (id, parts) in [
        ("ann/llama", ["ann/llama, config.json", "model_type is llama"]),
        ("ann/embedding", ["ann/embedding, config.json", "use_bidirectional_attention"]),
        ("ann/awq", ["quantised", "awq"]),
        ("ann/mlx", ["quantised", "MLX"]),
        ("ann/tokens", ["ann/tokens, tokenizer.json", "no <bos>"]),
    ] {
        let error = download_model_with(&env, id, None).unwrap_err().to_string();
        assert_says(&error, &parts);
    }
    assert_eq!(hub.count("GET", "/objects/"), 0, "nothing large was asked for");
    assert_eq!(hub.count("GET", "model.safetensors"), 0, "no weights were asked for");
    assert_eq!(hub.count("GET", "llama/resolve"), 1, "config.json and nothing else");
}

#[test]
fn private_repositories_need_the_token() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.account("ann", "hf_ann", "read");
    hub.account("bob", "hf_bob", "read");
    a_model(&hub, "ann/secret", &noise(2_000_000, 6));
    hub.store().repos.get_mut("models/ann/secret").unwrap().private = true;
    let env = hub.env(home.path());
    let error = download_model_with(&env, "ann/secret", None).unwrap_err().to_string();
    assert_says(&error, &["ann/secret", "no such public model", "HF_TOKEN"]);
    fs::write(&env.token_path, "hf_bob").unwrap();
    let error = download_model_with(&env, "ann/secret", None).unwrap_err().to_string();
    assert_says(&error, &["may not see it", "/settings/tokens"]);
    fs::write(&env.token_path, "hf_ann").unwrap();
    // HF_HUB_DISABLE_IMPLICIT_TOKEN: the token that lies there is not sent.
    download_model_with(&HubEnv { implicit_token: false, ..env.clone() }, "ann/secret", None).unwrap_err();
    download_model_with(&env, "ann/secret", None).unwrap();
    let to_storage: Vec<_> = hub.seen().into_iter().filter(|seen| seen.server == "storage").collect();
    assert!(!to_storage.is_empty() && to_storage.iter().all(|seen| seen.authorization.is_none()));
}

#[test]
fn a_gated_model_says_where_to_accept_its_licence() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.account("ann", "hf_ann", "write");
    a_model(&hub, "google/gemma", &noise(2_000_000, 7));
    hub.store().repos.get_mut("models/google/gemma").unwrap().gated = true;
    let env = hub.env(home.path());
    let page = format!("Accept the licence at {}/google/gemma", hub.endpoint);
    let error = download_model_with(&env, "google/gemma", None).unwrap_err().to_string();
    assert_says(&error, &["gated", &page, "HF_TOKEN"]);
    fs::write(&env.token_path, "hf_ann").unwrap();
    let error = download_model_with(&env, "google/gemma", None).unwrap_err().to_string();
    assert_says(&error, &["gated", &page, "with that account"]);
    assert_eq!(hub.count("GET", "/objects/"), 0, "nothing large was asked for");
    hub.store().repos.get_mut("models/google/gemma").unwrap().accepted.insert("ann".into());
    download_model_with(&env, "google/gemma", None).unwrap();
}

#[test]
fn what_is_not_there_is_told() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.account("ann", "hf_ann", "write");
    a_model(&hub, "ann/tiny", &noise(100, 8));
    hub.repo("models/ann/ggufs", &[("model.Q4_K.gguf", b"GGUF")]);
    hub.repo(
        "models/ann/torch",
        &[("config.json", CONFIG), ("tokenizer.json", TOKENIZER), ("pytorch_model.bin", b"x")],
    );
    let env = hub.env(home.path());
    let error = |id: &str, revision| download_model_with(&env, id, revision).unwrap_err().to_string();
    assert_says(&error("ann/nothing", None), &["ann/nothing", "no such public model"]);
    assert_says(&error("ann/tiny", Some("v9")), &["no revision \"v9\"", "/ann/tiny/tree/main"]);
    assert_says(&error("ann/ggufs", None), &["no config.json", ".gguf"]);
    assert_says(&error("ann/torch", None), &["neither model.safetensors", "pickled"]);
    assert_says(&error("not an id", None), &["not a repository id", "owner/name"]);
    fs::write(&env.token_path, "hf_wrong").unwrap();
    assert_says(&error("ann/tiny", None), &["does not accept the token from the file"]);
}

#[test]
fn offline_uses_the_cache_alone() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    a_model(&hub, "ann/tiny", &noise(2_000_000, 9));
    let online = hub.env(home.path());
    let offline = HubEnv { offline: true, ..online.clone() };
    let error = download_model_with(&offline, "ann/tiny", None).unwrap_err().to_string();
    assert_says(&error, &["HF_HUB_OFFLINE", "not in the cache"]);
    assert!(hub.seen().is_empty(), "an offline step asked the network");
    let folder = download_model_with(&online, "ann/tiny", None).unwrap();
    let asked = hub.seen().len();
    assert_eq!(download_model_with(&offline, "ann/tiny", None).unwrap(), folder);
    assert_eq!(hub.seen().len(), asked);
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let error = download_model_with(&offline, "ann/tiny", None).unwrap_err().to_string();
    assert_says(&error, &["the cache lacks model.safetensors"]);
}

#[test]
fn without_a_network_the_cache_serves() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    a_model(&hub, "ann/tiny", &noise(2_000_000, 10));
    let env = hub.env(home.path());
    let folder = download_model_with(&env, "ann/tiny", None).unwrap();
    let cut_off = HubEnv { endpoint: "http://127.0.0.1:9".into(), ..env };
    assert_eq!(download_model_with(&cut_off, "ann/tiny", None).unwrap(), folder);
    let error = download_model_with(&cut_off, "ann/other", None).unwrap_err().to_string();
    assert_says(&error, &["no connection", "HF_HUB_OFFLINE=1"]);
}

#[test]
fn two_processes_share_one_download() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let weights = noise(2_000_000, 11);
    a_model(&hub, "ann/tiny", &weights);
    // Locks of this kind hold between open files, so threads stand for processes here.
    let env = hub.env(home.path());
    let folders: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> =
            (0..4).map(|_| scope.spawn(|| download_model_with(&env, "ann/tiny", None).unwrap())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(folders.iter().all(|folder| fs::read(folder.join("model.safetensors")).unwrap() == weights));
    assert_eq!(hub.count("GET", "/objects/"), 1);
}
