//! The front of a GGUF file: metadata, and where each tensor lies.
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. candle's own reader is not
//! used because an alignment of 0 makes it panic, it drops trailing NULs of tokens, and it names
//! neither the file nor the tensor in its errors. Nothing here allocates by a number from the file
//! that the file's length does not back.

use std::collections::BTreeMap;

use super::Kind;
use super::cursor::Cursor;
use crate::error::{Error, Result};

/// A metadata value. Numbers keep their sign and width only as far as a reader needs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Meta<'a> {
    Unsigned(u64),
    Signed(i64),
    /// A 32-bit float keeps its own type: 1e-6 in f32 is not 1e-6 in f64.
    F32(f32),
    F64(f64),
    Bool(bool),
    Text(&'a str),
    Texts(Vec<&'a str>),
    Bools(Vec<bool>),
    Signeds(Vec<i64>),
    Floats(Vec<f32>),
    /// An array of arrays or of a type that no key we read has.
    Other,
}

/// Where a tensor lies and what it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorInfo {
    pub(crate) kind: Kind,
    /// Row-major, outermost first (the file has them innermost first).
    pub(crate) shape: Vec<usize>,
    /// The bytes' place in the file; checked to lie inside it.
    pub(crate) bytes: std::ops::Range<usize>,
}

/// Everything in a GGUF file but the tensors' data.
#[derive(Debug)]
pub(crate) struct Header<'a> {
    pub(crate) metadata: BTreeMap<&'a str, Meta<'a>>,
    pub(crate) tensors: BTreeMap<&'a str, TensorInfo>,
    /// Tensors that are stored in a way which is not read here, and in which. Only a tensor that is
    /// asked for makes that an error: a file may hold a vision tower, too.
    pub(crate) unread: BTreeMap<&'a str, String>,
}

/// What is wrong with a file, and the way out.
struct HeaderError {
    problem: String,
    help: &'static str,
}

impl From<String> for HeaderError {
    fn from(problem: String) -> Self {
        Self { problem, help: HELP }
    }
}

const HELP: &str = "Fetch the .gguf file again";

impl<'a> Header<'a> {
    /// Reads the front of `file`, the whole file's bytes. `origin` names it in errors.
    pub(crate) fn read(file: &'a [u8], origin: &str) -> Result<Self> {
        let mut cursor = Cursor { file, at: 0 };
        let mut run = || -> Result<Self, HeaderError> {
            if cursor.take(4, "the magic")? != b"GGUF" {
                return Err("not a GGUF file (its first four bytes are not GGUF)".to_string().into());
            }
            match cursor.u32()? {
                2 | 3 => {}
                version if matches!(version.swap_bytes(), 1..=3) => {
                    return Err(HeaderError {
                        problem: "a big-endian GGUF file, which is not read here".to_string(),
                        help: "Fetch the little-endian one, or turn it round with llama.cpp's gguf_convert_endian.py",
                    });
                }
                version => {
                    return Err(HeaderError {
                        problem: format!("GGUF version {version}; 2 and 3 are read here"),
                        help: "Convert the model with a current llama.cpp",
                    });
                }
            }
            let tensor_count = cursor.count(24, "tensors")?;
            let metadata_count = cursor.count(13, "metadata entries")?;
            let mut metadata = BTreeMap::new();
            for _ in 0..metadata_count {
                let key = cursor.text("a metadata key")?;
                let value = cursor.value(key)?;
                if metadata.insert(key, value).is_some() {
                    return Err(format!("metadata {key} is there twice").into());
                }
            }
            let mut entries = Vec::new();
            for _ in 0..tensor_count {
                entries.push(cursor.tensor()?);
            }
            let alignment = match metadata.get("general.alignment") {
                None => 32,
                Some(Meta::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n as usize,
                Some(other) => return Err(format!("general.alignment is {other:?}").into()),
            };
            let start = cursor.at.next_multiple_of(alignment);
            let (mut tensors, mut unread) = (BTreeMap::new(), BTreeMap::new());
            for (name, kind, shape, offset) in entries {
                let twice = || format!("tensor {name} is there twice");
                let kind = match kind {
                    Ok(kind) => kind,
                    Err(stored) => {
                        if unread.insert(name, stored).is_some() || tensors.contains_key(name) {
                            return Err(twice().into());
                        }
                        continue;
                    }
                };
                let bytes = span(kind, &shape, offset, start).ok_or_else(|| {
                    format!("tensor {name} has a size that cannot be ({}, {shape:?})", kind.name())
                })?;
                if bytes.end > file.len() {
                    return Err(format!(
                        "cut short: tensor {name} ends at byte {}, the file at {}",
                        bytes.end,
                        file.len()
                    )
                    .into());
                }
                if tensors.insert(name, TensorInfo { kind, shape, bytes }).is_some()
                    || unread.contains_key(name)
                {
                    return Err(twice().into());
                }
            }
            apart(&tensors)?;
            Ok(Self { metadata, tensors, unread })
        };
        run().map_err(|flaw| Error::model(origin, flaw.problem, flaw.help))
    }
}

/// That no two tensors share bytes: together they are then no longer than the file, and what is
/// made of them is a small multiple of it.
fn apart(tensors: &BTreeMap<&str, TensorInfo>) -> Result<(), String> {
    let mut spans: Vec<_> =
        tensors.iter().map(|(name, info)| (info.bytes.start, info.bytes.end, name)).collect();
    spans.sort_unstable();
    match spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(format!("tensors {} and {} lie on top of each other", pair[0].2, pair[1].2)),
        None => Ok(()),
    }
}

