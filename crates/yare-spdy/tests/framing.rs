//! SPDY framing: whatever a peer sends, its connection ends when the peer is done, and no stream has more than was sent.
//! A target like those of `yare-fuzz`, but here, because what it needs is large.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::{Builder, Runtime},
};
use yare_fuzz::mutate::{Random, mutated};
use yare_spdy::{Stream, serve};

/// A peer that says what it has to say, and takes everything.
#[derive(Default)]
struct Peer {
    says: Vec<u8>,
    said: usize,
    /// Whether it stays when it has nothing more to say.
    stays: bool,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let rest = self.says.get(self.said..).unwrap_or_default();
        if rest.is_empty() && self.stays {
            return Poll::Pending;
        }
        let taken = rest.len().min(into.remaining());
        into.put_slice(&rest[..taken]);
        self.said += taken;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.heard.lock().unwrap().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn runtime() -> Runtime {
    // Without I/O it needs nothing of the machine but memory.
    Builder::new_current_thread().enable_time().build().unwrap()
}

/// Lets a server have what a peer sends; how many streams that opened.
fn frames(bytes: &[u8]) -> usize {
    let sent = bytes.len();
    runtime().block_on(async {
        let mut connection = serve(Peer { says: bytes.to_vec(), ..Peer::default() });
        let mut readers = Vec::new();
        while let Some(Stream { headers, mut reader, writer }) = connection.accept().await {
            // Header blocks are compressed, and bounded by themselves. What is no text grows threefold.
            let size: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
            assert!(size <= 3 * (64 << 10), "{size}");
            readers.push(tokio::spawn(async move {
                let mut got = 0;
                while let Some(bytes) = reader.read().await {
                    got += bytes.len();
                }
                writer.close().await;
                got
            }));
        }
        let streams = readers.len();
        for reader in readers {
            let got = reader.await.unwrap();
            assert!(got <= sent, "{got} bytes of {sent}");
        }
        streams
    })
}

/// What a client sends that opens streams and writes to them.
fn client() -> Vec<u8> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let peer = Peer { stays: true, heard: heard.clone(), ..Peer::default() };
    runtime().block_on(async {
        let connection = serve(peer);
        for kind in ["error", "data"] {
            let headers =
                vec![("streamtype".to_owned(), kind.to_owned()), ("port".to_owned(), "80".to_owned())];
            let stream = connection.open(headers).await.unwrap();
            assert!(stream.writer.write(kind.into()).await);
            stream.writer.close().await;
        }
        connection.flush().await;
    });
    std::mem::take(&mut *heard.lock().unwrap())
}

/// A control frame.
fn control(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(0).to_be_bytes();
    [&[0x80, 3, 0, kind, flags][..], &length[1..], body].concat()
}

fn data(stream: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(0).to_be_bytes();
    [&[0, 0, 0, stream, flags][..], &length[1..], body].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let client = client();
    assert_eq!(frames(&client), 2, "a client opens its streams");
    let pings = [control(6, 0, &[0, 0, 0, 1]), control(6, 0, &[0, 0, 0, 2])].concat();
    let windows = [
        control(4, 0, &[0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 9]),
        client.clone(),
        control(9, 0, &[0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff]),
        control(3, 0, &[0, 0, 0, 3, 0, 0, 0, 5]),
        control(7, 0, &[0, 0, 0, 1, 0, 0, 0, 0]),
    ];
    vec![[pings, client].concat(), windows.concat(), data(3, 0, &[7; 300])]
}

#[test]
fn damaged_connections_end() {
    let seeds = seeds();
    seeds.iter().for_each(|seed| _ = frames(seed));
    let mut random = Random::new(36);
    for _ in 0..2_000 {
        frames(&mutated(&mut random, &seeds, &[]));
    }
}
