//! The Kubernetes DNS schema, as questions and answers.
#![allow(clippy::unwrap_used, reason = "tests")]

use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value, json};
use yare_net::dns::zone::{Answer, Zone};

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local");
    for namespace in ["default", "kube-system"] {
        zone.set_namespace(namespace, true);
    }
    let mut service = |name: &str, spec: Value| {
        zone.set_service("default", name, Some(serde_json::from_value(json!({"spec": spec})).unwrap()));
    };
    let port = json!([{"name": "http", "protocol": "TCP", "port": 80}]);
    service("web", json!({"clusterIPs": ["10.43.0.7", "fd43::7"], "ports": port}));
    service("peers", json!({"clusterIPs": ["None"], "ports": port}));
    service("empty", json!({"clusterIPs": ["None"], "ports": port}));
    service("out", json!({"type": "ExternalName", "externalName": "example.org"}));
    let slice = json!({
        "endpoints": [
            {"addresses": ["10.42.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.42.0.6"], "conditions": {}},
            {"addresses": ["10.42.0.9"], "conditions": {"ready": false}},
        ],
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    });
    zone.set_slice("default", "peers", "peers-x", Some(serde_json::from_value(slice).unwrap()));
    zone
}

fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
    let name = Name::from_ascii(format!("{name}.")).unwrap();
    match zone.resolve(&name, kind) {
        Answer::Records { answers, .. } => {
            let mut data: Vec<String> = answers.iter().map(|r| r.data.to_string()).collect();
            data.sort();
            data.join(" | ")
        }
        Answer::Alias(_, target) => format!("alias {target}"),
        Answer::NoSuchName => "NXDOMAIN".into(),
        Answer::NotOurs => "not ours".into(),
    }
}

#[test]
fn schema() {
    use RecordType::{A, AAAA, CNAME, PTR, SRV, TXT};
    let zone = zone();
    let cases = [
        ("web.default.svc.cluster.local", A, "10.43.0.7"),
        ("WEB.default.SVC.cluster.local", A, "10.43.0.7"),
        ("web.default.svc.cluster.local", AAAA, "fd43::7"),
        ("web.default.svc.cluster.local", TXT, ""),
        ("_http._tcp.web.default.svc.cluster.local", SRV, "0 100 80 web.default.svc.cluster.local."),
        ("web.default.svc.cluster.local", SRV, "0 100 80 web.default.svc.cluster.local."),
        ("_http._udp.web.default.svc.cluster.local", SRV, "NXDOMAIN"),
        ("_http._tcp.web.default.svc.cluster.local", A, ""),
        ("peers.default.svc.cluster.local", A, "10.42.0.5 | 10.42.0.6"),
        ("db-0.peers.default.svc.cluster.local", A, "10.42.0.5"),
        ("10-42-0-6.peers.default.svc.cluster.local", A, "10.42.0.6"),
        ("10-42-0-9.peers.default.svc.cluster.local", A, "NXDOMAIN"),
        (
            "_http._tcp.peers.default.svc.cluster.local",
            SRV,
            "0 100 8080 10-42-0-6.peers.default.svc.cluster.local. | 0 100 8080 db-0.peers.default.svc.cluster.local.",
        ),
        ("empty.default.svc.cluster.local", A, "NXDOMAIN"),
        ("out.default.svc.cluster.local", A, "alias example.org."),
        ("out.default.svc.cluster.local", CNAME, "alias example.org."),
        ("10-1-2-3.default.pod.cluster.local", A, "10.1.2.3"),
        ("nonsense.default.pod.cluster.local", A, "NXDOMAIN"),
        ("default.svc.cluster.local", A, ""),
        ("absent.svc.cluster.local", A, "NXDOMAIN"),
        ("absent.default.svc.cluster.local", A, "NXDOMAIN"),
        ("web.kube-system.svc.cluster.local", A, "NXDOMAIN"),
        ("a.b.c.web.default.svc.cluster.local", A, "NXDOMAIN"),
        ("cluster.local", A, ""),
        ("dns-version.cluster.local", TXT, "1.1.0"),
        ("7.0.43.10.in-addr.arpa", PTR, "web.default.svc.cluster.local."),
        ("5.0.42.10.in-addr.arpa", PTR, "db-0.peers.default.svc.cluster.local."),
        ("1.1.1.1.in-addr.arpa", PTR, "not ours"),
        (
            "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.d.f.ip6.arpa",
            PTR,
            "web.default.svc.cluster.local.",
        ),
        ("example.org", A, "not ours"),
        ("notcluster.local", A, "not ours"),
    ];
    for (name, kind, expected) in cases {
        assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
    }
}

#[test]
fn srv_answers_carry_the_addresses_of_their_targets() {
    let name = Name::from_ascii("_http._tcp.web.default.svc.cluster.local.").unwrap();
    let Answer::Records { additionals, .. } = zone().resolve(&name, RecordType::SRV) else { panic!() };
    let data: Vec<String> = additionals.iter().map(|r| r.data.to_string()).collect();
    assert_eq!(data, ["10.43.0.7", "fd43::7"]);
}

#[test]
fn what_is_gone_is_forgotten_in_both_directions() {
    let mut zone = zone();
    zone.set_slice("default", "peers", "peers-x", None);
    zone.set_service("default", "web", None);
    assert_eq!(ask(&zone, "peers.default.svc.cluster.local", RecordType::A), "NXDOMAIN");
    assert_eq!(ask(&zone, "web.default.svc.cluster.local", RecordType::A), "NXDOMAIN");
    assert_eq!(ask(&zone, "7.0.43.10.in-addr.arpa", RecordType::PTR), "not ours");
    assert_eq!(ask(&zone, "5.0.42.10.in-addr.arpa", RecordType::PTR), "not ours");
}
