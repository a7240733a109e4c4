//! Streams in and out of containers: exec, attach, port-forward.
//!
//! The shim gets (or gives) file descriptors; bytes then flow between the engine's process and the container's
//! without it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{Inner, not_running};
use crate::api::*;
use crate::error::{IoContext, Result, RuntimeError};
use crate::proto::{Answer, Ask};
use crate::sys;

/// The most output that [`Inner::exec_sync`] keeps of each stream.
const MAX_OUTPUT: usize = 16 * 1024 * 1024;
/// How long output may come after the process has ended (from processes it left behind).
const DRAIN: Duration = Duration::from_secs(1);
/// The exit code when the shim died and nobody knows.
const UNKNOWN_EXIT: i32 = 255;

/// A terminal's side that the engine reads and writes.
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let result = guard.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), buf.initialize_unfilled())?));
            match result {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                // The last process has closed the other side.
                Ok(Err(e)) if e.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), data)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The input of a container that others may write to later: when this client is done with it, only its session ends.
struct Shared {
    input: BoxWrite,
    done: CancellationToken,
}

impl AsyncWrite for Shared {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.input).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.done.cancel();
        Poll::Ready(Ok(()))
    }
}

/// Output until the session ends: what has come by then is still read.
struct Until {
    output: BoxRead,
    done: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl AsyncRead for Until {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.output).poll_read(cx, buf) {
            Poll::Pending => self.done.as_mut().poll(cx).map(Ok),
            ready => ready,
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).ctx(|| "make a pipe".into())
}

/// A pipe whose reading end is ours.
fn reader() -> Result<(pipe::Receiver, OwnedFd)> {
    let (r, w) = pipe()?;
    Ok((pipe::Receiver::from_owned_fd(r).ctx(|| "make a pipe".into())?, w))
}

fn terminal(fd: OwnedFd) -> Result<Arc<AsyncFd<OwnedFd>>> {
    sys::set_nonblocking(fd.as_fd(), true).ctx(|| "terminal".into())?;
    Ok(Arc::new(sys::watched(fd).ctx(|| "terminal".into())?))
}

/// Applies new sizes to a terminal, or swallows them.
fn resizer(terminal: Option<Arc<AsyncFd<OwnedFd>>>) -> mpsc::Sender<(u16, u16)> {
    let (tx, mut rx) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Some((cols, rows)) = rx.recv().await {
            if let Some(terminal) = &terminal {
                // A terminal that is gone needs no size.
                let _ = sys::set_window_size(terminal.get_ref().as_fd(), cols, rows);
            }
        }
    });
    tx
}

/// Numbers execs. Starts at a random place, so that an earlier engine's execs are told apart.
fn exec_number() -> u64 {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: OnceLock<AtomicU64> = OnceLock::new();
    let start = || AtomicU64::new((sys::now_ns() as u64) << 8 | 1);
    NEXT.get_or_init(start).fetch_add(1, Ordering::Relaxed)
}

impl Inner {
    pub(super) async fn exec(
        &self,
        id: &str,
        argv: Vec<String>,
        tty: bool,
        stdin: bool,
    ) -> Result<ExecSession> {
        self.start_exec(id, argv, tty, stdin).await.map(|(session, _)| session)
    }

    async fn start_exec(
        &self,
        id: &str,
        argv: Vec<String>,
        tty: bool,
        stdin: bool,
    ) -> Result<(ExecSession, u64)> {
        if argv.is_empty() {
            return Err(RuntimeError::InvalidArgument("exec needs a command".into()));
        }
        let c = self.container_entry(id)?;
        if c.current() != ContainerState::Running {
            return Err(not_running(&c));
        }
        let shim = self
            .sandbox_entry(&c.record.sandbox_id)?
            .shim()
            .ok_or_else(|| RuntimeError::ShimGone(c.record.sandbox_id.clone()))?;
        let exec = exec_number();
        let exited = shim.exec_exit(exec);
        let mut fds = Vec::new();
        let (mut input, mut output, mut errors): (Option<BoxWrite>, Option<BoxRead>, Option<BoxRead>) =
            Default::default();
        if !tty {
            if stdin {
                let (r, w) = pipe()?;
                input = Some(Box::new(pipe::Sender::from_owned_fd(w).ctx(|| "make a pipe".into())?));
                fds.push(r);
            }
            for stream in [&mut output, &mut errors] {
                let (r, w) = reader()?;
                *stream = Some(Box::new(r));
                fds.push(w);
            }
        }
        let reply = self.ask_shim(&c, Ask::Exec { exec, id: id.to_owned(), argv, tty, stdin }, fds).await;
        let reply = match reply {
            Ok(reply) => reply,
            Err(e) => {
                shim.forget_exec(exec);
                return Err(e);
            }
        };
        let mut side = None;
        if let (true, Some(fd)) = (tty, reply.fds.into_iter().next()) {
            let shared = terminal(fd)?;
            if stdin {
                input = Some(Box::new(Terminal(Arc::clone(&shared))));
            }
            output = Some(Box::new(Terminal(Arc::clone(&shared))));
            side = Some(shared);
        }
        let session = ExecSession {
            stdin: input,
            stdout: output,
            stderr: errors,
            resize: resizer(side),
            exit: Box::pin(async move { Ok(exited.await.unwrap_or(UNKNOWN_EXIT)) }),
        };
        Ok((session, exec))
    }

