//! What traces say of requests: a span for each that a known caller sends, in it one for the verb, and in that what the
//! store, the cache and other servers do for it. The names and attributes are upstream's, which are OpenTelemetry's for
//! HTTP.

use std::{mem, net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header, request::Parts};
use parking_lot::Mutex;
use yare_auth::{
    User,
    config::tracing::{Endpoint, TracingConfiguration},
};
use yare_grpc::Client;
use yare_store::{CommitError, Draft};
pub use yare_trace::Tracer;
use yare_trace::{Active, Context, DELAY, Kind, Parent, Source, Span, Value};

use crate::{
    audit::Layer,
    body::Reply,
    core::{Call, Clock, Core, Random},
    metrics::Labels,
    options::APPLY_PATCH,
    outbound::{
        USER_AGENT,
        egress::{Egress, Network},
    },
    path::RequestInfo,
    registry::Stored,
    render,
    status::ApiResult,
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Whose traces go on here as they began elsewhere; all others' begin anew.
const TRUSTED: [&str; 2] = ["system:masters", "system:monitoring"];
/// So much is told of a request's ID.
const AUDIT_ID_MAX_BYTES: usize = 64;
/// What goes out at the end may take so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

struct Seat {
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
}

impl Source for Seat {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.clock.now().as_nanosecond()).unwrap_or(0)
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.random.fill(bytes);
    }
}

/// Begins to send traces. `server`: which server this is. `delay`: how long spans wait for others to go with them;
/// absent: as OpenTelemetry has it.
pub fn start(
    configuration: &TracingConfiguration,
    server: &str,
    egress: Option<&Egress>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    delay: Option<Duration>,
) -> Tracer {
    let collector = match configuration.place() {
        Endpoint::Socket(path) => Client::unix(path),
        Endpoint::Address(authority) => match egress.and_then(|e| e.route(Network::ControlPlane)) {
            None => Client::tcp(&authority),
            Some(route) => Client::dialing(move || {
                let (route, authority) = (route.clone(), authority.clone());
                async move {
                    let (host, port) = host_port(&authority);
                    let port = port
                        .ok_or_else(|| format!("dial tcp: address {authority}: missing port in address"))?;
                    route.open(host, port).await
                }
            }),
        },
    };
    let resource = [("service.name", "apiserver"), ("service.instance.id", server)];
    let rate = configuration.sampling_rate_per_million.and_then(|rate| u32::try_from(rate).ok());
    let seat = Arc::new(Seat { clock, random });
    let collector = collector.user_agent(USER_AGENT);
    Tracer::start(collector, &resource, rate.unwrap_or(0), seat, delay.unwrap_or(DELAY))
}

/// The spans of a request, one in the other as upstream's handlers are: each ends with the request.
#[derive(Default)]
pub(crate) struct Spans(Mutex<Nested>);

#[derive(Default)]
struct Nested {
    /// From the outside in.
    spans: Vec<Span>,
    /// Which one tells of the request itself.
    request: Option<usize>,
}

impl Spans {
    /// Begins the span in which it is found out who sends a request that came at `received`. It stands outside of the
    /// request's own: who the caller is decides what that one belongs to.
    pub(crate) fn authenticate(&self, core: &Core, received: tokio::time::Instant) -> Option<Active> {
        let tracer = core.config.tracer.as_ref()?;
        let span = tracer.open("authentication", Kind::Internal, Parent::None, began_ns(core, received));
        Some(self.enter(span))
    }

    /// Begins the span of a request by `user`. Where nothing is recorded, traces that come from elsewhere are only
    /// handed on.
    pub(crate) fn request(&self, seen: &Seen<'_>, user: &User) -> Option<Active> {
        let context = Context::of(&seen.parts.headers);
        let Some(tracer) = &seen.core.config.tracer else { return context.map(Active::passing) };
        let outer = self.innermost();
        let span = request(tracer, seen, user, context.as_ref(), outer.as_ref());
        let mut nested = self.0.lock();
        nested.request = Some(nested.spans.len());
        drop(nested);
        Some(self.enter(span))
    }

