//! A push that fails: the error says what state the repository is in, and a second one goes through.

use std::sync::atomic::{AtomicBool, Ordering};

use emoji_lab::hub::{Login, PushConfig, PushReport, push_to_hub};

use crate::push::{a_card, logged_in, model_folder};
use crate::stand_in::{Answer, StandIn, Uploads};
use crate::{assert_says, noise};

struct Bench {
    hub: StandIn,
    login: Login,
    folder: std::path::PathBuf,
    _home: tempfile::TempDir,
}

fn bench(seed: u64) -> Bench {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let folder = model_folder(home.path(), &noise(2_000_000, seed));
    let login = logged_in(&hub, &hub.env(home.path()));
    Bench { hub, login, folder, _home: home }
}

impl Bench {
    fn push(&self) -> emoji_lab::Result<PushReport> {
        let config = PushConfig { repo_name: "myemoji".into(), ..Default::default() };
        push_to_hub(&self.login, &self.folder, &config, &a_card())
    }

    #[track_caller]
    fn fails(&self) -> String {
        self.push().unwrap_err().to_string()
    }

    fn commits(&self) -> usize {
        self.hub.store().repos.get("models/ann/myemoji").map_or(0, |repo| repo.commits.len())
    }

    #[track_caller]
    fn comes_right(&self) {
        self.push().unwrap();
        assert_eq!(self.commits(), 2);
    }
}

#[test]
fn passing_trouble_is_waited_out() {
    let bench = bench(61);
    for (method, path) in
        [("POST", "/preupload/"), ("POST", "/objects/batch"), ("PUT", "/objects/"), ("POST", "/verify")]
    {
        bench.hub.fault(method, path, 2, |_, _| Answer::error(503, "", "busy"));
    }
    // The commit says itself that it was not taken.
    bench.hub.fault("POST", "/commit/", 1, |_, _| Answer::error(429, "", "slow down").with("retry-after", 1));
    // The answers are spoiled after the stand-in took the commit, so its parent has moved on: what
    // counts is that the files are there once.
    bench.comes_right();
}

#[test]
fn an_upload_that_fails_commits_nothing() {
    let bench = bench(62);
    bench.hub.fault("PUT", "/objects/", 4, |_, _| Answer::error(500, "", "storage is down"));
    let error = bench.fails();
    assert_says(
        &error,
        &[
            "model.safetensors",
            "HTTP 500: storage is down",
            "nothing of this push is in",
            "still empty",
            "again is safe",
        ],
    );
    assert_eq!(bench.commits(), 1);
    bench.comes_right();
}

#[test]
fn a_commit_that_is_refused_leaves_the_repository() {
    let bench = bench(63);
    bench.push().unwrap();
    std::fs::write(bench.folder.join("config.json"), b"{\"v\": 2}").unwrap();
    // Answered before it reaches the stand-in's repository: as a Hub that does not take it.
    let revert = bench.hub.clone();
    bench.hub.fault("POST", "/commit/", 1, move |_, _| {
        revert.store().repos.get_mut("models/ann/myemoji").unwrap().commits.pop();
        Answer::error(500, "", "Internal Error")
    });
    assert_says(&bench.fails(), &["committing", "HTTP 500", "nothing of this push is in"]);
    assert_eq!(bench.commits(), 2);
    assert_eq!(bench.hub.count("POST", "/commit/"), 2, "a commit is not repeated blindly");
    bench.push().unwrap();
    assert_eq!(bench.commits(), 3);
}

#[test]
fn a_commit_whose_answer_is_lost_is_found() {
    for spoil in [500, 0] {
        let bench = bench(64);
        bench.hub.fault("POST", "/commit/", 1, move |_, answer| match spoil {
            0 => Answer { cut: Some(2), ..answer },
            status => Answer::error(status, "", "Internal Error"),
        });
        let report = bench.push().unwrap();
        let head = bench.hub.store().repos["models/ann/myemoji"].commits.last().unwrap().id.clone();
        assert_eq!(report.commit, Some(head));
        assert_eq!(bench.commits(), 2);
    }
}

#[test]
fn a_commit_that_cannot_be_seen_is_told() {
    let bench = bench(65);
    let gone = bench.hub.clone();
    bench.hub.fault("POST", "/commit/", 1, move |_, _| {
        gone.fault("GET", "/revision/", 99, |_, _| Answer::new(502));
        Answer::new(502)
    });
    assert_says(
        &bench.fails(),
        &["HTTP 502", "could not be seen", "/ann/myemoji/commits/main", "again is safe"],
    );
}

#[test]
fn someone_elses_commit_is_not_overwritten() {
    let bench = bench(66);
    bench.push().unwrap();
    std::fs::write(bench.folder.join("config.json"), b"{\"v\": 2}").unwrap();
    let (other, done) = (bench.hub.clone(), AtomicBool::new(false));
    bench.hub.fault("POST", "/preupload/", 1, move |_, answer| {
        if !done.swap(true, Ordering::SeqCst) {
            other.repo("models/ann/myemoji", &[("theirs.txt", b"mine first")]);
        }
        answer
    });
    assert_says(&bench.fails(), &["someone else pushed to it meanwhile", "nothing of this push is in"]);
    assert_eq!(bench.hub.content("models/ann/myemoji", "theirs.txt").unwrap(), b"mine first");
    bench.push().unwrap();
    assert_eq!(bench.hub.content("models/ann/myemoji", "config.json").unwrap(), b"{\"v\": 2}");
    assert_eq!(bench.hub.content("models/ann/myemoji", "theirs.txt").unwrap(), b"mine first");
}

#[test]
fn a_card_that_the_hub_does_not_take_is_told_first() {
    let bench = bench(67);
    bench.hub.fault("POST", "/validate-yaml", 1, |_, _| {
        let body = r#"{"errors":[{"message":"\"license\" must be one of [...]"}],"warnings":[]}"#;
        Answer::new(400).body(body.into())
    });
    assert_says(&bench.fails(), &["model card", "\"license\" must be one of", "nothing was sent"]);
    assert_eq!(bench.commits(), 0);
}

#[test]
fn xet_storage_that_fails_commits_nothing() {
    let bench = bench(68);
    bench.hub.uploads(Uploads::Xet);
    bench.hub.fault("GET", "/xet-write-token/", 1, |_, _| Answer::error(403, "", "no Xet for you"));
    assert_says(&bench.fails(), &["sending or committing", "no Xet for you", "nothing of this push is in"]);
    assert_eq!(bench.commits(), 1);
    bench.comes_right();
}
