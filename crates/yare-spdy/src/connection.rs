//! A connection: one task reads frames, one writes them; streams are handed out as the peer opens them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use crate::frame::{Decoder, Encoder, Frame, FrameError, Headers};

/// A stream's window before anybody says otherwise.
const INITIAL_WINDOW: i64 = 64 << 10;
/// Data of one frame that this side sends.
const DATA_MAX_BYTES: usize = 32 << 10;
/// Unread bytes of a stream at which reading of the connection pauses.
const BACKLOG_MAX_BYTES: usize = 4 << 20;
/// Streams open at once.
const STREAMS_MAX: usize = 256;
/// Frames queued for writing.
const QUEUE_FRAMES: usize = 64;

/// One end of a connection. Dropping it ends the connection.
pub struct Connection {
    next_id: AtomicU32,
    incoming: mpsc::Receiver<Stream>,
    reader: AbortHandle,
    shared: Arc<Shared>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
        self.shared.close();
    }
}

impl Connection {
    /// The next stream that the peer opens; `None` when the connection is over.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Opens a stream to the peer, as a client does. `None` when the connection is over.
    pub async fn open(&self, headers: Vec<(String, String)>) -> Option<Stream> {
        let id = self.next_id.fetch_add(2, Ordering::SeqCst);
        let stream = open(&self.shared, id, false, headers.clone());
        let sent =
            self.shared.out.send(Out::Frame(Frame::SynStream { stream: id, fin: false, headers })).await;
        sent.ok().map(|()| stream)
    }

    /// Waits until everything that was written is on its way.
    pub async fn flush(&self) {
        let done = Arc::new(Notify::new());
        if self.shared.out.send(Out::Flush(done.clone())).await.is_ok() {
            // A connection that fails meanwhile closes the queue, which the writer answers, too.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(5), done.notified()).await;
        }
    }
}

enum Out {
    Frame(Frame),
    Flush(Arc<Notify>),
}

struct Shared {
    out: mpsc::Sender<Out>,
    streams: Mutex<HashMap<u32, Arc<State>>>,
    /// The peer opened the connection.
    serves: bool,
    /// The peer keeps windows: so do we.
    enforce: AtomicBool,
    initial_window: AtomicI64,
}

impl Shared {
    /// Whether the peer is told what has been read.
    ///
    /// A server that keeps no windows, as those of container runtimes, closes the connection when it has written all
    /// of its output. If something that it has not read has come in by then, the kernel takes the close for a reset and
    /// throws away what is on its way here: so such a server is told nothing that it does not need.
    fn updates(&self) -> bool {
        self.serves || self.enforce.load(Ordering::SeqCst)
    }

    fn close(&self) {
        for state in self.streams.lock().drain().map(|(_, s)| s) {
            state.end();
        }
    }
}

/// What reader, writer and connection share of one stream.
struct State {
    id: u32,
    input: Mutex<Option<mpsc::UnboundedSender<Bytes>>>,
    backlog: AtomicUsize,
    drained: Notify,
    /// Bytes that may still be sent.
    window: AtomicI64,
    opened: Notify,
    reset: AtomicBool,
}

impl State {
    /// No more input will come.
    fn end_input(&self) {
        self.input.lock().take();
    }

    /// Nothing goes either way any more.
    fn end(&self) {
        self.reset.store(true, Ordering::SeqCst);
        self.end_input();
        self.opened.notify_waiters();
        self.drained.notify_waiters();
    }
}

/// A stream: its headers, and both directions.
pub struct Stream {
    /// Headers it was opened with; names in lower case.
    pub headers: Vec<(String, String)>,
    /// What the peer sends.
    pub reader: StreamReader,
    /// What goes to the peer.
    pub writer: StreamWriter,
}

