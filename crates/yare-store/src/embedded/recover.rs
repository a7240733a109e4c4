//! From what is on disk to a visible state: the newest checkpoint, then the log behind it. In: a directory
//! that may have been left at any moment. Out: a cache and the segment to go on in; or a refusal that names
//! file and offset. Nothing is changed on disk before everything has been read and found sound, except that
//! files which a crash left over are removed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};

use super::codec::{
    BadHeader, FILE_HEADER, FRAME_HEADER, FileKind, Frame, Reader, VERSION, find_frame, read_file_header,
};
use super::log::{Log, revision_in};
use super::{checkpoint, parallel};
use crate::cache::{Cache, State};
use crate::disk::Disk;
use crate::error::OpenError;
use crate::object::{Indexer, Kind};
use crate::options::Options;
use crate::sealer::{Restorer, Value};

/// Frames are decoded in jobs of about this size.
const JOB_BYTES: usize = 512 << 10;

/// What a restart found.
pub(crate) struct Recovered {
    pub cache: Arc<Cache>,
    pub log: Log,
    /// Bytes of log behind the checkpoint.
    pub log_bytes: u64,
    /// Length of the checkpoint; 0 when there is none.
    pub checkpoint_bytes: u64,
}

/// Reads everything. The caller holds the lock.
pub(crate) fn recover(options: &Options, indexer: &dyn Indexer) -> Result<Recovered, OpenError> {
    let disk = &*options.disk;
    let dir = &options.dir;
    let restorer = Restorer { indexer, sealer: &*options.sealer };
    let names = disk.list(dir).map_err(|source| OpenError::Io { path: dir.clone(), source })?;
    for name in names.iter().filter(|name| name.ends_with(".tmp")) {
        remove(disk, &dir.join(name))?;
    }

    let mut checkpoints = by_revision(&names, "checkpoint-");
    let newest = checkpoints.pop();
    let (state, checkpoint_bytes) = match &newest {
        Some((_, name)) => checkpoint::load(disk, &dir.join(name), &restorer)?,
        None => (State { revision: 1, ..State::default() }, 0),
    };
    let loaded = state.revision;
    if let Some((revision, name)) = &newest
        && *revision != loaded
    {
        return Err(corrupt(&dir.join(name), 0, format!("it shows revision {loaded}, not that of its name")));
    }
    let cache = Arc::new(Cache::new(state, options.history, options.clock.clone()));

    let mut segments = Vec::new();
    for (first, name) in by_revision(&names, "log-") {
        segments.push(Segment::open(disk, dir.join(name), first)?);
    }
    // A segment without frames was being created when the process ended; it also must not make the one
    // before it look complete.
    let (segments, empty): (Vec<_>, Vec<_>) = segments.into_iter().partition(|s| s.len > FILE_HEADER as u64);
    for segment in &empty {
        if let Err(BadHeader::Version(version)) = read_file_header(FileKind::Log, &segment.read(disk)?) {
            return Err(OpenError::Version { file: segment.path.clone(), version, newest: VERSION });
        }
    }
    // Everything before the last segment that starts at or before the checkpoint's end is in the checkpoint.
    let needed = segments.iter().rposition(|s| s.first <= loaded + 1).unwrap_or(0);

    let mut tail = None;
    let mut stale = None;
    let mut locked = HashSet::new();
    let mut log_bytes = 0;
    for (i, segment) in segments.iter().enumerate().skip(needed) {
        let last = i + 1 == segments.len();
        let bytes = segment.read(disk)?;
        let (end, next) = replay(segment, &bytes, last, &cache, &restorer, &mut locked)?;
        log_bytes += end as u64;
        if next == cache.revision() + 1 {
            tail = Some((segment, end as u64, bytes[end..].iter().any(|b| *b != 0)));
        } else {
            // Of the segments that a checkpoint replaced, a crash during their removal left an early one.
            stale = Some(segment.path.clone());
        }
    }

    // A past that cannot be shown is as good as compacted.
    for kind in &locked {
        cache.forget(kind);
    }
    let now = cache.all(crate::Object::is_locked);
    if !now.is_empty() {
        warn!(
            objects = now.len(),
            "some objects cannot be decrypted; they are tried again when that may help"
        );
        cache.set_locked();
    }

    // What is removed next must not outlive, in a crash, the names that replace it.
    disk.sync_dir(dir).map_err(|source| OpenError::Io { path: dir.clone(), source })?;
    let leftovers = checkpoints.iter().map(|(_, name)| dir.join(name));
    let old = segments.iter().take(needed).chain(&empty).map(|s| s.path.clone()).chain(stale);
    for path in leftovers.chain(old) {
        remove(disk, &path)?;
    }
    let log = match tail {
        Some((segment, end, torn)) => {
            settle(disk, segment, end, torn)?;
            Log::resume(options, segment.path.clone(), end)
                .map_err(|source| OpenError::Io { path: segment.path.clone(), source })?
        }
        None => Log::create(options, cache.revision() + 1)
            .map_err(|source| OpenError::Io { path: dir.clone(), source })?,
    };
    info!(dir = %dir.display(), revision = cache.revision(), checkpoint = loaded, log_bytes, "store opened");
    Ok(Recovered { cache, log, log_bytes, checkpoint_bytes })
}

