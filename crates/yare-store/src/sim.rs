//! A simulated disk: files in memory, with everything that real disks do wrong, decided by a seed. A crash
//! keeps what was synced and an arbitrary part of what was not. For tests of the store and of what stands on it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile};

/// What is torn or kept as a unit in a crash.
const SECTOR: usize = 512;

/// A disk in memory. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

/// What goes wrong. The default: nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A write takes only some of its bytes, once in this many times (0: never).
    pub short_write_1_in: u32,
    /// The disk has room for this many bytes in all files.
    pub capacity: Option<u64>,
    /// This many syncs succeed, then all fail with an I/O error.
    pub syncs_left: Option<u32>,
    /// This many changes (writes, syncs, renames, …) succeed, then the machine (or the process) is down
    /// until [`SimDisk::reboot`] (or [`SimDisk::kill`]).
    pub changes_left: Option<u32>,
}

#[derive(Default)]
struct Inner {
    files: HashMap<u64, SimFile>,
    next_file: u64,
    /// Names as the running system sees them.
    names: BTreeMap<PathBuf, u64>,
    /// Names as they would be after a crash, and the changes that are not durable yet, each of which happens
    /// as a whole or not at all.
    durable: BTreeMap<PathBuf, u64>,
    pending: Vec<Vec<NameChange>>,
    locks: Vec<PathBuf>,
    faults: Faults,
    random: u64,
    /// Grows with every reboot: files opened before are dead.
    boot: u64,
    down: bool,
    changes: u64,
}

#[derive(Default)]
struct SimFile {
    now: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Clone)]
struct NameChange {
    path: PathBuf,
    to: Option<u64>,
}

impl Inner {
    fn random(&mut self) -> u64 {
        // splitmix64
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.random() % n.max(1) as u64) as usize
    }

    /// Counts a change; fails when the machine is down or goes down with it.
    fn change(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.faults.changes_left {
            if *left == 0 {
                self.down = true;
            } else {
                *left -= 1;
            }
        }
        self.changes += 1;
        self.up()
    }

    fn up(&self) -> io::Result<()> {
        if self.down { Err(io::Error::other("the simulated machine is down")) } else { Ok(()) }
    }

    fn start_again(&mut self) {
        self.locks.clear();
        self.faults = Faults::default();
        self.down = false;
        self.boot += 1;
    }

    fn used(&self) -> u64 {
        self.names.values().filter_map(|id| self.files.get(id)).map(|f| f.now.len() as u64).sum()
    }

    fn set_names(&mut self, changes: &[(&Path, Option<u64>)]) {
        let changes = changes.iter().map(|(path, to)| NameChange { path: path.to_path_buf(), to: *to });
        let changes: Vec<_> = changes.collect();
        apply(&mut self.names, &changes);
        self.pending.push(changes);
    }

    /// What a crash leaves of a file: all of it, what was synced, or each sector as either; any length in between.
    fn after_crash(&mut self, file: &SimFile) -> Vec<u8> {
        let (old, new) = (&file.durable, &file.now);
        if old == new {
            return old.clone();
        }
        match self.below(4) {
            0 => return old.clone(),
            1 => return new.clone(),
            _ => {}
        }
        let (short, long) = (old.len().min(new.len()), old.len().max(new.len()));
        let mut bytes = vec![0; short + self.below(long - short + 1)];
        let len = bytes.len();
        for start in (0..len).step_by(SECTOR) {
            let source = if self.below(2) == 0 { old } else { new };
            let end = (start + SECTOR).min(len).min(source.len());
            if start < end {
                bytes[start..end].copy_from_slice(&source[start..end]);
            }
        }
        bytes
    }
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, changes: &[NameChange]) {
    for NameChange { path, to } in changes {
        match to {
            Some(id) => names.insert(path.clone(), *id),
            None => names.remove(path),
        };
    }
}

impl SimDisk {
    /// An empty disk without faults.
    pub fn new(seed: u64) -> Self {
        SimDisk { inner: Arc::new(Mutex::new(Inner { random: seed, ..Inner::default() })) }
    }