    /// Begins a span in the last one, and names it after what the request comes to now.
    pub(crate) fn layer(&self, name: &str) -> Option<Active> {
        Some(self.enter(self.innermost()?.child(name, Kind::Internal)?))
    }

    /// What the request is about at present.
    pub(crate) fn innermost(&self) -> Option<Active> {
        self.0.lock().spans.last().map(Span::active)
    }

    /// The request is about `span` from now on.
    pub(crate) fn enter(&self, span: Span) -> Active {
        let active = span.active();
        self.0.lock().spans.push(span);
        active
    }

    /// Says how the request was answered.
    pub(crate) fn answered(&self, code: u16, bytes: u64) {
        let mut nested = self.0.lock();
        if let Some(at) = nested.request {
            answered(&mut nested.spans[at], code, bytes);
        }
    }
}

impl Drop for Spans {
    fn drop(&mut self) {
        let mut spans = mem::take(&mut self.0.get_mut().spans);
        while spans.pop().is_some() {}
    }
}

/// When a request came, in nanoseconds since 1970.
fn began_ns(core: &Core, received: tokio::time::Instant) -> u64 {
    let passed = i128::try_from(received.elapsed().as_nanos()).unwrap_or(0);
    u64::try_from(core.now().as_nanosecond() - passed).unwrap_or(0)
}

/// What is known of a request before it is carried out.
pub(crate) struct Seen<'a> {
    pub core: &'a Core,
    pub parts: &'a Parts,
    pub info: &'a RequestInfo,
    pub received: tokio::time::Instant,
    pub peer: Option<IpAddr>,
    pub id: &'a HeaderValue,
}

/// The span of a request by `user`. `context`: what it says of its trace; `outer`: what it is done in here.
fn request(
    tracer: &Tracer,
    seen: &Seen<'_>,
    user: &User,
    context: Option<&Context>,
    outer: Option<&Active>,
) -> Span {
    let Seen { core, parts, info, received, peer, id } = seen;
    let trusted = user.groups.iter().any(|group| TRUSTED.contains(&group.as_str()));
    let parent = match (context, outer) {
        (Some(context), _) if trusted => Parent::Of(context),
        (Some(context), _) => Parent::Linked(context),
        (None, Some(outer)) if trusted => Parent::In(outer),
        (None, _) => Parent::None,
    };
    let name = name(&parts.method, info);
    let mut span = tracer.server(&name, parent, began_ns(core, *received));
    if !span.is_recorded() {
        return span;
    }
    let secure = core.config.tls.is_some();
    let host = text(&parts.headers, &header::HOST)
        .or_else(|| parts.uri.authority().map(|authority| authority.as_str()))
        .unwrap_or_default();
    let (host, port) = host_port(host);
    span.set("server.address", host);
    span.set("http.request.method", parts.method.as_str());
    span.set("url.scheme", if secure { "https" } else { "http" });
    if let Some(port) = port.filter(|port| *port != if secure { 443 } else { 80 }) {
        span.set("server.port", i64::from(port));
    }
    let peer = peer.map(|peer| peer.to_string());
    if let Some(peer) = &peer {
        span.set("network.peer.address", peer.as_str());
    }
    if let Some(agent) = text(&parts.headers, &header::USER_AGENT) {
        span.set("user_agent.original", agent);
    }
    let forwarded = text(&parts.headers, &FORWARDED_FOR).and_then(|list| list.split(',').next());
    if let Some(client) = forwarded.or(peer.as_deref()) {
        span.set("client.address", client.trim());
    }
    span.set("url.path", parts.uri.path());
    span.set("network.protocol.version", if parts.version == Version::HTTP_2 { "2" } else { "1.1" });
    span.set("http.target", parts.uri.path_and_query().map_or("/", |target| target.as_str()));
    span.set("audit-id", audit_id(id));
    span
}

/// The ID of a request, cut off where it is long.
pub(crate) fn audit_id(id: &HeaderValue) -> &str {
    let id = id.to_str().unwrap_or_default();
    // Visible ASCII.
    &id[..id.len().min(AUDIT_ID_MAX_BYTES)]
}

