//! Checkpoints: the whole visible state in one file, so that a restart need not read the log from the
//! beginning and old segments can go. Written beside the writers from an immutable state, under a temporary
//! name until it is complete and durable. Read back in parallel.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::codec::{
    BadHeader, FILE_HEADER, FRAME_HEADER, FileKind, Frame, FrameWriter, Reader, VERSION, file_header,
    read_file_header,
};
use super::parallel;
use crate::cache::{KindRoot, State};
use crate::disk::{Disk, DiskFile, write_all_at};
use crate::error::OpenError;
use crate::object::{Kind, Object};
use crate::sealer::Restorer;
use crate::tree::Tree;

/// A frame is closed beyond this: large enough to be read fast, small enough to be decoded in parallel.
const FRAME_BYTES: usize = 256 << 10;
/// Synced this often, so that commits beside it never wait for all of a large file to reach the disk.
const SYNC_BYTES: u64 = 4 << 20;

/// Writes `state` to `path`, and returns the file's length. `abort` makes it stop with `Interrupted`.
pub(crate) fn write(disk: &dyn Disk, path: &Path, state: &State, abort: &AtomicBool) -> io::Result<u64> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    let written = write_file(disk, &temporary, state, abort).and_then(|size| {
        disk.rename(&temporary, path)?;
        disk.sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        Ok(size)
    });
    if written.is_err() {
        let _ = disk.remove(&temporary);
    }
    written
}

fn write_file(disk: &dyn Disk, path: &Path, state: &State, abort: &AtomicBool) -> io::Result<u64> {
    let mut file = disk.create(path)?;
    write_all_at(&mut *file, &file_header(FileKind::Checkpoint, state.revision), 0)?;
    let mut out = Output { file, offset: FILE_HEADER as u64, synced: 0 };
    let mut frame = FrameWriter::new();
    let mut total = 0u64;
    for KindRoot { kind, objects, .. } in state.kinds.iter() {
        let mut objects = objects.iter().peekable();
        while objects.peek().is_some() {
            if abort.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            frame.reset(state.revision);
            frame.block(kind.as_bytes());
            while frame.payload_len() < FRAME_BYTES {
                let Some(object) = objects.next() else { break };
                frame.add();
                frame.block(object.key.as_bytes());
                frame.u64(object.created);
                frame.u64(object.revision);
                frame.stored(object.stored());
                total += 1;
            }
            out.write(frame.finish())?;
        }
    }
    frame.reset(state.revision);
    frame.u64(total);
    out.write(frame.finish())?;
    out.file.sync()?;
    Ok(out.offset)
}

struct Output {
    file: Box<dyn DiskFile>,
    offset: u64,
    synced: u64,
}

impl Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        write_all_at(&mut *self.file, bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        if self.offset - self.synced > SYNC_BYTES {
            self.file.sync()?;
            self.synced = self.offset;
        }
        Ok(())
    }
}

/// One frame on its way to be decoded.
struct Chunk {
    offset: u64,
    frame: Frame,
    payload: Vec<u8>,
}

/// Objects of one kind, or (in the last frame) how many there were in all.
enum Decoded {
    Objects(Kind, Vec<Arc<Object>>),
    End(u64),
}

