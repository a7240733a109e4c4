//! Rows of services, endpoints, `networking.k8s.io` and `discovery.k8s.io`.

use serde_json::Value;

use super::{
    AGE, NAME, Printer, SELECTOR, cells,
    format::{self, age, format_label_selector},
    name, text,
};
use crate::view::View;

/// `Service`
pub const SERVICE: Printer = Printer {
    columns: &[
        NAME,
        text("Type", "How the service is exposed."),
        text("Cluster-IP", "Address within the cluster."),
        text("External-IP", "Addresses from outside."),
        text("Port(s)", "Ports, with node ports after a colon."),
        AGE,
        SELECTOR,
    ],
    row: service,
};

fn service(o: &Value, now_s: i64) -> Vec<Value> {
    let ports: Vec<String> = o
        .items("spec.ports")
        .iter()
        .map(|p| match (p.int_at("port"), p.int_at("nodePort"), p.str_at("protocol")) {
            (port, node_port, protocol) if node_port > 0 => format!("{port}:{node_port}/{protocol}"),
            (port, _, protocol) => format!("{port}/{protocol}"),
        })
        .collect();
    let none_if_empty = |s: String| if s.is_empty() { "<none>".to_owned() } else { s };
    let external = o.strings("spec.externalIPs");
    let external = match o.str_at("spec.type") {
        "ClusterIP" | "NodePort" => none_if_empty(external.join(",")),
        "LoadBalancer" => {
            let mut all = ingress_points(o);
            all.extend(external);
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => o.str_at("spec.externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    };
    cells![
        name(o),
        o.str_at("spec.type"),
        o.strings("spec.clusterIPs").first().copied().unwrap_or("<none>"),
        external,
        none_if_empty(ports.join(",")),
        age(o, now_s),
        format::labels(o.at("spec.selector")),
    ]
}

/// Addresses of a load balancer, sorted.
fn ingress_points(o: &Value) -> Vec<&str> {
    let mut all: Vec<&str> = o
        .items("status.loadBalancer.ingress")
        .iter()
        .map(|i| format::or(i, "ip", i.str_at("hostname")))
        .filter(|s| !s.is_empty())
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// `Endpoints`
pub const ENDPOINTS: Printer = Printer {
    columns: &[NAME, text("Endpoints", "Addresses and ports."), AGE],
    row: |o, now_s| {
        let mut all = Vec::new();
        for subset in o.items("subsets") {
            let addresses = subset.items("addresses").iter().map(|a| a.str_at("ip"));
            if subset.items("ports").is_empty() {
                all.extend(addresses.map(str::to_owned));
                continue;
            }
            for port in subset.items("ports") {
                let port = port.int_at("port");
                all.extend(addresses.clone().map(|ip| {
                    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
                }));
            }
        }
        let none = o.items("subsets").is_empty();
        cells![name(o), if none { "<none>".to_owned() } else { format::first(&all, 3) }, age(o, now_s)]
    },
};

/// `EndpointSlice`
pub const ENDPOINT_SLICE: Printer = Printer {
    columns: &[
        NAME,
        text("AddressType", "Family of the addresses."),
        text("Ports", "Ports of every endpoint."),
        text("Endpoints", "Addresses of the endpoints."),
        AGE,
    ],
    row: |o, now_s| {
        let ports: Vec<String> = o
            .items("ports")
            .iter()
            .map(|p| {
                format::plain(p.at("port"))
                    .or_else(|| format::plain(p.at("name")))
                    .unwrap_or_else(|| "*".to_owned())
            })
            .collect();
        let addresses: Vec<String> =
            o.items("endpoints").iter().flat_map(|e| e.strings("addresses")).map(str::to_owned).collect();
        cells![
            name(o),
            o.str_at("addressType"),
            format::first_or_unset(&ports),
            format::first_or_unset(&addresses),
            age(o, now_s),
        ]
    },
};

/// `Ingress`
pub const INGRESS: Printer = Printer {
    columns: &[
        NAME,
        text(
            "Class",
            "The name of the IngressClass resource that should be used for additional configuration",
        ),
        text("Hosts", "Hosts that incoming requests are matched against before the ingress rule"),
        text("Address", "Address is a list containing ingress points for the load-balancer"),
        text("Ports", "Ports of TLS configurations that open"),
        AGE,
    ],
    row: |o, now_s| {
        cells![
            name(o),
            o.str_opt("spec.ingressClassName").unwrap_or("<none>"),
            hosts(o.items("spec.rules")),
            ingress_points(o).join(","),
            if o.is_set("spec.tls") { "80, 443" } else { "80" },
            age(o, now_s),
        ]
    },
};

fn hosts(rules: &[Value]) -> String {
    let mut list: Vec<&str> = Vec::new();
    let mut more = false;
    for rule in rules {
        more |= list.len() == 3;
        let host = rule.str_at("host");
        if !more && !host.is_empty() {
            list.push(host);
        }
    }
    match (list.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (_, true) => format!("{} + {} more...", list.join(","), rules.len() - 3),
        (_, false) => list.join(","),
    }
}

/// `IngressClass`
pub const INGRESS_CLASS: Printer = Printer {
    columns: &[
        NAME,
        text("Controller", "Controller that is responsible for handling this class"),
        text("Parameters", "A reference to a resource with additional parameters"),
        AGE,
    ],
    row: |o, now_s| {
        let default = annotation(o, "ingressclass.kubernetes.io/is-default-class") == "true";
        let parameters = o.at("spec.parameters");
        let parameters = if parameters.is_null() {
            "<none>".to_owned()
        } else {
            let group = parameters.str_opt("apiGroup").map_or_else(String::new, |g| format!(".{g}"));
            format!("{}{group}/{}", parameters.str_at("kind"), parameters.str_at("name"))
        };
        cells![or_default(name(o), default), o.str_at("spec.controller"), parameters, age(o, now_s)]
    },
};

/// The annotation of this key, or the empty string.
pub(super) fn annotation<'a>(object: &'a Value, key: &str) -> &'a str {
    object.at("metadata.annotations").get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The name, marked where it is the default of its kind.
pub(super) fn or_default(name: &str, default: bool) -> String {
    format!("{name}{}", if default { " (default)" } else { "" })
}

/// `IPAddress`
pub const IP_ADDRESS: Printer = Printer {
    columns: &[NAME, text("ParentRef", "What the address belongs to.")],
    row: |o, _| {
        let parent = o.at("spec.parentRef");
        let mut text = "<none>".to_owned();
        if !parent.is_null() {
            text = parent.str_at("resource").to_lowercase();
            if parent.is_set("group") {
                text.push_str(&format!(".{}", parent.str_at("group").to_lowercase()));
            }
            if parent.is_set("namespace") {
                text.push_str(&format!("/{}", parent.str_at("namespace")));
            }
            text.push_str(&format!("/{}", parent.str_at("name")));
        }
        cells![name(o), text]
    },
};

/// `NetworkPolicy`
pub const NETWORK_POLICY: Printer = Printer {
    columns: &[NAME, text("Pod-Selector", "Pods the policy is for."), AGE],
    row: |o, now_s| cells![name(o), format_label_selector(o.at("spec.podSelector")), age(o, now_s)],
};

/// `ServiceCIDR`
pub const SERVICE_CIDR: Printer = Printer {
    columns: &[NAME, text("CIDRs", "Ranges that services get addresses from."), AGE],
    row: |o, now_s| cells![name(o), o.strings("spec.cidrs").join(","), age(o, now_s)],
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(printer: Printer, object: Value, expected: &str) {
        let cells: Vec<String> = (printer.row)(&object, 60)
            .iter()
            .map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned))
            .collect();
        assert_eq!(cells.join(" | "), expected, "{object}");
    }

    #[test]
    fn services() {
        let meta = json!({"name": "s", "creationTimestamp": "1970-01-01T00:00:00Z"});
        check(
            SERVICE,
            json!({"metadata": meta, "spec": {"type": "NodePort", "clusterIPs": ["10.0.0.1"], "selector": {"a": "b"},
                "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
            "s | NodePort | 10.0.0.1 | <none> | 80:30080/TCP,53/UDP | 60s | a=b",
        );
        check(
            SERVICE,
            json!({"metadata": meta, "spec": {"type": "LoadBalancer", "clusterIPs": ["None"]}}),
            "s | LoadBalancer | None | <pending> | <none> | 60s | <none>",
        );
        check(
            SERVICE,
            json!({"metadata": meta, "spec": {"type": "LoadBalancer", "externalIPs": ["1.1.1.1"]},
                "status": {"loadBalancer": {"ingress": [{"ip": "9.9.9.9"}, {"hostname": "a.b"}]}}}),
            "s | LoadBalancer | <none> | 9.9.9.9,a.b,1.1.1.1 | <none> | 60s | <none>",
        );
        check(
            ENDPOINTS,
            json!({"metadata": meta, "subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "f::1"}, {"ip": "c"}, {"ip": "d"}], "ports": [{"port": 80}]}]}),
            "s | 1.1.1.1:80,[f::1]:80,c:80 + 1 more... | 60s",
        );
        check(
            INGRESS,
            json!({"metadata": meta, "spec": {"rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}], "tls": [{}]}}),
            "s | <none> | a,b,c + 1 more... |  | 80, 443 | 60s",
        );
    }
}
