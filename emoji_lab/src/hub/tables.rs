//! Which files of a dataset repository hold its training split, as Python's `datasets` finds them.
//!
//! The repository's card says it (`configs:` in the front matter of `README.md`); without that, the
//! files' names do: `train.csv`, `data/train-00000-of-00002.parquet`, `train/part1.jsonl`.

use globset::GlobBuilder;

use super::configs::{DataFiles, configs};
use super::listing::RemoteFile;
use super::repo::Repo;
use crate::data::{TableFormat, no_parquet};
use crate::error::{Error, Result};

/// Words by which a file or folder says that it is another split.
const OTHER_SPLITS: [&str; 7] = ["test", "testing", "valid", "validation", "val", "dev", "eval"];
/// Words by which it says that it is the training split.
const TRAIN: [&str; 2] = ["train", "training"];

/// The files of the training split, in order: by the card if it names files, else by their names.
pub(crate) fn training_files<'a>(
    repo: &Repo,
    files: &'a [RemoteFile],
    card: Option<&str>,
) -> Result<Vec<&'a RemoteFile>> {
    let named = card.map(|card| configs(repo, card)).transpose()?.unwrap_or_default();
    let chosen = match DataFiles::of_training(repo, &named)? {
        Some(DataFiles::Patterns(patterns)) => {
            let mut chosen: Vec<&RemoteFile> = Vec::new();
            for pattern in patterns {
                for file in matching(repo, files, pattern)? {
                    if !chosen.iter().any(|there| there.path == file.path) {
                        chosen.push(file);
                    }
                }
            }
            chosen
        }
        Some(DataFiles::Folder(folder)) => {
            let prefix = format!("{}/", folder.trim_matches('/'));
            by_name(repo, files.iter().filter(|file| file.path.starts_with(&prefix)).collect())?
        }
        None => by_name(repo, files.iter().collect())?,
    };
    whole(repo, readable(repo, chosen)?)
}

/// The files that a name or a pattern (`data/train-*.parquet`) after the id chooses.
pub(crate) fn named_files<'a>(
    repo: &Repo,
    files: &'a [RemoteFile],
    name: &str,
) -> Result<Vec<&'a RemoteFile>> {
    match files.iter().find(|file| file.path == name) {
        Some(file) => readable(repo, vec![file]),
        None => readable(repo, matching(repo, files, name)?),
    }
}

/// The files that `pattern` matches, by the rules of Python's fsspec: `*` stays within a folder,
/// `**` does not.
fn matching<'a>(repo: &Repo, files: &'a [RemoteFile], pattern: &str) -> Result<Vec<&'a RemoteFile>> {
    let pattern = pattern.trim_start_matches("./");
    let names = |list: Vec<&str>| match list.is_empty() {
        true => "It has no files".to_string(),
        false => format!("It has {}", list.join(", ")),
    };
    let glob = GlobBuilder::new(pattern).literal_separator(true).build().map_err(|e| {
        Error::dataset(
            &repo.id,
            format!("\"{pattern}\" is no pattern of file names ({})", e.kind()),
            "Write * for any part of a name, as in data/train-*.csv",
        )
    })?;
    let matcher = glob.compile_matcher();
    let found: Vec<&RemoteFile> = files.iter().filter(|file| matcher.is_match(&file.path)).collect();
    match found.is_empty() {
        true => {
            let list = files.iter().take(12).map(|file| file.path.as_str()).collect();
            Err(Error::dataset(&repo.id, format!("it has no file {pattern}"), names(list)))
        }
        false => Ok(found),
    }
}

/// The training split by the files' names.
fn by_name<'a>(repo: &Repo, files: Vec<&'a RemoteFile>) -> Result<Vec<&'a RemoteFile>> {
    let tables: Vec<_> = files.into_iter().filter(|file| TableFormat::of(&file.path).is_some()).collect();
    if tables.is_empty() {
        return Err(Error::dataset(
            &repo.id,
            "it holds no csv, jsonl or parquet file",
            "Take a dataset with one, or give the path of a file of your own",
        ));
    }
    let says_train: Vec<_> = tables.iter().copied().filter(|file| has_word(&file.path, &TRAIN)).collect();
    let rest: Vec<_> = tables.iter().copied().filter(|file| !has_word(&file.path, &OTHER_SPLITS)).collect();
    let is_train = !says_train.is_empty();
    let chosen = if is_train { says_train } else { rest };
    // The same rows in two formats: the first format that is liked has them.
    let best = TableFormat::LIKED.iter().map(|format| {
        let of_it = |file: &&RemoteFile| TableFormat::of(&file.path) == Some(*format);
        chosen.iter().copied().filter(of_it).collect::<Vec<_>>()
    });
    let best = best.into_iter().find(|files| !files.is_empty()).unwrap_or_default();
    let one_folder = best.iter().all(|file| folder(&file.path) == folder(&best[0].path));
    let one_table = best.iter().all(|file| shard(&file.path).is_some_and(|shard| shard.is_of(best[0])));
    match best.len() {
        1 => Ok(best),
        2.. if one_table || (is_train && one_folder) => Ok(best),
        _ => Err(unclear(repo, &tables)),
    }
}

