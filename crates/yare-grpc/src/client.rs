//! Calls over one HTTP/2 connection, which is opened when it is needed and again when it broke.

use std::{
    future::Future,
    os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr},
    path::Path,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::Stream;
use http::{HeaderMap, Uri, uri::PathAndQuery};
use hyper::client::conn::http2::SendRequest;
use parking_lot::Mutex;
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tonic::{Status, Streaming, body::Body, client::Grpc, metadata::MetadataMap};

use crate::{
    codec::Prost,
    status::reason,
    transport::{self, Connection, shake_hands},
};

/// Largest answer that is read, as gRPC has it.
const ANSWER_MAX_BYTES: usize = 4 << 20;
/// Pause between attempts to connect, for a client that waits for its server.
const RETRY: Duration = Duration::from_millis(100);
/// The first pause of who connects by gRPC's own rules, how it grows, and to what. (It is jittered by a fifth there;
/// nobody crowds one server here.)
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_FACTOR: f64 = 1.6;
const BACK_OFF_MAX: Duration = Duration::from_secs(120);
/// How often a call that the server has not seen is made again.
const REPEATS: u32 = 3;
/// What calls say of whom they are for; a socket has no name.
const AUTHORITY: &str = "http://localhost";

/// Bytes both ways.
trait Pipe: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Pipe for T {}

/// Makes connections to one place, or says why there is none.
type Dial =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Box<dyn Pipe>, String>> + Send>> + Send + Sync>;

/// Learns how a call ended; with a status if it failed. It is dropped unasked where nobody waits for the call any more.
pub type Ended = Box<dyn FnOnce(Option<&Status>) + Send>;

/// Is told of calls, and may say something in their headers.
pub trait Observer: Send + Sync {
    /// A call of a method, `/package.Service/Method`, begins.
    fn begins(&self, method: &'static str, headers: &mut HeaderMap) -> Ended;
}

/// A client of one server. Clones share its connection.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    /// None: the connection was given, and there is no other.
    dial: Option<Dial>,
    waits: bool,
    answer_max_bytes: usize,
    user_agent: Option<http::HeaderValue>,
    observer: Option<Arc<dyn Observer>>,
    connection: Mutex<Option<SendRequest<Body>>>,
}

impl Client {
    /// A client of a unix socket: a path, or a name in the abstract namespace after `@`. Nothing is opened yet.
    pub fn unix(socket: impl AsRef<Path>) -> Self {
        let socket = socket.as_ref().to_string_lossy().into_owned();
        Self::dialing(move || {
            let socket = socket.clone();
            async move {
                let stream = connect(&socket).await;
                stream.map_err(|error| format!("dial unix {socket}: connect: {}", reason(&error)))
            }
        })
    }

    /// A client of what `dial` connects to; it is asked whenever there is no connection, and says in one line why
    /// there is none: `dial tcp 10.0.0.1:4317: connect: connection refused`.
    pub fn dialing<F, P>(dial: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<P, String>> + Send + 'static,
        P: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Self::new(Some(Arc::new(move || {
            let pipe = dial();
            Box::pin(async move { Ok(Box::new(pipe.await?) as Box<dyn Pipe>) })
        })))
    }

    /// A client of a host and port, `localhost:4317`.
    pub fn tcp(authority: &str) -> Self {
        let authority = authority.to_owned();
        Self::dialing(move || {
            let authority = authority.clone();
            async move {
                let stream = TcpStream::connect(&authority).await;
                stream.map_err(|error| format!("dial tcp {authority}: connect: {}", reason(&error)))
            }
        })
    }

