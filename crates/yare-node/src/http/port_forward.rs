//! `/portForward`: connections to ports inside a pod, over SPDY, SPDY tunnelled through WebSocket, or WebSocket
//! channels.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use yare_spdy as spdy;

use super::upgrade::{Protocol, Upgrade, negotiate};
use super::{Body, query, text};
use crate::kubelet::Kubelet;
use crate::streaming::session::Outlet;
use crate::streaming::websocket::{self, Incoming as Message};

/// SPDY through WebSocket, then the older channel protocols.
const TUNNEL: &[&str] = &["SPDY/3.1+portforward.k8s.io", "v2.portforward.k8s.io"];
const WEBSOCKET: &[&str] = &[
    "SPDY/3.1+portforward.k8s.io",
    "v2.portforward.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
];
const SPDY: &[&str] = &["portforward.k8s.io"];
/// Ports of one WebSocket connection.
const PORTS_MAX: usize = 64;
const BLOCK_BYTES: usize = 32 << 10;

/// Serves the request.
pub(super) async fn serve(
    kubelet: &Arc<Kubelet>,
    words: &[&str],
    request: Request<Incoming>,
) -> Response<Body> {
    let (namespace, pod, uid) = match words {
        [_, namespace, pod] => (namespace, pod, None),
        [_, namespace, pod, uid] => (namespace, pod, Some(*uid)),
        _ => return text(StatusCode::NOT_FOUND, "404 page not found\n"),
    };
    let Some(state) = kubelet.find_pod(namespace, pod, uid) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist\n");
    };
    let Some(sandbox) = state.sandbox else {
        return text(StatusCode::NOT_FOUND, format!("pod {pod:?} does not run\n"));
    };
    let raw = request.uri().query().unwrap_or_default();
    let ports: Vec<u16> = query(raw, "port")
        .iter()
        .chain(&query(raw, "ports"))
        .flat_map(|list| list.split(','))
        .filter_map(|p| p.trim().parse().ok())
        .take(PORTS_MAX)
        .collect();
    let Upgrade { protocol, on, response } = match negotiate(request, WEBSOCKET, SPDY) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return *refusal,
    };
    if matches!(&protocol, Protocol::WebSocket(p) if !TUNNEL.contains(&p.as_str())) && ports.is_empty() {
        return text(StatusCode::BAD_REQUEST, "query parameter \"port\" is required\n");
    }
    let kubelet = kubelet.clone();
    let work = async move {
        let Ok(upgraded) = on.await else { return };
        let io = TokioIo::new(upgraded);
        match protocol {
            Protocol::Spdy(_) => over_spdy(&kubelet, &sandbox, io).await,
            Protocol::WebSocket(p) if TUNNEL.contains(&p.as_str()) => {
                over_spdy(&kubelet, &sandbox, websocket::tunnel(io).await).await;
            }
            Protocol::WebSocket(p) => over_channels(&kubelet, &sandbox, io, &p, &ports).await,
        }
    };
    tokio::spawn(yare_trace::scoped(yare_trace::current(), work));
    response
}

/// Pairs of streams, one for data and one for errors, by request id.
async fn over_spdy<S>(kubelet: &Arc<Kubelet>, sandbox: &str, io: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut connection = spdy::serve(io);
    let mut pairs: HashMap<String, (Option<spdy::Stream>, Option<spdy::Stream>)> = HashMap::new();
    let mut running = JoinSet::new();
    let mut unnamed = 0u32;
    loop {
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            Some(_) = running.join_next(), if !running.is_empty() => continue,
        };
        let Some(stream) = stream else { return };
        // Old clients name no request; theirs come as error stream, then data stream.
        let id = match stream.header("requestid") {
            Some(id) => id.to_owned(),
            None => {
                unnamed += u32::from(stream.header("streamtype") == Some("error"));
                format!("unnamed-{unnamed}")
            }
        };
        let pair = pairs.entry(id.clone()).or_default();
        match stream.header("streamtype") {
            Some("error") => pair.0 = Some(stream),
            Some("data") => pair.1 = Some(stream),
            _ => {
                stream.writer.reset().await;
                continue;
            }
        }
        if pair.0.is_none() || pair.1.is_none() {
            continue;
        }
        if let Some((Some(error), Some(data))) = pairs.remove(&id) {
            let (kubelet, sandbox) = (kubelet.clone(), sandbox.to_owned());
            running.spawn(async move { forward_pair(&kubelet, &sandbox, &error, data).await });
        }
    }
}

