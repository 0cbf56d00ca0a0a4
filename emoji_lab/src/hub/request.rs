//! What is asked of a server, and bodies that say how far they got.

use std::io::SeekFrom;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::stream::{self, Stream};
use reqwest::header::HeaderName;
use reqwest::{Method, Url};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::progress::Progress;

/// Bytes of a body that are handed on at once.
const PIECE: usize = 128 << 10;

/// The body of a request.
#[derive(Clone)]
pub(crate) enum Content {
    /// None.
    Nothing,
    /// JSON.
    Json(Value),
    /// Bytes of a media type; none is named if it is empty.
    Bytes(Vec<u8>, &'static str),
    /// A file or a part of it, streamed.
    File(FilePart),
}

/// A part of a file that is sent.
#[derive(Clone)]
pub(crate) struct FilePart {
    pub path: PathBuf,
    pub start: u64,
    pub size: u64,
    /// The whole file's progress; its parts share it.
    pub progress: Arc<Mutex<Progress>>,
}

/// When a request may be sent again after a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Whenever the failure may pass: it changes nothing, or the same thing twice.
    Freely,
    /// Only if the server said that it did not take it (429, 503) or was never reached.
    IfNotTaken,
    /// Not at all.
    Never,
}

/// One request.
#[derive(Clone)]
pub(crate) struct Request {
    pub method: Method,
    pub url: Url,
    pub headers: Vec<(HeaderName, String)>,
    pub content: Content,
    pub repeat: Repeat,
}

impl Request {
    /// A GET that may be repeated.
    pub fn get(url: Url) -> Self {
        Self {
            method: Method::GET,
            url,
            headers: Vec::new(),
            content: Content::Nothing,
            repeat: Repeat::Freely,
        }
    }

    /// A POST of JSON.
    pub fn post(url: Url, json: Value, repeat: Repeat) -> Self {
        Self { method: Method::POST, url, headers: Vec::new(), content: Content::Json(json), repeat }
    }
}

/// When the last byte moved.
#[derive(Clone)]
pub(crate) struct Pulse(Arc<Mutex<Instant>>);

impl Pulse {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn beat(&self) {
        if let Ok(mut last) = self.0.lock() {
            *last = Instant::now();
        }
    }

    pub fn last(&self) -> Instant {
        self.0.lock().map_or_else(|poisoned| *poisoned.into_inner(), |last| *last)
    }
}

/// Bytes in pieces; each that is taken is a beat.
pub(crate) fn bytes_in_pieces(
    bytes: Vec<u8>,
    pulse: Pulse,
) -> impl Stream<Item = std::io::Result<Vec<u8>>> + Send + 'static {
    let pieces: Vec<Vec<u8>> = bytes.chunks(PIECE).map(<[u8]>::to_vec).collect();
    stream::iter(pieces.into_iter().map(move |piece| {
        pulse.beat();
        Ok(piece)
    }))
}

/// A file's bytes in pieces; each that is taken is a beat and goes on the progress.
pub(crate) async fn file_in_pieces(
    part: FilePart,
    pulse: Pulse,
) -> std::io::Result<impl Stream<Item = std::io::Result<Vec<u8>>> + Send + 'static> {
    let mut file = tokio::fs::File::open(&part.path).await?;
    file.seek(SeekFrom::Start(part.start)).await?;
    Ok(stream::try_unfold((file, part, 0), move |(mut file, part, done)| {
        let pulse = pulse.clone();
        async move {
            pulse.beat();
            if let Ok(mut progress) = part.progress.lock() {
                progress.at(part.start + done);
            }
            let size = (part.size - done).min(PIECE as u64);
            if size == 0 {
                return Ok(None);
            }
            let mut piece = vec![0; size as usize];
            // A file that became shorter meanwhile is an error here, not a short upload.
            file.read_exact(&mut piece).await?;
            Ok(Some((piece, (file, part, done + size))))
        }
    }))
}