/// The bytes of a tensor, or `None` if the sum does not work out.
fn span(kind: Kind, shape: &[usize], offset: u64, start: usize) -> Option<std::ops::Range<usize>> {
    let elements = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim))?;
    // A block never spans two rows.
    let row = shape.last().copied().unwrap_or(1);
    if elements == 0 || row % kind.block_values() != 0 {
        return None;
    }
    let length = (elements / kind.block_values()).checked_mul(kind.block_bytes())?;
    let from = start.checked_add(usize::try_from(offset).ok()?)?;
    Some(from..from.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::super::out::Out;
    use super::super::writer::Gguf;
    use super::*;

    fn refused(bytes: &[u8]) -> String {
        Header::read(bytes, "x.gguf").expect_err("must be refused").to_string()
    }

    fn front(version: u32, tensors: u64, metadata: u64) -> Vec<u8> {
        Out(b"GGUF".to_vec()).u32(version).u64(tensors).u64(metadata).0
    }

    #[test]
    fn reads_every_kind_of_value() {
        let mut file = Gguf::default();
        file.set("u8", Out(vec![0, 0, 0, 0, 200]));
        file.set("i16", Out(vec![3, 0, 0, 0, 0xFE, 0xFF]));
        file.set("f64", Out::default().u32(12).u64(0.5f64.to_bits()));
        file.set("bool", Out(vec![7, 0, 0, 0, 1]));
        file.set("texts", Out::default().u32(9).u32(8).u64(2).text("a").text("é\0"));
        file.set("nested", Out::default().u32(9).u32(9).u64(1).u32(4).u64(2).u32(1).u32(2));
        file.set("u64s", Out::default().u32(9).u32(10).u64(1).u64(7));
        file.tensors.push(("t".into(), 8, vec![32, 2], vec![0; 68]));
        let bytes = file.bytes();
        let header = Header::read(&bytes, "x.gguf").unwrap();
        assert_eq!(header.metadata["u8"], Meta::Unsigned(200));
        assert_eq!(header.metadata["i16"], Meta::Signed(-2));
        assert_eq!(header.metadata["f64"], Meta::F64(0.5));
        assert_eq!(header.metadata["bool"], Meta::Bool(true));
        assert_eq!(header.metadata["texts"], Meta::Texts(vec!["a", "é\0"]));
        assert_eq!(header.metadata["nested"], Meta::Other);
        assert_eq!(header.metadata["u64s"], Meta::Other);
        let info = &header.tensors["t"];
        assert_eq!((info.kind, info.shape.as_slice(), info.bytes.len()), (Kind::Q8_0, &[2, 32][..], 68));
        assert_eq!(info.bytes.end, bytes.len());
    }

    #[test]
    fn refuses_other_files_and_versions() {
        assert!(refused(b"").contains("cut short"));
        assert!(refused(b"PK\x03\x04 a zip file").contains("not a GGUF file"));
        assert!(refused(&front(1, 0, 0)).contains("version 1"));
        assert!(refused(&front(3u32.swap_bytes(), 0, 0)).contains("big-endian"));
    }

    #[test]
    fn nonsense_counts_are_refused_before_anything_is_allocated() {
        assert!(refused(&front(3, u64::MAX, 0)).contains("tensors"));
        assert!(refused(&front(3, 0, 1 << 40)).contains("metadata entries"));
        let mut file = Gguf::default();
        for kind in 0..14 {
            file.set("list", Out::default().u32(9).u32(kind).u64(u64::MAX / 8));
            refused(&file.bytes());
        }
        file.set("list", Out::default().u32(8).u64(u64::MAX));
        assert!(refused(&file.bytes()).contains("room"));
        let deep = (0..9).fold(Out::default().u32(9), |out, _| out.u32(9).u64(1));
        file.set("list", deep.u32(4).u64(0));
        assert!(refused(&file.bytes()).contains("too deep"));
    }

    #[test]
    fn tensors_that_share_bytes_are_refused() {
        let mut file = Gguf::default();
        for name in ["a", "b", "c"] {
            file.tensors.push((name.into(), 0, vec![16], vec![0; 64]));
        }
        let bytes = file.bytes();
        assert!(Header::read(&bytes, "x.gguf").is_ok());
        // The offset of c, the last eight bytes of the front: onto b, half into b, onto a.
        let front = bytes.len() - 3 * 64;
        let at = bytes[..front].windows(8).rposition(|window| window == 128u64.to_le_bytes()).unwrap();
        for (offset, wanted) in [(64u64, "b and c"), (96, "b and c"), (0, "a and c")] {
            let mut bytes = bytes.clone();
            bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
            let said = refused(&bytes);
            assert!(said.contains(&format!("tensors {wanted} lie on top of each other")), "{said}");
        }
    }

    #[test]
    fn other_alignments_and_unread_types_are_followed() {
        let mut file = Gguf::default();
        file.set_u32("general.alignment", 64);
        file.tensors.push(("vision".into(), 10, vec![256], vec![1; 64]));
        file.tensors.push(("t".into(), 0, vec![16], vec![2; 64]));
        let bytes = file.bytes();
        let header = Header::read(&bytes, "x.gguf").unwrap();
        assert_eq!(header.unread["vision"], "Q2_K");
        assert!(bytes[header.tensors["t"].bytes.clone()].iter().all(|byte| *byte == 2));
    }

    #[test]
    fn tensors_must_lie_in_the_file() {
        let with = |kind, dims: &[u64], data: usize| {
            let mut file = Gguf::default();
            file.tensors.push(("t".into(), kind, dims.to_vec(), vec![0; data]));
            refused(&file.bytes())
        };
        assert!(with(0, &[8], 31).contains("cut short: tensor t"));
        assert!(with(0, &[u64::MAX, u64::MAX], 32).contains("cannot be"));
        assert!(with(0, &[0], 32).contains("cannot be"));
        assert!(with(8, &[31, 32], 2000).contains("cannot be"));
        assert!(with(0, &[1; 5], 32).contains("5 dimensions"));
        let mut file = Gguf::default();
        file.set_u32("general.alignment", 0);
        assert!(refused(&file.bytes()).contains("general.alignment"));
    }
}