/// Reads a checkpoint back; returns the state and the file's length.
pub(crate) fn load(disk: &dyn Disk, path: &Path, restorer: &Restorer<'_>) -> Result<(State, u64), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let corrupt = |offset: u64, reason: &str| OpenError::Corrupt {
        file: path.to_owned(),
        offset,
        reason: reason.to_owned(),
    };
    let file = disk.open(path).map_err(io)?;
    let size = file.len().map_err(io)?;
    let mut header = vec![0; FILE_HEADER.min(size as usize)];
    file.read_exact_at(&mut header, 0).map_err(io)?;
    let revision = read_file_header(FileKind::Checkpoint, &header).map_err(|bad| match bad {
        BadHeader::Damaged(reason) => corrupt(0, reason),
        BadHeader::Version(version) => OpenError::Version { file: path.to_owned(), version, newest: VERSION },
    })?;

    let mut offset = FILE_HEADER as u64;
    let next_chunk = || -> Result<Chunk, OpenError> {
        let at = offset;
        let mut header = [0; FRAME_HEADER];
        let rest = size - offset;
        if rest < FRAME_HEADER as u64 {
            return Err(corrupt(at, "the file ends before its last record"));
        }
        file.read_exact_at(&mut header, at).map_err(io)?;
        let frame = Frame::read(&header).map_err(|reason| corrupt(at, reason))?;
        if frame.len as u64 > rest - FRAME_HEADER as u64 {
            return Err(corrupt(at, "the file ends within a record"));
        }
        let mut payload = vec![0; frame.len];
        file.read_exact_at(&mut payload, at + FRAME_HEADER as u64).map_err(io)?;
        offset = at + (FRAME_HEADER + frame.len) as u64;
        Ok(Chunk { offset: at, frame, payload })
    };
    let mut next_chunk = Some(next_chunk);
    let chunks = std::iter::from_fn(|| {
        let chunk = next_chunk.as_mut()?();
        if chunk.as_ref().map_or(true, |c| c.frame.count == 0) {
            next_chunk = None;
        }
        Some(chunk)
    });

    let mut kinds = Vec::new();
    let mut current: Option<(Kind, Vec<Arc<Object>>)> = None;
    let mut total = 0u64;
    let decode = |chunk: Chunk| {
        let decoded = chunk.frame.verify(&chunk.payload).and_then(|()| {
            if chunk.frame.revision != revision {
                return Err("a record is of another checkpoint");
            }
            decode(&chunk, restorer).ok_or("a record does not hold what it should")
        });
        decoded.map_err(|reason| corrupt(chunk.offset, reason))
    };
    parallel::in_order(parallel::workers(), chunks, decode, |decoded| {
        match decoded? {
            Decoded::Objects(kind, objects) => {
                total += objects.len() as u64;
                match &mut current {
                    Some((name, all)) if *name == kind => {
                        let kind = name.clone();
                        all.extend(objects.into_iter().map(|object| with_kind(object, &kind)));
                    }
                    _ => kinds.extend(current.replace((kind, objects)).map(kind_root)),
                }
            }
            Decoded::End(expected) if expected == total => {}
            Decoded::End(_) => return Err(corrupt(size, "the number of objects does not match")),
        }
        Ok(())
    })?;
    kinds.extend(current.map(kind_root));
    Ok((State { revision, kinds: Tree::from_sorted(kinds) }, size))
}

/// Lets all objects of a kind share one name.
fn with_kind(object: Arc<Object>, kind: &Kind) -> Arc<Object> {
    match Arc::try_unwrap(object) {
        Ok(object) => Arc::new(Object { kind: kind.clone(), ..object }),
        Err(shared) => shared,
    }
}

fn kind_root((kind, objects): (Kind, Vec<Arc<Object>>)) -> KindRoot {
    let bytes = objects.iter().map(|object| object.bytes.len() as u64).sum();
    KindRoot { kind, objects: Tree::from_sorted(objects), bytes }
}

fn decode(chunk: &Chunk, restorer: &Restorer<'_>) -> Option<Decoded> {
    let mut reader = Reader::new(&chunk.payload);
    if chunk.frame.count == 0 {
        return reader.u64().map(Decoded::End);
    }
    let kind: Kind = reader.text()?.into();
    let mut objects = Vec::with_capacity((chunk.frame.count as usize).min(chunk.payload.len() / 28));
    for _ in 0..chunk.frame.count {
        let key: Box<str> = reader.text()?.into();
        let created = reader.u64()?;
        let revision = reader.u64()?;
        let value = restorer.restore(&kind, &key, revision, reader.stored(revision)?);
        objects.push(Arc::new(Object::new(kind.clone(), key, created, revision, value)));
    }
    reader.is_empty().then_some(Decoded::Objects(kind, objects))
}
