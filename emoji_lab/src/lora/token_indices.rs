//! Which rows of the embedding an adapter trains.

use std::fmt;

/// What PEFT calls `trainable_token_indices`: rows of the embedding, and of a head tied to it, that are
/// trained beside the adapters while all other rows stay as they are. Of an untied model only the
/// embedding's rows are trained, as in PEFT.
#[derive(Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TokenIndices {
    /// None.
    #[default]
    None,
    /// Those of the tokens that occur in the training rows, prompts and answers alike. The trainer counts
    /// them; an adapter's file has their ids.
    Occurring,
    /// Those of these tokens.
    Ids(Vec<u32>),
}

impl TokenIndices {
    /// Whether no row is trained.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self != Self::Occurring && self.ids().is_none()
    }

    /// The ids, where they are known and there are any.
    #[must_use]
    pub fn ids(&self) -> Option<&[u32]> {
        match self {
            Self::Ids(ids) if !ids.is_empty() => Some(ids),
            Self::None | Self::Occurring | Self::Ids(_) => None,
        }
    }
}

/// As it is written, but for many ids.
impl fmt::Debug for TokenIndices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Occurring => f.write_str("Occurring"),
            Self::Ids(ids) if ids.len() > 8 => write!(f, "{} tokens", ids.len()),
            Self::Ids(ids) => write!(f, "Ids({ids:?})"),
        }
    }
}
