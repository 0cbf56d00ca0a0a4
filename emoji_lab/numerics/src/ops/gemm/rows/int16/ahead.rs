//! Memory that is asked for before it is read.

use super::super::x86::{LINE, fetch};

/// Bytes that are fetched in some turns, about as many in each.
pub(super) struct Ahead {
    at: *const u8,
    lines: usize,
    turns: usize,
}

impl Ahead {
    pub(super) fn new(bytes: &[u8], turns: usize) -> Self {
        Self { at: bytes.as_ptr(), lines: bytes.len().div_ceil(LINE), turns }
    }

    /// A turn.
    #[inline]
    pub(super) fn fetch(&mut self) {
        let now = self.lines.div_ceil(self.turns.max(1));
        fetch(self.at, now * LINE);
        self.at = self.at.wrapping_add(now * LINE);
        (self.lines, self.turns) = (self.lines - now, self.turns.saturating_sub(1));
    }
}
