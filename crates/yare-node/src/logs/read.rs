//! Reading a container's log: from the end, from a time, onwards as it grows, across rotations.
//!
//! In: a CRI log file. Out: chunks of what the container wrote. Following waits for inotify and for the
//! container's end; nothing polls.

use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use nix::sys::inotify::AddWatchFlags;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::watch::Watch;

/// Longest line that is kept together; the runtime splits lines at 16 KiB anyway.
const LINE_MAX_BYTES: u64 = 128 << 10;
/// Block in which the end of a file is searched for lines.
const BLOCK_BYTES: u64 = 64 << 10;
/// Output is handed on in chunks of about this size.
const CHUNK_BYTES: usize = 32 << 10;

/// Which of the container's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Stream {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// What to read.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogOptions {
    pub(crate) follow: bool,
    pub(crate) tail_lines: Option<u64>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) timestamps: bool,
    pub(crate) limit_bytes: Option<u64>,
    pub(crate) stream: Stream,
}

/// Reads `path` into `out` until its end; when following, until `ended` (the container's end) and then to the
/// file's end. Stops when nobody listens.
pub(crate) async fn read(
    path: &Path,
    options: &LogOptions,
    ended: CancellationToken,
    out: mpsc::Sender<Bytes>,
) -> io::Result<()> {
    // The watch comes before the first look, so that nothing written between is missed.
    let watch = match options.follow {
        true => {
            let watch = Watch::new()?;
            let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
            watch.add(path.parent().unwrap_or(path), flags)?;
            Some(watch)
        }
        false => None,
    };
    let mut file = File::open(path).await?;
    let metadata = file.metadata().await?;
    let mut inode = metadata.ino();
    // One look at the end for both: what is written while we read must not lengthen a tail.
    let end = metadata.len();
    let from = match options.tail_lines {
        Some(lines) => tail_offset(&mut file, end, lines).await?,
        None => 0,
    };
    file.seek(SeekFrom::Start(from)).await?;
    let mut reader = BufReader::new(file.take(if options.follow { u64::MAX } else { end - from }));
    let mut writer = Writer { options, out, buffer: BytesMut::new(), sent: 0, at_line_start: true };
    let mut line = Vec::new();
    loop {
        let read = (&mut reader).take(LINE_MAX_BYTES).read_until(b'\n', &mut line).await?;
        if read > 0 {
            let complete = line.ends_with(b"\n") || line.len() as u64 >= LINE_MAX_BYTES;
            if complete || watch.is_none() {
                if !writer.line(&line).await {
                    return Ok(());
                }
                line.clear();
            }
            continue;
        }
        if !writer.flush().await {
            return Ok(());
        }
        let Some(watch) = &watch else { return Ok(()) };
        // At the end of this file. A new one under its name?
        match std::fs::metadata(path) {
            Ok(found) if found.ino() != inode => {
                // What was written to the old one before the runtime let go of it.
                if reader.fill_buf().await?.is_empty() {
                    let file = File::open(path).await?;
                    inode = file.metadata().await?.ino();
                    reader = BufReader::new(file.take(u64::MAX));
                    line.clear();
                }
                continue;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && ended.is_cancelled() => return Ok(()),
            Err(_) => {}
        }
        if ended.is_cancelled() {
            // The container ended before this look, so its last words have been read.
            return Ok(());
        }
        tokio::select! {
            events = watch.next() => { events?; }
            () = ended.cancelled() => {}
            () = writer.out.closed() => return Ok(()),
        }
    }
}

/// Where the last `lines` lines of the first `end` bytes begin.
async fn tail_offset(file: &mut File, end: u64, lines: u64) -> io::Result<u64> {
    if lines == 0 {
        return Ok(end);
    }
    let mut at = end;
    let mut found = 0;
    let mut block = Vec::new();
    while at > 0 {
        let size = at.min(BLOCK_BYTES);
        at -= size;
        file.seek(SeekFrom::Start(at)).await?;
        block.clear();
        (&mut *file).take(size).read_to_end(&mut block).await?;
        for (index, byte) in block.iter().enumerate().rev() {
            let offset = at + index as u64;
            // The newline that ends the last line does not begin another.
            if *byte == b'\n' && offset + 1 != end {
                found += 1;
                if found == lines {
                    return Ok(offset + 1);
                }
            }
        }
    }
    Ok(0)
}

struct Writer<'a> {
    options: &'a LogOptions,
    out: mpsc::Sender<Bytes>,
    buffer: BytesMut,
    sent: u64,
    at_line_start: bool,
}

