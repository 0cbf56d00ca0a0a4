//! `download_dataset`: which table, and what is said if there is none.

use std::fs;

use emoji_lab::hub::{HubEnv, download_dataset_with};

use crate::assert_says;
use crate::stand_in::StandIn;

#[test]
fn the_training_table_comes_into_the_cache() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let rows = "text,emoji\nhi,👋\n".as_bytes();
    hub.repo(
        "datasets/ann/rows",
        &[("README.md", b"#"), ("data/test.csv", b"text,emoji\n"), ("data/train.csv", rows)],
    );
    let env = hub.env(home.path());
    let path = download_dataset_with(&env, "ann/rows", None).unwrap();
    assert!(path.ends_with("data/train.csv"));
    assert!(path.starts_with(home.path().join("hub/datasets--ann--rows/snapshots")));
    assert_eq!(fs::read(&path).unwrap(), rows);
    let test = download_dataset_with(&env, "ann/rows/data/test.csv", None).unwrap();
    assert!(test.ends_with("data/test.csv"));
    let offline = HubEnv { offline: true, ..env.clone() };
    assert_eq!(download_dataset_with(&offline, "ann/rows", None).unwrap(), path);
    assert_eq!(download_dataset_with(&offline, "ann/rows/data/test.csv", None).unwrap(), test);
    let error = download_dataset_with(&offline, "ann/rows/x.csv", None).unwrap_err().to_string();
    assert_says(&error, &["HF_HUB_OFFLINE", "x.csv"]);
    let error = download_dataset_with(&env, "ann/rows/x.csv", None).unwrap_err().to_string();
    assert_says(&error, &["no file x.csv", "data/train.csv"]);
}

#[test]
fn a_dataset_without_a_table_is_told() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.repo("datasets/ann/parquet", &[("data/train-00000-of-00001.parquet", b"PAR1")]);
    hub.repo("datasets/ann/many", &[("a.csv", b"a"), ("b.csv", b"b")]);
    let env = hub.env(home.path());
    let error = |id| download_dataset_with(&env, id, None).unwrap_err().to_string();
    assert_says(&error("ann/parquet"), &["parquet", "csv"]);
    assert_says(&error("ann/many"), &["not clear", "ann/many/a.csv"]);
    assert_says(&error("ann/none"), &["no such public dataset", "/datasets/ann/none"]);
    assert_says(&error("nonsense id"), &["not a repository id"]);
}
