//! A file whose bytes begin their way to the disk while it is being written. Else a system with much memory keeps
//! gigabytes of them until somebody waits for the disk, and begins only then.

use std::fs::File;
use std::io::{self, Write};

/// Bytes that are sent on their way together.
const PIECE: usize = 8 << 20;

/// A new file, written from its beginning.
pub(super) struct OnItsWay {
    file: File,
    written: u64,
    /// Of these, how many are on their way.
    sent: u64,
}

impl OnItsWay {
    pub(super) fn new(file: File) -> Self {
        Self { file, written: 0, sent: 0 }
    }

    /// Waits until all of it is on the disk.
    pub(super) fn sync(self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Has the disk begin with what was written since the last time.
    fn send(&mut self) {
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::AsRawFd;

            // A wish: what comes of it, `sync` says.
            // SAFETY: the file is open, and this changes nothing of what is in it.
            unsafe {
                let (from, len) = (self.sent as libc::off64_t, (self.written - self.sent) as libc::off64_t);
                libc::sync_file_range(self.file.as_raw_fd(), from, len, libc::SYNC_FILE_RANGE_WRITE);
            }
        }
        self.sent = self.written;
    }
}

impl Write for OnItsWay {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(&bytes[..bytes.len().min(PIECE)])?;
        self.written += count as u64;
        if self.written - self.sent >= PIECE as u64 {
            self.send();
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..2 * PIECE + 12345).map(|i| (i * 7 % 251) as u8).collect();
        let mut file = OnItsWay::new(File::create_new(&path).unwrap());
        let (small, large) = bytes.split_at(4321);
        file.write_all(small).unwrap();
        file.write_all(large).unwrap();
        assert!(file.written == bytes.len() as u64 && file.written - file.sent < PIECE as u64);
        file.sync().unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
}
