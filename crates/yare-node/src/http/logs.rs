//! `/containerLogs/{namespace}/{pod}/{container}`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use jiff::Timestamp;
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use yare_runtime::{ContainerState, ContainerStatus, RuntimeEvent};

use super::{Body, flag, query, text};
use crate::kubelet::Kubelet;
use crate::logs::read::{self, LogOptions, Stream};

pub(super) async fn serve(
    kubelet: &Arc<Kubelet>,
    namespace: &str,
    pod: &str,
    container: &str,
    raw: &str,
) -> Response<Body> {
    let options = match options(raw, kubelet.seams.now()) {
        Ok(options) => options,
        Err(error) => return text(StatusCode::BAD_REQUEST, error),
    };
    let Some(state) = kubelet.find_pod(namespace, pod, None) else {
        return text(StatusCode::NOT_FOUND, format!("pod does not exist: {pod:?}\n"));
    };
    if state.pod.container(container).is_none() {
        return text(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {pod:?}\n"));
    }
    let previous = flag(raw, "previous");
    let chosen = match choose(&state.containers, container, previous) {
        Some(chosen) => chosen.clone(),
        None => {
            let waiting = state.status.container(container).and_then(|s| s.state.waiting.clone());
            let message = match waiting.filter(|_| !previous) {
                Some(w) if w.reason.is_empty() => {
                    format!("container {container:?} in pod {pod:?} is waiting to start\n")
                }
                Some(w) if matches!(w.reason.as_str(), "ErrImagePull" | "ImagePullBackOff") => {
                    format!(
                        "container {container:?} in pod {pod:?} is waiting to start: trying and failing to pull image\n"
                    )
                }
                Some(w) => {
                    format!("container {container:?} in pod {pod:?} is waiting to start: {}\n", w.reason)
                }
                None if previous => {
                    format!("previous terminated container {container:?} in pod {pod:?} not found\n")
                }
                None => format!("container {container:?} in pod {pod:?} is not available\n"),
            };
            return text(StatusCode::BAD_REQUEST, message);
        }
    };
    if std::fs::metadata(&chosen.log_path).is_err() {
        let message = format!(
            "failed to try resolving symlinks in path {:?}: no such file or directory\n",
            chosen.log_path
        );
        return text(StatusCode::INTERNAL_SERVER_ERROR, message);
    }
    let ended = CancellationToken::new();
    if options.follow {
        watch_end(kubelet.clone(), chosen.clone(), ended.clone());
    } else {
        ended.cancel();
    }
    let guard = ended.clone().drop_guard();
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        if let Err(error) = read::read(&chosen.log_path, &options, ended, sender).await {
            tracing::debug!(%error, path = %chosen.log_path.display(), "reading a container's log");
        }
    });
    let body = Chunks { receiver, _guard: guard }.map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    response
}

/// The instance whose log is meant: the one that runs or ran last, or the one before.
fn choose<'a>(containers: &'a [ContainerStatus], name: &str, previous: bool) -> Option<&'a ContainerStatus> {
    let mut instances = containers.iter().filter(|c| c.name == name && c.state != ContainerState::Created);
    if !previous {
        return instances.next();
    }
    let newest = containers.iter().find(|c| c.name == name);
    match newest {
        Some(newest) if newest.state == ContainerState::Running => instances.nth(1),
        // In a crash loop the last end is the previous instance.
        _ => instances.next(),
    }
}

/// Cancels `ended` once the container has ended.
fn watch_end(kubelet: Arc<Kubelet>, container: ContainerStatus, ended: CancellationToken) {
    let mut events = kubelet.runtime.events();
    tokio::spawn(async move {
        loop {
            let running = kubelet
                .runtime
                .container(&container.id)
                .await
                .is_ok_and(|c| c.state == ContainerState::Running);
            if !running {
                ended.cancel();
                return;
            }
            loop {
                tokio::select! {
                    () = ended.cancelled() => return,
                    event = events.recv() => match event {
                        Ok(RuntimeEvent::ContainerExited { id, .. }) if id == container.id => break,
                        Ok(RuntimeEvent::SandboxGone { sandbox }) if sandbox == container.sandbox_id => break,
                        Ok(_) => {}
                        Err(RecvError::Lagged(_)) => break,
                        Err(RecvError::Closed) => {
                            ended.cancel();
                            return;
                        }
                    }
                }
            }
        }
    });
}

fn options(raw: &str, now: Timestamp) -> Result<LogOptions, String> {
    let number = |name: &str, min: i64| -> Result<Option<u64>, String> {
        match query(raw, name).first().filter(|v| !v.is_empty()) {
            None => Ok(None),
            Some(value) => match value.parse::<i64>() {
                Ok(n) if n >= min => Ok(u64::try_from(n).ok()),
                _ => Err(format!("invalid value for {name}: {value:?}\n")),
            },
        }
    };
    let since_time = match query(raw, "sinceTime").first().filter(|v| !v.is_empty()) {
        None => None,
        Some(value) => {
            Some(value.parse::<Timestamp>().map_err(|e| format!("invalid value for sinceTime: {e}\n"))?)
        }
    };
    let since_seconds = number("sinceSeconds", 1)?;
    let since = since_time.or_else(|| {
        let seconds = i64::try_from(since_seconds?).ok()?;
        now.checked_sub(jiff::SignedDuration::from_secs(seconds)).ok()
    });
    Ok(LogOptions {
        follow: flag(raw, "follow"),
        tail_lines: number("tailLines", 0)?,
        since,
        timestamps: flag(raw, "timestamps"),
        limit_bytes: number("limitBytes", 1)?,
        stream: match query(raw, "stream").first().map(String::as_str) {
            None | Some("" | "All") => Stream::All,
            Some("Stdout") => Stream::Stdout,
            Some("Stderr") => Stream::Stderr,
            Some(other) => return Err(format!("invalid value for stream: {other:?}\n")),
        },
    })
}

/// A body fed by a channel; dropping it ends the reader.
struct Chunks {
    receiver: mpsc::Receiver<Bytes>,
    _guard: DropGuard,
}

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.receiver.poll_recv(cx).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    }
}
