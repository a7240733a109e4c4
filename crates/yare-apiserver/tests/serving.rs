//! How the server is spoken to: its certificates, TLS and HTTP, what browsers are told, and how it ends.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/secure.rs"]
mod secure;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Server, open};
use http::{Method, header};
use rustls::{
    ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    version,
};
use secure::{Cluster, cluster_with, issue};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;
use yare_apiserver::{
    ApiServer, Config,
    browsers::Browsers,
    serving::{Certificates, Pair, Source},
};
use yare_auth::{
    pki::{KeyPairPem, Pki, Subject, Usage},
    tls::{Limits, Speaks},
};

/// A certificate for these names.
fn certificate(pki: &Pki, name: &str, names: &[&str]) -> KeyPairPem {
    let alternative_names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let subject = Subject { common_name: name, organizations: &[], alternative_names: &alternative_names };
    pki.cluster.issue(Usage::Server, &subject, Duration::from_secs(3600)).unwrap()
}

fn write(dir: &Path, name: &str, pair: &KeyPairPem) -> Pair {
    let files = Pair { certificate: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) };
    // As tools do it: never half a file.
    for (path, text) in [(&files.certificate, &pair.certificate), (&files.key, &pair.key)] {
        let new = PathBuf::from(format!("{}.new", path.display()));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, path).unwrap();
    }
    files
}

/// All versions of TLS.
const ALL: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

