//! What the stand-in keeps: accounts, repositories, commits, large objects.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sha1::{Digest, Sha1};
use sha2::Sha256;

/// Files from this size on are large, unless their name says so already.
pub const LARGE: usize = 1 << 20;

/// The content of a file in a commit.
#[derive(Debug, Clone, PartialEq)]
pub enum Blob {
    Regular(Vec<u8>),
    /// SHA-256 and size of an object in large-file storage.
    Large(String, u64),
}

pub type Files = BTreeMap<String, Blob>;

#[derive(Debug, Clone)]
pub struct Commit {
    pub id: String,
    pub message: String,
    pub files: Files,
}

#[derive(Debug, Clone, Default)]
pub struct Repo {
    pub private: bool,
    pub gated: bool,
    /// Who accepted the licence.
    pub accepted: BTreeSet<String>,
    pub commits: Vec<Commit>,
}

impl Repo {
    /// The commit that a revision names.
    pub fn at(&self, revision: &str) -> Option<&Commit> {
        if revision == "main" {
            self.commits.last()
        } else {
            self.commits.iter().find(|commit| commit.id == revision)
        }
    }

    pub fn commit(&mut self, message: &str, files: Files) -> String {
        let parent = self.commits.last().map(|commit| commit.id.clone()).unwrap_or_default();
        let id = hex(&Sha1::digest(format!("{parent} {message} {} {files:?}", self.commits.len())));
        self.commits.push(Commit { id: id.clone(), message: message.to_string(), files });
        id
    }
}

#[derive(Debug, Clone)]
pub struct Account {
    pub name: String,
    pub role: String,
}

/// Everything, behind the server's lock.
#[derive(Debug, Default)]
pub struct Store {
    /// By token.
    pub accounts: HashMap<String, Account>,
    /// By `models/owner/name`.
    pub repos: BTreeMap<String, Repo>,
    /// Large objects by SHA-256.
    pub objects: HashMap<String, Vec<u8>>,
    /// Parts of a multipart upload, by object and number.
    pub parts: HashMap<(String, u64), Vec<u8>>,
    /// Chunks of the xorbs in Xet storage, by hash.
    pub xorbs: HashMap<String, Vec<Vec<u8>>>,
}

impl Store {
    /// Adds a file to the next commit's files, large ones to the storage.
    pub fn blob(&mut self, name: &str, bytes: &[u8]) -> Blob {
        if !is_large(name, bytes.len()) {
            return Blob::Regular(bytes.to_vec());
        }
        let id = sha256(bytes);
        self.objects.insert(id.clone(), bytes.to_vec());
        Blob::Large(id, bytes.len() as u64)
    }
}

/// What the Hub's `.gitattributes` of a new repository and its size limit make of a file.
pub fn is_large(name: &str, size: usize) -> bool {
    size > 0
        && (size >= LARGE
            || [".safetensors", ".bin", ".gguf", ".parquet"].iter().any(|end| name.ends_with(end)))
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Git's name of a blob.
pub fn git_id(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

/// The text that stands in Git for a large file.
pub fn pointer(sha256: &str, size: u64) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
