//! A marker token goes through every step and every error, and is looked for in all that comes out.

use std::fmt::{Debug, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use emoji_lab::hub::{
    HubEnv, PushConfig, Token, download_dataset, login, login_interactive, login_with, push_to_hub,
};
use emoji_lab::model::{download_model, download_model_with};
use emoji_lab::prelude::*;

use crate::push::{a_card, model_folder};
use crate::stand_in::{Answer, StandIn, Uploads};
use crate::{a_model, files_below, noise};

const MARKER: &str = "hf_MARKERmarkerMARKERmarker0123456789";
const WRONG: &str = "hf_MARKERmarkerMARKERmarkerWRONG";

/// Shows an outcome in every way in which a cell can: its value, the error's two forms, and the panic
/// of an `unwrap`.
fn show<T: Display + Debug>(outcome: emoji_lab::Result<T>) {
    match &outcome {
        Ok(value) => println!("{value}\n{value:?}\n{value:#?}"),
        Err(error) => println!("{error}\n{error:?}\n{error:#?}"),
    }
    let failed = outcome.is_err();
    assert_eq!(catch_unwind(AssertUnwindSafe(|| outcome.unwrap())).is_err(), failed);
}

/// What an outcome is without a `Display` of its own.
fn show_paths<T: Debug>(outcome: emoji_lab::Result<T>) {
    show(outcome.map(|value| format!("{value:?}")));
}

/// The lesson's middle: trains, saves checkpoints, logs and adapters, merges; gives the merged folder
/// and the card made from it all.
fn train(home: &Path) -> (std::path::PathBuf, ModelCard) {
    let model = load_model("embedded", &emoji_lab::Device::Cpu).unwrap();
    let rows = format_chat(&load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap()).take(6);
    let args = SftConfig {
        output_dir: home.join("out"),
        num_train_epochs: 2.0,
        eval_strategy: Strategy::Epoch,
        save_strategy: Strategy::Epoch,
        report_to_tensorboard: true,
        ..SftConfig::default()
    };
    let lora = LoraConfig { r: 2, lora_alpha: 4.0, ..LoraConfig::default() };
    let quant = QuantConfig::default();
    let mut trainer = SftTrainer::new(&model, &rows, Some(&rows), &quant, Some(&lora), &args).unwrap();
    println!("{args:?}");
    let outcome = trainer.train().unwrap();
    println!("{outcome}\n{outcome:?}");
    trainer.save_model(home.join("adapter")).unwrap();
    let merged = merge_adapters(&model, home.join("adapter").to_str().unwrap()).unwrap();
    let folder = home.join("trained");
    merged.save_pretrained(&folder).unwrap();
    let plot = plot_losses(trainer.log_history()).unwrap();
    let card = ModelCard {
        log_history: trainer.log_history().to_vec(),
        plot: Some(plot.svg().to_string()),
        ..a_card()
    };
    println!("{card}\n{card:?}");
    (folder, card)
}

/// Runs in a process of its own, whose environment the test below sets.
#[test]
#[ignore = "started by no_step_shows_the_token"]
fn every_step() {
    let Ok(home) = std::env::var("HF_HOME") else { return };
    let home = Path::new(&home);
    let env = HubEnv::from_env();
    println!("{env:?}\n{env:#?}\n{:?}", env.find_token(None));
    let folder = model_folder(home, &noise(1_500_000, 71));
    let config = |name: &str| PushConfig { repo_name: name.into(), ..Default::default() };
    // The argument's token is wrong; the variable's is right and stays for the steps after it.
    for given in [Some(WRONG), None] {
        match login(given) {
            Ok(login) => {
                println!("{login}\n{login:?}");
                login.evcxr_display();
                let (trained, card) = train(home);
                show(push_to_hub(&login, &trained, &config("trained"), &card));
                for name in PUSHES {
                    if name == "leaky" {
                        std::fs::write(folder.join("notes.txt"), MARKER).unwrap();
                    }
                    let report = push_to_hub(&login, &folder, &config(name), &a_card());
                    if let Ok(report) = &report {
                        report.evcxr_display();
                    }
                    show(report);
                    std::fs::remove_file(folder.join("notes.txt")).ok();
                }
                let dry = PushConfig { dry_run: Some(home.join("dry")), ..config("dry") };
                show(push_to_hub(&login, &folder, &dry, &a_card()));
                let shown = catch_unwind(move || panic!("a panic that shows {login:?}"));
                assert!(shown.is_err());
                // A test of two tokens that fails prints both.
                let unequal = catch_unwind(|| assert_eq!(Token::new(MARKER), Token::new(WRONG)));
                assert!(unequal.is_err());
            }
            Err(error) => show(Err::<String, _>(error)),
        }
    }
    show(login_interactive());
    // From the file, with a broken token, without a network, with an address that holds a password.
    std::fs::write(home.join("token"), MARKER).unwrap();
    let file = HubEnv { token: None, session_token: None, ..env.clone() };
    show(login_with(&file, None));
    std::fs::remove_file(home.join("token")).unwrap();
    show(login_with(&env, Some(&format!("{MARKER}\nsecond line"))));
    show(login_with(&HubEnv { endpoint: "http://127.0.0.1:9".into(), ..quick(&env) }, None));
    show(login_with(&HubEnv { endpoint: format!("http://ann:{MARKER}@127.0.0.1:9"), ..quick(&env) }, None));
    show(login_with(&HubEnv { offline: true, ..env.clone() }, None));
    for id in MODELS.into_iter().chain(["google/gemma", "ann/none", "bad id"]) {
        show_paths(download_model(id, None));
        show(load_model(id, &emoji_lab::Device::Cpu).map(|model| model.to_string()));
    }
    show_paths(download_model("ann/tiny", Some("none")));
    show_paths(download_model_with(&quick(&env), "ann/e500", None));
    for id in ["ann/rows", "ann/none", "hf://datasets/ann/rows@none/x.csv", "ann/parquet", "ann/echo"] {
        show_paths(download_dataset(id));
        show(load_dataset(id, EmojiFilter::None));
    }
}

/// Settings that do not wait.
fn quick(env: &HubEnv) -> HubEnv {
    HubEnv { retry_policy: crate::stand_in::short_waits(), ..env.clone() }
}

/// Repositories that are pushed to, in this order.
const PUSHES: [&str; 12] = [
    "pushed",
    "pushed",
    "xet",
    "no-xet",
    "broken",
    "google/gemma",
    "refused",
    "storage",
    "committed",
    "away",
    "card",
    "leaky",
];
/// Repositories that are downloaded.
const MODELS: [&str; 9] = [
    "ann/tiny",
    "ann/echo",
    "ann/cut",
    "ann/wrong",
    "ann/e401",
    "ann/e403",
    "ann/e429",
    "ann/moved",
    "ann/range",
];

#[test]
fn no_step_shows_the_token() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.account("ann", MARKER, "write");
    for id in MODELS.into_iter().chain(["google/gemma", "ann/e500"]) {
        a_model(&hub, id, &noise(1_500_000, 72));
    }
    hub.store().repos.get_mut("models/google/gemma").unwrap().gated = true;
    hub.repo("datasets/ann/rows", &[("train.csv", b"text,emoji\n")]);
    hub.repo("datasets/ann/parquet", &[("train.parquet", b"PAR1")]);
    hub.repo("datasets/ann/echo", &[("train.csv", b"text,emoji\n")]);
    // A server that repeats the token in what it says.
    let echo = |request: &crate::stand_in::Request, _| {
        Answer::error(400, "", &format!("bad header: {}", request.header("authorization").unwrap_or("none")))
    };
    hub.fault("GET", "models/ann/echo", 99, echo);
    hub.fault("POST", "models/ann/broken/preupload", 99, echo);
    hub.fault("GET", "whoami", 1, echo);
    hub.fault("GET", "datasets/ann/echo", 99, echo);
    hub.fault("GET", "ann/cut/resolve", 99, |_, answer| Answer { cut: Some(3), ..answer });
    hub.fault("GET", "ann/wrong/resolve", 99, |_, mut answer| {
        answer.body.iter_mut().for_each(|byte| *byte ^= 1);
        answer
    });
    let status = move |status| {
        move |request: &crate::stand_in::Request, answer| Answer { status, ..echo(request, answer) }
    };
    for refused in [401, 403, 500] {
        hub.fault("GET", &format!("ann/e{refused}"), 99, status(refused));
    }
    hub.fault("GET", "ann/e429", 99, move |request, answer| {
        status(429)(request, answer).with("retry-after", 900)
    });
    // Redirects, and headers that are read, with the token in them.
    let stolen = |request: &crate::stand_in::Request| {
        request.header("authorization").unwrap_or("none").replace("Bearer ", "")
    };
    let elsewhere = hub.storage.clone();
    let to = move |request: &crate::stand_in::Request, _| {
        Answer::new(307).with("location", format!("{elsewhere}/{}?{}", stolen(request), stolen(request)))
    };
    hub.fault("GET", "ann/moved/resolve", 99, to.clone());
    hub.fault("POST", "models/ann/away/preupload", 1, to);
    hub.fault("GET", "ann/range/resolve", 99, move |request, answer| match request.range() {
        Some(_) => Answer::new(206).with("content-range", stolen(request)).body(answer.body),
        None => Answer { cut: Some(2), ..answer },
    });
    hub.fault("POST", "models/ann/refused/preupload", 1, status(403));
    hub.fault("POST", "models/ann/committed/commit", 1, status(500));
    hub.fault("POST", "ann/storage.git/info/lfs", 1, move |request, _| {
        let error = serde_json::json!({ "code": 422, "message": stolen(request) });
        let oid = request.json()["objects"][0]["oid"].clone();
        Answer::json(serde_json::json!({ "objects": [{ "oid": oid, "error": error }] }))
    });
    let cards = hub.clone();
    hub.fault("GET", "models/ann/away/revision", 1, move |_, answer| {
        // The next push, of the repository card, is refused by its card.
        cards.fault("POST", "validate-yaml", 1, move |request, _| {
            let body = serde_json::json!({ "errors": [{ "message": stolen(request) }], "warnings": [] });
            Answer::new(400).body(body.to_string().into_bytes())
        });
        answer
    });
    let no_xet = hub.clone();
    hub.fault("GET", "models/ann/no-xet/revision", 1, move |_, answer| {
        no_xet.fault("GET", "/xet-write-token/", 1, echo);
        answer
    });
    let basic = hub.clone();
    hub.fault("GET", "models/ann/broken/revision", 1, move |_, answer| {
        basic.uploads(Uploads::Basic);
        answer
    });
    let xet = hub.clone();
    hub.fault("GET", "models/ann/xet/revision", 1, move |_, answer| {
        xet.uploads(Uploads::Xet);
        answer
    });

    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "secrets::every_step", "--ignored", "--nocapture", "--test-threads=1"])
        .env("HF_HOME", home.path())
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_TOKEN", MARKER)
        .env("RUST_BACKTRACE", "1")
        .env("RUST_LOG", "trace")
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HF_TOKEN_PATH")
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    crate::assert_says(
        &text,
        &[
            "Logged in as ann",
            "Pushed to",
            "has all of it already",
            "through Xet storage",
            "bad header: Bearer hf_…",
            "a panic that shows",
            "Dry run",
            "gated",
            "no such model",
            "no revision",
            "train.csv",
            "notes.txt",
            "it does not take model.safetensors",
            "HTTP 500",
            "the repository has moved",
            "does not take the model card",
            "too many requests",
            "does not have the hash",
            "no connection to 127.0.0.1:9",
            "the file ",
            "HF_HUB_OFFLINE is set",
            "epoch 2.00",
            "assertion `left == right` failed",
        ],
    );
    // The token was at work, and went to the Hub only.
    let with_token = |server| {
        let seen = hub.seen();
        let sent = seen.iter().filter(|seen| seen.server == server);
        sent.filter(|seen| seen.authorization.as_deref().is_some_and(|text| text.contains("MARKER"))).count()
    };
    assert!(with_token("hub") > 20);
    assert_eq!(with_token("storage"), 0);

    assert_eq!(find(text.as_bytes()), None, "the output shows the token");
    let files = files_below(home.path());
    for kind in
        ["checkpoint-", "tfevents", "adapter_config.json", "trainer_state.json", "dry/README.md", "blobs/"]
    {
        assert!(
            files.iter().any(|(name, _)| name.contains(kind)),
            "no {kind} was written, so none is searched"
        );
    }
    for (name, bytes) in files {
        assert_eq!(find(&bytes), None, "{name} holds the token");
        assert!(!name.contains("MARKER"), "{name}");
    }
    assert!(find(format!("x{MARKER}").as_bytes()).is_some(), "the search itself finds it");
}

/// Looks for any good part of the marker, as plain text and in base64.
fn find(text: &[u8]) -> Option<usize> {
    ["MARKERmarker", "TUFSS0VSbWFya2Vy", "1BUktFUm1hcmtlc", "NQVJLRVJtYXJrZX"]
        .iter()
        .find_map(|part| text.windows(part.len()).position(|window| window == part.as_bytes()))
}
