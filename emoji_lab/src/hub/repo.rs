//! Repository ids, and the addresses made from them.

use reqwest::Url;

use super::env::without_credentials;
use crate::error::{Error, Result};

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RepoKind {
    /// A model.
    Model,
    /// A dataset.
    Dataset,
    /// A web page or program, a Space.
    Space,
}

impl RepoKind {
    /// The word in API addresses and cache folders.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
            Self::Space => "spaces",
        }
    }

    /// The word in messages, and in requests that name a kind.
    pub fn word(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
            Self::Space => "space",
        }
    }

    /// What stands before the id in addresses of pages, files and Git.
    fn prefix(self) -> Option<&'static str> {
        (self != Self::Model).then(|| self.plural())
    }
}

/// A repository at a revision.
#[derive(Debug, Clone)]
pub(crate) struct Repo {
    pub kind: RepoKind,
    /// `owner/name`, or `name` for the few without an owner.
    pub id: String,
    /// A branch, tag or commit.
    pub revision: String,
}

/// Whether a name can be that of a repository, `owner/name`, by the Hub's rules.
pub(crate) fn is_repository_id(name: &str) -> bool {
    name.matches('/').count() == 1 && Repo::new(RepoKind::Model, name, None).is_ok()
}

impl Repo {
    /// Checks the id by the Hub's rules: `owner/name` of letters, digits, `-`, `_` and `.`.
    pub fn new(kind: RepoKind, id: &str, revision: Option<&str>) -> Result<Self> {
        let fine = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("--")
                && !part.contains("..")
        };
        let parts: Vec<&str> = id.split('/').collect();
        if id.len() > 96 || parts.len() > 2 || !parts.iter().all(|part| fine(part)) || id.ends_with(".git") {
            return Err(Error::hub(
                format!("{} \"{}\"", kind.word(), short(id)),
                "this is not a repository id",
                "Write it as owner/name, as in google/gemma-3-270m-it: letters, digits, -, _ and ., 96 at most",
            ));
        }
        let revision = revision.unwrap_or("main").trim();
        if revision.is_empty()
            || revision.split('/').any(|part| part.is_empty() || part == "." || part == "..")
            || revision.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\')
        {
            return Err(Error::hub(
                id,
                format!("\"{}\" is not a revision", short(revision)),
                "Name a branch, a tag or a commit, as in main",
            ));
        }
        Ok(Self { kind, id: id.to_string(), revision: revision.to_string() })
    }

    /// What messages call it.
    pub fn subject(&self) -> String {
        match (self.kind, self.revision.as_str()) {
            (RepoKind::Model, "main") => self.id.clone(),
            (kind, "main") => format!("{} {}", kind.word(), self.id),
            (_, revision) => format!("{} {} at {revision}", self.kind.word(), self.id),
        }
    }

    /// Its page on the Hub.
    pub fn page(&self, endpoint: &str) -> String {
        let endpoint = without_credentials(endpoint);
        match self.kind.prefix() {
            None => format!("{endpoint}/{}", self.id),
            Some(prefix) => format!("{endpoint}/{prefix}/{}", self.id),
        }
    }

    /// `/api/models/owner/name/first/second…`, every segment encoded as one.
    pub fn api(&self, endpoint: &Url, segments: &[&str]) -> Url {
        let owner_and_name = self.id.split('/');
        address(
            endpoint,
            ["api", self.kind.plural()].into_iter().chain(owner_and_name).chain(segments.iter().copied()),
        )
    }

    /// The address that gives `path` as of `commit`.
    pub fn resolve(&self, endpoint: &Url, commit: &str, path: &str) -> Url {
        let head = self.kind.prefix().into_iter().chain(self.id.split('/')).chain(["resolve", commit]);
        address(endpoint, head.chain(path.split('/')))
    }

    /// The Git LFS batch address.
    pub fn lfs_batch(&self, endpoint: &Url) -> Url {
        let git = format!("{}.git", self.id);
        let segments =
            self.kind.prefix().into_iter().chain(git.split('/')).chain(["info", "lfs", "objects", "batch"]);
        address(endpoint, segments)
    }
}

/// `endpoint` with `segments` after its own path. A `/` inside a segment is encoded.
pub(crate) fn address<'a>(endpoint: &Url, segments: impl Iterator<Item = &'a str>) -> Url {
    let mut url = endpoint.clone();
    // Only addresses without a path (mailto:) refuse this, and `HubClient` lets http and https in only.
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

/// The start of a text that someone typed, for a message.
fn short(text: &str) -> String {
    let start: String = text.chars().filter(|c| !c.is_control()).take(100).collect();
    if start.len() < text.len() { format!("{start}…") } else { start }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked() {
        for good in ["google/gemma-3-270m-it", "gpt2", "a/b.c_d", "kr15t3n/text2emoji"] {
            assert!(Repo::new(RepoKind::Model, good, None).is_ok(), "{good}");
        }
        for bad in ["", "a/", "/b", "a/b/c", "a b/c", "../x", "a/..", "a/b.git", "a/-b", "a/b--c", "é/x"] {
            assert!(Repo::new(RepoKind::Model, bad, None).is_err(), "{bad}");
        }
        assert!(Repo::new(RepoKind::Model, &"x".repeat(97), None).is_err());
        for bad in ["", "..", "a/../b", "x y", "/x"] {
            assert!(Repo::new(RepoKind::Model, "a/b", Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_encoded() {
        let endpoint = Url::parse("https://mirror.example/hf").unwrap();
        let repo = Repo::new(RepoKind::Dataset, "a/b", Some("refs/pr/1")).unwrap();
        assert_eq!(
            repo.api(&endpoint, &["revision", &repo.revision]).as_str(),
            "https://mirror.example/hf/api/datasets/a/b/revision/refs%2Fpr%2F1"
        );
        assert_eq!(
            repo.resolve(&endpoint, "abc", "data/train #1?.csv").as_str(),
            "https://mirror.example/hf/datasets/a/b/resolve/abc/data/train%20%231%3F.csv"
        );
        let model = Repo::new(RepoKind::Model, "a/b", None).unwrap();
        let root = Url::parse("http://127.0.0.1:1").unwrap();
        assert_eq!(model.lfs_batch(&root).as_str(), "http://127.0.0.1:1/a/b.git/info/lfs/objects/batch");
        assert_eq!(
            model.resolve(&root, "abc", "x.json").as_str(),
            "http://127.0.0.1:1/a/b/resolve/abc/x.json"
        );
    }
}
