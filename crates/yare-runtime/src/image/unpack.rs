//! Layers: a tar stream, perhaps compressed, becomes a directory that overlayfs uses as a lower one.
//!
//! A layer is unpacked in a thread with a mount namespace and a root directory of its own. So links in an image, hard
//! or symbolic, mean what they mean in the whole image; no path can lead outside; and no mount is left behind,
//! whatever happens to the thread. While that thread writes, with the help of one more, others decompress and hash.
//!
//! Most layers say all that they need, and are unpacked before those below them are there ([`prepare`]), several at a
//! time; one that does not is unpacked onto an overlay of those below when its turn comes ([`settle`]).
//!
//! [`prepare`]: ImageStore::prepare_layer
//! [`settle`]: ImageStore::settle_layer

mod entries;
mod files;

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use sha2::{Digest, Sha256};

use super::{ImageStore, named};
use crate::error::{IoContext, Result, RuntimeError};
use crate::sys;
use entries::{Contents, Ground, Stopped};

/// What is decompressed at once, and how far that may be ahead of what is written.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS_AHEAD: usize = 16;
/// Behind an archive's end there may be so much more, which is hashed and thrown away.
const BEHIND_BYTES_MAX: u64 = 64 << 20;
/// Of a disk so much is left, or a sixteenth of a small one: a layer that would take it is refused before it can.
const ROOM_BYTES_MIN: u64 = 64 << 20;

/// A layer that is unpacked but not in its place.
pub(super) struct Prepared {
    staging: Staging,
    /// None: it needs what is below it.
    contents: Option<Contents>,
}

/// A directory in which a layer is made; gone when dropped.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Hashes what passes.
pub(super) struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// Reads the rest and answers the digest of everything.
    pub(super) fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(named(self.hash))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        Ok(n)
    }
}

/// Undoes gzip or zstd, told by the first bytes.
pub(super) fn decompress<'a>(reader: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut reader = reader;
    let mut magic = [0; 4];
    let mut have = 0;
    while have < magic.len() {
        match reader.read(&mut magic[have..])? {
            0 => break,
            n => have += n,
        }
    }
    let whole = io::Cursor::new(magic[..have].to_vec()).chain(reader);
    Ok(match magic {
        [0x1f, 0x8b, ..] => {
            Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(128 * 1024, whole)))
        }
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let decoder =
                ruzstd::decoding::StreamingDecoder::new(BufReader::with_capacity(128 * 1024, whole));
            Box::new(decoder.map_err(io::Error::other)?)
        }
        _ => Box::new(whole),
    })
}

/// Chunks from one thread as a stream for another.
struct Chunks {
    from: Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Chunks {
    fn new(from: Receiver<io::Result<Bytes>>) -> Self {
        Self { from, chunk: Bytes::new() }
    }
}

impl Read for Chunks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() {
            // Whoever sends has nothing more.
            let Ok(chunk) = self.from.recv() else { return Ok(0) };
            self.chunk = chunk?;
        }
        let n = buf.len().min(self.chunk.len());
        buf[..n].copy_from_slice(&self.chunk.split_to(n));
        Ok(n)
    }
}

/// Hashes chunks until there are no more.
fn digest(chunks: Receiver<Bytes>) -> String {
    let mut hash = Sha256::new();
    for chunk in chunks {
        hash.update(&chunk);
    }
    named(hash)
}

/// Decompresses, and sends to who writes and to who hashes, until the end. No more than `budget` bytes come out of it,
/// whatever the compressed ones claim. `false`: nobody wants to write more, and there is no end.
fn pump(
    reader: Box<dyn Read + Send>,
    to: &SyncSender<io::Result<Bytes>>,
    hash: &SyncSender<Bytes>,
    budget: u64,
) -> io::Result<bool> {
    let mut stream = decompress(reader)?;
    let mut total = 0u64;
    let mut behind = 0u64;
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut have = 0;
        while have < chunk.len() {
            match stream.read(&mut chunk[have..])? {
                0 => break,
                n => have += n,
            }
        }
        total += have as u64;
        if total > budget {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("No space left on device: there is room for {budget} bytes, and it unpacks to more"),
            ));
        }
        let is_last = have < chunk.len();
        chunk.truncate(have);
        let chunk = Bytes::from(chunk);
        // A writer that has seen enough has gone; the digest wants the rest.
        if to.send(Ok(chunk.clone())).is_err() {
            behind += have as u64;
        }
        hash.send(chunk).map_err(|_| io::Error::other("the thread that hashes is gone"))?;
        if is_last {
            return Ok(true);
        }
        if behind > BEHIND_BYTES_MAX {
            return Ok(false);
        }
    }
}

