//! `/exec`, `/attach` and `/run`: a command in a container, or a container's own streams.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use yare_runtime::{ContainerState, ExecSession, RuntimeError};
use yare_spdy as spdy;

use super::upgrade::{Protocol, Refusal, Upgrade, negotiate};
use super::{Body, flag, query, text};
use crate::kubelet::Kubelet;
use crate::streaming::session::{self, Outlet, Peer};
use crate::streaming::websocket::{self, Incoming as Message};

/// Sub-protocols over WebSocket, the preferred first.
const WEBSOCKET: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
/// Stream protocols over SPDY, the preferred first.
const SPDY: &[&str] =
    &["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// Channel numbers over WebSocket.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// A SPDY client must open its streams within this time.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);

/// What is asked for, from the path and the query.
struct Wish {
    container: String,
    command: Option<Vec<String>>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// The running instance of a container, or the answer to give.
fn find(kubelet: &Kubelet, words: &[&str]) -> Result<String, Refusal> {
    let (namespace, pod, uid, container) = match words {
        [_, namespace, pod, container] => (namespace, pod, None, container),
        [_, namespace, pod, uid, container] => (namespace, pod, Some(*uid), container),
        _ => return Err(Box::new(text(StatusCode::NOT_FOUND, "404 page not found\n"))),
    };
    let Some(state) = kubelet.find_pod(namespace, pod, uid) else {
        return Err(Box::new(text(StatusCode::NOT_FOUND, "pod does not exist\n")));
    };
    let running =
        state.containers.iter().find(|c| c.name == **container && c.state == ContainerState::Running);
    match running {
        Some(running) => Ok(running.id.clone()),
        None => Err(Box::new(text(StatusCode::NOT_FOUND, format!("container not found ({container:?})\n")))),
    }
}

fn wish(kubelet: &Kubelet, words: &[&str], raw: &str, exec: bool) -> Result<Wish, Refusal> {
    let container = find(kubelet, words)?;
    let either = |a: &str, b: &str| flag(raw, a) || flag(raw, b);
    let tty = flag(raw, "tty");
    let wish = Wish {
        container,
        command: exec.then(|| query(raw, "command")),
        stdin: either("input", "stdin"),
        stdout: either("output", "stdout"),
        stderr: either("error", "stderr") && !tty,
        tty,
    };
    if !wish.stdin && !wish.stdout && !wish.stderr {
        return Err(Box::new(text(
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 of stdin, stdout, stderr\n",
        )));
    }
    if wish.command.as_ref().is_some_and(Vec::is_empty) {
        return Err(Box::new(text(StatusCode::BAD_REQUEST, "you must specify a command\n")));
    }
    Ok(wish)
}

/// Serves `/exec` and `/attach`.
pub(super) async fn serve(
    kubelet: &Arc<Kubelet>,
    words: &[&str],
    request: Request<Incoming>,
) -> Response<Body> {
    let raw = request.uri().query().unwrap_or_default().to_owned();
    let wish = match wish(kubelet, words, &raw, words.first() == Some(&"exec")) {
        Ok(wish) => wish,
        Err(refusal) => return *refusal,
    };
    let Upgrade { protocol, on, response } = match negotiate(request, WEBSOCKET, SPDY) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return *refusal,
    };
    let kubelet = kubelet.clone();
    let work = async move {
        let io = match on.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => {
                tracing::debug!(%error, "a client did not complete its upgrade");
                return;
            }
        };
        match protocol {
            Protocol::WebSocket(protocol) => over_websocket(&kubelet, wish, io, &protocol).await,
            Protocol::Spdy(protocol) => over_spdy(&kubelet, wish, io, &protocol).await,
        }
    };
    tokio::spawn(yare_trace::scoped(yare_trace::current(), work));
    response
}

async fn open(kubelet: &Kubelet, wish: &Wish) -> Result<ExecSession, RuntimeError> {
    match &wish.command {
        Some(command) => kubelet.runtime.exec(&wish.container, command.clone(), wish.tty, wish.stdin).await,
        None => kubelet.runtime.attach(&wish.container, wish.tty, wish.stdin).await,
    }
}

async fn join(kubelet: &Kubelet, wish: &Wish, peer: Peer) {
    match open(kubelet, wish).await {
        Ok(running) => session::run(running, peer).await,
        Err(error) => {
            let doing = if wish.command.is_some() { "executing command in" } else { "attaching to" };
            session::fail(&peer, &format!("error {doing} container: {error}")).await;
        }
    }
}

type Io = TokioIo<hyper::upgrade::Upgraded>;

