//! A tree of directories in which sockets come and go, told by the kernel.
//!
//! In: a root. Out: paths at which something happened. What is there now is for the reader to see
//! ([`Identity::of`]): an event is a hint, and one that was lost or came twice does no harm.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, WatchDescriptor};

use crate::logs::watch::Watch;

/// Directories that are watched; deeper or wider trees are not what plugins make.
const DIRECTORIES_MAX: usize = 256;
/// Sockets that one look through the tree finds at most.
const FOUND_MAX: usize = 4096;

/// A socket as distinct from others that were or will be at its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    /// Inodes are used again; not within a nanosecond.
    changed_at: (i64, i64),
}

impl Identity {
    /// The socket at a path, if there is one. Names that begin with a dot are not meant to be found.
    pub(super) fn of(path: &Path) -> Option<Self> {
        if hidden(path) {
            return None;
        }
        let found = std::fs::metadata(path).ok()?;
        found.file_type().is_socket().then(|| Identity {
            device: found.dev(),
            inode: found.ino(),
            changed_at: (found.ctime(), found.ctime_nsec()),
        })
    }
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// See the module.
pub(super) struct Directory {
    root: PathBuf,
    watch: Watch,
    directories: HashMap<WatchDescriptor, PathBuf>,
    /// Every path that was ever told and may still have a socket.
    told: HashSet<PathBuf>,
}

impl Directory {
    /// Makes the root, watches it, and tells what is there already.
    pub(super) fn open(root: &Path) -> io::Result<(Self, Vec<PathBuf>)> {
        std::fs::DirBuilder::new().recursive(true).mode(0o750).create(root)?;
        let watch = Watch::new()?;
        let mut this =
            Directory { root: root.to_owned(), watch, directories: HashMap::new(), told: HashSet::new() };
        let mut found = Vec::new();
        this.enter(root, &mut found)?;
        Ok((this, found))
    }

    /// Waits until something happens, and tells where.
    pub(super) async fn changed(&mut self) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for event in self.watch.next().await? {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                let root = self.root.clone();
                self.enter(&root, &mut paths)?;
                paths.extend(self.told.iter().cloned());
                continue;
            }
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                self.directories.remove(&event.wd);
                continue;
            }
            let Some(name) = event.name else { continue };
            let Some(path) = self.directories.get(&event.wd).map(|directory| directory.join(name)) else {
                continue;
            };
            if !event.mask.contains(AddWatchFlags::IN_ISDIR) {
                self.tell(path, &mut paths);
            } else if !hidden(&path)
                && let Err(error) = self.enter(&path, &mut paths)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "a directory of plugins is not watched");
            }
        }
        self.told.retain(|path| !paths.contains(path) || Identity::of(path).is_some());
        Ok(paths)
    }

    fn tell(&mut self, path: PathBuf, paths: &mut Vec<PathBuf>) {
        if self.told.len() < FOUND_MAX {
            self.told.insert(path.clone());
        }
        paths.push(path);
    }

    /// Watches a directory and those below it, and tells the sockets there are. Watched first, so that what
    /// appears meanwhile is not missed.
    fn enter(&mut self, directory: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
        let mut next = vec![directory.to_owned()];
        while let Some(directory) = next.pop() {
            if self.directories.len() >= DIRECTORIES_MAX
                && !self.directories.values().any(|d| *d == directory)
            {
                return Err(io::Error::other("too many directories"));
            }
            let flags = AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_ONLYDIR;
            let descriptor = self.watch.add(&directory, flags)?;
            self.directories.insert(descriptor, directory.clone());
            for entry in std::fs::read_dir(&directory)?.flatten() {
                let path = entry.path();
                if hidden(&path) {
                    continue;
                }
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    next.push(path);
                } else if paths.len() < FOUND_MAX {
                    self.tell(path, paths);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn sockets_come_and_go_at_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("registry");
        std::fs::create_dir_all(root.join("early")).unwrap();
        let first = UnixListener::bind(root.join("early/a.sock")).unwrap();
        let (mut directory, found) = Directory::open(&root).unwrap();
        assert_eq!(found, [root.join("early/a.sock")]);
        let before = Identity::of(&found[0]).unwrap();

        // The same name for another socket.
        drop(first);
        std::fs::remove_file(&found[0]).unwrap();
        let _second = UnixListener::bind(&found[0]).unwrap();
        assert!(directory.changed().await.unwrap().contains(&found[0]));
        assert_ne!(Identity::of(&found[0]), Some(before));

        // A directory that comes with a socket in it.
        std::fs::create_dir(dir.path().join("aside")).unwrap();
        let _third = UnixListener::bind(dir.path().join("aside/b.sock")).unwrap();
        std::fs::rename(dir.path().join("aside"), root.join("late")).unwrap();
        let mut told = Vec::new();
        while !told.contains(&root.join("late/b.sock")) {
            told.extend(directory.changed().await.unwrap());
        }
        std::fs::remove_file(root.join("late/b.sock")).unwrap();
        assert_eq!(directory.changed().await.unwrap(), [root.join("late/b.sock")]);
        assert_eq!(Identity::of(&root.join("late/b.sock")), None);

        // Neither hidden ones nor plain files are sockets to be found.
        let _hidden = UnixListener::bind(root.join(".c.sock")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        assert_eq!(Identity::of(&root.join(".c.sock")), None);
        assert_eq!(Identity::of(&root.join("file")), None);
    }
}