/// The names that are `prefix` and a revision, in order of revision.
fn by_revision(names: &[String], prefix: &str) -> Vec<(u64, String)> {
    let mut found: Vec<_> =
        names.iter().filter_map(|name| revision_in(name, prefix).map(|r| (r, name.clone()))).collect();
    found.sort_unstable();
    found
}

fn corrupt(file: &Path, offset: u64, reason: impl Into<String>) -> OpenError {
    OpenError::Corrupt { file: file.to_owned(), offset, reason: reason.into() }
}

fn remove(disk: &dyn Disk, path: &Path) -> Result<(), OpenError> {
    disk.remove(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })
}

/// Removes what a crash left of the last frame (it was never acknowledged), and makes the rest durable: the
/// process may have been killed between a write and its sync, and what is visible must survive.
fn settle(disk: &dyn Disk, segment: &Segment, end: u64, torn: bool) -> Result<(), OpenError> {
    if torn {
        warn!("{}: cutting {} bytes of an unfinished write", segment.path.display(), segment.len - end);
    }
    let settled = disk.open(&segment.path).and_then(|mut file| {
        if torn {
            file.set_len(end)?;
        }
        file.sync()
    });
    settled.map_err(|source| OpenError::Io { path: segment.path.clone(), source })
}

struct Segment {
    path: PathBuf,
    first: u64,
    len: u64,
}

impl Segment {
    fn open(disk: &dyn Disk, path: PathBuf, first: u64) -> Result<Segment, OpenError> {
        match disk.open(&path).and_then(|file| file.len()) {
            Ok(len) => Ok(Segment { path, first, len }),
            Err(source) => Err(OpenError::Io { path, source }),
        }
    }

    fn read(&self, disk: &dyn Disk) -> Result<Vec<u8>, OpenError> {
        let mut bytes = vec![0; self.len as usize];
        let read = disk.open(&self.path).and_then(|file| file.read_exact_at(&mut bytes, 0));
        match read {
            Ok(()) => Ok(bytes),
            Err(source) => Err(OpenError::Io { path: self.path.clone(), source }),
        }
    }
}