impl Stream {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// The peer's half of a stream.
pub struct StreamReader {
    input: mpsc::UnboundedReceiver<Bytes>,
    state: Arc<State>,
    shared: Arc<Shared>,
}

impl StreamReader {
    /// The next bytes; `None` when the peer is done.
    pub async fn read(&mut self) -> Option<Bytes> {
        let bytes = self.input.recv().await?;
        self.state.backlog.fetch_sub(bytes.len(), Ordering::SeqCst);
        self.state.drained.notify_one();
        let delta = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if delta > 0 && self.shared.updates() {
            // Not worth waiting for: an update that does not fit the queue now is made up for by none.
            let update = Frame::WindowUpdate { stream: self.state.id, delta };
            let _ = self.shared.out.send(Out::Frame(update)).await;
        }
        Some(bytes)
    }
}

/// Our half of a stream. Cheap to clone; closing is for all clones.
#[derive(Clone)]
pub struct StreamWriter {
    state: Arc<State>,
    shared: Arc<Shared>,
}

impl StreamWriter {
    /// Sends bytes; `false` when the peer is gone.
    pub async fn write(&self, bytes: Bytes) -> bool {
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut size = rest.len().min(DATA_MAX_BYTES);
            if self.shared.enforce.load(Ordering::SeqCst) {
                let Some(allowed) = self.allowance(size).await else { return false };
                size = allowed;
            }
            if self.state.reset.load(Ordering::SeqCst) {
                return false;
            }
            self.state.window.fetch_sub(i64::try_from(size).unwrap_or(0), Ordering::SeqCst);
            let frame = Frame::Data { stream: self.state.id, fin: false, bytes: rest.split_to(size) };
            if self.shared.out.send(Out::Frame(frame)).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn allowance(&self, wanted: usize) -> Option<usize> {
        loop {
            let opened = self.state.opened.notified();
            if self.state.reset.load(Ordering::SeqCst) {
                return None;
            }
            match usize::try_from(self.state.window.load(Ordering::SeqCst)) {
                Ok(window) if window > 0 => return Some(window.min(wanted)),
                _ => opened.await,
            }
        }
    }

    /// Ends our half.
    pub async fn close(&self) {
        let frame = Frame::Data { stream: self.state.id, fin: true, bytes: Bytes::new() };
        let _ = self.shared.out.send(Out::Frame(frame)).await;
    }

    /// Ends the stream both ways.
    pub async fn reset(&self) {
        self.state.end();
        self.shared.streams.lock().remove(&self.state.id);
        let frame = Frame::RstStream { stream: self.state.id, status: 5 };
        let _ = self.shared.out.send(Out::Frame(frame)).await;
    }
}

/// Speaks SPDY on `io` as a server until the [`Connection`] is dropped or the peer leaves.
pub fn serve<S>(io: S) -> Connection
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // The streams and pings that a side begins have numbers of their own: a client's are odd, a server's even.
    start(io, 2)
}

/// Speaks SPDY on `io` as a client: opens streams with [`Connection::open`].
pub fn connect<S>(io: S) -> Connection
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    start(io, 1)
}

fn start<S>(io: S, first_id: u32) -> Connection
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (read_half, write_half) = tokio::io::split(io);
    let (out, queue) = mpsc::channel(QUEUE_FRAMES);
    let (accepted, incoming) = mpsc::channel(16);
    let shared = Arc::new(Shared {
        out,
        streams: Mutex::default(),
        serves: first_id.is_multiple_of(2),
        enforce: AtomicBool::new(false),
        initial_window: AtomicI64::new(INITIAL_WINDOW),
    });
    tokio::spawn(write(write_half, queue));
    let reader = tokio::spawn({
        let shared = shared.clone();
        async move {
            if let Err(error) = read(read_half, &shared, accepted, first_id % 2).await {
                tracing::debug!(%error, "a SPDY connection ended");
            }
            shared.close();
        }
    });
    Connection { next_id: AtomicU32::new(first_id), incoming, reader: reader.abort_handle(), shared }
}

async fn write<W: AsyncWrite + Unpin>(mut io: W, mut queue: mpsc::Receiver<Out>) {
    let mut encoder = Encoder::new();
    let mut buffer = BytesMut::new();
    while let Some(first) = queue.recv().await {
        let mut waiting = Vec::new();
        let mut next = Some(first);
        // What is queued already goes out in one write.
        while let Some(out) = next {
            match out {
                Out::Frame(frame) => encoder.encode(&frame, &mut buffer),
                Out::Flush(done) => waiting.push(done),
            }
            next = if buffer.len() < 128 << 10 { queue.try_recv().ok() } else { None };
        }
        let written = io.write_all(&buffer).await.is_ok() && io.flush().await.is_ok();
        buffer.clear();
        for done in waiting {
            done.notify_one();
        }
        if !written {
            return;
        }
    }
    let _ = io.shutdown().await;
}

