//! What a file really is when it is not what its name says: read off its first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How many bytes [`disguise`] wants to see.
pub(crate) const START: usize = 512;

/// What a file turns out to be, and what to do about it; the parts of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disguise {
    /// What it is, to follow the file's name: "is a Git LFS pointer, not the file itself".
    pub(crate) problem: &'static str,
    /// The way out.
    pub(crate) help: &'static str,
}

/// What the file that begins with `start` is, if that is something which no reader of ours takes.
pub(crate) fn disguise(start: &[u8]) -> Option<Disguise> {
    let found = |problem, help| Some(Disguise { problem, help });
    let text = start.trim_ascii_start();
    let begins = |with: &[u8]| text.len() >= with.len() && text[..with.len()].eq_ignore_ascii_case(with);
    if start.is_empty() {
        return found("is empty", "Fetch or save the file again");
    }
    if start.starts_with(b"version https://git-lfs.github.com/spec/") {
        let help = "Run `git lfs install` and `git lfs pull` in its repository, or download the file itself";
        return found("is a Git LFS pointer, not the file itself", help);
    }
    if begins(b"<!doctype html") || begins(b"<html") {
        return found("is a web page", "Download the file itself, not the page that shows it");
    }
    if start.iter().all(|byte| *byte == 0) {
        return found("begins with zeros: its download was cut off", "Fetch the file again");
    }
    None
}

/// [`disguise`] of the file at `path`; none if it cannot be read, which its reader will say.
pub(crate) fn disguise_of(path: &Path) -> Option<Disguise> {
    let mut start = Vec::with_capacity(START);
    File::open(path).ok()?.take(START as u64).read_to_end(&mut start).ok()?;
    disguise(&start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disguises_are_seen_and_real_files_are_not() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
        assert!(disguise(pointer).unwrap().problem.contains("Git LFS pointer"));
        assert!(disguise(b"\n <!DOCTYPE html><html>").unwrap().problem.contains("web page"));
        assert!(disguise(b"").unwrap().problem.contains("empty"));
        assert!(disguise(&[0; 64]).unwrap().problem.contains("zeros"));
        for real in
            [&b"GGUF\x03\0\0\0"[..], b"{\"a\": 1}", b"text,emoji\n", &[0x20, 0, 0, 0, 0, 0, 0, 0, b'{']]
        {
            assert_eq!(disguise(real), None);
        }
    }
}
