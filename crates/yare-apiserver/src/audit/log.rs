//! The log backend: events as lines in a file that is turned over when it is full, or on standard output.
//!
//! One thread writes; lines that come together are written together.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use flate2::{Compression, write::GzEncoder};
use jiff::{Timestamp, ToSpan as _};

use crate::core::Clock;

/// Where lines go, and when a file is full.
#[derive(Clone, Debug)]
pub struct Target {
    /// A file, or `-`.
    pub path: PathBuf,
    /// Days after which old files are removed; 0: never.
    pub max_age_days: u32,
    /// Old files that are kept; 0: all.
    pub max_backups: usize,
    /// Size at which a file is turned over; 0: never.
    pub max_size_bytes: u64,
    /// Old files are compressed.
    pub compress: bool,
}

/// A file that is written to.
pub struct Writer {
    target: Target,
    clock: Arc<dyn Clock>,
    /// None: standard output.
    file: Option<File>,
    size: u64,
}

/// How the time of turning over stands in a file's name.
const STAMP: &str = "%Y-%m-%dT%H-%M-%S.%3f";

impl Writer {
    /// Opens the file for appending, mode 0600; its directory is made where it is absent.
    pub fn open(target: Target, clock: Arc<dyn Clock>) -> io::Result<Self> {
        if target.path == Path::new("-") {
            return Ok(Self { target, clock, file: None, size: 0 });
        }
        if let Some(parent) = target.path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let file = append(&target.path)?;
        let size = file.metadata()?.len();
        Ok(Self { target, clock, file: Some(file), size })
    }

    /// Writes lines.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            let mut out = io::stdout().lock();
            out.write_all(lines)?;
            return out.flush();
        };
        let limit = self.target.max_size_bytes;
        if limit > 0 && self.size > 0 && self.size + lines.len() as u64 > limit {
            self.turn_over()?;
            return self.append(lines);
        }
        file.write_all(lines)?;
        self.size += lines.len() as u64;
        Ok(())
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(lines)?;
            self.size += lines.len() as u64;
        }
        Ok(())
    }

    fn turn_over(&mut self) -> io::Result<()> {
        let path = &self.target.path;
        let now = self.clock.now();
        let mut old = named(path, now);
        // Full twice within a millisecond: the next one's name.
        let mut later = now;
        while old.exists() {
            later = later.checked_add(1.millisecond()).unwrap_or(later);
            old = named(path, later);
        }
        fs::rename(path, &old)?;
        self.file = Some(append(path)?);
        self.size = 0;
        let target = self.target.clone();
        // Compressing takes seconds; lines do not wait for it.
        std::thread::Builder::new().name("audit-log-old".into()).spawn(move || {
            if let Err(error) = tidy(&target, now) {
                tracing::warn!(path = %target.path.display(), %error, "old audit logs");
            }
        })?;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// `audit.log` → `audit-2026-01-02T03-04-05.678.log`
fn named(path: &Path, at: Timestamp) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{}{extension}", at.strftime(STAMP)))
}

/// Removes old files that are too many or too old, and compresses the rest.
fn tidy(target: &Target, now: Timestamp) -> io::Result<()> {
    let path = &target.path;
    let stem = format!("{}-", path.file_stem().unwrap_or_default().to_string_lossy());
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut old = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let plain = name.strip_suffix(".gz").unwrap_or(&name);
        let stamp = plain.strip_prefix(&stem).and_then(|rest| rest.strip_suffix(&extension));
        let time = stamp.and_then(|s| jiff::civil::DateTime::strptime("%Y-%m-%dT%H-%M-%S%.f", s).ok());
        if let Some(time) = time.and_then(|t| t.to_zoned(jiff::tz::TimeZone::UTC).ok()) {
            old.push((time.timestamp(), entry.path()));
        }
    }
    old.sort_by(|a, b| b.cmp(a));
    let oldest = now
        .checked_sub((i64::from(target.max_age_days) * 24).hours())
        .ok()
        .filter(|_| target.max_age_days > 0);
    for (at, (time, path)) in old.into_iter().enumerate() {
        let too_many = target.max_backups > 0 && at >= target.max_backups;
        if too_many || oldest.is_some_and(|oldest| time < oldest) {
            fs::remove_file(&path)?;
        } else if target.compress && path.extension().is_none_or(|e| e != "gz") {
            compress(&path)?;
        }
    }
    Ok(())
}

fn compress(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    let packed = PathBuf::from(name);
    let out = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&packed)?;
    let mut encoder = GzEncoder::new(out, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    struct Fixed(AtomicI64);

    impl Clock for Fixed {
        fn now(&self) -> Timestamp {
            Timestamp::from_second(self.0.load(Ordering::Relaxed)).unwrap()
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let all = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            all.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_turn_over() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(Fixed(AtomicI64::new(1_767_323_045)));
        let target = Target {
            path: dir.path().join("a/audit.log"),
            max_age_days: 0,
            max_backups: 0,
            max_size_bytes: 10,
            compress: false,
        };
        let mut writer = Writer::open(target.clone(), clock.clone()).unwrap();
        for line in ["one\n", "two\n", "three\n", "four-is-long\n", "five\n"] {
            writer.write(line.as_bytes()).unwrap();
        }
        drop(writer);
        let place = dir.path().join("a");
        assert_eq!(
            names(&place),
            [
                "audit-2026-01-02T03-04-05.000.log",
                "audit-2026-01-02T03-04-05.001.log",
                "audit-2026-01-02T03-04-05.002.log",
                "audit.log",
            ]
        );
        let text = |name: &str| fs::read_to_string(place.join(name)).unwrap();
        assert_eq!(text("audit-2026-01-02T03-04-05.000.log"), "one\ntwo\n");
        assert_eq!(text("audit.log"), "five\n");
        // What is there is gone on with, and old files go.
        let mut writer = Writer::open(target.clone(), clock).unwrap();
        writer.write(b"six\n").unwrap();
        assert_eq!(text("audit.log"), "five\nsix\n");
        let now = Timestamp::from_second(1_767_323_045 + 86_400).unwrap();
        let few = Target { max_backups: 2, compress: true, ..target.clone() };
        tidy(&few, now).unwrap();
        assert_eq!(
            names(&place),
            ["audit-2026-01-02T03-04-05.001.log.gz", "audit-2026-01-02T03-04-05.002.log.gz", "audit.log"]
        );
        let young = Target { max_age_days: 1, ..target };
        tidy(&young, now.checked_add(1.hour()).unwrap()).unwrap();
        assert_eq!(names(&place), ["audit.log"]);
    }
}
