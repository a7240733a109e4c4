//! What a person at the terminal sees while a server starts: one line per component, with its milliseconds.

use std::{
    io::{self, Write as _},
    time::Instant,
};

/// Writes progress lines to standard output.
pub struct Progress {
    start: Instant,
    last: Instant,
}

impl Progress {
    /// Begins to count.
    pub fn new() -> Self {
        let now = Instant::now();
        Self { start: now, last: now }
    }

    /// A component is ready; the time counts from the line before.
    pub fn done(&mut self, component: &str, detail: &str) {
        let now = Instant::now();
        let took_ms = now.duration_since(self.last).as_secs_f64() * 1000.0;
        self.last = now;
        say(&format!("{component:<20} {took_ms:>7.1} ms  {detail}"));
    }

    /// Everything is ready.
    pub fn total(&self, what: &str) {
        say(&format!("{what:<20} {:>7.1} ms", self.start.elapsed().as_secs_f64() * 1000.0));
    }
}

/// Writes a line to standard output. Nobody reading it is no reason to stop.
pub fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Writes an error to standard error.
pub fn complain(error: &str) {
    let _ = writeln!(io::stderr(), "yare: {error}");
}