/// How it was answered.
fn answered(span: &mut Span, code: u16, bytes: u64) {
    if bytes > 0 {
        span.set("http.response.body.size", i64::try_from(bytes).unwrap_or(i64::MAX));
    }
    span.set("http.response.status_code", i64::from(code));
    if code >= 500 {
        span.failed("");
    }
}

/// The span of a verb, in one of the request's.
pub(crate) fn verb(call: &Call, inside: &Active) -> Option<Span> {
    call.core.config.tracer.as_ref()?;
    let name = match call.info.verb {
        "get" => "Get",
        "list" => "List",
        "create" => "Create",
        "update" => "Update",
        "patch" => "Patch",
        "delete" | "deletecollection" => "Delete",
        _ => return None,
    };
    named(call, name, inside)
}

/// A span with all that there is to say of a request for a resource.
fn named(call: &Call, name: &str, inside: &Active) -> Option<Span> {
    let info = &call.info;
    let header = |name| text(&call.headers, name).unwrap_or_default();
    let apply = header(&header::CONTENT_TYPE) == APPLY_PATCH;
    let labels = Labels::new(&call.method, info, &call.query, apply, true);
    // What becomes something else has no span of its own.
    if labels.verb() == "CONNECT" {
        return None;
    }
    let mut span = inside.child(name, Kind::Internal)?;
    if !span.is_recorded() {
        return Some(span);
    }
    span.set("accept", header(&header::ACCEPT));
    span.set("audit-id", call.audit_id());
    span.set("client", call.peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string()));
    span.set("api-group", info.group.as_str());
    span.set("api-version", info.version.as_str());
    span.set("name", info.name.as_str());
    span.set("subresource", info.subresource.as_str());
    span.set("namespace", info.namespace.as_str());
    span.set("protocol", protocol(call));
    span.set("resource", info.resource.as_str());
    span.set("scope", labels.scope());
    span.set("url", info.path.as_str());
    span.set("user-agent", header(&header::USER_AGENT));
    span.set("verb", labels.verb());
    Some(span)
}

/// What the store does for a request, in a span of its own, with upstream's names for its steps. Nothing waits in it
/// for others: what a write asks of webhooks meanwhile is the verb's.
pub(crate) struct Storing {
    span: Option<Span>,
    /// What is said of a transaction that came to an answer.
    answered: &'static [&'static str],
}

impl Storing {
    /// An object is made under `key`.
    pub(crate) fn creates(call: &Call, stored: &Stored, key: &str, unseen: bool) -> Self {
        Self::begin(call, stored, "Create etcd3", key, unseen, &["Txn call succeeded"])
    }

    /// The object under `key` is changed.
    pub(crate) fn updates(call: &Call, stored: &Stored, key: &str, unseen: bool) -> Self {
        let answered = &["Txn call completed", "Transaction committed"];
        Self::begin(call, stored, "GuaranteedUpdate etcd3", key, unseen, answered)
    }

    fn begin(
        call: &Call,
        stored: &Stored,
        name: &str,
        key: &str,
        unseen: bool,
        answered: &'static [&'static str],
    ) -> Self {
        let describe = |span: &mut Span| {
            span.set("audit-id", call.audit_id());
            span.set("key", format!("/{}/{key}", stored.kind_key));
            span.set("type", render::go_type(stored, &stored.kind));
            span.set("group", &*stored.group);
            span.set("resource", &*stored.plural);
        };
        // What is only tried never comes to the store.
        let span = if unseen { None } else { yare_trace::described(name, Kind::Internal, describe) };
        Self { span, answered }
    }

    /// Says that a step is done.
    pub(crate) fn step(&self, name: &str) {
        if let Some(span) = &self.span {
            span.event(name, &[]);
        }
    }

    /// Makes what is written.
    pub(crate) fn encode(&self, work: impl FnOnce() -> ApiResult<Draft>) -> ApiResult<Draft> {
        self.step("About to Encode");
        let draft = work();
        if let Some(span) = &self.span {
            match &draft {
                Ok(draft) => span.event("Encode succeeded", &[length(draft.json.len())]),
                Err(error) => {
                    span.event("Encode failed", &[length(0), ("err", error.message.as_str().into())])
                }
            }
        }
        draft
    }

    /// Says what came of the transaction.
    pub(crate) fn answered<T>(&self, result: &Result<T, CommitError>) {
        let Some(span) = &self.span else { return };
        match result {
            Ok(_) | Err(CommitError::Conflict { .. } | CommitError::Missing { .. }) => {
                self.answered.iter().for_each(|name| span.event(name, &[]));
            }
            Err(error) => span.event("Txn call failed", &[("err", error.to_string().into())]),
        }
    }
}

