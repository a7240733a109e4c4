//! Mirrors Endpoints that people write by hand, for services without selector, into EndpointSlices, which
//! is all that proxies read.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{Cached, Change, ENDPOINT_SLICES, ENDPOINTS, Informer, ObjectKey, SERVICES};

use crate::{
    api::Deletion,
    context::{Context, Error},
    endpointslice::{MANAGED_BY_LABEL, SERVICE_NAME_LABEL},
    expectations::Expectations,
    harness::{Next, Reconcile},
    ownership::controller_ref,
    service_pods::ServiceView,
    template::same,
    views::{Meta, nullable},
};

const MANAGED_BY: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Addresses of one subset that are mirrored; and how many fit in one slice.
const MAX_ADDRESSES: usize = 1000;

struct Mirroring {
    context: Context,
    endpoints: Informer,
    services: Informer,
    slices: Informer,
    expectations: Expectations,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    subsets: Vec<Subset>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Subset {
    #[serde(deserialize_with = "nullable")]
    addresses: Vec<Value>,
    #[serde(deserialize_with = "nullable")]
    not_ready_addresses: Vec<Value>,
    #[serde(deserialize_with = "nullable")]
    ports: Vec<Value>,
}

/// The controller; keys are Endpoints.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Mirroring {
        endpoints: context.informer(ENDPOINTS),
        services: context.informer(SERVICES),
        slices: context.informer(ENDPOINT_SLICES),
        expectations: Expectations::default(),
        context: context.clone(),
    })
}

/// The Endpoints that one of our slices mirrors.
pub fn of_slice(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let Some(slice) = change.object()
        && slice.label(MANAGED_BY_LABEL) == Some(MANAGED_BY)
        && let Some(name) = slice.label(SERVICE_NAME_LABEL)
    {
        add(ObjectKey::new(slice.namespace(), name));
    }
}

#[async_trait]
impl Reconcile for Mirroring {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        if !self.expectations.satisfied(key, &self.slices) {
            return Ok(Next::Done);
        }
        let ours = |s: &Cached| {
            s.label(MANAGED_BY_LABEL) == Some(MANAGED_BY) && s.label(SERVICE_NAME_LABEL) == Some(&key.name)
        };
        let mut existing: Vec<Cached> =
            self.slices.in_namespace(&key.namespace).into_iter().filter(ours).collect();
        existing.retain(|s| s.deletion_timestamp().is_none());
        let wanted = match self.source(key)? {
            Some((endpoints, view)) => {
                slices(&endpoints, &view).into_iter().map(|s| (s, endpoints.clone())).collect()
            }
            None => Vec::new(),
        };
        let api = &self.context.api;
        for (slice, endpoints) in wanted {
            // Labels, annotations, ports and addresses: a slice that has all of them is left alone.
            let current = existing.iter().position(|e| {
                e.view::<Value>().is_ok_and(|v| {
                    v["addressType"] == slice["addressType"] && same(&v["ports"], &slice["ports"])
                })
            });
            let Some(i) = current else {
                let mut body = slice;
                body["metadata"]["generateName"] = format!("{}-", key.name).into();
                body["metadata"]["ownerReferences"] = json!([controller_ref(&ENDPOINTS, &endpoints)]);
                match api.create(&ENDPOINT_SLICES, &key.namespace, &body).await {
                    Ok(created) => self.expectations.created(key, &created),
                    Err(error) => return Err(error.into()),
                }
                continue;
            };
            let old = existing.remove(i);
            let body: Value = old.view()?;
            let is_same =
                ["labels", "annotations"].iter().all(|f| same(&body["metadata"][f], &slice["metadata"][f]))
                    && same(&body["endpoints"], &slice["endpoints"]);
            if !is_same {
                let write = |body: &mut Value| {
                    for field in ["labels", "annotations"] {
                        body["metadata"][field] = slice["metadata"][field].clone();
                    }
                    body["ports"] = slice["ports"].clone();
                    body["endpoints"] = slice["endpoints"].clone();
                };
                api.update(&ENDPOINT_SLICES, &old, write).await?;
            }
        }
        for slice in existing {
            api.delete(&ENDPOINT_SLICES, slice.key(), Deletion::of(&slice)).await?;
            self.expectations.deleted(key, &slice);
        }
        Ok(Next::Done)
    }
}