async fn read<R: AsyncRead + Unpin>(
    io: R,
    shared: &Arc<Shared>,
    accepted: mpsc::Sender<Stream>,
    own_parity: u32,
) -> Result<(), FrameError> {
    let mut io = BufReader::with_capacity(32 << 10, io);
    let mut decoder = Decoder::new();
    while let Some(frame) = decoder.read(&mut io).await? {
        match frame {
            Frame::SynStream { stream, fin, headers } => {
                if stream == 0 || shared.streams.lock().contains_key(&stream) {
                    return Err(FrameError::Protocol("a stream is opened twice"));
                }
                if shared.streams.lock().len() >= STREAMS_MAX {
                    // REFUSED_STREAM
                    send(shared, Frame::RstStream { stream, status: 3 }).await?;
                    continue;
                }
                let opened = open(shared, stream, fin, headers);
                send(shared, Frame::SynReply { stream, headers: Vec::new() }).await?;
                if accepted.send(opened).await.is_err() {
                    return Ok(());
                }
            }
            Frame::Data { stream, fin, bytes } => {
                let Some(state) = shared.streams.lock().get(&stream).cloned() else { continue };
                if !bytes.is_empty() {
                    state.backlog.fetch_add(bytes.len(), Ordering::SeqCst);
                    let taken = state.input.lock().as_ref().is_some_and(|input| input.send(bytes).is_ok());
                    while taken && state.backlog.load(Ordering::SeqCst) > BACKLOG_MAX_BYTES {
                        let drained = state.drained.notified();
                        if state.reset.load(Ordering::SeqCst)
                            || state.input.lock().as_ref().is_none_or(mpsc::UnboundedSender::is_closed)
                        {
                            break;
                        }
                        // The timeout only guards against a reader that went away between the checks.
                        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), drained).await;
                    }
                }
                if fin {
                    state.end_input();
                }
            }
            Frame::Headers { stream, fin: true } => {
                if let Some(state) = shared.streams.lock().get(&stream) {
                    state.end_input();
                }
            }
            Frame::RstStream { stream, .. } => {
                let state = shared.streams.lock().remove(&stream);
                if let Some(state) = state {
                    state.end();
                }
            }
            // Numbers of our own kind would be answers to our pings.
            Frame::Ping { id } if id % 2 != own_parity => send(shared, Frame::Ping { id }).await?,
            Frame::Settings { initial_window: Some(window) } => {
                let window = i64::from(window);
                let change = window - shared.initial_window.swap(window, Ordering::SeqCst);
                shared.enforce.store(true, Ordering::SeqCst);
                for state in shared.streams.lock().values() {
                    state.window.fetch_add(change, Ordering::SeqCst);
                    state.opened.notify_waiters();
                }
            }
            Frame::WindowUpdate { stream, delta } => {
                shared.enforce.store(true, Ordering::SeqCst);
                if let Some(state) = shared.streams.lock().get(&stream) {
                    state.window.fetch_add(i64::from(delta), Ordering::SeqCst);
                    state.opened.notify_waiters();
                }
            }
            Frame::GoAway { .. }
            | Frame::Ping { .. }
            | Frame::Settings { .. }
            | Frame::Headers { .. }
            | Frame::SynReply { .. }
            | Frame::Unknown => {}
        }
    }
    Ok(())
}

async fn send(shared: &Shared, frame: Frame) -> Result<(), FrameError> {
    shared.out.send(Out::Frame(frame)).await.map_err(|_| FrameError::Protocol("the peer no longer reads"))
}

