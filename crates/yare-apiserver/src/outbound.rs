//! Calls that the server makes to webhooks: a JSON document posted over TLS, a JSON document back, both
//! bounded in size and time.
//!
//! A [`Client`] is made once per configuration: its trust anchors are parsed then, and its connections are used
//! again.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::{net::TcpStream, task::JoinHandle};
use yare_kinds::view::View;

use crate::{core::Core, subresource::proxy};

/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// Of an error's body, what goes into messages.
const MAX_SHOWN_BYTES: usize = 2048;
/// Connections kept for the next call, and for how long.
const MAX_IDLE: usize = 16;
const MAX_IDLE_TIME: Duration = Duration::from_secs(60);
/// Where systems keep the authorities that everybody trusts, for webhooks without a bundle of their own.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Why a call came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One line, with the URL where that helps.
    pub message: String,
    /// What the other side answered, if it did.
    pub code: Option<u16>,
}

/// Where a `clientConfig` (of a webhook or a conversion) points.
enum Place {
    Url { host: String, port: u16 },
    Service { namespace: String, name: String, port: i64 },
}

/// What reaches one webhook.
pub struct Client {
    /// Absent where the configuration is no place, which calls are told.
    target: Result<Target, String>,
    idle: Mutex<Vec<Connection>>,
}

struct Target {
    place: Place,
    /// The name on the certificate.
    name: String,
    path: String,
    url: String,
    tls: Result<Arc<ClientConfig>, String>,
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    since: Instant,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn target(config: &Value) -> Result<Target, String> {
    let tls = tls(config);
    if let Some(url) = config.str_opt("url") {
        let uri: Uri = url.parse().map_err(|e| format!("Unparsable URL: parse {url:?}: {e}"))?;
        let host = uri.host().ok_or_else(|| format!("Unparsable URL: {url:?} names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        return Ok(Target {
            place: Place::Url { host: host.clone(), port: uri.port_u16().unwrap_or(443) },
            name: host,
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            url: url.to_owned(),
            tls,
        });
    }
    let service = config.at("service");
    if service.is_null() {
        return Err("webhook configuration must have either service or URL".into());
    }
    let (namespace, name) = (service.str_at("namespace"), service.str_at("name"));
    let port = service.int_opt("port").unwrap_or(443);
    let path = format!("/{}", service.str_at("path").trim_start_matches('/'));
    let dns = format!("{name}.{namespace}.svc");
    Ok(Target {
        url: format!("https://{dns}:{port}{path}"),
        place: Place::Service { namespace: namespace.to_owned(), name: name.to_owned(), port },
        name: dns,
        path,
        tls,
    })
}

fn tls(config: &Value) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let mut trust = |pem: &[u8]| -> Result<(), String> {
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|e| format!("caBundle: {e}"))?;
            roots.add(certificate).map_err(|e| format!("caBundle: {e}"))?;
        }
        Ok(())
    };
    let bundle = STANDARD.decode(config.str_at("caBundle")).map_err(|e| format!("caBundle: {e}"))?;
    if bundle.is_empty() {
        if let Some(system) = SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok()) {
            trust(&system)?;
        }
    } else {
        trust(&bundle)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What went wrong under a request, in the words of Go's network stack, which operators look for.
fn io_text(error: &std::io::Error) -> String {
    if let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        return match tls {
            rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => {
                "tls: failed to verify certificate: x509: certificate signed by unknown authority".into()
            }
            other => format!("tls: {other}"),
        };
    }
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        std::io::ErrorKind::ConnectionReset => "connection reset by peer".into(),
        std::io::ErrorKind::UnexpectedEof => "EOF".into(),
        _ => error.to_string(),
    }
}

impl Client {
    /// The client of a `clientConfig`. What is wrong with it is told to whoever calls.
    pub fn new(config: &Value) -> Self {
        Self { target: target(config), idle: Mutex::default() }
    }

