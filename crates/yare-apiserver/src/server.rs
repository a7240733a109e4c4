//! The server as others hold it: over a listener with TLS, and as a `tower` service in this process.

use std::{
    convert::Infallible,
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, OnceLock, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Notify, Semaphore},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::{
    auth::{self, Identity, Peer, User},
    body::{Body, BoxError, box_request},
    bootstrap,
    core::{Config, Core},
    drain::Drained,
    pipeline,
    serving::{self, Certificates},
    shutdown,
};

/// Open connections; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 20_000;
/// Connections that wait to be accepted, as tokio has it elsewhere.
const BACKLOG: u32 = 1024;
/// How long a client may take over the TLS handshake and over a request's headers.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connections may take to close once their requests are answered and the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long audit events may take to go out at the end.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}{}", if .source.kind() == std::io::ErrorKind::AddrInUse { " (another process uses this port: stop it, or choose another port)" } else { "" })]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// Webhooks or policies in files are not what they should be.
    #[error("failed to initialize admission: {0}")]
    Admission(String),
    /// An object that must exist could not be made.
    #[error("bootstrap object {what}: {why}")]
    Bootstrap {
        /// Which object.
        what: String,
        /// What went wrong.
        why: String,
    },
}

/// How HTTP is spoken.
#[derive(Clone, Copy, Debug)]
pub struct Http {
    /// Requests at a time on one connection of HTTP/2.
    pub max_streams: u32,
    /// There is no HTTP/2.
    pub only_http1: bool,
}

impl Default for Http {
    fn default() -> Self {
        Self { max_streams: 1000, only_http1: false }
    }
}

/// A running API server. Cheap to clone; all clones are the same server.
#[derive(Clone)]
pub struct ApiServer {
    core: Arc<Core>,
    address: Arc<OnceLock<SocketAddr>>,
    tasks: TaskTracker,
}

impl ApiServer {
    /// Starts a server: the objects that must exist are made, custom resources are served, the authorizers
    /// know the store. Nothing listens yet.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let core = Core::new(config);
        core.admission.manifests.load(&core)?;
        bootstrap::run(&core).await?;
        auth::start(&core);
        crate::audit::Audit::start(&core);
        crate::crd::start(&core).await;
        crate::admission::start(&core);
        crate::aggregation::start(&core);
        crate::encryption::start(&core);
        crate::flow::start(&core).await;
        crate::identity::start(&core).await;
        crate::event_ttl::start(&core);
        crate::alloc::objects::start(&core);
        crate::leaders::start(&core);
        serving::start(&core);
        crate::outbound::shown::start(&core);
        crate::own_service::start(&core);
        core.ready.store(true, std::sync::atomic::Ordering::Release);
        Ok(Self { core, address: Arc::default(), tasks: TaskTracker::new() })
    }

    /// Shared parts, for what runs in the same process (tests, reconcilers of the server itself).
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The server as a service for callers in this process, who all are `user`.
    pub fn service(&self, user: User) -> LocalService {
        LocalService { core: self.core.clone(), user: Arc::new(user) }
    }

    /// Where the server listens, once it does.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }

    /// A listener on the address, with an error that names it.
    pub async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
        TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
    }

    /// The same on a port that others may listen on as well.
    pub fn bind_shared(address: SocketAddr) -> Result<TcpListener, StartError> {
        let listen = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.set_reuseport(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        };
        listen().map_err(|source| StartError::Listen { address, source })
    }

    /// Serves connections until [`ApiServer::shutdown`].
    pub async fn serve(&self, listener: TcpListener) {
        if let Ok(address) = listener.local_addr() {
            let _ = self.address.set(address);
        }
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.core.hang_up.cancelled() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: wait for some to close.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let core = self.core.clone();
            self.tasks.spawn(async move {
                let _place = place;
                if let Err(error) = connection(core, stream, peer.ip()).await {
                    tracing::debug!(%error, "connection ended");
                }
            });
        }
    }

    /// Stops: `/readyz` fails; after the delay that is set, no more requests are taken, watches end, requests in
    /// flight finish within their time, listeners and connections close ([`shutdown`]).
    pub async fn shutdown(&self) {
        self.core.closing.store(true, Ordering::Release);
        crate::identity::stop(&self.core).await;
        shutdown::wind_down(&self.core).await;
        self.tasks.close();
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, self.tasks.wait()).await;
        if let Some(audit) = &self.core.config.audit {
            audit.close(AUDIT_TIMEOUT).await;
        }
        if let Some(tracer) = &self.core.config.tracer {
            tracer.close(crate::trace::PATIENCE).await;
        }
    }
}