    pub(super) async fn exec_sync(
        &self,
        id: &str,
        argv: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput> {
        let command = argv.join(" ");
        let (session, exec) = self.start_exec(id, argv, false, false).await?;
        let ExecSession { stdout, stderr, exit, .. } = session;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit_code = {
            let mut exit = exit;
            let mut reading = Box::pin(async {
                tokio::join!(read_bounded(stdout, &mut out), read_bounded(stderr, &mut err));
            });
            let deadline = async {
                match timeout.filter(|t| !t.is_zero()) {
                    Some(timeout) => tokio::time::sleep(timeout).await,
                    None => std::future::pending().await,
                }
            };
            tokio::pin!(deadline);
            let mut read_all = false;
            let code = loop {
                tokio::select! {
                    code = &mut exit => break Some(code?),
                    () = &mut reading, if !read_all => read_all = true,
                    () = &mut deadline => break None,
                }
            };
            match code {
                Some(code) => {
                    if !read_all {
                        let _ = tokio::time::timeout(DRAIN, &mut reading).await;
                    }
                    Some(code)
                }
                None => None,
            }
        };
        match exit_code {
            Some(exit_code) => Ok(ExecOutput { stdout: out, stderr: err, exit_code }),
            None => {
                let c = self.container_entry(id)?;
                let _ = self.ask_shim(&c, Ask::KillExec { exec }, Vec::new()).await;
                Err(RuntimeError::DeadlineExceeded(format!(
                    "command {command:?} timed out after {:?}",
                    timeout.unwrap_or_default()
                )))
            }
        }
    }

    pub(super) async fn attach(&self, id: &str, stdin: bool) -> Result<ExecSession> {
        let c = self.container_entry(id)?;
        if c.current() != ContainerState::Running {
            return Err(not_running(&c));
        }
        let config = &c.record.config;
        let (tty, stdin) = (config.tty, stdin && config.stdin);
        let done = CancellationToken::new();
        let until = |output: pipe::Receiver| -> Option<BoxRead> {
            let done = Box::pin(done.clone().cancelled_owned());
            Some(Box::new(Until { output: Box::new(output), done }))
        };
        let (out, out_w) = reader()?;
        let mut fds = vec![out_w];
        let mut errors = None;
        if !tty {
            let (err, err_w) = reader()?;
            errors = until(err);
            fds.push(err_w);
        }
        let reply = self.ask_shim(&c, Ask::Attach { id: id.to_owned(), stdin }, fds).await?;
        let mut input: Option<BoxWrite> = None;
        let mut side = None;
        if let Some(fd) = reply.fds.into_iter().next() {
            if tty {
                let shared = terminal(fd)?;
                input = stdin.then(|| Box::new(Terminal(Arc::clone(&shared))) as BoxWrite);
                side = Some(shared);
            } else {
                input = Some(Box::new(pipe::Sender::from_owned_fd(fd).ctx(|| "attach".into())?));
            }
        }
        if tty || !config.stdin_once {
            input = input.map(|input| Box::new(Shared { input, done: done.clone() }) as BoxWrite);
        }
        let entry = Arc::clone(&c);
        Ok(ExecSession {
            stdin: input,
            stdout: until(out),
            stderr: errors,
            resize: resizer(side),
            exit: Box::pin(async move {
                tokio::select! { () = entry.ended() => {}, () = done.cancelled() => {} }
                Ok(0)
            }),
        })
    }

    pub(super) async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>> {
        let entry = self.sandbox_entry(sandbox)?;
        let shim = entry
            .shim()
            .ok_or_else(|| RuntimeError::FailedPrecondition(format!("sandbox {sandbox} is not running")))?;
        let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
        for v6 in [false, true] {
            let reply = shim.ask(Ask::Dial { port, v6 }, Vec::new()).await?;
            match (reply.answer, reply.fds.into_iter().next()) {
                (Answer::Done, Some(fd)) => match connected(fd).await {
                    Ok(stream) => return Ok(Box::new(stream)),
                    Err(e) => last = e,
                },
                (Answer::Failed(e), _) => last = io::Error::other(e),
                _ => {}
            }
        }
        Err(RuntimeError::io(
            format!("failed to connect to localhost:{port} inside pod {}", entry.record.config.name),
            last,
        ))
    }
}

async fn connected(fd: OwnedFd) -> io::Result<tokio::net::TcpStream> {
    let stream = tokio::net::TcpStream::from_std(std::net::TcpStream::from(fd))?;
    stream.writable().await?;
    match stream.take_error()? {
        None => {
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Some(e) => Err(e),
    }
}

/// Reads to the end, keeping a bounded part.
async fn read_bounded(stream: Option<BoxRead>, into: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        let room = MAX_OUTPUT - into.len();
        into.extend_from_slice(&buffer[..n.min(room)]);
    }
}
