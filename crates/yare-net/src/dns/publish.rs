//! Makes cluster DNS known as the Service `kube-dns`, with one EndpointSlice for each node that serves it.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

const NAMESPACE: &str = "kube-system";
const SERVICE: &str = "kube-dns";
const MANAGER: &str = "yare-dns";

/// Applies the Service at `cluster_ip` and this node's slice, which sends to `server`.
pub async fn publish(
    client: &kube::Client,
    cluster_ip: IpAddr,
    server: SocketAddr,
    node: &str,
) -> Result<(), kube::Error> {
    let ports = [("dns", "UDP"), ("dns-tcp", "TCP")];
    let labels = json!({
        "k8s-app": "kube-dns",
        "kubernetes.io/cluster-service": "true",
        "kubernetes.io/name": "CoreDNS",
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "clusterIP": cluster_ip,
            // Every node answers its own pods.
            "internalTrafficPolicy": "Local",
            "ports": ports.map(|(name, protocol)| json!({"name": name, "protocol": protocol, "port": 53})),
        },
    });
    let family = if server.is_ipv4() { "IPv4" } else { "IPv6" };
    let name = format!("{SERVICE}-{node}");
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {
            "kubernetes.io/service-name": SERVICE,
            "endpointslice.kubernetes.io/managed-by": MANAGER,
        }},
        "addressType": family,
        "endpoints": [{"addresses": [server.ip()], "conditions": {"ready": true}, "nodeName": node}],
        "ports": ports.map(|(name, protocol)| {
            json!({"name": name, "protocol": protocol, "port": server.port()})
        }),
    });
    let params = PatchParams::apply(MANAGER).force();
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    services.patch(SERVICE, &params, &Patch::Apply(&service)).await?;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    slices.patch(&name, &params, &Patch::Apply(&slice)).await?;
    Ok(())
}
