//! From a service to addresses that can be connected to.

use serde_json::Value;
use yare_kinds::view::View;

use super::backend::ServiceRef;
use crate::core::Core;

/// How requests reach the pods of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Routing {
    /// To a ready endpoint. This is the default, other than upstream's: it needs no service proxy where the server
    /// runs (`--disable-agent` has none), and goes on to the next endpoint where one does not answer.
    #[default]
    Endpoints,
    /// To the service's own address.
    ClusterIp,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Target {
    /// `host:port`, with brackets where the host is an IPv6 address.
    pub fn authority(&self) -> String {
        crate::outbound::authority(&self.host, self.port)
    }
}

/// Label of an EndpointSlice that names its service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The EndpointSlices of a service.
pub fn slices(core: &Core, namespace: &str, name: &str) -> Vec<Value> {
    let snapshot = core.store().snapshot("discovery.k8s.io/endpointslices");
    snapshot
        .range(std::ops::Bound::Unbounded, &format!("{namespace}/"))
        .filter(|slice| slice.attrs.label(SERVICE_NAME) == Some(name))
        .filter_map(|slice| serde_json::from_slice(&slice.bytes).ok())
        .collect()
}

/// Where the service can be reached now: the one to try first, then the others.
pub fn targets(core: &Core, wanted: &ServiceRef) -> Result<Vec<Target>, String> {
    let Some(service) = core.read("services", &format!("{}/{}", wanted.namespace, wanted.name)) else {
        return Err(format!("service {:?} not found", wanted.name));
    };
    let slices = match core.config.aggregator_routing {
        Routing::Endpoints => slices(core, &wanted.namespace, &wanted.name),
        Routing::ClusterIp => Vec::new(),
    };
    let mut random = [0u8; 8];
    core.config.random.fill(&mut random);
    pick(&service, &slices, wanted.port, core.config.aggregator_routing, u64::from_le_bytes(random))
}

/// [`targets`] of what was read. `random` decides which endpoint comes first.
fn pick(
    service: &Value,
    slices: &[Value],
    port: u16,
    routing: Routing,
    random: u64,
) -> Result<Vec<Target>, String> {
    let name = service.str_at("metadata.name");
    let spec = service.at("spec");
    match spec.str_at("type") {
        "" | "ClusterIP" | "LoadBalancer" | "NodePort" => {}
        "ExternalName" => return Ok(vec![Target { host: spec.str_at("externalName").to_owned(), port }]),
        other => return Err(format!("unsupported service type {other:?}")),
    }
    let Some(service_port) = spec.items("ports").iter().find(|p| p.int_at("port") == i64::from(port)) else {
        return Err(format!("no service port {port} found for service {name:?}"));
    };
    if routing == Routing::ClusterIp {
        return match spec.str_at("clusterIP") {
            "" | "None" => Err("cannot route to service with ClusterIP \"None\"".into()),
            ip => Ok(vec![Target { host: ip.to_owned(), port }]),
        };
    }
    let port_name = service_port.str_at("name");
    // Addresses of the service's first family come first.
    let preferred = spec.strings("ipFamilies").first().copied().unwrap_or_default();
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for slice in slices {
        let found = slice.items("ports").iter().find(|p| p.str_at("name") == port_name);
        let Some(number) = found.and_then(|p| p.int_opt("port")).and_then(|p| u16::try_from(p).ok()) else {
            continue;
        };
        let list = if preferred.is_empty() || slice.str_at("addressType") == preferred {
            &mut first
        } else {
            &mut rest
        };
        let ready = slice
            .items("endpoints")
            .iter()
            .filter(|e| e.bool_opt("conditions.ready").unwrap_or(true))
            .filter_map(|e| e.strings("addresses").first().map(|a| (*a).to_owned()));
        list.extend(ready.map(|host| Target { host, port: number }));
    }
    for list in [&mut first, &mut rest] {
        if !list.is_empty() {
            let start = usize::try_from(random % list.len() as u64).unwrap_or(0);
            list.rotate_left(start);
        }
    }
    first.append(&mut rest);
    if first.is_empty() {
        return Err(format!("no endpoints available for service {name:?}"));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services() {
        let service = |more: Value| {
            let mut all = json!({"metadata": {"name": "s"}, "spec": {
                "clusterIP": "10.43.0.9", "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{"name": "https", "port": 443}, {"name": "other", "port": 8443}]}});
            for (k, v) in more.as_object().unwrap() {
                all["spec"][k] = v.clone();
            }
            all
        };
        let slice = |family: &str, name: &str, addresses: &[(&str, Value)]| {
            let endpoints: Vec<Value> = addresses
                .iter()
                .map(|(a, ready)| json!({"addresses": [a], "conditions": {"ready": ready}}))
                .collect();
            json!({"addressType": family, "endpoints": endpoints, "ports": [{"name": name, "port": 6443}]})
        };
        let yes = Value::Bool(true);
        let slices = [
            slice("IPv6", "https", &[("fd00::1", yes.clone())]),
            slice(
                "IPv4",
                "https",
                &[("10.1.0.1", yes.clone()), ("10.1.0.2", Value::Bool(false)), ("10.1.0.3", Value::Null)],
            ),
            slice("IPv4", "metrics", &[("10.9.9.9", yes)]),
        ];
        use Routing::{ClusterIp, Endpoints};
        for (more, slices, port, routing, random, want) in [
            (json!({}), &slices[..], 443, Endpoints, 0, Ok("10.1.0.1:6443 10.1.0.3:6443 [fd00::1]:6443")),
            (json!({}), &slices[..], 443, Endpoints, 1, Ok("10.1.0.3:6443 10.1.0.1:6443 [fd00::1]:6443")),
            (json!({}), &slices[..], 8443, Endpoints, 0, Err("no endpoints available for service \"s\"")),
            (json!({}), &slices[..], 80, Endpoints, 0, Err("no service port 80 found for service \"s\"")),
            (json!({}), &[], 443, Endpoints, 0, Err("no endpoints available for service \"s\"")),
            (json!({}), &[], 443, ClusterIp, 0, Ok("10.43.0.9:443")),
            (
                json!({"clusterIP": "None"}),
                &[],
                443,
                ClusterIp,
                0,
                Err("cannot route to service with ClusterIP \"None\""),
            ),
            (
                json!({"type": "ExternalName", "externalName": "a.example.com", "ports": []}),
                &[],
                1443,
                Endpoints,
                0,
                Ok("a.example.com:1443"),
            ),
            (json!({"type": "Odd"}), &[], 443, Endpoints, 0, Err("unsupported service type \"Odd\"")),
        ] {
            let got = pick(&service(more), slices, port, routing, random)
                .map(|all| all.iter().map(Target::authority).collect::<Vec<_>>().join(" "));
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned));
        }
    }
}
