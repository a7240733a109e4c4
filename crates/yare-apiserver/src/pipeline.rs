//! A request's way through the server: who, may they, is there room, and then the verb.

use std::{
    any::Any,
    net::{IpAddr, Ipv6Addr},
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use futures::FutureExt;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use tokio::{sync::oneshot, time::Instant};
use yare_trace::scoped;

use crate::{
    audit::{self, Layer, Record, Stage},
    auth::{self, Identity, User, authorizers},
    body::{self, Reply, RequestBody, Sent, Tail},
    browsers, compress,
    core::{Call, Core},
    deadline,
    dispatch::dispatch,
    encodings,
    flow::{self, Ticket},
    metrics::{Ended, Filter, Labels},
    negotiate,
    options::APPLY_PATCH,
    path::{Query, RequestInfo},
    render, shutdown,
    status::ApiError,
    to_the_end::ToTheEnd,
    trace, warnings,
};

/// Answers a request, whatever happens in it. `peer`: the address it came from.
pub async fn handle(
    core: Arc<Core>,
    request: Request<RequestBody>,
    identity: Identity,
    peer: Option<IpAddr>,
) -> Reply {
    let received = Instant::now();
    let query = Query::parse(request.uri().query());
    let info = Arc::new(RequestInfo::parse(request.method(), request.uri(), &query));
    let long_running = is_long_running(&info);
    let in_process = matches!(identity, Identity::Local(_));
    let id = request_id(&core, request.headers());
    let method = request.method().clone();
    let mut counted = Counted {
        own: false,
        spans: trace::Spans::default(),
        core: core.clone(),
        apply: request.headers().get(header::CONTENT_TYPE).is_some_and(|v| v == APPLY_PATCH),
        known: info.is_resource
            && core.registry.load().find(&info.group, &info.version, &info.resource).is_some(),
        dry_run: query.has("dryRun").then(|| query.clone()),
        method,
        info: info.clone(),
        received,
    };
    let running = (!long_running).then(|| core.requests.token());
    let gzip = !long_running
        && compress::wanted(request.headers())
        && core.config.gates.is_on("APIResponseCompression");
    let record = OnceLock::new();
    let way = Way {
        core: core.clone(),
        info: info.clone(),
        query,
        received,
        long_running,
        peer,
        id: &id,
        record: &record,
        spans: &counted.spans,
    };
    let origin = core.config.browsers.origin(request.headers());
    let is_head = request.method() == Method::HEAD;
    let too_late = core.closed.load(Ordering::Relaxed) && !in_process && !shutdown::is_exempt(&info);
    let outcome = if too_late {
        Outcome::of(shutdown::late(&core))
    } else if origin.is_some() && request.method() == Method::OPTIONS {
        Outcome::of(browsers::preflight())
    } else {
        let answered = AssertUnwindSafe(way.answer(request, identity)).catch_unwind().await;
        match answered {
            Ok(outcome) => outcome,
            Err(panic) => panicked(&info, reason(&*panic), record.get()).await,
        }
    };
    counted.own = outcome.own;
    let mut reply = outcome.reply;
    let mut complete = None;
    if let Some(record) = record.into_inner().filter(|_| !outcome.recorded) {
        reply = written_down(&record, reply, long_running).await;
        complete = reply.body().size().is_none_or(|_| long_running).then_some(record);
    }
    if gzip {
        reply = compress::apply(reply).await;
    }
    if is_head {
        reply = body::head_only(reply);
    }
    let headers = reply.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    headers.entry(AUDIT_ID).or_insert(id);
    core.config.browsers.tell(origin.filter(|_| !too_late), headers);
    let code = reply.status().as_u16();
    match reply.body().size() {
        Some(bytes) if !long_running => {
            counted.ended(code, outcome.excluded, Sent { bytes, whole: true });
            if let Some(record) = complete {
                // A stream that was gathered whole to see whether it is worth compressing.
                record.stage(Stage::ResponseComplete).await;
            }
            reply
        }
        _ if outcome.stream.is_some() => {
            // The connection goes on as something else; its end is the request's.
            tokio::spawn(async move {
                if let Some(stream) = outcome.stream {
                    // Told by being dropped.
                    let _ = stream.await;
                }
                counted.ended(code, outcome.excluded, Sent { bytes: 0, whole: true });
                if let Some(record) = complete {
                    record.stage(Stage::ResponseComplete).await;
                }
                drop((running, outcome.long));
            });
            reply
        }
        _ => {
            // Its end is the request's.
            let deadline = (!long_running && !in_process).then_some(outcome.deadline).flatten();
            let guard = deadline.map(|at| seats_until(outcome.ticket, at));
            let began = Instant::now();
            let tail = Tail {
                deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
                bytes: 0,
                done: Some(Box::new(move |sent| {
                    counted.ended(code, outcome.excluded, sent);
                    if let Some(record) = complete {
                        record.took(Layer::ResponseWrite, began.elapsed());
                        record.stage_now(Stage::ResponseComplete);
                    }
                    drop((running, guard, outcome.long));
                })),
            };
            reply.map(|body| body.with_tail(tail))
        }
    }
}

/// What a panic said.
fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default().to_owned()
}

