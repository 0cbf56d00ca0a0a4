//! Large files of a push: which files are large, and how their bytes get to the Hub.

use std::io::Read;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::{ACCEPT, CONTENT_TYPE, ETAG};
use reqwest::{Method, Url};
use serde_json::{Value, json};

use super::client::{HubClient, host};
use super::errors::repo_error;
use super::hash::FileIds;
use super::progress::{Progress, bytes};
use super::repo::Repo;
use super::request::{FilePart, Request, RequestBody, Retry};
use super::request_error::RequestError;
use super::upload::{HashedUpload, Source, Upload};
use crate::error::{Error, Result};

const LFS_JSON: &str = "application/vnd.git-lfs+json";
/// Files asked about in one request.
const BATCH: usize = 256;
/// The start of a file that the Hub looks at to tell text from binary.
const SAMPLE: usize = 512;

/// The files of a commit, by the way they are uploaded.
#[derive(Default)]
pub(crate) struct Uploads {
    /// In the commit itself.
    pub regular: Vec<HashedUpload>,
    /// Through large-file storage (LFS), named in the commit.
    pub lfs: Vec<HashedUpload>,
}

/// Asks the Hub which files are large. Files that its `.gitignore` names are left out.
pub(crate) fn preupload(client: &HubClient, repo: &Repo, files: Vec<HashedUpload>) -> Result<Uploads> {
    let mut modes: Vec<Value> = Vec::new();
    for batch in files.chunks(BATCH) {
        let mut asked = Vec::new();
        for (file, ids) in batch {
            asked
                .push(json!({ "path": file.path, "size": ids.size, "sample": BASE64.encode(sample(file)?) }));
        }
        let url = repo.api(&client.endpoint, &["preupload", &repo.revision]);
        let request = Request::post(url, json!({ "files": asked }), Retry::Transient);
        let answer =
            client.json(&request).map_err(|t| repo_error(client, repo, "preparing the upload", t))?;
        modes.extend(answer.get("files").and_then(Value::as_array).cloned().unwrap_or_default());
    }
    let mut uploads = Uploads::default();
    for (file, ids) in files {
        let mode = modes.iter().find(|mode| mode.get("path").and_then(Value::as_str) == Some(&file.path));
        if mode.and_then(|mode| mode.get("shouldIgnore")).and_then(Value::as_bool) == Some(true) {
            crate::say!("  {}: left out, the repository's .gitignore names it", file.path);
            continue;
        }
        match mode.and_then(|mode| mode.get("uploadMode")).and_then(Value::as_str) {
            // Large-file storage knows no empty files.
            Some("lfs") if ids.size > 0 => uploads.lfs.push((file, ids)),
            Some(_) => uploads.regular.push((file, ids)),
            None => {
                let why = format!("it does not say how to send {}", file.path);
                let error = RequestError::InvalidResponse { host: host(&client.endpoint), why };
                return Err(repo_error(client, repo, "preparing the upload", error));
            }
        }
    }
    Ok(uploads)
}

fn sample(file: &Upload) -> Result<Vec<u8>> {
    match &file.source {
        Source::Text(text) => Ok(text.bytes().take(SAMPLE).collect()),
        Source::File(path) => {
            let mut start = Vec::new();
            let file = std::fs::File::open(path).map(|file| file.take(SAMPLE as u64));
            file.and_then(|mut file| file.read_to_end(&mut start))
                .map_err(|e| Error::io(path, "reading a file to push", e))?;
            Ok(start)
        }
    }
}

/// How the Hub wants large files.
pub(crate) enum Transfer {
    /// Through Xet storage.
    Xet,
    /// By plain PUTs; one entry for each file, with its instructions.
    Put(Vec<Value>),
}

/// Agrees with the Hub on the way of large files.
pub(crate) fn negotiate(client: &HubClient, repo: &Repo, large: &[HashedUpload]) -> Result<Transfer> {
    let mut objects = Vec::new();
    for batch in large.chunks(BATCH) {
        let asked: Vec<Value> =
            batch.iter().map(|(_, ids)| json!({ "oid": ids.sha256, "size": ids.size })).collect();
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart", "xet"],
            "objects": asked,
            "hash_algo": "sha256",
            "ref": { "name": repo.revision },
        });
        let mut request = Request::post(repo.lfs_batch(&client.endpoint), body, Retry::Transient);
        request.headers.extend([(ACCEPT, LFS_JSON.to_string()), (CONTENT_TYPE, LFS_JSON.to_string())]);
        let answer =
            client.json(&request).map_err(|t| repo_error(client, repo, "preparing the upload", t))?;
        if answer.get("transfer").and_then(Value::as_str) == Some("xet") {
            return Ok(Transfer::Xet);
        }
        objects.extend(answer.get("objects").and_then(Value::as_array).cloned().unwrap_or_default());
    }
    Ok(Transfer::Put(objects))
}

/// Sends one large file as its instructions say; nothing if the Hub has its content already.
pub(crate) fn put(
    client: &HubClient,
    repo: &Repo,
    (file, ids): &HashedUpload,
    objects: &[Value],
) -> Result<()> {
    put_object(client, file, ids, objects).map_err(|error| repo_error(client, repo, &file.path, error))
}

