//! Memory for weights, in large pages where the system gives them.
//!
//! A page of 4 KB costs a fault when it is first written, and an entry of the processor's page table whenever
//! weights are read: a model of a gigabyte has 260 000. Linux gives pages of 2 MB to whom asks for them.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// From this size on it is asked for.
const LARGE: usize = 4 << 20;

/// Bytes in memory of their own.
#[derive(Debug)]
pub struct Memory(MmapMut);

impl Memory {
    /// Zeros.
    pub fn zeroed(len: usize) -> std::io::Result<Self> {
        let map = MmapMut::map_anon(len)?;
        #[cfg(target_os = "linux")]
        if len >= LARGE {
            // A wish: what comes of it is not needed.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self(map))
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// `len` zeros.
pub fn zeros(len: usize) -> Vec<f32> {
    let zeros = vec![0.0; len];
    in_large_pages(&zeros);
    zeros
}

/// Room for `len` values, of which there are none yet.
#[cfg(any(feature = "cuda", test))]
pub fn room(len: usize) -> Vec<f32> {
    let room = Vec::with_capacity(len);
    in_large_pages(&room);
    room
}

/// Asks for large pages for what `values` has room for.
fn in_large_pages(values: &Vec<f32>) {
    #[cfg(target_os = "linux")]
    if values.capacity() * size_of::<f32>() >= LARGE {
        const PAGE: usize = 1 << 16;
        let start = values.as_ptr().addr().next_multiple_of(PAGE);
        let end = (values.as_ptr().addr() + values.capacity() * size_of::<f32>()) / PAGE * PAGE;
        // SAFETY: a wish about pages inside of the vector, which changes nothing of what is in them.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = values;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_are_zeros() {
        for len in [0, 5, LARGE + 12345] {
            let mut memory = Memory::zeroed(len).unwrap();
            assert!(memory.len() == len && memory.iter().all(|byte| *byte == 0));
            memory.fill(3);
            assert!(zeros(len).iter().all(|value| *value == 0.0));
            let mut room = room(len);
            room.resize(len, 1.0);
            assert!(room.iter().all(|value| *value == 1.0));
        }
    }
}
