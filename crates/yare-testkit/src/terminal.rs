//! A command on a pseudo-terminal, as when a person types.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;
use nix::pty::openpty;

use crate::Namespace;

/// A command that believes that it talks to a terminal.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    pub(crate) fn start(
        namespace: &Namespace,
        command: &mut Command,
        size: (u16, u16),
    ) -> anyhow::Result<Self> {
        let (rows, columns) = size;
        let size = nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None)?;
        let (stdin, stdout, stderr) = (pty.slave.try_clone()?, pty.slave.try_clone()?, pty.slave);
        command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
        let child = namespace.run(|| command.spawn())??;
        // The command holds its own copies of the terminal's end; these must not keep it open.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let keyboard = File::from(pty.master);
        let mut output = keyboard.try_clone()?;
        let (sender, screen) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The kernel says EIO when nobody holds the other end any more.
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, keyboard, screen, seen: String::new() })
    }

    /// Types.
    pub fn type_in(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(self.keyboard.write_all(text.as_bytes())?)
    }

    /// Waits until the screen shows `text`.
    pub fn shows(&mut self, text: &str, timeout: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + timeout;
        while !self.seen.contains(text) {
            match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    bail!("the terminal does not show {text:?} but {:?}", self.seen)
                }
            }
        }
        Ok(())
    }

    /// Waits for the end of the command; everything that the screen showed.
    pub fn finish(mut self, timeout: Duration) -> anyhow::Result<(ExitStatus, String)> {
        let deadline = Instant::now() + timeout;
        loop {
            while let Ok(bytes) = self.screen.recv_timeout(Duration::from_millis(20)) {
                self.seen.push_str(&String::from_utf8_lossy(&bytes));
            }
            if let Some(status) = self.child.try_wait()? {
                while let Ok(bytes) = self.screen.recv_timeout(Duration::from_millis(100)) {
                    self.seen.push_str(&String::from_utf8_lossy(&bytes));
                }
                return Ok((status, std::mem::take(&mut self.seen)));
            }
            if Instant::now() > deadline {
                bail!("the command goes on: {:?}", self.seen);
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended already in a test that passed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