/// The span of an object that is read.
pub(crate) fn reads(call: &Call, stored: &Stored, key: &str) -> Option<Span> {
    let version = || call.query.get("resourceVersion").unwrap_or_default();
    let span = yare_trace::described("cacher.Get", Kind::Internal, |span| {
        span.set("audit-id", call.audit_id());
        span.set("key", format!("/{}/{key}", stored.kind_key));
        span.set("resource-version", version());
    })?;
    let from = if version().is_empty() {
        "About to Get from underlying storage"
    } else {
        "About to fetch object from cache"
    };
    span.event(from, &[]);
    Some(span)
}

/// The span of objects that are listed or watched (`cacher.GetList`, `cacher.Watch`).
pub(crate) fn caches(call: &Call, stored: &Stored, name: &str) -> Option<Span> {
    yare_trace::described(name, Kind::Internal, |span| {
        let (group, resource) = (&*stored.group, &*stored.plural);
        let dot = if group.is_empty() { "" } else { "." };
        span.set("audit-id", call.audit_id());
        span.set("type", format!("{resource}{dot}{group}"));
    })
}

/// The spans of a watch that begins with what there is, until that has been sent.
pub(crate) fn watch_list(call: &Call, media_type: &str) -> Vec<Span> {
    let Some(span) = yare_trace::current().and_then(|inside| named(call, "WatchList", &inside)) else {
        return Vec::new();
    };
    let server = span.active().child("WatchServer.HandleHTTP", Kind::Internal).map(|mut server| {
        describe_answer(&mut server, call, media_type);
        server.event("About to start writing response", &[]);
        server
    });
    let mut spans: Vec<Span> = server.into_iter().collect();
    spans.push(span);
    spans
}

/// Answers with an object, and says so.
pub(crate) fn answer(
    call: &Call,
    media_type: &str,
    work: impl FnOnce() -> ApiResult<Reply>,
) -> ApiResult<Reply> {
    yare_trace::event("About to write a response", &[]);
    let reply = call.timed_now(Layer::Serialization, || serialize(call, media_type, work));
    yare_trace::event("Writing http response done", &[]);
    reply
}

/// Says what came of a write of `len` bytes.
pub(crate) fn written<T>(len: usize, result: ApiResult<T>) -> ApiResult<T> {
    match &result {
        Ok(_) => yare_trace::event("Write to database call succeeded", &[length(len)]),
        Err(error) => {
            let why = ("err", error.message.as_str().into());
            yare_trace::event("Write to database call failed", &[length(len), why]);
        }
    }
    result
}

/// Does what gives the answer's body, in a span of its own.
pub(crate) fn serialize(
    call: &Call,
    media_type: &str,
    work: impl FnOnce() -> ApiResult<Reply>,
) -> ApiResult<Reply> {
    yare_trace::during(
        "SerializeObject",
        |span| describe_answer(span, call, media_type),
        || {
            let reply = work();
            if let Some(size) = reply.as_ref().ok().and_then(|reply| reply.body().size()) {
                let size = [("size", i64::try_from(size).unwrap_or(i64::MAX).into())];
                yare_trace::event("About to start writing response", &size);
                yare_trace::event("Write call succeeded", &size);
            }
            reply
        },
    )
}

fn describe_answer(span: &mut Span, call: &Call, media_type: &str) {
    span.set("audit-id", call.audit_id());
    span.set("method", call.method.as_str());
    span.set("url", call.info.path.as_str());
    span.set("protocol", protocol(call));
    span.set("mediaType", media_type);
}

