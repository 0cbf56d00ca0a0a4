//! `download_dataset` and `load_dataset`: which files are the training split, and what is said if
//! there is none.

use std::fs;
use std::path::PathBuf;

use emoji_lab::data::load_dataset;
use emoji_lab::hub::{HubEnv, download_dataset_with};
use emoji_lab::task::EmojiFilter;

use crate::assert_says;
use crate::stand_in::StandIn;

const PARQUET: &[u8] = include_bytes!("../fixtures/parquet/datasets.parquet");
/// A card as the Hub writes it for a dataset that was pushed by Python's `datasets`.
const CARD: &[u8] =
    b"---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    \
    path: data/train-*\n  - split: test\n    path: data/test-*\n---\n# Rows\n";

#[test]
fn the_training_table_comes_into_the_cache() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let rows = "text,emoji\nhi,👋\n".as_bytes();
    hub.repo(
        "datasets/ann/rows",
        &[("README.md", b"#"), ("data/test.csv", b"text,emoji\n"), ("data/train.csv", rows)],
    );
    let env = hub.env(home.path());
    let paths = download_dataset_with(&env, "ann/rows", None).unwrap();
    assert!(paths.len() == 1 && paths[0].ends_with("data/train.csv"));
    assert!(paths[0].starts_with(home.path().join("hub/datasets--ann--rows/snapshots")));
    assert_eq!(fs::read(&paths[0]).unwrap(), rows);
    let named = "hf://datasets/ann/rows/data/test.csv";
    let test = download_dataset_with(&env, named, None).unwrap();
    assert!(test.len() == 1 && test[0].ends_with("data/test.csv"));
    let offline = HubEnv { offline: true, ..env.clone() };
    assert_eq!(download_dataset_with(&offline, "ann/rows", None).unwrap(), paths);
    assert_eq!(download_dataset_with(&offline, named, None).unwrap(), test);
    let error = |env: &HubEnv| {
        download_dataset_with(env, "hf://datasets/ann/rows/x.csv", None).unwrap_err().to_string()
    };
    assert_says(&error(&offline), &["HF_HUB_OFFLINE", "x.csv"]);
    assert_says(&error(&env), &["no file x.csv", "data/train.csv"]);
}

#[test]
fn a_revision_is_an_argument_or_stands_behind_the_name() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let old = hub.repo("datasets/ann/rows", &[("rows.csv", b"old")]);
    hub.repo("datasets/ann/rows", &[("rows.csv", b"new")]);
    let env = hub.env(home.path());
    let content =
        |id: &str, revision| fs::read(&download_dataset_with(&env, id, revision).unwrap()[0]).unwrap();
    assert_eq!(content("ann/rows", None), b"new");
    assert_eq!(content("ann/rows", Some(old.as_str())), b"old");
    assert_eq!(content(&format!("hf://datasets/ann/rows@{old}/rows.csv"), None), b"old");
    // A commit's file that is there is not asked for.
    let asked = hub.seen().len();
    assert_eq!(content(&format!("hf://datasets/ann/rows@{old}/rows.csv"), None), b"old");
    assert_eq!(hub.seen().len(), asked);
}

#[test]
fn a_split_in_parts_comes_whole_or_not_at_all() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let names = ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"];
    let line = |text: &str| format!("{{\"text\": \"{text}\", \"emoji\": \"🎉\"}}\n").into_bytes();
    hub.repo(
        "datasets/ann/parts",
        &[
            ("README.md", CARD),
            ("data/test-00000-of-00001.jsonl", &line("test")),
            (names[0], &line("one")),
            (names[1], &line("two")),
        ],
    );
    let env = hub.env(home.path());
    hub.fault("GET", "/train-00001", 99, |_, _| crate::stand_in::Answer::error(404, "EntryNotFound", "gone"));
    download_dataset_with(&env, "ann/parts", None).unwrap_err();
    let offline = HubEnv { offline: true, ..env.clone() };
    let error = download_dataset_with(&offline, "ann/parts", None).unwrap_err().to_string();
    assert_says(&error, &["HF_HUB_OFFLINE", "ann/parts"]);
    // A cache that Python filled in part: the branch is known, and a part is not there.
    hub.store().repos.get_mut("datasets/ann/parts").unwrap().commits[0].files.remove(names[1]);
    let error = download_dataset_with(&env, "ann/parts", None).unwrap_err().to_string();
    assert_says(&error, &["of the 2 parts of data/train only 1"]);
}

