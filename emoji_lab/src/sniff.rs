//! What a file really is when it is not what its name says: read off its first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// How many bytes [`disguise`] wants to see.
pub(crate) const START: usize = 512;

const FETCH: &str = "Fetch or save the file again";
const PAGE: &str = "Download the file itself, not the page that shows it";
const UNPACK: &str = "Unpack it, and name what was in it";
const CONVERT: &str =
    "Save the model as safetensors with transformers (save_pretrained), and name that folder";

/// What a file turns out to be, and what to do about it; the parts of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disguise {
    /// What it is, to follow the file's name: "is a Git LFS pointer, not the file itself".
    pub(crate) problem: &'static str,
    /// The way out.
    pub(crate) help: &'static str,
}

/// Formats by their first bytes: where the mark stands, the mark, what such a file is, the way out.
const MARKS: [(usize, &[u8], &str, &str); 25] = [
    (0, b"PK\x05\x06", "is an empty ZIP archive", FETCH),
    (0, b"\x1f\x8b", "is a gzip archive", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "is a Zstandard archive", UNPACK),
    (0, b"\xfd7zXZ\0", "is an xz archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7z archive", UNPACK),
    (0, b"Rar!\x1a\x07", "is a RAR archive", UNPACK),
    (4, b"1AY&SY", "is a bzip2 archive", UNPACK),
    (257, b"ustar", "is a tar archive", UNPACK),
    (0, b"\x89HDF\r\n\x1a\n", "is an HDF5 file (Keras, TensorFlow)", CONVERT),
    (4, b"TFL3", "is a TensorFlow Lite model", CONVERT),
    (0, b"LITERTLM", "is a LiteRT-LM model", CONVERT),
    (0, b"\x93NUMPY", "is a NumPy array", CONVERT),
    // Of the years before GGUF.
    (0, b"lmgg", "is a GGML file, the form before GGUF", "Convert the model with a current llama.cpp"),
    (0, b"tjgg", "is a GGJT file, the form before GGUF", "Convert the model with a current llama.cpp"),
    (0, b"fmgg", "is a GGMF file, the form before GGUF", "Convert the model with a current llama.cpp"),
    (
        0,
        b"\x00\x05\x16\x07",
        "is a side file of macOS (its name begins with ._), not the file itself",
        "Copy the file itself, whose name has no ._ in front",
    ),
    (
        0,
        b"bplist00",
        "is a property list of macOS: a placeholder, if its name ends with .icloud",
        "Download the file in the Finder first",
    ),
    (0, b"%PDF-", "is a PDF", FETCH),
    (0, b"\x89PNG\r\n\x1a\n", "is a PNG picture", FETCH),
    (0, b"\xff\xd8\xff", "is a JPEG picture", FETCH),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an old Excel or Word file", "Save it as CSV (UTF-8)"),
    (0, b"SQLite format 3\0", "is an SQLite database", "Export its table as CSV"),
    (0, b"\x7fELF", "is a program", FETCH),
    (
        0,
        b"# xet version ",
        "is a git-xet pointer, not the file itself",
        "Install git-xet and check the file out again, or download the file itself",
    ),
    (
        0,
        b"version https://hawser.github.com/spec/",
        "is a Git LFS pointer, not the file itself",
        "Run `git lfs install` and `git lfs pull` in its repository, or download the file itself",
    ),
];

/// What the file that begins with `start` is, if that is something which no reader of ours takes.
///
/// `start` is the file's first [`START`] bytes, or all of a shorter file.
pub(crate) fn disguise(start: &[u8]) -> Option<Disguise> {
    let found = |problem, help| Some(Disguise { problem, help });
    let bare = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let text = bare.trim_ascii_start();
    let begins = |with: &[u8]| text.len() >= with.len() && text[..with.len()].eq_ignore_ascii_case(with);
    if start.is_empty() {
        return found("is empty", FETCH);
    }
    // A safetensors file begins with the length of its header: any byte, then a brace after eight.
    if start.len() > 8 && start[8] == b'{' && start[4..8] == [0; 4] {
        return None;
    }
    if bare.starts_with(b"version https://git-lfs.github.com/spec/") {
        let help = "Run `git lfs install` and `git lfs pull` in its repository, or download the file itself";
        return found("is a Git LFS pointer, not the file itself", help);
    }
    if begins(b"<!doctype html") || begins(b"<html") || begins(b"<head") || begins(b"<!--") {
        return found("is a web page", PAGE);
    }
    if begins(b"<?xml") || begins(b"<error>") {
        let is_page = start.windows(5).any(|part| part.eq_ignore_ascii_case(b"<html"));
        return match is_page {
            true => found("is a web page", PAGE),
            false => {
                found("is an XML answer of a server, often of one that said no", "Download the file again")
            }
        };
    }
    if start.iter().all(|byte| *byte == 0) {
        return found("begins with zeros: its download was cut off", "Fetch the file again");
    }
    if let Some((_, _, problem, help)) =
        MARKS.iter().find(|(at, mark, _, _)| start.get(*at..).is_some_and(|rest| rest.starts_with(mark)))
    {
        return found(problem, help);
    }
    if start.starts_with(b"PK\x03\x04") {
        return Some(inside_zip(start));
    }
    binary_without_a_mark(start).or_else(|| answer_of_a_server(start, text))
}

