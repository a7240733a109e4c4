//! A collector of OpenTelemetry traces: a real gRPC server on a unix socket that keeps the spans it is sent.
//!
//! Its messages are written down here once more, so that a wrong number in the server's own shows.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use prost::{Message, Oneof};
use yare_grpc::Server;

use crate::socket::Socket;

/// A span as it was sent; identifiers are hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentSpan {
    /// Its name.
    pub name: String,
    /// 1: internal, 2: a server's, 3: a client's.
    pub kind: i32,
    /// The trace.
    pub trace: String,
    /// It.
    pub id: String,
    /// The span that it is part of; empty: none.
    pub parent: String,
    /// Spans that it mentions.
    pub links: Vec<String>,
    /// Attributes; numbers as text.
    pub attributes: BTreeMap<String, String>,
    /// What happened in it, by name.
    pub events: Vec<String>,
    /// Whether it says that it failed.
    pub failed: bool,
    /// Attributes of the process.
    pub resource: BTreeMap<String, String>,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
}

#[derive(Default)]
struct Shared {
    spans: Mutex<Vec<SentSpan>>,
    told: Condvar,
}

/// A collector. It stops when it is dropped.
pub struct TraceCollector {
    socket: Socket,
    shared: Arc<Shared>,
}

impl TraceCollector {
    /// A collector that runs.
    pub fn started(socket: &Path) -> anyhow::Result<Self> {
        let (mut socket, shared) = (Socket::at(socket), Arc::<Shared>::default());
        let into = shared.clone();
        let server = Server::new().unary(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            move |request: Request| {
                let into = into.clone();
                async move {
                    into.spans.lock().extend(request.spans());
                    into.told.notify_all();
                    Ok(Response {})
                }
            },
        );
        socket.serve(server)?;
        Ok(Self { socket, shared })
    }

    /// What `endpoint` of a configuration says of it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.path().display())
    }

    /// What it was sent so far.
    pub fn spans(&self) -> Vec<SentSpan> {
        self.shared.spans.lock().clone()
    }

    /// Waits for a span, for at most half a minute.
    pub fn until(&self, wanted: impl Fn(&SentSpan) -> bool) -> anyhow::Result<SentSpan> {
        let end = Instant::now() + Duration::from_secs(30);
        let mut spans = self.shared.spans.lock();
        loop {
            if let Some(found) = spans.iter().find(|span| wanted(span)) {
                return Ok(found.clone());
            }
            if self.shared.told.wait_until(&mut spans, end).timed_out() {
                anyhow::bail!("not among the spans: {spans:#?}");
            }
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Response {}

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "11")]
    events: Vec<Event>,
    #[prost(message, repeated, tag = "13")]
    links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(string, tag = "2")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Link {
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(oneof = "Any", tags = "1, 2, 3")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Any {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Truth(bool),
    #[prost(int64, tag = "3")]
    Number(i64),
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<Value>| match value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(Any::Text(text)) => text.clone(),
        Some(Any::Truth(truth)) => truth.to_string(),
        Some(Any::Number(number)) => number.to_string(),
        None => String::new(),
    };
    list.iter().map(|attribute| (attribute.key.clone(), text(&attribute.value))).collect()
}

impl Request {
    fn spans(&self) -> Vec<SentSpan> {
        let mut all = Vec::new();
        for of in &self.resource_spans {
            let resource = attributes(of.resource.as_ref().map_or(&[], |resource| &resource.attributes));
            all.extend(of.scope_spans.iter().flat_map(|scope| &scope.spans).map(|span| SentSpan {
                name: span.name.clone(),
                kind: span.kind,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
                attributes: attributes(&span.attributes),
                events: span.events.iter().map(|event| event.name.clone()).collect(),
                failed: span.status.as_ref().is_some_and(|status| status.code == 2),
                resource: resource.clone(),
                took_ns: span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
            }));
        }
        all
    }
}
