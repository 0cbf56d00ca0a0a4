//! Pieces of a GGUF file as they are written: little-endian, texts with their length.

/// Little-endian bytes, appended.
#[derive(Clone, Default)]
pub(crate) struct Out(pub(crate) Vec<u8>);

impl Out {
    pub(crate) fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub(crate) fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub(crate) fn text(mut self, v: &str) -> Self {
        self = self.u64(v.len() as u64);
        self.0.extend(v.as_bytes());
        self
    }
}