/// The rows of every way in which a dataset's files lie on the Hub, through `load_dataset`, which
/// reads its settings from the environment: in a process of its own.
#[test]
#[ignore = "started by ids_load"]
fn load_ids() {
    for id in std::env::var("LOAD_IDS").unwrap_or_default().split_whitespace() {
        match load_dataset(id, EmojiFilter::PurelyEmoji) {
            Ok(dataset) => {
                let texts: Vec<&str> = dataset.examples.iter().map(|row| row.text.as_str()).collect();
                println!("{id} has {texts:?}\n{}", dataset.report);
            }
            Err(error) => println!("{id} fails: {error}"),
        }
    }
}

fn load(hub: &StandIn, home: &std::path::Path, ids: &str) -> String {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "dataset::load_ids", "--ignored", "--nocapture"])
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("LOAD_IDS", ids)
        .env_remove("HF_TOKEN")
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn ids_load() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    // The lesson's dataset: one csv with a name of words, and a card without configs.
    let rows = "text,emoji\nbeach,🏖️\n,🎉\n".as_bytes();
    let card = b"---\nlicense: apache-2.0\ntask_categories:\n- translation\n---\n";
    hub.repo(
        "datasets/kr15t3n/text2emoji",
        &[("README.md", card), ("Emoji Translation Dataset - Dataset.csv", rows)],
    );
    let line = |text: &str| format!("{{\"text\": \"{text}\", \"emoji\": \"🎉\"}}\n").into_bytes();
    hub.repo(
        "datasets/ann/parts",
        &[
            ("README.md", CARD),
            ("data/test-00000-of-00001.ndjson", &line("test")),
            ("data/train-00000-of-00002.jsonl", &[line("one"), line("")].concat()),
            ("data/train-00001-of-00002.jsonl", &line("two")),
        ],
    );
    hub.repo("datasets/ann/broken", &[("train/a.jsonl", &line("one")), ("train/b.jsonl", b"{}")]);
    let ids = "kr15t3n/text2emoji ann/parts hf://datasets/ann/parts/data/test-*.ndjson ann/broken";
    let said = load(&hub, home.path(), ids);
    assert_says(
        &said,
        &[
            "kr15t3n/text2emoji has [\"beach\"]",
            "an empty text (lines 3)",
            "ann/parts has [\"one\", \"two\"]",
            // The second row of the first file, counted through.
            "an empty text (rows 2)",
            "test-*.ndjson has [\"test\"]",
            "ann/broken, b.jsonl, line 1: there are no columns",
        ],
    );
}

