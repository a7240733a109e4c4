//! Requests that are passed on to another server, with bodies of any size both ways: over connections that are
//! kept (HTTP/2 where the other side knows it), and for upgrades over one of their own.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use parking_lot::Mutex;
use yare_auth::{
    pki::KeyPairPem,
    tls::{Speaks, Trust, outside_client},
};

use super::{
    Dialer,
    dial::{Io, http_text},
    egress::Route,
};
use crate::{
    aggregation::resolve::Target,
    body::{BoxError, RequestBody},
};

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
    upgrades: Dialer,
}

impl Transport {
    /// To servers that prove to be `name` to `trust`; they are shown `pair`. `out`: the way to them.
    pub fn new(
        name: &str,
        trust: Trust<'_>,
        pair: Option<&KeyPairPem>,
        out: Option<Arc<Route>>,
    ) -> Result<Self, String> {
        let dialer = |speaks| {
            let config = outside_client(trust, pair, speaks).map_err(|e| e.to_string())?;
            Dialer::tls(config, name).map(|dialer| dialer.through(out.clone()))
        };
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_MAX)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        Ok(Self { pooled: builder.build(Connector(dialer(Speaks::Both)?)), upgrades: dialer(Speaks::Http1)? })
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
                Err(error) if error.is_connect() => last = http_text(&error),
                Err(error) => return Err(http_text(&error)),
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
            let stream = match self.upgrades.connect(&target.host, target.port).await {
                Ok(stream) => stream,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            let host = target.authority().parse().map_err(|_| "the endpoint's name".to_owned())?;
            request.headers_mut().insert(http::header::HOST, host);
            return exchange(stream.io(), request).await;
        }
        Err(last)
    }
}

/// Sends one request over a connection of its own, which may become something else.
pub async fn exchange(io: Io, request: Request<RequestBody>) -> Result<Response<Incoming>, String> {
    let shake = hyper::client::conn::http1::handshake::<_, RequestBody>(io);
    let (mut sender, connection) = shake.await.map_err(|e| http_text(&e))?;
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(|e| http_text(&e))
}

/// Connects to an endpoint under the service's name.
#[derive(Clone)]
struct Connector(Dialer);

impl tower::Service<Uri> for Connector {
    type Response = Io;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Io, BoxError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.0.clone();
        let (host, port) = (uri.host().unwrap_or_default().to_owned(), uri.port_u16().unwrap_or(443));
        Box::pin(async move { Ok(dialer.connect(&host, port).await?.io()) })
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
