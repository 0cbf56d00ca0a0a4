//! Another program that does the same work: a child process that answers lines of JSON.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use emoji_lab::prelude::*;
use serde_json::Value;

/// A running peer.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `program` and waits until it is ready; `None`, and a line that says why, if it cannot be had.
    pub(crate) fn start(name: &'static str, program: &str, arguments: &[&str]) -> Option<Self> {
        let skipped = |why: String| {
            say!("{name}: skipped: {why}");
            None
        };
        if !std::path::Path::new(arguments[0]).is_file() {
            return skipped(format!("no {}", arguments[0]));
        }
        let spawned =
            Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => return skipped(format!("{program} does not start: {error}")),
        };
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return skipped("it has no input or output".to_string());
        };
        let mut peer = Self { name, child, to, from: BufReader::new(from) };
        match peer.line() {
            Some(said) if said["ready"] == true => Some(peer),
            _ => skipped(format!("{} does not run; is it installed?", arguments[0])),
        }
    }

    /// The next line that is JSON.
    fn line(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            if self.from.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Ok(said) = serde_json::from_str(&line) {
                return Some(said);
            }
        }
    }

    pub(crate) fn ask(&mut self, asked: &Value) -> Result<Value> {
        let gone = |_| Error::training(format!("{} went away", self.name), "Run it by itself to see why");
        writeln!(self.to, "{asked}").and_then(|()| self.to.flush()).map_err(gone)?;
        self.line()
            .ok_or_else(|| Error::training(format!("{} went away", self.name), "Run it by itself to see why"))
    }

    /// Seconds to the first of `tokens` greedy tokens after `prompt`, and to the last.
    pub(crate) fn generate(&mut self, prompt: &[u32], tokens: usize) -> Result<(f64, f64)> {
        let asked = serde_json::json!({"do": "generate", "prompt": prompt, "tokens": tokens});
        let said = self.ask(&asked)?;
        let seconds = |key: &str| said[key].as_f64().unwrap_or(f64::NAN);
        Ok((seconds("first"), seconds("seconds")))
    }

    /// Seconds in which it loads its model anew.
    pub(crate) fn load(&mut self) -> Result<f64> {
        Ok(self.ask(&serde_json::json!({"do": "load"}))?["seconds"].as_f64().unwrap_or(f64::NAN))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Its input ends; who does not end by that is ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
