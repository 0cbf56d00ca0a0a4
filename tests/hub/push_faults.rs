//! A push that fails: the error says what state the repository is in, and a second one goes through.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use emoji_lab::hub::{HubEnv, Login, PushConfig, PushReport, RetryPolicy, login_with, push_to_hub};

use crate::push::{a_card, logged_in, model_folder};
use crate::stand_in::{Answer, Intake, StandIn, Uploads};
use crate::{assert_says, noise};

struct Bench {
    hub: StandIn,
    login: Login,
    folder: std::path::PathBuf,
    _home: tempfile::TempDir,
}

fn bench(seed: u64) -> Bench {
    bench_of(2_000_000, seed)
}

fn bench_of(size: usize, seed: u64) -> Bench {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let folder = model_folder(home.path(), &noise(size, seed));
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
fn transient_errors_are_waited_out() {
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

/// What the repository holds, for a comparison.
fn state_of(hub: &StandIn) -> String {
    format!("{:?}", hub.store().repos.get("models/ann/myemoji").map(|repo| repo.commits.clone()))
}

#[test]
fn every_refusal_at_every_stage_leaves_the_repository() {
    let stages = [
        ("GET", "/revision/"),
        ("GET", "/tree/"),
        ("POST", "/preupload/"),
        ("POST", "/objects/batch"),
        ("PUT", "/objects/"),
        ("POST", "/lfs/verify"),
        ("POST", "/commit/"),
    ];
    let refusals = [
        (401, "Invalid credentials in Authorization header"),
        (403, "You need a token with write rights"),
        (404, "Not Found"),
        (429, "Too Many Requests"),
        (500, "Internal Error"),
    ];
    for (n, (method, path)) in stages.into_iter().enumerate() {
        for (status, message) in refusals {
            // A repository that is not there is made, which is no failure.
            if (path, status) == ("/revision/", 404) {
                continue;
            }
            let bench = bench_of(1_100_000, 90 + n as u64);
            bench.push().unwrap();
            let before = state_of(&bench.hub);
            std::fs::write(bench.folder.join("config.json"), b"{\"v\": 2}").unwrap();
            std::fs::write(bench.folder.join("model.safetensors"), noise(1_100_000, 99)).unwrap();
            let revert = bench.hub.clone();
            bench.hub.fault(method, path, 99, move |_, _| {
                if path == "/commit/" {
                    revert.store().repos.get_mut("models/ann/myemoji").unwrap().commits.truncate(2);
                }
                let answer = Answer::error(status, "", message);
                if status == 429 { answer.with("retry-after", 600) } else { answer }
            });
            let error = bench.fails();
            let context = format!("{method} {path} {status}: {error}");
            assert_eq!(state_of(&bench.hub), before, "{context}");
            assert!(!error.contains("hf_ann"), "{context}");
            let says = match (status, path) {
                // The storage's addresses are signed: a 401 there is not about the token.
                (401, "/objects/") => "HTTP 401",
                (401, _) => "does not accept the token from the argument",
                (403, _) => "HTTP 403",
                (404, "/objects/" | "/lfs/verify" | "/objects/batch") => "",
                (404, _) => "may not see it",
                (429, _) => "The Hub asks to wait 600 s",
                _ => "HTTP 500",
            };
            assert!(error.contains(says), "{context}");
            if path != "/revision/" {
                assert_says(&error, &["nothing of this push is in", "Pushing again is safe"]);
            }
            bench.hub.clear_faults();
            bench.push().unwrap();
            assert_eq!(bench.commits(), 3, "{context}");
        }
    }
}

#[test]
fn a_cut_upload_is_sent_again() {
    for how in [Uploads::Basic, Uploads::Multipart(900_000)] {
        let bench = bench(69);
        bench.hub.uploads(how);
        bench.hub.intake(Intake { hang_up: Some(700_000), ..Intake::default() });
        bench.comes_right();
        let parts = if how == Uploads::Basic { 1 } else { 3 };
        let puts = bench.hub.count("PUT", "/");
        // A connection that is closed in mid-body never becomes a request that is seen.
        assert_eq!(puts, parts, "{how:?}");
    }
}

#[test]
fn a_file_that_changes_while_it_is_pushed_is_not_committed() {
    let bench = bench(70);
    let weights = bench.folder.join("model.safetensors");
    bench.hub.fault("POST", "/objects/batch", 1, move |_, answer| {
        std::fs::write(&weights, noise(2_000_000, 71)).unwrap();
        answer
    });
    assert_says(&bench.fails(), &["model.safetensors", "HTTP 400", "nothing of this push is in"]);
    assert_eq!(bench.commits(), 1);
    // Shorter: the upload breaks off here already.
    let (bench, weights) = (bench_of(2_000_000, 72), |bench: &Bench| bench.folder.join("model.safetensors"));
    let path = weights(&bench);
    bench.hub.fault("POST", "/objects/batch", 1, move |_, answer| {
        std::fs::write(&path, noise(1_500_000, 73)).unwrap();
        answer
    });
    assert_says(&bench.fails(), &["model.safetensors", "nothing of this push is in"]);
    bench.comes_right();
}

#[test]
fn a_body_does_not_follow_to_another_host() {
    for (method, path) in [("POST", "/preupload/"), ("PUT", "/objects/"), ("POST", "/commit/")] {
        for status in [302, 307, 308] {
            let (bench, elsewhere) = (bench(74), StandIn::start());
            let to = format!("{}/steal", elsewhere.endpoint);
            let revert = bench.hub.clone();
            bench.hub.fault(method, path, 9, move |_, _| {
                if path == "/commit/" {
                    revert.store().repos.get_mut("models/ann/myemoji").unwrap().commits.truncate(1);
                }
                Answer::new(status).with("location", &to)
            });
            assert_says(&bench.fails(), &["the repository has moved", "nothing of this push is in"]);
            assert!(elsewhere.seen().is_empty(), "{method} {path} {status}");
            assert_eq!(bench.commits(), 1);
        }
    }
}

#[test]
fn a_slow_storage_is_fine_and_a_silent_one_is_not() {
    // 5 s, more than the idle timeout: 4 times 1 s while a body is sent. The
    // system's buffers take some megabytes at once, and are silent until they are read: of this many
    // bytes they hold a second's worth.
    let mut slow = bench_of(40_000_000, 75);
    slow.hub.intake(Intake { pace: Some((2_000_000, Duration::from_millis(250))), ..Intake::default() });
    let retry_policy = RetryPolicy { idle_timeout: Duration::from_secs(1), ..crate::stand_in::short_waits() };
    let env = HubEnv { retry_policy, ..slow.hub.env(slow.folder.parent().unwrap()) };
    slow.login = login_with(&env, Some("hf_ann")).unwrap();
    let start = Instant::now();
    slow.comes_right();
    assert!(start.elapsed() > Duration::from_millis(4300), "{:?}: it was not slow", start.elapsed());
    assert_eq!(slow.hub.count("PUT", "/objects/"), 1, "a slow upload was broken off");

    let silent = bench_of(8_000_000, 76);
    silent.hub.intake(Intake { pace: Some((100_000, Duration::from_secs(60))), ..Intake::default() });
    let retry_policy = RetryPolicy {
        idle_timeout: Duration::from_millis(60),
        max_attempts: 2,
        ..crate::stand_in::short_waits()
    };
    let env = HubEnv { retry_policy, ..silent.hub.env(silent.folder.parent().unwrap()) };
    let login = login_with(&env, Some("hf_ann")).unwrap();
    let config = PushConfig { repo_name: "myemoji".into(), ..Default::default() };
    let start = Instant::now();
    let error = push_to_hub(&login, &silent.folder, &config, &a_card()).unwrap_err().to_string();
    assert_says(&error, &["model.safetensors", "nothing came for 0.24 s", "nothing of this push is in"]);
    assert!(start.elapsed() < Duration::from_secs(10));
}

/// A push of 20 MB to storage that takes seconds for them; run in a process of its own by the test below.
#[test]
#[ignore = "started by a_long_upload_says_how_far_it_is"]
fn long_upload() {
    for (seed, how) in [(77, Uploads::Basic), (78, Uploads::Multipart(3_000_000))] {
        let bench = bench_of(20_000_000, seed);
        bench.hub.uploads(how);
        bench.hub.intake(Intake { pace: Some((250_000, Duration::from_millis(60))), ..Intake::default() });
        println!("begin");
        bench.push().unwrap();
    }
}

#[test]
fn a_long_upload_says_how_far_it_is() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "push_faults::long_upload", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert_eq!(text.matches("model.safetensors: sending 20.0 MB").count(), 2, "{text}");
    for run in text.split("begin").skip(1) {
        let lines = run.lines().filter(|line| line.ends_with("% of 20.0 MB")).count();
        assert!((2..10).contains(&lines), "{lines} lines of progress in {text}");
        assert!(!run.contains('\r') && !run.contains('\u{1b}'), "plain lines");
    }
}