    /// Posts `document`. `query` is added to the path.
    pub async fn post(
        &self,
        core: &Core,
        query: &str,
        document: Bytes,
        timeout: Duration,
    ) -> Result<Value, Failure> {
        let target = self.target.as_ref().map_err(|e| Failure { message: e.clone(), code: None })?;
        let named = |e: &dyn fmt::Display| Failure {
            message: format!("Post \"{}{query}\": {e}", target.url),
            code: None,
        };
        let exchange = self.exchange(core, target, query, document);
        let (status, body) = match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer.map_err(|e| named(&e))?,
            Err(_) => return Err(named(&"context deadline exceeded")),
        };
        if !status.is_success() {
            return Err(refused(status, &body));
        }
        serde_json::from_slice(&body).map_err(|e| Failure {
            message: format!("couldn't get version/kind; json parse error: {e}"),
            code: None,
        })
    }

    async fn exchange(
        &self,
        core: &Core,
        target: &Target,
        query: &str,
        document: Bytes,
    ) -> Result<(StatusCode, Bytes), String> {
        let request = || {
            Request::builder()
                .method(Method::POST)
                .uri(format!("{}{query}", target.path))
                .header(header::HOST, &target.name)
                .header(header::USER_AGENT, "kube-apiserver-admission")
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ACCEPT, "application/json, */*")
                .body(Full::new(document.clone()))
                .map_err(|e| e.to_string())
        };
        while let Some(mut connection) = self.take() {
            match connection.sender.send_request(request()?).await {
                Ok(response) => return self.answer(connection, response).await,
                // The other side had closed it already, or was about to.
                Err(e) if e.is_canceled() || e.is_closed() || e.is_incomplete_message() => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        let mut connection = connect(core, target).await?;
        match connection.sender.send_request(request()?).await {
            Ok(response) => self.answer(connection, response).await,
            Err(e) if e.is_incomplete_message() => Err("EOF".into()),
            Err(e) => Err(e.to_string()),
        }
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        idle.retain(|c| !c.sender.is_closed() && c.since.elapsed() < MAX_IDLE_TIME);
        idle.pop()
    }

    async fn answer(
        &self,
        mut connection: Connection,
        response: http::Response<hyper::body::Incoming>,
    ) -> Result<(StatusCode, Bytes), String> {
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(|e| {
            if e.is::<LengthLimitError>() {
                format!("the answer is larger than {MAX_ANSWER_BYTES} bytes")
            } else {
                e.to_string()
            }
        })?;
        if connection.sender.ready().await.is_ok() {
            connection.since = Instant::now();
            let mut idle = self.idle.lock();
            if idle.len() < MAX_IDLE {
                idle.push(connection);
            }
        }
        Ok((status, body.to_bytes()))
    }
}

async fn connect(core: &Core, target: &Target) -> Result<Connection, String> {
    let tls = target.tls.clone()?;
    let (host, port) = match &target.place {
        Place::Url { host, port } => (host.clone(), *port),
        Place::Service { namespace, name, port } => {
            let endpoint =
                proxy::service_endpoint(core, namespace, name, &port.to_string()).map_err(|e| {
                    if e.code == 404 { format!("service {name:?} not found") } else { e.message }
                })?;
            (endpoint.host, endpoint.port)
        }
    };
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|e| format!("dial tcp {host}:{port}: connect: {}", io_text(&e)))?;
    // The request is one write; its answer should not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let name = ServerName::try_from(target.name.clone()).map_err(|e| e.to_string())?;
    let stream =
        tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.map_err(|e| io_text(&e))?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a webhook ended");
        }
    });
    Ok(Connection { sender, driver, since: Instant::now() })
}

/// An answer that is no success, as clients of Kubernetes tell it.
fn refused(status: StatusCode, body: &Bytes) -> Failure {
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_SHOWN_BYTES)]);
    let text = text.trim();
    let text = if text.is_empty() { "unknown" } else { text };
    let message = match status {
        StatusCode::NOT_FOUND => "the server could not find the requested resource".into(),
        StatusCode::UNAUTHORIZED => "the server has asked for the client to provide credentials".into(),
        StatusCode::FORBIDDEN => text.to_owned(),
        status if status.is_server_error() => {
            format!("an error on the server ({text:?}) has prevented the request from succeeding")
        }
        _ => format!(
            "the server responded with the status code {} but did not return more information",
            status.as_u16()
        ),
    };
    Failure { message, code: Some(status.as_u16()) }
}

/// Posts one document to where `config` points, for callers that keep no client. The error is one line.
pub async fn post(
    core: &Core,
    config: &Value,
    query: &str,
    document: &Value,
    timeout: Duration,
) -> Result<Value, String> {
    let document = Bytes::from(document.to_string());
    Client::new(config).post(core, query, document, timeout).await.map_err(|e| e.message)
}
