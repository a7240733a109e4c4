//! A connection to one shim: requests out, answers and events in.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{IoContext, Result, RuntimeError};
use crate::proto::{Answer, Ask, Message, Request};
use crate::sys;

/// How long a shim may take to answer anything.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);

/// An answer with its descriptors.
pub(super) struct Reply {
    pub answer: Answer,
    pub fds: Vec<OwnedFd>,
}

/// What a shim says unasked.
#[derive(Debug)]
pub(super) enum ShimEvent {
    Exited {
        id: String,
    },
    /// The connection closed: the shim is gone.
    Gone,
}

/// Kills a shim that does not answer. Its open connection vouches for the pid.
pub(super) fn kill_shim(pid: i32) {
    if pid > 1 {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// A connected shim. Dropping it closes the connection.
pub(super) struct ShimClient {
    pub sandbox: String,
    pub pid: i32,
    sequence: AtomicU64,
    shared: Arc<Shared>,
    listener: tokio::task::AbortHandle,
}

/// What the listening task needs, too.
struct Shared {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
    gone: watch::Sender<bool>,
}

impl Drop for ShimClient {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

#[derive(Default)]
struct Waiting {
    replies: BTreeMap<u64, oneshot::Sender<Reply>>,
    execs: BTreeMap<u64, oneshot::Sender<i32>>,
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> std::io::Result<Option<(Message, Vec<OwnedFd>)>> {
    socket
        .async_io(Interest::READABLE, |fd| {
            // Answers are small; the memory is free again between them.
            let mut buffer = vec![0; 64 * 1024];
            let (n, fds) = sys::recv_packet(fd.as_fd(), &mut buffer)?;
            if n == 0 {
                return Ok(None);
            }
            Ok(Some((serde_json::from_slice(&buffer[..n])?, fds)))
        })
        .await
}

impl ShimClient {
    /// Connects to a running shim. `None`: there is none, or it was so stuck that it had to be killed.
    pub(super) async fn connect(
        sandbox: &str,
        path: &Path,
        events: mpsc::UnboundedSender<ShimEvent>,
    ) -> Result<Option<Arc<Self>>> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd =
            socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).ctx(|| "make a socket".into())?;
        let address = UnixAddr::new(path).ctx(|| format!("socket {}", path.display()))?;
        match connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &address) {
            Ok(()) => {
                let peer = getsockopt(&fd, PeerCredentials).map(|peer| peer.pid());
                match Self::adopt(sandbox, fd, events).await {
                    Ok(shim) => Ok(Some(shim)),
                    Err(e) => {
                        // Nothing could ever end its containers through it.
                        if let Ok(pid) = peer {
                            tracing::warn!(%sandbox, pid, error = %e, "killing a shim that does not answer");
                            kill_shim(pid);
                        }
                        Ok(None)
                    }
                }
            }
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ECONNREFUSED) => Ok(None),
            Err(e) => Err(RuntimeError::io(format!("connect to {}", path.display()), e)),
        }
    }

    /// Waits for the shim's greeting on a fresh connection, then listens to it.
    pub(super) async fn adopt(
        sandbox: &str,
        fd: OwnedFd,
        events: mpsc::UnboundedSender<ShimEvent>,
    ) -> Result<Arc<Self>> {
        let io = |e: std::io::Error| RuntimeError::io(format!("the shim of sandbox {sandbox}"), e);
        sys::size_buffers(fd.as_fd());
        sys::set_nonblocking(fd.as_fd(), true).map_err(io)?;
        let socket = sys::watched(fd).map_err(io)?;
        let greeting = tokio::time::timeout(Duration::from_secs(60), receive(&socket))
            .await
            .map_err(|_| RuntimeError::DeadlineExceeded(format!("making sandbox {sandbox}")))?
            .map_err(io)?;
        let pid = match greeting {
            Some((Message::Ready { pid, error: None }, _)) => pid,
            Some((Message::Ready { error: Some(e), .. }, _)) => {
                return Err(RuntimeError::CannotRun(format!("failed to create pod sandbox: {e}")));
            }
            _ => return Err(RuntimeError::ShimGone(sandbox.to_owned())),
        };
        let shared = Arc::new(Shared { socket, waiting: Mutex::default(), gone: watch::channel(false).0 });
        let listener = tokio::spawn(Arc::clone(&shared).listen(events)).abort_handle();
        Ok(Arc::new(Self { sandbox: sandbox.to_owned(), pid, sequence: AtomicU64::new(1), shared, listener }))
    }
}

impl Shared {
    async fn listen(self: Arc<Self>, events: mpsc::UnboundedSender<ShimEvent>) {
        while let Ok(Some((message, fds))) = receive(&self.socket).await {
            match message {
                Message::Ready { .. } => {}
                Message::Reply { seq, answer } => {
                    if let Some(to) = self.waiting.lock().replies.remove(&seq) {
                        let _ = to.send(Reply { answer, fds });
                    }
                }
                Message::Exited { id, .. } => {
                    let _ = events.send(ShimEvent::Exited { id });
                }
                Message::ExecExited { exec, exit_code } => {
                    if let Some(to) = self.waiting.lock().execs.remove(&exec) {
                        let _ = to.send(exit_code);
                    }
                }
            }
        }
        self.gone.send_replace(true);
        *self.waiting.lock() = Waiting::default();
        let _ = events.send(ShimEvent::Gone);
    }
}

impl ShimClient {
    /// Asks, and waits for the answer.
    pub(super) async fn ask(&self, body: Ask, fds: Vec<OwnedFd>) -> Result<Reply> {
        let gone = || RuntimeError::ShimGone(self.sandbox.clone());
        let seq = self.sequence.fetch_add(1, Ordering::Relaxed);
        let bytes = serde_json::to_vec(&Request { seq, body })
            .map_err(std::io::Error::from)
            .ctx(|| "encode a request".into())?;
        if bytes.len() > sys::MAX_PACKET {
            return Err(RuntimeError::InvalidArgument("the command line is too long".into()));
        }
        let (tx, rx) = oneshot::channel();
        self.shared.waiting.lock().replies.insert(seq, tx);
        let sent = self
            .shared
            .socket
            .async_io(Interest::WRITABLE, |fd| {
                let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                sys::send_packet(fd.as_fd(), &bytes, &borrowed)
            })
            .await;
        drop(fds);
        if sent.is_err() || *self.shared.gone.borrow() {
            self.shared.waiting.lock().replies.remove(&seq);
            return Err(gone());
        }
        match tokio::time::timeout(ANSWER_PATIENCE, rx).await {
            Ok(reply) => reply.map_err(|_| gone()),
            Err(_) => {
                self.shared.waiting.lock().replies.remove(&seq);
                Err(RuntimeError::DeadlineExceeded(format!("the shim of sandbox {}", self.sandbox)))
            }
        }
    }

    /// Will tell the exit code of an exec. Ask before starting it.
    pub(super) fn exec_exit(&self, exec: u64) -> oneshot::Receiver<i32> {
        let (tx, rx) = oneshot::channel();
        self.shared.waiting.lock().execs.insert(exec, tx);
        rx
    }

    pub(super) fn forget_exec(&self, exec: u64) {
        self.shared.waiting.lock().execs.remove(&exec);
    }

    /// Waits until the shim has ended.
    pub(super) async fn ended(&self) {
        let mut gone = self.shared.gone.subscribe();
        let _ = gone.wait_for(|g| *g).await;
    }
}
