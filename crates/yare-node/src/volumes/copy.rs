//! Copies a directory tree that somebody else may be changing at the same time.
//!
//! The source belongs to running pods, which could swap a directory for a link to one of the host's while it is
//! read. So every step goes through the descriptor of the directory above and follows no link. The target is
//! seen by nobody else. Owners, modes, times, links and hard links are kept; sockets are left out, since
//! nobody listens on a copy, and so are extended attributes.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, FileTimes, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, mknod};

/// A directory that is still to be copied.
struct Pending {
    above: Rc<File>,
    name: OsString,
    to: PathBuf,
}

/// Copies what is in `from` into the directory `to`, and gives that the owner, mode and times of `from`.
pub(super) fn tree(from: &Path, to: &Path) -> io::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let root = OpenOptions::new().read(true).custom_flags(flags.bits()).open(from)?;
    let mut copy = Copy { pending: Vec::new(), linked: HashMap::new(), directories: Vec::new() };
    copy.directory(Rc::new(root), to.to_owned())?;
    while let Some(next) = copy.pending.pop() {
        let opened = open(&next.above, &next.name, flags);
        match opened {
            Ok(directory) => {
                DirBuilder::new().mode(0o700).create(&next.to)?;
                copy.directory(Rc::new(directory), next.to)?;
            }
            Err(error) if vanished(&error) => {}
            Err(error) => return Err(error),
        }
    }
    // Last, since what is put into a directory changes its time.
    for (path, times) in copy.directories.iter().rev() {
        let directory = File::open(path)?;
        directory.set_times(*times)?;
        directory.sync_all()?;
    }
    Ok(())
}

struct Copy {
    pending: Vec<Pending>,
    /// Files with several names: device and inode to where the first copy is.
    linked: HashMap<(u64, u64), PathBuf>,
    directories: Vec<(PathBuf, FileTimes)>,
}

/// Whether an entry was removed or replaced while it was being read.
fn vanished(error: &io::Error) -> bool {
    let gone = [nix::Error::ENOENT, nix::Error::ELOOP, nix::Error::ENOTDIR, nix::Error::ENXIO];
    error.raw_os_error().is_some_and(|code| gone.iter().any(|g| *g as i32 == code))
}

fn open(above: &File, name: &OsString, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    Ok(File::from(openat(above, name.as_os_str(), flags, Mode::empty())?))
}

fn times(found: &std::fs::Metadata) -> io::Result<FileTimes> {
    Ok(FileTimes::new().set_accessed(found.accessed()?).set_modified(found.modified()?))
}

impl Copy {
    fn directory(&mut self, from: Rc<File>, to: PathBuf) -> io::Result<()> {
        let found = from.metadata()?;
        chown(&to, Some(found.uid()), Some(found.gid()))?;
        std::fs::set_permissions(&to, Permissions::from_mode(found.mode() & 0o7777))?;
        self.directories.push((to.clone(), times(&found)?));
        for entry in std::fs::read_dir(format!("/proc/self/fd/{}", from.as_raw_fd()))? {
            let name = entry?.file_name();
            match self.entry(&from, &name, &to.join(&name)) {
                Err(error) if vanished(&error) => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, above: &Rc<File>, name: &OsString, to: &Path) -> io::Result<()> {
        // Says what it is without opening it: a device or a pipe would notice.
        let found = open(above, name, OFlag::O_PATH)?.metadata()?;
        let kind = found.file_type();
        if kind.is_dir() {
            self.pending.push(Pending { above: above.clone(), name: name.clone(), to: to.to_owned() });
            return Ok(());
        }
        if kind.is_socket() {
            return Ok(());
        }
        let inode = (found.dev(), found.ino());
        if found.nlink() > 1 {
            if let Some(first) = self.linked.get(&inode) {
                return std::fs::hard_link(first, to);
            }
            self.linked.insert(inode, to.to_owned());
        }
        if kind.is_symlink() {
            symlink(readlinkat(above, name.as_os_str())?, to)?;
            return lchown(to, Some(found.uid()), Some(found.gid()));
        }
        if kind.is_file() {
            return file(&open(above, name, OFlag::O_RDONLY)?, to);
        }
        let kind = if kind.is_fifo() {
            SFlag::S_IFIFO
        } else if kind.is_char_device() {
            SFlag::S_IFCHR
        } else {
            SFlag::S_IFBLK
        };
        mknod(to, kind, Mode::empty(), found.rdev())?;
        lchown(to, Some(found.uid()), Some(found.gid()))?;
        std::fs::set_permissions(to, Permissions::from_mode(found.mode() & 0o7777))
    }
}

fn file(from: &File, to: &Path) -> io::Result<()> {
    let found = from.metadata()?;
    // It may have become something else since it was looked at.
    if !found.is_file() {
        return Ok(());
    }
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    // By the kernel itself, and without copying where the file system can share blocks.
    io::copy(&mut &*from, &mut target)?;
    nix::unistd::fchown(&target, Some(found.uid().into()), Some(found.gid().into()))?;
    target.set_permissions(Permissions::from_mode(found.mode() & 0o7777))?;
    target.set_times(times(&found)?)?;
    target.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_like_its_source_and_holds_nothing_from_outside() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        for dir in [&from, &from.join("deep/er"), &to] {
            std::fs::create_dir_all(dir).unwrap();
        }
        std::fs::write(root.path().join("secret"), "of the host").unwrap();
        std::fs::write(from.join("deep/er/file"), "content").unwrap();
        std::fs::set_permissions(from.join("deep/er/file"), Permissions::from_mode(0o4711)).unwrap();
        std::fs::set_permissions(from.join("deep"), Permissions::from_mode(0o2750)).unwrap();
        std::fs::hard_link(from.join("deep/er/file"), from.join("again")).unwrap();
        symlink("../secret", from.join("link")).unwrap();
        symlink(root.path(), from.join("link-to-directory")).unwrap();
        nix::unistd::mkfifo(&from.join("pipe"), Mode::from_bits_truncate(0o640)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        File::open(from.join("deep")).unwrap().set_modified(long_ago).unwrap();
        tree(&from, &to).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(&to).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["again", "deep", "link", "link-to-directory", "pipe"]);
        assert_eq!(std::fs::read_to_string(to.join("deep/er/file")).unwrap(), "content");
        let mode = |path: &str| to.join(path).symlink_metadata().unwrap().mode() & 0o7777;
        assert_eq!([mode("deep/er/file"), mode("deep"), mode("pipe")], [0o4711, 0o2750, 0o640]);
        let inode = |path: &str| to.join(path).metadata().unwrap().ino();
        assert_eq!(inode("again"), inode("deep/er/file"));
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("../secret"));
        assert!(to.join("link-to-directory").symlink_metadata().unwrap().is_symlink());
        assert_eq!(to.join("deep").metadata().unwrap().modified().unwrap(), long_ago);
    }

    #[test]
    fn the_source_itself_is_not_a_link() {
        let root = tempfile::tempdir().unwrap();
        symlink("/etc", root.path().join("from")).unwrap();
        std::fs::create_dir(root.path().join("to")).unwrap();
        tree(&root.path().join("from"), &root.path().join("to")).unwrap_err();
    }
}