impl ImageStore {
    fn staging(&self, name: &str) -> Result<Staging> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        // Two pulls may be at the same layer; the first one in its place serves both.
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let staging = Staging(self.ingest_dir().join(format!("layer-{name}-{unique}")));
        for sub in ["fs", "work"] {
            let path = staging.0.join(sub);
            fs::create_dir_all(&path).ctx(|| format!("create {}", path.display()))?;
        }
        // What the directories above hand on is nothing of the image's.
        let root = staging.0.join("fs");
        sys::lremovexattr(&root, c"system.posix_acl_default")
            .and_then(|()| fs::set_permissions(&root, fs::Permissions::from_mode(0o755)))
            .ctx(|| format!("prepare {}", root.display()))?;
        Ok(staging)
    }

    /// What the disk has room for.
    pub(super) fn room(&self) -> Result<u64> {
        let dir = self.ingest_dir();
        let stat = nix::sys::statvfs::statvfs(&dir).ctx(|| format!("statvfs {}", dir.display()))?;
        let block = stat.fragment_size();
        let (free, size) = (stat.blocks_available() * block, stat.blocks() * block);
        Ok(free.saturating_sub(ROOM_BYTES_MIN.min(size / 16).max(size / 100)))
    }

    /// Unpacks a layer without those below it, as far as that can be. `diff_id` is the digest that the uncompressed
    /// stream must have.
    pub(super) fn prepare_layer(
        &self,
        image: &str,
        name: &str,
        diff_id: &str,
        reader: Box<dyn Read + Send>,
    ) -> Result<Prepared> {
        let staging = self.staging(name)?;
        let contents = self.unpack(image, diff_id, &staging.0, &[], Ground::Bare, reader)?;
        Ok(Prepared { staging, contents })
    }

    /// Puts a layer into its place, unless it is there. `chain` names this layer's directory last, those below, which
    /// are in their places, before it. `open` is asked for the stream where it has to be unpacked here.
    pub(super) fn settle_layer(
        &self,
        image: &str,
        chain: &[String],
        diff_id: &str,
        prepared: Option<Prepared>,
        open: impl FnOnce() -> Result<Box<dyn Read + Send>>,
    ) -> Result<()> {
        let Some((name, below)) = chain.split_last() else { return Ok(()) };
        if self.layer_dir(name).is_dir() {
            return Ok(());
        }
        let lower: Vec<PathBuf> = below.iter().rev().map(|n| self.layer_dir(n)).collect();
        let (staging, contents) = match prepared {
            Some(Prepared { staging, contents: Some(contents) }) => {
                let fs = staging.0.join("fs");
                entries::drop_idle(&fs, &contents.whiteouts, &lower).ctx(|| format!("{}", fs.display()))?;
                (staging, contents)
            }
            _ => {
                let staging = self.staging(name)?;
                let unpacked = self.unpack(image, diff_id, &staging.0, &lower, Ground::Overlay, open()?)?;
                // On all the layers below nothing is missing.
                let contents = unpacked.ok_or_else(|| RuntimeError::CorruptImage {
                    reference: image.to_owned(),
                    message: format!("layer {diff_id} needs more than the layers below it"),
                })?;
                (staging, contents)
            }
        };
        let size = self.layer_root().join(format!("{name}.size"));
        fs::write(&size, format!("{} {}\n", contents.bytes, contents.inodes))
            .ctx(|| format!("write {}", size.display()))?;
        let target = self.layer_dir(name);
        match fs::rename(staging.0.join("fs"), &target) {
            // Somebody else was quicker.
            Err(_) if target.is_dir() => Ok(()),
            other => other.ctx(|| format!("create {}", target.display())),
        }
    }

    /// Writes a layer below `staging`. `None`: it needs the layers below it.
    fn unpack(
        &self,
        image: &str,
        diff_id: &str,
        staging: &Path,
        lower: &[PathBuf],
        ground: Ground,
        reader: Box<dyn Read + Send>,
    ) -> Result<Option<Contents>> {
        let corrupt = |message: String| RuntimeError::CorruptImage { reference: image.to_owned(), message };
        let budget = self.room()?;
        let gone = |_| corrupt("unpacking a layer failed badly".into());
        let (pumped, written, digest) = std::thread::scope(|scope| {
            let start = |name: &str| std::thread::Builder::new().name(name.into());
            let (sender, receiver) = sync_channel(CHUNKS_AHEAD);
            let writer = start("unpack")
                .spawn_scoped(scope, || write_confined(staging, lower, ground, Chunks::new(receiver)))
                .ctx(|| "start a thread".into())?;
            let (to_hash, chunks) = sync_channel(CHUNKS_AHEAD);
            let hasher = start("unpack-hash")
                .spawn_scoped(scope, || digest(chunks))
                .ctx(|| "start a thread".into())?;
            let pumped = pump(reader, &sender, &to_hash, budget);
            if let Err(error) = &pumped {
                // The writer must not take this for the end.
                let _ = sender.send(Err(io::Error::new(error.kind(), error.to_string())));
            }
            drop((sender, to_hash));
            Ok::<_, RuntimeError>((pumped, writer.join().map_err(gone)?, hasher.join().map_err(gone)?))
        })?;
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::StorageFull => RuntimeError::io(format!("unpack layer {diff_id} of {image:?}"), e),
            _ => corrupt(format!("layer {diff_id}: {e}")),
        };
        // What went wrong first is what the other one only heard of.
        let ended = pumped.map_err(failed)?;
        match written {
            Err(Stopped::NeedsBelow) => Ok(None),
            Err(Stopped::Failed(error)) => Err(failed(error)),
            Ok(_) if !ended => Err(corrupt(format!("layer {diff_id} goes on behind its end"))),
            Ok(_) if digest != diff_id => Err(corrupt(format!("layer {diff_id} has the digest {digest}"))),
            Ok(contents) => Ok(Some(contents)),
        }
    }

    /// Makes what was unpacked durable, before a record says that it is there.
    pub(super) fn sync(&self) {
        if let Ok(dir) = File::open(self.layer_root()) {
            let _ = nix::unistd::syncfs(dir);
        }
    }
}

