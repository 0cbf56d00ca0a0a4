//! Tables in parts, as `train-00000-of-00002.parquet`.

use super::configs::Named;
use super::listing::RemoteFile;
use crate::error::{Error, Result};

/// Refuses a split of which a part is missing: a dataset must not get smaller in silence.
pub(super) fn whole<'a>(repo: &dyn Named, files: Vec<&'a RemoteFile>) -> Result<Vec<&'a RemoteFile>> {
    for shard in files.iter().filter_map(|file| shard(&file.path)) {
        let there = files.iter().filter(|file| shard.is_of(file)).count();
        if there != shard.count {
            return Err(Error::dataset(
                repo.id(),
                format!("of the {} parts of {} only {there} are there", shard.count, shard.before),
                format!(
                    "Take another revision, or name the files to use, as in {}",
                    repo.address(&format!("{}*", shard.before))
                ),
            ));
        }
    }
    Ok(files)
}

/// A file's place among the parts of one table, by the name `before-00000-of-00002after`.
pub(super) struct Shard<'a> {
    before: &'a str,
    count: usize,
    after: &'a str,
}

impl Shard<'_> {
    /// Whether `other` is a part of the same table.
    pub fn is_of(&self, other: &RemoteFile) -> bool {
        shard(&other.path).is_some_and(|other| {
            (self.before, self.count, self.after) == (other.before, other.count, other.after)
        })
    }
}

pub(super) fn shard(path: &str) -> Option<Shard<'_>> {
    let number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let (before, rest) = path.rsplit_once("-of-")?;
    let (before, index) = before.rsplit_once('-')?;
    let (count, after) = rest.split_at_checked(5)?;
    let fine = number(index) && number(count) && !after.starts_with(|c: char| c.is_ascii_digit());
    let count = count.parse().ok().filter(|_| fine)?;
    Some(Shard { before, count, after })
}
