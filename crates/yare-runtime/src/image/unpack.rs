//! Layers: a tar stream, perhaps compressed, becomes a directory that overlayfs uses as a lower one.
//!
//! A layer is unpacked onto an overlay of the layers below it, in a thread with a mount namespace and a root
//! directory of its own. So links in an image, hard or symbolic, mean what they mean in the whole image; no path
//! can lead outside; whiteouts are real deletions, which overlayfs writes down its own way; and no mount is left
//! behind, whatever happens to the thread.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::{TimeSpec, TimeValLike};
use sha2::{Digest, Sha256};

use super::{ImageStore, hex};
use crate::error::{IoContext, Result, RuntimeError};
use crate::sys;

/// A layer with more entries than this is an attack.
const MAX_ENTRIES: u64 = 10_000_000;

/// What an unpacked layer takes.
#[derive(Debug, Default, Clone, Copy)]
struct Usage {
    bytes: u64,
    inodes: u64,
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
        Ok(format!("sha256:{}", hex(&self.hash.finalize())))
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

impl ImageStore {
    /// Unpacks one layer, unless it is there. `chain` names this layer's directory last, those below before it.
    /// `diff_id` is the digest that the uncompressed stream must have.
    pub(super) fn unpack_layer(
        &self,
        image: &str,
        chain: &[String],
        diff_id: &str,
        open: impl FnOnce() -> Result<Box<dyn Read + Send>>,
    ) -> Result<()> {
        let Some((name, below)) = chain.split_last() else { return Ok(()) };
        let lock = Arc::clone(self.unpacking.lock().entry(name.clone()).or_default());
        let guard = lock.lock();
        let result = if self.layer_dir(name).is_dir() {
            Ok(())
        } else {
            self.unpack_new(image, name, below, diff_id, open)
        };
        drop(guard);
        self.unpacking.lock().remove(name);
        result
    }

    fn unpack_new(
        &self,
        image: &str,
        name: &str,
        below: &[String],
        diff_id: &str,
        open: impl FnOnce() -> Result<Box<dyn Read + Send>>,
    ) -> Result<()> {
        let staging = self.ingest_dir().join(format!("layer-{name}"));
        let _ = fs::remove_dir_all(&staging);
        for sub in ["fs", "work"] {
            fs::create_dir_all(staging.join(sub)).ctx(|| format!("create {}", staging.display()))?;
        }
        let lower: Vec<PathBuf> = below.iter().rev().map(|n| self.layer_dir(n)).collect();
        let reader = open()?;
        let corrupt = |message: String| RuntimeError::CorruptImage { reference: image.to_owned(), message };
        let unpacked = {
            let staging = staging.clone();
            std::thread::Builder::new()
                .name("unpack".into())
                .spawn(move || unpack_confined(&staging, &lower, reader))
                .ctx(|| "start a thread".into())?
                .join()
                .map_err(|_| corrupt("unpacking a layer failed badly".into()))?
        };
        let result =
            unpacked.map_err(|e| corrupt(format!("layer {diff_id}: {e}"))).and_then(|(usage, digest)| {
                if digest != diff_id {
                    return Err(corrupt(format!("layer {diff_id} has the digest {digest}")));
                }
                let size = self.layer_root().join(format!("{name}.size"));
                fs::write(&size, format!("{} {}\n", usage.bytes, usage.inodes))
                    .ctx(|| format!("write {}", size.display()))?;
                let target = self.layer_dir(name);
                fs::rename(staging.join("fs"), &target).ctx(|| format!("create {}", target.display()))
            });
        let _ = fs::remove_dir_all(&staging);
        result
    }

    /// Makes what was unpacked durable, before a record says that it is there.
    pub(super) fn sync(&self) {
        if let Ok(dir) = File::open(self.layer_root()) {
            let _ = nix::unistd::syncfs(dir);
        }
    }
}

/// Runs in a thread of its own, which ends with its mount namespace.
fn unpack_confined(
    staging: &Path,
    lower: &[PathBuf],
    reader: Box<dyn Read + Send>,
) -> io::Result<(Usage, String)> {
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
    let mut stream = Hashing::new(decompress(reader)?);
    let usage = unpack_here(&mut stream)?;
    Ok((usage, stream.finish()?))
}

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// An entry's path below the root; none for the root itself.
fn clean(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            _ => return Err(bad(format!("path {:?} leads out of the image", path.display()))),
        }
    }
    Ok(clean)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Unpacks into `/`, the thread's own root.