/// Applies a segment; returns where its intact frames end (only zeros follow, unless it is the last) and the
/// revision that would follow them.
fn replay(
    segment: &Segment,
    bytes: &[u8],
    last: bool,
    cache: &Arc<Cache>,
    restorer: &Restorer<'_>,
    locked: &mut HashSet<Kind>,
) -> Result<(usize, u64), OpenError> {
    let path = &segment.path;
    match read_file_header(FileKind::Log, bytes) {
        Ok(first) if first == segment.first => {}
        Ok(first) => return Err(corrupt(path, 0, format!("it starts at revision {first}, not as named"))),
        Err(BadHeader::Damaged(reason)) => return Err(corrupt(path, 0, reason)),
        Err(BadHeader::Version(version)) => {
            return Err(OpenError::Version { file: path.clone(), version, newest: VERSION });
        }
    }
    if segment.first > cache.revision() + 1 {
        let (from, to) = (cache.revision() + 1, segment.first - 1);
        return Err(corrupt(path, 0, format!("the segment before it is missing (revisions {from} to {to})")));
    }

    // First the outline, on one thread: checksums, order, and where the intact part ends.
    let mut frames = Vec::new();
    let mut at = FILE_HEADER;
    let mut next = segment.first;
    let mut broken = None;
    // Behind the last frame there may be zeros, to be written over.
    let written = bytes.len() - bytes.iter().rev().take_while(|b| **b == 0).count();
    while at < written {
        match Frame::read_whole(&bytes[at..]) {
            Ok(frame) if frame.revision != next => {
                let reason = format!("revision {next} should be here, not {}", frame.revision);
                return Err(corrupt(path, at as u64, reason));
            }
            Ok(frame) => {
                frames.push((at, frame));
                at += FRAME_HEADER + frame.len;
                next += u64::from(frame.count);
            }
            Err(reason) => {
                broken = Some(reason);
                break;
            }
        }
    }
    if let Some(reason) = broken {
        if !last {
            return Err(corrupt(path, at as u64, reason));
        }
        // A frame is only written when the one before it is durable: an intact one further on proves that
        // this one was, too, and has been damaged since.
        if let Some(later) = find_frame(&bytes[at + 1..], next.saturating_sub(1)) {
            let later = at + 1 + later;
            return Err(corrupt(
                path,
                at as u64,
                format!("{reason}, yet an intact record follows at {later}"),
            ));
        }
    }

    let visible = cache.revision();
    let needed = frames.into_iter().filter(|(_, f)| f.revision + u64::from(f.count) > visible + 1);
    let mut jobs: Vec<Vec<(usize, Frame)>> = Vec::new();
    let mut job_bytes = JOB_BYTES;
    for (at, frame) in needed {
        if job_bytes >= JOB_BYTES {
            jobs.push(Vec::new());
            job_bytes = 0;
        }
        job_bytes += frame.len;
        if let Some(job) = jobs.last_mut() {
            job.push((at, frame));
        }
    }
    let workers = parallel::workers().min(jobs.len()).max(1);
    let decode = |job: Vec<(usize, Frame)>| {
        let mut changes = Vec::new();
        for (at, frame) in job {
            let payload = &bytes[at + FRAME_HEADER..at + FRAME_HEADER + frame.len];
            decode_frame(frame, payload, restorer, &mut changes)
                .ok_or_else(|| corrupt(path, at as u64, "a record does not hold what it should"))?;
        }
        Ok(changes)
    };
    parallel::in_order(workers, jobs.into_iter().map(Ok), decode, |changes: Result<Vec<Change>, _>| {
        let mut batch = cache.begin();
        for Change { revision, kind, key, put } in changes? {
            if revision <= visible {
                continue;
            }
            match put {
                Some(value) => {
                    if value.bytes.is_empty() {
                        locked.insert(kind.clone());
                    }
                    batch.put(revision, &kind, key, value);
                }
                None if batch.delete(revision, &kind, &key).is_some() => {}
                None => {
                    let reason = format!("revision {revision} deletes {kind} {key:?}, which is not there");
                    return Err(corrupt(path, 0, reason));
                }
            }
        }
        cache.tell(cache.publish(batch));
        Ok(())
    })?;
    Ok((at, next))
}

/// One write from the log.
struct Change {
    revision: u64,
    kind: Kind,
    key: Box<str>,
    put: Option<Value>,
}

/// Marks a write in a log record.
pub(super) const PUT: u8 = 1;
/// Marks a deletion in a log record.
pub(super) const DELETE: u8 = 2;

fn decode_frame(frame: Frame, payload: &[u8], restorer: &Restorer<'_>, out: &mut Vec<Change>) -> Option<()> {
    let mut reader = Reader::new(payload);
    for revision in (frame.revision..).take(frame.count as usize) {
        for _ in 0..reader.u32()? {
            let op = reader.u8()?;
            let name = reader.text()?;
            let kind = match out.last() {
                Some(change) if *change.kind == *name => change.kind.clone(),
                _ => name.into(),
            };
            let key: Box<str> = reader.text()?.into();
            let put = match op {
                PUT => Some(restorer.restore(&kind, &key, revision, reader.stored(revision)?)),
                DELETE => None,
                _ => return None,
            };
            out.push(Change { revision, kind, key, put });
        }
    }
    reader.is_empty().then_some(())
}
