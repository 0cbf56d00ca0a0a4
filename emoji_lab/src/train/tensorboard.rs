//! TensorBoard event files: records of length, checksum and an `Event` message, appended one by one.
//!
//! The record layout is TensorFlow's `TFRecord`; the messages are its `event.proto` and
//! `summary.proto`, of which a scalar needs six fields.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::log::LogEntry;
use crate::error::{Error, Result};
use crate::protobuf::Message;

/// Writes one event file. TensorBoard reads all of a folder's files as one run.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl EventWriter {
    /// Starts an event file in the folder `dir`, which is made if need be.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder or file cannot be made.
    pub fn create(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let fail = |e| Error::io(dir, "making the TensorBoard log", e);
        fs::create_dir_all(dir).map_err(fail)?;
        let (seconds, pid) = (now().as_secs(), std::process::id());
        let name = format!("events.out.tfevents.{seconds:010}.{}.{pid}", host_name());
        // Python counts a process's writers in the last part; here it is what keeps names apart.
        let mut count = 0;
        let (path, file) = loop {
            let path = dir.join(format!("{name}.{count}"));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => break (path, file),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => count += 1,
                Err(e) => return Err(fail(e)),
            }
        };
        let mut writer = Self { path, out: BufWriter::new(file) };
        writer.event(None, |event| event.text(3, "brain.Event:2"))?;
        writer.flush()?;
        Ok(writer)
    }

    /// Starts the event file of a training run whose output goes to `output_dir`, in a folder of
    /// its own under `runs/`, named by time (UTC) and host.
    ///
    /// A run that goes on after `resumed_at` steps writes into the folder of the run before it,
    /// and tells TensorBoard to forget what that one logged at later steps.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder or file cannot be made.
    pub fn for_run(output_dir: impl AsRef<Path>, resumed_at: Option<usize>) -> Result<Self> {
        let output_dir = output_dir.as_ref();
        let runs = output_dir.join("runs");
        let Some(step) = resumed_at else {
            return Self::create(runs.join(format!("{}_{}", time_stamp(now().as_secs()), host_name())));
        };
        let Some(dir) = latest_run(&runs) else { return Self::for_run(output_dir, None) };
        let mut writer = Self::create(&dir)?;
        // SessionLog { status: START }
        writer.event(Some(step + 1), |event| event.message(7, &Message::default().number(1, 1)))?;
        writer.flush()?;
        Ok(writer)
    }

    /// The event file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Logs `value` under `tag` (as `train/loss`) at an optimizer step.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn add_scalar(&mut self, tag: &str, value: f64, step: usize) -> Result<()> {
        let scalar = Message::default().text(1, tag).float(2, value as f32);
        let summary = Message::default().message(1, &scalar);
        self.event(Some(step), |event| event.message(5, &summary))
    }

    /// Logs every number of `entry` under the tags of HF's callback: `eval_loss` as `eval/loss`,
    /// the rest as `train/…`. Flushes, so that a running TensorBoard sees it.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn add_log_entry(&mut self, entry: &LogEntry) -> Result<()> {
        for (name, value) in entry.scalars() {
            let tag = match name.strip_prefix("eval_") {
                Some(rest) => format!("eval/{rest}"),
                None => format!("train/{name}"),
            };
            self.add_scalar(&tag, value, entry.step)?;
        }
        self.flush()
    }

    /// Hands what is buffered to the system.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(|e| self.fail(e))
    }

    /// One `Event`: wall_time (field 1), step (2), and what `what` adds.
    fn event(&mut self, step: Option<usize>, what: impl FnOnce(Message) -> Message) -> Result<()> {
        let event = Message::default().double(1, now().as_secs_f64());
        let event = match step {
            Some(step) => event.number(2, step as u64),
            None => event,
        };
        let event = what(event).0;
        let length = (event.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_crc(&event).to_le_bytes());
        self.out.write_all(&record).map_err(|e| self.fail(e))
    }

    fn fail(&self, source: std::io::Error) -> Error {
        Error::io(&self.path, "writing the TensorBoard log", source)
    }
}

fn now() -> std::time::Duration {
    // A clock before 1970 is the system's fault; the log then starts at 0.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn host_name() -> String {
    let name =
        fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    let name = name.unwrap_or_default();
    let kept: String =
        name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
    if kept.is_empty() { "localhost".into() } else { kept }
}