/// The answer to a request that panicked.
async fn panicked(info: &RequestInfo, why: String, record: Option<&Arc<Record>>) -> Outcome {
    tracing::error!(path = info.path, verb = info.verb, "a request panicked");
    if let Some(record) = record {
        record.failed(500, "InternalError", &format!("APIServer panic'd: {why}"));
        record.stage(Stage::Panic).await;
    }
    let error = ApiError::internal("this request caused apiserver to panic. Look in the logs for details.");
    Outcome { recorded: true, ..Outcome::of(render::error(&error)) }
}

/// Writes down how a request was answered: its end, or that its answer begins.
async fn written_down(record: &Record, reply: Reply, long_running: bool) -> Reply {
    let (parts, mut body) = reply.into_parts();
    let code = parts.status.as_u16();
    let mut document = None;
    // What another server says is its own to write down.
    if !long_running && !body.is_foreign() && (code >= 400 || record.wants_response()) {
        if body.size().is_none() {
            body = body.gather(audit::MAX_OBJECT_BYTES).await;
        }
        let media = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        document = body.as_full().and_then(|bytes| encodings::to_json(media.unwrap_or_default(), &bytes));
    }
    record.answered(code, document.as_ref());
    if long_running {
        record.stage(Stage::ResponseStarted).await;
    } else if body.size().is_some() {
        record.stage(Stage::ResponseComplete).await;
    }
    Reply::from_parts(parts, body)
}

/// Header with the ID of a request, which its audit events carry as well.
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// Headers with the UIDs of a request's schema and level.
const FLOW_HEADERS: [HeaderName; 2] = [
    HeaderName::from_static("x-kubernetes-pf-flowschema-uid"),
    HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid"),
];

/// The client's own ID, or a new one.
fn request_id(core: &Core, headers: &http::HeaderMap) -> HeaderValue {
    let mut id = match headers.get(AUDIT_ID) {
        Some(id) if !id.is_empty() => id.clone(),
        // Hexadecimal digits and dashes are a header's value.
        _ => HeaderValue::from_bytes(&core.request_ids.next()).unwrap_or(HeaderValue::from_static("")),
    };
    // HTTP/2 then keeps it out of the table of headers that come again: it does not, and would push out those
    // that do, on both sides of every connection.
    id.set_sensitive(true);
    id
}

/// Holds seats until the answer is sent, but not for a client that does not take it.
fn seats_until(ticket: Option<Ticket>, deadline: Instant) -> Option<AbortOnDrop> {
    let ticket = ticket?;
    let task = tokio::spawn(async move {
        tokio::time::sleep_until(deadline).await;
        drop(ticket);
    });
    Some(AbortOnDrop(task.abort_handle()))
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a request is counted under.
struct Counted {
    /// The server sent it itself.
    own: bool,
    /// What traces say of it.
    spans: trace::Spans,
    core: Arc<Core>,
    method: Method,
    info: Arc<RequestInfo>,
    /// Only what says something about dry runs.
    dry_run: Option<Query>,
    apply: bool,
    known: bool,
    received: Instant,
}

impl Counted {
    fn labels(&self) -> Labels<'_> {
        static NONE: Query = Query::none();
        let query = self.dry_run.as_ref().unwrap_or(&NONE);
        Labels::new(&self.method, &self.info, query, self.apply, self.known)
    }

    fn ended(self, code: u16, excluded: Duration, sent: Sent) {
        self.spans.answered(code, sent.bytes);
        let requests = &self.core.metrics.requests;
        let (took, own) = (self.received.elapsed(), self.own);
        requests.ended(self.labels(), Ended { code, took, excluded, bytes: sent.bytes, own });
        if code == 429 || code == 504 {
            requests.terminated(self.labels(), code);
        }
        if !sent.whole && !is_long_running(&self.info) {
            requests.aborted(self.labels());
        }
    }
}