async fn connection(core: Arc<Core>, stream: TcpStream, peer: IpAddr) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    match tls_of(&core, &stream) {
        None => http(core, TokioIo::new(stream), peer, None).await,
        Some(tls) => {
            let acceptor = TlsAcceptor::from(tls);
            let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
            if !matches!(accepted, Ok(Ok(_))) {
                core.metrics.handshake_errors.fetch_add(1, Ordering::Relaxed);
            }
            let stream = accepted??;
            // Read once for all requests of the connection.
            let authorities = core.config.auth.authorities.load_full();
            let now_s = core.now().as_second();
            let chain = stream.get_ref().1.peer_certificates();
            let certificate = chain.map(|chain| Arc::new(Peer::new(chain, &authorities, now_s)));
            http(core, TokioIo::new(stream), peer, certificate).await
        }
    }
}

/// How TLS is spoken with a client that came to this address.
fn tls_of(core: &Core, stream: &TcpStream) -> Option<Arc<rustls::ServerConfig>> {
    let tls = core.config.tls.as_ref()?;
    let serving = core.config.certificates.as_ref().map(Certificates::serving);
    let here = serving.and_then(|serving| serving.at(stream.local_addr().ok()?.ip()));
    let Some(here) = here else { return Some(tls.clone()) };
    let mut tls = (**tls).clone();
    tls.cert_resolver = here;
    Some(Arc::new(tls))
}

async fn http<I>(core: Arc<Core>, io: I, peer: IpAddr, certificate: Option<Arc<Peer>>) -> Result<(), BoxError>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (hang_up, spoken) = (core.hang_up.clone(), core.config.http);
    let leave = Arc::new(Notify::new());
    let left = leave.clone();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (core, certificate) = (core.clone(), certificate.clone());
        if request.version() == http::Version::HTTP_2 && is_last(&core) {
            leave.notify_one();
        }
        // Boxed here: the state of a request has some kilobytes, which would be moved again and again on their way to
        // a task.
        Box::pin(async move {
            let request = request.map(|body| box_request(Drained::new(body)));
            let identity = Identity::Remote(certificate);
            Ok::<_, Infallible>(pipeline::handle(core, request, identity, Some(peer)).await)
        })
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if spoken.only_http1 {
        builder = builder.http1_only();
    }
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT).max_buf_size(256 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(spoken.max_streams)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    let connection = builder.serve_connection_with_upgrades(io, service);
    tokio::pin!(connection);
    tokio::select! {
        done = connection.as_mut() => return done,
        () = hang_up.cancelled() => connection.as_mut().graceful_shutdown(),
        () = left.notified() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Whether a client should open another connection after this request, which may lead to another server.
fn is_last(core: &Core) -> bool {
    let chance = core.config.goaway_chance;
    if chance <= 0.0 {
        return false;
    }
    let mut bytes = [0u8; 4];
    core.config.random.fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX) < chance
}

/// The server for callers in this process.
#[derive(Clone)]
pub struct LocalService {
    core: Arc<Core>,
    user: Arc<User>,
}

impl<B> tower::Service<Request<B>> for LocalService
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let core = self.core.clone();
        // A caller may act for somebody else by putting that identity into the request.
        let user = request.extensions().get::<User>().cloned().map_or_else(|| self.user.clone(), Arc::new);
        let request = request.map(box_request);
        Box::pin(async move { Ok(pipeline::handle(core, request, Identity::Local(user), None).await) })
    }
}
