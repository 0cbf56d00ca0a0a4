//! Which files of a dataset repository hold its training split, as Python's `datasets` finds them.
//!
//! The repository's card says it (`configs:` in the front matter of `README.md`); without that, the
//! files' names do: `train.csv`, `data/train-00000-of-00002.parquet`, `train/part1.jsonl`.

use globset::GlobBuilder;

use super::configs::{DataFiles, Declared, Named, configs};
use super::listing::RemoteFile;
use super::shards::{shard, whole};
use crate::error::{Error, Result};
use crate::table_files::{FileOptions, KINDS, TableFormat, no_parquet, no_table};

/// The splits that Python's library knows, with the words by which a file or folder says that it is of
/// one. The training split is the first.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["valid", "validation", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
/// Files that describe a dataset and hold none of its rows.
const NO_ROWS: [&str; 8] = [
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "croissant.json",
    "package.json",
    "tokenizer_config.json",
];

/// The split that is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SplitQuery<'a> {
    pub split: &'a str,
    pub config: Option<&'a str>,
}

impl SplitQuery<'_> {
    /// The training split of the default configuration.
    pub const TRAIN: SplitQuery<'static> = SplitQuery { split: "train", config: None };
}

/// The files of a split, in order, and how they are read: by the card if it names files, else by their
/// names.
pub(crate) fn split_files<'a>(
    repo: &dyn Named,
    files: &'a [RemoteFile],
    card: Option<&str>,
    query: SplitQuery,
) -> Result<(Vec<&'a RemoteFile>, FileOptions)> {
    let named = card.map(|card| configs(repo, card)).transpose()?.unwrap_or_default();
    let declared = Declared::of_split(repo, &named, query.split, query.config)?;
    let (where_, options) = match declared {
        Some(declared) => (declared.files, declared.options),
        None => (DataFiles::Folder(String::new()), FileOptions::default()),
    };
    let chosen = match where_ {
        DataFiles::Patterns(patterns) => {
            let mut chosen: Vec<&RemoteFile> = Vec::new();
            for pattern in &patterns {
                for file in matching(repo, files, pattern)? {
                    if !chosen.iter().any(|there| there.path == file.path) {
                        chosen.push(file);
                    }
                }
            }
            chosen
        }
        DataFiles::Folder(folder) if folder.is_empty() => by_name(repo, files.iter().collect(), query.split)?,
        DataFiles::Folder(folder) => {
            let prefix = format!("{folder}/");
            let inside = files.iter().filter(|file| file.path.starts_with(&prefix));
            by_name(repo, inside.collect(), query.split)?
        }
    };
    Ok((whole(repo, readable(repo, chosen)?)?, options))
}

/// The files that a name or a pattern (`data/train-*.parquet`) after the id chooses.
pub(crate) fn named_files<'a>(
    repo: &dyn Named,
    files: &'a [RemoteFile],
    name: &str,
) -> Result<Vec<&'a RemoteFile>> {
    match files.iter().find(|file| file.path == name) {
        Some(file) => readable(repo, vec![file]),
        None => readable(repo, matching(repo, files, name)?),
    }
}

/// The files that `pattern` matches, by the rules of Python's fsspec: `*` stays within a folder,
/// `**` does not. Of several files those that are no tables are left out.
fn matching<'a>(repo: &dyn Named, files: &'a [RemoteFile], pattern: &str) -> Result<Vec<&'a RemoteFile>> {
    // A card can name its own files by their whole address.
    let own = repo.address("");
    let pattern = pattern.strip_prefix(&own).unwrap_or(pattern).trim_start_matches("./");
    if pattern.contains("://") {
        let help = "Download that file and give its path";
        return Err(Error::dataset(repo.id(), format!("its files lie elsewhere, at {pattern}"), help));
    }
    let names = |list: Vec<&str>| match list.is_empty() {
        true => "It has no files".to_string(),
        false => format!("It has {}", list.join(", ")),
    };
    let glob = GlobBuilder::new(pattern).literal_separator(true).build().map_err(|e| {
        Error::dataset(
            repo.id(),
            format!("\"{pattern}\" is no pattern of file names ({})", e.kind()),
            "Write * for any part of a name, as in data/train-*.csv",
        )
    })?;
    let matcher = glob.compile_matcher();
    let mut found: Vec<&RemoteFile> =
        files.iter().filter(|file| file.path == pattern || matcher.is_match(&file.path)).collect();
    if found.is_empty() {
        // A folder, as `data` or `data/`.
        let prefix = format!("{}/", pattern.trim_end_matches('/'));
        found = files.iter().filter(|file| file.path.starts_with(&prefix)).collect();
    }
    let tables: Vec<&RemoteFile> = found.iter().copied().filter(|file| is_table(file)).collect();
    match (found.is_empty(), tables.is_empty()) {
        (true, _) => {
            let list = files.iter().take(12).map(|file| file.path.as_str()).collect();
            Err(Error::dataset(repo.id(), format!("it has no file {pattern}"), names(list)))
        }
        (false, true) => Ok(found),
        (false, false) => Ok(tables),
    }
}