/// A long-running request while it lasts.
struct Long(Arc<Core>, Method, Arc<RequestInfo>);

impl Long {
    fn new(core: &Arc<Core>, method: &Method, info: &Arc<RequestInfo>) -> Self {
        let long = Self(core.clone(), method.clone(), info.clone());
        long.count(true);
        long
    }

    fn count(&self, begins: bool) {
        let known = self.0.registry.load().find(&self.2.group, &self.2.version, &self.2.resource).is_some();
        let labels = Labels::new(&self.1, &self.2, &Query::default(), false, known);
        self.0.metrics.requests.long_running(labels, begins);
    }
}

impl Drop for Long {
    fn drop(&mut self) {
        self.count(false);
    }
}

/// What comes of a request.
struct Outcome {
    reply: Reply,
    /// Seats that are held until the answer is sent.
    ticket: Option<Ticket>,
    /// When it must be.
    deadline: Option<Instant>,
    /// Time that was not the server's own.
    excluded: Duration,
    long: Option<Long>,
    /// Tells of the end of a connection that was taken over.
    stream: Option<oneshot::Receiver<()>>,
    /// Audit knows how it ended.
    recorded: bool,
    /// The server sent the request itself.
    own: bool,
}

/// The server's name for itself, where it sends requests.
const OWN_NAME: &str = "system:apiserver";

impl Outcome {
    fn of(reply: Reply) -> Self {
        Self {
            reply,
            ticket: None,
            deadline: None,
            excluded: Duration::ZERO,
            long: None,
            stream: None,
            recorded: false,
            own: false,
        }
    }
}

/// A request on its way.
struct Way<'a> {
    core: Arc<Core>,
    info: Arc<RequestInfo>,
    query: Query,
    received: Instant,
    long_running: bool,
    peer: Option<IpAddr>,
    id: &'a HeaderValue,
    /// What audit writes down, once it does.
    record: &'a OnceLock<Arc<Record>>,
    /// What traces say of it, where there are any.
    spans: &'a trace::Spans,
}

