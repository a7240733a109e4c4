//! Endpoints: the older form of EndpointSlices, one object per service, which some clients still read.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use yare_client::{Cached, ENDPOINTS, Informer, ObjectKey, PODS, SERVICES};

use crate::{
    api::Deletion,
    context::{Context, Error},
    harness::{Next, Reconcile},
    service_pods::{EndpointPod, EndpointPort, HEADLESS_LABEL, ServiceView},
    views::{Meta, nullable},
};

/// Addresses that one object may hold.
const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const MANAGED_BY_LABEL: &str = "endpoints.kubernetes.io/managed-by";
const MANAGED_BY: &str = "endpoint-controller";

struct Controller {
    context: Context,
    services: Informer,
    pods: Informer,
    endpoints: Informer,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Subset {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    addresses: Vec<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    not_ready_addresses: Vec<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    ports: Vec<EndpointPort>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Address {
    ip: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_ref: Option<TargetRef>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct TargetRef {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    subsets: Vec<Subset>,
}

/// The controller; keys are services.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Controller {
        services: context.informer(SERVICES),
        pods: context.informer(PODS),
        endpoints: context.informer(ENDPOINTS),
        context: context.clone(),
    })
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let current = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            // Only what this controller made, or what lost its service: endpoints by hand have no service.
            if let Some(current) = current.filter(|c| c.label(MANAGED_BY_LABEL) == Some(MANAGED_BY)) {
                self.context.api.delete(&ENDPOINTS, key, Deletion::of(&current)).await?;
            }
            return Ok(Next::Done);
        };
        let view: ServiceView = service.view()?;
        let Some(selector) = view.spec.selector() else { return Ok(Next::Done) };
        if service.deletion_timestamp().is_some() {
            return Ok(Next::Done);
        }
        let mut pods = Vec::new();
        for pod in self.pods.in_namespace(service.namespace()) {
            let leaving = pod.deletion_timestamp().is_some() && !view.spec.publish_not_ready_addresses;
            if selector.matches(pod.labels()) && !leaving {
                let state: EndpointPod = pod.view()?;
                if state.has_address() {
                    pods.push((pod, state));
                }
            }
        }
        let (subsets, truncated) = subsets(&service, &view, &pods);
        self.write(&service, &view, current, subsets, truncated).await?;
        Ok(Next::Done)
    }
}

impl Controller {
    async fn write(
        &self,
        service: &Cached,
        view: &ServiceView,
        current: Option<Cached>,
        subsets: Vec<Subset>,
        truncated: bool,
    ) -> Result<(), Error> {
        let mut labels: BTreeMap<String, String> =
            service.labels().iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        labels.remove(HEADLESS_LABEL);
        if view.spec.is_headless() {
            labels.insert(HEADLESS_LABEL.into(), String::new());
        }
        labels.insert(MANAGED_BY_LABEL.into(), MANAGED_BY.into());
        let api = &self.context.api;
        let trigger = self.context.now().to_string();
        let Some(current) = current else {
            let mut body = json!({
                "kind": "Endpoints",
                "apiVersion": "v1",
                "metadata": {
                    "name": service.name(),
                    "namespace": service.namespace(),
                    "labels": labels,
                    "annotations": {TRIGGER_TIME: trigger},
                },
                "subsets": subsets,
            });
            if truncated {
                body["metadata"]["annotations"][OVER_CAPACITY] = "truncated".into();
            }
            return match api.create(&ENDPOINTS, service.namespace(), &body).await {
                Ok(_) => Ok(()),
                Err(error) if error.is_already_exists() => Ok(()),
                Err(error) => Err(error.into()),
            };
        };
        let old: View = current.view()?;
        let same_labels =
            current.labels().len() == labels.len() && labels.iter().all(|(k, v)| current.label(k) == Some(v));
        let marked = old.metadata.annotations.get(OVER_CAPACITY).is_some_and(|v| v == "truncated");
        if same_labels && old.subsets == subsets && marked == truncated {
            return Ok(());
        }
        let mut annotations = old.metadata.annotations;
        annotations.insert(TRIGGER_TIME.into(), trigger);
        match truncated {
            true => annotations.insert(OVER_CAPACITY.into(), "truncated".into()),
            false => annotations.remove(OVER_CAPACITY),
        };
        let write = |body: &mut Value| {
            body["metadata"]["labels"] = json!(labels);
            body["metadata"]["annotations"] = json!(annotations);
            body["subsets"] = json!(subsets);
        };
        api.update(&ENDPOINTS, &current, write).await?;
        Ok(())
    }
}

