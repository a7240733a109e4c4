//! Condition `Available` of an APIService that points at a service: whether the service is there, has
//! endpoints, and answers. Asked again when one of these changes, and from time to time, since a network can
//! break without telling anybody.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use http::{HeaderMap, Method, Request};
use serde_json::{Value, json};
use yare_kinds::{conditions, view::View};
use yare_store::Object;

use super::{
    backend::{Backend, ServiceRef},
    discovery, openapi, proxy,
    resolve::{self, SERVICE_NAME},
    table::KIND,
};
use crate::{auth::User, body, bootstrap::internal_call, changes::Changes, core::Core, verbs::write};

/// How often a server that answers is asked whether it still does.
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// How often its documents are read again.
const REFRESH_EVERY: Duration = Duration::from_secs(60);
/// Wait after a first failure; doubled after each further one up to [`PROBE_EVERY`].
const BACKOFF: Duration = Duration::from_millis(5);
/// Attempts of one check: one that succeeds is enough.
const ATTEMPTS: usize = 5;
/// How long an attempt may go unanswered before the next one starts beside it.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// The type of the condition.
const TYPE: &str = "Available";

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `True`, `False`, `Unknown`
    pub status: &'static str,
    /// In one word.
    pub reason: &'static str,
    /// In one sentence.
    pub message: String,
}

/// Reason and message of what is served here.
pub const LOCAL: (&str, &str) = ("Local", "Local APIServices are always available");

impl From<(&'static str, &'static str)> for Condition {
    fn from((reason, message): (&'static str, &'static str)) -> Self {
        Self { status: "True", reason, message: message.to_owned() }
    }
}

impl Condition {
    fn failed(reason: &'static str, message: String) -> Self {
        Self { status: "False", reason, message }
    }

    fn is_true(&self) -> bool {
        self.status == "True"
    }
}

/// The condition as it stands in an APIService.
pub fn condition(service: &Value) -> Option<&Value> {
    conditions::find(service.items("status.conditions"), TYPE)
}

/// Writes the condition, unless it stands there already.
pub async fn write(core: &Arc<Core>, name: &str, new: &Condition) {
    let Some(served) = core.builtin.stored(KIND) else { return };
    if let Some(stored) = core.read(KIND, name)
        && let Some(have) = condition(&stored)
    {
        let same = have.str_at("status") == new.status
            && have.str_at("reason") == new.reason
            && have.str_at("message") == new.message;
        if same {
            return;
        }
        if have.str_at("status") == "True" && !new.is_true() {
            core.aggregation.metrics.count(name, new.reason);
        }
    }
    let call = internal_call(core, "update", "apiservices", "", name);
    let now = core.now_rfc3339();
    let change = |service: &mut Value| {
        let Condition { status, reason, message } = new;
        let condition = json!({"type": TYPE, "status": status, "reason": reason, "message": message});
        conditions::set(service, condition, &now);
        Ok(())
    };
    if let Err(error) = write::modify(&call, served, "", name, Some("status"), false, change).await
        && error.reason != "NotFound"
    {
        tracing::warn!(%error, apiservice = name, "cannot write the status of an APIService");
    }
}

/// Checks a backend, reads its documents, and says so, until it is closed.
pub async fn keep(core: Arc<Core>, backend: Arc<Backend>) {
    let mut watch = Watch::new(&core, &backend.service);
    let mut failures = 0u32;
    let mut refreshed: Option<jiff::Timestamp> = None;
    loop {
        let found = check(&core, &backend).await;
        if backend.closed.is_cancelled() {
            return;
        }
        if found.is_true() {
            // Whoever sees the condition may send requests at once; the table says the rest.
            backend.available.store(true, Ordering::Release);
        }
        write(&core, &backend.name, &found).await;
        let due = refreshed.is_none_or(|at| {
            core.now().duration_since(at) >= REFRESH_EVERY.try_into().unwrap_or(jiff::SignedDuration::ZERO)
        });
        if found.is_true() && (due || failures > 0) {
            discovery::refresh(&core, &backend).await;
            openapi::refresh(&core, &backend).await;
            refreshed = Some(core.now());
        } else if !found.is_true() {
            discovery::mark_stale(&core, &backend);
        }
        // Only an answer that fails is worth asking for again soon: all else comes with an event.
        let wait = if found.reason == "FailedDiscoveryCheck" {
            failures = failures.saturating_add(1);
            BACKOFF.saturating_mul(1 << failures.min(13)).min(PROBE_EVERY)
        } else {
            failures = u32::from(!found.is_true());
            PROBE_EVERY
        };
        tokio::select! {
            () = backend.closed.cancelled() => return,
            goes_on = watch.changed() => if !goes_on { return },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Tells of changes of one service and its EndpointSlices.
struct Watch {
    service: String,
    prefix: String,
    name: String,
    changes: Changes,
}

impl Watch {
    fn new(core: &Arc<Core>, service: &ServiceRef) -> Self {
        Self {
            service: format!("{}/{}", service.namespace, service.name),
            prefix: format!("{}/", service.namespace),
            name: service.name.clone(),
            changes: Changes::from_now(core, ["services", "discovery.k8s.io/endpointslices"]),
        }
    }

    /// See [`Changes::until`].
    async fn changed(&mut self) -> bool {
        let Self { service, prefix, name, changes } = self;
        let of_service = |object: &Object| {
            *object.key == **service
                || (object.key.starts_with(&**prefix) && object.attrs.label(SERVICE_NAME) == Some(&**name))
        };
        changes.until(of_service).await
    }
}

async fn check(core: &Arc<Core>, backend: &Arc<Backend>) -> Condition {
    let wanted = &backend.service;
    let service = core.read("services", &format!("{}/{}", wanted.namespace, wanted.name));
    let slices = || resolve::slices(core, &wanted.namespace, &wanted.name);
    if let Some(problem) = check_service(wanted, service.as_ref(), slices) {
        return problem;
    }
    match answers(core, backend).await {
        Ok(()) => ("Passed", "all checks passed").into(),
        Err(message) => Condition::failed("FailedDiscoveryCheck", message),
    }
}

/// What can be seen without asking the server itself.
fn check_service(
    wanted: &ServiceRef,
    service: Option<&Value>,
    slices: impl FnOnce() -> Vec<Value>,
) -> Option<Condition> {
    let ServiceRef { namespace, name, port } = wanted;
    let Some(service) = service else {
        let message = format!("service/{name} in {namespace:?} is not present");
        return Some(Condition::failed("ServiceNotFound", message));
    };
    if !matches!(service.str_at("spec.type"), "" | "ClusterIP") {
        return None;
    }
    let ports = service.items("spec.ports");
    let Some(found) = ports.iter().find(|p| p.int_at("port") == i64::from(*port)) else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(Condition::failed("ServicePortError", message));
    };
    let port_name = found.str_at("name");
    let slices = slices();
    if slices.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Some(Condition::failed("EndpointsNotFound", message));
    }
    let active = slices.iter().any(|slice| {
        slice.items("endpoints").iter().any(|e| e.bool_opt("conditions.ready").unwrap_or(true))
            && slice
                .items("ports")
                .iter()
                .any(|p| p.str_opt("name") == Some(port_name) && p.int_opt("port").is_some())
    });
    (!active).then(|| {
        let message = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        Condition::failed("MissingEndpoints", message)
    })
}

/// Whether the server lists its resources: one good answer of several attempts, each to an endpoint chosen
/// anew. The next attempt starts when one has failed or is slow.
async fn answers(core: &Arc<Core>, backend: &Arc<Backend>) -> Result<(), String> {
    let mut running = FuturesUnordered::new();
    let mut started = 0;
    let mut last = String::new();
    loop {
        if started < ATTEMPTS {
            running.push(attempt(core, backend));
            started += 1;
        }
        let more = started < ATTEMPTS;
        tokio::select! {
            outcome = running.next() => match outcome {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) => last = error,
                None => return Err(last),
            },
            () = tokio::time::sleep(PATIENCE), if more => {}
            () = backend.closed.cancelled() => return Err(last),
        }
        if running.is_empty() && started == ATTEMPTS {
            return Err(last);
        }
    }
}

