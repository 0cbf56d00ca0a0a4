//! What the source of a dataset is: this crate, a file or folder, or the Hub.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::hub::{HF_DATASETS, is_repository_id};
use crate::table_files::{KINDS, TableFormat, other_by_name};

#[derive(Debug, PartialEq)]
pub(super) enum Source {
    Embedded,
    File(PathBuf),
    Folder(PathBuf),
    Hub(String),
}

pub(super) fn locate(source: &str) -> Result<Source> {
    if source == "embedded" {
        return Ok(Source::Embedded);
    }
    let path = Path::new(source);
    if !source.is_empty() && path.exists() {
        return Ok(match path.is_dir() {
            true => Source::Folder(path.to_path_buf()),
            false => Source::File(path.to_path_buf()),
        });
    }
    if source.starts_with(HF_DATASETS) {
        return Ok(Source::Hub(source.to_owned()));
    }
    if source.starts_with("https://") || source.starts_with("http://") {
        return Err(Error::dataset(
            source,
            "is neither a file nor a dataset id, but an address of the web",
            format!(
                "Download the file and give its path; a file on the Hub is {HF_DATASETS}owner/name/file.csv"
            ),
        ));
    }
    let names_another = Path::new(source).extension().is_some() && other_by_name(source).is_some();
    let is_file = TableFormat::of(source).is_some() || (names_another && !is_repository_id(source));
    if is_file || source.starts_with(['/', '.', '~']) {
        let here = std::env::current_dir().unwrap_or_default();
        let help = match source.starts_with('~') {
            true => "Write the home folder out: `~` is the shell's".to_owned(),
            false => format!(
                "Check the path; relative ones start from {}. A file on the Hub is {HF_DATASETS}owner/name/file.csv",
                here.display()
            ),
        };
        return Err(Error::dataset(source, "there is no such file", help));
    }
    if is_repository_id(source) {
        return Ok(Source::Hub(source.to_owned()));
    }
    Err(Error::dataset(
        format!("{source:?}"),
        "is neither a file nor a dataset id of the Hugging Face Hub",
        format!("Give the path of {KINDS}, an id like `owner/name`, or `embedded`"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_addresses() {
        for id in ["owner/name-1.0", "hf://datasets/owner/name/data/test.csv", "hf://datasets/owner/name"] {
            assert_eq!(locate(id).unwrap(), Source::Hub(id.into()));
        }
        let error = |source: &str| locate(source).unwrap_err().to_string();
        assert!(error("rows.tsv").contains("there is no such file"));
        assert!(error("rows.xlsx").contains("there is no such file"));
        assert!(error("https://example.org/rows.csv").contains("Download the file"));
    }
}