/// Groups addresses by their ports; whether some were left out.
fn subsets(service: &Cached, view: &ServiceView, pods: &[(Cached, EndpointPod)]) -> (Vec<Subset>, bool) {
    let ipv6 = match view.spec.ip_families.first() {
        Some(family) => family == "IPv6",
        None => view.spec.cluster_ip.contains(':'),
    };
    let mut groups: BTreeMap<Vec<EndpointPort>, (BTreeSet<Address>, BTreeSet<Address>)> = BTreeMap::new();
    let mut total = 0;
    for (pod, state) in pods {
        let Some(ip) = state.addresses(ipv6).into_iter().next() else { continue };
        let mut ports = state.ports(&view.spec);
        // Without a port nobody can connect, unless the service is only a name.
        if ports.is_empty() && !(view.spec.ports.is_empty() && view.spec.is_headless()) {
            continue;
        }
        ports.sort();
        let address = Address {
            ip,
            hostname: state.hostname_for(service).map(str::to_owned),
            node_name: pod.node_name().map(str::to_owned),
            target_ref: Some(TargetRef {
                kind: "Pod".into(),
                namespace: pod.namespace().into(),
                name: pod.name().into(),
                uid: pod.uid().into(),
            }),
        };
        let (ready, not_ready) = groups.entry(ports).or_default();
        let group = if view.spec.publish_not_ready_addresses || state.is_ready() { ready } else { not_ready };
        total += usize::from(group.insert(address));
    }
    let mut subsets: Vec<Subset> = groups
        .into_iter()
        .map(|(ports, (ready, not_ready))| Subset {
            addresses: ready.into_iter().collect(),
            not_ready_addresses: not_ready.into_iter().collect(),
            ports,
        })
        .collect();
    if total > MAX_ADDRESSES {
        let mut left = MAX_ADDRESSES;
        // Ready ones are worth more.
        for addresses in subsets.iter_mut().map(|s| &mut s.addresses) {
            addresses.truncate(left);
            left -= addresses.len();
        }
        for addresses in subsets.iter_mut().map(|s| &mut s.not_ready_addresses) {
            addresses.truncate(left);
            left -= addresses.len();
        }
        subsets.retain(|s| !s.addresses.is_empty() || !s.not_ready_addresses.is_empty());
    }
    (subsets, total > MAX_ADDRESSES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(n: usize, ready: impl Fn(usize) -> bool) -> Vec<(Cached, EndpointPod)> {
        (0..n)
            .map(|i| {
                let status = if ready(i) { "True" } else { "False" };
                let json = json!({"metadata": {"name": format!("p{i}"), "namespace": "d", "uid": format!("u{i}")},
                    "status": {"podIP": format!("10.1.{}.{}", i / 250, i % 250), "conditions": [{"type": "Ready", "status": status}]}});
                let cached = Cached::new(json.to_string().into()).unwrap();
                let view = cached.view().unwrap();
                (cached, view)
            })
            .collect()
    }

    #[test]
    fn ready_and_not_ready_are_kept_apart_and_bounded() {
        let service = Cached::new(r#"{"metadata":{"name":"s","namespace":"d"}}"#.into()).unwrap();
        let view: ServiceView = serde_json::from_value(
            json!({"spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80, "protocol": "TCP"}]}}),
        )
        .unwrap();
        let (small, truncated) = subsets(&service, &view, &pods(3, |i| i > 0));
        assert_eq!((small[0].addresses.len(), small[0].not_ready_addresses.len(), truncated), (2, 1, false));
        assert_eq!(small[0].ports[0].port, 80);
        let (big, truncated) = subsets(&service, &view, &pods(1100, |i| i < 990));
        assert_eq!((big[0].addresses.len(), big[0].not_ready_addresses.len(), truncated), (990, 10, true));
    }
}
