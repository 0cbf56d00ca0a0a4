//! What a dataset's card says about its files: `configs:` in the front matter of `README.md`.
//!
//! ```yaml
//! configs:
//! - config_name: default
//!   data_files:
//!   - split: train
//!     path: data/train-*
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_yaml_ng::Mapping;

use super::builder_args::file_options;
use super::repo::Repo;
use crate::error::{Error, Result};
use crate::table_files::FileOptions;

/// The front matter, as far as it is about files.
#[derive(Deserialize, Default)]
struct FrontMatter {
    #[serde(default)]
    configs: Option<Vec<Config>>,
}

/// One configuration of a dataset.
#[derive(Deserialize)]
pub(crate) struct Config {
    #[serde(default = "default_name")]
    config_name: String,
    #[serde(default)]
    default: bool,
    data_files: Option<Files>,
    data_dir: Option<String>,
    /// The rest: arguments of the builder that reads the files.
    #[serde(flatten)]
    arguments: Mapping,
}

/// A file, several, or several by split.
#[derive(Deserialize)]
#[serde(untagged)]
enum Files {
    One(String),
    Several(Vec<String>),
    Splits(Vec<Split>),
    BySplit(BTreeMap<String, Paths>),
}

#[derive(Deserialize)]
struct Split {
    split: String,
    path: Paths,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(String),
    Several(Vec<String>),
}

fn default_name() -> String {
    "default".to_string()
}

/// Where the rows of a split are.
#[derive(Debug, PartialEq)]
pub(crate) enum DataFiles {
    /// In the files that these patterns match.
    Patterns(Vec<String>),
    /// In files whose names say which split they are, in this folder (all of them, if it is empty).
    Folder(String),
}

/// What a card says about a split.
#[derive(Debug, PartialEq)]
pub(crate) struct Declared {
    /// Where its rows are.
    pub files: DataFiles,
    /// How they are read.
    pub options: FileOptions,
}

/// The configurations that a card names; none if it has no front matter or names none.
pub(crate) fn configs(repo: &dyn Named, card: &str) -> Result<Vec<Config>> {
    let Some(yaml) = front_matter(card).filter(|yaml| yaml.contains("configs")) else { return Ok(vec![]) };
    let read: FrontMatter = serde_yaml_ng::from_str(&yaml).map_err(|e| {
        // Its words are long; the place is what helps.
        let place = e.location().map(|at| format!(" (line {} of it)", at.line())).unwrap_or_default();
        Error::dataset(
            repo.id(),
            format!("the configs and data_files in its README.md cannot be read{place}"),
            format!("Name the file to use, as in {}", repo.address("train.csv")),
        )
    })?;
    Ok(read.configs.unwrap_or_default())
}

