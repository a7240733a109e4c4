//! The service `kubernetes`: where clients in the cluster find this server.
//!
//! Its objects are made at start, and put right where they say something else: the server may come back at another
//! address (`k8s.io/kubernetes/pkg/controlplane/controller/kubernetesservice`).

use std::sync::Arc;

use serde_json::{Value, json};
use yare_kinds::view::{View as _, ViewMut as _};

use crate::{bootstrap::rewrite, core::Core, status::ApiResult, verbs::write};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";

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

/// What of each kind is put right: its group and plural, and the fields.
const KINDS: [(&str, (&str, &str), &[&str]); 3] = [
    ("Service", ("", "services"), &["spec.type", "spec.ports"]),
    ("EndpointSlice", ("discovery.k8s.io", "endpointslices"), &["endpoints", "ports"]),
    ("Endpoints", ("", "endpoints"), &["subsets"]),
];

/// Puts right what stands there from before.
pub async fn reconcile(core: &Arc<Core>) {
    for wanted in objects(core) {
        let kind = wanted.str_at("kind");
        let Some((_, of, fields)) = KINDS.iter().find(|row| row.0 == kind) else { continue };
        if let Err(error) = put_right(core, *of, fields, &wanted).await {
            tracing::warn!(why = error.message, kind, "the service {NAME} stays as it is");
        }
    }
}

async fn put_right(core: &Arc<Core>, of: (&str, &str), fields: &[&str], wanted: &Value) -> ApiResult<()> {
    let stored = core.read(&crate::registry::store_kind(of.0, of.1), &format!("{NAMESPACE}/{NAME}"));
    if stored.is_none_or(|stored| fields.iter().all(|field| says(stored.at(field), wanted.at(field)))) {
        return Ok(());
    }
    let make = |object: &Value| {
        let mut object = object.clone();
        for field in fields {
            object.set(field, wanted.at(field).clone());
        }
        Ok(object)
    };
    rewrite(core, of, &write::MAIN, (NAMESPACE, NAME), &make).await
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
