//! Log files in CRI's format: `2026-01-02T03:04:05.123456789Z stdout F line`.
//!
//! A line longer than [`MAX_LINE`] is cut: its pieces are tagged `P`, the last one `F`. Output without a newline
//! waits for one, or for the stream's end, where it is tagged `P`: readers must not add a newline to it. A log that
//! cannot be written (full disk) loses whole lines, and never stops the container.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The longest content of one log line, bytes.
pub(super) const MAX_LINE: usize = 16 * 1024;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A container's log.
pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
    /// Bytes of whole lines in the file.
    length: u64,
    /// Unfinished lines of both streams.
    rest: [Vec<u8>; 2],
    out: Vec<u8>,
}

impl Log {
    /// Opens (appends to) the log. An empty path means none.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut log = Self {
            path: path.to_path_buf(),
            file: None,
            length: 0,
            rest: [Vec::new(), Vec::new()],
            out: Vec::new(),
        };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file anew, after a rotation moved it away.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(&self.path)?;
        self.length = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Takes what a stream gave.
    pub(super) fn write(&mut self, stream: Stream, data: &[u8], now_ns: i64) {
        if self.file.is_none() {
            return;
        }
        let stamp = timestamp(now_ns);
        let rest = &mut self.rest[stream as usize];
        let mut data = data;
        while let Some(end) = data.iter().position(|b| *b == b'\n') {
            let (line, tail) = data.split_at(end);
            data = &tail[1..];
            if rest.is_empty() {
                emit(&mut self.out, &stamp, stream, line, true);
            } else {
                rest.extend_from_slice(line);
                emit(&mut self.out, &stamp, stream, rest, true);
                rest.clear();
            }
        }
        rest.extend_from_slice(data);
        let whole = rest.len() / MAX_LINE * MAX_LINE;
        if whole > 0 {
            emit(&mut self.out, &stamp, stream, &rest[..whole], false);
            rest.drain(..whole);
        }
        self.flush();
    }

    /// The stream ended: what is left is a line without an end.
    pub(super) fn finish(&mut self, stream: Stream, now_ns: i64) {
        let rest = std::mem::take(&mut self.rest[stream as usize]);
        if !rest.is_empty() && self.file.is_some() {
            emit(&mut self.out, &timestamp(now_ns), stream, &rest, false);
            self.flush();
        }
    }

    fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            match file.write_all(&self.out) {
                Ok(()) => self.length += self.out.len() as u64,
                // A full disk must not stop the container, and half a line must not spoil the next one.
                Err(_) => self.length += keep_whole_lines(file, self.length, &self.out),
            }
        }
        self.out.clear();
        // A burst must not keep its memory for ever.
        self.out.shrink_to(64 * 1024);
    }
}

/// Of `out`, which did not fit behind `length` bytes, only whole lines stay. Answers how many bytes that are.
fn keep_whole_lines(file: &File, length: u64, out: &[u8]) -> u64 {
    let written = file.metadata().map_or(0, |meta| meta.len().saturating_sub(length));
    let written = usize::try_from(written).unwrap_or(0).min(out.len());
    let whole = out[..written].iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1) as u64;
    // Giving back needs no room. Somebody else may have cut the file, which then stays as it is.
    if length + whole <= file.metadata().map_or(0, |meta| meta.len()) {
        let _ = file.set_len(length + whole);
    }
    whole
}

/// Appends one line, cut into pieces where it is too long; `end` says whether its last piece ends it.
fn emit(out: &mut Vec<u8>, stamp: &str, stream: Stream, line: &[u8], end: bool) {
    let mut piece = |text: &[u8], tag: &str| {
        out.extend_from_slice(stamp.as_bytes());
        out.push(b' ');
        out.extend_from_slice(stream.name().as_bytes());
        out.push(b' ');
        out.extend_from_slice(tag.as_bytes());
        out.push(b' ');
        out.extend_from_slice(text);
        out.push(b'\n');
    };
    let mut line = line;
    while line.len() > MAX_LINE {
        let (head, tail) = line.split_at(MAX_LINE);
        piece(head, "P");
        line = tail;
    }
    piece(line, if end { "F" } else { "P" });
}

/// RFC 3339 with nanoseconds, UTC.
fn timestamp(ns: i64) -> String {
    let (seconds, nanos) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days since 1970, by eras of 400 years that start on 1 March.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(951_827_696_000_000_007), "2000-02-29T12:34:56.000000007Z");
        assert_eq!(timestamp(1_795_230_000_123_456_789), "2026-11-21T03:00:00.123456789Z");
    }

    #[test]
    fn lines_are_joined_and_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/0.log");
        let mut log = Log::open(&path).unwrap();
        log.write(Stream::Stdout, b"one\ntw", 0);
        log.write(Stream::Stderr, b"err\n", 0);
        log.write(Stream::Stdout, b"o\n\n", 0);
        log.write(Stream::Stdout, &vec![b'x'; MAX_LINE + 5], 0);
        log.write(Stream::Stdout, b"y\nend", 0);
        log.finish(Stream::Stdout, 0);
        log.finish(Stream::Stderr, 0);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> =
            text.lines().map(|l| l.strip_prefix("1970-01-01T00:00:00.000000000Z ").unwrap()).collect();
        let long = format!("stdout P {}", "x".repeat(MAX_LINE));
        assert_eq!(
            lines,
            [
                "stdout F one",
                "stderr F err",
                "stdout F two",
                "stdout F ",
                &long,
                "stdout F xxxxxy",
                "stdout P end"
            ]
        );
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        log.reopen().unwrap();
        log.write(Stream::Stdout, b"new\n", 0);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("stdout F new\n"));
    }
}
