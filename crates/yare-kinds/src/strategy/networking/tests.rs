//! Cases for `networking.k8s.io`.

use serde_json::{Value, json};

use crate::{
    strategy::testing::{check_create, check_update, defaulted, named, strategy},
    view::View,
};

const GROUP: &str = "networking.k8s.io";

#[test]
fn ingresses() {
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    let base = named(json!({"spec": {"defaultBackend": backend}}));
    let path = |path: Value| json!({"spec": {"rules": [{"host": "a.b", "http": {"paths": [path]}}]}});
    check_create(
        GROUP,
        "Ingress",
        &base,
        &[
            (json!({}), &[]),
            (
                json!({"spec": {"defaultBackend": null}}),
                &["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"],
            ),
            (path(json!({"path": "/x", "pathType": "Prefix", "backend": backend})), &[]),
            (
                path(json!({"path": "/x", "backend": backend})),
                &["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"],
            ),
            (
                path(json!({"path": "x//..", "pathType": "Exact", "backend": {}})),
                &[
                    "spec.rules[0].http.paths[0].path: Invalid value: \"x//..\": must be an absolute path",
                    "spec.rules[0].http.paths[0].path: Invalid value: \"x//..\": must not contain '//'",
                    "spec.rules[0].http.paths[0].path: Invalid value: \"x//..\": cannot end with '/..'",
                    "spec.rules[0].http.paths[0].backend: Invalid value: \"\": resource or service backend is required",
                ],
            ),
            (
                json!({"spec": {"rules": [{"host": "1.2.3.4"}]}}),
                &["spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address"],
            ),
            (
                json!({"spec": {"defaultBackend": {"service": {"name": "", "port": {"name": null, "number": null}}}}}),
                &[
                    "spec.defaultBackend.service.name: Required value",
                    "spec.defaultBackend: Required value: port name or number is required",
                ],
            ),
            (
                json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "x"}}, "spec": {"ingressClassName": "y"}}),
                &[
                    "annotations.kubernetes.io/ingress.class: Invalid value: \"x\": must match `ingressClassName` when both are specified",
                ],
            ),
        ],
    );
}

#[test]
fn classes() {
    let base = json!({"metadata": {"name": "c"}, "spec": {"controller": "a.b/c", "parameters": {"kind": "K", "name": "n"}}});
    assert_eq!(defaulted(GROUP, "IngressClass", base.clone()).str_at("spec.parameters.scope"), "Cluster");
    check_create(
        GROUP,
        "IngressClass",
        &base,
        &[
            (json!({}), &[]),
            (
                json!({"spec": {"controller": "c"}}),
                &[
                    "spec.controller: Invalid value: \"c\": must be a domain-prefixed path (such as \"acme.io/foo\")",
                ],
            ),
            (
                json!({"spec": {"parameters": {"scope": "Namespace"}}}),
                &["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"],
            ),
        ],
    );
    check_update(
        GROUP,
        "IngressClass",
        &base,
        &[(
            json!({"spec": {"controller": "a.b/d"}}),
            &["spec.controller: Invalid value: \"a.b/d\": field is immutable"],
        )],
    );
}

#[test]
fn policies() {
    let base = named(json!({"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]}}));
    let policy = defaulted(GROUP, "NetworkPolicy", base.clone());
    assert_eq!(policy.at("spec.policyTypes"), &json!(["Ingress", "Egress"]));
    assert_eq!(policy.at("spec.egress"), &json!([{"ports": [{"port": 53, "protocol": "TCP"}]}]));
    let from = |peer: Value| json!({"spec": {"ingress": [{"from": [peer]}]}});
    check_create(
        GROUP,
        "NetworkPolicy",
        &base,
        &[
            (json!({}), &[]),
            (from(json!({})), &["spec.ingress[0].from[0]: Required value: must specify a peer"]),
            (from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}})), &[]),
            (
                from(
                    json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}, "podSelector": {}}),
                ),
                &[
                    "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
                    "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
                ],
            ),
            (
                json!({"spec": {"egress": [{"ports": [{"port": 80, "endPort": 79}, {"port": "http", "endPort": 1}]}]}}),
                &[
                    "spec.egress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
                    "spec.egress[0].ports[1].endPort: Invalid value: 1: may not be specified when `port` is non-numeric",
                ],
            ),
            (
                json!({"spec": {"policyTypes": ["X"]}}),
                &["spec.policyTypes[0]: Unsupported value: \"X\": supported values: \"Ingress\", \"Egress\""],
            ),
        ],
    );
}

#[test]
fn addresses() {
    assert!(strategy(GROUP, "IPAddress").validate_name("10.0.0.1").is_empty());
    assert!(!strategy(GROUP, "IPAddress").validate_name("10.0.0.01").is_empty());
    check_create(
        GROUP,
        "IPAddress",
        &json!({"metadata": {"name": "10.0.0.1"}}),
        &[
            (json!({}), &["spec.parentRef: Required value"]),
            (json!({"spec": {"parentRef": {"resource": "services", "name": "s", "namespace": "n"}}}), &[]),
            (
                json!({"spec": {"parentRef": {}}}),
                &["spec.parentRef.resource: Required value", "spec.parentRef.name: Required value"],
            ),
        ],
    );
    let base = json!({"metadata": {"name": "k"}, "spec": {"cidrs": ["10.0.0.0/16"]}});
    check_create(
        GROUP,
        "ServiceCIDR",
        &base,
        &[
            (json!({}), &[]),
            (json!({"spec": {"cidrs": []}}), &["spec.cidrs: Required value: at least one CIDR required"]),
            (
                json!({"spec": {"cidrs": ["10.0.0.0/16", "10.1.0.0/16"]}}),
                &[
                    "spec.cidrs: Invalid value: [\"10.0.0.0/16\",\"10.1.0.0/16\"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
                ],
            ),
        ],
    );
    check_update(
        GROUP,
        "ServiceCIDR",
        &base,
        &[
            (json!({"spec": {"cidrs": ["10.0.0.0/16", "fd00::/64"]}}), &[]),
            (
                json!({"spec": {"cidrs": ["10.1.0.0/16"]}}),
                &["spec.cidrs[0]: Invalid value: \"10.1.0.0/16\": field is immutable"],
            ),
        ],
    );
}
