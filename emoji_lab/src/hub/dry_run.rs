//! A push that sends nothing: the card and the list of files, in a folder.

use std::path::Path;

use super::push_report::PushReport;
use super::upload::{Source, Upload, listing};
use crate::error::{Error, Result};
use crate::files::{write_bytes_atomic, write_into_dir};

/// The list of files that a push would send.
const LIST: &str = "files.txt";
/// Marks a folder that a dry run made: its first line, then the names of the files it wrote there.
const MARKER: &str = ".emoji_lab-dry-run";
const MARKER_LINE: &str = "Made by a dry run of emoji_lab's push_to_hub, which may write these files again:";

/// Writes the card and the list of `files` into `dir`, which is new, empty, or of an earlier dry run.
pub(super) fn write_dry_run(dir: &Path, report: &PushReport, files: &[Upload]) -> Result<()> {
    let list = format!("{}\n{}\n", report.headline(), listing(&report.files));
    let texts = files.iter().filter_map(|file| match &file.source {
        Source::Text(text) => Some((file.path.as_str(), text.as_str())),
        Source::File(_) => None,
    });
    let texts: Vec<(&str, &str)> = std::iter::once((LIST, list.as_str())).chain(texts).collect();
    let refuse = |why: String| Err(Error::setting("dry_run", dir.display(), why));
    if dir.is_file() {
        return refuse("this is a file. Name a folder that is new or empty".to_string());
    }
    match own_files(dir)? {
        // Only what an earlier dry run wrote is written again.
        Some(own) => {
            let others = |name: &&str| !own.iter().any(|mine| mine == name) && dir.join(name).exists();
            if let Some(name) = texts.iter().map(|(name, _)| *name).find(others) {
                return refuse(format!(
                    "its {name} was not written by a dry run, and would be replaced. Name a folder that is new or empty"
                ));
            }
        }
        None if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) => {
            return refuse(
                "this holds files that no dry run wrote. Name a folder that is new or empty".to_string(),
            );
        }
        None => {}
    }
    write_into_dir(dir, MARKER, |stage| {
        let mut mark = format!("{MARKER_LINE}\n");
        for (name, text) in &texts {
            write_bytes_atomic(stage.join(name), text.as_bytes())?;
            mark.push_str(name);
            mark.push('\n');
        }
        write_bytes_atomic(stage.join(MARKER), mark.as_bytes())
    })
}

/// The files that an earlier dry run wrote into `dir`; `None` if it bears no mark of one.
fn own_files(dir: &Path) -> Result<Option<Vec<String>>> {
    let path = dir.join(MARKER);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path, "reading the mark of a dry run", e)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    Ok((lines.next() == Some(MARKER_LINE)).then(|| lines.map(str::to_string).collect()))
}