/// Whether a file is a table with rows, by its name.
fn is_table(file: &RemoteFile) -> bool {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let hidden = file.path.split('/').any(|part| part.starts_with('.') || part.starts_with("__"));
    TableFormat::of(name).is_some() && !NO_ROWS.contains(&name) && !hidden
}

/// The files of a split by their names.
fn by_name<'a>(repo: &dyn Named, files: Vec<&'a RemoteFile>, split: &str) -> Result<Vec<&'a RemoteFile>> {
    let tables: Vec<_> = files.iter().copied().filter(|file| is_table(file)).collect();
    if tables.is_empty() {
        return Err(without_tables(repo, &files));
    }
    let own = [split];
    let words = SPLITS.iter().find(|(name, _)| *name == split).map_or(&own[..], |(_, words)| words);
    let says_so: Vec<_> = tables.iter().copied().filter(|file| has_word(&file.path, words)).collect();
    let is_other = |file: &&RemoteFile| SPLITS[1..].iter().any(|(_, words)| has_word(&file.path, words));
    let rest: Vec<_> = tables.iter().copied().filter(|file| !is_other(file)).collect();
    let is_named = !says_so.is_empty();
    // What says nothing is the training split.
    let chosen = match (is_named, split == "train") {
        (true, _) => says_so,
        (false, true) => rest,
        (false, false) => {
            let names: Vec<&str> = tables.iter().take(8).map(|file| file.path.as_str()).collect();
            let problem =
                format!("no file's name says that it is of the split {split}: {}", names.join(", "));
            let help = format!("Name the file, as in {}", repo.address(names[0]));
            return Err(Error::dataset(repo.id(), problem, help));
        }
    };
    // The same rows in two formats: the first format that is liked has them.
    let best = TableFormat::BY_PREFERENCE.iter().map(|format| {
        let of_it = |file: &&RemoteFile| TableFormat::of(&file.path) == Some(*format);
        chosen.iter().copied().filter(of_it).collect::<Vec<_>>()
    });
    let best = best.into_iter().find(|files| !files.is_empty()).unwrap_or_default();
    let one_folder = best.iter().all(|file| folder(&file.path) == folder(&best[0].path));
    let one_table = best.iter().all(|file| shard(&file.path).is_some_and(|shard| shard.is_of(best[0])));
    match best.len() {
        1 => Ok(best),
        2.. if one_table || (is_named && one_folder) => Ok(best),
        _ => Err(unclear(repo, &tables)),
    }
}

/// The error for a dataset without a table, by what it has instead.
fn without_tables(repo: &dyn Named, files: &[&RemoteFile]) -> Error {
    let ends = |ending: &str| files.iter().find(|file| file.path.to_lowercase().ends_with(ending));
    let no_rows = "it holds no csv, jsonl or parquet file";
    if let Some(script) = ends(".py") {
        return Error::dataset(
            repo.id(),
            format!("{no_rows}: its rows are made by a script, {}, which is not run", script.path),
            format!(
                "The Hub may hold a copy in parquet: {}",
                repo.address("").trim_end_matches('/').to_owned()
                    + "@refs/convert/parquet/default/train/*.parquet"
            ),
        );
    }
    let other = files.iter().find(|file| {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
        ["xlsx", "xls", "ods", "arrow", "gz", "zip", "zst", "bz2", "xz", "tar", "txt", "db", "sqlite", "pkl"]
            .contains(&ending.as_str())
    });
    match other {
        Some(other) => match no_table("", &other.path) {
            Error::Dataset { problem, help, .. } => {
                Error::dataset(repo.id(), format!("{no_rows}; {} {problem}", other.path), help)
            }
            other => other,
        },
        None => Error::dataset(
            repo.id(),
            no_rows,
            "Take a dataset with one, or give the path of a file of your own",
        ),
    }
}

