//! The kubelet's HTTPS API: what the API server (and monitoring) asks of a node.
//!
//! In: requests of authenticated clients. Out: pods, logs, streams, numbers. A request is routed by its path's
//! first word; each subject is a file beside this one.

mod exec;
mod files;
mod logs;
mod pods;
mod port_forward;
mod stats;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use yare_auth::User;

use crate::error::{Context, Result};
use crate::kubelet::Kubelet;

/// Connections served at once.
const CONNECTIONS_MAX: usize = 1024;
/// A client must finish its TLS handshake within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A response's body.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Whether a client may do something: `None` is a client without a certificate.
pub type Authorize = Arc<dyn Fn(Option<&User>, &Attributes) -> bool + Send + Sync>;

/// What a request asks, in the API's terms: a verb on a subresource of `nodes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `create`, …
    pub verb: &'static str,
    /// `proxy`, `stats`, `metrics`, `healthz`, `pods`, `configz`, `log`.
    pub subresource: &'static str,
}

/// How the API is served.
pub struct KubeletServer {
    /// Where to listen.
    pub listener: TcpListener,
    /// TLS with a verifier that asks for certificates of the cluster's clients; none: plain HTTP, everybody is
    /// anonymous.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Who may do what.
    pub authorize: Authorize,
}

/// Allows the API server (`system:masters`, or its kubelet client identity) and nobody else.
pub fn allow_api_server() -> Authorize {
    Arc::new(|user, _| {
        user.is_some_and(|u| {
            u.in_group(yare_auth::user::MASTERS)
                || u.in_group("kubelet-api-admin")
                || u.name == "kube-apiserver-kubelet-client"
        })
    })
}

/// Serves until the tasks are stopped; answers the address.
pub(crate) fn serve(
    kubelet: Arc<Kubelet>,
    server: KubeletServer,
    tasks: &mut JoinSet<()>,
) -> Result<SocketAddr> {
    let address = server.listener.local_addr().context(|| "the kubelet's listener".to_owned())?;
    tasks.spawn(accept(kubelet, server));
    Ok(address)
}

async fn accept(kubelet: Arc<Kubelet>, server: KubeletServer) {
    let acceptor = server.tls.map(tokio_rustls::TlsAcceptor::from);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match server.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection to the kubelet's API");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (kubelet, acceptor, authorize) = (kubelet.clone(), acceptor.clone(), server.authorize.clone());
        connections.spawn(async move {
            let _slot = slot;
            match acceptor {
                None => connection(kubelet, authorize, None, stream).await,
                Some(acceptor) => {
                    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            let certificates = stream.get_ref().1.peer_certificates();
                            let user = certificates
                                .and_then(|c| c.first())
                                .and_then(|c| User::from_certificate(c).ok().flatten());
                            connection(kubelet, authorize, user, stream).await;
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

async fn connection<S>(kubelet: Arc<Kubelet>, authorize: Authorize, user: Option<User>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let user = Arc::new(user);
    let service = hyper::service::service_fn(move |request| {
        let (kubelet, authorize, user) = (kubelet.clone(), authorize.clone(), user.clone());
        async move { Ok::<_, std::convert::Infallible>(handle(kubelet, authorize, &user, request).await) }
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

/// Rows: first word of the path, the subresource it is authorized as, methods.
const ROUTES: &[(&str, &str, &[Method])] = &[
    ("healthz", "healthz", &[Method::GET]),
    ("pods", "pods", &[Method::GET]),
    ("runningpods", "proxy", &[Method::GET]),
    ("containerLogs", "proxy", &[Method::GET]),
    ("logs", "log", &[Method::GET]),
    ("exec", "proxy", &[Method::GET, Method::POST]),
    ("attach", "proxy", &[Method::GET, Method::POST]),
    ("portForward", "proxy", &[Method::GET, Method::POST]),
    ("run", "proxy", &[Method::POST]),
    ("metrics", "metrics", &[Method::GET]),
    ("stats", "stats", &[Method::GET]),
    ("configz", "configz", &[Method::GET]),
];

async fn handle(
    kubelet: Arc<Kubelet>,
    authorize: Authorize,
    user: &Option<User>,
    request: Request<Incoming>,
) -> Response<Body> {
    kubelet.metrics.http_requests.fetch_add(1, Ordering::Relaxed);
    let path = request.uri().path().to_owned();
    let words: Vec<&str> = path.trim_matches('/').split('/').collect();
    let Some((_, subresource, methods)) = ROUTES.iter().find(|(word, ..)| words.first() == Some(word)) else {
        return text(StatusCode::NOT_FOUND, "404 page not found\n");
    };
    if !methods.contains(request.method()) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed\n");
    }
    let verb = if request.method() == Method::GET { "get" } else { "create" };
    let attributes = Attributes { verb, subresource };
    if !authorize(user.as_ref(), &attributes) {
        return match user {
            None => text(StatusCode::UNAUTHORIZED, "Unauthorized\n"),
            Some(user) => text(
                StatusCode::FORBIDDEN,
                format!(
                    "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])\n",
                    user.name
                ),
            ),
        };
    }
    match words.as_slice() {
        ["healthz", ..] => text(StatusCode::OK, "ok"),
        ["pods"] => pods::list(&kubelet, false),
        ["runningpods"] => pods::list(&kubelet, true),
        ["containerLogs", namespace, pod, container] => {
            logs::serve(&kubelet, namespace, pod, container, request.uri().query().unwrap_or_default()).await
        }
        ["logs", ..] => {
            let rest = path.trim_start_matches('/').strip_prefix("logs").unwrap_or_default();
            files::serve(kubelet.log_dir.clone(), rest, request.uri().query(), request.headers()).await
        }
        ["exec" | "attach", ..] => exec::serve(&kubelet, &words, request).await,
        ["run", ..] => exec::run(&kubelet, &words, request.uri().query().unwrap_or_default()).await,
        ["portForward", ..] => port_forward::serve(&kubelet, &words, request).await,
        ["metrics"] => stats::metrics(&kubelet),
        ["metrics", "resource"] => stats::resource_metrics(&kubelet).await,
        ["metrics", "cadvisor" | "probes"] => text(StatusCode::OK, ""),
        ["stats", "summary"] => stats::summary(&kubelet).await,
        ["configz"] => stats::configz(&kubelet),
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
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
