//! The service `kubernetes`: where clients in the cluster find this server.
//!
//! Its objects are made at start, and put right where they say something else: the server may come back at another
//! address (`k8s.io/kubernetes/pkg/controlplane/controller/kubernetesservice`). From then on what is deleted comes
//! back, and so do endpoints that somebody changes; the service itself may be changed, as upstream has it.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::sleep;
use yare_kinds::view::{View as _, ViewMut as _};

use crate::{
    bootstrap::{ensure, remove, rewrite},
    changes::Changes,
    core::Core,
    registry::store_kind,
    status::{ApiError, ApiResult},
    verbs::write,
};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";
/// Between two repairs at least: somebody else may want to have it otherwise, again and again.
const PAUSE: Duration = Duration::from_secs(1);
/// After repairs that failed, at most.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What must be there.
pub fn objects(core: &Core) -> Vec<Value> {
    let config = &core.config;
    let (Some(first), Some((ip, port))) = (core.allocators.first_address(), config.advertise) else {
        return Vec::new();
    };
    let mut own = json!({ "name": "https", "port": 443, "protocol": "TCP", "targetPort": port });
    let mut kind = "ClusterIP";
    if let Some(node_port) = config.own_node_port {
        (kind, own["nodePort"]) = ("NodePort", node_port.into());
    }
    let mut all = vec![json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": NAME, "namespace": NAMESPACE,
            "labels": { "component": "apiserver", "provider": "kubernetes" },
        },
        "spec": {
            "type": kind, "clusterIP": first.to_string(), "sessionAffinity": "None", "ports": [own],
        },
    })];
    // Nobody but this machine could use a loopback address, and validation says so.
    if ip.is_loopback() || !config.own_endpoints {
        return all;
    }
    all.push(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": NAME, "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": NAME },
        },
        "addressType": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{ "addresses": [ip.to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
    }));
    all.push(json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": NAME, "namespace": NAMESPACE,
            "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
        },
        "subsets": [{
            "addresses": [{ "ip": ip.to_string() }],
            "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
        }],
    }));
    all
}

/// What of a kind is put right.
struct Row {
    kind: &'static str,
    /// Its group and plural.
    of: (&'static str, &'static str),
    fields: &'static [&'static str],
    /// Not at start alone.
    always: bool,
}

const KINDS: [Row; 3] = [
    Row { kind: "Service", of: ("", "services"), fields: &["spec.type", "spec.ports"], always: false },
    Row {
        kind: "EndpointSlice",
        of: ("discovery.k8s.io", "endpointslices"),
        fields: &["metadata.labels", "endpoints", "ports"],
        always: true,
    },
    Row { kind: "Endpoints", of: ("", "endpoints"), fields: &["metadata.labels", "subsets"], always: true },
];

/// What became of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// There was nothing to do.
    Right,
    Repaired,
    Failed,
}

/// Puts right what stands there from before.
pub async fn reconcile(core: &Arc<Core>) {
    attempt(core, true).await;
}

/// Keeps what must be there until the server stops.
pub fn start(core: &Arc<Core>) {
    if !objects(core).is_empty() {
        tokio::spawn(keep(core.clone()));
    }
}

async fn keep(core: Arc<Core>) {
    let kinds = KINDS.map(|row| store_kind(row.of.0, row.of.1));
    let mut changes = Changes::from_now(&core, kinds.iter().map(|kind| &**kind));
    let key = format!("{NAMESPACE}/{NAME}");
    let mut retry = PAUSE;
    loop {
        let outcome = attempt(&core, false).await;
        let goes_on = match outcome {
            Outcome::Right => changes.until(|object| *object.key == *key).await,
            Outcome::Repaired => core.stop.run_until_cancelled(sleep(PAUSE)).await.is_some(),
            // The address of a service that was just deleted is not free at once.
            Outcome::Failed => core.stop.run_until_cancelled(sleep(retry)).await.is_some(),
        };
        if !goes_on {
            return;
        }
        retry = if outcome == Outcome::Failed { (retry * 2).min(RETRY_MAX) } else { PAUSE };
    }
}

async fn attempt(core: &Arc<Core>, at_start: bool) -> Outcome {
    let mut worst = Outcome::Right;
    for wanted in objects(core) {
        let kind = wanted.str_at("kind");
        let Some(row) = KINDS.iter().find(|row| row.kind == kind) else { continue };
        let outcome = match put_right(core, row, &wanted, at_start).await {
            Ok(false) => Outcome::Right,
            Ok(true) => Outcome::Repaired,
            Err(error) => {
                tracing::warn!(why = error.message, kind, "the service {NAME} stays as it is");
                Outcome::Failed
            }
        };
        worst = worst.max(outcome);
    }
    worst
}

/// Whether there was something to be put right.
async fn put_right(core: &Arc<Core>, row: &Row, wanted: &Value, at_start: bool) -> ApiResult<bool> {
    let Row { of, fields, always, .. } = *row;
    let make = async || ensure(core, wanted.clone()).await.map_err(ApiError::internal);
    let Some(stored) = core.read(&store_kind(of.0, of.1), &format!("{NAMESPACE}/{NAME}")) else {
        make().await?;
        return Ok(true);
    };
    // That of another family cannot become one of this.
    if stored.at("addressType") != wanted.at("addressType") {
        remove(core, of, (NAMESPACE, NAME)).await?;
        make().await?;
        return Ok(true);
    }
    let right = fields.iter().all(|field| says(stored.at(field), wanted.at(field)));
    if right || !(always || at_start) {
        return Ok(false);
    }
    let change = |object: &Value| {
        let mut object = object.clone();
        for field in fields {
            object.set(field, with(object.at(field), wanted.at(field)));
        }
        Ok(object)
    };
    rewrite(core, of, &write::MAIN, (NAMESPACE, NAME), &change).await?;
    Ok(true)
}

/// What is wanted, with the labels that stand beside it.
fn with(stored: &Value, wanted: &Value) -> Value {
    match (stored, wanted) {
        (Value::Object(stored), Value::Object(wanted)) => {
            let mut all = stored.clone();
            all.extend(wanted.clone());
            all.into()
        }
        _ => wanted.clone(),
    }
}

/// Whether all that is wanted stands there, perhaps with what defaults add.
fn says(stored: &Value, wanted: &Value) -> bool {
    match (stored, wanted) {
        (Value::Object(stored), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| stored.get(key).is_some_and(|stored| says(stored, value)))
        }
        (Value::Array(stored), Value::Array(wanted)) => {
            stored.len() == wanted.len() && stored.iter().zip(wanted).all(|(s, w)| says(s, w))
        }
        _ => stored == wanted,
    }
}