/// The run folder with the newest event file.
fn latest_run(runs: &Path) -> Option<PathBuf> {
    let newest = |dir: &Path| {
        let names = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_string_lossy().starts_with("events.out.tfevents.")).max()
    };
    let dirs = fs::read_dir(runs).ok()?.flatten().map(|entry| entry.path());
    let dated = dirs.filter_map(|dir| Some((newest(&dir)?, dir)));
    dated.max().map(|(_, dir)| dir)
}

/// `Nov23_19-15-58`, in UTC.
fn time_stamp(seconds: u64) -> String {
    const MONTHS: [(&str, u64); 12] = [
        ("Jan", 31),
        ("Feb", 28),
        ("Mar", 31),
        ("Apr", 30),
        ("May", 31),
        ("Jun", 30),
        ("Jul", 31),
        ("Aug", 31),
        ("Sep", 30),
        ("Oct", 31),
        ("Nov", 30),
        ("Dec", 31),
    ];
    let (mut days, clock) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut name = "Dec";
    for (month, length) in MONTHS {
        let length = length + u64::from(month == "Feb" && leap(year));
        if days < length {
            name = month;
            break;
        }
        days -= length;
    }
    format!("{name}{:02}_{:02}-{:02}-{:02}", days + 1, clock / 3600, clock / 60 % 60, clock % 60)
}

/// CRC-32C, rotated and shifted as TFRecord does, so that a checksum of data that holds checksums
/// stays a good one.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// CRC-32C (Castagnoli), reflected polynomial 0x82F63B78.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_the_standard_one() {
        // The check value of CRC-32C, and RFC 3720's 32 zero bytes.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    }

    #[test]
    fn a_time_stamp_is_a_date() {
        assert_eq!(time_stamp(0), "Jan01_00-00-00");
        assert_eq!(time_stamp(951_782_399), "Feb28_23-59-59");
        assert_eq!(time_stamp(951_782_400), "Feb29_00-00-00");
        assert_eq!(time_stamp(1_795_461_358), "Nov23_19-15-58");
        assert_eq!(time_stamp(1_798_761_599), "Dec31_23-59-59");
    }

    /// The messages of a file, every checksum checked.
    fn records(path: &Path) -> Vec<Vec<u8>> {
        let bytes = fs::read(path).unwrap();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let (mut at, mut found) = (0, Vec::new());
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(word(at + 8), masked_crc(&bytes[at..at + 8]));
            let message = &bytes[at + 12..at + 12 + length];
            assert_eq!(word(at + 12 + length), masked_crc(message));
            found.push(message.to_vec());
            at += 16 + length;
        }
        found
    }

    #[test]
    fn a_file_starts_with_its_version_and_holds_the_scalars() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path().join("a/b")).unwrap();
        writer.add_scalar("train/loss", 0.5, 300).unwrap();
        let entry = LogEntry { eval_loss: Some(1.5), epoch: 2.0, step: 301, ..Default::default() };
        writer.add_log_entry(&entry).unwrap();
        let name = writer.path().file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            name.starts_with("events.out.tfevents.") && name.ends_with(&format!(".{}.0", std::process::id()))
        );

        let records = records(writer.path());
        assert_eq!(records.len(), 4);
        assert_eq!(records[0][9..], *b"\x1a\x0dbrain.Event:2");
        // step 300; summary of 19 bytes, of one value of 17: a tag of 10 and a float.
        assert_eq!(records[1][9..], *b"\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15\x00\x00\x00\x3f");
        assert!(records[2].windows(9).any(|w| w == b"eval/loss"));
        assert!(records[3].windows(11).any(|w| w == b"train/epoch"));
    }

    #[test]
    fn a_resumed_run_goes_on_in_the_same_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = EventWriter::for_run(dir.path(), Some(3)).unwrap();
        let again = EventWriter::for_run(dir.path(), Some(7)).unwrap();
        assert_eq!(first.path().parent(), again.path().parent());
        assert_ne!(first.path(), again.path());
        let records = records(again.path());
        assert_eq!(records.len(), 2);
        assert_eq!(records[1][9..], *b"\x10\x08\x3a\x02\x08\x01");
    }
}