impl Declared {
    /// What is declared for `split` of the configuration `name`, or of the one that is the only or the
    /// default one; `None` if there is no configuration.
    pub fn of_split(
        repo: &dyn Named,
        configs: &[Config],
        split: &str,
        name: Option<&str>,
    ) -> Result<Option<Self>> {
        let id = repo.id();
        let way_out = |file: &str| format!("Name the files to use, as in {}", repo.address(file));
        let names =
            || configs.iter().map(|config| config.config_name.as_str()).collect::<Vec<_>>().join(", ");
        let config = match (name, configs) {
            (Some(name), _) => {
                let found = configs.iter().find(|config| config.config_name == name);
                let problem = || match configs.is_empty() {
                    true => format!("it has no configuration {name}, nor any other"),
                    false => format!("it has no configuration {name}; it has {}", names()),
                };
                found.ok_or_else(|| Error::dataset(id, problem(), "Set config_name to one that it has"))?
            }
            (None, []) => return Ok(None),
            (None, [one]) => one,
            (None, several) => {
                let marked = several.iter().find(|config| config.default);
                let chosen = marked.or_else(|| several.iter().find(|config| config.config_name == "default"));
                chosen.ok_or_else(|| {
                    let problem =
                        format!("it has several configurations, and none is the default one: {}", names());
                    let first = &several[0].config_name;
                    let help = format!(
                        "Say which: DatasetConfig {{ config_name: Some({first:?}.into()), ..Default::default() }}; or \
                         name the files to use, as in {}",
                        repo.address(&format!("{first}/train-*.csv"))
                    );
                    Error::dataset(id, problem, help)
                })?
            }
        };
        let options = file_options(&config.arguments).map_err(|(name, value)| {
            let problem = format!("its card declares {name}: {value}, which is not supported");
            Error::dataset(
                id,
                problem,
                "Save the rows as CSV with commas, quotes and UTF-8, and give that file",
            )
        })?;
        let folder =
            config.data_dir.as_deref().unwrap_or_default().trim_start_matches("./").trim_matches('/');
        let Some(files) = &config.data_files else {
            return Ok(Some(Self { files: DataFiles::Folder(folder.to_owned()), options }));
        };
        let patterns = files.of_split(split).map_err(|splits| match splits.is_empty() {
            true => Error::dataset(id, format!("it has no split {split}, only train"), way_out("train.csv")),
            false => {
                let problem = format!("it has no split {split}; its splits are {}", splits.join(", "));
                let help = format!(
                    "Say which: DatasetConfig {{ split: {:?}.into(), ..Default::default() }}; or {}",
                    splits[0],
                    way_out("test.csv").replace("Name", "name")
                );
                Error::dataset(id, problem, help)
            }
        })?;
        // Files are named from the folder on, as by Python's library.
        let inside = |path: &str| match folder.is_empty() {
            true => path.to_owned(),
            false => format!("{folder}/{}", path.trim_start_matches("./")),
        };
        let files = DataFiles::Patterns(patterns.into_iter().map(inside).collect());
        Ok(Some(Self { files, options }))
    }
}

/// A dataset in a repository or a folder, for errors.
pub(crate) trait Named {
    /// What errors call it.
    fn id(&self) -> &str;
    /// How one of its files is named to `load_dataset`.
    fn address(&self, file: &str) -> String;
}

impl Named for Repo {
    fn id(&self) -> &str {
        &self.id
    }

    fn address(&self, file: &str) -> String {
        format!("{}{}/{file}", super::dataset::HF_DATASETS, self.id)
    }
}

impl Files {
    /// The paths of a split; the names of all splits if it is not among them. Files without a split
    /// are the training split.
    fn of_split(&self, split: &str) -> std::result::Result<Vec<&str>, Vec<&str>> {
        let is_train = split == "train";
        match self {
            Self::One(path) if is_train => Ok(vec![path]),
            Self::Several(paths) if is_train => Ok(paths.iter().map(String::as_str).collect()),
            Self::One(_) | Self::Several(_) => Err(Vec::new()),
            Self::Splits(splits) => {
                let found: Vec<&str> = splits
                    .iter()
                    .filter(|there| there.split.trim() == split)
                    .flat_map(|there| there.path.all())
                    .collect();
                let names = || splits.iter().map(|there| there.split.as_str()).collect();
                if found.is_empty() { Err(names()) } else { Ok(found) }
            }
            Self::BySplit(splits) => match splits.get(split) {
                Some(paths) => Ok(paths.all()),
                None => Err(splits.keys().map(String::as_str).collect()),
            },
        }
    }
}

impl Paths {
    fn all(&self) -> Vec<&str> {
        match self {
            Self::One(path) => vec![path],
            Self::Several(paths) => paths.iter().map(String::as_str).collect(),
        }
    }
}

