//! Files of a layer, and what its headers say of them.
//!
//! To make a file takes the kernel longer than to read it out of an archive, so that a second thread makes the smaller
//! ones. Whoever needs one of them waits for it: [`Behind::wait_for`].

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown, lchown};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};

use nix::sys::stat::{UtimensatFlags, futimens, utimensat};
use nix::sys::time::{TimeSpec, TimeValLike as _};

use crate::sys;

/// A larger file is written piece by piece, by whoever reads it.
pub(super) const SMALL_BYTES_MAX: u64 = 1 << 20;
/// So much goes to the other thread at once, and so many times before it has made the first.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_FILES: usize = 64;
const BATCHES_AHEAD: usize = 4;

/// What a header says of an entry.
pub(super) struct Attributes {
    mode: u32,
    owner: (u32, u32),
    mtime: u64,
    extended: Vec<(CString, Vec<u8>)>,
}

impl Attributes {
    pub(super) fn of<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Self> {
        let mut extended = Vec::new();
        for extension in entry.pax_extensions()?.into_iter().flatten().flatten() {
            let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr.")) else {
                continue;
            };
            // An attribute for overlayfs itself would be an attack on it.
            if !name.starts_with("trusted.overlay.") && !name.starts_with("user.overlay.") {
                let name = CString::new(name).map_err(io::Error::other)?;
                extended.push((name, extension.value_bytes().to_vec()));
            }
        }
        let header = entry.header();
        let id = |id: u64| u32::try_from(id).map_err(io::Error::other);
        Ok(Self {
            mode: header.mode()? & 0o7777,
            owner: (id(header.uid()?)?, id(header.gid()?)?),
            mtime: header.mtime().unwrap_or(0),
            extended,
        })
    }

    /// What it is made with. Bits that lend somebody's rights are set when it belongs to its owner, who changes last
    /// without them.
    pub(super) fn permissions(&self) -> u32 {
        self.mode & 0o777
    }

    pub(super) fn mtime(&self) -> u64 {
        self.mtime
    }

    /// Whether what is made in this directory is made as it is asked for: with the group of the process, and without
    /// an access list that it inherits.
    pub(super) fn is_plain(&self) -> bool {
        self.mode & 0o2000 == 0 && self.extended.is_empty()
    }

    /// Says all but the time of something that was made with [`Self::permissions`]. `plain`: and got them.
    fn settle(&self, path: &Path, file: Option<&File>, is_link: bool, plain: bool) -> io::Result<()> {
        let (uid, gid) = self.owner;
        // The owner first: changing that clears set-user-id and file capabilities.
        if !plain || self.owner != own() {
            match file {
                Some(file) => fchown(file, Some(uid), Some(gid))?,
                None => lchown(path, Some(uid), Some(gid))?,
            }
        }
        if !is_link && (!plain || self.mode != self.permissions()) {
            let mode = fs::Permissions::from_mode(self.mode);
            match file {
                Some(file) => file.set_permissions(mode)?,
                None => fs::set_permissions(path, mode)?,
            }
        }
        for (name, value) in &self.extended {
            match sys::lsetxattr(path, name, value) {
                Err(e) if e.raw_os_error() != Some(libc::EOPNOTSUPP) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Says all of a link, a device or a pipe.
    pub(super) fn settle_special(&self, path: &Path, is_link: bool, plain: bool) -> io::Result<()> {
        self.settle(path, None, is_link, plain)?;
        set_time(path, self.mtime)
    }

    /// Says all of a directory but its time, which its contents change.
    pub(super) fn settle_directory(&self, path: &Path, plain: bool) -> io::Result<()> {
        self.settle(path, None, false, plain)
    }
}

/// Who makes all this.
fn own() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

pub(super) fn set_time(path: &Path, mtime: u64) -> io::Result<()> {
    let time = TimeSpec::seconds(i64::try_from(mtime).unwrap_or(0));
    Ok(utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

/// Makes a file where none is; `fill` writes its contents.
pub(super) fn make<T>(
    path: &Path,
    attributes: &Attributes,
    plain: bool,
    fill: impl FnOnce(&mut File) -> io::Result<T>,
) -> io::Result<T> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(attributes.permissions()).open(path)?;
    let filled = fill(&mut file)?;
    attributes.settle(path, Some(&file), false, plain)?;
    let time = TimeSpec::seconds(i64::try_from(attributes.mtime).unwrap_or(0));
    futimens(&file, &time, &time)?;
    Ok(filled)
}

/// A file to be made.
pub(super) struct Small {
    pub(super) path: PathBuf,
    pub(super) attributes: Attributes,
    pub(super) contents: Vec<u8>,
    pub(super) plain: bool,
}

impl Small {
    fn make(&self) -> io::Result<()> {
        make(&self.path, &self.attributes, self.plain, |file| file.write_all(&self.contents))
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", self.path.display())))
    }
}

fn make_all(batch: &[Small]) -> io::Result<()> {
    batch.iter().try_for_each(Small::make)
}

/// What another thread makes: its work, or this side of it.
pub(super) struct Behind {
    to: SyncSender<Vec<Small>>,
    made: Receiver<io::Result<()>>,
    batch: Vec<Small>,
    bytes: usize,
    /// Batches that are not known to be made.
    out: usize,
    /// Files that are not known to be made.
    names: HashSet<PathBuf>,
}

/// The other thread's side.
pub(super) struct Maker {
    from: Receiver<Vec<Small>>,
    made: Sender<io::Result<()>>,
}

impl Maker {
    /// Makes files until there will be no more.
    pub(super) fn run(self) {
        for batch in self.from {
            if self.made.send(make_all(&batch)).is_err() {
                return;
            }
        }
    }
}

impl Behind {
    pub(super) fn new() -> (Self, Maker) {
        let (to, from) = sync_channel(BATCHES_AHEAD);
        let (made_to, made) = channel();
        let behind = Self { to, made, batch: Vec::new(), bytes: 0, out: 0, names: HashSet::new() };
        (behind, Maker { from, made: made_to })
    }

    /// Leaves a file to the other thread.
    ///
    /// # Errors
    /// Of a file that was left to it before.
    pub(super) fn leave(&mut self, file: Small) -> io::Result<()> {
        self.bytes += file.contents.len();
        self.names.insert(file.path.clone());
        self.batch.push(file);
        if self.bytes < BATCH_BYTES && self.batch.len() < BATCH_FILES {
            return Ok(());
        }
        self.hand_over()?;
        while let Ok(made) = self.made.try_recv() {
            self.out -= 1;
            made?;
        }
        Ok(())
    }

    fn hand_over(&mut self) -> io::Result<()> {
        self.bytes = 0;
        match self.to.try_send(std::mem::take(&mut self.batch)) {
            Ok(()) => {
                self.out += 1;
                Ok(())
            }
            // It has enough to do.
            Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => make_all(&batch),
        }
    }

    /// Returns when this file is there, if it was left to the other thread.
    pub(super) fn wait_for(&mut self, path: &Path) -> io::Result<()> {
        if self.names.contains(path) { self.wait() } else { Ok(()) }
    }

    /// Returns when all files are there.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        make_all(&std::mem::take(&mut self.batch))?;
        self.bytes = 0;
        while self.out > 0 {
            self.out -= 1;
            self.made.recv().map_err(|_| io::Error::other("the thread that makes files is gone"))??;
        }
        self.names.clear();
        Ok(())
    }
}