fn open(shared: &Arc<Shared>, id: u32, fin: bool, headers: Headers) -> Stream {
    let (sender, input) = mpsc::unbounded_channel();
    let state = Arc::new(State {
        id,
        input: Mutex::new((!fin).then_some(sender)),
        backlog: AtomicUsize::new(0),
        drained: Notify::new(),
        window: AtomicI64::new(shared.initial_window.load(Ordering::SeqCst)),
        opened: Notify::new(),
        reset: AtomicBool::new(false),
    });
    shared.streams.lock().insert(id, state.clone());
    Stream {
        headers: headers.into_iter().map(|(n, v)| (n.to_ascii_lowercase(), v)).collect(),
        reader: StreamReader { input, state: state.clone(), shared: shared.clone() },
        writer: StreamWriter { state, shared: shared.clone() },
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        // What still comes for it is dropped, and does not hold the connection up.
        self.state.end_input();
        self.state.drained.notify_one();
        // A stream both of whose halves are done needs no entry any more.
        if Arc::strong_count(&self.state) <= 2 {
            self.shared.streams.lock().remove(&self.state.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    async fn send_frame(io: &mut (impl AsyncWrite + Unpin), encoder: &mut Encoder, frame: Frame) {
        let mut bytes = BytesMut::new();
        encoder.encode(&frame, &mut bytes);
        io.write_all(&bytes).await.unwrap();
    }

    #[tokio::test]
    async fn echoes_a_stream() {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let mut connection = serve(ours);
        let (mut client_in, mut client_out) = tokio::io::split(theirs);
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let headers = vec![("StreamType".to_owned(), "data".to_owned())];
        send_frame(&mut client_out, &mut encoder, Frame::SynStream { stream: 1, fin: false, headers }).await;
        send_frame(
            &mut client_out,
            &mut encoder,
            Frame::Data { stream: 1, fin: true, bytes: Bytes::from_static(b"hi") },
        )
        .await;
        send_frame(&mut client_out, &mut encoder, Frame::Ping { id: 1 }).await;
        let mut stream = connection.accept().await.unwrap();
        assert_eq!(stream.header("streamtype"), Some("data"));
        assert_eq!(stream.reader.read().await.unwrap(), "hi");
        assert!(stream.reader.read().await.is_none());
        assert!(stream.writer.write(Bytes::from(vec![7; 100_000])).await);
        stream.writer.close().await;
        connection.flush().await;
        let (mut got, mut fin) = (0, false);
        let mut replied = false;
        while !fin {
            match decoder.read(&mut client_in).await.unwrap().unwrap() {
                Frame::SynReply { stream: 1, .. } => replied = true,
                Frame::Data { bytes, fin: f, .. } => {
                    got += bytes.len();
                    fin = f;
                }
                _ => {}
            }
        }
        assert!(replied);
        assert_eq!(got, 100_000);
        drop(connection);
        drop(stream);
        let mut rest = Vec::new();
        client_in.read_to_end(&mut rest).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_without_windows_is_told_of_none() {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let connection = connect(ours);
        let (mut server_in, mut server_out) = tokio::io::split(theirs);
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let mut stream = connection.open(vec![]).await.unwrap();
        assert!(matches!(
            decoder.read(&mut server_in).await.unwrap(),
            Some(Frame::SynStream { stream: 1, .. })
        ));
        let data = Frame::Data { stream: 1, fin: false, bytes: Bytes::from(vec![7; 1000]) };
        send_frame(&mut server_out, &mut encoder, data.clone()).await;
        assert_eq!(stream.reader.read().await.unwrap().len(), 1000);
        send_frame(&mut server_out, &mut encoder, Frame::Ping { id: 2 }).await;
        assert_eq!(decoder.read(&mut server_in).await.unwrap(), Some(Frame::Ping { id: 2 }));
        // One that keeps windows needs to know.
        send_frame(&mut server_out, &mut encoder, Frame::WindowUpdate { stream: 1, delta: 1 }).await;
        send_frame(&mut server_out, &mut encoder, data).await;
        assert_eq!(stream.reader.read().await.unwrap().len(), 1000);
        let update = Frame::WindowUpdate { stream: 1, delta: 1000 };
        assert_eq!(decoder.read(&mut server_in).await.unwrap(), Some(update));
    }

    #[tokio::test]
    async fn keeps_to_a_window_the_peer_keeps() {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let mut connection = serve(ours);
        let (mut client_in, mut client_out) = tokio::io::split(theirs);
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        send_frame(
            &mut client_out,
            &mut encoder,
            Frame::SynStream { stream: 1, fin: false, headers: vec![] },
        )
        .await;
        send_frame(&mut client_out, &mut encoder, Frame::WindowUpdate { stream: 1, delta: 0 }).await;
        send_frame(&mut client_out, &mut encoder, Frame::Ping { id: 1 }).await;
        let stream = connection.accept().await.unwrap();
        // The ping's answer shows that the window update has been read.
        while decoder.read(&mut client_in).await.unwrap().unwrap() != (Frame::Ping { id: 1 }) {}
        let writer = stream.writer.clone();
        let task = tokio::spawn(async move { writer.write(Bytes::from(vec![0; 100_000])).await });
        let mut got = 0;
        while got < 65_536 {
            if let Some(Frame::Data { bytes, .. }) = decoder.read(&mut client_in).await.unwrap() {
                got += bytes.len();
            }
        }
        assert_eq!(got, 65_536);
        assert!(!task.is_finished());
        send_frame(&mut client_out, &mut encoder, Frame::WindowUpdate { stream: 1, delta: 50_000 }).await;
        assert!(task.await.unwrap());
    }
}