fn protocol(call: &Call) -> &'static str {
    if call.version == Version::HTTP_2 { "HTTP/2.0" } else { "HTTP/1.1" }
}

/// An attribute that is a number.
pub(crate) fn number(key: &'static str, number: usize) -> (&'static str, Value) {
    (key, i64::try_from(number).unwrap_or(i64::MAX).into())
}

fn length(len: usize) -> (&'static str, Value) {
    number("len", len)
}

/// A request to another server, in a span of its own. `url` gives all of it, and is asked only where it is told.
pub(crate) fn calls(method: &Method, url: impl FnOnce() -> String) -> Option<Span> {
    yare_trace::described(&format!("HTTP {method}"), Kind::Client, |span| {
        let url = url();
        span.set("http.request.method", method.as_str());
        span.set("url.full", url.as_str());
        let uri = url.parse::<http::Uri>().unwrap_or_default();
        let (host, port) = host_port(uri.authority().map_or("", |authority| authority.as_str()));
        span.set("server.address", host);
        if let Some(port) =
            port.filter(|port| *port != if uri.scheme_str() == Some("https") { 443 } else { 80 })
        {
            span.set("server.port", i64::from(port));
        }
        span.set("network.protocol.version", "1.1");
    })
}

/// How the other server answered.
pub(crate) fn called(span: &mut Span, answer: Result<u16, &str>) {
    match answer {
        Ok(code) => {
            span.set("http.response.status_code", i64::from(code));
            if code >= 400 {
                span.set("error.type", code.to_string());
                span.failed("");
            }
        }
        Err(why) => span.failed(why),
    }
}

/// `GET /api/v1/namespaces/{:namespace}/pods/{:name}`: what is asked for, without the names in it.
fn name(method: &Method, info: &RequestInfo) -> String {
    if !info.is_resource {
        return method.to_string();
    }
    let mut name = format!("{method} {}", if info.group.is_empty() { "/api" } else { "/apis" });
    let mut step = |part: &str| {
        if !part.is_empty() {
            name.push('/');
            name.push_str(part);
        }
    };
    step(&info.group);
    step(&info.version);
    if !info.namespace.is_empty() {
        step("namespaces");
        step("{:namespace}");
    }
    step(&info.resource);
    if !info.name.is_empty() {
        step("{:name}");
    }
    step(&info.subresource);
    name
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().filter(|text| !text.is_empty())
}

/// A host without brackets, and the port if it is said.
fn host_port(authority: &str) -> (&str, Option<u16>) {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()),
        _ => (authority, None),
    };
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Query;

    #[test]
    fn names() {
        for (method, uri, expected) in [
            (Method::GET, "/healthz", "GET"),
            (Method::GET, "/api/v1/pods", "GET /api/v1/pods"),
            (Method::GET, "/api/v1/namespaces", "GET /api/v1/namespaces"),
            (Method::POST, "/api/v1/namespaces/a/pods", "POST /api/v1/namespaces/{:namespace}/pods"),
            (
                Method::PUT,
                "/apis/apps/v1/namespaces/a/deployments/b/status",
                "PUT /apis/apps/v1/namespaces/{:namespace}/deployments/{:name}/status",
            ),
            (Method::GET, "/api/v1/nodes/n", "GET /api/v1/nodes/{:name}"),
        ] {
            let uri = uri.parse().unwrap();
            let info = RequestInfo::parse(&method, &uri, &Query::parse(None));
            assert_eq!(name(&method, &info), expected);
        }
    }

    #[test]
    fn hosts() {
        for (text, expected) in [
            ("a", ("a", None)),
            ("a:6443", ("a", Some(6443))),
            ("10.0.0.1:443", ("10.0.0.1", Some(443))),
            ("[::1]:6443", ("::1", Some(6443))),
            ("[::1]", ("::1", None)),
            ("::1", ("::1", None)),
            ("", ("", None)),
        ] {
            assert_eq!(host_port(text), expected, "{text}");
        }
    }
}
