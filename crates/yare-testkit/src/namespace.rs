//! A network namespace that lives as long as its owner.

use std::{
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _},
    thread,
};

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes one, with `lo` up. Needs root.
    pub fn new() -> anyhow::Result<Self> {
        let made = thread::spawn(|| -> anyhow::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("network namespaces need root")?;
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
            anyhow::ensure!(up.success(), "ip link set lo up: {up}");
            let path = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
            Ok(File::open(path)?)
        });
        Ok(Self { file: made.join().map_err(|_| anyhow::anyhow!("the namespace's thread panicked"))?? })
    }

    /// Runs `work` in a thread inside the namespace; processes that it starts are inside too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| -> anyhow::Result<T> {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread inside the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<thread::JoinHandle<anyhow::Result<T>>> {
        let file = self.file.try_clone()?;
        Ok(thread::spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        }))
    }

    /// Moves a link from this namespace to another.
    pub fn give_link(&self, link: &str, to: &Self) -> anyhow::Result<()> {
        // `ip` finds the other namespace by a descriptor that this process holds.
        let path = format!("/proc/{}/fd/{}", std::process::id(), to.file.as_raw_fd());
        let moved = self.run(|| {
            std::process::Command::new("ip").args(["link", "set", link, "netns", &path]).status()
        })??;
        anyhow::ensure!(moved.success(), "ip link set {link} netns {path}: {moved}");
        Ok(())
    }

    /// What names the namespace in `/proc/PID/ns/net`.
    pub fn inode(&self) -> anyhow::Result<u64> {
        use std::os::unix::fs::MetadataExt as _;
        Ok(self.file.metadata()?.ino())
    }
}
