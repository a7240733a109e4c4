//! The streams of exec, attach and port forwarding.
//!
//! CRI answers a URL, at which the runtime's streaming server speaks SPDY to whoever has it; this is its client. One
//! stream each for input, output, errors and terminal sizes; on the last one, the runtime says how it ended, as a
//! Kubernetes `Status`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use yare_spdy::{Connection, Stream, StreamReader, StreamWriter};

use super::{About, Inner, cri, method};
use crate::api::*;
use crate::error::{IoContext as _, Result, RuntimeError};

/// The protocol of an exec's streams: the first in which the end is told as data.
const EXEC_PROTOCOL: &str = "v4.channel.k8s.io";
/// That of port forwarding.
const FORWARD_PROTOCOL: &str = "portforward.k8s.io";
/// How long the streaming server may take to answer.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(30);
/// The most that is read of a refusal, and of how something ended.
const TEXT_MAX_BYTES: usize = 64 << 10;
/// Bytes on their way between this process's end of a stream and its pump.
const PIPE_BYTES: usize = 64 << 10;

impl Inner {
    pub(super) async fn exec(
        &self,
        id: &str,
        argv: Vec<String>,
        tty: bool,
        stdin: bool,
    ) -> Result<ExecSession> {
        if argv.is_empty() {
            return Err(RuntimeError::InvalidArgument("exec needs a command".into()));
        }
        let request =
            cri::ExecRequest { id: id.to_owned(), cmd: argv, tty, stdin, stdout: true, stderr: !tty };
        let answer: cri::StreamingUrl =
            self.ask(method!(runtime "Exec"), request, About("container", id)).await?;
        session(&answer.url, tty, stdin).await
    }

    pub(super) async fn attach(&self, id: &str, tty: bool, stdin: bool) -> Result<ExecSession> {
        let request = cri::AttachRequest { id: id.to_owned(), tty, stdin, stdout: true, stderr: !tty };
        let answer: cri::StreamingUrl =
            self.ask(method!(runtime "Attach"), request, About("container", id)).await?;
        session(&answer.url, tty, stdin).await
    }

