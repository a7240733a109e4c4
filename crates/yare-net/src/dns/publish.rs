//! Makes cluster DNS known as the Service `kube-dns`, with one EndpointSlice for each node that serves it.
//!
//! A node says on its own object where its DNS server is ([`ANNOTATION`]): more it may not. The control plane,
//! which may, makes the slices of it. A slice goes with its node.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::api::{Api, Patch, PatchParams};
use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{Backoff, Client, NODES};

use crate::ipam::Cidr;

/// On a node: where its DNS server is, `ADDRESS:PORT`.
pub const ANNOTATION: &str = "yare.io/cluster-dns";
const NAMESPACE: &str = "kube-system";
const SERVICE: &str = "kube-dns";
const MANAGER: &str = "yare-dns";
const PORTS: [(&str, &str); 2] = [("dns", "UDP"), ("dns-tcp", "TCP")];
/// Between attempts while the API server does not take what is published.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);

#[derive(Deserialize, Default)]
#[serde(default)]
struct Node {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata {
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    addresses: Vec<Address>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Address {
    address: String,
}

impl Node {
    /// Where its DNS server is. An address that is neither the node's nor in its range of pods is not believed: a
    /// node speaks for itself alone.
    fn server(&self) -> Option<SocketAddr> {
        let server: SocketAddr = self.metadata.annotations.get(ANNOTATION)?.parse().ok()?;
        let own = self.status.addresses.iter().any(|a| a.address.parse() == Ok(server.ip()));
        let ranges = self.spec.pod_cidrs.iter().filter_map(|range| range.parse::<Cidr>().ok());
        (own || ranges.into_iter().any(|range| range.contains(server.ip()))).then_some(server)
    }
}

/// Says on the object of the node `name` where its DNS server is, in the node's own name.
pub async fn tell(client: &Client, name: &str, server: SocketAddr) -> Result<(), kube::Error> {
    let patch = json!({"metadata": {"annotations": {ANNOTATION: server.to_string()}}});
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client.kube());
    nodes.patch_metadata(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

/// Publishes the Service at `cluster_ip` and the slices of all nodes, for as long as it runs.
pub async fn publish(client: Client, cluster_ip: IpAddr) {
    let kube = client.kube();
    let params = PatchParams::apply(MANAGER).force();
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    let services: Api<Service> = Api::namespaced(kube.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(kube, NAMESPACE);
    let mut changes = client.informers().of(NODES).subscribe();
    let mut published: HashMap<String, (String, SocketAddr)> = HashMap::new();
    while let Some(change) = changes.recv().await {
        let Some(node) = change.new else {
            // The slice is the garbage collector's.
            change.old.inspect(|old| drop(published.remove(old.name())));
            continue;
        };
        let Some(server) = node.view::<Node>().ok().and_then(|view| view.server()) else { continue };
        let wanted = (node.uid().to_owned(), server);
        if published.get(node.name()) == Some(&wanted) {
            continue;
        }
        // With the first server: a control plane without nodes has no DNS.
        if published.is_empty() {
            backoff.reset();
            let service = Patch::Apply(service(cluster_ip));
            while let Err(error) = services.patch(SERVICE, &params, &service).await {
                tracing::warn!(%error, "publishing cluster DNS, will retry");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
        backoff.reset();
        let slice = slice(node.name(), node.uid(), server);
        let name = format!("{SERVICE}-{}", node.name());
        while let Err(error) = slices.patch(&name, &params, &Patch::Apply(&slice)).await {
            tracing::warn!(%error, name, "publishing a node's DNS server, will retry");
            tokio::time::sleep(backoff.next_delay()).await;
        }
        published.insert(node.name().to_owned(), wanted);
    }
}

fn service(cluster_ip: IpAddr) -> Value {
    let labels = json!({
        "k8s-app": "kube-dns",
        "kubernetes.io/cluster-service": "true",
        "kubernetes.io/name": "CoreDNS",
    });
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "clusterIP": cluster_ip,
            // Every node answers its own pods.
            "internalTrafficPolicy": "Local",
            "ports": PORTS.map(|(name, protocol)| json!({"name": name, "protocol": protocol, "port": 53})),
        },
    })
}

fn slice(node: &str, uid: &str, server: SocketAddr) -> Value {
    let family = if server.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{SERVICE}-{node}"),
            "namespace": NAMESPACE,
            "labels": {
                "kubernetes.io/service-name": SERVICE,
                "endpointslice.kubernetes.io/managed-by": MANAGER,
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}],
        },
        "addressType": family,
        "endpoints": [{"addresses": [server.ip()], "conditions": {"ready": true}, "nodeName": node}],
        "ports": PORTS.map(|(name, protocol)| {
            json!({"name": name, "protocol": protocol, "port": server.port()})
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_speaks_for_itself_alone() {
        let server = |text: &str| {
            let node: Node = serde_json::from_value(json!({
                "metadata": {"annotations": {ANNOTATION: text}},
                "spec": {"podCIDRs": ["10.42.1.0/24"]},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n"}]},
            }))
            .unwrap();
            node.server().map(|s| s.to_string())
        };
        for good in ["10.42.1.1:53", "192.0.2.1:1053"] {
            assert_eq!(server(good).as_deref(), Some(good));
        }
        for bad in ["10.42.2.1:53", "192.0.2.2:53", "n:53", "", "10.42.1.1"] {
            assert_eq!(server(bad), None, "{bad}");
        }
    }
}
