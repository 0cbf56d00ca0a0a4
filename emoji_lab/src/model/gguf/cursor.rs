//! Reads the front of a GGUF file piece by piece.

use super::Kind;
use super::header::Meta;

/// ggml's own limit.
const MOST_DIMS: usize = 4;

/// A tensor's name, how it is stored (the error is a name), its shape and its offset.
pub(super) type Entry<'a> = (&'a str, Result<Kind, String>, Vec<usize>, u64);

/// A place in the file, and everything that can stand there. Nothing here allocates by a number from
/// the file that the file's length does not back.
pub(super) struct Cursor<'a> {
    pub(super) file: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8], String> {
        let rest = self.file.get(self.at..).unwrap_or_default();
        let Some(bytes) = rest.get(..length) else {
            return Err(format!(
                "cut short: {what} needs {length} bytes at byte {}, the file has {}",
                self.at,
                self.file.len()
            ));
        };
        self.at += length;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, "a number")?);
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// How many things follow, of at least `least` bytes each.
    pub(super) fn count(&mut self, least: usize, what: &str) -> Result<usize, String> {
        let count = self.u64()?;
        let most = (self.file.len() - self.at) / least;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(format!("says {count} {what}, the file has no room for more than {most}")),
        }
    }

    pub(super) fn text(&mut self, what: &str) -> Result<&'a str, String> {
        let length = self.count(1, "bytes of text")?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| format!("{what} at byte {} is not UTF-8", self.at - length))
    }

    pub(super) fn value(&mut self, key: &str) -> Result<Meta<'a>, String> {
        let kind = self.u32()?;
        self.scalar(kind, key)?.map_or_else(|| self.list(key, 0), Ok)
    }

    /// A value of type `kind`, or `None` if that is the array type.
    pub(super) fn scalar(&mut self, kind: u32, key: &str) -> Result<Option<Meta<'a>>, String> {
        Ok(Some(match kind {
            0 => Meta::Unsigned(u8::from_le_bytes(self.array()?).into()),
            1 => Meta::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Meta::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Meta::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Meta::Unsigned(self.u32()?.into()),
            5 => Meta::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Meta::F32(f32::from_le_bytes(self.array()?)),
            7 => Meta::Bool(self.array::<1>()? != [0]),
            8 => Meta::Text(self.text(key)?),
            9 => return Ok(None),
            10 => Meta::Unsigned(self.u64()?),
            11 => Meta::Signed(i64::from_le_bytes(self.array()?)),
            12 => Meta::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("metadata {key} has the unknown type {other}")),
        }))
    }

    pub(super) fn list(&mut self, key: &str, depth: usize) -> Result<Meta<'a>, String> {
        if depth > 3 {
            return Err(format!("metadata {key} nests arrays too deep"));
        }
        let kind = self.u32()?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            9 => 12,
            _ => 8,
        };
        let count = self.count(least, "array entries")?;
        Ok(match kind {
            8 => Meta::Texts((0..count).map(|_| self.text(key)).collect::<Result<_, _>>()?),
            9 => {
                for _ in 0..count {
                    self.list(key, depth + 1)?;
                }
                Meta::Other
            }
            7 => Meta::Bools(self.take(count, key)?.iter().map(|&b| b != 0).collect()),
            4 => Meta::Signeds(self.words(count, key, |b| u32::from_le_bytes(b).into())?),
            5 => Meta::Signeds(self.words(count, key, |b| i32::from_le_bytes(b).into())?),
            6 => Meta::Floats(self.words(count, key, f32::from_le_bytes)?),
            0..=3 | 10..=12 => {
                // `count` has made sure that the product is no longer than the file.
                self.take(count * least, key)?;
                Meta::Other
            }
            other => return Err(format!("metadata {key} is an array of the unknown type {other}")),
        })
    }

    pub(super) fn words<T>(
        &mut self,
        count: usize,
        key: &str,
        read: impl Fn([u8; 4]) -> T,
    ) -> Result<Vec<T>, String> {
        let bytes = self.take(count * 4, key)?;
        Ok(bytes.chunks_exact(4).map(|b| read([b[0], b[1], b[2], b[3]])).collect())
    }

    pub(super) fn tensor(&mut self) -> Result<Entry<'a>, String> {
        let name = self.text("a tensor's name")?;
        let dims = self.u32()? as usize;
        if dims > MOST_DIMS {
            return Err(format!("tensor {name} has {dims} dimensions, {MOST_DIMS} is the most"));
        }
        let mut shape = Vec::with_capacity(dims);
        for _ in 0..dims {
            let dim = self.u64()?;
            shape.push(usize::try_from(dim).map_err(|_| format!("tensor {name} has a dimension of {dim}"))?);
        }
        shape.reverse();
        let kind = Kind::from_id(self.u32()?);
        Ok((name, kind, shape, self.u64()?))
    }
}
