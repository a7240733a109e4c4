//! The log's newest segment: appending a frame so that it is either durable or as if it had never been tried.
//! In: finished frames. Out: bytes on disk, or why not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::warn;

use super::codec::{FILE_HEADER, FileKind, file_header};
use crate::disk::{Disk, DiskFile, is_full, write_all_at};
use crate::options::Options;

/// Why an append did not happen.
#[derive(Clone, Debug)]
pub(crate) enum AppendError {
    /// No room; the segment is as it was before.
    Full(String),
    /// The disk cannot be trusted any more: what is on it is unknown until the log is read again.
    Broken(String),
}

/// The name of the segment whose first frame is at `revision`.
pub(crate) fn segment_name(revision: u64) -> String {
    format!("log-{revision:020}")
}

/// The name of the checkpoint that shows `revision`.
pub(crate) fn checkpoint_name(revision: u64) -> String {
    format!("checkpoint-{revision:020}")
}

/// The revision in a file name made by one of the two above.
pub(crate) fn revision_in(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

/// The segment that is written to.
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    file: Box<dyn DiskFile>,
    path: PathBuf,
    /// Where the next frame goes: everything before is durable.
    size: u64,
    /// The file's length; zeros from `size` on.
    room: u64,
    segment_bytes: u64,
    ahead_bytes: usize,
    /// Set when a failure left the disk in an unknown state.
    broken: Option<String>,
}

impl Log {
    /// Continues an existing segment, of which the first `size` bytes are intact and the rest are zeros.
    pub fn resume(options: &Options, path: PathBuf, size: u64) -> std::io::Result<Self> {
        let file = options.disk.open(&path)?;
        let room = file.len()?;
        Ok(Self::with(options, file, path, size, room))
    }

    /// Starts a segment whose first frame will be at `revision`.
    pub fn create(options: &Options, revision: u64) -> std::io::Result<Self> {
        let path = options.dir.join(segment_name(revision));
        let file = new_segment(&*options.disk, &options.dir, &path, revision)?;
        let size = FILE_HEADER as u64;
        Ok(Self::with(options, file, path, size, size))
    }

    fn with(options: &Options, file: Box<dyn DiskFile>, path: PathBuf, size: u64, room: u64) -> Self {
        let Options { disk, dir, segment_bytes, ahead_bytes, .. } = options;
        Log {
            disk: disk.clone(),
            dir: dir.clone(),
            file,
            path,
            size,
            room,
            segment_bytes: *segment_bytes,
            ahead_bytes: *ahead_bytes,
            broken: None,
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Why the log takes no more, if it does not.
    pub fn broken(&self) -> Option<&String> {
        self.broken.as_ref()
    }

    /// Whether the segment holds no frame yet.
    pub fn is_fresh(&self) -> bool {
        self.size <= FILE_HEADER as u64
    }

    /// Appends a frame that starts at `revision` and makes it durable.
    pub fn append(&mut self, frame: &[u8], revision: u64) -> Result<(), AppendError> {
        if let Some(broken) = &self.broken {
            return Err(AppendError::Broken(broken.clone()));
        }
        if !self.is_fresh() && self.size + frame.len() as u64 > self.segment_bytes {
            self.roll(revision)?;
        }
        let end = self.size + frame.len() as u64;
        let mut written = if end > self.room {
            self.write(&[frame, &vec![0; self.ahead_bytes]].concat())
        } else {
            self.write(frame)
        };
        if matches!(written, Err(AppendError::Full(_))) && end > self.room {
            // Room ahead is a luxury: what is left of the disk is for frames.
            written = self.write(frame);
        }
        written?;
        // After a failed sync the kernel may have dropped the pages: a second sync that succeeds proves nothing.
        if let Err(error) = self.file.sync() {
            return Err(self.give_up(format!("{}: sync: {error}", self.path.display())));
        }
        self.size = end;
        Ok(())
    }

    /// Writes behind the last frame, or leaves the file as if that had not been tried.
    fn write(&mut self, bytes: &[u8]) -> Result<(), AppendError> {
        let Err(error) = write_all_at(&mut *self.file, bytes, self.size) else {
            self.room = self.room.max(self.size + bytes.len() as u64);
            return Ok(());
        };
        let why = format!("{}: {error}", self.path.display());
        if !is_full(&error) {
            return Err(self.give_up(why));
        }
        // What was written of a frame must not be found by a later reader behind a later, shorter frame.
        match self.file.set_len(self.size).and_then(|()| self.file.sync()) {
            Ok(()) => {
                self.room = self.size;
                Err(AppendError::Full(why))
            }
            Err(error) => Err(self.give_up(format!("{}: {error}", self.path.display()))),
        }
    }

    /// Goes on in a new segment whose first frame will be at `revision`. On failure the old one stays.
    pub fn roll(&mut self, revision: u64) -> Result<(), AppendError> {
        let path = self.dir.join(segment_name(revision));
        match new_segment(&*self.disk, &self.dir, &path, revision) {
            Ok(file) => {
                self.file = file;
                self.path = path;
                self.size = FILE_HEADER as u64;
                self.room = self.size;
                Ok(())
            }
            Err(error) => {
                let why = format!("{}: {error}", path.display());
                if !is_full(&error) {
                    return Err(self.give_up(why));
                }
                // Best effort: what stays is a segment without frames, which the next start ignores.
                let removed = self.disk.remove(&path).and_then(|()| self.disk.sync_dir(&self.dir));
                if let Err(error) = removed {
                    warn!("{}: {error}; the empty segment is removed at the next start", path.display());
                }
                Err(AppendError::Full(why))
            }
        }
    }

    fn give_up(&mut self, why: String) -> AppendError {
        self.broken = Some(why.clone());
        AppendError::Broken(why)
    }
}

/// Creates a segment and makes it and its name durable before anything relies on it.
fn new_segment(
    disk: &dyn Disk,
    dir: &Path,
    path: &Path,
    revision: u64,
) -> std::io::Result<Box<dyn DiskFile>> {
    let mut file = disk.create(path)?;
    write_all_at(&mut *file, &file_header(FileKind::Log, revision), 0)?;
    file.sync()?;
    disk.sync_dir(dir)?;
    Ok(file)
}