/// A ZIP archive by the name of its first entry: formats of today are ZIPs.
fn inside_zip(start: &[u8]) -> Disguise {
    let length = start.get(26..28).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let name = start.get(30..).unwrap_or_default();
    let name = &name[..length.min(name.len())];
    let has = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    let (problem, help) = if has(b"data.pkl") || has(b"archive/") || name.ends_with(b"/version") {
        ("is a PyTorch file (a pickle in a ZIP archive), which can run code and is not read", CONVERT)
    } else if name.starts_with(b"[Content_Types]") || name.starts_with(b"xl/") {
        ("is an Excel or Word file", "Save it as CSV (UTF-8)")
    } else if name == b"mimetype" {
        ("is an OpenDocument file", "Save it as CSV (UTF-8)")
    } else if name.ends_with(b".npy") {
        ("is a NumPy archive", CONVERT)
    } else if has(b"TF_LITE") || name.ends_with(b".tflite") {
        ("is a MediaPipe .task bundle", CONVERT)
    } else {
        ("is a ZIP archive", UNPACK)
    };
    Disguise { problem, help }
}

/// Formats that begin with a number, not with a mark.
fn binary_without_a_mark(start: &[u8]) -> Option<Disguise> {
    let found = |problem, help| Some(Disguise { problem, help });
    match *start {
        // Protocol, then what pickles of models begin with: a frame, a dictionary, a long number …
        [0x80, 2..=5, b'}' | b']' | b'(' | b'c' | b'K' | b'X' | 0x8a | 0x95, ..] => found(
            "is a Python pickle (PyTorch's .bin, .pt or .pth), which can run code and is not read",
            CONVERT,
        ),
        // A map whose first key is a short text.
        [0x81..=0x8f, key @ 0xa1..=0xbf, ref rest @ ..]
            if rest.get(..usize::from(key & 0x1f)).is_some_and(|key| key.is_ascii()) =>
        {
            found("is a msgpack file (Flax)", CONVERT)
        }
        [0x0a, _, 0x0a, _, b'<', ..] => found(
            "is a SentencePiece model (tokenizer.model)",
            "Save the tokenizer with transformers once: it writes tokenizer.json",
        ),
        [0x08, 1..=0x20, 0x12 | 0x1a | 0x22 | 0x2a | 0x3a | 0x42, ..] => found("is an ONNX model", CONVERT),
        _ => None,
    }
}

/// What servers send in place of a file, and what is JSON of another kind.
fn answer_of_a_server(start: &[u8], text: &[u8]) -> Option<Disguise> {
    let found = |problem, help| Some(Disguise { problem, help });
    if text.first() == Some(&b'{') {
        let inner = text[1..].trim_ascii_start();
        if inner.starts_with(b"\"cells\"") || inner.starts_with(b"\"nbformat\"") {
            return found("is a Jupyter notebook", FETCH);
        }
        let said = serde_json::from_slice::<Value>(text).ok()?;
        let fields = said.as_object()?;
        let known = ["error", "errors", "message", "code", "status", "statusCode", "url", "detail", "type"];
        let is_error = fields.get("error").is_some_and(|error| error.is_string() || error.is_object());
        return match is_error && start.len() < START && fields.keys().all(|key| known.contains(&key.as_str()))
        {
            true => found(
                "is the error message of a server",
                "Download the file again, with a token if it needs one",
            ),
            false => None,
        };
    }
    // The Hub and GitHub say so in one line of text.
    let line = text.trim_ascii_end();
    let refusals: [&[u8]; 7] = [
        b"Entry not found",
        b"Repository not found",
        b"Invalid username or password.",
        b"Invalid credentials",
        b"Access to model ",
        b"Access to dataset ",
        b"404: Not Found",
    ];
    let is_refusal = start.len() < START
        && !line.contains(&b'\n')
        && refusals.iter().any(|refusal| line.starts_with(refusal));
    match is_refusal {
        true => found("is the refusal of a server", "Download the file again, with a token if it needs one"),
        false => None,
    }
}

/// [`disguise`] of the file at `path`; none if it cannot be read, which its reader will say.
pub(crate) fn disguise_of(path: &Path) -> Option<Disguise> {
    let mut start = Vec::with_capacity(START);
    File::open(path).ok()?.take(START as u64).read_to_end(&mut start).ok()?;
    disguise(&start)
}

