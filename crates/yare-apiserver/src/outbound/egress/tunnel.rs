//! A proxy that is asked over gRPC: konnectivity's `ProxyService`. Each connection is a stream of packets of its own;
//! there is no half-closed connection in it.

use std::time::Duration;

use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::mpsc,
};
use yare_grpc::{Client, Streaming, describe};

use super::{Failed, Pipe};
use crate::core::{Random as _, SystemRandom};

const METHOD: &str = "/ProxyService/Proxy";
/// Bytes that wait for either side.
const BUFFER_BYTES: usize = 64 << 10;
const MAX_DATA_BYTES: usize = 32 << 10;
/// Packets that wait for the proxy.
const PACKETS: usize = 16;
/// How long the proxy may take to say that a connection is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

const DIAL_REQUEST: i32 = 0;
const DIAL_RESPONSE: i32 = 1;
const CLOSE_REQUEST: i32 = 2;
const CLOSE_RESPONSE: i32 = 3;
const DATA: i32 = 4;
const DIAL_CLOSED: i32 = 5;

/// What travels both ways; one of the parts, by the type.
#[derive(Clone, PartialEq, Message)]
struct Packet {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    dial_request: Option<DialRequest>,
    #[prost(message, optional, tag = "3")]
    dial_response: Option<DialResponse>,
    #[prost(message, optional, tag = "4")]
    data: Option<Data>,
    #[prost(message, optional, tag = "5")]
    close_request: Option<CloseRequest>,
    #[prost(message, optional, tag = "6")]
    close_response: Option<CloseResponse>,
}

#[derive(Clone, PartialEq, Message)]
struct DialRequest {
    #[prost(string, tag = "1")]
    protocol: String,
    #[prost(string, tag = "2")]
    address: String,
    /// Tells dials apart that are under way in the proxy.
    #[prost(int64, tag = "3")]
    random: i64,
}

#[derive(Clone, PartialEq, Message)]
struct DialResponse {
    #[prost(string, tag = "1")]
    error: String,
    #[prost(int64, tag = "2")]
    connection: i64,
    #[prost(int64, tag = "3")]
    random: i64,
}

#[derive(Clone, PartialEq, Message)]
struct CloseRequest {
    #[prost(int64, tag = "1")]
    connection: i64,
}

