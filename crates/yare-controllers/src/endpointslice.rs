//! EndpointSlices: the addresses behind a service, at most 100 in one object.
//!
//! A slice holds the endpoints of one address family that have the same ports. Changes touch as few slices
//! as possible: existing endpoints stay where they are, new ones fill slices that change anyway, then the
//! fullest slice that has room for all, then new slices.

mod counts;
mod endpoint;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{Cached, Change, ENDPOINT_SLICES, Informer, NODES, ObjectKey, PODS, SERVICES};

use self::{
    counts::{Share, Totals},
    endpoint::{Conditions, Endpoint, TargetRef, hints},
};
use crate::{
    api::Deletion,
    context::{Context, Error},
    expectations::Expectations,
    harness::{Next, Reconcile},
    metrics,
    ownership::{controller_ref, is_controlled_by},
    service_pods::{EndpointPod, EndpointPort, HEADLESS_LABEL, ServiceView, ZONE_LABEL},
    views::nullable,
};

/// Endpoints in one slice.
const MAX_ENDPOINTS: usize = 100;
/// Label with the service's name.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Label with the name of who looks after the slice.
pub const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGED_BY: &str = "endpointslice-controller.k8s.io";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

struct EndpointSlices {
    context: Context,
    totals: Totals,
    services: Informer,
    pods: Informer,
    nodes: Informer,
    slices: Informer,
    expectations: Expectations,
}

/// An existing slice.
#[derive(Clone)]
struct Slice {
    cached: Cached,
    view: SliceView,
}

#[derive(Clone, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SliceView {
    address_type: String,
    #[serde(deserialize_with = "nullable")]
    endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "nullable")]
    ports: Vec<EndpointPort>,
}

/// Ports and the endpoints that have them.
type Wanted = BTreeMap<Vec<EndpointPort>, Vec<Endpoint>>;

/// A slice as it should be.
#[derive(Debug, PartialEq)]
struct Target {
    address_type: &'static str,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

/// What to do; indexes are those of the existing slices.
#[derive(Debug, Default, PartialEq)]
struct Changes {
    create: Vec<Target>,
    update: Vec<(usize, Target)>,
    delete: Vec<usize>,
    /// Endpoints that were not there, and those that are not wanted any more.
    added: usize,
    removed: usize,
}

/// The controller; keys are services.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(EndpointSlices {
        services: context.informer(SERVICES),
        pods: context.informer(PODS),
        nodes: context.informer(NODES),
        slices: context.informer(ENDPOINT_SLICES),
        expectations: Expectations::default(),
        totals: Totals::default(),
        context: context.clone(),
    })
}

/// A change of one of our slices is looked at again, whoever made it.
pub fn service_of_slice(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let Some(slice) = change.object()
        && slice.label(MANAGED_BY_LABEL) == Some(MANAGED_BY)
        && let Some(service) = slice.label(SERVICE_NAME_LABEL)
    {
        add(ObjectKey::new(slice.namespace(), service));
    }
}

#[async_trait]
impl Reconcile for EndpointSlices {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let done = self.sync(key).await;
        let result = if done.is_ok() { "success" } else { "error" };
        self.context.config.metrics.table.count(&metrics::SLICE_SYNCS, &[result]);
        done
    }
}

