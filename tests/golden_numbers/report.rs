//! The table: printed row by row, counted at the end.

use std::process::ExitCode;

use emoji_lab::Result;

/// Rows printed so far, by outcome.
pub struct Report {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    pub fn new() -> Self {
        println!("{:<58} {:>12} {:>10}  result", "check", "error", "tolerance");
        Self { passed: 0, failed: 0, skipped: 0 }
    }

    fn row(&mut self, name: &str, measured: &str, tolerance: &str, passed: bool) {
        println!("{name:<58} {measured:>12} {tolerance:>10}  {}", if passed { "ok" } else { "FAILED" });
        if passed { self.passed += 1 } else { self.failed += 1 }
    }

    /// A measured error that must be at most `tolerance`; NaN fails.
    pub fn error(&mut self, name: &str, measured: f64, tolerance: f64) {
        self.row(name, &format!("{measured:.2e}"), &format!("{tolerance:.0e}"), measured <= tolerance);
    }

    /// `wrong` of `all` things differ, where none may; nothing to compare fails too.
    pub fn equal(&mut self, name: &str, wrong: usize, all: usize) {
        self.row(name, &format!("{wrong} of {all}"), "0", wrong == 0 && all > 0);
    }

    pub fn fail(&mut self, name: &str, why: &str) {
        self.row(name, "-", "-", false);
        println!("    {why}");
    }

    pub fn skip(&mut self, name: &str, why: &str) {
        println!("{name:<58} skipped: {why}");
        self.skipped += 1;
    }

    /// Runs one check; an error is a failed row, and the checks after it still run.
    pub fn guard(&mut self, name: &str, check: impl FnOnce(&mut Self) -> Result<()>) {
        if let Err(error) = check(self) {
            self.fail(name, &error.to_string());
        }
    }

    pub fn finish(self) -> ExitCode {
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        // A folder in which there was nothing to check has shown nothing.
        ExitCode::from(u8::from(self.failed > 0 || self.passed == 0))
    }
}
