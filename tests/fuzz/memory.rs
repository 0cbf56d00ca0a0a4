//! Counts what a reader allocates: a small multiple of its file is fair, more is a way to kill it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What a reader may take whatever its file: tables, thread pools, a model's tokenizer.
const BASE: usize = 48 << 20;
/// Bytes per byte of the file. A JSON value takes 32 bytes and can be written in 2, and a growing list
/// is there twice for a moment.
const PER_BYTE: usize = 96;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with a count of the bytes that are in use.
pub struct Counted;

fn grown(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came; only counters are added.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as this function was called.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as this function was called.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grown(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as this function was called.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as this function was called.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `target` on `bytes`, and panics if it had more in use at one time than the file justifies.
pub fn within_bounds(bytes: &[u8], target: fn(&[u8])) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    target(bytes);
    let used = PEAK.load(Relaxed).saturating_sub(before);
    let bound = BASE + PER_BYTE * bytes.len();
    assert!(used <= bound, "{} bytes made it use {used}, more than {bound}", bytes.len());
}