impl Mirroring {
    /// The Endpoints, if they are to be mirrored.
    fn source(&self, key: &ObjectKey) -> Result<Option<(Cached, View)>, Error> {
        let (Some(endpoints), Some(service)) = (self.endpoints.get(key), self.services.get(key)) else {
            return Ok(None);
        };
        let service: ServiceView = service.view()?;
        let view: View = endpoints.view()?;
        let skipped = endpoints.label(SKIP_LABEL) == Some("true")
            || view.metadata.annotations.contains_key(LEADER_ANNOTATION)
            || service.spec.selector.is_some_and(|s| !s.is_empty());
        Ok((!skipped).then_some((endpoints, view)))
    }
}

/// Ports and the endpoints that have them.
type Group = (Vec<Value>, Vec<Value>);

/// The slices that mirror Endpoints: one per family and set of ports.
fn slices(endpoints: &Cached, view: &View) -> Vec<Value> {
    let mut labels: BTreeMap<&str, &str> = endpoints.labels().iter().map(|(k, v)| (&**k, &**v)).collect();
    labels.insert(SERVICE_NAME_LABEL, endpoints.name());
    labels.insert(MANAGED_BY_LABEL, MANAGED_BY);
    let annotations: BTreeMap<&String, &String> =
        view.metadata.annotations.iter().filter(|(k, _)| *k != TRIGGER_TIME && *k != LAST_APPLIED).collect();
    let mut groups: BTreeMap<(&str, String), Group> = BTreeMap::new();
    for subset in &view.subsets {
        let ports: Vec<Value> = subset.ports.iter().map(port).collect();
        let all = subset
            .addresses
            .iter()
            .map(|a| (a, true))
            .chain(subset.not_ready_addresses.iter().map(|a| (a, false)));
        for (address, ready) in all.take(MAX_ADDRESSES) {
            let Some(ip) = address["ip"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok()) else { continue };
            let family = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
            let key = (family, json!(ports).to_string());
            let group = groups.entry(key).or_insert_with(|| (ports.clone(), Vec::new()));
            let mut endpoint = json!({"addresses": [ip.to_string()], "conditions": {"ready": ready}});
            for field in ["hostname", "nodeName", "targetRef"] {
                if let Some(value) = address.get(field) {
                    endpoint[field] = value.clone();
                }
            }
            group.1.push(endpoint);
        }
    }
    let build = |((family, _), (ports, endpoints_of)): ((&str, String), Group)| {
        json!({
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"namespace": endpoints.namespace(), "labels": labels, "annotations": annotations},
            "addressType": family,
            "ports": ports,
            "endpoints": endpoints_of,
        })
    };
    groups.into_iter().map(build).collect()
}

fn port(port: &Value) -> Value {
    let mut mirrored = json!({
        "name": port["name"].as_str().unwrap_or_default(),
        "port": port["port"],
        "protocol": port["protocol"].as_str().unwrap_or("TCP"),
    });
    if let Some(protocol) = port.get("appProtocol") {
        mirrored["appProtocol"] = protocol.clone();
    }
    mirrored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slice_per_family_and_ports() {
        let json = json!({"metadata": {"name": "db", "namespace": "d", "labels": {"x": "y"}, "annotations": {LAST_APPLIED: "{}"}},
            "subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 5432}]}]});
        let cached = Cached::new(json.to_string().into()).unwrap();
        let made = slices(&cached, &cached.view().unwrap());
        assert_eq!(made.len(), 2);
        assert_eq!(
            (&made[0]["addressType"], made[0]["endpoints"].as_array().map(Vec::len)),
            (&json!("IPv4"), Some(2))
        );
        assert_eq!(made[0]["endpoints"][1]["conditions"]["ready"], false);
        assert_eq!(made[0]["metadata"]["annotations"], json!({}));
        assert_eq!(made[1]["endpoints"][0]["addresses"], json!(["fd00::1"]));
    }
}