/// Every file of the fixtures that Python wrote, as the Hub lays it out.
fn parquet_hub() -> (StandIn, tempfile::TempDir, PathBuf) {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.repo(
        "datasets/ann/parquet",
        &[
            ("README.md", CARD),
            ("data/test-00000-of-00001.parquet", b"not asked for"),
            ("data/train-00000-of-00001.parquet", PARQUET),
        ],
    );
    hub.repo(
        "datasets/ann/named",
        &[("train-00000-of-00002.parquet", PARQUET), ("train-00001-of-00002.parquet", PARQUET)],
    );
    hub.repo("datasets/ann/torn", &[("train.parquet", &PARQUET[..PARQUET.len() - 9])]);
    let path = home.path().join("rows.parquet");
    fs::write(&path, PARQUET).unwrap();
    (hub, home, path)
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_is_read() {
    let (hub, home, path) = parquet_hub();
    let ids = format!("ann/parquet ann/named ann/torn {}", path.display());
    let said = load(&hub, home.path(), &ids);
    let rows = r#"["a day at the beach", "party", "two\nlines, \"quoted\"", "family"]"#;
    let twice = rows.replace(']', ", ") + &rows[1..];
    assert_says(
        &said,
        &[
            &format!("ann/parquet has {rows}"),
            "an empty text (rows 4)",
            &format!("ann/named has {twice}"),
            "an empty text (rows 4, 9)",
            "ann/torn fails",
            "cannot be read as parquet",
            &format!("rows.parquet has {rows}"),
        ],
    );
    assert_eq!(hub.count("GET", "test-00000"), 0, "the training split alone");
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_without_its_feature_is_told_before_it_is_downloaded() {
    let (hub, home, path) = parquet_hub();
    let said = load(&hub, home.path(), &format!("ann/parquet ann/named {}", path.display()));
    assert_eq!(said.matches("built without its feature `parquet`").count(), 3, "{said}");
    assert_says(&said, &["features = [\"parquet\"]", "to_csv", "data/train-00000-of-00001.parquet"]);
    assert_eq!(hub.count("GET", ".parquet"), 0);
}

#[test]
fn a_dataset_without_a_table_is_told() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.repo("datasets/ann/many", &[("a.csv", b"a"), ("b.csv", b"b")]);
    hub.repo("datasets/ann/pictures", &[("x.png", b"PNG")]);
    let env = hub.env(home.path());
    let error = |id| download_dataset_with(&env, id, None).unwrap_err().to_string();
    assert_says(&error("ann/many"), &["not clear", "hf://datasets/ann/many/a.csv"]);
    assert_says(&error("ann/pictures"), &["no csv, jsonl or parquet"]);
    assert_says(&error("hf://datasets/ann/pictures/x.png"), &["no table that can be read"]);
    assert_says(&error("ann/none"), &["no such public dataset", "/datasets/ann/none"]);
    assert_says(&error("nonsense id"), &["not a repository id"]);
}

#[test]
fn what_a_card_says_about_its_files_holds() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let card = |arguments: &str| {
        format!(
            "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files: rows.csv\n{arguments}---\n# Rows\n"
        )
    };
    let rows = "text;emoji\nsun, sea and sand;🏖️\npizza tonight;🍕\n".as_bytes();
    let repo = |id: &str, arguments: &str, rows: &[u8]| {
        hub.repo(
            &format!("datasets/ann/{id}"),
            &[("README.md", card(arguments).as_bytes()), ("rows.csv", rows)],
        );
    };
    repo("sep", "  sep: \";\"\n", rows);
    repo(
        "delimiter",
        "  delimiter: \"\\t\"\n",
        &String::from_utf8_lossy(rows).replace(';', "\t").into_bytes(),
    );
    repo("undeclared", "", rows);
    repo(
        "names",
        "  column_names: [emoji, text]\n  sep: '|'\n",
        "🏖️|sun, sea and sand\n🍕|pizza tonight\n".as_bytes(),
    );
    repo("latin", "  encoding: latin-1\n  sep: ';'\n", b"text;emoji\ncaf\xe9;\xa9\n");
    repo("skip", "  skiprows: 1\n  header: 0\n", &[b"title\n", rows].concat());
    repo(
        "quoted",
        "  quotechar: \"'\"\n",
        "text,emoji\n'sun, sea and sand',🏖️\npizza tonight,🍕\n".as_bytes(),
    );
    repo("bad", "  on_bad_lines: skip\n", "text,emoji\na,b,c\npizza tonight,🍕\n".as_bytes());
    repo("regex", "  sep: \"\\\\s+\"\n", rows);
    repo("comment", "  comment: \"#\"\n", rows);
    let two = "[\"sun, sea and sand\", \"pizza tonight\"]";
    let ids = "ann/sep ann/delimiter ann/undeclared ann/names ann/latin ann/skip ann/quoted ann/bad ann/regex ann/comment";
    let said = load(&hub, home.path(), ids);
    for id in ["sep", "delimiter", "undeclared", "names", "skip", "quoted"] {
        assert_says(&said, &[&format!("ann/{id} has {two}")]);
    }
    assert_says(
        &said,
        &[
            "ann/latin has [\"café\"]",
            "ann/bad has [\"pizza tonight\"]",
            "1  note: with too many fields, passed over as the dataset's card asks (first: line 2)",
            "ann/regex fails: dataset ann/regex: its card declares sep: \"\\\\s+\", which is not supported",
            "its card declares comment: \"#\", which is not supported",
        ],
    );
    let asked =
        |seen: &crate::stand_in::Seen| seen.path.contains("ann/regex") && seen.path.ends_with("rows.csv");
    assert!(!hub.seen().iter().any(asked), "what cannot be read is not downloaded");
}