impl EndpointSlices {
    async fn sync(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(service) = self.services.get(key) else {
            // The slices go with it: it owns them.
            self.expectations.forget(key);
            self.totals.set(key, None, &self.context.config.metrics.table);
            return Ok(Next::Done);
        };
        let view: ServiceView = service.view()?;
        let Some(selector) = view.spec.selector() else { return Ok(Next::Done) };
        if service.deletion_timestamp().is_some() || !self.expectations.satisfied(key, &self.slices) {
            return Ok(Next::Done);
        }
        let mut pods = Vec::new();
        for pod in self.pods.in_namespace(service.namespace()) {
            if selector.matches(pod.labels()) {
                let view: EndpointPod = pod.view()?;
                if view.has_address() {
                    pods.push((pod, view));
                }
            }
        }
        let mut existing = Vec::new();
        for slice in self.slices.in_namespace(service.namespace()) {
            let ours = slice.label(MANAGED_BY_LABEL) == Some(MANAGED_BY)
                && slice.label(SERVICE_NAME_LABEL) == Some(service.name());
            if ours && slice.deletion_timestamp().is_none() {
                existing.push(Slice { view: slice.view()?, cached: slice });
            }
        }
        let labels = labels(&service, view.spec.is_headless());
        let families = families(&view);
        let mut changes = Changes::default();
        let mut share = Share::of(view.spec.traffic_distribution.as_deref());
        let table = &self.context.config.metrics.table;
        for (address_type, ipv6) in [("IPv4", false), ("IPv6", true)] {
            let indexes: Vec<usize> =
                (0..existing.len()).filter(|&i| existing[i].view.address_type == address_type).collect();
            if !families.contains(address_type) {
                changes.delete.extend(indexes);
                continue;
            }
            let wanted = self.wanted(&service, &view, &pods, ipv6);
            share.family(wanted.values().map(Vec::len));
            (changes.added, changes.removed) = (0, 0);
            plan(address_type, &service, &labels, wanted, &existing, &indexes, &mut changes);
            table.observe(&metrics::ENDPOINTS_ADDED, &[], changes.added as f64);
            table.observe(&metrics::ENDPOINTS_REMOVED, &[], changes.removed as f64);
        }
        share.slices = (existing.len() + changes.create.len()).saturating_sub(changes.delete.len());
        let distribution = share.distribution().to_owned();
        self.totals.set(key, Some(share), table);
        let changed = self.apply(&service, &labels, &existing, changes).await?;
        table.observe(&metrics::SLICES_CHANGED, &["Disabled", &distribution], changed as f64);
        Ok(Next::Done)
    }

    fn wanted(
        &self,
        service: &Cached,
        view: &ServiceView,
        pods: &[(Cached, EndpointPod)],
        ipv6: bool,
    ) -> Wanted {
        let mut wanted = Wanted::new();
        for (pod, state) in pods {
            let addresses = state.addresses(ipv6);
            let node = pod.node_name().and_then(|n| self.nodes.get(&ObjectKey::cluster(n)));
            // A pod whose node is unknown cannot be reached yet; the node's appearance brings us back.
            if addresses.is_empty() || (node.is_none() && !view.spec.publish_not_ready_addresses) {
                continue;
            }
            let (serving, terminating) = (state.is_ready(), pod.deletion_timestamp().is_some());
            let ready = view.spec.publish_not_ready_addresses || (serving && !terminating);
            let zone = node.as_ref().and_then(|n| n.label(ZONE_LABEL)).filter(|z| !z.is_empty());
            let node_name = pod.node_name();
            let endpoint = Endpoint {
                addresses,
                conditions: Conditions {
                    ready: Some(ready),
                    serving: Some(serving),
                    terminating: Some(terminating),
                },
                hostname: state.hostname_for(service).map(str::to_owned),
                target_ref: Some(TargetRef {
                    kind: "Pod".into(),
                    namespace: pod.namespace().into(),
                    name: pod.name().into(),
                    uid: pod.uid().into(),
                }),
                node_name: node_name.map(str::to_owned),
                zone: zone.map(str::to_owned),
                hints: hints(view.spec.traffic_distribution.as_deref(), ready, zone, node_name),
            };
            let mut ports = state.ports(&view.spec);
            ports.sort();
            wanted.entry(ports).or_default().push(endpoint);
        }
        wanted
    }