#[derive(Clone, PartialEq, Message)]
struct CloseResponse {
    #[prost(string, tag = "1")]
    error: String,
    #[prost(int64, tag = "2")]
    connection: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Data {
    #[prost(int64, tag = "1")]
    connection: i64,
    #[prost(string, tag = "2")]
    error: String,
    #[prost(bytes = "bytes", tag = "3")]
    data: bytes::Bytes,
}

/// Asks the proxy at the socket for a connection to `target`.
pub(super) async fn open(socket: &str, target: &str) -> Result<Box<dyn Pipe>, Failed> {
    let mut random = [0; 8];
    SystemRandom.fill(&mut random);
    let random = i64::from_le_bytes(random);
    let (packets, mut queue) = mpsc::channel::<Packet>(PACKETS);
    let dial = DialRequest { protocol: "tcp".into(), address: target.to_owned(), random };
    let first = Packet { kind: DIAL_REQUEST, dial_request: Some(dial), ..Packet::default() };
    packets.try_send(first).map_err(|e| Failed::connect(e.to_string()))?;
    let queue = futures::stream::poll_fn(move |context| queue.poll_recv(context));
    let mut answers: Streaming<Packet> = Client::unix(socket)
        .converse(METHOD, queue)
        .await
        .map_err(|status| Failed::connect(describe(&status)))?;
    loop {
        let packet = answers.message().await.map_err(|status| Failed::proxy(describe(&status)))?;
        let Some(packet) = packet else { return Err(Failed::proxy("tunnel closed".into())) };
        match (packet.kind, packet.dial_response) {
            (DIAL_RESPONSE, Some(response)) if response.random == random => {
                if !response.error.is_empty() {
                    return Err(Failed::proxy(response.error));
                }
                let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
                tokio::spawn(pump(theirs, packets, answers, response.connection));
                return Ok(Box::new(ours));
            }
            (DIAL_CLOSED, _) => return Err(Failed::proxy("dial closed".into())),
            // The proxy may say that it is about to end, which does not matter to a dial.
            _ => {}
        }
    }
}

/// Carries bytes both ways until either side ends.
async fn pump(
    local: DuplexStream,
    packets: mpsc::Sender<Packet>,
    mut answers: Streaming<Packet>,
    connection: i64,
) {
    let (mut from, mut to) = tokio::io::split(local);
    let up = async {
        let mut buffer = vec![0; MAX_DATA_BYTES];
        loop {
            let read = from.read(&mut buffer).await.unwrap_or(0);
            if read == 0 {
                break;
            }
            let data = bytes::Bytes::copy_from_slice(&buffer[..read]);
            let data = Data { connection, error: String::new(), data };
            let packet = Packet { kind: DATA, data: Some(data), ..Packet::default() };
            if packets.send(packet).await.is_err() {
                return;
            }
        }
        let close_request = Some(CloseRequest { connection });
        let packet = Packet { kind: CLOSE_REQUEST, close_request, ..Packet::default() };
        // Where the stream has ended there is nobody to be told.
        let _ = packets.send(packet).await;
    };
    let down = async {
        while let Ok(Some(packet)) = answers.message().await {
            match (packet.kind, packet.data) {
                (DATA, Some(data)) if data.connection == connection => {
                    // Where nobody reads any more, the other half says so to the proxy.
                    let _ = to.write_all(&data.data).await;
                }
                (CLOSE_RESPONSE, _) => break,
                _ => {}
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::pin!(down);
    tokio::select! {
        () = &mut down => {}
        () = up => {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, down).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use yare_grpc::{Server, Status};

    use super::*;

    /// A proxy that connects to nothing: what is sent comes back in capitals. The address `nowhere:1` is refused.
    fn echo(asked: Streaming<Packet>) -> impl futures::Stream<Item = Result<Packet, Status>> + Send {
        asked.map(|packet| {
            let packet = packet?;
            Ok(match packet.kind {
                DIAL_REQUEST => {
                    let dial = packet.dial_request.unwrap_or_default();
                    let error =
                        if dial.address == "nowhere:1" { "no such host".into() } else { String::new() };
                    let response = DialResponse { error, connection: 7, random: dial.random };
                    Packet { kind: DIAL_RESPONSE, dial_response: Some(response), ..Packet::default() }
                }
                DATA => {
                    let mut data = packet.data.unwrap_or_default();
                    data.data = data.data.to_ascii_uppercase().into();
                    Packet { kind: DATA, data: Some(data), ..Packet::default() }
                }
                _ => {
                    let response = CloseResponse { error: String::new(), connection: 7 };
                    Packet { kind: CLOSE_RESPONSE, close_response: Some(response), ..Packet::default() }
                }
            })
        })
    }

    #[tokio::test]
    async fn bytes_go_through_a_tunnel() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("proxy.sock");
        let path = socket.to_str().unwrap();
        let error = open(path, "a:1").await.err().unwrap();
        assert_eq!(error.stage, "connect");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let server = Server::new().converse(METHOD, async |asked| Ok(echo(asked)));
        let server = tokio::spawn(server.serve(listener, std::future::pending()));
        let mut pipe = open(path, "a:1").await.map_err(|failed| failed.why).unwrap();
        let sent = "hello ".repeat(30_000);
        let (mut from, mut to) = tokio::io::split(&mut pipe);
        let write = async { to.write_all(sent.as_bytes()).await.unwrap() };
        let mut got = vec![0; sent.len()];
        let read = async { from.read_exact(&mut got).await.unwrap() };
        tokio::join!(write, read);
        assert_eq!(got, sent.to_uppercase().as_bytes());
        pipe.shutdown().await.unwrap();
        let mut rest = Vec::new();
        pipe.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
        let error = open(path, "nowhere:1").await.err().unwrap();
        assert_eq!((error.stage, error.why.as_str()), ("proxy", "no such host"));
        server.abort();
    }
}