impl Writer<'_> {
    /// Takes one line of the file; `false` when enough was written or nobody listens.
    async fn line(&mut self, raw: &[u8]) -> bool {
        let Some(entry) = parse(raw) else { return true };
        if self.options.since.is_some_and(|since| entry.time.parse::<Timestamp>().is_ok_and(|at| at < since))
        {
            return true;
        }
        let wanted = match self.options.stream {
            Stream::All => true,
            Stream::Stdout => entry.stream == "stdout",
            Stream::Stderr => entry.stream == "stderr",
        };
        if !wanted {
            return true;
        }
        if self.options.timestamps && self.at_line_start {
            self.buffer.extend_from_slice(entry.time.as_bytes());
            self.buffer.extend_from_slice(b" ");
        }
        self.buffer.extend_from_slice(entry.content);
        if !entry.partial {
            self.buffer.extend_from_slice(b"\n");
        }
        self.at_line_start = !entry.partial;
        let left = self.options.limit_bytes.map(|limit| limit.saturating_sub(self.sent));
        if let Some(left) = left.filter(|left| self.buffer.len() as u64 >= *left) {
            self.buffer.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            self.flush().await;
            return false;
        }
        self.buffer.len() < CHUNK_BYTES || self.flush().await
    }

    async fn flush(&mut self) -> bool {
        if self.buffer.is_empty() {
            return true;
        }
        let chunk = self.buffer.split().freeze();
        self.sent += chunk.len() as u64;
        self.out.send(chunk).await.is_ok()
    }
}

struct Entry<'a> {
    time: &'a str,
    stream: &'a str,
    partial: bool,
    content: &'a [u8],
}

/// `<time> <stream> <P|F> <content>`.
fn parse(raw: &[u8]) -> Option<Entry<'_>> {
    let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
    let mut parts = raw.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = parts.next()?;
    let content = parts.next().unwrap_or_default();
    Some(Entry { time, stream, partial: tags.split(|b| *b == b':').next() == Some(b"P"), content })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[(&str, &str, &str)]) -> String {
        lines
            .iter()
            .enumerate()
            .map(|(i, (stream, tag, text))| {
                format!("2026-01-01T00:00:0{i}.000000000Z {stream} {tag} {text}\n")
            })
            .collect()
    }

    async fn run(path: &Path, options: LogOptions) -> String {
        let (tx, mut rx) = mpsc::channel(16);
        read(path, &options, CancellationToken::new(), tx).await.unwrap();
        let mut all = Vec::new();
        while let Some(chunk) = rx.recv().await {
            all.extend_from_slice(&chunk);
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn options() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(
            &path,
            log(&[
                ("stdout", "F", "one"),
                ("stderr", "F", "two"),
                ("stdout", "P", "thr"),
                ("stdout", "F", "ee"),
                ("stdout", "F", "four"),
            ]),
        )
        .unwrap();
        let o = LogOptions::default;
        for (options, want) in [
            (o(), "one\ntwo\nthree\nfour\n"),
            (LogOptions { tail_lines: Some(1), ..o() }, "four\n"),
            (LogOptions { tail_lines: Some(0), ..o() }, ""),
            (LogOptions { tail_lines: Some(99), ..o() }, "one\ntwo\nthree\nfour\n"),
            (LogOptions { limit_bytes: Some(5), ..o() }, "one\nt"),
            (LogOptions { stream: Stream::Stderr, ..o() }, "two\n"),
            (LogOptions { since: Some("2026-01-01T00:00:04Z".parse().unwrap()), ..o() }, "four\n"),
            (
                LogOptions { timestamps: true, tail_lines: Some(1), ..o() },
                "2026-01-01T00:00:04.000000000Z four\n",
            ),
        ] {
            assert_eq!(run(&path, options.clone()).await, want, "{options:?}");
        }
    }

    #[tokio::test]
    async fn what_is_written_meanwhile_does_not_lengthen_a_tail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        // The reader waits for room in the channel after the first chunk.
        let text = "x".repeat(CHUNK_BYTES);
        let before = log(&[("stdout", "F", &text), ("stdout", "F", &text), ("stdout", "F", "end")]);
        std::fs::write(&path, &before).unwrap();
        for tail_lines in [Some(3), None] {
            let (tx, mut rx) = mpsc::channel(1);
            let task = tokio::spawn({
                let path = path.clone();
                let options = LogOptions { tail_lines, ..LogOptions::default() };
                async move { read(&path, &options, CancellationToken::new(), tx).await }
            });
            let mut got = rx.recv().await.unwrap().to_vec();
            let mut file = std::fs::File::options().append(true).open(&path).unwrap();
            std::io::Write::write_all(&mut file, log(&[("stdout", "F", "late")]).as_bytes()).unwrap();
            while let Some(chunk) = rx.recv().await {
                got.extend_from_slice(&chunk);
            }
            task.await.unwrap().unwrap();
            let lines = got.iter().filter(|b| **b == b'\n').count();
            assert_eq!(lines, 3, "{tail_lines:?}");
            std::fs::write(&path, &before).unwrap();
        }
    }

    #[tokio::test]
    async fn follows_across_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, log(&[("stdout", "F", "one")])).unwrap();
        let (tx, mut rx) = mpsc::channel(16);
        let ended = CancellationToken::new();
        let task = tokio::spawn({
            let (path, ended) = (path.clone(), ended.clone());
            async move { read(&path, &LogOptions { follow: true, ..LogOptions::default() }, ended, tx).await }
        });
        assert_eq!(rx.recv().await.unwrap(), "one\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, log(&[("stdout", "F", "two")])).unwrap();
        assert_eq!(rx.recv().await.unwrap(), "two\n");
        ended.cancel();
        task.await.unwrap().unwrap();
        assert!(rx.recv().await.is_none());
    }
}