impl Way<'_> {
    /// What upstream calls the step in which a request may be made in another's name.
    fn impersonation(&self) -> &'static str {
        if self.core.config.gates.is_on("ConstrainedImpersonation") {
            "constrainedimpersonation"
        } else {
            "impersonation"
        }
    }

    /// What audit writes down of this request, where it does.
    fn record(&self, parts: &http::request::Parts, user: Option<&User>) -> Option<Arc<Record>> {
        let audit = self.core.config.audit.as_ref()?;
        let now = self.core.now();
        let passed = jiff::SignedDuration::try_from(self.received.elapsed()).unwrap_or_default();
        let seen = audit::Seen {
            id: self.id.to_str().unwrap_or_default(),
            uri: parts.uri.path_and_query().map_or("/", |p| p.as_str()),
            info: &self.info,
            headers: &parts.headers,
            peer: self.peer.or(Some(IpAddr::V6(Ipv6Addr::LOCALHOST))),
            received: now.checked_sub(passed).unwrap_or(now),
        };
        audit.record(&seen, user)
    }

    /// Refuses a request before it is known who sent it.
    async fn refuse(&self, parts: &http::request::Parts, error: &ApiError, why: &str) -> Outcome {
        if let Some(record) = self.record(parts, None) {
            record.failed(error.code, "", why);
            record.stage(Stage::ResponseStarted).await;
        }
        Outcome { recorded: true, ..Outcome::of(render::error(error)) }
    }

    async fn answer(self, request: Request<RequestBody>, identity: Identity) -> Outcome {
        let (mut parts, body) = request.into_parts();
        let mut upgrade = std::mem::take(&mut parts.extensions);
        let in_process = matches!(identity, Identity::Local(_));
        let deadline = if self.long_running {
            None
        } else {
            match deadline::of(&self.query, self.core.config.flow.request_timeout) {
                Ok(time) => Some(self.received + time),
                Err(error) => return self.refuse(&parts, &error, &error.message).await,
            }
        };
        let certificate = matches!(identity, Identity::Remote(Some(_)));
        let tried =
            self.core.config.audit.is_some().then(|| attempted(&parts.headers, &self.query, certificate));
        let began = Instant::now();
        let active = self.spans.authenticate(&self.core, self.received);
        let caller = auth::caller(&self.core, identity, &mut parts.headers, &self.info.path);
        let known = match scoped(active, caller).await {
            Ok(known) => known,
            Err(error) => return self.refuse(&parts, &error, &tried.unwrap_or_default()).await,
        };
        let mut user = known.user;
        // After authentication: who it is decides whether its trace goes on here.
        let seen = trace::Seen {
            core: &self.core,
            parts: &parts,
            info: &self.info,
            received: self.received,
            peer: self.peer,
            id: self.id,
        };
        let active = self.spans.request(&seen, &user);
        let active = self.spans.layer("audit").or(active);
        if let Some(record) = self.record(&parts, Some(&user)) {
            let recording = Instant::now();
            // Set once.
            let record = self.record.get_or_init(|| record);
            for (key, value) in known.annotations {
                record.annotate(key, value);
            }
            record.took(Layer::Authentication, began.elapsed());
            if !record.stage(Stage::RequestReceived).await {
                let error = ApiError::internal("failed to store audit event");
                return Outcome { recorded: true, ..Outcome::of(render::error(&error)) };
            }
            self.core.metrics.filters.passed(Filter::Audit, recording.elapsed());
        }
        let active = self.spans.layer(self.impersonation()).or(active);
        if auth::impersonate::is_wanted(&parts.headers) {
            let selectors = auth::Selectors::of(&self.info, &self.query);
            let action = selectors.action(&self.info);
            let began = Instant::now();
            let other = Box::pin(auth::impersonate::run(&self.core, &user, &mut parts.headers, &action));
            match scoped(active.clone(), other).await {
                Ok(None) => {}
                Ok(Some(other)) => {
                    if let Some(record) = self.record.get() {
                        record.took(Layer::Impersonation, began.elapsed());
                        record.impersonates(&other.user, &other.constraint);
                    }
                    user = other.user;
                }
                Err(error) => return Outcome::of(body::unsniffed(render::error(&error))),
            }
        }
        let Self { core, info, query, received, long_running, peer, record, id, spans } = self;
        let mut call = Call::new(core, parts.method, info, query, parts.headers, user, in_process);
        call.raw_query = parts.uri.query().map(str::to_owned);
        call.authority = parts.uri.authority().cloned();
        call.version = parts.version;
        call.received = received;
        call.until = deadline;
        call.peer = peer;
        call.audit = record.get().cloned();
        call.id = id.clone();
        known.warnings.into_iter().for_each(|text| call.warn(text));
        let call = Arc::new(call);
        let long = long_running.then(|| Long::new(&call.core, &call.method, &call.info));
        let (mut reply, uids) = scoped(active, admitted(&call, body, &mut upgrade, deadline, spans)).await;
        for text in call.take_warnings() {
            if let Ok(value) = HeaderValue::from_bytes(warnings::header(&text).as_bytes()) {
                reply.headers_mut().append(header::WARNING, value);
            }
        }
        for (name, uid) in FLOW_HEADERS.into_iter().zip(uids.into_iter().flatten()) {
            reply.headers_mut().insert(name, uid);
        }
        let ticket = if reply.body().size().is_none() { call.take_ticket() } else { None };
        let stream = call.take_stream();
        let (excluded, own) = (call.excluded(), call.user.name == OWN_NAME);
        Outcome { reply, ticket, deadline, excluded, long, stream, recorded: false, own }
    }
}

/// How a caller tried to say who it is, for audit.
fn attempted(headers: &http::HeaderMap, query: &Query, certificate: bool) -> String {
    let scheme = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.trim().split_once(' '))
        .map(|(scheme, _)| scheme.to_ascii_lowercase());
    let tried: Vec<&str> = [
        ("basic", scheme.as_deref() == Some("basic")),
        ("bearer", scheme.as_deref() == Some("bearer")),
        ("access_token", query.get("access_token").is_some()),
        ("x509", certificate),
    ]
    .into_iter()
    .filter_map(|(method, tried)| tried.then_some(method))
    .collect();
    if tried.is_empty() {
        return "Authentication failed, no credentials provided".into();
    }
    format!("Authentication failed, attempted: {}", tried.join(", "))
}