async fn over_websocket(kubelet: &Arc<Kubelet>, wish: Wish, io: Io, protocol: &str) {
    let mut channels = websocket::channels(io, protocol).await;
    let outlet = |wanted: bool, channel: u8| wanted.then(|| Outlet::WebSocket(channels.writer(channel)));
    let (stdin, stdin_receiver) = mpsc::channel(16);
    let (resize, resize_receiver) = mpsc::channel(16);
    let peer = Peer {
        stdin: wish.stdin.then_some(stdin_receiver),
        stdout: outlet(wish.stdout, STDOUT),
        stderr: outlet(wish.stderr, STDERR),
        error: outlet(true, ERROR),
        resize: wish.tty.then_some(resize_receiver),
        plain_errors: !protocol.starts_with("v4.") && !protocol.starts_with("v5."),
        gone: channels.gone.clone(),
    };
    // An empty message tells the client that the connection stands.
    let first = peer.stdout.as_ref().or(peer.stderr.as_ref()).or(peer.error.as_ref());
    if let Some(first) = first {
        first.write(Bytes::new()).await;
    }
    let route = async {
        let mut stdin = Some(stdin);
        while let Some(message) = channels.incoming.recv().await {
            match message {
                Message::Data(STDIN, bytes) => {
                    if let Some(stdin) = &stdin {
                        let _ = stdin.send(bytes).await;
                    }
                }
                Message::Data(RESIZE, bytes) => {
                    // Sizes replace each other: one that does not fit is superseded anyway.
                    let _ = resize.try_send(bytes);
                }
                Message::Closed(STDIN) => stdin = None,
                Message::Data(..) | Message::Closed(_) => {}
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = join(kubelet, &wish, peer) => {}
        () = route => {}
    }
    channels.finish().await;
}

async fn over_spdy(kubelet: &Arc<Kubelet>, wish: Wish, io: Io, protocol: &str) {
    let mut connection = spdy::serve(io);
    let versioned =
        |from: u8| protocol.as_bytes().get(1).is_some_and(|v| protocol.starts_with('v') && *v >= b'0' + from);
    let mut expected = vec!["error"];
    for (wanted, name) in [
        (wish.stdin, "stdin"),
        (wish.stdout, "stdout"),
        (wish.stderr, "stderr"),
        // Terminal sizes have a stream of their own from version 3 on.
        (wish.tty && versioned(3), "resize"),
    ] {
        if wanted {
            expected.push(name);
        }
    }
    let mut streams: HashMap<String, spdy::Stream> = HashMap::new();
    let collect = async {
        while streams.len() < expected.len() {
            let Some(stream) = connection.accept().await else { return false };
            let kind = stream.header("streamtype").unwrap_or_default().to_owned();
            if expected.contains(&kind.as_str()) {
                streams.insert(kind, stream);
            } else {
                stream.writer.reset().await;
            }
        }
        true
    };
    if !matches!(tokio::time::timeout(STREAMS_TIMEOUT, collect).await, Ok(true)) {
        tracing::debug!("a client did not open its streams in time");
        return;
    }
    let gone = CancellationToken::new();
    let outlet = |name: &str| streams.get(name).map(|s| Outlet::Spdy(s.writer.clone()));
    let (stdout, stderr, error) = (outlet("stdout"), outlet("stderr"), outlet("error"));
    let peer = Peer {
        stdin: streams.remove("stdin").map(forward),
        resize: streams.remove("resize").map(forward),
        stdout,
        stderr,
        error,
        plain_errors: !versioned(4),
        gone: gone.clone(),
    };
    let watch = async {
        while let Some(extra) = connection.accept().await {
            extra.writer.reset().await;
        }
        gone.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = join(kubelet, &wish, peer) => {}
        () = watch => {}
    }
    connection.flush().await;
    drop(streams);
}

/// A stream's input as a channel that ends with it.
fn forward(mut stream: spdy::Stream) -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                bytes = stream.reader.read() => {
                    let Some(bytes) = bytes else { return };
                    if sender.send(bytes).await.is_err() {
                        return;
                    }
                }
                () = sender.closed() => return,
            }
        }
    });
    receiver
}

/// Serves `/run`: the command's whole output as the answer.
pub(super) async fn run(kubelet: &Arc<Kubelet>, words: &[&str], raw: &str) -> Response<Body> {
    let container = match find(kubelet, words) {
        Ok(container) => container,
        Err(refusal) => return *refusal,
    };
    let mut command = query(raw, "cmd");
    if let [line] = command.as_slice() {
        command = line.split(' ').map(str::to_owned).collect();
    }
    match kubelet.runtime.exec_sync(&container, command, Some(Duration::from_secs(600))).await {
        Ok(output) => text(StatusCode::OK, [output.stdout, output.stderr].concat()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}