    async fn apply(
        &self,
        service: &Cached,
        labels: &BTreeMap<String, String>,
        existing: &[Slice],
        mut changes: Changes,
    ) -> Result<usize, Error> {
        let table = &self.context.config.metrics.table;
        let count = |operation: &str| table.count(&metrics::SLICE_CHANGES, &[operation]);
        // A slice that would go can as well become one that would come.
        let mut delete = Vec::new();
        for i in changes.delete {
            let (slice, own) = (&existing[i], is_controlled_by(&existing[i].cached, service));
            let reuse = changes.create.iter().rposition(|t| own && t.address_type == slice.view.address_type);
            match reuse {
                Some(target) => changes.update.push((i, changes.create.remove(target))),
                None => delete.push(i),
            }
        }
        let changed = changes.create.len() + changes.update.len() + delete.len();
        let api = &self.context.api;
        let prefix = format!("{}-", service.name());
        for target in changes.create {
            let body = json!({
                "kind": "EndpointSlice",
                "apiVersion": "discovery.k8s.io/v1",
                "metadata": {
                    "generateName": prefix,
                    "namespace": service.namespace(),
                    "labels": labels,
                    "annotations": {TRIGGER_TIME: self.context.now().to_string()},
                    "ownerReferences": [controller_ref(&SERVICES, service)],
                },
                "addressType": target.address_type,
                "ports": target.ports,
                "endpoints": target.endpoints,
            });
            match api.create(&ENDPOINT_SLICES, service.namespace(), &body).await {
                Ok(created) => self.expectations.created(service.key(), &created),
                Err(error) => return Err(error.into()),
            }
            count("create");
        }
        for (i, target) in changes.update {
            let write = |body: &mut Value| {
                body["metadata"]["labels"] = json!(labels);
                body["metadata"]["annotations"][TRIGGER_TIME] = self.context.now().to_string().into();
                body["ports"] = json!(target.ports);
                body["endpoints"] = json!(target.endpoints);
            };
            api.update(&ENDPOINT_SLICES, &existing[i].cached, write).await?;
            count("update");
        }
        for i in delete {
            let slice = &existing[i].cached;
            api.delete(&ENDPOINT_SLICES, slice.key(), Deletion::of(slice)).await?;
            self.expectations.deleted(service.key(), slice);
            count("delete");
        }
        Ok(changed)
    }
}

/// The service's labels and those that say whose slice it is.
fn labels(service: &Cached, headless: bool) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> =
        service.labels().iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    labels.remove(HEADLESS_LABEL);
    if headless {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    labels.insert(SERVICE_NAME_LABEL.into(), service.name().into());
    labels.insert(MANAGED_BY_LABEL.into(), MANAGED_BY.into());
    labels
}

fn families(service: &ServiceView) -> BTreeSet<&'static str> {
    let spec = &service.spec;
    let known = |f: &str| match f {
        "IPv4" => Some("IPv4"),
        "IPv6" => Some("IPv6"),
        _ => None,
    };
    let families: BTreeSet<_> = spec.ip_families.iter().filter_map(|f| known(f)).collect();
    if !families.is_empty() {
        families
    } else if spec.is_headless() {
        BTreeSet::from(["IPv4", "IPv6"])
    } else {
        BTreeSet::from([if spec.cluster_ip.contains(':') { "IPv6" } else { "IPv4" }])
    }
}

/// Plans the slices of one address family.
fn plan(
    address_type: &'static str,
    service: &Cached,
    labels: &BTreeMap<String, String>,
    mut wanted: Wanted,
    existing: &[Slice],
    indexes: &[usize],
    changes: &mut Changes,
) {
    let created_before = changes.create.len();
    let mut by_ports: BTreeMap<Vec<EndpointPort>, Vec<usize>> = BTreeMap::new();
    let mut delete = Vec::new();
    for &i in indexes {
        if is_controlled_by(&existing[i].cached, service) {
            let mut ports = existing[i].view.ports.clone();
            ports.sort();
            by_ports.entry(ports).or_default().push(i);
        } else {
            delete.push(i);
        }
    }
    // A service always has a slice, if an empty one, so that its watchers know that it is looked after.
    let placeholder = wanted.values().all(Vec::is_empty);
    if placeholder {
        wanted = Wanted::from([(Vec::new(), Vec::new())]);
    }
    for (ports, endpoints) in wanted {
        let mine = by_ports.remove(&ports).unwrap_or_default();
        let kept = spread(address_type, &ports, endpoints, labels, existing, mine, changes, &mut delete);
        if placeholder && !kept {
            changes.create.push(Target { address_type, ports, endpoints: Vec::new() });
        }
    }
    delete.extend(by_ports.into_values().flatten());
    debug_assert!(changes.create.len() >= created_before);
    changes.delete.extend(delete);
}

