//! What can go wrong, said in one line: the thing, what is the matter with it, and the way out.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::plain::plain_line;

/// The result of a step.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of one of the notebook's steps.
///
/// Its `Display` is one line, made for a notebook cell: what was tried (a file, a row, a setting,
/// a repository), what is wrong with it, and what to do. It never holds a token. Names and contents of
/// files stand in it as [`plain`](crate::plain::plain()) text, in its `Debug` too, which is the same sentence.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{} ({doing})", plain_line(format_args!("{}: {source}", path.display())))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done, as "reading the CSV".
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A dataset is missing, malformed or empty.
    #[error("{}", plain_line(format_args!("dataset {subject}: {problem}. {help}")))]
    Dataset {
        /// The file or Hub id, with the row where there is one.
        subject: String,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        help: String,
    },
    /// A model, tokenizer or adapter file is missing, malformed or of the wrong kind.
    #[error("{}", plain_line(format_args!("model {subject}: {problem}. {help}")))]
    Model {
        /// The file, folder, Hub id or tensor.
        subject: String,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        help: String,
    },
    /// A setting has a value that cannot work.
    #[error("{}", plain_line(format_args!("setting {name} = {value}: {help}")))]
    Setting {
        /// The setting's name as the caller writes it.
        name: &'static str,
        /// The value it has.
        value: String,
        /// Why not, and which values work.
        help: String,
    },
    /// The Hugging Face Hub, or the way to it, said no.
    #[error("{}", plain_line(format_args!("Hugging Face Hub, {subject}: {problem}. {help}")))]
    Hub {
        /// What was asked for: a repository, a file, `whoami`.
        subject: String,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        help: String,
    },
    /// Training cannot go on.
    #[error("{}", plain_line(format_args!("training: {problem}. {help}")))]
    Training {
        /// What is wrong, with the tensor's or the step's name.
        problem: String,
        /// What to do about it.
        help: String,
    },
    /// A GPU, its driver or its memory is not what is needed.
    #[error("{}", plain_line(format_args!("device {subject}: {problem}. {help}")))]
    Device {
        /// The device, as `cuda:0`.
        subject: String,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        help: String,
    },
    /// A tensor operation failed inside candle: a fault of this crate or of the device.
    #[error("{}", plain_line(format_args!("tensor operation: {_0}")))]
    Candle(candle_core::Error),
}

impl fmt::Debug for Error {
    /// Its kind and its sentence: what `unwrap` prints. Fields one by one would be text as it came.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Io { .. } => "Io",
            Self::Dataset { .. } => "Dataset",
            Self::Model { .. } => "Model",
            Self::Setting { .. } => "Setting",
            Self::Hub { .. } => "Hub",
            Self::Training { .. } => "Training",
            Self::Device { .. } => "Device",
            Self::Candle(_) => "Candle",
        };
        f.debug_tuple(kind).field(&format_args!("{self}")).finish()
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        // With RUST_BACKTRACE=1 (evcxr sets it) candle wraps errors in a backtrace, and its
        // Display prints it. A cell shows one line.
        match error {
            candle_core::Error::WithBacktrace { inner, .. } => Self::from(*inner),
            other => Self::Candle(other),
        }
    }
}

impl Error {
    /// An [`Error::Io`] on `path`; `doing` completes the sentence "failed while …".
    pub fn io(path: impl AsRef<Path>, doing: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), doing, source }
    }

    /// An [`Error::Dataset`].
    pub fn dataset(subject: impl ToString, problem: impl ToString, help: impl ToString) -> Self {
        Self::Dataset { subject: subject.to_string(), problem: problem.to_string(), help: help.to_string() }
    }

    /// An [`Error::Model`].
    pub fn model(subject: impl ToString, problem: impl ToString, help: impl ToString) -> Self {
        Self::Model { subject: subject.to_string(), problem: problem.to_string(), help: help.to_string() }
    }

    /// An [`Error::Setting`].
    pub fn setting(name: &'static str, value: impl ToString, help: impl ToString) -> Self {
        Self::Setting { name, value: value.to_string(), help: help.to_string() }
    }

    /// An [`Error::Hub`].
    pub fn hub(subject: impl ToString, problem: impl ToString, help: impl ToString) -> Self {
        Self::Hub { subject: subject.to_string(), problem: problem.to_string(), help: help.to_string() }
    }

    /// An [`Error::Training`].
    pub fn training(problem: impl ToString, help: impl ToString) -> Self {
        Self::Training { problem: problem.to_string(), help: help.to_string() }
    }

    /// An [`Error::Device`].
    pub fn device(subject: impl ToString, problem: impl ToString, help: impl ToString) -> Self {
        Self::Device { subject: subject.to_string(), problem: problem.to_string(), help: help.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "a\u{1b}[2J\nEVCXR_BEGIN_CONTENT text/html\r\n<b>\u{202e}";
    const SHOWN: &str = "a␛[2J↵EVCXR\u{200b}_BEGIN_CONTENT text/html↵<b>⟨U+202E⟩";

    #[test]
    fn an_error_is_one_plain_line() {
        let system = std::io::Error::other(EVIL);
        for (error, begins) in [
            (Error::io(EVIL, "reading the CSV", system), format!("{SHOWN}: {SHOWN} (reading the CSV)")),
            (Error::dataset(EVIL, EVIL, EVIL), format!("dataset {SHOWN}: {SHOWN}. {SHOWN}")),
            (Error::model(EVIL, EVIL, EVIL), format!("model {SHOWN}: {SHOWN}. {SHOWN}")),
            (Error::setting("r", EVIL, EVIL), format!("setting r = {SHOWN}: {SHOWN}")),
            (Error::hub(EVIL, EVIL, EVIL), format!("Hugging Face Hub, {SHOWN}: {SHOWN}. {SHOWN}")),
            (Error::training(EVIL, EVIL), format!("training: {SHOWN}. {SHOWN}")),
            (Error::device(EVIL, EVIL, EVIL), format!("device {SHOWN}: {SHOWN}. {SHOWN}")),
            (candle_core::Error::Msg(EVIL.into()).into(), format!("tensor operation: {SHOWN}")),
        ] {
            assert_eq!(error.to_string(), begins);
            for debug in [format!("{error:?}"), format!("{error:#?}")] {
                assert!(debug.contains(&begins), "{debug}");
                assert!(
                    !debug.contains("EVCXR_") && !debug.contains(['\u{1b}', '\r', '\u{202e}']),
                    "{debug}"
                );
            }
        }
    }
}
