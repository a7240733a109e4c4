//! From spans that ended to a collector: a bounded queue, batches, and what is done when nobody takes them.

use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use yare_grpc::{Client, Code, describe};

use crate::wire::{
    EXPORT, ExportRequest, ExportResponse, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, Span,
};

/// Spans that wait to be sent; more are dropped.
pub(crate) const QUEUE_MAX: usize = 2048;
/// Spans that are sent at a time.
const BATCH_MAX: usize = 512;
/// How long one attempt may take, and all of them.
const CALL: Duration = Duration::from_secs(10);
const ATTEMPTS: Duration = Duration::from_secs(30);
/// Pause before the second attempt; later ones are longer.
const PAUSE: Duration = Duration::from_secs(1);
/// Who made the spans.
const SCOPE: &str = "k8s.io/component-base/tracing";

pub(crate) struct Exporter {
    pub client: Client,
    pub resource: Vec<KeyValue>,
    /// How long a batch waits to become full.
    pub delay: Duration,
}

impl Exporter {
    /// Sends what comes until `stop`, and then what is left.
    pub async fn run(self, mut queue: mpsc::Receiver<Span>, stop: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                first = queue.recv() => batch.extend(first),
                () = stop.cancelled() => queue.close(),
            }
            let full = Instant::now() + self.delay;
            while batch.len() < BATCH_MAX {
                tokio::select! {
                    more = queue.recv() => match more {
                        Some(more) => batch.push(more),
                        None => break,
                    },
                    () = tokio::time::sleep_until(full) => break,
                    () = stop.cancelled(), if !queue.is_closed() => queue.close(),
                }
            }
            if batch.is_empty() && queue.is_closed() {
                return;
            }
            self.send(std::mem::take(&mut batch)).await;
        }
    }

    async fn send(&self, spans: Vec<Span>) {
        let (count, until) = (spans.len(), Instant::now() + ATTEMPTS);
        let scope = Scope { name: SCOPE.to_owned() };
        let request = ExportRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes: self.resource.clone() }),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
            }],
        };
        let mut pause = PAUSE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let status = match self.client.call(EXPORT, request.clone(), left.min(CALL)).await {
                Ok(ExportResponse { partial_success: None }) => return,
                Ok(ExportResponse { partial_success: Some(partial) }) => {
                    if partial.rejected_spans > 0 {
                        tracing::warn!(
                            spans = partial.rejected_spans,
                            why = partial.error_message,
                            "the collector does not take spans"
                        );
                    }
                    return;
                }
                Err(status) => status,
            };
            if !may_pass(status.code()) || until.saturating_duration_since(Instant::now()) <= pause {
                tracing::warn!(spans = count, why = describe(&status), "spans cannot be sent");
                return;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

/// Whether OTLP has the same call made again.
fn may_pass(code: Code) -> bool {
    use Code::{Aborted, Cancelled, DataLoss, DeadlineExceeded, OutOfRange, ResourceExhausted, Unavailable};
    matches!(
        code,
        Aborted | Cancelled | DataLoss | DeadlineExceeded | OutOfRange | ResourceExhausted | Unavailable
    )
}
