//! Cutting a dataset into a part to train on and a part to test on.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use super::chat::ChatDataset;
use super::show::notebook_text;
use crate::error::{Error, Result};
use crate::rng::Philox;

/// The random stream of the split, so that it shares no number with other uses of the seed.
const STREAM: u64 = u64::from_be_bytes(*b"\0\0\0split");

/// A dataset in two parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetSplits {
    /// What the model learns from.
    pub train: ChatDataset,
    /// What it is tested on.
    pub test: ChatDataset,
}

impl DatasetSplits {
    /// Shows it in a notebook as its `Display` does.
    pub fn evcxr_display(&self) {
        notebook_text(self);
    }
}

impl fmt::Display for DatasetSplits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "train: {} conversations, test: {} conversations", self.train.len(), self.test.len())
    }
}

/// Shuffles the conversations and puts `test_size` of them (a share, between 0 and 1) aside.
///
/// The sizes are those of Hugging Face `datasets`: `ceil(n · test_size)` to test on, the rest to
/// train on. The order is our own: the numbers 0 to n-1, shuffled by Fisher–Yates over the Philox
/// stream `"split"` of `seed` (see [`Philox::shuffle`]); the first ones are the test part.
///
/// # Errors
/// [`Error::Setting`] naming `test_size` if it is no number between 0 and 1, or if either part
/// would be empty.
pub fn train_test_split(chat: &ChatDataset, test_size: f64, seed: u64) -> Result<DatasetSplits> {
    if !(test_size > 0.0 && test_size < 1.0) {
        return Err(Error::setting("test_size", test_size, "give a share between 0 and 1, such as 0.1"));
    }
    let n = chat.len();
    let test_rows = (n as f64 * test_size).ceil() as usize;
    if test_rows == 0 || test_rows >= n {
        return Err(Error::setting(
            "test_size",
            test_size,
            format!(
                "{n} rows make {test_rows} to test on and {} to train on, and each part needs one; \
                 load more rows or take another share",
                n.saturating_sub(test_rows)
            ),
        ));
    }
    let mut order: Vec<usize> = (0..n).collect();
    Philox::new(seed, STREAM).shuffle(&mut order);
    let (test, train) = order.split_at(test_rows);
    Ok(DatasetSplits { train: pick(chat, train), test: pick(chat, test) })
}

/// Splits by given row numbers (from 0): those in `test` to test on, in that order, the others to
/// train on, in dataset order. For repeating a split made elsewhere.
///
/// # Errors
/// [`Error::Setting`] naming `test` if a number is out of range or comes twice, or if either part
/// would be empty.
pub fn split_at_rows(chat: &ChatDataset, test: &[usize]) -> Result<DatasetSplits> {
    let n = chat.len();
    let mut chosen = HashSet::new();
    for &row in test {
        if row >= n {
            return Err(Error::setting("test", row, format!("there are {n} rows, numbered from 0")));
        }
        if !chosen.insert(row) {
            return Err(Error::setting("test", row, "the row is listed twice; list each once"));
        }
    }
    let train: Vec<usize> = (0..n).filter(|row| !chosen.contains(row)).collect();
    if test.is_empty() || train.is_empty() {
        let help = format!("{n} rows, {} of them to test on: each part needs one", test.len());
        return Err(Error::setting("test", format!("{} rows", test.len()), help));
    }
    Ok(DatasetSplits { train: pick(chat, &train), test: pick(chat, test) })
}

/// The rows that a file holds out, for [`split_at_rows`]: their numbers, from 0, as `{"test": [3, 14]}`.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Dataset`] if it is no such file.
pub fn held_out_rows(path: impl AsRef<Path>) -> Result<Vec<usize>> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, "reading the split", error))?;
    let rows = serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|split| split["test"].as_array()?.iter().map(|row| Some(row.as_u64()? as usize)).collect());
    let help = "Give a file such as {\"test\": [3, 14]}";
    rows.ok_or_else(|| Error::dataset(path.display(), "is no split", help))
}

fn pick(chat: &ChatDataset, rows: &[usize]) -> ChatDataset {
    chat.with(rows.iter().map(|&row| chat.conversations[row].clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Conversation, Message};

    fn chat(n: usize) -> ChatDataset {
        let conversation = |i: usize| Conversation { messages: vec![Message::user(i.to_string())] };
        ChatDataset::new((0..n).map(conversation).collect())
    }

    fn numbers(chat: &ChatDataset) -> Vec<usize> {
        chat.conversations.iter().map(|c| c.user_text().parse().unwrap()).collect()
    }

    #[test]
    fn sizes_are_those_of_datasets() {
        // (rows, share, test rows), from datasets 5.2.
        for (n, share, test) in
            [(2529, 0.1, 253), (10, 0.1, 1), (11, 0.1, 2), (2, 0.5, 1), (30, 0.1, 3), (3, 0.34, 2)]
        {
            let splits = train_test_split(&chat(n), share, 42).unwrap();
            assert_eq!((splits.test.len(), splits.train.len()), (test, n - test), "{n} {share}");
        }
    }

    #[test]
    fn parts_are_disjoint_whole_seeded_and_shuffled() {
        let splits = train_test_split(&chat(100), 0.2, 7).unwrap();
        let mut all = [numbers(&splits.test), numbers(&splits.train)].concat();
        assert_ne!(all, (0..100).collect::<Vec<_>>());
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert_eq!(splits, train_test_split(&chat(100), 0.2, 7).unwrap());
        assert_ne!(splits, train_test_split(&chat(100), 0.2, 8).unwrap());
    }

    #[test]
    fn the_order_of_a_seed_stays() {
        // From a second implementation, in Python, of the algorithm as documented.
        let splits = train_test_split(&chat(10), 0.3, 42).unwrap();
        assert_eq!(
            (numbers(&splits.test), numbers(&splits.train)),
            (vec![6, 2, 4], vec![9, 3, 8, 7, 5, 0, 1])
        );
    }

    #[test]
    fn shares_that_cannot_work() {
        for share in [0.0, 1.0, -0.1, 1.5, 253.0, f64::NAN, f64::INFINITY] {
            let error = train_test_split(&chat(10), share, 1).unwrap_err().to_string();
            assert!(error.starts_with("setting test_size = "), "{error}");
        }
        for (n, share) in [(0, 0.1), (1, 0.1), (10, 0.95), (2, 0.6)] {
            let error = train_test_split(&chat(n), share, 1).unwrap_err().to_string();
            assert!(error.contains(&format!("{n} rows make")), "{error}");
        }
    }

    #[test]
    fn a_file_of_held_out_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("split.json");
        std::fs::write(&path, "{\"test\": [3, 14]}").unwrap();
        assert_eq!(held_out_rows(&path).unwrap(), [3, 14]);
        for wrong in ["", "[3]", "{\"test\": [-1]}", "{\"test\": [3, \"x\"]}"] {
            std::fs::write(&path, wrong).unwrap();
            assert!(held_out_rows(&path).unwrap_err().to_string().contains("is no split"), "{wrong}");
        }
    }

    #[test]
    fn split_made_elsewhere() {
        let splits = split_at_rows(&chat(5), &[3, 1]).unwrap();
        assert_eq!((numbers(&splits.test), numbers(&splits.train)), (vec![3, 1], vec![0, 2, 4]));
        for bad in [&[][..], &[5], &[1, 1], &[0, 1, 2, 3, 4]] {
            assert!(split_at_rows(&chat(5), bad).unwrap_err().to_string().starts_with("setting test = "));
        }
    }
}
