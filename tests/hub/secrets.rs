//! A marker token goes through every step and every error, and is looked for in all that comes out.

use std::path::Path;
use std::process::Command;

use emoji_lab::hub::{
    HubEnv, PushConfig, download_dataset, download_model, login, login_interactive, push_to_hub,
};

use crate::push::{a_card, model_folder};
use crate::stand_in::{Answer, StandIn, Uploads};
use crate::{a_model, files_below, noise};

const MARKER: &str = "hf_MARKERmarkerMARKERmarker0123456789";
const WRONG: &str = "hf_MARKERmarkerMARKERmarkerWRONG";

/// Runs in a process of its own, whose environment the test below sets.
#[test]
#[ignore = "started by no_step_shows_the_token"]
fn every_step() {
    let Ok(home) = std::env::var("HF_HOME") else { return };
    let home = Path::new(&home);
    println!("{:?}", HubEnv::from_env());
    let folder = model_folder(home, &noise(1_500_000, 71));
    let config = |name: &str| PushConfig { repo_name: name.into(), ..Default::default() };
    // The argument's token is wrong; the variable's is right and stays for the steps after it.
    for given in [Some(WRONG), None] {
        match login(given) {
            Ok(login) => {
                println!("{login}\n{login:?}");
                login.evcxr_display();
                for name in ["pushed", "pushed", "xet", "broken", "google/gemma", "leaky"] {
                    if name == "leaky" {
                        std::fs::write(folder.join("notes.txt"), MARKER).unwrap();
                    }
                    match push_to_hub(&login, &folder, &config(name), &a_card()) {
                        Ok(report) => {
                            println!("{report}\n{report:?}");
                            report.evcxr_display();
                        }
                        Err(error) => println!("{error}\n{error:?}"),
                    }
                    std::fs::remove_file(folder.join("notes.txt")).ok();
                }
                let dry = PushConfig { dry_run: Some(home.join("dry")), ..config("dry") };
                println!(
                    "{:?}",
                    push_to_hub(&login, &folder, &dry, &a_card()).map(|report| report.to_string())
                );
                let shown = std::panic::catch_unwind(move || panic!("a panic that shows {login:?}"));
                assert!(shown.is_err());
            }
            Err(error) => println!("{error}\n{error:?}"),
        }
    }
    println!("{:?}", login_interactive().map(|login| login.to_string()));
    for id in ["ann/tiny", "google/gemma", "ann/none", "ann/echo", "ann/cut", "bad id"] {
        println!("{:?}", download_model(id, None).map_err(|error| error.to_string()));
    }
    println!("{:?}", download_model("ann/tiny", Some("none")));
    println!("{:?}", download_dataset("ann/rows"));
    println!("{:?}", download_dataset("ann/none"));
}

#[test]
fn no_step_shows_the_token() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.account("ann", MARKER, "write");
    for id in ["ann/tiny", "google/gemma", "ann/echo", "ann/cut"] {
        a_model(&hub, id, &noise(1_500_000, 72));
    }
    hub.store().repos.get_mut("models/google/gemma").unwrap().gated = true;
    hub.repo("datasets/ann/rows", &[("train.csv", b"text,emoji\n")]);
    // A server that repeats the token in what it says.
    let echo = |request: &crate::stand_in::Request, _| {
        Answer::error(400, "", &format!("bad header: {}", request.header("authorization").unwrap_or("none")))
    };
    hub.fault("GET", "models/ann/echo", 99, echo);
    hub.fault("POST", "models/ann/broken/preupload", 99, echo);
    hub.fault("GET", "whoami", 1, echo);
    hub.fault("GET", "ann/cut/resolve", 99, |_, answer| Answer { cut: Some(3), ..answer });
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
    assert!(files.len() > 10);
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