/// Shakes hands with the server, asking for `name` (or not, where it is an address).
async fn shake(
    cluster: &Cluster,
    name: &str,
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::pem_slice_iter(cluster.pki.cluster.certificate.as_bytes());
    roots.add_parsable_certificates(authority.map(Result::unwrap));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(cluster.address).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// The common name of what is shown to who asks for `name`; it must be good for that name.
async fn shown(cluster: &Cluster, name: &str) -> String {
    let stream = shake(cluster, name, ALL).await.unwrap();
    let der = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let text = String::from_utf8_lossy(&der).into_owned();
    ["usual", "named", "local", "renewed", "again"]
        .iter()
        .find(|known| text.contains(&format!("of-{known}")))
        .map_or_else(|| "another".to_owned(), |known| (*known).to_owned())
}

fn tls_of(config: &mut Config, certificates: Certificates, limits: &Limits, speaks: Speaks) {
    let authorities = config.auth.authorities.load_full();
    config.tls = Some(authorities.server(certificates.serving(), limits, speaks).unwrap());
    config.certificates = Some(certificates);
}

#[tokio::test]
async fn certificates_by_name_are_read_again() {
    let cluster = cluster_with(|config, dir| {
        let pki = Pki::open(&dir.join("pki")).unwrap();
        let usual =
            write(dir, "usual", &certificate(&pki, "of-usual", &["localhost", "127.0.0.1", "other.test"]));
        let named = write(dir, "named", &certificate(&pki, "of-named", &["a.test", "*.wild.test"]));
        let local = write(dir, "local", &certificate(&pki, "of-local", &["127.0.0.1", "b.test"]));
        let others = vec![(named, vec![]), (local, vec!["127.0.0.1".into(), "b.test".into()])];
        let certificates = Certificates::open(Source::Files(usual), others).unwrap();
        tls_of(config, certificates, &Limits::default(), Speaks::Both);
    })
    .await;
    for (name, wanted) in [
        ("localhost", "usual"),
        ("other.test", "usual"),
        ("a.test", "named"),
        ("x.wild.test", "named"),
        ("b.test", "local"),
        // Who asks for no name is known by the address it came to.
        ("127.0.0.1", "local"),
    ] {
        assert_eq!(shown(&cluster, name).await, wanted, "{name}");
    }

    // A pair that does not fit yet changes nothing; once both files are there it is shown.
    let dir = cluster.dir.path();
    let renewed = certificate(&cluster.pki, "of-renewed", &["localhost", "127.0.0.1"]);
    std::fs::write(dir.join("usual.crt"), &renewed.certificate).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(shown(&cluster, "localhost").await, "usual");
    write(dir, "usual", &renewed);
    write(dir, "named", &certificate(&cluster.pki, "of-again", &["c.test", "a.test"]));
    for (name, wanted) in [("localhost", "renewed"), ("a.test", "again"), ("c.test", "again")] {
        let began = Instant::now();
        while shown(&cluster, name).await != wanted {
            assert!(began.elapsed() < Duration::from_secs(10), "{name} is not {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // What is named no more is gone.
    assert!(shake(&cluster, "x.wild.test", ALL).await.is_err());
    cluster.api.shutdown().await;

    let missing = Pair { certificate: "/no/such.crt".into(), key: "/no/such.key".into() };
    let error = Certificates::open(Source::Files(missing), Vec::new()).err().unwrap();
    assert!(error.contains("/no/such.crt"), "{error}");
}

#[tokio::test]
async fn versions_suites_and_protocols_are_limited() {
    let limited = async |version: &'static str, suites: &[&str], speaks| {
        let suites: Vec<String> = suites.iter().map(|s| (*s).to_owned()).collect();
        cluster_with(|config, dir| {
            let pki = Pki::open(&dir.join("pki")).unwrap();
            let own = certificate(&pki, "of-usual", &["localhost"]);
            let certificates = Certificates::open(Source::Own(own), Vec::new()).unwrap();
            tls_of(config, certificates, &Limits::new(version, &suites, &[]).unwrap(), speaks);
            config.http.only_http1 = speaks == Speaks::Http1;
        })
        .await
    };
    let old = &[&version::TLS12][..];
    let new = limited("VersionTLS13", &[], Speaks::Both).await;
    let stream = shake(&new, "localhost", ALL).await.unwrap();
    assert_eq!(stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert!(shake(&new, "localhost", old).await.is_err(), "TLS 1.2 is refused");
    new.api.shutdown().await;

    let suite = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305";
    let one = limited("VersionTLS12", &[suite], Speaks::Http1).await;
    let stream = shake(&one, "localhost", old).await.unwrap();
    let spoken = stream.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(spoken.as_str(), Some("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"));
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]), "HTTP/2 is off");
    assert!(shake(&one, "localhost", ALL).await.is_ok(), "suites of TLS 1.3 are no matter of choice");
    one.api.shutdown().await;
}

#[tokio::test]
async fn browsers_are_told_who_may_ask() {
    let cluster = cluster_with(|config, _| {
        let origins = ["^https://example\\.com(:|$)".to_owned()];
        let directives = ["max-age=31536000".to_owned(), "includeSubDomains".to_owned()];
        config.browsers = Browsers::new(&origins, &directives).unwrap();
    })
    .await;
    let admin = issue(&cluster.pki.cluster, Usage::Client, "root", &["system:masters"]);
    let ask = async |who, method: Method, path: &str, origin: &str| {
        let headers = [("origin", origin)];
        cluster.request(who, method, path, &headers, &Value::Null).await
    };
    let allowed = "https://example.com:8443";
    // Before anybody knows who asks, and for what.
    let answer = ask(None, Method::OPTIONS, "/api/v1/secrets", allowed).await;
    assert_eq!(answer.status(), 204);
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE, PATCH"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token, Authorization, X-Requested-With, If-Modified-Since",
        ),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "Date"),
        (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"),
        (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000; includeSubDomains"),
    ] {
        assert_eq!(answer.headers()[&name], value, "{name}");
    }
    let answer = ask(Some(&admin), Method::GET, "/api/v1/namespaces", allowed).await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["access-control-allow-origin"].to_str().unwrap()),
        (200, allowed)
    );
    let answer = ask(None, Method::GET, "/api/v1/secrets", allowed).await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["access-control-allow-origin"].to_str().unwrap()),
        (403, allowed)
    );
    let answer = ask(None, Method::OPTIONS, "/api/v1/secrets", "https://example.com.evil.test").await;
    assert_ne!(answer.status(), 204);
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
    assert!(answer.headers().contains_key("strict-transport-security"));
    cluster.api.shutdown().await;
}