    pub(super) async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>> {
        let request = cri::PortForwardRequest { sandbox: sandbox.to_owned(), port: vec![port.into()] };
        let answer: cri::StreamingUrl =
            self.ask(method!(runtime "PortForward"), request, About("sandbox", sandbox)).await?;
        let connection = upgrade(&answer.url, FORWARD_PROTOCOL).await?;
        let open = async |kind: &str| {
            let headers = [("streamtype", kind), ("port", &port.to_string()), ("requestid", "0")];
            stream(&connection, &headers).await
        };
        // In this order: the server pairs them.
        let errors = open("error").await?;
        let data = open("data").await?;
        errors.writer.close().await;
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        tokio::spawn(async move {
            let _connection = connection;
            let (mut from, mut to) = tokio::io::split(theirs);
            let inward = read_in(&mut from, &data.writer);
            let outward = async {
                let mut reader = data.reader;
                while let Some(bytes) = reader.read().await {
                    if to.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                let _ = to.shutdown().await;
            };
            let refused = async {
                let text = collect(errors.reader).await;
                if !text.is_empty() {
                    tracing::debug!(error = %String::from_utf8_lossy(&text), port, "forwarding a port");
                }
            };
            tokio::join!(inward, outward, refused);
        });
        Ok(Box::new(ours))
    }
}

/// Opens a stream with headers.
async fn stream(connection: &Connection, headers: &[(&str, &str)]) -> Result<Stream> {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    connection.open(headers).await.ok_or_else(|| {
        RuntimeError::Unavailable("the runtime's streaming server closed the connection".into())
    })
}

/// Joins the streams at a URL to a session.
async fn session(url: &str, tty: bool, stdin: bool) -> Result<ExecSession> {
    let connection = upgrade(url, EXEC_PROTOCOL).await?;
    let open = async |kind: &str| stream(&connection, &[("streamtype", kind)]).await;
    let errors = open("error").await?;
    let input = if stdin { Some(open("stdin").await?) } else { None };
    let output = open("stdout").await?;
    let error_output = if tty { None } else { Some(open("stderr").await?) };
    let sizes = if tty { Some(open("resize").await?) } else { None };
    errors.writer.close().await;
    output.writer.close().await;

    let connection = Arc::new(connection);
    // Whoever drops the session ends it: everything below looks at this.
    let (owner, left) = watch::channel(());
    let stdin: Option<BoxWrite> = input.map(|stream| {
        let (ours, mut theirs) = tokio::io::duplex(PIPE_BYTES);
        let (mut left, kept) = (left.clone(), connection.clone());
        tokio::spawn(async move {
            let Stream { writer, reader, .. } = stream;
            tokio::select! { () = read_in(&mut theirs, &writer) => {}, _ = left.changed() => {} }
            drop((reader, kept));
        });
        Box::new(ours) as BoxWrite
    });
    let out = |stream: Stream| -> BoxRead {
        let (ours, mut theirs) = tokio::io::duplex(PIPE_BYTES);
        let (mut left, kept) = (left.clone(), connection.clone());
        tokio::spawn(async move {
            let Stream { mut reader, writer, .. } = stream;
            let copy = async {
                while let Some(bytes) = reader.read().await {
                    if theirs.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                let _ = theirs.shutdown().await;
            };
            tokio::select! { () = copy => {}, _ = left.changed() => {} }
            drop((writer, kept));
        });
        Box::new(ours)
    };
    let stdout = Some(out(output));
    let stderr = error_output.map(out);
    let resize = resizer(sizes, left);
    let exit = Box::pin(async move {
        let text = collect(errors.reader).await;
        let ended = outcome(&text);
        drop(connection);
        ended
    });
    let exit = Box::pin(Owned { exit, _owner: owner });
    Ok(ExecSession { stdin, stdout, stderr, resize, exit })
}

/// The exit of a session, whose streams go on until this is dropped: output may come after the exit is known.
struct Owned<F> {
    exit: F,
    _owner: watch::Sender<()>,
}

impl<F: Future + Unpin> Future for Owned<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        Pin::new(&mut self.exit).poll(context)
    }
}

/// Sends what is read here, and then that it was all.
async fn read_in(from: &mut (impl tokio::io::AsyncRead + Unpin), to: &StreamWriter) {
    let mut buffer = bytes::BytesMut::with_capacity(16 << 10);
    loop {
        buffer.reserve(16 << 10);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        if !to.write(buffer.split().freeze()).await {
            return;
        }
    }
    to.close().await;
}

/// Sends new sizes of the terminal, or swallows them.
fn resizer(sizes: Option<Stream>, mut left: watch::Receiver<()>) -> mpsc::Sender<(u16, u16)> {
    let (tx, mut rx) = mpsc::channel::<(u16, u16)>(8);
    tokio::spawn(async move {
        let send = async {
            while let Some((columns, rows)) = rx.recv().await {
                let Some(stream) = &sizes else { continue };
                let text = format!("{{\"Width\":{columns},\"Height\":{rows}}}\n");
                if !stream.writer.write(text.into()).await {
                    return;
                }
            }
        };
        tokio::select! { () = send => {}, _ = left.changed() => {} }
    });
    tx
}

async fn collect(mut reader: StreamReader) -> Vec<u8> {
    let mut text = Vec::new();
    while let Some(bytes) = reader.read().await {
        let room = TEXT_MAX_BYTES - text.len();
        text.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
    text
}

/// The part of a Kubernetes `Status` that tells how a command ended.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Ended {
    status: String,
    reason: String,
    message: String,
    details: Option<Details>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
}

/// The exit code, or why there is none.
fn outcome(text: &[u8]) -> Result<i32> {
    if text.is_empty() {
        return Err(RuntimeError::Unavailable(
            "the runtime closed the stream before the command ended".into(),
        ));
    }
    let Ok(ended) = serde_json::from_slice::<Ended>(text) else {
        return Err(RuntimeError::Remote(String::from_utf8_lossy(text).into_owned()));
    };
    if ended.status == "Success" {
        return Ok(0);
    }
    let causes = ended.details.unwrap_or_default().causes;
    let code = causes.iter().find(|c| c.reason == "ExitCode").and_then(|c| c.message.parse().ok());
    match code {
        Some(code) if ended.reason == "NonZeroExitCode" => Ok(code),
        _ => {
            let message = ended.message.trim_start_matches("Internal error occurred: ").to_owned();
            Err(RuntimeError::Remote(message))
        }
    }
}

