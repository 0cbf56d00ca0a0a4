//! Progress of transfers as a notebook shows it: few plain lines.

use std::time::{Duration, Instant};

/// Files smaller than this get one line, when they are done.
const SMALL: u64 = 8 << 20;
/// Lines of one file are at least this far apart.
const APART: Duration = Duration::from_secs(1);

/// The progress of one file: at most ten lines.
pub(crate) struct Progress {
    name: String,
    total: u64,
    tenths: u64,
    last: Instant,
}

impl Progress {
    /// Starts with `done` of `total` bytes there already.
    pub fn new(name: &str, total: u64, done: u64) -> Self {
        if done > 0 {
            crate::say!("  {name}: going on from {} of {}", bytes(done), bytes(total));
        }
        Self { name: name.to_string(), total, tenths: tenths(done, total), last: Instant::now() }
    }

    /// `done` bytes are there now.
    pub fn at(&mut self, done: u64) {
        if let Some(line) = self.line(done, self.last.elapsed()) {
            crate::say!("{line}");
            self.last = Instant::now();
        }
    }

    fn line(&mut self, done: u64, since: Duration) -> Option<String> {
        let tenths = tenths(done, self.total);
        if self.total < SMALL || tenths <= self.tenths || tenths >= 10 || since < APART {
            return None;
        }
        self.tenths = tenths;
        Some(format!("  {}: {}0% of {}", self.name, tenths, bytes(self.total)))
    }

    /// The file is whole.
    pub fn done(&self) {
        crate::say!("  {}: {}", self.name, bytes(self.total));
    }
}

fn tenths(done: u64, total: u64) -> u64 {
    (u128::from(done) * 10).checked_div(u128::from(total)).map_or(10, |tenths| tenths as u64)
}

/// A size for people, in decimal units as the Hub shows them.
pub(crate) fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n < 1e3 => format!("{n} B"),
        n if n < 1e6 => format!("{:.1} kB", n / 1e3),
        n if n < 1e9 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.2} GB", n / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_ten_lines_at_most() {
        let total = 536 << 20;
        let mut progress = Progress::new("model.safetensors", total, 0);
        let lines = (0..=1000).filter_map(|i| progress.line(total * i / 1000, APART)).collect::<Vec<_>>();
        assert_eq!(lines.len(), 9);
        assert_eq!(lines[0], "  model.safetensors: 10% of 562.0 MB");
        assert_eq!(progress.line(total, APART), None);
        let mut fast = Progress::new("f", total, 0);
        assert_eq!((0..1000).filter_map(|i| fast.line(total * i / 1000, Duration::ZERO)).count(), 0);
        assert_eq!(Progress::new("empty", 0, 0).line(0, APART), None);
    }

    #[test]
    fn sizes_are_decimal() {
        assert_eq!(
            [bytes(0), bytes(999), bytes(1500), bytes(33_384_568), bytes(2_000_000_000)],
            ["0 B", "999 B", "1.5 kB", "33.4 MB", "2.00 GB"]
        );
    }
}
