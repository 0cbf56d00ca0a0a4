//! Downloads over a bad line: they end right or with an error that says why, and the cache holds
//! nothing wrong.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use emoji_lab::hub::HubEnv;
use emoji_lab::model::download_model_with;

use crate::stand_in::{Answer, StandIn, sha256};
use crate::{a_model, assert_says, files_below, noise};

const SIZE: usize = 2_000_000;

struct Bench {
    hub: StandIn,
    home: tempfile::TempDir,
    env: HubEnv,
    weights: Vec<u8>,
}

fn bench(seed: u64) -> Bench {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let weights = noise(SIZE, seed);
    a_model(&hub, "ann/tiny", &weights);
    let env = hub.env(home.path());
    Bench { hub, home, env, weights }
}

impl Bench {
    #[track_caller]
    fn comes_right(&self) {
        let folder = download_model_with(&self.env, "ann/tiny", None).unwrap();
        assert!(fs::read(folder.join("model.safetensors")).unwrap() == self.weights, "wrong content");
        self.cache_is_right();
    }

    #[track_caller]
    fn fails(&self) -> String {
        let error = download_model_with(&self.env, "ann/tiny", None).unwrap_err().to_string();
        self.cache_is_right();
        error
    }

    /// Every blob has the content that its name says.
    #[track_caller]
    fn cache_is_right(&self) {
        for (name, bytes) in files_below(&self.home.path().join("hub/models--ann--tiny/blobs")) {
            let git = {
                use sha1::Digest;
                let mut hash = sha1::Sha1::new();
                hash.update(format!("blob {}\0", bytes.len()));
                hash.update(&bytes);
                hash.finalize().iter().map(|b| format!("{b:02x}")).collect::<String>()
            };
            let right = name.ends_with(".incomplete") || name == sha256(&bytes) || name == git;
            assert!(right, "the cache holds a wrong file: {name}");
        }
    }

    fn partial(&self) -> std::path::PathBuf {
        self.home.path().join(format!("hub/models--ann--tiny/blobs/{}.incomplete", sha256(&self.weights)))
    }

    fn ranges(&self) -> Vec<String> {
        self.hub
            .seen()
            .into_iter()
            .filter(|seen| seen.server == "storage")
            .filter_map(|seen| seen.range)
            .collect()
    }
}

#[test]
fn a_cut_connection_is_gone_on_with() {
    let bench = bench(21);
    bench.hub.fault("GET", "/objects/", 3, |_, answer| Answer { cut: Some(400_000), ..answer });
    bench.comes_right();
    assert_eq!(bench.ranges(), ["bytes=400000-", "bytes=800000-", "bytes=1200000-"]);
}

#[test]
fn a_body_without_length_that_ends_early_is_noticed() {
    let bench = bench(22);
    bench.hub.fault("GET", "/objects/", 1, |_, answer| Answer {
        cut: Some(1_000_000),
        no_length: true,
        ..answer
    });
    bench.comes_right();
    assert_eq!(bench.ranges(), ["bytes=1000000-"]);
}

#[test]
fn small_files_and_answers_break_too() {
    let bench = bench(23);
    bench.hub.fault("GET", "/tokenizer.json", 1, |_, answer| Answer { cut: Some(3), ..answer });
    bench.hub.fault("GET", "/tree/", 1, |_, answer| Answer { cut: Some(20), ..answer });
    bench.hub.fault("GET", "/revision/", 1, |_, answer| Answer { cut: Some(5), ..answer });
    bench.comes_right();
}

#[test]
fn a_later_run_goes_on_where_the_last_one_stopped() {
    let bench = bench(24);
    bench.hub.fault("GET", "/objects/", 1, |_, answer| Answer { cut: Some(700_000), ..answer });
    bench.hub.fault("GET", "/objects/", 4, |_, _| Answer::new(500));
    assert_says(&bench.fails(), &["model.safetensors", "HTTP 500"]);
    assert_eq!(fs::metadata(bench.partial()).unwrap().len(), 700_000);
    bench.comes_right();
    assert_eq!(bench.ranges().last().unwrap(), "bytes=700000-");
    assert!(!bench.partial().exists());
}

#[test]
fn a_server_without_ranges_starts_anew() {
    let bench = bench(25);
    let whole = bench.weights.clone();
    bench.hub.fault("GET", "/objects/", 1, |_, answer| Answer { cut: Some(900_000), ..answer });
    bench.hub.fault("GET", "/objects/", 1, move |_, _| Answer::new(200).body(whole.clone()));
    bench.comes_right();
}

#[test]
fn a_wrong_byte_is_thrown_away() {
    let bench = bench(26);
    bench.hub.fault("GET", "/objects/", 1, |_, mut answer| {
        answer.body[1_234_567] ^= 1;
        answer
    });
    assert_says(&bench.fails(), &["model.safetensors", "hash", "thrown away"]);
    assert!(!bench.partial().exists());
    bench.comes_right();
}

#[test]
fn a_wrong_small_file_is_thrown_away() {
    let bench = bench(27);
    bench.hub.fault("GET", "/config.json", 1, |_, mut answer| {
        answer.body[3] ^= 1;
        answer
    });
    assert_says(&bench.fails(), &["config.json", "hash"]);
    bench.comes_right();
}

#[test]
fn a_file_of_another_size_is_thrown_away() {
    let bench = bench(28);
    bench.hub.fault("GET", "/objects/", 1, |_, mut answer| {
        answer.body.extend([0; 100]);
        answer
    });
    assert_says(&bench.fails(), &["model.safetensors", "where the Hub's list says 2.0 MB"]);
    bench.comes_right();
}