/// A URL of a streaming server, taken apart: its address and the path.
fn take_apart(url: &str) -> Result<(String, String)> {
    let bad = || {
        RuntimeError::Remote(format!("the runtime's streaming URL {url:?} is none of http://HOST:PORT/PATH"))
    };
    let uri: http::Uri = url.parse().map_err(|_| bad())?;
    if uri.scheme_str() == Some("https") {
        return Err(RuntimeError::FailedPrecondition(
            "the runtime's streaming server wants TLS, but its URLs are for this machine only: switch it off in the \
             runtime's configuration (containerd: enable_tls_streaming = false)"
                .into(),
        ));
    }
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(bad)?;
    let port = authority.port_u16().unwrap_or(80);
    let host = authority.host();
    // A server that listens everywhere is asked here.
    let host = match host.trim_matches(['[', ']']) {
        "" | "0.0.0.0" => "127.0.0.1",
        "::" => "[::1]",
        _ => host,
    };
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    Ok((format!("{host}:{port}"), path))
}

/// Connects to a streaming server and changes over to SPDY.
async fn upgrade(url: &str, protocol: &str) -> Result<Connection> {
    let (address, path) = take_apart(url)?;
    let work = async {
        let tcp = TcpStream::connect(&address).await.ctx(|| format!("connect to {address}"))?;
        let _ = tcp.set_nodelay(true);
        let failed =
            |e: hyper::Error| RuntimeError::Unavailable(format!("streaming server at {address}: {e}"));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(failed)?;
        tokio::spawn(async move {
            // Its failure shows in the request.
            let _ = connection.with_upgrades().await;
        });
        let request = Request::post(&path)
            .header("host", &address)
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
            .header("x-stream-protocol-version", protocol)
            .body(Empty::<Bytes>::new())
            .map_err(|e| RuntimeError::InvalidArgument(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != hyper::StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            let body = Limited::new(response.into_body(), TEXT_MAX_BYTES).collect().await;
            let text =
                body.map(|b| String::from_utf8_lossy(&b.to_bytes()).trim().to_owned()).unwrap_or_default();
            return Err(RuntimeError::Remote(format!("unable to upgrade connection: {status}: {text}")));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(failed)?;
        Ok(yare_spdy::connect(TokioIo::new(upgraded)))
    };
    tokio::time::timeout(UPGRADE_PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(RuntimeError::DeadlineExceeded(format!("streaming server at {address}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_commands_end() {
        let exit =
            br#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: 7",
            "reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(outcome(exit).unwrap(), 7);
        assert_eq!(outcome(br#"{"metadata":{},"status":"Success"}"#).unwrap(), 0);
        let failed =
            br#"{"status":"Failure","message":"Internal error occurred: error executing command: not found",
            "reason":"InternalError"}"#;
        assert_eq!(outcome(failed).unwrap_err().to_string(), "error executing command: not found");
        assert!(outcome(b"").is_err());
        assert_eq!(outcome(b"what").unwrap_err().to_string(), "what");
    }

    #[test]
    fn urls_of_streaming_servers() {
        for (url, want) in [
            ("http://127.0.0.1:39999/exec/abc", Some(("127.0.0.1:39999", "/exec/abc"))),
            ("http://[::1]:39999/exec/abc", Some(("[::1]:39999", "/exec/abc"))),
            ("http://0.0.0.0:1/a", Some(("127.0.0.1:1", "/a"))),
            ("http://[::]:1/a?b=c", Some(("[::1]:1", "/a?b=c"))),
            ("https://127.0.0.1:1/a", None),
            ("ftp://127.0.0.1:1/a", None),
            ("/exec/abc", None),
        ] {
            let got = take_apart(url).ok();
            assert_eq!(got, want.map(|(a, p)| (a.to_owned(), p.to_owned())), "{url}");
        }
    }
}
