//! Connections to a backend: TLS by the APIService's rules, the front proxy's certificate shown, kept open
//! between requests; and for upgrades a connection of their own.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use parking_lot::Mutex;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use yare_kinds::view::View;

use super::{backend::ServiceRef, resolve::Target};
use crate::{
    body::{BoxError, RequestBody},
    core::Core,
};

/// How long connecting and the TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection is kept, and how many of them for each endpoint.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
const IDLE_MAX: usize = 25;
/// When a silent HTTP/2 connection is asked whether it lives, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// Endpoints that are tried for one request.
const MAX_ATTEMPTS: usize = 3;

/// Speaks to the endpoints of one service.
pub struct Transport {
    pooled: Client<Connector, Retriable>,
    /// HTTP/1.1 alone, for connections that become something else.
    upgrades: Connector,
}

impl Transport {
    /// By the specification of an APIService.
    pub fn new(core: &Core, spec: &Value, service: &ServiceRef) -> Result<Self, String> {
        let name = format!("{}.{}.svc", service.name, service.namespace);
        let name = ServerName::try_from(name.clone()).map_err(|e| format!("{name}: {e}"))?;
        let config = tls(core, spec)?;
        let connector = |alpn: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
            Connector { tls: Arc::new(config).into(), name: name.clone() }
        };
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_MAX)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        Ok(Self {
            pooled: builder.build(connector(&[b"h2", b"http/1.1"])),
            upgrades: connector(&[b"http/1.1"]),
        })
    }

    /// Sends a request (whose URI has a path only) to the first target that can be connected to.
    pub async fn send(
        &self,
        targets: &[Target],
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, String> {
        let (parts, body) = request.into_parts();
        let body = Arc::new(Mutex::new(body));
        let mut last = String::from("no endpoints");
        for target in targets.iter().take(MAX_ATTEMPTS) {
            let uri = Uri::builder()
                .scheme("https")
                .authority(target.authority())
                .path_and_query(parts.uri.path_and_query().map_or("/", |p| p.as_str()))
                .build()
                .map_err(|e| e.to_string())?;
            let mut request = Request::new(Retriable::new(body.clone()));
            *request.method_mut() = parts.method.clone();
            *request.uri_mut() = uri;
            *request.headers_mut() = parts.headers.clone();
            match self.pooled.request(request).await {
                Ok(response) => return Ok(response),
                // Nothing was sent, so that another endpoint may be asked the same.
                Err(error) if error.is_connect() => last = chain(&error),
                Err(error) => return Err(chain(&error)),
            }
        }
        Err(last)
    }

    /// Sends a request that wants the connection for itself.
    pub async fn send_upgrade(
        &self,
        targets: &[Target],
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, String> {
        let mut last = String::from("no endpoints");
        for target in targets.iter().take(MAX_ATTEMPTS) {
            let stream = match self.upgrades.connect(target.host.clone(), target.port).await {
                Ok(stream) => stream,
                Err(error) => {
                    last = error.to_string();
                    continue;
                }
            };
            let host = target.authority().parse().map_err(|_| "the endpoint's name".to_owned())?;
            request.headers_mut().insert(http::header::HOST, host);
            let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, RequestBody>(stream.0)
                .await
                .map_err(|e| chain(&e))?;
            tokio::spawn(connection.with_upgrades());
            return sender.send_request(request).await.map_err(|e| chain(&e));
        }
        Err(last)
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn tls(core: &Core, spec: &Value) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let bundle = STANDARD.decode(spec.str_at("caBundle")).map_err(|e| format!("caBundle: {e}"))?;
    let builder = if spec.bool_at("insecureSkipTLSVerify") {
        builder.dangerous().with_custom_certificate_verifier(yare_auth::tls::any_server(provider))
    } else {
        builder.with_root_certificates(if bundle.is_empty() { system_roots() } else { roots(&bundle)? })
    };
    match &core.config.front_proxy {
        None => Ok(builder.with_no_client_auth()),
        Some(proxy) => {
            let chain = CertificateDer::pem_slice_iter(proxy.pair.certificate.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| format!("the front proxy's certificate: {e}"))?;
            let key = PrivateKeyDer::from_pem_slice(proxy.pair.key.as_bytes())
                .map_err(|e| format!("the front proxy's key: {e}"))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| format!("the front proxy's certificate: {e}"))
        }
    }
}

fn roots(bundle: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        let certificate = certificate.map_err(|e| format!("caBundle: {e}"))?;
        roots.add(certificate).map_err(|e| format!("caBundle: {e}"))?;
    }
    if roots.is_empty() {
        return Err("caBundle: unable to load root certificates".into());
    }
    Ok(roots)
}

/// The authorities that this machine trusts, where an APIService names none.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Connects to an endpoint under the service's name.
#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    name: ServerName<'static>,
}

impl Connector {
    async fn connect(&self, host: String, port: u16) -> Result<Stream, BoxError> {
        let connect = async {
            let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
            stream.set_nodelay(true)?;
            self.tls.connect(self.name.clone(), stream).await
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| BoxError::from("i/o timeout"))
            .and_then(|stream| stream.map_err(BoxError::from))
            .map_err(|e| BoxError::from(format!("dial tcp {host}:{port}: {e}")))?;
        Ok(Stream(TokioIo::new(stream)))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        let (host, port) = (uri.host().unwrap_or_default().to_owned(), uri.port_u16().unwrap_or(443));
        Box::pin(async move { connector.connect(host, port).await })
    }
}

/// A connection that says which protocol was agreed on.
struct Stream(TokioIo<TlsStream<TcpStream>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.0.inner().get_ref().1.alpn_protocol() == Some(b"h2") {
            connected.negotiated_h2()
        } else {
            connected
        }
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A body that stays whole while nothing has been read of it, so that the request can be sent elsewhere.
struct Retriable {
    body: Arc<Mutex<RequestBody>>,
    size: SizeHint,
}

impl Retriable {
    fn new(body: Arc<Mutex<RequestBody>>) -> Self {
        let size = body.lock().size_hint();
        Self { body, size }
    }
}

impl HttpBody for Retriable {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut *self.body.lock()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_must_hold_certificates() {
        assert!(roots(b"").is_err());
        assert!(roots(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    }
}
