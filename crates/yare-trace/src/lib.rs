//! OpenTelemetry traces: what happened on behalf of a request, in spans, sent to a collector.
//!
//! A [`Tracer`] decides which traces are recorded and sends them by OTLP over gRPC. A request's [`Span`] is made by
//! whoever takes the request; what is done on its behalf runs in [`scoped`], so that code far below opens
//! spans with [`within`] and hands the trace on with [`inject`], without knowing where the request came from. Where
//! no tracer runs, all of that is a look at a task-local that is not there.
//!
//! In: headers ([`Context`]), time and randomness ([`Source`]). Out: batches of spans. The messages are few, and
//! written by hand (`wire.rs`): the crates for it bring far more code.

mod context;
mod export;
mod span;
mod wire;

use std::{sync::Arc, time::Duration};

pub use context::Context;
use parking_lot::Mutex;
pub use span::{
    Active, Kind, Scoped, Span, Value, child, current, described, during, event, inject, inside, scoped,
    within,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use yare_grpc::Client;

use crate::export::{Exporter, QUEUE_MAX};

/// How long a batch of spans waits to become full, as OpenTelemetry has it.
pub const DELAY: Duration = Duration::from_secs(5);

/// Time and randomness.
pub trait Source: Send + Sync {
    /// Now, in nanoseconds since 1970.
    fn now_ns(&self) -> u64;
    /// Fills `bytes` at random.
    fn fill(&self, bytes: &mut [u8]);
}

/// What a span that begins a server's work comes from.
#[derive(Clone, Copy)]
pub enum Parent<'a> {
    /// Nothing that is known.
    None,
    /// A span elsewhere, whose trace it belongs to.
    Of(&'a Context),
    /// A span of this server.
    In(&'a Active),
    /// A span elsewhere that may not decide for this server: it is only mentioned.
    Linked(&'a Context),
}

/// Records traces and sends them. Clones are the same one.
#[derive(Clone)]
pub struct Tracer(Arc<Inner>);

struct Inner {
    /// Traces without a parent are recorded whose number is below this; absent: all.
    below: Option<u64>,
    source: Arc<dyn Source>,
    queue: mpsc::Sender<wire::Span>,
    stop: CancellationToken,
    exporter: Mutex<Option<JoinHandle<()>>>,
}

impl Tracer {
    /// Sends to the collector that `collector` calls. `resource`: attributes of this process. Of a million traces
    /// without a parent, `rate` are recorded. `delay`: how long a batch waits to become full.
    pub fn start(
        collector: Client,
        resource: &[(&str, &str)],
        rate: u32,
        source: Arc<dyn Source>,
        delay: Duration,
    ) -> Self {
        let (queue, ended) = mpsc::channel(QUEUE_MAX);
        let stop = CancellationToken::new();
        let resource = resource.iter().map(|(key, value)| span::attribute(key, (*value).into())).collect();
        let exporter = Exporter { client: collector.waiting(), resource, delay };
        let exporter = tokio::spawn(exporter.run(ended, stop.clone()));
        Self(Arc::new(Inner {
            below: below(rate),
            source,
            queue,
            stop,
            exporter: Mutex::new(Some(exporter)),
        }))
    }

    /// A span of what came in from elsewhere, which began at `start_ns` (nanoseconds since 1970).
    pub fn server(&self, name: &str, parent: Parent<'_>, start_ns: u64) -> Span {
        self.open(name, Kind::Server, parent, start_ns)
    }

    /// A span that no other of this task contains, which began at `start_ns` (nanoseconds since 1970).
    pub fn open(&self, name: &str, kind: Kind, parent: Parent<'_>, start_ns: u64) -> Span {
        let above = match parent {
            Parent::In(active) => Some(active.context()),
            Parent::Of(context) => Some(context),
            Parent::None | Parent::Linked(_) => None,
        };
        let mut links = Vec::new();
        let (mut context, parent_span) = match above {
            Some(above) => (above.clone(), above.span.to_vec()),
            None => (self.root(), Vec::new()),
        };
        context.span = self.span_id();
        if let Parent::Linked(context) = parent {
            links.push(wire::Link {
                trace_id: context.trace.to_vec(),
                span_id: context.span.to_vec(),
                trace_state: context.state.clone(),
                flags: context.flags(true),
            });
        }
        let recorded = context.sampled.then(|| {
            let mut span = begun(name, kind, &context, parent_span, start_ns);
            span.links = links;
            span.flags = context.flags(matches!(parent, Parent::Of(_)));
            span
        });
        Span::new(self.clone(), context, recorded)
    }

    /// A new trace, in which there is no span yet.
    fn root(&self) -> Context {
        let mut trace = [0; 16];
        self.0.source.fill(&mut trace);
        // Zero is no name.
        trace[15] |= u8::from(trace == [0; 16]);
        let sampled = self.0.below.is_none_or(|below| number(&trace) < below);
        Context { trace, span: [0; 8], sampled, state: String::new() }
    }

    /// A span of this process's own work: in the one that this task works in, or the first of a trace.
    pub fn own(&self, name: &str, kind: Kind) -> Span {
        child(name, kind).unwrap_or_else(|| self.open(name, kind, Parent::None, self.now_ns()))
    }

    fn child(&self, name: &str, kind: Kind, parent: &Context) -> Span {
        let context = Context { span: self.span_id(), ..parent.clone() };
        let now_ns = || self.0.source.now_ns();
        let recorded = context.sampled.then(|| begun(name, kind, &context, parent.span.to_vec(), now_ns()));
        Span::new(self.clone(), context, recorded)
    }

    fn span_id(&self) -> [u8; 8] {
        let mut id = [0; 8];
        self.0.source.fill(&mut id);
        id[7] |= u8::from(id == [0; 8]);
        id
    }

    fn now_ns(&self) -> u64 {
        self.0.source.now_ns()
    }

    fn keep(&self, span: wire::Span) {
        // What does not fit into the queue is lost: requests do not wait for a collector.
        if self.0.queue.try_send(span).is_err() {
            tracing::debug!("a span is dropped");
        }
    }

    /// Sends what waits, for at most `patience`. Spans that end later are lost.
    pub async fn close(&self, patience: Duration) {
        self.0.stop.cancel();
        let exporter = self.0.exporter.lock().take();
        if let Some(mut exporter) = exporter
            && tokio::time::timeout(patience, &mut exporter).await.is_err()
        {
            exporter.abort();
        }
    }
}

fn begun(name: &str, kind: Kind, context: &Context, parent: Vec<u8>, start_ns: u64) -> Box<wire::Span> {
    Box::new(wire::Span {
        trace_id: context.trace.to_vec(),
        span_id: context.span.to_vec(),
        trace_state: context.state.clone(),
        parent_span_id: parent,
        name: name.to_owned(),
        kind: kind as i32,
        start_time_unix_nano: start_ns,
        flags: context.flags(false),
        ..wire::Span::default()
    })
}

/// The bound below which traces are recorded, of which there are 2^63.
fn below(rate: u32) -> Option<u64> {
    const MILLION: u128 = 1_000_000;
    // Less than 2^63.
    (u128::from(rate) < MILLION).then(|| ((u128::from(rate) << 63) / MILLION) as u64)
}

/// What decides about a trace, in the same way wherever it comes by.
fn number(trace: &[u8; 16]) -> u64 {
    let mut half = [0; 8];
    half.copy_from_slice(&trace[8..]);
    u64::from_be_bytes(half) >> 1
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use http::HeaderMap;
    use tokio::sync::Notify;
    use yare_grpc::Server;

    use super::*;
    use crate::wire::{EXPORT, ExportRequest, ExportResponse};

    /// Time that goes on by one, and numbers that are one after the other.
    #[derive(Default)]
    struct Counting(AtomicU64);

    impl Source for Counting {
        fn now_ns(&self) -> u64 {
            self.0.fetch_add(1, Ordering::Relaxed)
        }

        fn fill(&self, bytes: &mut [u8]) {
            // SplitMix64: spread over all numbers, and the same in every run.
            let mut z = (self.now_ns() + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let number = (z ^ (z >> 31)).to_be_bytes();
            bytes.iter_mut().zip(number.iter().cycle()).for_each(|(byte, random)| *byte = *random);
        }
    }

    /// A collector: what it was sent, and whether it answers.
    #[derive(Clone, Default)]
    struct Collector {
        batches: Arc<Mutex<Vec<ExportRequest>>>,
        holds: Arc<Mutex<bool>>,
        told: Arc<Notify>,
    }

    impl Collector {
        fn listen(&self, socket: &std::path::Path) -> JoinHandle<()> {
            let this = self.clone();
            let server = Server::new().unary(EXPORT, move |request: ExportRequest| {
                let this = this.clone();
                async move {
                    while *this.holds.lock() {
                        this.told.notified().await;
                    }
                    this.batches.lock().push(request);
                    Ok(ExportResponse::default())
                }
            });
            let listener = tokio::net::UnixListener::bind(socket).unwrap();
            tokio::spawn(server.serve(listener, std::future::pending()))
        }

        fn spans(&self) -> Vec<wire::Span> {
            let batches = self.batches.lock();
            let spans = batches.iter().flat_map(|b| &b.resource_spans[0].scope_spans[0].spans);
            spans.cloned().collect()
        }
    }

    fn tracer(socket: &std::path::Path, rate: u32) -> Tracer {
        let resource = [("service.name", "test")];
        Tracer::start(
            Client::unix(socket),
            &resource,
            rate,
            Arc::new(Counting::default()),
            Duration::from_secs(600),
        )
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn spans_have_parents_and_reach_the_collector() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("collector.sock");
        let tracer = tracer(&socket, 1_000_000);
        let collector = Collector::default();
        let mut root = tracer.server("GET", Parent::None, 7);
        root.set("http.request.method", "GET");
        root.set("long", "ä".repeat(2000));
        let mut headers = HeaderMap::new();
        let work = async {
            within("inner", |span| span.set("n", 3), async {
                inject(&mut headers);
                assert!(child("call", Kind::Client).is_some());
            })
            .await;
        };
        scoped(Some(root.active()), work).await;
        assert!(child("outside", Kind::Internal).is_none());
        root.failed("it broke");
        drop(root);
        // The collector comes up later than the spans.
        let server = collector.listen(&socket);
        tracer.close(PATIENCE).await;
        server.abort();
        let batches = collector.batches.lock();
        assert_eq!(batches[0].resource_spans[0].resource.as_ref().unwrap().attributes[0].key, "service.name");
        drop(batches);
        let spans = collector.spans();
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["call", "inner", "GET"]);
        let [call, inner, root] = [&spans[0], &spans[1], &spans[2]];
        assert_eq!((call.kind, inner.kind, root.kind), (3, 1, 2));
        assert_eq!(call.parent_span_id, inner.span_id);
        assert_eq!(inner.parent_span_id, root.span_id);
        assert!(root.parent_span_id.is_empty());
        assert_eq!(root.start_time_unix_nano, 7);
        assert!(root.end_time_unix_nano > inner.end_time_unix_nano);
        assert_eq!(root.status, Some(wire::Status { message: "it broke".into(), code: 2 }));
        let long = span::attribute("long", Value::from("ä".repeat(1024)));
        assert_eq!(root.attributes[1], long);
        let injected = Context::of(&headers).unwrap();
        assert_eq!((&injected.trace[..], &injected.span[..]), (&root.trace_id[..], &inner.span_id[..]));
    }

    #[tokio::test]
    async fn who_decides_what_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("collector.sock");
        let elsewhere = |sampled| Context { trace: [1; 16], span: [2; 8], sampled, state: "a=b".into() };
        let (yes, no) = (elsewhere(true), elsewhere(false));
        let cases = [
            (0, Parent::None, false),
            (0, Parent::Of(&yes), true),
            (0, Parent::Of(&no), false),
            (0, Parent::Linked(&yes), false),
            (1_000_000, Parent::None, true),
            (1_000_000, Parent::Of(&no), false),
            (1_000_000, Parent::Linked(&no), true),
        ];
        for (at, (rate, parent, recorded)) in cases.into_iter().enumerate() {
            let tracer = tracer(&socket, rate);
            let span = tracer.server("a", parent, 1);
            assert_eq!(span.is_recorded(), recorded, "{rate} {at}");
            let mut headers = HeaderMap::new();
            // Also what is not recorded says so to others.
            scoped(Some(span.active()), async { inject(&mut headers) }).await;
            let context = Context::of(&headers).unwrap();
            assert_eq!(context.sampled, recorded);
            assert_eq!(context.trace == [1; 16], matches!(parent, Parent::Of(_)));
        }
        let tracer = tracer(&socket, 250_000);
        let recorded = (0..4000).filter(|_| tracer.server("a", Parent::None, 1).is_recorded()).count();
        assert!((900..1100).contains(&recorded), "{recorded}");
    }

    #[tokio::test]
    async fn spans_tell_of_events() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("collector.sock");
        let tracer = tracer(&socket, 1_000_000);
        let collector = Collector::default();
        let server = collector.listen(&socket);
        let outer = tracer.open("outer", Kind::Internal, Parent::None, 1);
        let inner = tracer.server("inner", Parent::In(&outer.active()), 2);
        let active = inner.active();
        scoped(Some(active.clone()), async {
            event("first", &[("n", Value::from(1))]);
            during("below", |span| span.set("a", "b"), || event("second", &[]));
            inner.event("third", &[("why", "x".into())]);
        })
        .await;
        event("outside", &[]);
        drop(inner);
        active.event("late", &[]);
        for _ in 0..200 {
            outer.event("again", &[]);
        }
        drop(outer);
        tracer.close(PATIENCE).await;
        server.abort();
        let spans = collector.spans();
        let told = |span: &wire::Span| {
            (span.name.clone(), span.events.iter().map(|e| e.name.clone()).collect::<Vec<_>>())
        };
        assert_eq!(told(&spans[0]), ("below".into(), vec!["second".into()]));
        assert_eq!(told(&spans[1]), ("inner".into(), vec!["first".into(), "third".into()]));
        assert_eq!(spans[1].events[0].attributes, [span::attribute("n", Value::from(1))]);
        assert_eq!(spans[1].parent_span_id, spans[2].span_id);
        // The parent is this server's own.
        assert_eq!(spans[1].flags, 0x101);
        assert!(spans[1].events[0].time_unix_nano < spans[1].events[1].time_unix_nano);
        assert_eq!((spans[2].events.len(), spans[2].dropped_events_count), (128, 72));
    }

    #[tokio::test]
    async fn what_is_only_handed_on() {
        let context = Context { trace: [1; 16], span: [2; 8], sampled: true, state: String::new() };
        let mut headers = HeaderMap::new();
        scoped(Some(Active::passing(context.clone())), async {
            assert!(child("a", Kind::Internal).is_none());
            event("nothing", &[]);
            within("b", |_| panic!("nobody sees that"), async { inject(&mut headers) }).await;
        })
        .await;
        assert_eq!(Context::of(&headers).unwrap(), context);
    }

    #[tokio::test]
    async fn what_nobody_takes_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("collector.sock");
        let collector = Collector::default();
        *collector.holds.lock() = true;
        let server = collector.listen(&socket);
        let tracer = tracer(&socket, 1_000_000);
        // Nothing yields in between: the exporter takes none of them.
        for _ in 0..3 * QUEUE_MAX {
            drop(tracer.server("a", Parent::None, 1));
        }
        *collector.holds.lock() = false;
        collector.told.notify_waiters();
        tracer.close(PATIENCE).await;
        server.abort();
        let sizes: Vec<usize> = {
            let batches = collector.batches.lock();
            batches.iter().map(|b| b.resource_spans[0].scope_spans[0].spans.len()).collect()
        };
        assert_eq!(sizes, [512; 4]);
    }
}
