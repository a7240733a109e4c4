//! A netlink socket: requests with their acknowledgements, dumps, and batches.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use nix::sched::{CloneFlags, setns};

use super::message::Message;

/// Room for what is sent and for the acknowledgements of a batch; a larger transaction makes more.
const BUFFER_BYTES: usize = 8 * 1024 * 1024;
const RECEIVE_BYTES: usize = 64 * 1024;

/// What the kernel or the socket answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused message number `index` of a request.
    #[error("{0}")]
    Kernel(nix::errno::Errno, usize),
    /// The socket failed.
    #[error("netlink socket: {0}")]
    Io(#[from] io::Error),
}

impl Error {
    /// The kernel's error number, where it was the kernel.
    pub fn errno(&self) -> Option<nix::errno::Errno> {
        match self {
            Self::Kernel(errno, _) => Some(*errno),
            Self::Io(_) => None,
        }
    }
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// A socket in the calling thread's network namespace; `protocol` is [`super::ROUTE`] or
    /// [`super::NETFILTER`].
    pub fn open(protocol: i32) -> Result<Self, Error> {
        // SAFETY: plain socket(2); the result is checked before it is owned.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: `fd` was just returned by socket(2) and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = Self { fd, sequence: 0 };
        socket.buffer(libc::SO_RCVBUFFORCE, BUFFER_BYTES);
        socket.buffer(libc::SO_SNDBUFFORCE, BUFFER_BYTES);
        Ok(socket)
    }

    /// Sets the size of one of its buffers.
    fn buffer(&self, option: libc::c_int, bytes: usize) {
        let size = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX / 2);
        // SAFETY: `size` outlives the call and its length is given. Failure only means a smaller buffer.
        unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                size_of_val(&size) as libc::socklen_t,
            );
        }
    }

    /// A socket in the network namespace `namespace`.
    pub fn open_in(namespace: BorrowedFd<'_>, protocol: i32) -> Result<Self, Error> {
        // A thread of its own enters the namespace and ends with it; the socket stays there.
        std::thread::scope(|scope| {
            let enter = scope.spawn(|| {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
                Self::open(protocol)
            });
            enter.join().unwrap_or_else(|_| Err(io::Error::other("namespace thread panicked").into()))
        })
    }

    /// Sends a request and waits for its acknowledgement.
    pub fn request(&mut self, message: Message) -> Result<(), Error> {
        let sequence = self.next();
        self.send(&message.finish(sequence, libc::NLM_F_ACK as u16))?;
        self.receive(sequence, |_, _| {})
    }

    /// Sends a dump request; `each` gets type and body of every message of the answer.
    pub fn dump(&mut self, message: Message, each: impl FnMut(u16, &[u8])) -> Result<(), Error> {
        let sequence = self.next();
        self.send(&message.finish(sequence, libc::NLM_F_DUMP as u16))?;
        self.receive(sequence, each)
    }

    /// Sends a request that answers with one message; `each` gets type and body.
    pub fn get(&mut self, message: Message, each: impl FnMut(u16, &[u8])) -> Result<(), Error> {
        let sequence = self.next();
        self.send(&message.finish(sequence, libc::NLM_F_ACK as u16))?;
        self.receive(sequence, each)
    }

    /// Sends a netfilter transaction: all messages take effect, or none. `begin` and `end` frame it. It is one
    /// packet, whatever its size: the kernel knows no other way.
    pub fn transaction(&mut self, begin: Message, messages: Vec<Message>, end: Message) -> Result<(), Error> {
        let mut bytes = begin.finish(self.next(), 0);
        let first = self.sequence + 1;
        let count = messages.len();
        for message in messages {
            let sequence = self.next();
            // Only the last is acknowledged: the kernel reports errors of any, and the rest would be noise.
            let ack = if sequence == first + count as u32 - 1 { libc::NLM_F_ACK } else { 0 };
            bytes.extend(message.finish(sequence, ack as u16));
        }
        let last = self.sequence;
        bytes.extend(end.finish(self.next(), 0));
        if bytes.len() > BUFFER_BYTES {
            self.buffer(libc::SO_SNDBUFFORCE, bytes.len());
        }
        self.send(&bytes)?;
        if count == 0 {
            return Ok(());
        }
        self.receive_range(first, last)
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        // SAFETY: pointer and length are of one live slice.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error().into()) } else { Ok(()) }
    }

    fn read(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        loop {
            // SAFETY: pointer and length are of one live, exclusively borrowed slice.
            let got = unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if got >= 0 {
                return Ok(got as usize);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error.into());
            }
        }
    }

    fn receive(&self, sequence: u32, mut each: impl FnMut(u16, &[u8])) -> Result<(), Error> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let length = self.read(&mut buffer)?;
            for (kind, seq, body) in messages(&buffer[..length]) {
                if seq != sequence {
                    // The late answer to a request that failed halfway.
                    continue;
                }
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return result(body, 0),
                    _ => each(kind, body),
                }
            }
        }
    }

    fn receive_range(&self, first: u32, last: u32) -> Result<(), Error> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let length = self.read(&mut buffer)?;
            for (kind, seq, body) in messages(&buffer[..length]) {
                // An error before the first message refuses the transaction as a whole.
                if i32::from(kind) == libc::NLMSG_ERROR && (first.saturating_sub(1)..=last + 1).contains(&seq)
                {
                    result(body, seq.saturating_sub(first) as usize)?;
                    if seq == last {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn result(body: &[u8], index: usize) -> Result<(), Error> {
    let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code == 0 { Ok(()) } else { Err(Error::Kernel(nix::errno::Errno::from_raw(-code), index)) }
}

/// Type, sequence number and body of each message in `bytes`.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..16)?;
        let length = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(header[4..6].try_into().ok()?);
        let sequence = u32::from_ne_bytes(header[8..12].try_into().ok()?);
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}