#[test]
fn a_wrong_part_from_an_earlier_run_is_replaced() {
    for part in [vec![7; 500_000], vec![7; SIZE], vec![7; SIZE + 5]] {
        let bench = bench(29);
        fs::create_dir_all(bench.partial().parent().unwrap()).unwrap();
        fs::write(bench.partial(), part).unwrap();
        bench.comes_right();
    }
}

#[test]
fn a_blob_of_the_wrong_size_is_not_trusted() {
    let bench = bench(30);
    let blob = bench.partial().with_file_name(sha256(&bench.weights));
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(&blob, b"short").unwrap();
    bench.comes_right();
}

#[test]
fn transient_errors_are_waited_out() {
    let bench = bench(31);
    for path in ["/revision/", "/tree/", "/config.json", "/objects/"] {
        bench.hub.fault("GET", path, 2, |_, _| Answer::error(500, "", "Internal Error"));
    }
    bench.comes_right();
}

#[test]
fn lasting_errors_leave_no_file() {
    let bench = bench(32);
    // hf-hub 1.0.0 stores the body of such an answer as the file.
    bench.hub.fault("GET", "/config.json", 99, |_, _| Answer::error(500, "", "Internal Error"));
    assert_says(&bench.fails(), &["config.json", "HTTP 500: Internal Error", "Try later"]);
    assert_eq!(bench.hub.count("GET", "/config.json"), 4);
}

#[test]
fn retry_after_is_kept() {
    let bench = bench(33);
    bench
        .hub
        .fault("GET", "/tree/", 1, |_, _| Answer::error(429, "", "Too Many Requests").with("retry-after", 1));
    let start = Instant::now();
    bench.comes_right();
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn a_long_retry_after_is_told_at_once() {
    let bench = bench(34);
    bench.hub.fault("GET", "/tree/", 9, |_, _| Answer::error(429, "", "slow down").with("retry-after", 3600));
    let start = Instant::now();
    assert_says(&bench.fails(), &["too many requests", "slow down", "3600 s"]);
    assert!(start.elapsed() < Duration::from_secs(3));
    assert_eq!(bench.hub.count("GET", "/tree/"), 1);
}

#[test]
fn a_slow_server_is_fine_and_a_silent_one_is_not() {
    let slow = bench(35);
    slow.hub.fault("GET", "/objects/", 1, |_, answer| Answer {
        trickle: Some((250_000, Duration::from_millis(100))),
        ..answer
    });
    slow.comes_right();
    assert!(slow.ranges().is_empty(), "a slow download was broken off");

    // Silent for longer than the idle timeout of 0.5 s: asked again, from where it was.
    let silent = bench(36);
    silent.hub.fault("GET", "/objects/", 1, |_, answer| Answer {
        trickle: Some((1_500_000, Duration::from_millis(1500))),
        ..answer
    });
    silent.hub.fault("GET", "/revision/", 1, |_, answer| Answer { delay: Duration::from_secs(2), ..answer });
    silent.comes_right();
    assert_eq!(silent.ranges(), ["bytes=1500000-"]);
}

#[test]
fn a_signature_that_ran_out_is_renewed() {
    let bench = bench(37);
    bench.hub.fault("GET", "/objects/", 1, |_, _| {
        Answer::new(403).body(b"<Error>Request has expired</Error>".to_vec())
    });
    bench.comes_right();
    assert_eq!(bench.hub.count("GET", "/model.safetensors"), 2, "the Hub was asked for a new address");
}

#[test]
fn the_token_stays_with_the_hub() {
    let bench = bench(38);
    bench.hub.account("ann", "hf_ann", "read");
    fs::write(&bench.env.token_path, "hf_ann").unwrap();
    let mirror = StandIn::start();
    let elsewhere = format!("{}/objects/x", mirror.storage);
    bench.hub.fault("GET", "/resolve/", 1, move |_, _| Answer::new(302).with("location", &elsewhere));
    bench.fails();
    bench.comes_right();
    assert!(mirror.seen().iter().all(|seen| seen.authorization.is_none()) && !mirror.seen().is_empty());
    for seen in bench.hub.seen() {
        let expected = (seen.server == "hub").then_some("Bearer hf_ann");
        assert_eq!(seen.authorization.as_deref(), expected, "{} {}", seen.server, seen.path);
    }
}

#[test]
fn a_redirect_in_a_circle_ends() {
    let bench = bench(39);
    let back = bench.hub.endpoint.clone();
    bench.hub.fault("GET", "/revision/", 99, move |request, _| {
        Answer::new(302).with("location", format!("{back}{}", request.path))
    });
    assert_says(&bench.fails(), &["circle"]);
}

#[test]
fn a_listing_cannot_write_outside_of_the_cache() {
    for path in ["../../../evil.json", "/evil.json", "a/../../evil.json", "config.json/../../../evil"] {
        let bench = bench(40);
        let listing = format!(r#"[{{"type":"file","oid":"{}","size":2,"path":"{path}"}}]"#, "a".repeat(40));
        bench.hub.fault("GET", "/tree/", 1, move |_, _| Answer::new(200).body(listing.clone().into_bytes()));
        assert_says(&bench.fails(), &["leads out of the folder"]);
        let evil = |dir: &Path| files_below(dir).iter().any(|(name, _)| name.contains("evil"));
        assert!(!evil(bench.home.path()));
    }
    // A hash that is no hash would become a file name.
    let bench = bench(41);
    let listing = r#"[{"type":"file","oid":"../../evil","size":2,"path":"config.json"}]"#;
    bench.hub.fault("GET", "/tree/", 1, move |_, _| Answer::new(200).body(listing.into()));
    assert_says(&bench.fails(), &["without a size and a hash"]);
}
