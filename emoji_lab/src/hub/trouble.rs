//! Why a request got no good answer.

use std::time::Duration;

use reqwest::StatusCode;

/// Why there is no good answer. Holds no address, since addresses of large files are signed.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    /// The server answered, and not with success.
    Refused(Refusal),
    /// The server was not reached.
    NoConnection { host: String, why: String },
    /// The connection broke or fell silent.
    Cut { host: String, why: String },
    /// The answer is not what the Hub's protocol says.
    Nonsense { host: String, why: String },
    /// A local file could not be read or written.
    Local(String),
}

/// An answer that is not a success.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub host: String,
    pub status: StatusCode,
    /// `X-Error-Code`, as GatedRepo.
    pub code: String,
    /// What the server says, in one line, without the token.
    pub message: String,
    /// What `Retry-After` asks for.
    pub retry_after: Option<Duration>,
}

impl Trouble {
    /// Whether trying again later may help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Refused(refusal) => passes(refusal.status),
            Self::NoConnection { .. } | Self::Cut { .. } => true,
            Self::Nonsense { .. } | Self::Local(_) => false,
        }
    }
}

fn passes(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}