fn put_object(
    client: &HubClient,
    file: &Upload,
    ids: &FileIds,
    objects: &[Value],
) -> Result<(), RequestError> {
    let invalid = |why: String| RequestError::InvalidResponse { host: host(&client.endpoint), why };
    let object = objects.iter().find(|object| object.get("oid").and_then(Value::as_str) == Some(&ids.sha256));
    let object = object.ok_or_else(|| invalid(format!("it gives no instructions for {}", file.path)))?;
    if let Some(error) = object.get("error") {
        let message = error.get("message").and_then(Value::as_str).unwrap_or("no reason given");
        return Err(invalid(format!("it does not take {}: {}", file.path, client.one_line(message))));
    }
    let Some(actions) = object.get("actions").filter(|actions| actions.is_object()) else { return Ok(()) };
    if let Some(upload) = actions.get("upload") {
        crate::say!("  {}: sending {}", file.path, bytes(ids.size));
        let url = action_url(client, upload)?;
        let header = upload.get("header");
        let chunk = header.and_then(|header| header.get("chunk_size"));
        match chunk.and_then(|chunk| chunk.as_u64().or_else(|| chunk.as_str()?.parse().ok())) {
            Some(size) if size > 0 => put_parts(client, file, ids, &url, header, size)?,
            _ => {
                let progress = Arc::new(Mutex::new(Progress::new(&file.path, ids.size, 0)));
                client.text(&put_request(url, content(file, 0, ids.size, &progress)))?;
            }
        }
    }
    if let Some(verify) = actions.get("verify") {
        let url = action_url(client, verify)?;
        client.text(&Request::post(url, json!({ "oid": ids.sha256, "size": ids.size }), Retry::Transient))?;
    }
    Ok(())
}

/// The parts of a file, each to an address of its own, and then the list of them.
fn put_parts(
    client: &HubClient,
    file: &Upload,
    ids: &FileIds,
    done: &Url,
    header: Option<&Value>,
    size: u64,
) -> Result<(), RequestError> {
    let invalid =
        |why: &str| RequestError::InvalidResponse { host: host(&client.endpoint), why: why.to_string() };
    // The addresses stand in the header under the parts' numbers, as "00001".
    let mut addresses: Vec<(u64, &str)> = header
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.parse().ok()?, value.as_str()?)))
        .collect();
    addresses.sort_unstable();
    if addresses.len() as u64 != ids.size.div_ceil(size) {
        return Err(invalid("the number of parts does not fit the file's size"));
    }
    let mut parts = Vec::new();
    let progress = Arc::new(Mutex::new(Progress::new(&file.path, ids.size, 0)));
    for (number, address) in addresses {
        let url = storage_address(client, done, address)?;
        let start = number.saturating_sub(1).saturating_mul(size).min(ids.size);
        let part = content(file, start, size.min(ids.size - start), &progress);
        let (headers, _) = client.text(&put_request(url, part))?;
        let etag = headers.get(ETAG).and_then(|value| value.to_str().ok()).filter(|etag| !etag.is_empty());
        parts.push(
            json!({ "partNumber": number, "etag": etag.ok_or_else(|| invalid("a part got no ETag"))? }),
        );
    }
    let mut request =
        Request::post(done.clone(), json!({ "oid": ids.sha256, "parts": parts }), Retry::Transient);
    request.headers.extend([(ACCEPT, LFS_JSON.to_string()), (CONTENT_TYPE, LFS_JSON.to_string())]);
    client.text(&request).map(|_| ())
}

/// `size` bytes of a file from `start` on.
fn content(file: &Upload, start: u64, size: u64, progress: &Arc<Mutex<Progress>>) -> RequestBody {
    match &file.source {
        Source::Text(text) => {
            let bytes = text.bytes().skip(start as usize).take(size as usize).collect();
            RequestBody::Bytes(bytes, "")
        }
        Source::File(path) => {
            RequestBody::File(FilePart { path: path.clone(), start, size, progress: progress.clone() })
        }
    }
}

/// A PUT to storage: the same bytes twice are the same file.
fn put_request(url: Url, content: RequestBody) -> Request {
    Request { method: Method::PUT, url, headers: Vec::new(), content, retry: Retry::Transient }
}

fn action_url(client: &HubClient, action: &Value) -> Result<Url, RequestError> {
    storage_address(client, &client.endpoint, action.get("href").and_then(Value::as_str).unwrap_or_default())
}

/// Where to send content, as the Hub writes it relative to `base`: storage is reached as safely as the
/// Hub itself.
fn storage_address(client: &HubClient, base: &Url, href: &str) -> Result<Url, RequestError> {
    let url = base.join(href).ok().filter(|_| !href.is_empty());
    url.filter(|url| url.scheme() == "https" || url.scheme() == client.endpoint.scheme()).ok_or_else(|| {
        RequestError::InvalidResponse {
            host: host(&client.endpoint),
            why: "an upload's address is none, or without encryption".into(),
        }
    })
}
