//! `yare hello`: a small HTTP server that shows where it runs, for demonstrations.
//!
//! | Path | Answers |
//! |---|---|
//! | `/` | one line that names the pod and its node |
//! | `/env` | the environment |
//! | `/counters` | requests so far and uptime |
//! | `/healthz` | `ok` |
//! | `/grpc.health.v1.Health/Check` | gRPC's health protocol: the whole (`""`) and `hello` serve, until SIGTERM |

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::{BodyExt as _, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{net::TcpListener, signal::unix::SignalKind, sync::Semaphore};

use crate::{cli::HelloArgs, progress::say};

const MAX_CONNECTIONS: usize = 1024;
/// How long connections may take to finish after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);

/// A body with or without trailers.
type Body = UnsyncBoxBody<Bytes, Infallible>;

const HEALTH: &str = "/grpc.health.v1.Health/Check";
/// Far more than the name of a service takes.
const MAX_HEALTH_REQUEST_BYTES: usize = 1024;
/// gRPC's status codes.
const OK: &str = "0";
const INVALID_ARGUMENT: &str = "3";
const NOT_FOUND: &str = "5";

struct Page {
    pod: String,
    node: String,
    namespace: String,
    started: Instant,
    requests: AtomicU64,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(args: &HelloArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: &HelloArgs) -> anyhow::Result<()> {
    // First of all: the kernel drops signals of the first process in a PID namespace that it has no handler for.
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt())?;
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    let var = |name: &str, other: &str| {
        std::env::var(name).or_else(|_| std::env::var(other)).unwrap_or_else(|_| "unknown".into())
    };
    let page = Arc::new(Page {
        pod: var("POD_NAME", "HOSTNAME"),
        node: var("NODE_NAME", "NODE"),
        namespace: var("POD_NAMESPACE", "NAMESPACE"),
        started: Instant::now(),
        requests: AtomicU64::new(0),
    });
    say(&format!("hello from {} on {}, listening on {}", page.pod, page.node, listener.local_addr()?));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = hyper_util::server::graceful::GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let page = page.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let page = page.clone();
            async move {
                Ok::<_, Infallible>(match request.uri().path() {
                    HEALTH => health(request.into_body()).await,
                    path => page.answer(path),
                })
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(100);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection.into_owned());
        tokio::spawn(async move {
            // A client that breaks off is no event.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
    Ok(())
}

impl Page {
    fn answer(&self, path: &str) -> Response<Body> {
        let mut status = StatusCode::OK;
        let text = match path {
            "/" => {
                let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
                let Self { pod, node, namespace, .. } = self;
                format!("Hello from pod {pod} in namespace {namespace} on node {node}, request {number}\n")
            }
            "/env" => {
                let mut lines: Vec<String> = std::env::vars().map(|(k, v)| format!("{k}={v}\n")).collect();
                lines.sort();
                lines.concat()
            }
            "/counters" => {
                let requests = self.requests.load(Ordering::Relaxed);
                format!("requests {requests}\nuptime_s {}\n", self.started.elapsed().as_secs())
            }
            "/healthz" => "ok\n".to_owned(),
            _ => {
                status = StatusCode::NOT_FOUND;
                "not here; try /, /env, /counters or /healthz\n".to_owned()
            }
        };
        let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
        *response.status_mut() = status;
        response
    }
}

/// `grpc.health.v1.Health/Check`. What listens serves, so there is no other status than SERVING.
async fn health(body: Incoming) -> Response<Body> {
    let request = Limited::new(body, MAX_HEALTH_REQUEST_BYTES).collect().await.map(|b| b.to_bytes());
    let (message, status) = match request.as_deref().ok().and_then(service) {
        // HealthCheckResponse { status = 1: SERVING } behind gRPC's prefix: not compressed, two bytes long.
        Some(b"" | b"hello") => (Bytes::from_static(&[0, 0, 0, 0, 2, 0x08, 1]), OK),
        Some(_) => (Bytes::new(), NOT_FOUND),
        None => (Bytes::new(), INVALID_ARGUMENT),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed_unsync();
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// `HealthCheckRequest { string service = 1; }` behind gRPC's prefix. Names here are short: one byte of length.
fn service(frame: &[u8]) -> Option<&[u8]> {
    match frame.get(5..)? {
        [] => Some(b""),
        [0x0a, length @ 0..=0x7f, name @ ..] if name.len() == usize::from(*length) => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_service_that_is_asked_for() {
        for (frame, want) in [
            (&[0, 0, 0, 0, 0][..], Some(&b""[..])),
            (&[0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b'], Some(b"ab")),
            (&[0, 0, 0, 0, 4, 0x0a, 3, b'a', b'b'], None),
            (&[0, 0, 0], None),
        ] {
            assert_eq!(super::service(frame), want, "{frame:?}");
        }
    }
}
