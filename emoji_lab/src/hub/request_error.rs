//! Why a request failed.

use std::time::Duration;

use reqwest::StatusCode;

/// Why a request failed. Holds no address, since addresses of large files are signed.
#[derive(Debug, Clone)]
pub(crate) enum RequestError {
    /// The server answered with an error status.
    Status(ErrorResponse),
    /// The server was not reached.
    NoConnection { host: String, why: String },
    /// The connection broke, or timed out.
    Interrupted { host: String, why: String },
    /// The answer is not what the Hub's protocol says.
    InvalidResponse { host: String, why: String },
    /// A local file could not be read or written.
    Local(String),
}

/// An answer that is not a success.
#[derive(Debug, Clone)]
pub(crate) struct ErrorResponse {
    pub host: String,
    pub status: StatusCode,
    /// `X-Error-Code`, as GatedRepo.
    pub code: String,
    /// What the server says, in one line, without the token.
    pub message: String,
    /// What `Retry-After` asks for.
    pub retry_after: Option<Duration>,
}

impl RequestError {
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status(response) => is_transient_status(response.status),
            Self::NoConnection { .. } | Self::Interrupted { .. } => true,
            Self::InvalidResponse { .. } | Self::Local(_) => false,
        }
    }
}

fn is_transient_status(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}
