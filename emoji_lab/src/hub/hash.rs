//! The two hashes by which the Hub names a file's content.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A file's name by content: the SHA-256 of a large file (Git LFS), or Git's SHA-1 of a small one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ContentId {
    /// 64 hex digits.
    Sha256(String),
    /// 40 hex digits, over `blob SIZE\0` and the content.
    GitBlob(String),
}

impl ContentId {
    /// Takes the hex text of a listing; `None` if it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        match text.len() {
            64 => Some(Self::Sha256(text)),
            40 => Some(Self::GitBlob(text)),
            _ => None,
        }
    }

    /// The hex digits: the file's name in the cache's `blobs`.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }
}

/// A content hash that is being computed.
pub(crate) enum ContentHash {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl ContentHash {
    /// Starts the kind of hash that `id` is, for a file of `size` bytes.
    pub fn like(id: &ContentId, size: u64) -> Self {
        match id {
            ContentId::Sha256(_) => Self::Sha256(Sha256::new()),
            ContentId::GitBlob(_) => Self::GitBlob(git_start(size)),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::GitBlob(hash) => hash.update(bytes),
        }
    }

    /// The id of all that was added.
    pub fn finish(self) -> ContentId {
        match self {
            Self::Sha256(hash) => ContentId::Sha256(hex(&hash.finalize())),
            Self::GitBlob(hash) => ContentId::GitBlob(hex(&hash.finalize())),
        }
    }
}

/// Both ids of a file, and its size.
#[derive(Debug, Clone)]
pub(crate) struct FileIds {
    pub size: u64,
    pub sha256: String,
    pub git: String,
}

impl FileIds {
    /// Reads a file once for both.
    pub fn of_file(path: &Path) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let (mut sha256, mut git) = (Sha256::new(), git_start(size));
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut buffer)?;
            let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
            sha256.update(bytes);
            git.update(bytes);
        }
        Ok(Self { size, sha256: hex(&sha256.finalize()), git: hex(&git.finalize()) })
    }

    /// The ids of bytes in memory.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let size = bytes.len() as u64;
        let mut git = git_start(size);
        git.update(bytes);
        Self { size, sha256: hex(&Sha256::digest(bytes)), git: hex(&git.finalize()) }
    }

    /// Whether a file that the Hub lists has this content.
    pub fn is(&self, id: &ContentId) -> bool {
        match id {
            ContentId::Sha256(hex) => *hex == self.sha256,
            ContentId::GitBlob(hex) => *hex == self.git,
        }
    }
}

fn git_start(size: u64) -> Sha1 {
    let mut hash = Sha1::new();
    hash.update(format!("blob {size}\0"));
    hash
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes() {
        // `printf 'hello\n' | git hash-object --stdin` and `| sha256sum`.
        let ids = FileIds::of_bytes(b"hello\n");
        assert_eq!(ids.git, "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(ids.sha256, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        for id in [ContentId::parse(&ids.git).unwrap(), ContentId::parse(&ids.sha256).unwrap()] {
            assert!(ids.is(&id));
            let mut hash = ContentHash::like(&id, 6);
            hash.update(b"hel");
            hash.update(b"lo\n");
            assert_eq!(hash.finish(), id);
        }
        assert_eq!(ContentId::parse("../../etc/passwd"), None);
        assert_eq!(ContentId::parse("abc"), None);
    }
}