/// A server on a socket, a request to it that has begun, and how that is let go.
struct Ending {
    server: Server,
    address: SocketAddr,
    running: TcpStream,
}

impl Ending {
    async fn new(change: impl FnOnce(&mut Config)) -> Self {
        let server = Server::with(change).await;
        let listener = ApiServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = server.api.clone();
        tokio::spawn(async move { serving.serve(listener).await });
        let mut running = TcpStream::connect(address).await.unwrap();
        let head = "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 36\r\n\r\n";
        running.write_all(head.as_bytes()).await.unwrap();
        // It has come in once the server waits for its body.
        while server.api.core().requests.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { server, address, running }
    }

    fn stop(&self) -> tokio::task::JoinHandle<()> {
        let api = self.server.api.clone();
        tokio::spawn(async move { api.shutdown().await })
    }

    /// Sends the rest of the request, and gives its answer.
    async fn finish(&mut self) -> String {
        self.running.write_all(br#"{"metadata":{"name":"a"},"data":{}} "#).await.unwrap();
        let mut answer = String::new();
        self.running.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn until_closed(&self) {
        while !self.server.api.core().closed.load(std::sync::atomic::Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The answer to a request on a connection of its own.
async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn a_server_that_stops_tells_clients_to_come_again() {
    let mut ending = Ending::new(|config| config.shutdown.retry_after = true).await;
    let stop = ending.stop();
    ending.until_closed().await;
    let late = get(ending.address, "/api/v1/namespaces").await.unwrap();
    assert!(late.starts_with("HTTP/1.1 429 "), "{late}");
    for part in [
        "retry-after: 5\r\n",
        "connection: close\r\n",
        "The apiserver is shutting down, please try again later.\n",
    ] {
        assert!(late.contains(part), "{part}: {late}");
    }
    // Probes and metrics are answered to the end.
    assert!(get(ending.address, "/livez").await.unwrap().starts_with("HTTP/1.1 200 "));
    assert!(get(ending.address, "/metrics").await.unwrap().starts_with("HTTP/1.1 200 "));
    let done = ending.finish().await;
    assert!(done.starts_with("HTTP/1.1 201 "), "{done}");
    stop.await.unwrap();
    assert!(get(ending.address, "/livez").await.is_err(), "nobody listens");
}

#[tokio::test]
async fn a_server_that_stops_listens_no_more() {
    let mut ending = Ending::new(|_| {}).await;
    let mut idle = TcpStream::connect(ending.address).await.unwrap();
    let stop = ending.stop();
    ending.until_closed().await;
    let began = Instant::now();
    while TcpStream::connect(ending.address).await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(5), "it still listens");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "a connection on which nothing runs is closed");
    // Within the process requests find no server of their own.
    assert!(!stop.is_finished());
    let done = ending.finish().await;
    assert!(done.starts_with("HTTP/1.1 201 "), "{done}");
    stop.await.unwrap();
}

#[tokio::test]
async fn watches_are_let_go_over_time() {
    let server = Server::with(|config| config.shutdown.watches = Duration::from_secs(20)).await;
    let mut watches = Vec::new();
    for _ in 0..40 {
        watches.push(server.watch("/api/v1/configmaps?watch=1&resourceVersion=1").await);
    }
    let began = Instant::now();
    let api = server.api.clone();
    let stop = tokio::spawn(async move { api.shutdown().await });
    for watch in &mut watches {
        while watch.next().await.is_some() {}
    }
    drop(watches);
    stop.await.unwrap();
    let took = began.elapsed();
    // 200 a second, and the server waits for them no longer than they take.
    assert!(took >= Duration::from_millis(190), "{took:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test]
async fn checks_of_health() {
    let names = async |server: &Server, endpoint: &str| -> Vec<String> {
        let page = server.get(&format!("/{endpoint}?verbose")).await.text();
        page.lines().filter_map(|l| l.strip_prefix("[+]")?.strip_suffix(" ok").map(str::to_owned)).collect()
    };
    let has = |names: &[String], name: &str| names.iter().any(|n| n == name);
    let server = Server::start().await;
    let [healthz, livez, readyz] =
        [names(&server, "healthz").await, names(&server, "livez").await, names(&server, "readyz").await];
    assert_eq!(livez[..4], ["ping", "log", "loopback-serving-certificate", "etcd"]);
    assert_eq!(healthz, livez);
    assert_eq!(readyz[..5], ["ping", "log", "etcd", "etcd-readiness", "informer-sync"]);
    assert_eq!(readyz.last().map(String::as_str), Some("shutdown"));
    let (fair, plain) = ("poststarthook/priority-and-fairness-filter", "poststarthook/max-in-flight-filter");
    assert!(has(&livez, fair) && !has(&livez, plain), "{livez:?}");
    let proxy = "poststarthook/aggregator-reload-proxy-client-cert";
    assert!(!has(&livez, proxy), "there is no front proxy: {livez:?}");
    let server = Server::with(|config| config.flow.fair = false).await;
    let livez = names(&server, "livez").await;
    assert!(!has(&livez, fair) && has(&livez, plain), "{livez:?}");
}

#[tokio::test]
async fn times_that_the_operator_chooses() {
    let server = Server::with(|config| {
        config.min_request_timeout = Duration::from_millis(200);
        config.livez_grace = Duration::from_secs(3600);
        config.external = Some("kube.test:443".into());
    })
    .await;
    let began = Instant::now();
    let mut watch = server.watch("/api/v1/configmaps?watch=1&resourceVersion=1").await;
    while watch.next().await.is_some() {}
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(10), "{took:?}");
    let address = &server.get("/api").await.expect(200)["serverAddressByClientCIDRs"][0]["serverAddress"];
    assert_eq!(address, "kube.test:443");
    // What begins with the server has time; what a probe asks of readiness has not.
    server.api.core().ready.store(false, std::sync::atomic::Ordering::Release);
    let hook = "poststarthook/generic-apiserver-start-informers";
    assert_eq!(server.get(&format!("/livez/{hook}")).await.code, 200);
    assert_eq!(server.get(&format!("/readyz/{hook}")).await.code, 500);
    let strict = Server::start().await;
    strict.api.core().ready.store(false, std::sync::atomic::Ordering::Release);
    assert_eq!(strict.get(&format!("/livez/{hook}")).await.code, 500);
}

#[tokio::test]
async fn the_service_of_the_server_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let start = async |change: fn(&mut Config)| {
        let mut config = Config::new(open(&dir.path().join("store")).await);
        change(&mut config);
        let api = Box::pin(ApiServer::start(config)).await.unwrap();
        Server { api, dir: tempfile::tempdir().unwrap() }
    };
    let stop = async |server: Server| {
        server.api.shutdown().await;
        server.api.core().store().clone().close().await;
    };
    let where_it_is = async |server: &Server| {
        let read = async |path: &str| server.get(path).await;
        let service = read("/api/v1/namespaces/default/services/kubernetes").await.expect(200);
        let endpoints = read("/api/v1/namespaces/default/endpoints/kubernetes").await.json();
        let slice =
            read("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await.json();
        let port = &service["spec"]["ports"][0];
        json!([
            service["spec"]["type"],
            port["targetPort"],
            port["nodePort"],
            endpoints["subsets"][0]["addresses"][0]["ip"],
            endpoints["subsets"][0]["ports"][0]["port"],
            slice["endpoints"][0]["addresses"],
            slice["ports"][0]["port"],
        ])
    };
    let server = start(|config| {
        config.own_endpoints = false;
        config.advertise = Some(("192.0.2.1".parse().unwrap(), 6443));
    })
    .await;
    assert_eq!(where_it_is(&server).await, json!(["ClusterIP", 6443, null, null, null, null, null]));
    stop(server).await;
    let server = start(|config| config.advertise = Some(("192.0.2.1".parse().unwrap(), 6443))).await;
    assert_eq!(
        where_it_is(&server).await,
        json!(["ClusterIP", 6443, null, "192.0.2.1", 6443, ["192.0.2.1"], 6443])
    );
    stop(server).await;
    let server = start(|config| {
        config.advertise = Some(("192.0.2.2".parse().unwrap(), 7443));
        config.own_node_port = Some(30443);
    })
    .await;
    assert_eq!(
        where_it_is(&server).await,
        json!(["NodePort", 7443, 30443, "192.0.2.2", 7443, ["192.0.2.2"], 7443])
    );
    stop(server).await;
}

#[tokio::test]
async fn the_servers_own_endpoints_come_back() {
    let server = Server::with(|config| {
        config.advertise = Some(("192.0.2.1".parse().unwrap(), 6443));
    })
    .await;
    const SERVICE: &str = "/api/v1/namespaces/default/services/kubernetes";
    const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";
    const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let until = async |path: &str, good: &dyn Fn(&Value) -> bool| {
        server.until_is(path, path, |code, object| code == 200 && good(object)).await
    };
    let before = server.get(SERVICE).await.expect(200);
    for path in [SERVICE, ENDPOINTS, SLICE] {
        // The Endpoints go with the service, and come back a moment later than it.
        let uid = until(path, &|_| true).await["metadata"]["uid"].clone();
        server.delete(path).await.expect(200);
        until(path, &|object| object["metadata"]["uid"] != uid).await;
    }
    let after = server.get(SERVICE).await.expect(200);
    assert_eq!(after["spec"]["clusterIP"], before["spec"]["clusterIP"]);

    let there = |object: &Value| {
        object["endpoints"][0]["addresses"][0] == "192.0.2.1"
            || object["subsets"][0]["addresses"][0]["ip"] == "192.0.2.1"
    };
    for (path, change) in [
        (ENDPOINTS, json!({"subsets": [{"addresses": [{"ip": "192.0.2.9"}], "ports": [{"port": 1}]}]})),
        (SLICE, json!({"endpoints": [{"addresses": ["192.0.2.9"]}]})),
        (SLICE, json!({"metadata": {"labels": {"own": "label", "kubernetes.io/service-name": "other"}}})),
    ] {
        let patched = server.patch("merge", path, &change).await.expect(200);
        assert!(path == SLICE || !there(&patched), "{patched}");
        let right = |object: &Value| {
            there(object) && object["metadata"]["labels"]["kubernetes.io/service-name"] != "other"
        };
        until(path, &right).await;
    }
    let slice = server.get(SLICE).await.expect(200);
    assert_eq!(slice["metadata"]["labels"]["own"], "label", "what is beside it stays");
    // The service is as somebody wants it.
    let port = json!({"name": "https", "port": 8443, "targetPort": 6443, "protocol": "TCP"});
    let change = json!({"spec": {"ports": [port]}});
    server.patch("merge", SERVICE, &change).await.expect(200);
    server.delete(ENDPOINTS).await.expect(200);
    until(ENDPOINTS, &there).await;
    assert_eq!(server.get(SERVICE).await.expect(200)["spec"]["ports"][0]["port"], 8443);
}

/// A store may be closed before those parts of the server that follow it have heard that the server stops.
#[test]
fn a_closed_store_keeps_nobody_busy() {
    let (done, is_done) = std::sync::mpsc::channel();
    // Its one thread would be the one that is kept busy.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::with(|config| {
                config.advertise = Some(("192.0.2.1".parse().unwrap(), 6443));
            })
            .await;
            server.api.core().store().clone().close().await;
            tokio::task::yield_now().await;
            server.get("/api/v1/namespaces/default/services/kubernetes").await.expect(200);
            server.api.shutdown().await;
        });
        done.send(()).unwrap();
    });
    is_done.recv_timeout(Duration::from_secs(60)).unwrap();
}
