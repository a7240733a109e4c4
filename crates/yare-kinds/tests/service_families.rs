//! Which address families a service gets: what it asks for, what it was, what the cluster has, and what follows.

use serde_json::{Value, json};
use yare_kinds::{strategy::core::service::families::assign, view::View};

const BOTH: &[&str] = &["IPv4", "IPv6"];
const FOUR: &[&str] = &["IPv4"];
const SIX: &[&str] = &["IPv6", "IPv4"];

fn service(spec: Value) -> Value {
    let mut service = json!({"spec": {"type": "ClusterIP", "selector": {"a": "b"}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        service["spec"][key] = value.clone();
    }
    service
}

#[track_caller]
fn gives(known: &[&str], old: Value, new: Value, expected: &str) {
    let old = if old.is_null() { old } else { service(old) };
    let mut new = service(new);
    let found = match assign(&mut new, &old, known, true) {
        Ok(()) => format!(
            "{} {} {}",
            new.str_at("spec.ipFamilyPolicy"),
            new.strings("spec.ipFamilies").join(","),
            new.strings("spec.clusterIPs").join(",")
        ),
        Err(errors) => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    };
    assert_eq!(found, expected, "{new:#}");
}

#[test]
fn new_services() {
    let none = || Value::Null;
    gives(FOUR, none(), json!({}), "SingleStack IPv4 ");
    gives(BOTH, none(), json!({}), "SingleStack IPv4 ");
    gives(SIX, none(), json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack IPv6,IPv4 ");
    gives(FOUR, none(), json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack IPv4 ");
    gives(
        FOUR,
        none(),
        json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
        "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services\n\
         spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
    );
    gives(
        BOTH,
        none(),
        json!({"clusterIP": "::1", "clusterIPs": ["::1", "1.2.3.4"]}),
        "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified",
    );
    gives(
        BOTH,
        none(),
        json!({"ipFamilies": ["IPv4", "IPv6"]}),
        "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
    );
    gives(
        FOUR,
        none(),
        json!({"clusterIP": "::1", "clusterIPs": ["::1"]}),
        "spec.clusterIPs[0]: Invalid value: [\"::1\"]: IPv6 is not configured on this cluster",
    );
    gives(BOTH, none(), json!({"clusterIP": "::1", "clusterIPs": ["::1"]}), "SingleStack IPv6 ::1");
    gives(
        BOTH,
        none(),
        json!({"clusterIP": "x", "clusterIPs": ["x"]}),
        "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
    );
}

#[test]
fn without_addresses() {
    let none = || Value::Null;
    let headless = |more: Value| {
        let mut spec = json!({"clusterIP": "None", "clusterIPs": ["None"]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    gives(FOUR, none(), headless(json!({})), "SingleStack IPv4 None");
    gives(FOUR, none(), headless(json!({"selector": null})), "RequireDualStack IPv4,IPv6 None");
    gives(
        FOUR,
        none(),
        headless(json!({"selector": null, "ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"})),
        "SingleStack IPv6 None",
    );
    gives(FOUR, none(), json!({"type": "ExternalName"}), "  ");
}

#[test]
fn changed_services() {
    let two = || {
        json!({"clusterIP": "1.2.3.4", "clusterIPs": ["1.2.3.4", "::1"], "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack"})
    };
    let with = |mut spec: Value, more: Value| {
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    gives(BOTH, two(), with(two(), json!({"ipFamilyPolicy": "SingleStack"})), "SingleStack IPv4 1.2.3.4");
    gives(
        BOTH,
        two(),
        with(two(), json!({"ipFamilyPolicy": null})),
        "RequireDualStack IPv4,IPv6 1.2.3.4,::1",
    );
    gives(
        BOTH,
        two(),
        with(two(), json!({"clusterIPs": ["1.2.3.4"], "ipFamilies": ["IPv4"]})),
        "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary cluster IP\n\
         spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary IP family",
    );
    let one = || {
        json!({"clusterIP": "1.2.3.4", "clusterIPs": ["1.2.3.4"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "PreferDualStack"})
    };
    // A cluster that has become dual-stack changes no service by itself.
    gives(BOTH, one(), one(), "PreferDualStack IPv4 1.2.3.4");
    gives(
        BOTH,
        one(),
        with(one(), json!({"ipFamilyPolicy": "RequireDualStack"})),
        "RequireDualStack IPv4,IPv6 1.2.3.4",
    );
}