#[test]
fn other_formats_and_what_is_no_table() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let row = "{\"text\": \"sun\", \"emoji\": \"☀️\", \"score\": NaN}";
    let list = format!("[{row}, {row}]");
    let field = format!("{{\"version\": \"1\", \"items\": {list}, \"other\": [{{}}]}}");
    hub.repo("datasets/ann/tsv", &[("train.tsv", "Text\t Emoji\nsun\t☀️\n".as_bytes()), ("test.tsv", b"x")]);
    hub.repo("datasets/ann/json", &[("rows.json", list.as_bytes()), ("dataset_infos.json", b"{}")]);
    let card =
        "---\nconfigs:\n- config_name: x\n  data_dir: data\n  data_files: \"*.json\"\n  field: items\n---\n";
    hub.repo("datasets/ann/field", &[("README.md", card.as_bytes()), ("data/rows.json", field.as_bytes())]);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 81234\n";
    hub.repo("datasets/ann/pointer", &[("rows.csv", pointer)]);
    hub.repo("datasets/ann/script", &[("script.py", b"import os"), ("README.md", b"#")]);
    hub.repo("datasets/ann/sheet", &[("rows.xlsx", b"PK\x03\x04")]);
    hub.repo("datasets/ann/talk", &[("rows.jsonl", b"{\"messages\": []}\n{\"messages\": []}\n")]);
    let ids = "ann/tsv ann/json ann/field ann/pointer ann/script ann/sheet ann/talk";
    let said = load(&hub, home.path(), ids);
    assert_says(
        &said,
        &[
            "ann/tsv has [\"sun\"]",
            "ann/json has [\"sun\", \"sun\"]",
            "ann/field has [\"sun\", \"sun\"]",
            "ann/pointer fails: dataset ann/pointer: is a Git LFS pointer",
            "made by a script, script.py, which is not run",
            "hf://datasets/ann/script@refs/convert/parquet/default/train/*.parquet",
            "rows.xlsx is a spreadsheet",
            "conversations already (`messages`)",
        ],
    );
    assert_eq!(hub.count("GET", ".xlsx"), 0, "what cannot be read is not downloaded");
}

#[test]
fn a_dataset_that_the_hub_has_disabled_or_renamed() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.repo("datasets/ann/off", &[("rows.csv", b"text,emoji\n")]);
    hub.repo("datasets/ann/new", &[("rows.csv", b"text,emoji\nnew,x\n")]);
    let env = hub.env(home.path());
    hub.fault("GET", "api/datasets/ann/off", 99, |_, _| {
        crate::stand_in::Answer::error(403, "", "Access to this resource is disabled.")
    });
    let error = download_dataset_with(&env, "ann/off", None).unwrap_err().to_string();
    assert_says(&error, &["ann/off: it is disabled", "/datasets/ann/off"]);
    // The Hub leads from the old name to the new one.
    hub.fault("GET", "/ann/old", 99, |request, _| {
        crate::stand_in::Answer::new(307).with("location", request.path.replace("/ann/old", "/ann/new"))
    });
    let paths = download_dataset_with(&env, "ann/old", None).unwrap();
    assert_eq!(fs::read(&paths[0]).unwrap(), b"text,emoji\nnew,x\n");
}
