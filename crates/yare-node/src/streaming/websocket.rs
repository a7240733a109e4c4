//! WebSocket: the channel protocols of Kubernetes, and WebSocket as a plain duplex stream (a tunnel).
//!
//! A channel message is one byte, the channel's number, and data. Version 5 adds channel 255, with which the client
//! (never the server) closes another. In the base64 variants messages are text and the number is a digit. The server
//! ends a session by closing the connection with status 1000, which clients take as the end of every stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

/// The channel with which a client closes others (version 5).
const CLOSE: u8 = 255;
/// Largest message taken.
const MESSAGE_MAX_BYTES: usize = 4 << 20;
/// Messages queued in each direction.
const QUEUE: usize = 32;
/// A silent client is pinged; proxies drop silent connections.
const PING_PERIOD: Duration = Duration::from_secs(30);
/// How long a client may take to answer our close. Leaving at once, with input unread, would reset the connection
/// and could cost the client the last output.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What came from the client on a channel.
pub(crate) enum Incoming {
    Data(u8, Bytes),
    /// The client closed a channel.
    Closed(u8),
}

/// Writes to one channel.
#[derive(Clone)]
pub(crate) struct ChannelWriter {
    channel: u8,
    out: mpsc::Sender<(u8, Bytes)>,
}

impl ChannelWriter {
    /// `false` when the client is gone.
    pub(crate) async fn write(&self, bytes: Bytes) -> bool {
        self.out.send((self.channel, bytes)).await.is_ok()
    }
}

/// A connection that speaks channels.
pub(crate) struct Channels {
    pub(crate) incoming: mpsc::Receiver<Incoming>,
    pub(crate) gone: CancellationToken,
    /// Finished once everything was sent and the connection is closed.
    pub(crate) sent: tokio::task::JoinHandle<()>,
    out: mpsc::Sender<(u8, Bytes)>,
}

impl Channels {
    pub(crate) fn writer(&self, channel: u8) -> ChannelWriter {
        ChannelWriter { channel, out: self.out.clone() }
    }

    /// Lets the connection close once all writers are dropped, and waits for that.
    pub(crate) async fn finish(self) {
        let Channels { incoming, out, sent, .. } = self;
        drop((out, incoming));
        let _ = tokio::time::timeout(2 * CLOSE_TIMEOUT, sent).await;
    }
}

fn socket<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> impl Future<Output = WebSocketStream<S>> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_MAX_BYTES))
        .max_frame_size(Some(MESSAGE_MAX_BYTES));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config))
}

/// Speaks the channel protocol `protocol` (empty: the oldest) on an upgraded connection.
pub(crate) async fn channels<S>(io: S, protocol: &str) -> Channels
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let base64 = protocol.contains("base64");
    let closes = protocol.starts_with("v5.");
    let (mut sink, mut stream) = socket(io).await.split();
    let (out, mut outgoing) = mpsc::channel::<(u8, Bytes)>(QUEUE);
    let (received, incoming) = mpsc::channel(QUEUE);
    let gone = CancellationToken::new();
    let reader_gone = gone.clone();
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = stream.next() => message,
                () = reader_gone.cancelled() => return,
            };
            let Some(Ok(message)) = message else { break };
            let (channel, bytes) = match message {
                Message::Binary(mut bytes) if !bytes.is_empty() => (bytes.get_u8(), bytes),
                Message::Text(text) if base64 => {
                    let text = text.as_bytes();
                    match text
                        .first()
                        .map(|c| c.wrapping_sub(b'0'))
                        .zip(STANDARD.decode(text.get(1..).unwrap_or_default()).ok())
                    {
                        Some((channel, bytes)) => (channel, Bytes::from(bytes)),
                        None => continue,
                    }
                }
                // Some clients send as text what is text; the channel stands before it all the same.
                Message::Text(text) if !text.is_empty() => {
                    let mut bytes = Bytes::from(text);
                    (bytes.get_u8(), bytes)
                }
                Message::Close(_) => break,
                _ => continue,
            };
            let message = match channel {
                CLOSE if closes => Incoming::Closed(bytes.first().copied().unwrap_or(CLOSE)),
                channel => Incoming::Data(channel, bytes),
            };
            if received.send(message).await.is_err() {
                // Nobody takes input any more; pings and the close are still read.
                let rest = async { while let Some(Ok(_)) = stream.next().await {} };
                tokio::select! { () = rest => {}, () = reader_gone.cancelled() => {} }
                break;
            }
        }
        reader_gone.cancel();
    });
    let writer_gone = gone.clone();
    let sent = tokio::spawn(async move {
        let mut ping = tokio::time::interval(PING_PERIOD);
        ping.reset();
        loop {
            let message = tokio::select! {
                next = outgoing.recv() => match next {
                    None => break,
                    Some((channel, bytes)) if base64 => {
                        Message::text(format!("{}{}", char::from(b'0' + channel % 10), STANDARD.encode(bytes)))
                    }
                    Some((channel, bytes)) => {
                        let mut framed = BytesMut::with_capacity(bytes.len() + 1);
                        framed.extend_from_slice(&[channel]);
                        framed.extend_from_slice(&bytes);
                        Message::Binary(framed.freeze())
                    }
                },
                _ = ping.tick() => Message::Ping(Bytes::new()),
                () = writer_gone.cancelled() => break,
            };
            if sink.send(message).await.is_err() {
                break;
            }
        }
        let end = CloseFrame { code: CloseCode::Normal, reason: Default::default() };
        let close = async {
            if sink.send(Message::Close(Some(end))).await.is_ok() {
                writer_gone.cancelled().await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, close).await;
        writer_gone.cancel();
    });
    Channels { incoming, gone, sent, out }
}

/// A WebSocket connection whose binary messages are a stream of bytes.
pub(crate) struct Tunnel<S> {
    socket: WebSocketStream<S>,
    rest: Bytes,
}

/// Reads and writes through WebSocket messages.
pub(crate) async fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> Tunnel<S> {
    Tunnel { socket: socket(io).await, rest: Bytes::new() }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::other(other),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                None | Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed)) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let size = self.rest.len().min(buf.remaining());
        let part = self.rest.split_to(size);
        buf.put_slice(&part);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(broken)?;
        let message = Message::Binary(Bytes::copy_from_slice(buf));
        Pin::new(&mut self.socket).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(broken)
    }
}