fn unclear(repo: &dyn Named, tables: &[&RemoteFile]) -> Error {
    let names: Vec<&str> = tables.iter().take(8).map(|file| file.path.as_str()).collect();
    let first = names.first().unwrap_or(&"train.csv");
    Error::dataset(
        repo.id(),
        format!("it is not clear which of its {} tables to train on: {}", tables.len(), names.join(", ")),
        format!("Name the file, as in {}", repo.address(first)),
    )
}

/// Refuses what could not be read, before it is downloaded.
fn readable<'a>(repo: &dyn Named, files: Vec<&'a RemoteFile>) -> Result<Vec<&'a RemoteFile>> {
    for file in &files {
        match TableFormat::of(&file.path) {
            None => {
                let problem = format!("its file {} is no table that can be read", file.path);
                return Err(match no_table("", &file.path) {
                    Error::Dataset { problem: why, help, .. } => {
                        Error::dataset(repo.id(), format!("{problem} ({why})"), help)
                    }
                    _ => Error::dataset(repo.id(), problem, format!("Name {KINDS}")),
                });
            }
            Some(TableFormat::Parquet) if !cfg!(feature = "parquet") => {
                return Err(no_parquet(format!("{}, {}", repo.id(), file.path)));
            }
            Some(_) => {}
        }
    }
    Ok(files)
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Whether one of `words` stands in a path, as a word of its own.
fn has_word(path: &str, words: &[&str]) -> bool {
    let path = path.to_lowercase();
    path.split(|c: char| !c.is_ascii_alphabetic()).any(|word| words.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::super::hash::{ContentId, FileIds};
    use super::super::repo::{Repo, RepoKind};
    use super::*;

    fn choose(names: &[&str], card: Option<&str>) -> Result<Vec<String>, String> {
        choose_split(names, card, "train")
    }

    fn choose_split(names: &[&str], card: Option<&str>, split: &str) -> Result<Vec<String>, String> {
        let repo = Repo::new(RepoKind::Dataset, "a/b", None).unwrap();
        let id = || ContentId::parse(&FileIds::of_bytes(b"").git).unwrap();
        let files: Vec<_> =
            names.iter().map(|name| RemoteFile { path: name.to_string(), size: 0, id: id() }).collect();
        let query = SplitQuery { split, config: None };
        let (chosen, _) = split_files(&repo, &files, card, query).map_err(|e| e.to_string())?;
        Ok(chosen.iter().map(|file| file.path.clone()).collect())
    }

    #[track_caller]
    fn chosen(names: &[&str], expected: &[&str]) {
        assert_eq!(choose(names, None).unwrap(), expected);
    }

    #[track_caller]
    fn refused(names: &[&str], card: Option<&str>, says: &str) {
        let error = choose(names, card).unwrap_err();
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn names_say_which_split_a_table_is() {
        chosen(&["README.md", "rows.csv"], &["rows.csv"]);
        chosen(&["data/test.csv", "data/train.csv", "x.csv"], &["data/train.csv"]);
        chosen(&["train.jsonl", "train.csv", "train.parquet"], &["train.csv"]);
        chosen(&["test-00000.jsonl", "text2emoji.jsonl"], &["text2emoji.jsonl"]);
        chosen(&["Emoji Translation Dataset - Dataset.csv"], &["Emoji Translation Dataset - Dataset.csv"]);
        // Parts of one table, and what lies in a folder or under a name that says train.
        chosen(
            &["train-00000-of-00002.csv", "train-00001-of-00002.csv", "test-00000-of-00001.csv"],
            &["train-00000-of-00002.csv", "train-00001-of-00002.csv"],
        );
        chosen(
            &["x-00000-of-00002.csv", "x-00001-of-00002.csv"],
            &["x-00000-of-00002.csv", "x-00001-of-00002.csv"],
        );
        chosen(&["test/a.csv", "train/a.csv", "train/b.csv"], &["train/a.csv", "train/b.csv"]);
        chosen(&["test_1.csv", "train_1.csv", "train_2.csv"], &["train_1.csv", "train_2.csv"]);
    }

    #[test]
    fn what_is_not_clear_is_asked() {
        refused(&["a.csv", "b.csv"], None, "hf://datasets/a/b/a.csv");
        refused(&["en/train.csv", "de/train.csv"], None, "not clear which of its 2 tables");
        refused(&["README.md"], None, "no csv, jsonl or parquet");
        refused(&["test.csv"], None, "not clear");
        let torn = ["train-00000-of-00003.csv", "train-00002-of-00003.csv"];
        refused(&torn, None, "of the 3 parts of train only 2");
        refused(&torn[..1], None, "only 1");
    }

    #[test]
    fn the_card_has_the_last_word() {
        let files = ["a.csv", "b.csv", "data/dev.csv", "data/part-1.csv", "data/part-2.csv", "x/train.csv"];
        let card = |yaml: &str| format!("---\nlicense: mit\n{yaml}---\n# Rows\n");
        let named = |yaml: &str| choose(&files, Some(&card(yaml))).unwrap();
        assert_eq!(named("configs:\n- config_name: default\n  data_files: b.csv\n"), ["b.csv"]);
        assert_eq!(
            named("configs:\n- config_name: default\n  data_files: [b.csv, a.csv]\n"),
            ["b.csv", "a.csv"]
        );
        let splits = "configs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/dev.csv\n  \
                      - split: train\n    path: data/part-*\n";
        assert_eq!(named(splits), ["data/part-1.csv", "data/part-2.csv"]);
        let two = "configs:\n- config_name: en\n  data_files: a.csv\n- config_name: emoji\n  default: true\n  \
                   data_files:\n  - split: train\n    path:\n    - b.csv\n    - \"**/train.csv\"\n";
        assert_eq!(named(two), ["b.csv", "x/train.csv"]);
        assert_eq!(named("configs:\n- config_name: x\n  data_dir: x\n"), ["x/train.csv"]);
        let wrong = |yaml: &str, says: &str| refused(&files, Some(&card(yaml)), says);
        wrong(
            "configs:\n- config_name: en\n  data_files: a.csv\n- config_name: de\n  data_files: b.csv\n",
            "en, de",
        );
        wrong("configs:\n- data_files:\n  - split: test\n    path: a.csv\n", "its splits are test");
        wrong("configs:\n- data_files: none-*.csv\n", "no file none-*.csv");
        wrong("configs:\n- data_files: 3\n", "data_files");
        // Without `configs`, the names decide again.
        refused(&["a.csv", "b.csv"], Some(&card("")), "not clear");
        assert_eq!(choose(&["a.csv"], Some("no front matter")).unwrap(), ["a.csv"]);
    }

    #[test]
    fn parquet_needs_its_feature() {
        let files = ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"];
        match cfg!(feature = "parquet") {
            true => chosen(&files, &files[1..]),
            false => refused(&files, None, "feature `parquet`"),
        }
    }

    #[test]
    fn splits_formats_and_what_is_no_table() {
        let files = ["dev.tsv", "test.tsv", "train.tsv", "extra.tsv"];
        for (split, file) in [("train", "train.tsv"), ("validation", "dev.tsv"), ("test", "test.tsv")] {
            assert_eq!(choose_split(&files, None, split).unwrap(), [file]);
        }
        assert_eq!(choose_split(&files, None, "extra").unwrap(), ["extra.tsv"]);
        assert!(
            choose_split(&["rows.csv"], None, "test").unwrap_err().contains("of the split test: rows.csv")
        );
        chosen(&["dataset_infos.json", ".hidden/x.csv", "rows.json", "__MACOSX/rows.csv"], &["rows.json"]);
        chosen(&["rows.json", "meta/croissant.json", "rows.parquet"], &["rows.json"]);
        let card = |yaml: &str| format!("---\nconfigs:\n- config_name: x\n  {yaml}\n---\n");
        let named = |yaml: &str| choose(&["README.md", "d/a.csv", "d/notes.md", "x.csv"], Some(&card(yaml)));
        assert_eq!(named("data_files: d/*").unwrap(), ["d/a.csv"]);
        assert_eq!(named("data_files: d").unwrap(), ["d/a.csv"]);
        assert_eq!(named("data_files: d/").unwrap(), ["d/a.csv"]);
        assert_eq!(named("data_files: hf://datasets/a/b/x.csv").unwrap(), ["x.csv"]);
        assert!(named("data_files: https://example.org/x.csv").unwrap_err().contains("lie elsewhere"));
        assert!(named("data_files: d/notes.md").unwrap_err().contains("d/notes.md is no table"));
    }

    #[test]
    fn what_a_dataset_holds_instead_of_tables_is_named() {
        refused(&["b.py", "README.md"], None, "made by a script, b.py, which is not run");
        refused(&["b.py"], None, "hf://datasets/a/b@refs/convert/parquet/default/train/*.parquet");
        refused(&["data-00000-of-00001.arrow", "state.json"], None, "load_from_disk");
        refused(&["rows.xlsx"], None, "rows.xlsx is a spreadsheet");
        refused(&["rows.csv.gz"], None, "rows.csv.gz is compressed");
    }
}