/// The YAML between the card's first two lines of `---`.
fn front_matter(card: &str) -> Option<String> {
    let mut lines = card.trim_start_matches('\u{feff}').lines();
    (lines.next()?.trim_end() == "---").then_some(())?;
    let mut yaml = String::new();
    for line in lines {
        if line.trim_end() == "---" {
            return Some(yaml);
        }
        yaml.push_str(line);
        yaml.push('\n');
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::repo::RepoKind;
    use super::*;

    #[test]
    fn cards_of_all_sorts() {
        let repo = Repo::new(RepoKind::Dataset, "a/b", None).unwrap();
        let count = |card: &str| configs(&repo, card).map(|configs| configs.len()).map_err(|e| e.to_string());
        assert_eq!(count("# no front matter, and configs in the text"), Ok(0));
        assert_eq!(count("---\r\nconfigs:\r\n- config_name: x\r\n  data_files: a.csv\r\n---\r\n"), Ok(1));
        assert_eq!(count("---\nconfigs:\n---\n"), Ok(0));
        assert_eq!(count("---\nconfigs:\n- config_name: x\n  drop_labels: true\n---\n"), Ok(1));
        assert_eq!(count("---\ntitle: open ended\n"), Ok(0));
        for bad in
            ["configs: x", "configs:\n- data_files:\n  - split: train", "configs: [", "a: configs\n b: :"]
        {
            let error = count(&format!("---\n{bad}\n---\n")).unwrap_err();
            assert!(
                error.contains("README.md cannot be read") && error.contains("hf://datasets/a/b/"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_card_cannot_grow_in_memory() {
        // Ten levels of ten references each would be 10^10 texts.
        let mut card = String::from("---\na0: &a0 [configs, x]\n");
        for level in 1..=10 {
            let refs = vec![format!("*a{}", level - 1); 10].join(", ");
            card += &format!("a{level}: &a{level} [{refs}]\n");
        }
        card += "configs: *a10\n---\n";
        let repo = Repo::new(RepoKind::Dataset, "a/b", None).unwrap();
        assert!(configs(&repo, &card).is_err());
    }

    #[test]
    fn files_of_a_split_in_every_form() {
        let repo = Repo::new(RepoKind::Dataset, "a/b", None).unwrap();
        let of = |yaml: &str, split: &str, name: Option<&str>| {
            let configs = configs(&repo, &format!("---\n{yaml}\n---\n")).unwrap();
            let declared = Declared::of_split(&repo, &configs, split, name).map_err(|e| e.to_string())?;
            Ok::<_, String>(declared.map(|declared| declared.files))
        };
        let patterns = |paths: &[&str]| {
            Ok(Some(DataFiles::Patterns(paths.iter().map(|path| path.to_string()).collect())))
        };
        let one = "configs:\n- config_name: x\n  data_files: a.csv";
        assert_eq!(of(one, "train", None), patterns(&["a.csv"]));
        assert!(of(one, "test", None).unwrap_err().contains("no split test, only train"));
        let map = "configs:\n- config_name: x\n  data_files: {train: a.csv, test: [b.csv, c.csv]}";
        assert_eq!(of(map, "test", None), patterns(&["b.csv", "c.csv"]));
        let twice = "configs:\n- config_name: x\n  data_files:\n  - {split: train, path: a.csv}\n  \
                     - {split: train, path: [b.csv]}\n  - {split: test, path: c.csv}";
        assert_eq!(of(twice, "train", None), patterns(&["a.csv", "b.csv"]));
        let error = of(twice, "dev", None).unwrap_err();
        assert!(
            error.contains("its splits are train, train, test") && error.contains("split: \"train\""),
            "{error}"
        );
        let inside = "configs:\n- config_name: x\n  data_dir: ./data/\n  data_files: rows-*.csv";
        assert_eq!(of(inside, "train", None), patterns(&["data/rows-*.csv"]));
        let args = "configs:\n- config_name: x\n  sep: ';'";
        assert_eq!(of(args, "train", None), Ok(Some(DataFiles::Folder(String::new()))));
        let two = "configs:\n- config_name: en\n  data_files: a.csv\n- config_name: de\n  data_files: b.csv";
        assert_eq!(of(two, "train", Some("de")), patterns(&["b.csv"]));
        assert!(of(two, "train", Some("fr")).unwrap_err().contains("no configuration fr; it has en, de"));
        assert!(of(two, "train", None).unwrap_err().contains("config_name: Some(\"en\".into())"));
        assert!(of("license: mit # configs", "train", Some("fr")).unwrap_err().contains("nor any other"));
        let odd = of("configs:\n- config_name: x\n  sep: '::'", "train", None).unwrap_err();
        assert!(odd.contains("declares sep: \"::\", which is not supported"), "{odd}");
    }
}