/// Runs in a thread of its own, which ends with its mount namespace.
fn write_confined(
    staging: &Path,
    lower: &[PathBuf],
    ground: Ground,
    mut stream: Chunks,
) -> std::result::Result<Contents, Stopped> {
    confine(staging, lower)?;
    entries::unpack_here(&mut stream, ground)
}

/// Gives the calling thread a root directory of its own: the staging one, or an overlay of the layers below with it on
/// top.
fn confine(staging: &Path, lower: &[PathBuf]) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    let root = if lower.is_empty() {
        staging.join("fs")
    } else {
        let root = staging.join("merged");
        fs::create_dir(&root)?;
        // Relative names keep the options within their page.
        std::env::set_current_dir(lower[0].parent().unwrap_or(Path::new("/")))?;
        let names: Vec<_> = lower.iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            names.join(":"),
            staging.join("fs").display(),
            staging.join("work").display()
        );
        let overlay = |o: &str| mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(o));
        overlay(&format!("{options},index=off,redirect_dir=off,volatile"))
            .or_else(|_| overlay(&format!("{options},index=off,redirect_dir=off")))?;
        root
    };
    nix::unistd::chroot(&root)?;
    std::env::set_current_dir("/")?;
    nix::sys::stat::umask(Mode::empty());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressions_are_recognized() {
        use std::io::Write;
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"hello").unwrap();
        for data in [b"hello".to_vec(), gz.finish().unwrap()] {
            let mut text = String::new();
            decompress(io::Cursor::new(data)).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
        }
    }

    #[test]
    fn what_goes_through_is_hashed_and_bounded() {
        let data = vec![7u8; 3 * CHUNK_BYTES + 5];
        let run = |budget: u64| {
            let (sender, receiver) = sync_channel(CHUNKS_AHEAD);
            let (to_hash, chunks) = sync_channel(CHUNKS_AHEAD);
            let ended = pump(Box::new(io::Cursor::new(data.clone())), &sender, &to_hash, budget);
            drop((sender, to_hash));
            let mut got = Vec::new();
            let read = Chunks::new(receiver).read_to_end(&mut got);
            (ended, digest(chunks), read.map(|_| got))
        };
        let (ended, digest, got) = run(u64::MAX);
        assert!(ended.unwrap());
        assert_eq!(digest, super::super::digest_of(&data));
        assert_eq!(got.unwrap(), data);
        let error = run(1000).0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    }
}
