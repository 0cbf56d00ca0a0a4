//! One commit of many files.

use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hf_hub::HFClient;
use hf_hub::progress::{ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::repository::CommitOperation;
use hf_hub::repository::RepoTypeAny;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::HubClient;
use super::env::HubEnv;
use super::errors::repo_error;
use super::lfs::{Transfer, Uploads, negotiate, preupload, put};
use super::listing::{RepoState, list_files, repo_state};
use super::progress::{Progress, bytes};
use super::repo::{Repo, RepoKind};
use super::request::{Request, RequestBody, Retry};
use super::upload::{HashedUpload, Source};
use crate::error::{Error, Result};

/// How a commit ended.
pub(crate) enum CommitOutcome {
    /// The repository holds the files as of this commit.
    Committed(String),
    /// It failed while the Hub could not be asked whether it arrived.
    Unknown(Error),
}

/// Uploads the large files and commits all. An error means that nothing was committed.
pub(crate) fn commit(
    client: &HubClient,
    env: &HubEnv,
    repo: &Repo,
    state: &RepoState,
    files: Vec<HashedUpload>,
    message: &str,
) -> Result<CommitOutcome> {
    let uploads = preupload(client, repo, files)?;
    if uploads.regular.is_empty() && uploads.lfs.is_empty() {
        return Ok(CommitOutcome::Committed(state.commit.clone()));
    }
    let transfer = match uploads.lfs.is_empty() {
        true => Transfer::Put(Vec::new()),
        false => negotiate(client, repo, &uploads.lfs)?,
    };
    let sent = match transfer {
        Transfer::Xet => through_hf_hub(client, env, repo, state, &uploads, message),
        Transfer::Put(objects) => {
            for file in &uploads.lfs {
                put(client, repo, file, &objects)?;
            }
            commit_as_ndjson(client, repo, state, &uploads, message)
        }
    };
    match sent {
        Ok(commit) => Ok(CommitOutcome::Committed(commit)),
        Err(error) => check_after_failure(client, repo, state, &uploads, error),
    }
}

/// A commit whose request failed can have arrived all the same: the repository tells.
fn check_after_failure(
    client: &HubClient,
    repo: &Repo,
    before: &RepoState,
    uploads: &Uploads,
    error: Error,
) -> Result<CommitOutcome> {
    let Ok(now) = repo_state(client, repo, Retry::Transient) else {
        return Ok(CommitOutcome::Unknown(error));
    };
    if now.commit == before.commit {
        return Err(error);
    }
    let Ok(remote) = list_files(client, repo, &now.commit) else { return Ok(CommitOutcome::Unknown(error)) };
    let is_there = |(file, ids): &HashedUpload| {
        remote.iter().any(|there| there.path == file.path && there.size == ids.size && ids.is(&there.id))
    };
    if uploads.lfs.iter().chain(&uploads.regular).all(is_there) {
        return Ok(CommitOutcome::Committed(now.commit));
    }
    Err(Error::hub(
        repo.subject(),
        format!(
            "someone else pushed to it meanwhile (its head is {})",
            now.commit.get(..8).unwrap_or_default()
        ),
        "Run the push again: it then adds to what is there",
    ))
}

/// The commit as lines of JSON: regular files in it, large ones by name.
fn commit_as_ndjson(
    client: &HubClient,
    repo: &Repo,
    state: &RepoState,
    uploads: &Uploads,
    message: &str,
) -> Result<String> {
    let mut body = Vec::new();
    let mut line = |value: Value| {
        body.extend_from_slice(value.to_string().as_bytes());
        body.push(b'\n');
    };
    // With the parent named, a commit that was lost on the way cannot land on top of another's.
    let header = json!({ "summary": message, "description": "", "parentCommit": state.commit });
    line(json!({ "key": "header", "value": header }));
    for (file, _) in &uploads.regular {
        let content = BASE64.encode(file.read()?);
        line(
            json!({ "key": "file", "value": { "content": content, "path": file.path, "encoding": "base64" } }),
        );
    }
    for (file, ids) in &uploads.lfs {
        let value = json!({ "path": file.path, "algo": "sha256", "oid": ids.sha256, "size": ids.size });
        line(json!({ "key": "lfsFile", "value": value }));
    }
    let request = Request {
        method: Method::POST,
        url: repo.api(&client.endpoint, &["commit", &repo.revision]),
        headers: Vec::new(),
        content: RequestBody::Bytes(body, "application/x-ndjson"),
        retry: Retry::NotAccepted,
    };
    let answer = client.json(&request).map_err(|error| repo_error(client, repo, "committing", error))?;
    let commit = answer.get("commitOid").and_then(Value::as_str).map(str::to_string);
    commit.ok_or_else(|| {
        Error::hub(repo.subject(), "the Hub's answer to the commit names no commit", "Look at its page")
    })
}

/// Shows what hf-hub reports as the lines that every transfer has here.
struct XetLines(Mutex<Progress>);

impl ProgressHandler for XetLines {
    fn on_progress(&self, event: &ProgressEvent) {
        if let (ProgressEvent::Upload(UploadEvent::Progress { bytes_completed, .. }), Ok(mut progress)) =
            (event, self.0.lock())
        {
            progress.at(*bytes_completed);
        }
    }
}

/// The commit with its large files in Xet storage, which is hf-hub's to speak.
fn through_hf_hub(
    client: &HubClient,
    env: &HubEnv,
    repo: &Repo,
    state: &RepoState,
    uploads: &Uploads,
    message: &str,
) -> Result<String> {
    let total: u64 = uploads.lfs.iter().map(|(_, ids)| ids.size).sum();
    crate::say!("  sending {} large files, {}, through Xet storage", uploads.lfs.len(), bytes(total));
    let lines = XetLines(Mutex::new(Progress::new("large files", total, 0)));
    let operations = uploads.regular.iter().chain(&uploads.lfs).map(|(file, _)| match &file.source {
        Source::File(path) => CommitOperation::add_file(&file.path, path),
        Source::Text(text) => CommitOperation::add_bytes(&file.path, text.clone().into_bytes()),
    });
    let (owner, name) = repo.id.split_once('/').unwrap_or(("", repo.id.as_str()));
    // The token is always given: without one hf-hub takes one from the environment.
    let token = client.token().map(|token| token.secret().to_string()).unwrap_or_default();
    let hf = HFClient::builder()
        .endpoint(&env.endpoint)
        .token(token)
        .cache_dir(&env.cache_dir)
        .user_agent(concat!("emoji_lab/", env!("CARGO_PKG_VERSION")))
        .build_sync();
    let kind = match repo.kind {
        RepoKind::Model => RepoTypeAny::Model,
        RepoKind::Dataset => RepoTypeAny::Dataset,
        RepoKind::Space => RepoTypeAny::Space,
    };
    let sent = hf.and_then(|hf| {
        hf.repository(kind, owner, name)
            .create_commit()
            .operations(operations.collect())
            .commit_message(message)
            .revision(repo.revision.clone())
            .parent_commit(state.commit.clone())
            .progress(lines)
            .send()
    });
    let problem = match sent {
        Ok(info) => match info.commit_oid {
            Some(commit) => return Ok(commit),
            None => "the Hub's answer to the commit names no commit".to_string(),
        },
        Err(e) => format!("sending or committing the files failed: {}", client.one_line(&e.to_string())),
    };
    Err(Error::hub(repo.subject(), problem, "Check the network and the token's rights"))
}