    /// A client of the server at the other end of a stream. When it closes, calls end with `Unavailable`.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self, Status> {
        let client = Self::new(None);
        *client.0.connection.lock() = Some(shake_hands(stream).await.map_err(transport::broken)?);
        Ok(client)
    }

    /// Opens the connection, trying again after gRPC's own pauses, a second and then ever longer, until there is one.
    pub async fn connect(&self) {
        let mut pause = BACK_OFF;
        while self.sender(&Mutex::new(None)).await.is_err() {
            tokio::time::sleep(pause).await;
            pause = pause.mul_f64(BACK_OFF_FACTOR).min(BACK_OFF_MAX);
        }
    }

    fn new(dial: Option<Dial>) -> Self {
        Client(Arc::new(Inner {
            dial,
            waits: false,
            answer_max_bytes: ANSWER_MAX_BYTES,
            user_agent: None,
            observer: None,
            connection: Mutex::default(),
        }))
    }

    fn with(self, change: impl FnOnce(&mut Inner)) -> Self {
        let Inner { dial, waits, answer_max_bytes, user_agent, observer, connection } = &*self.0;
        let mut inner = Inner {
            dial: dial.clone(),
            waits: *waits,
            answer_max_bytes: *answer_max_bytes,
            user_agent: user_agent.clone(),
            observer: observer.clone(),
            connection: Mutex::new(connection.lock().clone()),
        };
        change(&mut inner);
        Client(Arc::new(inner))
    }

    /// Calls wait for the server to come up, as long as they have time; without this they fail at once with
    /// `Unavailable`.
    pub fn waiting(self) -> Self {
        self.with(|inner| inner.waits = true)
    }

    /// The largest answer that is read, in bytes; 4 MiB where this is not said.
    pub fn answers_up_to(self, bytes: usize) -> Self {
        self.with(|inner| inner.answer_max_bytes = bytes)
    }

    /// What the client calls itself.
    pub fn user_agent(self, name: &'static str) -> Self {
        self.with(|inner| inner.user_agent = Some(http::HeaderValue::from_static(name)))
    }

    /// Somebody is told of each [`Client::call`].
    pub fn observed(self, observer: Arc<dyn Observer>) -> Self {
        self.with(|inner| inner.observer = Some(observer))
    }

    /// Calls a method, `/package.Service/Method`. What is not answered in time fails with `DeadlineExceeded`.
    pub async fn call<Q, R>(&self, method: &'static str, message: Q, timeout: Duration) -> Result<R, Status>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        let mut headers = HeaderMap::new();
        let ended = self.0.observer.as_ref().map(|observer| observer.begins(method, &mut headers));
        // On the heap: the futures of all who call hold it.
        let outcome = Box::pin(self.exchange(method, message, headers, timeout)).await;
        if let Some(ended) = ended {
            ended(outcome.as_ref().err());
        }
        outcome
    }

    async fn exchange<Q, R>(
        &self,
        method: &'static str,
        message: Q,
        headers: HeaderMap,
        timeout: Duration,
    ) -> Result<R, Status>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        // Why there is no connection yet, should the time be over before there is one.
        let dialing = Mutex::new(None);
        let mut again = 0;
        let exchange = async {
            loop {
                let mut grpc = self.grpc(&dialing).await?;
                let mut request = tonic::Request::new(message.clone());
                *request.metadata_mut() = MetadataMap::from_headers(headers.clone());
                request.set_timeout(timeout);
                let path = PathAndQuery::from_static(method);
                match grpc.unary(request, path, Prost::<Q, R>::default()).await {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) if self.may_repeat(&status, &mut again) => {}
                    Err(status) => return Err(status),
                }
            }
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Status::deadline_exceeded(match dialing.into_inner() {
                None => "context deadline exceeded".to_owned(),
                Some(why) => format!("context deadline exceeded, latest balancer error: {why}"),
            })),
        }
    }

    /// Calls a method that answers with a stream of messages, and gives the stream once the server began it. It
    /// has no end but the server's and the caller's: dropping it ends the call.
    pub async fn watch<Q, R>(&self, method: &'static str, message: Q) -> Result<Streaming<R>, Status>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        let dialing = Mutex::new(None);
        let mut again = 0;
        loop {
            let mut grpc = self.grpc(&dialing).await?;
            let path = PathAndQuery::from_static(method);
            let request = tonic::Request::new(message.clone());
            match grpc.server_streaming(request, path, Prost::<Q, R>::default()).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if self.may_repeat(&status, &mut again) => {}
                Err(status) => return Err(status),
            }
        }
    }

    /// Calls a method that takes a stream of messages and answers with one. What is in the stream when the call is
    /// made travels first; the call ends when either stream is dropped.
    pub async fn converse<Q, R>(
        &self,
        method: &'static str,
        messages: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<R>, Status>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let mut grpc = self.grpc(&Mutex::new(None)).await?;
        let path = PathAndQuery::from_static(method);
        let answer = grpc.streaming(tonic::Request::new(messages), path, Prost::<Q, R>::default()).await?;
        Ok(answer.into_inner())
    }

    /// Whether a call may be made again, because the server has not seen it: the connection broke while nobody
    /// looked, or the server refused. `again` counts.
    fn may_repeat(&self, status: &Status, again: &mut u32) -> bool {
        if !transport::is_unseen(status) {
            return false;
        }
        self.0.connection.lock().take();
        *again += 1;
        self.0.dial.is_some() && *again <= REPEATS
    }

    async fn grpc(&self, dialing: &Mutex<Option<String>>) -> Result<Grpc<Connection>, Status> {
        let sender = self.sender(dialing).await?;
        let connection = Connection { sender, user_agent: self.0.user_agent.clone() };
        Ok(Grpc::with_origin(connection, Uri::from_static(AUTHORITY))
            .max_decoding_message_size(self.0.answer_max_bytes))
    }

    /// The connection, a new one where there is none or it broke.
    async fn sender(&self, dialing: &Mutex<Option<String>>) -> Result<SendRequest<Body>, Status> {
        if let Some(sender) = self.0.connection.lock().as_ref().filter(|s| !s.is_closed()) {
            return Ok(sender.clone());
        }
        let Some(dial) = &self.0.dial else {
            return Err(Status::unavailable("the connection is closed"));
        };
        let sender = loop {
            match open(dial).await {
                Ok(sender) => break sender,
                Err(why) if self.0.waits => *dialing.lock() = Some(transport::connection_error(why)),
                Err(why) => return Err(transport::broken(why)),
            }
            tokio::time::sleep(RETRY).await;
        };
        *dialing.lock() = None;
        *self.0.connection.lock() = Some(sender.clone());
        Ok(sender)
    }
}

async fn open(dial: &Dial) -> Result<SendRequest<Body>, String> {
    let stream = dial().await.map_err(|why| format!("transport: Error while dialing: {why}"))?;
    shake_hands(stream).await
}

async fn connect(socket: &str) -> std::io::Result<UnixStream> {
    let Some(name) = socket.strip_prefix('@') else { return UnixStream::connect(socket).await };
    let stream = std::os::unix::net::UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
