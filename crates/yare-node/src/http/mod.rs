//! The kubelet's HTTPS API: what the API server (and monitoring) asks of a node.
//!
//! In: requests. Out: pods, logs, streams, numbers. A request is first known and allowed ([`access`]), then
//! routed by one table; each subject is a file beside this one. The same table serves the port without TLS for
//! reading and the port for health on the loopback, as far as they go.

mod access;
mod cadvisor;
mod checkpoint;
mod exec;
mod files;
mod health;
mod log_query;
mod logs;
mod pods;
mod port_forward;
mod routes;
mod serving;
mod stats;
mod summary;
mod upgrade;
mod zpages;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::server::ResolvesServerCert;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use yare_auth::tls::{Limits, Speaks, limited_server};
use yare_trace::Span;

use crate::config::Settings;
use crate::error::{Context, Error, Result};
use crate::kubelet::Kubelet;
use crate::metrics::table;
use crate::trace;
use access::Access;
use routes::{Door, Match};

/// Connections served at once.
const CONNECTIONS_MAX: usize = 1024;
/// A client must finish its TLS handshake within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts to get the port for health.
const BIND_RETRY: Duration = Duration::from_secs(5);

/// A response's body.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// How the API is served.
pub struct KubeletServer {
    /// Where to listen.
    pub listener: TcpListener,
    /// The certificate to show, unless the configuration names files (tlsCertFile); none: plain HTTP.
    pub serving: Option<Arc<dyn ResolvesServerCert>>,
}

/// What one port serves.
struct Port {
    kubelet: Arc<Kubelet>,
    /// None: nobody is asked who they are.
    access: Option<Access>,
    door: Door,
}

/// Serves until the tasks are stopped; answers the address. The ports for reading and for health come with it,
/// where the configuration has them.
pub(crate) fn serve(
    kubelet: Arc<Kubelet>,
    server: KubeletServer,
    tasks: &mut JoinSet<()>,
) -> Result<SocketAddr> {
    let address = server.listener.local_addr().context(|| "the kubelet's listener".to_owned())?;
    let settings = kubelet.config.settings();
    let access = Access::new(&kubelet.node_name, settings)?;
    let serving = match serving::files(settings)? {
        Some(files) => Some(files),
        None => server.serving,
    };
    let tls = match serving {
        None => None,
        Some(serving) => {
            let Settings { tls_min_version, tls_cipher_suites, tls_curve_preferences, .. } = settings;
            let limits = Limits::new(tls_min_version, tls_cipher_suites, tls_curve_preferences)
                .map_err(|why| Error::Request(format!("the kubelet's API: {why}")))?;
            let authority = access.authority();
            let authorities: Vec<_> = authority.iter().collect();
            let tls = limited_server(serving, &authorities, &limits, Speaks::Http1)
                .map_err(|e| Error::Request(format!("the kubelet's API: {e}")))?;
            Some(tls)
        }
    };
    for (door, host, port) in [
        (Door::ReadOnly, &settings.address, settings.read_only_port),
        (Door::Health, &settings.healthz_bind_address, settings.healthz_port),
    ] {
        if port == 0 {
            continue;
        }
        let address =
            format!("{}:{port}", if host.contains(':') { format!("[{host}]") } else { host.clone() });
        let port = Arc::new(Port { kubelet: kubelet.clone(), access: None, door });
        tasks.spawn(open(address, port));
    }
    let port = Arc::new(Port { kubelet, access: Some(access), door: Door::Full });
    tasks.spawn(accept(server.listener, tls, port));
    Ok(address)
}

/// Binds and serves. Another program on the port keeps the node from nothing else, as upstream has it.
async fn open(address: String, port: Arc<Port>) {
    let mut said = false;
    loop {
        match TcpListener::bind(&address).await {
            Ok(listener) => return accept(listener, None, port).await,
            Err(error) if !std::mem::replace(&mut said, true) => {
                tracing::warn!(%error, address, "a port of the kubelet's API cannot be opened, will retry");
            }
            Err(_) => {}
        }
        tokio::time::sleep(BIND_RETRY).await;
    }
}

