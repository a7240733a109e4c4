//! The entries of a layer, written below the thread's own root.
//!
//! In: a tar stream. Out: files, links, devices and deletions. Two grounds are there to write on: an overlay of the
//! layers below, where whiteouts are real deletions that overlayfs writes down its own way; and a bare directory,
//! where they are written down here, and where an entry that only makes sense with what is below stops the work.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::files::{self, Attributes, Behind, SMALL_BYTES_MAX, Small};
use crate::sys;

/// A layer with more entries than this is an attack.
const MAX_ENTRIES: u64 = 10_000_000;
/// Contents are written in pieces of this size.
const PIECE_BYTES: usize = 512 << 10;
/// What overlayfs calls a directory that hides all below it.
const OPAQUE: &std::ffi::CStr = c"trusted.overlay.opaque";

/// What a layer is unpacked onto.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ground {
    /// The layers below it.
    Overlay,
    /// Nothing.
    Bare,
}

/// What an unpacked layer takes, and what it hides.
#[derive(Debug, Default, Clone)]
pub(super) struct Contents {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    /// Paths that a bare layer says are not there any more.
    pub(super) whiteouts: HashSet<PathBuf>,
}

/// Why a layer was not unpacked.
#[derive(Debug)]
pub(super) enum Stopped {
    /// What is below it has to be there first.
    NeedsBelow,
    /// It cannot be.
    Failed(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// What a layer brought to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Brought {
    /// A directory. `plain`: what is made in it is made as it is asked for.
    Directory {
        plain: bool,
    },
    Other,
}

/// One layer being written.
struct Writer {
    ground: Ground,
    contents: Contents,
    seen: HashMap<PathBuf, Brought>,
    /// Of directories the times, which their contents change.
    directories: Vec<(PathBuf, u64)>,
    /// Files that another thread makes. On bare ground alone: an overlay wants to be asked what is there.
    behind: Behind,
    buffer: Vec<u8>,
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

/// Unpacks into `/`, the thread's own root, which the thread that this one starts shares.
pub(super) fn unpack_here(stream: &mut impl Read, ground: Ground) -> Result<Contents, Stopped> {
    let (behind, maker) = Behind::new();
    std::thread::scope(|scope| {
        let maker =
            std::thread::Builder::new().name("unpack-files".into()).spawn_scoped(scope, || maker.run());
        maker?;
        let mut writer = Writer {
            ground,
            contents: Contents::default(),
            seen: HashMap::from([(PathBuf::from("/"), Brought::Directory { plain: ground == Ground::Bare })]),
            directories: Vec::new(),
            behind,
            buffer: vec![0; PIECE_BYTES],
        };
        let mut archive = tar::Archive::new(stream);
        for entry in archive.entries()? {
            writer.take(&mut entry?)?;
        }
        writer.behind.wait()?;
        for (path, mtime) in writer.directories.into_iter().rev() {
            let _ = files::set_time(&path, mtime);
        }
        Ok(writer.contents)
    })
}

impl Writer {
    fn take<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), Stopped> {
        self.contents.inodes += 1;
        if self.contents.inodes > MAX_ENTRIES {
            return Err(bad("too many entries".into()).into());
        }
        let kind = entry.header().entry_type();
        if kind == tar::EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = clean(&entry.path()?)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        // Without what is below nobody knows what a directory is that this layer does not bring: perhaps a link.
        let plain = match self.seen.get(parent) {
            Some(Brought::Directory { plain }) => *plain,
            _ if self.ground == Ground::Bare => return Err(Stopped::NeedsBelow),
            _ => false,
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == ".wh..wh..opq" {
            return Ok(self.hide_all(parent)?);
        }
        if let Some(hidden) = name.strip_prefix(".wh.") {
            return Ok(self.hide(parent, hidden)?);
        }
        // For the opaque rule, a directory with something of this layer in it is this layer's, too.
        if !self.seen.contains_key(parent) {
            for ancestor in parent.ancestors() {
                let directory = Brought::Directory { plain: false };
                if self.seen.insert(ancestor.to_path_buf(), directory).is_some() {
                    break;
                }
            }
        }
        if self.ground == Ground::Overlay && fs::symlink_metadata(parent).is_err() {
            fs::DirBuilder::new().recursive(true).create(parent)?;
            fs::set_permissions(parent, fs::Permissions::from_mode(0o755))?;
        }
        let brought = self.write(entry, kind, &path, plain).map_err(|stopped| match stopped {
            Stopped::Failed(e) => io::Error::new(e.kind(), format!("{}: {e}", path.display())).into(),
            Stopped::NeedsBelow => Stopped::NeedsBelow,
        })?;
        self.seen.insert(path, brought);
        Ok(())
    }

    /// Hides what is below a directory, not what this layer itself brings.
    fn hide_all(&self, directory: &Path) -> io::Result<()> {
        if self.ground == Ground::Bare {
            return sys::lsetxattr(directory, OPAQUE, b"y");
        }
        for child in fs::read_dir(directory).into_iter().flatten().flatten() {
            if !self.seen.contains_key(&child.path()) {
                remove(&child.path())?;
            }
        }
        Ok(())
    }

    fn hide(&mut self, parent: &Path, name: &str) -> io::Result<()> {
        let hidden = parent.join(name);
        if !hidden.starts_with(parent) || hidden == parent || hidden.file_name().is_none() {
            return Err(bad(format!("whiteout {name:?}")));
        }
        if self.seen.contains_key(&hidden) {
            return Ok(());
        }
        if self.ground == Ground::Overlay {
            return remove(&hidden);
        }
        match mknod(&hidden, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)) {
            Ok(()) => drop(self.contents.whiteouts.insert(hidden)),
            Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Takes away what this layer brought to a path. With a directory goes what is still to be made in it: made later,
    /// it would come to where a link leads that took the directory's place.
    fn clear(&mut self, path: &Path) -> io::Result<()> {
        if self.seen.contains_key(path) {
            self.behind.wait()?;
        }
        remove(path)
    }

    /// Writes an entry. `plain`: what is made in its directory is made as it is asked for.
    fn write<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        kind: tar::EntryType,
        path: &Path,
        plain: bool,
    ) -> Result<Brought, Stopped> {
        let link = || bad("a link without a target".into());
        if kind.is_hard_link() {
            let target = clean(&entry.link_name()?.ok_or_else(link)?)?;
            if self.ground == Ground::Bare && !self.seen.contains_key(&target) {
                return Err(Stopped::NeedsBelow);
            }
            self.behind.wait_for(&target)?;
            self.clear(path)?;
            fs::hard_link(&target, path)
                .map_err(|e| io::Error::new(e.kind(), format!("hard link to {}: {e}", target.display())))?;
            return Ok(Brought::Other);
        }
        let attributes = Attributes::of(entry)?;
        // On bare ground only what this layer brought, or hid, can be in the way.
        let was_hidden = self.contents.whiteouts.remove(path);
        let may_exist = self.ground == Ground::Overlay || self.seen.contains_key(path) || was_hidden;
        let existing_dir = may_exist && fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
        if may_exist && !(kind.is_dir() && existing_dir) {
            if path == Path::new("/") {
                return Err(bad("the root is not a directory".into()).into());
            }
            self.clear(path)?;
        }
        match kind {
            tar::EntryType::Directory => {
                if !existing_dir {
                    fs::DirBuilder::new().mode(attributes.permissions()).create(path)?;
                }
                // What it hid stays hidden.
                if was_hidden {
                    sys::lsetxattr(path, OPAQUE, b"y")?;
                }
                attributes.settle_directory(path, plain && !existing_dir)?;
                self.directories.push((path.to_owned(), attributes.mtime()));
                return Ok(Brought::Directory { plain: plain && attributes.is_plain() });
            }
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let size = entry.size();
                if self.ground == Ground::Bare && size <= SMALL_BYTES_MAX && kind != tar::EntryType::GNUSparse
                {
                    let mut contents = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
                    entry.read_to_end(&mut contents)?;
                    self.contents.bytes += contents.len() as u64;
                    self.behind.leave(Small { path: path.to_owned(), attributes, contents, plain })?;
                } else {
                    let buffer = &mut self.buffer;
                    self.contents.bytes +=
                        files::make(path, &attributes, plain, |file| copy(entry, file, buffer))?;
                }
                return Ok(Brought::Other);
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
                let (major, minor) =
                    (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
                if kind == tar::EntryType::Char && (major, minor) == (0, 0) {
                    return Err(bad("a device that overlayfs takes for a whiteout".into()).into());
                }
                let device = makedev(u64::from(major), u64::from(minor));
                let mode = Mode::from_bits_truncate(attributes.permissions());
                mknod(path, flag, mode, device).map_err(io::Error::from)?;
            }
            // Kinds of other systems' tars; nothing a container could use.
            _ => return Ok(Brought::Other),
        }
        attributes.settle_special(path, kind.is_symlink(), plain)?;
        Ok(Brought::Other)
    }
}

/// Few large writes: each small one costs the file system as much.
fn copy(from: &mut impl Read, to: &mut File, buffer: &mut [u8]) -> io::Result<u64> {
    let mut copied = 0;
    loop {
        let mut have = 0;
        while have < buffer.len() {
            match from.read(&mut buffer[have..]) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        to.write_all(&buffer[..have])?;
        copied += have as u64;
        if have < buffer.len() {
            return Ok(copied);
        }
    }
}

/// Takes those whiteouts away again that hide nothing in the layers below: in a directory that is this layer's
/// alone overlayfs would show them.
pub(super) fn drop_idle(layer: &Path, whiteouts: &HashSet<PathBuf>, below: &[PathBuf]) -> io::Result<()> {
    let mut known: HashSet<(usize, &Path)> = HashSet::new();
    for hidden in whiteouts {
        let relative = hidden.strip_prefix("/").unwrap_or(hidden);
        let hides = below.iter().enumerate().any(|(at, lower)| {
            let parent = relative.parent().unwrap_or(Path::new(""));
            // Directories all the way: what lies behind a link is not merged with this one.
            let is_there = known.contains(&(at, parent))
                || parent
                    .ancestors()
                    .filter(|p| !p.as_os_str().is_empty())
                    .all(|p| fs::symlink_metadata(lower.join(p)).is_ok_and(|m| m.is_dir()));
            if is_there {
                known.insert((at, parent));
            }
            is_there && fs::symlink_metadata(lower.join(relative)).is_ok()
        });
        if !hides {
            fs::remove_file(layer.join(relative))?;
        }
    }
    Ok(())
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
}