/// Spreads the endpoints that have the same ports over slices; whether an existing slice stays.
#[allow(clippy::too_many_arguments, reason = "the state of one pass over the slices, used here only")]
fn spread(
    address_type: &'static str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
    labels: &BTreeMap<String, String>,
    existing: &[Slice],
    mine: Vec<usize>,
    changes: &mut Changes,
    delete: &mut Vec<usize>,
) -> bool {
    let placeholder = endpoints.is_empty();
    let mut missing: BTreeMap<_, &Endpoint> = endpoints.iter().map(|e| (e.identity(), e)).collect();
    let mut update: Vec<(usize, Vec<Endpoint>)> = Vec::new();
    let mut unchanged: Vec<usize> = Vec::new();
    for i in mine {
        let slice = &existing[i];
        let mut stay = Vec::new();
        let mut changed = false;
        for old in &slice.view.endpoints {
            if let Some(new) = missing.remove(&old.identity()) {
                changed |= new != old;
                stay.push(new.clone());
            }
        }
        let same_labels = slice.cached.labels().len() == labels.len()
            && labels.iter().all(|(k, v)| slice.cached.label(k) == Some(v));
        changes.removed += slice.view.endpoints.len() - stay.len();
        let emptied = stay.is_empty() && (!slice.view.endpoints.is_empty() || !placeholder);
        if emptied || (placeholder && !(unchanged.is_empty() && update.is_empty())) {
            delete.push(i);
        } else if changed || stay.len() != slice.view.endpoints.len() || !same_labels {
            update.push((i, stay));
        } else {
            unchanged.push(i);
        }
    }
    let mut missing: Vec<Endpoint> = missing.into_values().cloned().collect();
    changes.added += missing.len();
    update.sort_by_key(|(_, e)| std::cmp::Reverse(e.len()));
    for (_, endpoints) in &mut update {
        let room = MAX_ENDPOINTS.saturating_sub(endpoints.len()).min(missing.len());
        endpoints.extend(missing.drain(..room));
    }
    while !missing.is_empty() {
        let fits = |i: &usize| existing[*i].view.endpoints.len() + missing.len() <= MAX_ENDPOINTS;
        let best = (missing.len() < MAX_ENDPOINTS)
            .then(|| {
                unchanged
                    .iter()
                    .copied()
                    .filter(|i| fits(i))
                    .max_by_key(|i| existing[*i].view.endpoints.len())
            })
            .flatten();
        let take = missing.len().min(MAX_ENDPOINTS);
        match best {
            Some(i) => {
                unchanged.retain(|j| *j != i);
                let mut endpoints = existing[i].view.endpoints.clone();
                endpoints.append(&mut missing);
                update.push((i, endpoints));
            }
            None => {
                let endpoints = missing.drain(..take).collect();
                changes.create.push(Target { address_type, ports: ports.to_vec(), endpoints });
            }
        }
    }
    let kept = !update.is_empty() || !unchanged.is_empty();
    changes.update.extend(
        update
            .into_iter()
            .map(|(i, endpoints)| (i, Target { address_type, ports: ports.to_vec(), endpoints })),
    );
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Cached {
        Cached::new(r#"{"metadata":{"name":"web","namespace":"d","uid":"s","labels":{"app":"w"}}}"#.into())
            .unwrap()
    }

    fn endpoint(n: usize, ready: bool) -> Endpoint {
        Endpoint {
            addresses: vec![format!("10.0.{}.{}", n / 256, n % 256)],
            conditions: Conditions { ready: Some(ready), ..Conditions::default() },
            ..Endpoint::default()
        }
    }

    fn ports(n: i32) -> Vec<EndpointPort> {
        vec![EndpointPort { port: n, protocol: "TCP".into(), ..EndpointPort::default() }]
    }

    fn slice(name: &str, port: Vec<EndpointPort>, endpoints: Vec<Endpoint>) -> Slice {
        let json = json!({"metadata": {"name": name, "namespace": "d", "labels": labels(&service(), false),
            "ownerReferences": [{"uid": "s", "controller": true}]}, "addressType": "IPv4", "ports": port, "endpoints": endpoints});
        let cached = Cached::new(json.to_string().into()).unwrap();
        Slice { view: cached.view().unwrap(), cached }
    }

    fn changes(wanted: Vec<(Vec<EndpointPort>, Vec<Endpoint>)>, existing: &[Slice]) -> Changes {
        let mut changes = Changes::default();
        let indexes: Vec<usize> = (0..existing.len()).collect();
        let labels = labels(&service(), false);
        plan("IPv4", &service(), &labels, wanted.into_iter().collect(), existing, &indexes, &mut changes);
        changes
    }

    fn range(n: std::ops::Range<usize>) -> Vec<Endpoint> {
        n.map(|i| endpoint(i, true)).collect()
    }

    #[test]
    fn a_service_without_pods_has_one_empty_slice() {
        let first = changes(vec![], &[]);
        assert_eq!(first.create.len(), 1);
        assert!(first.create[0].endpoints.is_empty());
        assert_eq!(changes(vec![], &[slice("a", vec![], vec![])]), Changes::default());
    }

    #[test]
    fn endpoints_that_come_and_go_are_counted() {
        let found = changes(vec![(ports(80), range(2..5))], &[slice("a", ports(80), range(0..3))]);
        assert_eq!((found.added, found.removed), (2, 2));
        let gone = changes(vec![], &[slice("a", ports(80), range(0..3))]);
        assert_eq!((gone.added, gone.removed), (0, 0));
    }

    #[test]
    fn nothing_changes_without_reason() {
        assert_eq!(
            changes(vec![(ports(80), range(0..3))], &[slice("a", ports(80), range(0..3))]),
            Changes::default()
        );
    }

    #[test]
    fn slices_are_filled_to_100() {
        let made = changes(vec![(ports(80), range(0..250))], &[]);
        let sizes: Vec<_> = made.create.iter().map(|t| t.endpoints.len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
    }

    #[test]
    fn new_endpoints_go_where_they_fit_best() {
        let existing = [slice("a", ports(80), range(0..60)), slice("b", ports(80), range(100..195))];
        let mut wanted = range(0..60);
        wanted.extend(range(100..195));
        wanted.extend(range(200..204));
        let got = changes(vec![(ports(80), wanted)], &existing);
        assert!(got.create.is_empty() && got.delete.is_empty());
        assert_eq!(got.update.len(), 1);
        assert_eq!((got.update[0].0, got.update[0].1.endpoints.len()), (1, 99));
    }

    #[test]
    fn readiness_and_ports_move_endpoints() {
        let existing = [slice("a", ports(80), range(0..2))];
        let got = changes(vec![(ports(80), vec![endpoint(0, false), endpoint(1, true)])], &existing);
        assert_eq!(got.update[0].1.endpoints, vec![endpoint(0, false), endpoint(1, true)]);
        let got = changes(vec![(ports(81), range(0..2))], &existing);
        assert_eq!((got.create.len(), got.update.len(), &*got.delete), (1, 0, &[0][..]));
        let got = changes(vec![], &existing);
        assert_eq!((got.create.len(), got.update.len(), &*got.delete), (1, 0, &[0][..]));
    }

    #[test]
    fn hints_follow_the_distribution() {
        let h = |d: &str| hints(Some(d), true, Some("z"), Some("n"));
        assert_eq!(h("PreferSameZone").map(|h| (h.for_zones.len(), h.for_nodes.len())), Some((1, 0)));
        assert_eq!(h("PreferSameNode").map(|h| (h.for_zones.len(), h.for_nodes.len())), Some((1, 1)));
        assert_eq!(hints(None, true, Some("z"), Some("n")), None);
        assert_eq!(hints(Some("PreferClose"), false, Some("z"), None), None);
    }
}
