//! Ways out through proxies: names and addresses that this machine does not know are reached all the same.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use common::Server;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener},
};
use yare_apiserver::Egress;
use yare_auth::{
    pki::{Pki, Subject, Usage},
    tls::{self, Speaks},
};

const HOOK: &str = "hook.example";
/// A machine that nobody has (RFC 5737).
const NODE: &str = "192.0.2.7";

/// Allows everything, or says hello.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let text = match serde_json::from_slice::<Value>(&body) {
            Ok(review) => {
                let response = json!({"uid": review["request"]["uid"], "allowed": true});
                json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response})
                    .to_string()
            }
            Err(_) => "hello".to_owned(),
        };
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Answers one CONNECT for a place that it knows.
async fn connect(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    places: &HashMap<String, u16>,
    asked: &Mutex<Vec<String>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap().to_owned();
    asked.lock().push(target.clone());
    let Some(port) = places.get(&target) else {
        client.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await.unwrap();
        return;
    };
    let mut server = TcpStream::connect(("127.0.0.1", *port)).await.unwrap();
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

#[tokio::test]
async fn webhooks_and_nodes_are_reached_through_proxies() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path()).unwrap();
    let names = [HOOK.to_owned()];
    let subject = Subject { common_name: "hook", organizations: &[], alternative_names: &names };
    let pair = pki.cluster.issue(Usage::Server, &subject, Duration::from_secs(3600)).unwrap();
    let acceptor =
        tokio_rustls::TlsAcceptor::from(tls::server(&pair, &pki.cluster.certificate, Speaks::Http1).unwrap());

    let (hook, node) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let places = HashMap::from([
        (format!("{HOOK}:8443"), hook.local_addr().unwrap().port()),
        (format!("{NODE}:8080"), node.local_addr().unwrap().port()),
    ]);
    tokio::spawn(async move {
        while let Ok((stream, _)) = hook.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream).await;
                }
            });
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = node.accept().await {
            tokio::spawn(serve(stream));
        }
    });

    // One proxy at a socket and one at an address.
    let socket = dir.path().join("proxy.sock");
    let (local, remote) =
        (UnixListener::bind(&socket).unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let url = format!("http://{}", remote.local_addr().unwrap());
    let (places, by_socket, by_address) = (Arc::new(places), Arc::default(), Arc::default());
    let (known, asked) = (places.clone(), Arc::clone(&by_socket));
    tokio::spawn(async move {
        while let Ok((client, _)) = local.accept().await {
            let (known, asked): (_, Arc<Mutex<Vec<String>>>) = (known.clone(), Arc::clone(&asked));
            tokio::spawn(async move { connect(client, &known, &asked).await });
        }
    });
    let asked = Arc::clone(&by_address);
    tokio::spawn(async move {
        while let Ok((client, _)) = remote.accept().await {
            let (known, asked): (_, Arc<Mutex<Vec<String>>>) = (places.clone(), Arc::clone(&asked));
            tokio::spawn(async move { connect(client, &known, &asked).await });
        }
    });

    let text = json!({"apiVersion": "apiserver.k8s.io/v1beta1", "kind": "EgressSelectorConfiguration", "egressSelections": [
        {"name": "cluster", "connection": {"proxyProtocol": "HTTPConnect", "transport": {"uds": {"udsName": socket}}}},
        {"name": "controlplane", "connection": {"proxyProtocol": "HTTPConnect", "transport": {"tcp": {"url": url}}}},
    ]});
    let egress = Egress::parse(text.to_string().as_bytes()).unwrap();
    let server = Server::with(|config| config.egress = Some(Arc::new(egress))).await;

    let hook = json!({"metadata": {"name": "hook"}, "webhooks": [{
        "name": "hook.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"url": format!("https://{HOOK}:8443/"), "caBundle": STANDARD.encode(&pki.cluster.certificate)},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
    }]});
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    server.post(path, &hook).await.expect(201);
    let map = json!({"metadata": {"name": "a"}});
    server.post("/api/v1/namespaces/default/configmaps", &map).await.expect(201);
    assert_eq!(*by_address.lock(), [format!("{HOOK}:8443")]);

    let node = json!({"metadata": {"name": "far"}, "status": {"addresses": [{"type": "InternalIP", "address": NODE}]}});
    server.post("/api/v1/nodes", &node).await.expect(201);
    let answer = server.get("/api/v1/nodes/http:far:8080/proxy/x").await;
    assert_eq!((answer.code, answer.text()), (200, "hello".to_owned()));
    let answer = server.get("/api/v1/nodes/http:far:8081/proxy/x").await;
    assert_eq!(answer.code, 503);
    assert!(answer.text().contains("code 502: 502 Bad Gateway"), "{}", answer.text());
    assert_eq!(*by_socket.lock(), [format!("{NODE}:8080"), format!("{NODE}:8081")]);

    let page = server.get("/metrics").await.text();
    for line in [
        r#"apiserver_egress_dialer_dial_start_total{protocol="http_connect",transport="tcp"} 1"#,
        r#"apiserver_egress_dialer_dial_start_total{protocol="http_connect",transport="uds"} 2"#,
        r#"apiserver_egress_dialer_dial_failure_count{protocol="http_connect",transport="uds",stage="proxy"} 1"#,
        r#"apiserver_egress_dialer_dial_duration_seconds_count{protocol="http_connect",transport="uds"} 1"#,
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
}