async fn accept(listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>, port: Arc<Port>) {
    let acceptor = tls.map(tokio_rustls::TlsAcceptor::from);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection to the kubelet's API");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (port, acceptor, peer) = (port.clone(), acceptor.clone(), Some(peer.ip()));
        connections.spawn(async move {
            let _slot = slot;
            match acceptor {
                None => connection(port, Vec::new(), peer, stream).await,
                Some(acceptor) => {
                    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
                            let certificates = shown.iter().map(|c| c.clone().into_owned()).collect();
                            connection(port, certificates, peer, stream).await;
                        }
                        Ok(Err(error)) => {
                            tracing::debug!(%error, "TLS handshake with a client of the kubelet's API")
                        }
                        Err(_) => {
                            tracing::debug!("a client of the kubelet's API did not finish its TLS handshake")
                        }
                    }
                }
            }
        });
    }
}

async fn connection<S>(
    port: Arc<Port>,
    certificates: Vec<CertificateDer<'static>>,
    peer: Option<IpAddr>,
    stream: S,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let certificates = Arc::new(certificates);
    let service = hyper::service::service_fn(move |request| {
        let (port, certificates) = (port.clone(), certificates.clone());
        async move { Ok::<_, std::convert::Infallible>(handle(&port, &certificates, peer, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(Some(Duration::from_secs(30)))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the kubelet's API ended");
    }
}

async fn handle(
    port: &Port,
    certificates: &[CertificateDer<'static>],
    peer: Option<IpAddr>,
    request: Request<Incoming>,
) -> Response<Body> {
    let kubelet = &port.kubelet;
    let path = request.uri().path();
    if let Some(access) = &port.access {
        let allowed = access.check(kubelet, certificates, request.method(), path, request.headers()).await;
        if let Err(refusal) = allowed {
            return *refusal;
        }
    }
    let labels = routes::labels(path, request.method(), port.door);
    let labels = labels.each_ref().map(String::as_str);
    let running = Running::new(kubelet, labels);
    let mut span = kubelet.tracer.as_ref().map(|tracer| {
        trace::of_request(tracer, &request, &routes::template(path), peer, port.door == Door::Full)
    });
    let response = match routes::find(path, request.method(), port.door, &kubelet.config) {
        Match::Page(page) => {
            let work = routes::serve(kubelet, page, request);
            yare_trace::scoped(span.as_ref().map(Span::active), work).await
        }
        Match::Answer(response) => *response,
    };
    if let Some(span) = &mut span {
        trace::answered(span, response.status());
    }
    drop(running);
    response
}

/// A request that is being served, for as long as somebody waits for it.
struct Running<'a> {
    kubelet: &'a Kubelet,
    labels: [&'a str; 4],
    began: Instant,
}

impl<'a> Running<'a> {
    fn new(kubelet: &'a Kubelet, labels: [&'a str; 4]) -> Self {
        kubelet.metrics.count(&table::HTTP_REQUESTS, &labels);
        kubelet.metrics.add(&table::HTTP_INFLIGHT, &labels, 1.0);
        Running { kubelet, labels, began: Instant::now() }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.kubelet.metrics.add(&table::HTTP_INFLIGHT, &self.labels, -1.0);
        self.kubelet.metrics.took(&table::HTTP_DURATION, &self.labels, self.began.elapsed());
    }
}

/// A plain text response.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", body.into())
}

/// A JSON response.
pub(crate) fn json(value: &serde_json::Value) -> Response<Body> {
    respond(StatusCode::OK, "application/json", value.to_string().into())
}

pub(crate) fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// The values of a query string's parameter, decoded.
pub(crate) fn query(query: &str, name: &str) -> Vec<String> {
    query
        .split('&')
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key) == name).then(|| decode(value))
        })
        .collect()
}

/// Whether a flag of a query string is set.
pub(crate) fn flag(text: &str, name: &str) -> bool {
    query(text, name)
        .first()
        .is_some_and(|v| matches!(v.as_str(), "1" | "true" | "True" | "TRUE" | "t" | "T"))
}

/// A word of a query string, where a plus is a space.
fn decode(text: &str) -> String {
    percent_decode(&text.replace('+', " "))
}

/// Text with its percent-encoded bytes (RFC 3986, 2.1) as they were.
pub(crate) fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let pair: Vec<u8> = bytes.clone().take(2).collect();
        match std::str::from_utf8(&pair).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) if pair.len() == 2 => {
                out.push(decoded);
                bytes.next();
                bytes.next();
            }
            _ => out.push(b'%'),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_strings() {
        let text = "command=sh&command=-c&command=echo+a%20b%26&tty=1&bad=%zz&empty";
        assert_eq!(query(text, "command"), ["sh", "-c", "echo a b&"]);
        assert_eq!(query(text, "bad"), ["%zz"]);
        assert!(flag(text, "tty") && !flag(text, "stdin") && !flag(text, "empty"));
    }
}