/// Requests that last as long as the client wants.
fn is_long_running(info: &RequestInfo) -> bool {
    info.verb == "watch"
        || info.verb == "proxy"
        || matches!(info.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward")
}

/// Waits for its seats, and runs the request. With the UIDs of its schema and level.
async fn admitted(
    call: &Arc<Call>,
    body: RequestBody,
    upgrade: &mut http::Extensions,
    deadline: Option<Instant>,
    spans: &trace::Spans,
) -> (Reply, Option<[HeaderValue; 2]>) {
    let core = &call.core;
    // What lasts as long as the client wants is bounded by connections; of a watch only the beginning counts.
    let mut uids = None;
    let mut active = core.flow.settings().fair.then(|| spans.layer("priorityandfairness")).flatten();
    if call.info.verb == "watch" || !is_long_running(&call.info) {
        match scoped(active.clone(), core.flow.admit(call, deadline)).await {
            Ok(pass) => {
                uids = pass.uids;
                call.exclude(pass.waited);
                call.took(Layer::QueueWait, pass.waited);
                if core.flow.settings().fair {
                    core.metrics.filters.passed(Filter::PriorityAndFairness, pass.waited);
                }
                call.hold(pass.ticket);
            }
            Err(refused) => return (too_many(refused.retry_after_s), refused.uids),
        }
    }
    let selectors = auth::Selectors::of(&call.info, &call.query);
    let action = selectors.action(&call.info);
    let began = Instant::now();
    active = spans.layer("authorization").or(active);
    let outcome = scoped(active.clone(), authorizers::decide(core, &call.user, &action)).await;
    let took = began.elapsed();
    core.config.auth.metrics.decided(&outcome, took);
    core.metrics.filters.passed(Filter::Authorization, took);
    call.took(Layer::Authorization, took);
    if let Some(record) = &call.audit {
        if outcome.is_allowed() || outcome.error.is_empty() {
            let decision = if outcome.is_allowed() { "allow" } else { "forbid" };
            record.annotate("authorization.k8s.io/decision", decision);
            record.annotate("authorization.k8s.io/reason", outcome.reason());
        } else {
            record.annotate("authorization.k8s.io/reason", "internal error");
        }
    }
    if let Err(error) = auth::refuse(&outcome, &call.user, &action) {
        // Upstream refuses before it knows of resources, with codecs that no gate changes.
        let offer = negotiate::Offer { gates: None, ..render::offer(call) };
        return (body::unsniffed(render::failure(call, &error, offer)), uids);
    }
    if let Some(verb) = active.as_ref().and_then(|inside| trace::verb(call, inside)) {
        active = Some(spans.enter(verb));
    }
    let result = match deadline {
        None => scoped(active, dispatch(call, body, upgrade)).await,
        Some(at) if flow::inflight::Kind::of(call.info.verb) == flow::inflight::Kind::ReadOnly => {
            let dispatched = tokio::time::timeout_at(at, scoped(active, dispatch(call, body, upgrade))).await;
            dispatched.unwrap_or_else(|_| Err(too_slow()))
        }
        Some(at) => {
            // A write that began comes to its end, also when nobody waits for it any more: what it reserved
            // and what it stored belong together.
            let (call, mut upgrade) = (call.clone(), std::mem::take(upgrade));
            let work = async move { dispatch(&call, body, &mut upgrade).await };
            let work = ToTheEnd::new(core.clone(), scoped(active, work));
            tokio::time::timeout_at(at, work).await.unwrap_or_else(|_| Err(too_slow()))
        }
    };
    let failed = |error: ApiError| {
        yare_trace::inside(spans.innermost(), || render::failure(call, &error, render::offer(call)))
    };
    (result.unwrap_or_else(failed), uids)
}

fn too_slow() -> ApiError {
    ApiError::timeout("request did not complete within the allotted timeout")
}

fn too_many(retry_after_s: u64) -> Reply {
    let text = "Too many requests, please try again later.\n";
    let mut reply = body::unsniffed(body::text_reply(StatusCode::TOO_MANY_REQUESTS, text));
    reply.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
    reply
}
