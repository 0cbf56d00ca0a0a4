//! What a dataset's card says about its files: `configs:` in the front matter of `README.md`.
//!
//! ```yaml
//! configs:
//! - config_name: default
//!   data_files:
//!   - split: train
//!     path: data/train-*
//! ```

use serde::Deserialize;

use super::repo::Repo;
use crate::error::{Error, Result};

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
}

/// A file, several, or several by split.
#[derive(Deserialize)]
#[serde(untagged)]
enum Files {
    One(String),
    Several(Vec<String>),
    Splits(Vec<Split>),
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
pub(crate) enum DataFiles<'a> {
    /// In the files that these patterns match.
    Patterns(Vec<&'a str>),
    /// In this folder, in files whose names say which split they are.
    Folder(&'a str),
}

/// The configurations that a card names; none if it has no front matter or names none.
pub(crate) fn configs(repo: &Repo, card: &str) -> Result<Vec<Config>> {
    let Some(yaml) = front_matter(card).filter(|yaml| yaml.contains("configs")) else { return Ok(vec![]) };
    let read: FrontMatter = serde_yaml_ng::from_str(&yaml).map_err(|e| {
        // Its words are long; the place is what helps.
        let place = e.location().map(|at| format!(" (line {} of it)", at.line())).unwrap_or_default();
        Error::dataset(
            &repo.id,
            format!("the configs and data_files in its README.md cannot be read{place}"),
            format!("Name the file to use, as in hf://datasets/{}/train.csv", repo.id),
        )
    })?;
    let configs = read.configs.unwrap_or_default();
    Ok(configs
        .into_iter()
        .filter(|config| config.data_files.is_some() || config.data_dir.is_some())
        .collect())
}

impl<'a> DataFiles<'a> {
    /// The training split's files, of the configuration that is the only one or the default one;
    /// `None` if there is no configuration.
    pub fn of_training(repo: &Repo, configs: &'a [Config]) -> Result<Option<Self>> {
        let name =
            |example: &str| format!("Name the files to use, as in hf://datasets/{}/{example}", repo.id);
        let config = match configs {
            [] => return Ok(None),
            [one] => one,
            several => {
                let marked = several.iter().find(|config| config.default);
                let chosen = marked.or_else(|| several.iter().find(|config| config.config_name == "default"));
                chosen.ok_or_else(|| {
                    let names: Vec<&str> = several.iter().map(|config| config.config_name.as_str()).collect();
                    let problem = format!(
                        "it has several configurations, and none is the default one: {}",
                        names.join(", ")
                    );
                    Error::dataset(&repo.id, problem, name(&format!("{}/train-*.csv", names[0])))
                })?
            }
        };
        let patterns = match (&config.data_files, &config.data_dir) {
            (Some(Files::One(path)), _) => vec![path.as_str()],
            (Some(Files::Several(paths)), _) => paths.iter().map(String::as_str).collect(),
            (Some(Files::Splits(splits)), _) => {
                let train = splits.iter().find(|split| split.split == "train");
                match train.map(|split| &split.path) {
                    Some(Paths::One(path)) => vec![path.as_str()],
                    Some(Paths::Several(paths)) => paths.iter().map(String::as_str).collect(),
                    None => {
                        let names: Vec<&str> = splits.iter().map(|split| split.split.as_str()).collect();
                        let problem = format!("it has no split train; its splits are {}", names.join(", "));
                        return Err(Error::dataset(&repo.id, problem, name("test.csv")));
                    }
                }
            }
            (None, Some(folder)) => return Ok(Some(Self::Folder(folder))),
            (None, None) => return Ok(None),
        };
        Ok(Some(Self::Patterns(patterns)))
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
        assert_eq!(count("---\nconfigs:\n- config_name: x\n  drop_labels: true\n---\n"), Ok(0));
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
}
