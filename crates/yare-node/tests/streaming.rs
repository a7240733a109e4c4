//! The kubelet's API from a client's side: logs, exec and attach over WebSocket and SPDY, port forwarding in
//! its three forms, numbers, and who may ask.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;

use bytes::Bytes;
use common::{Cluster, http_get};
use futures::{SinkExt, StreamExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use yare_spdy as spdy;

/// A pod that runs, and the address of its kubelet's API (plain HTTP, everybody allowed).
async fn serving() -> (Cluster, SocketAddr) {
    let mut cluster = Cluster::without_node().await;
    cluster.start_node(common::open).await;
    let spec = json!({"containers": [{"name": "web", "image": "present:1", "command": ["run"]}], "terminationGracePeriodSeconds": 1});
    cluster.pod("web", spec).await;
    cluster.wait_ready("web").await;
    let address = cluster.node.as_ref().unwrap().address().unwrap();
    (cluster, address)
}

/// Asks for SPDY and gives back the connection once it was granted.
async fn spdy_connect(address: SocketAddr, path: &str, protocol: &str) -> spdy::Connection {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(
        head.starts_with("http/1.1 101") && head.contains(&format!("x-stream-protocol-version: {protocol}")),
        "{head}"
    );
    spdy::connect(stream)
}

async fn drain(stream: &mut spdy::Stream) -> String {
    let mut all = Vec::new();
    while let Some(bytes) = stream.reader.read().await {
        all.extend_from_slice(&bytes);
    }
    String::from_utf8(all).unwrap()
}

type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

async fn websocket(address: SocketAddr, path: &str, protocol: &str) -> Socket {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
    socket
}

/// Everything per channel until the server closes, which it must do with the status that clients take as success,
/// and without the signal that is only the client's to send.
async fn collect(socket: &mut Socket) -> std::collections::BTreeMap<u8, Vec<u8>> {
    let mut channels: std::collections::BTreeMap<u8, Vec<u8>> = Default::default();
    let mut end = None;
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) => channels.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]),
            Message::Close(frame) => end = frame.map(|f| u16::from(f.code)),
            _ => {}
        }
    }
    assert_eq!(end, Some(1000));
    assert!(!channels.contains_key(&255));
    channels
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_told_by_the_runtime() {
    let (cluster, address) = serving().await;
    let list = async |path: &str| {
        let (code, text) = http_get(address, path).await;
        assert_eq!(code, 200, "{path}: {text}");
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["items"].clone()
    };
    let spec = json!({"containers": [{"name": "deaf", "image": "present:1", "command": ["ignore"]}]});
    let uid = cluster.pod("deaf", spec).await;
    cluster.wait_ready("deaf").await;
    let running = list("/runningpods/").await;
    assert_eq!(running.as_array().unwrap().len(), 2);
    assert_eq!(
        running[0],
        json!({
            "metadata": {"name": "deaf", "namespace": "default", "uid": uid},
            "spec": {"containers": [{"name": "deaf", "image": "present:1", "resources": {}}]},
            "status": {},
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_and_logs() {
    let (cluster, address) = serving().await;
    assert_eq!(http_get(address, "/healthz").await, (200, "ok".to_owned()));
    let (_, pods) = http_get(address, "/pods").await;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&pods).unwrap()["items"][0]["metadata"]["name"],
        "web"
    );
    assert_eq!(
        http_get(address, "/containerLogs/default/web/web").await,
        (200, "6\r\nhello\n\r\n0\r\n\r\n".to_owned())
    );
    assert_eq!(http_get(address, "/containerLogs/default/web/nope").await.0, 404);
    assert_eq!(http_get(address, "/containerLogs/default/web/web?tailLines=x").await.0, 400);
    assert_eq!(
        http_get(address, "/containerLogs/default/web/web?previous=true").await,
        (400, "previous terminated container \"web\" in pod \"web\" not found\n".to_owned())
    );
    assert!(http_get(address, "/logs/").await.1.contains("<a href=\"pods/\">pods/</a>"));
    let (_, summary) = http_get(address, "/stats/summary").await;
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["pods"][0]["containers"][0]["memory"]["workingSetBytes"], 4096);
    let (_, metrics) = http_get(address, "/metrics/resource").await;
    assert!(metrics.contains(
        "container_cpu_usage_seconds_total{container=\"web\",namespace=\"default\",pod=\"web\"} 1.5\n"
    ));
    assert!(http_get(address, "/metrics").await.1.contains("kubelet_running_pods 1\n"));
    assert_eq!(http_get(address, "/nothing").await.0, 404);
    assert_eq!(http_get(address, "/exec/default/web/web?command=a&output=1").await.0, 400);

    // Following ends with the container.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /containerLogs/default/web/web?follow=true HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let log = cluster.runtime.container_named("web").unwrap().0.log_path;
    let mut file = std::fs::OpenOptions::new().append(true).open(log).unwrap();
    std::io::Write::write_all(&mut file, b"2026-01-01T00:00:01.000000000Z stdout F more\n").unwrap();
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains("more") {
        let n = stream.read(&mut buffer).await.unwrap();
        text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    cluster.runtime.exit("web", 0);
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.ends_with("0\r\n\r\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_over_websocket() {
    let (_cluster, address) = serving().await;
    let path = "/exec/default/web/web?command=say&command=3&input=1&output=1&error=1";
    let mut socket = websocket(address, path, "v5.channel.k8s.io").await;
    socket.send(Message::Binary(Bytes::from_static(b"\0typed"))).await.unwrap();
    socket.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap();
    let channels = collect(&mut socket).await;
    assert_eq!(String::from_utf8_lossy(&channels[&1]), "say 3\ntyped");
    let status: serde_json::Value = serde_json::from_slice(&channels[&3]).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "3");

    // As text too, which is how some clients send it.
    let path = "/exec/default/web/web?command=say&command=0&output=1&tty=1";
    let size = "\x04{\"Width\":80,\"Height\":24}";
    for message in [Message::Binary(Bytes::from_static(size.as_bytes())), Message::text(size)] {
        let mut socket = websocket(address, path, "v4.channel.k8s.io").await;
        socket.send(message).await.unwrap();
        let channels = collect(&mut socket).await;
        assert_eq!(String::from_utf8_lossy(&channels[&1]), "say 0\n80x24\n");
        assert_eq!(String::from_utf8_lossy(&channels[&3]), r#"{"metadata":{},"status":"Success"}"#);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_and_attach_over_spdy() {
    let (_cluster, address) = serving().await;
    for (path, want, success) in [
        ("/exec/default/web/web?command=say&command=7&input=1&output=1", "say 7\ntyped", false),
        ("/attach/default/web/web?input=1&output=1", "attached\ntyped", true),
    ] {
        let connection = spdy_connect(address, path, "v4.channel.k8s.io").await;
        let open = async |kind: &str| {
            connection.open(vec![("streamtype".to_owned(), kind.to_owned())]).await.unwrap()
        };
        let mut error = open("error").await;
        let stdin = open("stdin").await;
        let mut stdout = open("stdout").await;
        stdin.writer.write(Bytes::from_static(b"typed")).await;
        stdin.writer.close().await;
        assert_eq!(drain(&mut stdout).await, want);
        let status: serde_json::Value = serde_json::from_str(&drain(&mut error).await).unwrap();
        assert_eq!(status["status"] == "Success", success, "{status}");
    }
}

async fn forward(connection: &spdy::Connection, id: &str, port: &str) -> (spdy::Stream, spdy::Stream) {
    let headers = |kind: &str| {
        [("streamtype", kind), ("port", port), ("requestid", id)]
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .to_vec()
    };
    let error = connection.open(headers("error")).await.unwrap();
    error.writer.close().await;
    (error, connection.open(headers("data")).await.unwrap())
}

async fn check_forwarding(connection: spdy::Connection) {
    let big = vec![b'x'; 300_000];
    let (mut error, mut data) = forward(&connection, "0", "8080").await;
    let (mut error_2, mut refused) = forward(&connection, "1", "1").await;
    let writer = data.writer.clone();
    let sender = tokio::spawn({
        let big = big.clone();
        async move {
            writer.write(big.into()).await;
            writer.close().await;
        }
    });
    let got = drain(&mut data).await;
    sender.await.unwrap();
    assert!(got.starts_with("port 8080\nxxx") && got.len() == big.len() + 10, "{}", got.len());
    assert_eq!(drain(&mut error).await, "");
    assert!(drain(&mut error_2).await.contains("connection refused"));
    assert_eq!(drain(&mut refused).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded_in_every_form() {
    let (_cluster, address) = serving().await;
    let path = "/portForward/default/web";
    check_forwarding(spdy_connect(address, path, "portforward.k8s.io").await).await;

    // The same through WebSocket, as kubectl does it now: binary messages carry SPDY.
    let socket = websocket(address, path, "SPDY/3.1+portforward.k8s.io").await;
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (mut sink, mut stream) = socket.split();
    let (mut from_client, mut to_client) = tokio::io::split(theirs);
    let up = tokio::spawn(async move {
        let mut buffer = vec![0; 8192];
        loop {
            let n = from_client.read(&mut buffer).await.unwrap_or(0);
            if n == 0 || sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                return;
            }
        }
    });
    let down = tokio::spawn(async move {
        while let Some(Ok(Message::Binary(bytes))) = stream.next().await {
            if to_client.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    check_forwarding(spdy::connect(ours)).await;
    up.abort();
    down.abort();

    let mut socket = websocket(address, "/portForward/default/web?port=80", "v4.channel.k8s.io").await;
    let mut got = Vec::new();
    socket.send(Message::Binary(Bytes::from_static(b"\0ping"))).await.unwrap();
    while !got.ends_with(b"ping") {
        match socket.next().await.unwrap().unwrap() {
            Message::Binary(bytes) if bytes[0] == 0 => got.extend_from_slice(&bytes[1..]),
            Message::Binary(bytes) => assert_eq!(bytes.as_ref(), [1, 80, 0]),
            _ => {}
        }
    }
    assert_eq!(got, b"P\0port 80\nping");
}
