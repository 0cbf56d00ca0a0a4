//! Memory that is asked for before it is read.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Bytes of a cache line.
const LINE: usize = 64;

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
        for line in 0..now {
            // SAFETY: a hint, which may point anywhere (and newer compilers know that it is safe).
            #[allow(unused_unsafe)]
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(self.at.wrapping_add(line * LINE).cast())
            };
        }
        self.at = self.at.wrapping_add(now * LINE);
        (self.lines, self.turns) = (self.lines - now, self.turns.saturating_sub(1));
    }
}
