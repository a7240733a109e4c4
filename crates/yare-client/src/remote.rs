//! A `kube::Client` over the network whose connections can all be ended at once: when the certificate that they
//! show is replaced, and when the server does not answer. What was under way on them fails and is tried again by
//! whoever asked.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, Uri, header, uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{
        Client as Pooled,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use kube::client::Body;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::{BoxError, Service};

use crate::client::user_agent;

/// How long connecting and the TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// When a silent connection is asked whether it lives, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Of an error's body, what is shown.
const ERROR_MAX_BYTES: usize = 2048;

/// Ends connections. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct HangUp(Arc<watch::Sender<u64>>);

impl Default for HangUp {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl HangUp {
    /// Ends all connections that are there now.
    pub fn all(&self) {
        self.0.send_modify(|times| *times += 1);
    }
}

/// Why there is no client for a server.
#[derive(Debug, thiserror::Error)]
#[error("server {server:?}: {why}")]
pub struct RemoteError {
    server: String,
    why: String,
}

/// A client of the API server at `server` (`https://host:port`), which `tls` believes. `token`: a bearer token.
/// `component`: who asks (`kubelet`).
/// Must be called within a tokio runtime.
pub fn remote(
    server: &str,
    tls: Arc<ClientConfig>,
    token: Option<&str>,
    hang_up: &HangUp,
    component: &str,
) -> Result<kube::Client, RemoteError> {
    let bad = |why: String| RemoteError { server: server.to_owned(), why };
    let base: Uri = server.parse().map_err(|e| bad(format!("{e}")))?;
    if base.scheme() != Some(&uri::Scheme::HTTPS) {
        return Err(bad("must begin with https://".to_owned()));
    }
    let host = base.host().ok_or_else(|| bad("names no host".to_owned()))?.trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|e| bad(e.to_string()))?;
    let authorization = token
        .map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| bad("the token has characters that no header can carry".to_owned()))?;
            value.set_sensitive(true);
            Ok(value)
        })
        .transpose()?;
    let connector = Connector {
        place: Arc::new(Place { host: host.to_owned(), port: base.port_u16().unwrap_or(443), name }),
        tls: tls.into(),
        hang_up: hang_up.clone(),
    };
    let mut builder = Pooled::builder(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .http2_keep_alive_while_idle(true);
    let prefix = base.path().trim_end_matches('/').to_owned();
    let service = Remote {
        pooled: builder.build(connector),
        base,
        prefix,
        authorization,
        agent: user_agent(component),
    };
    Ok(kube::Client::new(service, "default"))
}

/// Requests with a path only become requests to the server.
#[derive(Clone)]
struct Remote {
    pooled: Pooled<Connector, Body>,
    base: Uri,
    prefix: String,
    authorization: Option<HeaderValue>,
    agent: HeaderValue,
}

impl Remote {
    fn address(&self, path: &Uri) -> Result<Uri, http::Error> {
        let path = path.path_and_query().map_or("/", |p| p.as_str());
        let mut parts = self.base.clone().into_parts();
        parts.path_and_query = Some(format!("{}{path}", self.prefix).parse()?);
        Ok(Uri::from_parts(parts)?)
    }
}

impl Service<Request<Body>> for Remote {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.address(request.uri()) {
            Ok(uri) => *request.uri_mut() = uri,
            Err(error) => return Box::pin(async move { Err(error.into()) }),
        }
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value.clone());
        }
        request.headers_mut().entry(header::USER_AGENT).or_insert_with(|| self.agent.clone());
        let response = self.pooled.request(request);
        Box::pin(async move { Ok(response.await?) })
    }
}

struct Place {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

#[derive(Clone)]
struct Connector {
    place: Arc<Place>,
    tls: TlsConnector,
    hang_up: HangUp,
}

impl Service<Uri> for Connector {
    type Response = Io;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Io, BoxError>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { place, tls, hang_up } = self.clone();
        Box::pin(async move {
            // Subscribed first: what changes during the handshake ends this connection, too.
            let mut hung_up = hang_up.0.subscribe();
            let connecting = async {
                let stream = TcpStream::connect((place.host.as_str(), place.port)).await?;
                // A request is one write; its answer should not wait for an acknowledgement.
                let _ = stream.set_nodelay(true);
                tls.connect(place.name.clone(), stream).await
            };
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connecting took too long"))??;
            let ended = async move {
                // Without anybody who could hang up, nobody does.
                if hung_up.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            Ok(Io { stream: TokioIo::new(stream), ended: Box::pin(ended), over: false })
        })
    }
}

/// A connection that reading finds ended when somebody hung up.
struct Io {
    stream: TokioIo<TlsStream<TcpStream>>,
    ended: BoxFuture<'static, ()>,
    over: bool,
}

impl Connection for Io {
    fn connected(&self) -> Connected {
        match self.stream.inner().get_ref().1.alpn_protocol() {
            Some(b"h2") => Connected::new().negotiated_h2(),
            _ => Connected::new(),
        }
    }
}

impl hyper::rt::Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.over || self.ended.as_mut().poll(cx).is_ready() {
            self.over = true;
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The body of what is at `path`, at most `max` bytes of it: for servers that are not believed yet.
///
/// # Errors
/// A status that is no success, with what the server said of it.
pub async fn get_bytes(client: &kube::Client, path: &str, max: usize) -> Result<Bytes, BoxError> {
    let request = Request::get(path).header(header::ACCEPT, "application/json").body(Body::empty())?;
    let response = client.send(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), max).collect().await?.to_bytes();
    if !status.is_success() {
        let said = String::from_utf8_lossy(&body[..body.len().min(ERROR_MAX_BYTES)]).into_owned();
        return Err(format!("{status}: {}", said.trim()).into());
    }
    Ok(body)
}