fn unclear(repo: &Repo, tables: &[&RemoteFile]) -> Error {
    let names: Vec<&str> = tables.iter().take(8).map(|file| file.path.as_str()).collect();
    let first = names.first().unwrap_or(&"train.csv");
    Error::dataset(
        &repo.id,
        format!("it is not clear which of its {} tables to train on: {}", tables.len(), names.join(", ")),
        format!("Name the file, as in hf://datasets/{}/{first}", repo.id),
    )
}

/// Refuses what could not be read, before it is downloaded.
fn readable<'a>(repo: &Repo, files: Vec<&'a RemoteFile>) -> Result<Vec<&'a RemoteFile>> {
    for file in &files {
        match TableFormat::of(&file.path) {
            None => {
                return Err(Error::dataset(
                    &repo.id,
                    format!("its file {} is no table that can be read", file.path),
                    "Name a .csv, .jsonl or .parquet file",
                ));
            }
            Some(TableFormat::Parquet) if !cfg!(feature = "parquet") => {
                return Err(no_parquet(format!("{}, {}", repo.id, file.path)));
            }
            Some(_) => {}
        }
    }
    Ok(files)
}

/// Refuses a split of which a part is missing: a dataset must not get smaller in silence.
fn whole<'a>(repo: &Repo, files: Vec<&'a RemoteFile>) -> Result<Vec<&'a RemoteFile>> {
    for shard in files.iter().filter_map(|file| shard(&file.path)) {
        let there = files.iter().filter(|file| shard.is_of(file)).count();
        if there != shard.count {
            return Err(Error::dataset(
                &repo.id,
                format!("of the {} parts of {} only {there} are there", shard.count, shard.before),
                format!(
                    "Take another revision, or name the files to use, as in hf://datasets/{}/{}*",
                    repo.id, shard.before
                ),
            ));
        }
    }
    Ok(files)
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// A file's place among the parts of one table, by the name `before-00000-of-00002after`.
struct Shard<'a> {
    before: &'a str,
    count: usize,
    after: &'a str,
}

impl Shard<'_> {
    /// Whether `other` is a part of the same table.
    fn is_of(&self, other: &RemoteFile) -> bool {
        shard(&other.path).is_some_and(|other| {
            (self.before, self.count, self.after) == (other.before, other.count, other.after)
        })
    }
}

fn shard(path: &str) -> Option<Shard<'_>> {
    let number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let (before, rest) = path.rsplit_once("-of-")?;
    let (before, index) = before.rsplit_once('-')?;
    let (count, after) = rest.split_at_checked(5)?;
    let fine = number(index) && number(count) && !after.starts_with(|c: char| c.is_ascii_digit());
    let count = count.parse().ok().filter(|_| fine)?;
    Some(Shard { before, count, after })
}

/// Whether one of `words` stands in a path, as a word of its own.
fn has_word(path: &str, words: &[&str]) -> bool {
    let path = path.to_lowercase();
    path.split(|c: char| !c.is_ascii_alphabetic()).any(|word| words.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::super::hash::{ContentId, FileIds};
    use super::super::repo::RepoKind;
    use super::*;

    fn choose(names: &[&str], card: Option<&str>) -> Result<Vec<String>, String> {
        let repo = Repo::new(RepoKind::Dataset, "a/b", None).unwrap();
        let id = || ContentId::parse(&FileIds::of_bytes(b"").git).unwrap();
        let files: Vec<_> =
            names.iter().map(|name| RemoteFile { path: name.to_string(), size: 0, id: id() }).collect();
        let chosen = training_files(&repo, &files, card).map_err(|e| e.to_string())?;
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
}
