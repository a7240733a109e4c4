//! Audit: what was asked of the server, by whom, and how it ended (`audit.k8s.io/v1`).
//!
//! A request's [`Record`] is made when its caller is known and the policy wants it; parts of the server add to
//! it through [`crate::core::Call`], and each stage writes one event to every [`Backend`]. Without a policy
//! there is no record and nothing costs anything.

mod backend;
mod event;
mod log;
mod policy;
mod webhook;

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
pub use backend::{Backend, Batching, Errors, Mode, Truncate};
use bytes::Bytes;
use event::Event;
use http::{HeaderMap, header};
use jiff::{SignedDuration, Timestamp};
pub use log::Target;
use parking_lot::Mutex;
use policy::Verdict;
pub use policy::{Level, Policy, Stage};
use serde_json::{Map, Value, json};
use yare_auth::User;
use yare_schema::gotime;

use crate::{
    core::{Clock, Core, Random},
    files::follow,
    metrics::text::Page,
    outbound::{
        Calls,
        egress::{Egress, Network},
    },
    path::RequestInfo,
};

/// Annotations of one request, and their bytes all together.
const MAX_ANNOTATIONS: usize = 256;
const MAX_ANNOTATION_BYTES: usize = 64 * 1024;
const MAX_USER_AGENT: usize = 1024;
/// Addresses that a client may claim to have come by.
const MAX_SOURCES: usize = 16;
/// An answer that is larger is not written down.
pub const MAX_OBJECT_BYTES: usize = 16 << 20;

/// How the log backend is set up.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Where.
    pub target: Target,
    /// Upstream's old one-line form instead of JSON.
    pub text: bool,
    /// Whether requests wait.
    pub mode: Mode,
    /// In batch mode.
    pub batching: Batching,
    /// Bounds of events.
    pub truncate: Option<Truncate>,
}

/// How the webhook backend is set up.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    /// The kubeconfig that says where.
    pub config: PathBuf,
    /// The pause before the first repetition.
    pub initial_backoff: Duration,
    /// Whether requests wait.
    pub mode: Mode,
    /// In batch mode.
    pub batching: Batching,
    /// Bounds of events.
    pub truncate: Option<Truncate>,
}

/// How audit is set up.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The policy's file; without one nothing is written.
    pub policy: Option<PathBuf>,
    /// The log.
    pub log: Option<LogSettings>,
    /// The webhook.
    pub webhook: Option<WebhookSettings>,
    /// Proxies on the way to it.
    pub egress: Option<Arc<Egress>>,
    /// Where calls of it are counted.
    pub calls: Arc<Calls>,
}

/// Audit of a server.
pub struct Audit {
    /// Its file, where that is followed.
    file: PathBuf,
    policy: ArcSwap<Policy>,
    backends: Vec<Backend>,
    clock: Arc<dyn Clock>,
    errors: Arc<Errors>,
    events: AtomicU64,
    levels: [AtomicU64; 4],
    rejected: AtomicU64,
}