async fn forward_pair(kubelet: &Kubelet, sandbox: &str, error: &spdy::Stream, data: spdy::Stream) {
    let spdy::Stream { headers, mut reader, writer } = data;
    let port =
        headers.iter().find(|(n, _)| n == "port").and_then(|(_, v)| v.parse::<u16>().ok()).unwrap_or(0);
    let (sender, receiver) = mpsc::channel(4);
    let feed = async {
        while let Some(bytes) = reader.read().await {
            if sender.send(bytes).await.is_err() {
                break;
            }
        }
        drop(sender);
        std::future::pending::<()>().await;
    };
    let outlet = Outlet::Spdy(writer.clone());
    let outcome = tokio::select! {
        outcome = connect(kubelet, sandbox, port, receiver, &outlet) => outcome,
        () = feed => Ok(()),
    };
    if let Err(message) = outcome {
        let text = format!(
            "an error occurred forwarding {port} -> {port}: error forwarding port {port} to pod {sandbox}: {message}"
        );
        error.writer.write(text.into()).await;
    }
    writer.close().await;
    error.writer.close().await;
}

/// Joins a client's bytes to a port until both sides are done.
async fn connect(
    kubelet: &Kubelet,
    sandbox: &str,
    port: u16,
    mut from: mpsc::Receiver<Bytes>,
    to: &Outlet,
) -> Result<(), String> {
    let target = kubelet.runtime.port_forward(sandbox, port).await.map_err(|e| e.to_string())?;
    let (mut read_half, mut write_half) = tokio::io::split(target);
    let upstream = async {
        while let Some(bytes) = from.recv().await {
            if write_half.write_all(&bytes).await.is_err() || write_half.flush().await.is_err() {
                return;
            }
        }
        let _ = write_half.shutdown().await;
    };
    let downstream = async {
        let mut buffer = BytesMut::with_capacity(BLOCK_BYTES);
        loop {
            buffer.reserve(BLOCK_BYTES);
            match read_half.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    if !to.write(buffer.split().freeze()).await {
                        return;
                    }
                }
            }
        }
    };
    tokio::pin!(upstream, downstream);
    // The target's end is the end; the client's is only half of it.
    tokio::select! {
        () = &mut downstream => {}
        () = &mut upstream => downstream.await,
    }
    Ok(())
}

/// Two channels per port: data and errors; each begins with the port in two bytes, little end first.
async fn over_channels<S>(kubelet: &Arc<Kubelet>, sandbox: &str, io: S, protocol: &str, ports: &[u16])
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut channels = websocket::channels(io, protocol).await;
    let mut inputs = HashMap::new();
    let mut running = JoinSet::new();
    for (index, port) in ports.iter().copied().enumerate() {
        let Ok(data_channel) = u8::try_from(index * 2) else { break };
        let data = channels.writer(data_channel);
        let error = channels.writer(data_channel + 1);
        for writer in [&data, &error] {
            writer.write(Bytes::copy_from_slice(&port.to_le_bytes())).await;
        }
        let (sender, receiver) = mpsc::channel(16);
        inputs.insert(data_channel, sender);
        let (kubelet, sandbox) = (kubelet.clone(), sandbox.to_owned());
        running.spawn(async move {
            let outlet = Outlet::WebSocket(data);
            if let Err(message) = connect(&kubelet, &sandbox, port, receiver, &outlet).await {
                error.write(format!("an error occurred forwarding {port} -> {port}: {message}").into()).await;
            }
        });
    }
    loop {
        tokio::select! {
            message = channels.incoming.recv() => match message {
                Some(Message::Data(channel, bytes)) if bytes.has_remaining() => {
                    if let Some(input) = inputs.get(&channel) {
                        let _ = input.send(bytes).await;
                    }
                }
                Some(Message::Closed(channel)) => {
                    inputs.remove(&channel);
                }
                Some(Message::Data(..)) => {}
                None => return,
            },
            done = running.join_next() => if done.is_none() {
                break;
            },
        }
    }
    channels.finish().await;
}
