//! What the Hub says is in a repository.

use reqwest::Url;
use serde_json::Value;

use super::client::{HubClient, host};
use super::errors::repo_error;
use super::hash::ContentId;
use super::repo::Repo;
use super::request::{Request, Retry};
use super::request_error::RequestError;
use crate::error::{Error, Result};

/// A listing longer than this is not followed to its end: no model or dataset here has as many files.
const PAGES: usize = 100;

/// A repository as of one commit.
#[derive(Debug, Clone)]
pub(crate) struct RepoState {
    /// The commit.
    pub commit: String,
    /// Whether only its owner sees it.
    pub private: bool,
}

/// A file of a repository.
#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    /// Its path, checked to stay inside a folder.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Its content's name.
    pub id: ContentId,
}

/// Asks which commit a revision is.
pub(crate) fn repo_state(client: &HubClient, repo: &Repo, retry: Retry) -> Result<RepoState, RequestError> {
    let url = repo.api(&client.endpoint, &["revision", &repo.revision]);
    let answer = client.json(&Request { retry, ..Request::get(url.clone()) })?;
    let commit = answer.get("sha").and_then(Value::as_str).filter(|sha| is_commit(sha)).map(str::to_string);
    match commit {
        Some(commit) => {
            Ok(RepoState { commit, private: answer.get("private").and_then(Value::as_bool).unwrap_or(false) })
        }
        None => Err(RequestError::InvalidResponse {
            host: host(&url),
            why: "no commit is named for the revision".to_string(),
        }),
    }
}

/// Lists all files of `commit`, page by page.
pub(crate) fn list_files(client: &HubClient, repo: &Repo, commit: &str) -> Result<Vec<RemoteFile>> {
    let mut url = repo.api(&client.endpoint, &["tree", commit]);
    url.query_pairs_mut().append_pair("recursive", "true");
    let mut files = Vec::new();
    for _ in 0..PAGES {
        let fail = |error| repo_error(client, repo, "listing its files", error);
        let (headers, body) = client.text(&Request::get(url.clone())).map_err(fail)?;
        let entries = entries(&body).map_err(|e| {
            fail(RequestError::InvalidResponse {
                host: host(&url),
                why: format!("the list of files is not as expected ({e})"),
            })
        })?;
        for entry in &entries {
            files.push(remote_file(repo, entry)?);
        }
        let next =
            headers.get("link").and_then(|value| value.to_str().ok()).and_then(|link| next_page(&url, link));
        match next.filter(|next| next.origin() == url.origin()) {
            Some(next) => url = next,
            None => break,
        }
    }
    files.sort_by(|a: &RemoteFile, b| a.path.cmp(&b.path));
    Ok(files)
}

/// The files among the entries of one page.
fn entries(body: &str) -> Result<Vec<Value>, serde_json::Error> {
    let mut entries: Vec<Value> = serde_json::from_str(body)?;
    entries.retain(|entry| entry.get("type").and_then(Value::as_str) == Some("file"));
    Ok(entries)
}

/// The files that a page lists, for the fuzzers.
pub(super) fn files_of_page(repo: &Repo, body: &str) -> Vec<RemoteFile> {
    entries(body).unwrap_or_default().iter().filter_map(|entry| remote_file(repo, entry).ok()).collect()
}

fn remote_file(repo: &Repo, entry: &Value) -> Result<RemoteFile> {
    let path = entry.get("path").and_then(Value::as_str).unwrap_or_default();
    let bad = |problem: String| {
        Error::hub(
            repo.subject(),
            problem,
            "Take another repository or revision: this one cannot be stored safely",
        )
    };
    if !is_inside(path) {
        return Err(bad(format!("it lists a file whose path leads out of the folder: {path:?}")));
    }
    let large = entry.get("lfs").filter(|lfs| lfs.is_object());
    let of = |key| large.and_then(|lfs| lfs.get(key)).or_else(|| entry.get(key));
    let id = of("oid").and_then(Value::as_str).and_then(ContentId::parse);
    match (id, of("size").and_then(Value::as_u64)) {
        (Some(id), Some(size)) => Ok(RemoteFile { path: path.to_string(), size, id }),
        _ => Err(bad(format!("it lists {path} without a size and a hash"))),
    }
}

/// Whether a path of a listing can be joined to a folder without leaving it.
pub(crate) fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(|c: char| c.is_control() || matches!(c, '\\' | ':'))
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Whether a text is a commit's name.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The address marked `rel="next"` in a `Link` header.
fn next_page(url: &Url, link: &str) -> Option<Url> {
    link.split(',').find_map(|part| {
        let (address, kind) = part.split_once('>')?;
        let address = address.trim().strip_prefix('<')?;
        kind.contains("rel=\"next\"").then(|| url.join(address).ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for good in ["config.json", "a/b/c.txt", ".gitattributes", "x..y"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a\\..\\b", "C:x", ".", "a\nb"] {
            assert!(!is_inside(bad), "{bad}");
        }
    }

    #[test]
    fn pages_are_followed() {
        let url = Url::parse("https://hub/api/models/a/b/tree/c").unwrap();
        let next =
            next_page(&url, r#"</x?cursor=1>; rel="prev", <https://hub/y?cursor=2>; rel="next""#).unwrap();
        assert_eq!(next.as_str(), "https://hub/y?cursor=2");
        assert!(next_page(&url, "").is_none());
    }
}