impl Audit {
    /// Reads the policy and opens the backends; none where nothing would ever be written. Needs a runtime.
    pub fn open(
        settings: &Settings,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Option<Arc<Self>>, String> {
        let Some(path) = &settings.policy else { return Ok(None) };
        let named = |why: String| format!("loading audit policy file: {why}");
        let text = std::fs::read(path)
            .map_err(|e| named(format!("failed to read file path {:?}: {e}", path.display().to_string())))?;
        let policy =
            Policy::parse(&text).map_err(|why| named(format!("{why}: from file {}", path.display())))?;
        let errors: Arc<Errors> = Arc::default();
        let mut backends = Vec::new();
        if let Some(log) = &settings.log {
            let writer = log::Writer::open(log.target.clone(), clock.clone())
                .map_err(|e| format!("audit log {}: {e}", log.target.path.display()))?;
            backends.push(Backend::log(writer, log.text, log.mode, log.batching, log.truncate, &errors));
        }
        if let Some(hook) = &settings.webhook {
            let out = settings.egress.as_ref().and_then(|egress| egress.route(Network::ControlPlane));
            let receiver = webhook::Receiver::read(&hook.config, out, random)
                .map_err(|e| format!("initializing audit webhook: {e}"))?
                .counted(settings.calls.clone());
            let pause = hook.initial_backoff;
            backends.push(Backend::webhook(
                receiver,
                pause,
                hook.mode,
                hook.batching,
                hook.truncate,
                &errors,
            ));
        }
        if backends.is_empty() {
            return Ok(None);
        }
        let (events, levels, rejected) = Default::default();
        let (file, policy) = (path.clone(), ArcSwap::from_pointee(policy));
        Ok(Some(Arc::new(Self { file, policy, backends, clock, errors, events, levels, rejected })))
    }

    /// Follows the policy's file until the server stops. Requests under way keep the verdict they have.
    pub fn start(core: &Arc<Core>) {
        let Some(audit) = &core.config.audit else { return };
        follow(core, &audit.file, |core, text| {
            Box::pin(async move {
                let Some(audit) = &core.config.audit else { return Ok(()) };
                audit.policy.store(Arc::new(Policy::parse(&text)?));
                Ok(())
            })
        });
    }

    /// A record for a request, where the policy wants one. `user`: none where nobody could be made out.
    pub fn record(self: &Arc<Self>, request: &Seen<'_>, user: Option<&User>) -> Option<Arc<Record>> {
        let verdict = self.policy.load().verdict(request.info, user);
        self.levels[verdict.level as usize].fetch_add(1, Ordering::Relaxed);
        if verdict.level == Level::None {
            return None;
        }
        let info = request.info;
        let object = info.is_resource.then(|| {
            let mut object = Map::new();
            for (field, value) in [
                ("resource", &info.resource),
                ("namespace", &info.namespace),
                ("name", &info.name),
                ("apiGroup", &info.group),
                ("apiVersion", &info.version),
                ("subresource", &info.subresource),
            ] {
                if !value.is_empty() {
                    object.insert(field.into(), value.as_str().into());
                }
            }
            object
        });
        let event = Event {
            level: verdict.level,
            id: request.id.to_owned(),
            uri: request.uri.to_owned(),
            verb: info.verb,
            user: user.map_or_else(|| json!({}), event::user_info),
            impersonated: None,
            constraint: None,
            source_ips: sources(request.headers, request.peer),
            user_agent: user_agent(request.headers),
            object,
            status: None,
            request: None,
            response: None,
            received: request.received,
            annotations: Vec::new(),
        };
        let layers = Default::default();
        Some(Arc::new(Record { audit: self.clone(), verdict, event: Mutex::new(event), layers }))
    }

    /// Lets everything go out, within a bound of time.
    pub async fn close(&self, within: Duration) {
        for backend in &self.backends {
            backend.close(within).await;
        }
    }

    /// Adds the metrics.
    pub fn expose(&self, page: &mut Page) {
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        page.single(
            "apiserver_audit_event_total",
            "counter",
            "[ALPHA] Counter of audit events generated and sent to the audit backend.",
            count(&self.events),
        );
        page.single(
            "apiserver_audit_requests_rejected_total",
            "counter",
            "[ALPHA] Counter of apiserver requests rejected due to an error in audit logging backend.",
            count(&self.rejected),
        );
        let name = "apiserver_audit_level_total";
        page.family(name, "counter", "[ALPHA] Counter of policy levels for audit events (1 per request).");
        for (level, n) in Level::ALL.into_iter().zip(&self.levels) {
            page.sample(name, &[("level", level.name())], count(n));
        }
        let name = "apiserver_audit_error_total";
        page.family(name, "counter", "[ALPHA] Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by the error.");
        let errors = &self.errors;
        for (plugin, n) in [
            ("buffered", &errors.buffered),
            ("log", &errors.log),
            ("truncate", &errors.truncate),
            ("webhook", &errors.webhook),
        ] {
            page.sample(name, &[("plugin", plugin)], count(n));
        }
    }
}

/// What is seen of a request before it is known who sent it.
pub struct Seen<'a> {
    /// Its ID.
    pub id: &'a str,
    /// Path and query.
    pub uri: &'a str,
    /// What it asks for.
    pub info: &'a RequestInfo,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Where it came from.
    pub peer: Option<IpAddr>,
    /// When it came.
    pub received: Timestamp,
}

fn sources(headers: &HeaderMap, peer: Option<IpAddr>) -> Vec<String> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut all: Vec<IpAddr> = text("x-forwarded-for")
        .split(',')
        .filter_map(|ip| ip.trim().parse().ok())
        .take(MAX_SOURCES)
        .collect();
    if all.is_empty() {
        all.extend(text("x-real-ip").trim().parse::<IpAddr>().ok());
    }
    if let Some(peer) = peer.filter(|peer| all.last() != Some(peer)) {
        all.push(peer);
    }
    all.iter().map(IpAddr::to_string).collect()
}

