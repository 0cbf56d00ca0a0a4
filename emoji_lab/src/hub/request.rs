//! Requests to a server, and bodies that report how far they got.

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

/// Bytes of a body that are passed on at once.
const CHUNK_SIZE: usize = 128 << 10;

/// The body of a request.
#[derive(Clone)]
pub(crate) enum RequestBody {
    /// None.
    Empty,
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
pub(crate) enum Retry {
    /// After every transient failure: the request changes nothing, or the same thing twice.
    Transient,
    /// Only if the server said that it did not accept it (429, 503), or was never reached.
    NotAccepted,
    /// Not at all.
    Never,
}

/// One request.
#[derive(Clone)]
pub(crate) struct Request {
    pub method: Method,
    pub url: Url,
    pub headers: Vec<(HeaderName, String)>,
    pub content: RequestBody,
    pub retry: Retry,
}

impl Request {
    /// A GET that may be repeated.
    pub fn get(url: Url) -> Self {
        Self {
            method: Method::GET,
            url,
            headers: Vec::new(),
            content: RequestBody::Empty,
            retry: Retry::Transient,
        }
    }

    /// A POST of JSON.
    pub fn post(url: Url, json: Value, retry: Retry) -> Self {
        Self { method: Method::POST, url, headers: Vec::new(), content: RequestBody::Json(json), retry }
    }
}

/// When the last byte moved.
#[derive(Clone)]
pub(crate) struct Activity(Arc<Mutex<Instant>>);

impl Activity {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn record(&self) {
        if let Ok(mut last) = self.0.lock() {
            *last = Instant::now();
        }
    }

    pub fn last(&self) -> Instant {
        self.0.lock().map_or_else(|poisoned| *poisoned.into_inner(), |last| *last)
    }
}

/// Bytes in chunks; each that is taken is recorded as activity.
pub(crate) fn stream_bytes(
    bytes: Vec<u8>,
    activity: Activity,
) -> impl Stream<Item = std::io::Result<Vec<u8>>> + Send + 'static {
    let chunks: Vec<Vec<u8>> = bytes.chunks(CHUNK_SIZE).map(<[u8]>::to_vec).collect();
    stream::iter(chunks.into_iter().map(move |chunk| {
        activity.record();
        Ok(chunk)
    }))
}

/// A file's bytes in chunks; each that is taken is recorded as activity, and in the progress.
pub(crate) async fn stream_file(
    part: FilePart,
    activity: Activity,
) -> std::io::Result<impl Stream<Item = std::io::Result<Vec<u8>>> + Send + 'static> {
    let mut file = tokio::fs::File::open(&part.path).await?;
    file.seek(SeekFrom::Start(part.start)).await?;
    Ok(stream::try_unfold((file, part, 0), move |(mut file, part, done)| {
        let activity = activity.clone();
        async move {
            activity.record();
            if let Ok(mut progress) = part.progress.lock() {
                progress.at(part.start + done);
            }
            let size = (part.size - done).min(CHUNK_SIZE as u64);
            if size == 0 {
                return Ok(None);
            }
            let mut chunk = vec![0; size as usize];
            // A file that became shorter meanwhile is an error here, not a short upload.
            file.read_exact(&mut chunk).await?;
            Ok(Some((chunk, (file, part, done + size))))
        }
    }))
}