fn unpack_here(stream: &mut impl Read) -> io::Result<Usage> {
    let mut archive = tar::Archive::new(stream);
    let mut usage = Usage::default();
    let mut seen: HashSet<PathBuf> = HashSet::new();
    let mut directories: Vec<(PathBuf, u64)> = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        usage.inodes += 1;
        if usage.inodes > MAX_ENTRIES {
            return Err(bad("too many entries".into()));
        }
        let path = clean(&entry.path()?)?;
        let kind = entry.header().entry_type();
        if kind == tar::EntryType::XGlobalHeader {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let parent = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        if name == ".wh..wh..opq" {
            // Hides what is below, not what this layer itself brings.
            for child in fs::read_dir(&parent).into_iter().flatten().flatten() {
                if !seen.contains(&child.path()) {
                    remove(&child.path())?;
                }
            }
            continue;
        }
        if let Some(hidden) = name.strip_prefix(".wh.") {
            let hidden = parent.join(hidden);
            if !hidden.starts_with(&parent) || hidden == parent {
                return Err(bad(format!("whiteout {name:?}")));
            }
            if !seen.contains(&hidden) {
                remove(&hidden)?;
            }
            continue;
        }
        // For the opaque rule, a directory with something of this layer in it is this layer's, too.
        for ancestor in path.ancestors() {
            if !seen.insert(ancestor.to_path_buf()) {
                break;
            }
        }
        if fs::symlink_metadata(&parent).is_err() {
            fs::DirBuilder::new().recursive(true).create(&parent)?;
            fs::set_permissions(&parent, fs::Permissions::from_mode(0o755))?;
        }
        write_entry(&mut entry, kind, &path, &mut usage)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        if kind.is_dir() {
            directories.push((path, entry.header().mtime().unwrap_or(0)));
        }
    }
    // Their contents changed their times.
    for (path, mtime) in directories.into_iter().rev() {
        let _ = set_time(&path, mtime);
    }
    Ok(usage)
}

fn set_time(path: &Path, mtime: u64) -> io::Result<()> {
    let time = TimeSpec::seconds(i64::try_from(mtime).unwrap_or(0));
    Ok(utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

fn write_entry<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    kind: tar::EntryType,
    path: &Path,
    usage: &mut Usage,
) -> io::Result<()> {
    let mode = entry.header().mode()? & 0o7777;
    let (uid, gid) = (entry.header().uid()?, entry.header().gid()?);
    let (uid, gid) =
        (u32::try_from(uid).map_err(io::Error::other)?, u32::try_from(gid).map_err(io::Error::other)?);
    let mtime = entry.header().mtime().unwrap_or(0);
    let link = || bad("a link without a target".into());
    if kind.is_hard_link() {
        let target = clean(&entry.link_name()?.ok_or_else(link)?)?;
        remove(path)?;
        return fs::hard_link(&target, path)
            .map_err(|e| io::Error::new(e.kind(), format!("hard link to {}: {e}", target.display())));
    }
    let existing_dir = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
    if !(kind.is_dir() && existing_dir) {
        if path == Path::new("/") {
            return Err(bad("the root is not a directory".into()));
        }
        remove(path)?;
    }
    match kind {
        tar::EntryType::Directory => {
            if !existing_dir {
                fs::create_dir(path)?;
            }
        }
        tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            usage.bytes += io::copy(entry, &mut file)?;
        }
        tar::EntryType::Symlink => {
            std::os::unix::fs::symlink(entry.link_name()?.ok_or_else(link)?, path)?;
        }
        tar::EntryType::Char | tar::EntryType::Block | tar::EntryType::Fifo => {
            let flag = match kind {
                tar::EntryType::Char => SFlag::S_IFCHR,
                tar::EntryType::Block => SFlag::S_IFBLK,
                _ => SFlag::S_IFIFO,
            };
            let header = entry.header();
            let (major, minor) = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
            let device = makedev(u64::from(major), u64::from(minor));
            mknod(path, flag, Mode::from_bits_truncate(mode), device)?;
        }
        // Kinds of other systems' tars; nothing a container could use.
        _ => return Ok(()),
    }
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
    if !kind.is_symlink() {
        // After the owner: changing that clears set-user-id.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    // After the owner, too: that clears file capabilities.
    let extensions: Vec<(String, Vec<u8>)> = entry
        .pax_extensions()?
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|x| {
            Some((x.key().ok()?.strip_prefix("SCHILY.xattr.")?.to_owned(), x.value_bytes().to_vec()))
        })
        .collect();
    for (name, value) in extensions {
        // An attribute for overlayfs itself would be an attack on it.
        if name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.") {
            continue;
        }
        let name = std::ffi::CString::new(name).map_err(io::Error::other)?;
        match sys::lsetxattr(path, &name, &value) {
            Err(e) if e.raw_os_error() != Some(libc::EOPNOTSUPP) => return Err(e),
            _ => {}
        }
    }
    set_time(path, mtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        assert_eq!(clean(Path::new("./a/./b")).unwrap(), Path::new("/a/b"));
        assert_eq!(clean(Path::new("/etc")).unwrap(), Path::new("/etc"));
        assert!(clean(Path::new("a/../../etc")).is_err());
    }

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
}