fn user_agent(headers: &HeaderMap) -> String {
    let full =
        headers.get(header::USER_AGENT).map(|v| String::from_utf8_lossy(v.as_bytes())).unwrap_or_default();
    if full.len() <= MAX_USER_AGENT {
        return full.into_owned();
    }
    let mut end = MAX_USER_AGENT;
    while !full.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...TRUNCATED", &full[..end])
}

/// What is written down of one request.
pub struct Record {
    audit: Arc<Audit>,
    verdict: Verdict,
    event: Mutex<Event>,
    /// Nanoseconds, by [`Layer`].
    layers: [AtomicU64; LAYERS.len()],
}

/// A part of the server whose time is told of slow requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layer {
    /// Who the caller is.
    Authentication,
    /// In whose name it may act.
    Impersonation,
    /// In a queue of priority and fairness.
    QueueWait,
    /// What it may do.
    Authorization,
    /// Webhooks that change the object: all their times together.
    MutatingWebhook,
    /// Webhooks that may refuse it: the longest.
    ValidatingWebhook,
    /// Transactions, and waiting for revisions.
    Storage,
    /// From the storage version to the one that is asked for.
    Transform,
    /// To the encoding that is asked for. What is encoded while it is sent is in the next.
    Serialization,
    /// Sending the answer, where that is not done at once.
    ResponseWrite,
}

/// The names of layers in annotations, and whether times add up.
const LAYERS: [(&str, bool); 10] = [
    ("authentication", true),
    ("impersonation", true),
    ("apf-queue-wait", false),
    ("authorization", false),
    ("mutating-webhook", true),
    ("validating-webhook", false),
    ("etcd", true),
    ("transform-response-object", true),
    ("serialize-response-object", true),
    ("response-write", true),
];
/// A request that takes longer is slow.
const SLOW: SignedDuration = SignedDuration::from_millis(500);

impl Record {
    /// Notes time spent in a part of the server.
    pub fn took(&self, layer: Layer, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let total = &self.layers[layer as usize];
        if LAYERS[layer as usize].1 {
            total.fetch_add(ns, Ordering::Relaxed);
        } else {
            total.fetch_max(ns, Ordering::Relaxed);
        }
    }

    /// Where the time went, of a slow request.
    fn note_layers(&self) {
        let total = self.audit.clock.now().duration_since(self.event.lock().received);
        if total <= SLOW {
            return;
        }
        let shown = |ns: i128| gotime::format_duration(i64::try_from(ns).unwrap_or(i64::MAX));
        for ((name, _), ns) in LAYERS.iter().zip(&self.layers) {
            let ns = ns.load(Ordering::Relaxed);
            if ns > 0 {
                self.annotate(&format!("apiserver.latency.k8s.io/{name}"), shown(ns.into()));
            }
        }
        self.annotate("apiserver.latency.k8s.io/total", shown(total.as_nanos()));
    }

    /// How much is written.
    pub fn level(&self) -> Level {
        self.verdict.level
    }

    /// Notes in whose name the caller acts, and the verb that allowed it where that was a constrained one.
    pub fn impersonates(&self, user: &User, constraint: &str) {
        let mut event = self.event.lock();
        event.impersonated = Some(event::user_info(user));
        if !constraint.is_empty() {
            event.constraint = Some(constraint.into());
        }
    }

    /// Adds an annotation. The first value of a key stands; all together are bounded.
    pub fn annotate(&self, key: &str, value: impl Into<String>) {
        let value = value.into();
        let mut event = self.event.lock();
        let all = &mut event.annotations;
        let bytes: usize = all.iter().map(|(k, v)| k.len() + v.len()).sum();
        let fits = all.len() < MAX_ANNOTATIONS && bytes + key.len() + value.len() <= MAX_ANNOTATION_BYTES;
        match all.iter().find(|(k, _)| k == key) {
            Some((_, known)) if *known != value => {
                tracing::warn!(key, "an audit annotation has another value already");
            }
            Some(_) => {}
            None if fits => all.push((key.to_owned(), value)),
            None => tracing::warn!(key, "an audit annotation is dropped: there are too many"),
        }
    }

    /// Notes the object that was sent.
    pub fn request(&self, object: &Value) {
        let mut event = self.event.lock();
        let reference = event.object.get_or_insert_default();
        for (field, path) in [
            ("namespace", "namespace"),
            ("name", "name"),
            ("uid", "uid"),
            ("resourceVersion", "resourceVersion"),
        ] {
            let value = object.get("metadata").and_then(|m| m.get(path)).and_then(Value::as_str);
            if let Some(value) = value.filter(|v| !v.is_empty() && !reference.contains_key(field)) {
                reference.insert(field.into(), value.into());
            }
        }
        if self.verdict.level >= Level::Request {
            let mut object = object.clone();
            if self.verdict.omit_managed_fields {
                event::drop_managed_fields(&mut object);
            }
            event.request = Some(object);
        }
    }