    /// What goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.inner.lock().faults = faults;
    }

    /// Whether [`Faults::changes_left`] has taken the machine down.
    pub fn is_down(&self) -> bool {
        self.inner.lock().down
    }

    /// How many changes were made or tried so far.
    pub fn changes(&self) -> u64 {
        self.inner.lock().changes
    }

    /// Cuts the power (if it is still on) and starts again without faults: what was synced is there, of the
    /// rest an arbitrary part.
    pub fn reboot(&self) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        // Nothing promises that changes of different names reach the disk in their order.
        for changes in std::mem::take(&mut inner.pending) {
            if inner.below(2) == 0 {
                apply(&mut inner.durable, &changes);
            }
        }
        inner.names = inner.durable.clone();
        let files = std::mem::take(&mut inner.files);
        let mut ids: Vec<u64> = inner.names.values().copied().collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            if let Some(file) = files.get(&id) {
                let bytes = inner.after_crash(file);
                inner.files.insert(id, SimFile { now: bytes.clone(), durable: bytes });
            }
        }
        inner.start_again();
    }

    /// Kills the process rather than the machine: everything that was written is there, synced or not.
    pub fn kill(&self) {
        self.inner.lock().start_again();
    }

    /// The files and their lengths.
    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        let inner = self.inner.lock();
        inner.names.iter().map(|(path, id)| (path.clone(), inner.files[id].now.len())).collect()
    }

    /// Changes a file behind everybody's back.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.inner.lock();
        if let Some(id) = inner.names.get(path).copied()
            && let Some(file) = inner.files.get_mut(&id)
        {
            change(&mut file.now);
            file.durable = file.now.clone();
        }
    }

    fn handle(&self, id: u64, boot: u64) -> Box<dyn DiskFile> {
        Box::new(Handle { disk: self.clone(), id, boot })
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        self.inner.lock().up()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut inner = self.inner.lock();
        if inner.locks.iter().any(|held| held == path) {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another process"));
        }
        inner.locks.push(path.to_owned());
        Ok(Box::new(Lock { disk: self.clone(), path: path.to_owned(), boot: inner.boot }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.inner.lock();
        inner.up()?;
        let inside = inner.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned()).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.inner.lock();
        inner.change()?;
        let id = match inner.names.get(path).copied() {
            Some(id) => id,
            None => {
                inner.next_file += 1;
                let id = inner.next_file;
                inner.set_names(&[(path, Some(id))]);
                id
            }
        };
        inner.files.entry(id).or_default().now.clear();
        Ok(self.handle(id, inner.boot))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inner = self.inner.lock();
        inner.up()?;
        let id = inner.names.get(path).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(id, inner.boot))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.change()?;
        let id = inner.names.get(from).copied().ok_or(io::ErrorKind::NotFound)?;
        inner.set_names(&[(to, Some(id)), (from, None)]);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.change()?;
        if !inner.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.set_names(&[(path, None)]);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.change()?;
        let pending = std::mem::take(&mut inner.pending);
        let (done, rest): (Vec<_>, Vec<_>) =
            pending.into_iter().partition(|changes| changes.iter().all(|c| c.path.parent() == Some(dir)));
        for changes in done {
            apply(&mut inner.durable, &changes);
        }
        inner.pending = rest;
        Ok(())
    }
}

struct Lock {
    disk: SimDisk,
    path: PathBuf,
    boot: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut inner = self.disk.inner.lock();
        if inner.boot == self.boot {
            inner.locks.retain(|held| *held != self.path);
        }
    }
}

struct Handle {
    disk: SimDisk,
    id: u64,
    boot: u64,
}

impl Handle {
    fn with<R>(&self, f: impl FnOnce(&mut Inner, u64) -> io::Result<R>) -> io::Result<R> {
        let mut inner = self.disk.inner.lock();
        if inner.boot != self.boot {
            return Err(io::Error::other("the file was opened before the crash"));
        }
        inner.up()?;
        f(&mut inner, self.id)
    }
}

impl DiskFile for Handle {
    fn len(&self) -> io::Result<u64> {
        self.with(|inner, id| Ok(inner.files[&id].now.len() as u64))
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|inner, id| {
            let bytes = inner.files[&id].now.get(offset as usize..).unwrap_or_default();
            let bytes = bytes.get(..buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.with(|inner, id| {
            let alive = inner.change();
            let mut len = bytes.len();
            let short = inner.faults.short_write_1_in as usize;
            // The write during which the machine goes down is a short one, too.
            if len > 1 && (alive.is_err() || short > 0 && inner.below(short) == 0) {
                len = 1 + inner.below(len);
            }
            if let Some(capacity) = inner.faults.capacity {
                let end = offset as usize + len;
                let grows = end.saturating_sub(inner.files[&id].now.len()) as u64;
                let room = capacity.saturating_sub(inner.used());
                if grows > room {
                    len = len.saturating_sub((grows - room) as usize);
                    if len == 0 {
                        return Err(io::ErrorKind::StorageFull.into());
                    }
                }
            }
            let file = inner.files.entry(id).or_default();
            let end = offset as usize + len;
            if file.now.len() < end {
                file.now.resize(end, 0);
            }
            file.now[offset as usize..end].copy_from_slice(&bytes[..len]);
            // The system writes back when it likes.
            if inner.below(8) == 0 {
                let file = inner.files.entry(id).or_default();
                file.durable = file.now.clone();
            }
            alive.map(|()| len)
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.with(|inner, id| {
            inner.change()?;
            if let Some(left) = &mut inner.faults.syncs_left {
                *left =
                    left.checked_sub(1).ok_or_else(|| io::Error::other("the simulated disk is broken"))?;
            }
            let file = inner.files.entry(id).or_default();
            file.durable = file.now.clone();
            Ok(())
        })
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.with(|inner, id| {
            inner.change()?;
            inner.files.entry(id).or_default().now.resize(len as usize, 0);
            Ok(())
        })
    }
}
