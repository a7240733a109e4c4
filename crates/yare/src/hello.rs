//! `yare hello`: a small HTTP server that shows where it runs, for demonstrations.
//!
//! | Path | Answers |
//! |---|---|
//! | `/` | one line that names the pod and its node |
//! | `/env` | the environment |
//! | `/counters` | requests so far and uptime |
//! | `/healthz` | `ok` |

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
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, signal::unix::SignalKind, sync::Semaphore};

use crate::{cli::HelloArgs, progress::say};

const MAX_CONNECTIONS: usize = 1024;
/// How long connections may take to finish after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);

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
            let answer = page.answer(request.uri().path());
            async move { Ok::<_, Infallible>(answer) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(30))
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
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
    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
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
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    }
}