async fn attempt(core: &Arc<Core>, backend: &Backend) -> Result<(), String> {
    let targets = resolve::targets(core, &backend.service)?;
    let place = targets.first().map(resolve::Target::authority).unwrap_or_default();
    let root = backend.root();
    let url = format!("https://{place}{root}");
    let ask = ask(core, backend, &root, HeaderMap::new());
    let failing = |e: &str| format!("failing or missing response from {url}: {e}");
    match tokio::time::timeout(ATTEMPT_TIMEOUT, ask).await {
        Err(_) => Err(failing(&format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        ))),
        Ok(Err(error)) => Err(failing(&format!("Get {url:?}: {error}"))),
        Ok(Ok(response)) if response.status().is_success() => Ok(()),
        Ok(Ok(response)) => Err(failing(&format!("bad status from {url}: {}", response.status().as_u16()))),
    }
}

/// Asks a backend for a document in the aggregator's own name.
pub(super) async fn ask(
    core: &Arc<Core>,
    backend: &Backend,
    path: &str,
    headers: HeaderMap,
) -> Result<http::Response<hyper::body::Incoming>, String> {
    let way = backend.way(core);
    let transport = way.transport().map_err(str::to_owned)?;
    let targets = resolve::targets(core, &backend.service)?;
    let mut request = Request::new(body::empty_request());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = path.parse().map_err(|_| format!("{path:?} is not a path"))?;
    *request.headers_mut() = headers;
    let user = User::new("system:kube-aggregator", &["system:masters"]);
    proxy::identify(request.headers_mut(), &user);
    transport.send(&targets, request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_and_endpoints() {
        let wanted = ServiceRef { namespace: "ns".into(), name: "api".into(), port: 443 };
        let service = |more: Value| {
            let mut service = json!({"spec": {"ports": [{"port": 443, "name": "https"}]}});
            for (k, v) in more.as_object().unwrap() {
                service["spec"][k] = v.clone();
            }
            service
        };
        let slice = |ready: bool, name: &str| {
            json!({
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}],
                "ports": [{"name": name, "port": 8443}],
            })
        };
        for (service, slices, want) in [
            (None, vec![], Some(("ServiceNotFound", "service/api in \"ns\" is not present"))),
            (
                Some(service(json!({"ports": [{"port": 80}]}))),
                vec![],
                Some(("ServicePortError", "service/api in \"ns\" is not listening on port 443")),
            ),
            (
                Some(service(json!({}))),
                vec![],
                Some(("EndpointsNotFound", "cannot find endpointslices for service/api in \"ns\"")),
            ),
            (
                Some(service(json!({}))),
                vec![slice(false, "https"), slice(true, "other")],
                Some((
                    "MissingEndpoints",
                    "endpointslices for service/api in \"ns\" have no addresses with port name \"https\"",
                )),
            ),
            (Some(service(json!({}))), vec![slice(false, "https"), slice(true, "https")], None),
            (Some(service(json!({"type": "ExternalName", "ports": []}))), vec![], None),
        ] {
            let got = check_service(&wanted, service.as_ref(), || slices);
            let got = got.as_ref().map(|c| (c.reason, c.message.as_str()));
            assert_eq!(got, want);
        }
    }
}