/// The text of a model's small file, without the mark that some editors put in front of UTF-8.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Model`] that names it if it is not what its name
/// says or not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "reading the file", e))?;
    if let Some(found) = disguise(&bytes[..bytes.len().min(START)]) {
        return Err(Error::model(path.display(), found.problem, found.help));
    }
    let is_utf16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
    let text = String::from_utf8(bytes).map_err(|_| {
        let problem = if is_utf16 { "is text in UTF-16, not in UTF-8" } else { "is not text in UTF-8" };
        let help = if is_utf16 { "Save it as UTF-8" } else { FETCH };
        Error::model(path.display(), problem, help)
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_string(),
        None => text,
    })
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
        for real in [
            &b"GGUF\x03\0\0\0"[..],
            b"GG",
            b"{\"a\": 1}",
            b"text,emoji\n",
            b"PAR1\x15\x04",
            &[0x20, 0, 0, 0, 0, 0, 0, 0, b'{'],
            // Headers whose length reads like a pickle's or an ONNX file's first bytes.
            b"\x80\x02\0\0\0\0\0\0{\"a\"",
            b"\x08\x12\x12\0\0\0\0\0{\"a\"",
            // Rows and settings that speak of errors.
            b"{\"error\": \"a slip\", \"emoji\": \"\xf0\x9f\x98\x85\"}",
            b"error,message\nEntry not found,1\n",
            b"Entry not found\n,x\n",
            b"{\"model_type\": \"gemma3_text\"}",
            b"\xef\xbb\xbf{\"a\": 1}",
            b"\xff\xfet\0e\0x\0t\0",
        ] {
            assert_eq!(disguise(real), None, "{real:?}");
        }
    }

    #[test]
    fn other_formats_have_names() {
        let mut tar = vec![b'x'; 300];
        tar[257..262].copy_from_slice(b"ustar");
        let zip = |name: &str| {
            let mut start = b"PK\x03\x04".to_vec();
            start.resize(26, 0);
            start.extend((name.len() as u16).to_le_bytes());
            start.extend([0, 0]);
            start.extend(name.as_bytes());
            start
        };
        let cases: [(&str, Vec<u8>); 21] = [
            ("web page", b"\xef\xbb\xbf<!-- saved -->\n<html>".to_vec()),
            ("web page", b"<?xml version=\"1.0\"?><HTML xmlns=\"x\">".to_vec()),
            ("XML answer", b"<?xml version=\"1.0\"?>\n<Error><Code>AccessDenied</Code></Error>".to_vec()),
            ("error message of a server", b"{\"error\":\"Repository not found\"}".to_vec()),
            ("refusal of a server", b"Entry not found".to_vec()),
            ("PyTorch file", zip("archive/data.pkl")),
            ("Excel", zip("[Content_Types].xml")),
            ("MediaPipe", zip("TF_LITE_PREFILL_DECODE")),
            ("ZIP archive", zip("model/config.json")),
            ("pickle", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46".to_vec()),
            ("pickle", b"\x80\x04\x95\x10\0\0\0\0\0\0\0}".to_vec()),
            ("gzip", b"\x1f\x8b\x08\0".to_vec()),
            ("Zstandard", b"\x28\xb5\x2f\xfd\x04".to_vec()),
            ("7z", b"7z\xbc\xaf\x27\x1c\0\x04".to_vec()),
            ("tar", tar),
            ("ONNX", b"\x08\x07\x12\x07pytorch".to_vec()),
            ("TensorFlow Lite", b"\x1c\0\0\0TFL3".to_vec()),
            ("msgpack", b"\x81\xa6params\x81".to_vec()),
            ("SentencePiece", b"\n\x0e\n\x05<unk>\x15".to_vec()),
            ("Jupyter notebook", b"{\n \"cells\": [\n".to_vec()),
            ("git-xet pointer", b"# xet version 0\nfilesize = 12\n".to_vec()),
        ];
        for (wanted, start) in cases {
            let said = disguise(&start).unwrap_or_else(|| panic!("{wanted} is not seen"));
            assert!(said.problem.contains(wanted) && !said.help.is_empty(), "{wanted}: {}", said.problem);
        }
    }

    #[test]
    fn texts_are_read_whatever_the_editor_put_in_front() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_text(&path).map_err(|e| e.to_string())
        };
        assert_eq!(read(b"\xef\xbb\xbf{}"), Ok("{}".to_string()));
        assert!(read(b"\xff\xfe{\0}\0").unwrap_err().contains("config.json: is text in UTF-16"));
        assert!(read(b"{\"a\": \"\xe9\"}").unwrap_err().contains("not text in UTF-8"));
        let pointer = read(b"version https://git-lfs.github.com/spec/v1\n").unwrap_err();
        assert!(pointer.contains("config.json") && pointer.contains("git lfs pull"), "{pointer}");
    }
}
