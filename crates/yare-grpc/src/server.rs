//! A table of methods behind a unix socket.

use std::{collections::HashMap, convert::Infallible, future::Future, pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tokio::{net::UnixListener, task::JoinSet};
use tonic::{
    Status, Streaming,
    body::Body,
    server::{Grpc, ServerStreamingService, StreamingService},
};

use crate::{authority::AnyAuthority, codec::Prost};

/// Connections at a time; who comes later waits.
const CONNECTIONS_MAX: usize = 256;
/// Pause after a connection could not be accepted, for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Handler = Arc<dyn Fn(Request<Incoming>) -> Boxed<Response<Body>> + Send + Sync>;

/// What a server answers: methods by path, `/package.Service/Method`.
#[derive(Clone, Default)]
pub struct Server {
    methods: HashMap<&'static str, Handler>,
}

impl Server {
    /// A server without methods: it answers `Unimplemented`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a method that answers with one message.
    #[must_use]
    pub fn unary<Q, R, F, A>(mut self, method: &'static str, handler: F) -> Self
    where
        Q: Message + Default + 'static,
        R: Message + 'static,
        F: Fn(Q) -> A + Send + Sync + 'static,
        A: Future<Output = Result<R, Status>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let method_handler: Handler = Arc::new(move |request| {
            let handler = handler.clone();
            Box::pin(async move {
                let service = tower::service_fn(move |request: tonic::Request<Q>| {
                    let answer = handler(request.into_inner());
                    async move { answer.await.map(tonic::Response::new) }
                });
                Grpc::new(Prost::<R, Q>::default()).unary(service, request).await
            })
        });
        self.methods.insert(method, method_handler);
        self
    }

    /// Adds a method that answers with a stream of messages. The stream is dropped when the caller goes.
    #[must_use]
    pub fn stream<Q, R, F, A, S>(mut self, method: &'static str, handler: F) -> Self
    where
        Q: Message + Default + 'static,
        R: Message + 'static,
        F: Fn(Q) -> A + Send + Sync + 'static,
        A: Future<Output = Result<S, Status>> + Send + 'static,
        S: Stream<Item = Result<R, Status>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let method_handler: Handler = Arc::new(move |request| {
            let service = Streams { handler: handler.clone(), message: std::marker::PhantomData };
            Box::pin(
                async move { Grpc::new(Prost::<R, Q>::default()).server_streaming(service, request).await },
            )
        });
        self.methods.insert(method, method_handler);
        self
    }

    /// Adds a method that takes a stream of messages and answers with one.
    #[must_use]
    pub fn converse<Q, R, F, A, S>(mut self, method: &'static str, handler: F) -> Self
    where
        Q: Message + Default + 'static,
        R: Message + 'static,
        F: Fn(Streaming<Q>) -> A + Send + Sync + 'static,
        A: Future<Output = Result<S, Status>> + Send + 'static,
        S: Stream<Item = Result<R, Status>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let method_handler: Handler = Arc::new(move |request| {
            let service = Talks { handler: handler.clone(), message: std::marker::PhantomData };
            Box::pin(async move { Grpc::new(Prost::<R, Q>::default()).streaming(service, request).await })
        });
        self.methods.insert(method, method_handler);
        self
    }

    /// Serves a socket until `stop` ends; what is under way then is dropped.
    pub async fn serve(self, listener: UnixListener, stop: impl Future<Output = ()>) {
        let methods = Arc::new(self.methods);
        let mut connections = JoinSet::new();
        let accept = async {
            loop {
                while connections.len() >= CONNECTIONS_MAX {
                    connections.join_next().await;
                }
                while connections.try_join_next().is_some() {}
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::debug!(%error, "accepting a gRPC connection");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                        continue;
                    }
                };
                let methods = methods.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let handler = methods.get(request.uri().path()).cloned();
                        async move {
                            Ok::<_, Infallible>(match handler {
                                Some(handler) => handler(request).await,
                                None => unknown(request.uri().path()).into_http(),
                            })
                        }
                    });
                    let served = http2::Builder::new(TokioExecutor::new())
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(AnyAuthority::new(stream)), service)
                        .await;
                    if let Err(error) = served {
                        tracing::debug!(%error, "a gRPC connection ended");
                    }
                });
            }
        };
        tokio::select! {
            () = accept => {}
            () = stop => {}
        }
    }
}

fn unknown(path: &str) -> Status {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    Status::unimplemented(format!("unknown method {method} for service {service}"))
}

/// A handler of streams as the protocol wants it.
struct Streams<F, Q> {
    handler: Arc<F>,
    message: std::marker::PhantomData<fn(Q)>,
}

impl<Q, R, F, A, S> ServerStreamingService<Q> for Streams<F, Q>
where
    F: Fn(Q) -> A,
    A: Future<Output = Result<S, Status>> + Send + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
{
    type Response = R;
    type ResponseStream = S;
    type Future = Boxed<Result<tonic::Response<S>, Status>>;

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        let answer = (self.handler)(request.into_inner());
        Box::pin(async move { answer.await.map(tonic::Response::new) })
    }
}

/// A handler of conversations as the protocol wants it.
struct Talks<F, Q> {
    handler: Arc<F>,
    message: std::marker::PhantomData<fn(Q)>,
}

impl<Q, R, F, A, S> StreamingService<Q> for Talks<F, Q>
where
    F: Fn(Streaming<Q>) -> A,
    A: Future<Output = Result<S, Status>> + Send + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
{
    type Response = R;
    type ResponseStream = S;
    type Future = Boxed<Result<tonic::Response<S>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Q>>) -> Self::Future {
        let answer = (self.handler)(request.into_inner());
        Box::pin(async move { answer.await.map(tonic::Response::new) })
    }
}