    /// Notes a patch that was sent.
    pub fn patch(&self, patch: &Value) {
        if self.verdict.level >= Level::Request {
            self.event.lock().request = Some(patch.clone());
        }
    }

    /// Whether the answer is to be given to [`Record::answered`].
    pub fn wants_response(&self) -> bool {
        self.verdict.level >= Level::RequestResponse
    }

    /// Notes how the request was answered. `body`: JSON, where there is any.
    pub fn answered(&self, code: u16, body: Option<&Bytes>) {
        let mut event = self.event.lock();
        let document: Option<Value> = body.and_then(|b| serde_json::from_slice(b).ok());
        let mut status = Map::new();
        status.insert("metadata".into(), json!({}));
        if let Some(said) = document.as_ref().filter(|d| d["kind"] == "Status" && d["apiVersion"] == "v1") {
            for field in ["status", "message", "reason", "details"] {
                if let Some(value) = said.get(field) {
                    status.insert(field.into(), value.clone());
                }
            }
        }
        status.insert("code".into(), code.into());
        event.status = Some(status);
        if self.wants_response() {
            event.response = document.map(|mut document| {
                if self.verdict.omit_managed_fields {
                    event::drop_managed_fields(&mut document);
                }
                document
            });
        }
    }

    /// Notes how the request ended where it has no answer of its own.
    pub fn failed(&self, code: u16, reason: &str, message: &str) {
        let mut status = Map::new();
        status.insert("metadata".into(), json!({}));
        for (field, text) in [
            ("status", if reason.is_empty() { "" } else { "Failure" }),
            ("message", message),
            ("reason", reason),
        ] {
            if !text.is_empty() {
                status.insert(field.into(), text.into());
            }
        }
        status.insert("code".into(), code.into());
        self.event.lock().status = Some(status);
    }

    fn render(&self, stage: Stage) -> Option<backend::Rendered> {
        if self.verdict.omits(stage) {
            return None;
        }
        if stage == Stage::ResponseComplete {
            self.note_layers();
        }
        self.audit.events.fetch_add(1, Ordering::Relaxed);
        let event = self.event.lock();
        let at = if stage == Stage::RequestReceived { event.received } else { self.audit.clock.now() };
        let objects = event.request.is_some() || event.response.is_some();
        Some(backend::Rendered {
            json: event.json(stage, at, true).into(),
            trimmed: objects.then(|| event.json(stage, at, false).into()),
            line: event.line(stage),
        })
    }

    /// Writes an event as the backends' modes say. `false`: it is lost, and the request must be refused.
    pub async fn stage(&self, stage: Stage) -> bool {
        let Some(event) = self.render(stage) else { return true };
        let mut kept = true;
        for backend in &self.audit.backends {
            kept &= backend.take(&event).await;
        }
        if !kept && stage == Stage::RequestReceived {
            self.audit.rejected.fetch_add(1, Ordering::Relaxed);
        }
        kept
    }

    /// Writes an event where nobody can wait for it.
    pub fn stage_now(&self, stage: Stage) {
        if let Some(event) = self.render(stage) {
            for backend in &self.audit.backends {
                backend.offer(&event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_request_came_from() {
        let of = |headers: &[(&'static str, &str)], peer: Option<&str>| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().unwrap());
            }
            sources(&map, peer.map(|p| p.parse().unwrap())).join(" ")
        };
        assert_eq!(of(&[], Some("10.0.0.1")), "10.0.0.1");
        assert_eq!(
            of(&[("x-forwarded-for", "1.1.1.1, x, 2.2.2.2")], Some("10.0.0.1")),
            "1.1.1.1 2.2.2.2 10.0.0.1"
        );
        assert_eq!(
            of(&[("x-forwarded-for", "10.0.0.1"), ("x-real-ip", "3.3.3.3")], Some("10.0.0.1")),
            "10.0.0.1"
        );
        assert_eq!(of(&[("x-real-ip", "::1")], None), "::1");
        let mut long = HeaderMap::new();
        long.insert(header::USER_AGENT, "a".repeat(2000).parse().unwrap());
        assert_eq!(user_agent(&long), format!("{}...TRUNCATED", "a".repeat(1024)));
    }
}
