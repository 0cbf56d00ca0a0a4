//! The files of one model: one, or the parts that llama.cpp's `gguf-split` makes of a large one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::header::{Header, Meta, TensorInfo};
use crate::error::{Error, Result};

/// No model is in more parts; a damaged number must not make us look for millions.
const MOST_PARTS: u64 = 1000;

/// Each part's bytes and what its front says; the metadata is the first part's.
pub(super) struct Parts<'a>(pub(super) Vec<(&'a [u8], Header<'a>)>);

impl<'a> Parts<'a> {
    /// The first part's metadata value.
    pub(super) fn meta(&self, key: &str) -> Option<&Meta<'a>> {
        self.0.first()?.1.metadata.get(key)
    }

    /// A tensor's bytes and what it is.
    pub(super) fn tensor(&self, name: &str) -> Option<(&'a [u8], &TensorInfo)> {
        let (bytes, info) =
            self.0.iter().find_map(|(bytes, header)| Some((bytes, header.tensors.get(name)?)))?;
        // The header has made sure that the range lies in the file.
        Some((bytes.get(info.bytes.clone()).unwrap_or_default(), info))
    }

    /// How a tensor is stored that cannot be read.
    pub(super) fn unread(&self, name: &str) -> Option<&str> {
        self.0.iter().find_map(|(_, header)| header.unread.get(name).map(String::as_str))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensor(name).is_some() || self.unread(name).is_some()
    }

    /// A tensor's shape, outermost first.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensor(name)?.1.shape)
    }

    pub(super) fn is_without_tensors(&self) -> bool {
        self.0.iter().all(|(_, header)| header.tensors.is_empty() && header.unread.is_empty())
    }
}

/// Which part of how many a file says that it is, counted from 1; none if it is whole.
pub(super) fn part_of(metadata: &BTreeMap<&str, Meta>) -> Option<(u64, u64)> {
    let number = |key: &str| match metadata.get(key) {
        Some(Meta::Unsigned(n)) => Some(*n),
        Some(Meta::Signed(n)) => u64::try_from(*n).ok(),
        _ => None,
    };
    let count = number("split.count").filter(|count| *count > 1)?;
    Some((number("split.no").unwrap_or(0).saturating_add(1), count))
}

/// The files of all `count` parts of the model that `path` is part `number` of.
///
/// # Errors
/// [`Error::Model`] that names the parts which are not there.
pub(super) fn all_parts(path: &Path, number: u64, count: u64) -> Result<Vec<PathBuf>> {
    let what = format!("it is part {number} of {count} of a split model");
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let ending = format!("-{number:05}-of-{count:05}.gguf");
    let Some(stem) = name.strip_suffix(&ending).filter(|_| count <= MOST_PARTS && number <= count) else {
        let help = format!(
            "Its parts are found by their names: call this one NAME{ending}, and the others by their numbers \
             beside it, or join them with llama-gguf-split --merge"
        );
        return Err(Error::model(path.display(), what, help));
    };
    let name_of = |n: u64| format!("{stem}-{n:05}-of-{count:05}.gguf");
    let missing: Vec<String> =
        (1..=count).map(name_of).filter(|name| !path.with_file_name(name).is_file()).collect();
    if !missing.is_empty() {
        let problem = format!("{what}, and these are not beside it: {}", missing.join(", "));
        return Err(Error::model(path.display(), problem, "Fetch them into the same folder"));
    }
    Ok((1..=count).map(|n| path.with_file_name(name_of(n))).collect())
}
