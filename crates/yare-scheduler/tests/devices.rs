//! Where pods with claims for devices go, what becomes of their claims there, and what wakes them, as data.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{cached, cluster, merge, node, pod};
use tokio::time::Instant;
use yare_client::ObjectKey;
use yare_scheduler::{
    cluster::Cluster,
    cycle,
    devices::{allocator::Allocation, state::Devices},
    plugins::{Events, State},
    pod::PodInfo,
    queue::Queue,
};

const DRIVER: &str = "gpu.example.com";

fn class(extra: Value) -> Value {
    let mut out = json!({"kind": "DeviceClass", "metadata": {"name": "gpu"}, "spec": {}});
    merge(&mut out, &extra);
    out
}

fn merged(mut into: Value, from: Value) -> Value {
    merge(&mut into, &from);
    into
}

fn slice(node: &str, devices: &[&str]) -> Value {
    let devices: Vec<Value> = devices.iter().map(|name| json!({"name": name})).collect();
    json!({"kind": "ResourceSlice", "metadata": {"name": format!("s-{node}")}, "spec": {
        "driver": DRIVER, "nodeName": node, "devices": devices,
        "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}}})
}

fn claim(name: &str, extra: Value) -> Value {
    let mut out = json!({
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"},
        "spec": {"devices": {"requests": [
            {"name": "r", "exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1}}]}},
        "status": {},
    });
    merge(&mut out, &extra);
    out
}

fn taint_rule(selector: Value, effect: &str) -> Value {
    json!({"kind": "DeviceTaintRule", "metadata": {"name": "broken"},
           "spec": {"deviceSelector": selector, "taint": {"key": "broken", "effect": effect}}})
}

/// A list: one device of a class that has none, or one of `gpu`.
fn either(name: &str) -> Value {
    let entry = |name: &str, expression: &str| {
        json!({"name": name, "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1,
               "selectors": [{"cel": {"expression": expression}}]})
    };
    let mut out = claim(name, json!({}));
    out["spec"]["devices"]["requests"] = json!([{"name": "r", "firstAvailable": [
        entry("best", r#"device.driver == "none""#), entry("good", "true")]}]);
    out
}

fn allocated(name: &str, node: &str, device: &str, extra: Value) -> Value {
    let mut out = claim(
        name,
        json!({"status": {"allocation": {
            "devices": {"results": [{"request": "r", "driver": DRIVER, "pool": node, "device": device}]},
            "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": [node]}]}]}}}}),
    );
    merge(&mut out["status"], &extra);
    out
}

fn uses(claims: &[&str]) -> Value {
    let entries: Vec<Value> = claims.iter().map(|c| json!({"name": c, "resourceClaimName": c})).collect();
    json!({"spec": {"resourceClaims": entries}})
}

fn take_in(cluster: &mut Cluster, objects: &[Value]) {
    for object in objects {
        let cached = cached(object);
        let devices = &mut cluster.devices;
        match object["kind"].as_str().unwrap() {
            "ResourceClaim" => drop(devices.set_claim(cached).unwrap()),
            "DeviceClass" => devices.set_class(&cached).unwrap(),
            "ResourceSlice" => devices.set_slice(&cached).unwrap(),
            "DeviceTaintRule" => drop(devices.set_rule(&cached).unwrap()),
            other => panic!("{other}"),
        }
    }
}

/// `node: claim=device …`, or the message.
fn place(cluster: &Cluster, pod: &PodInfo) -> String {
    match cycle::schedule(pod, cluster, &mut 0, 7) {
        Ok(name) => {
            let decided = State::new(pod, cluster).decide_devices(cluster, &name).unwrap();
            let devices_of = |allocation: &Allocation| {
                let results = allocation.to_json(String::new)["devices"]["results"].clone();
                let names =
                    results.as_array().unwrap().iter().map(|r| r["device"].as_str().unwrap().to_owned());
                names.collect::<Vec<_>>().join("+")
            };
            let made = decided.extended.iter().map(|(_, a)| format!(" made={}", devices_of(a)));
            decided.claims.iter().fold(format!("{name}:"), |text, (claim, allocation)| {
                let device = allocation.as_ref().map_or("there".into(), devices_of);
                format!("{text} {}={device}", claim.object.name())
            }) + &made.collect::<String>()
        }
        Err(why) => why.message(),
    }
}

/// What it shows, objects, the new pod, what becomes of it.
type Case = (&'static str, Vec<Value>, Value, &'static str);

#[test]
fn places() {
    let made = |pod: &str, owner: &str| {
        claim(
            "made",
            json!({"metadata": {"ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": owner, "controller": true}]}}),
        )
    };
    let of_template = json!({
        "spec": {"resourceClaims": [{"name": "g", "resourceClaimTemplateName": "t"}]},
        "status": {"resourceClaimStatuses": [{"name": "g", "resourceClaimName": "made"}]},
    });
    let reserved = |uid: &str| json!({"reservedFor": [{"resource": "pods", "name": uid, "uid": uid}]});
    let failing = claim("c", json!({}));
    let mut failing = failing;
    failing["spec"]["devices"]["requests"][0]["exactly"]["selectors"] =
        json!([{"cel": {"expression": format!(r#"device.attributes["{DRIVER}"].none"#)}}]);
    let mut attaching = allocated("c", "b", "x", json!({}));
    attaching["status"]["allocation"]["devices"]["results"][0]["bindingConditions"] = json!(["ready"]);
    let mut late = attaching.clone();
    late["status"]["allocation"]["allocationTimestamp"] = "2026-01-01T00:00:00Z".into();
    let none = "0/2 nodes are available: ";
    let cases: Vec<Case> = vec![
        (
            "where the device is",
            vec![class(json!({})), slice("b", &["x"]), claim("c", json!({}))],
            uses(&["c"]),
            "b: c=x",
        ),
        (
            "two claims",
            vec![
                class(json!({})),
                slice("a", &["x"]),
                slice("b", &["x", "y"]),
                claim("c", json!({})),
                claim("d", json!({})),
            ],
            uses(&["c", "d"]),
            "b: c=x d=y",
        ),
        (
            "no device is free",
            vec![
                class(json!({})),
                slice("b", &["x"]),
                claim("c", json!({})),
                allocated("d", "b", "x", json!({})),
            ],
            uses(&["c"]),
            "0/2 nodes are available: 2 cannot allocate all claims.",
        ),
        (
            "a rule keeps pods from the device",
            vec![
                class(json!({})),
                slice("b", &["x", "y"]),
                claim("c", json!({})),
                taint_rule(json!({"driver": DRIVER, "pool": "b", "device": "x"}), "NoSchedule"),
            ],
            uses(&["c"]),
            "b: c=y",
        ),
        (
            "a rule for all devices",
            vec![
                class(json!({})),
                slice("b", &["x"]),
                claim("c", json!({})),
                taint_rule(json!({}), "NoExecute"),
            ],
            uses(&["c"]),
            "0/2 nodes are available: 2 cannot allocate all claims.",
        ),
        (
            "rules that are about other devices, or none",
            vec![
                class(json!({})),
                slice("b", &["x"]),
                claim("c", json!({})),
                taint_rule(json!({"driver": "nic.example.com"}), "NoSchedule"),
                merged(taint_rule(Value::Null, "NoSchedule"), json!({"metadata": {"name": "none"}})),
                merged(taint_rule(json!({}), "None"), json!({"metadata": {"name": "no effect"}})),
            ],
            uses(&["c"]),
            "b: c=x",
        ),
        (
            "a rule that is tolerated",
            vec![
                class(json!({})),
                slice("b", &["x"]),
                merged(
                    claim("c", json!({})),
                    json!({"spec": {"devices": {"requests": [{"name": "r", "exactly": {
                        "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1,
                        "tolerations": [{"operator": "Exists", "key": "broken"}]}}]}}}),
                ),
                taint_rule(json!({}), "NoSchedule"),
            ],
            uses(&["c"]),
            "b: c=x",
        ),
        (
            "allocated already",
            vec![class(json!({})), slice("b", &["x"]), allocated("c", "b", "x", reserved("other"))],
            uses(&["c"]),
            "b: c=there",
        ),
        (
            "allocated where the pod cannot be",
            vec![allocated("c", "z", "x", json!({}))],
            uses(&["c"]),
            "0/2 nodes are available: 2 resourceclaim not available on the node.",
        ),
        (
            "no such class",
            vec![claim("c", json!({}))],
            uses(&["c"]),
            "0/2 nodes are available: request r: device class gpu does not exist.",
        ),
        (
            "no such claim",
            vec![],
            uses(&["c"]),
            "0/2 nodes are available: could not find claim \"default/c\".",
        ),
        (
            "a claim on its way out",
            vec![claim("c", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}))],
            uses(&["c"]),
            "0/2 nodes are available: resourceclaim \"c\" is being deleted.",
        ),
        (
            "made for the pod",
            vec![class(json!({})), slice("a", &["x"]), made("new", "new")],
            of_template.clone(),
            "a: made=x",
        ),
        (
            "made for another",
            vec![class(json!({})), slice("a", &["x"]), made("new", "old")],
            of_template.clone(),
            "0/2 nodes are available: ResourceClaim default/made was not created for Pod default/new (Pod is not owner).",
        ),
        (
            "not made yet",
            vec![],
            json!({"spec": {"resourceClaims": [{"name": "g", "resourceClaimTemplateName": "t"}]}}),
            "0/2 nodes are available: pod \"default/new\": ResourceClaim not created yet.",
        ),
        (
            "found not to be needed",
            vec![],
            json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "a"},
                            "resourceClaims": [{"name": "g", "resourceClaimTemplateName": "t"}]},
                   "status": {"resourceClaimStatuses": [{"name": "g"}]}}),
            "a:",
        ),
        (
            "an expression that fails",
            vec![class(json!({})), slice("a", &["x"]), slice("b", &["x"]), failing],
            uses(&["c"]),
            "running \"DynamicResources\" filter plugin: claim default/c: selector #0: CEL runtime error: no such key: none",
        ),
        (
            "earlier alternatives are better",
            vec![
                class(json!({})),
                slice("a", &["x"]),
                {
                    let mut better = slice("b", &["x"]);
                    better["spec"]["driver"] = "none".into();
                    better
                },
                either("c"),
            ],
            uses(&["c"]),
            "b: c=x",
        ),
        ("devices that are being attached", vec![attaching], uses(&["c"]), "b: c=there"),
        (
            "devices that were not attached in time",
            vec![late],
            uses(&["c"]),
            "0/2 nodes are available: 2 resourceclaim not available on the node.",
        ),
    ];
    for (what, objects, extra, expected) in cases {
        let mut cluster = cluster(&[node("a", json!({})), node("b", json!({}))], &[]);
        take_in(&mut cluster, &objects);
        let new = PodInfo::new(cached(&pod("new", extra))).unwrap();
        assert_eq!(place(&cluster, &new), expected, "{what}");
        assert!(expected.starts_with(none) || !place(&cluster, &new).starts_with(none), "{what}");
    }
}

/// A pod whose container asks for so much of a resource.
fn asks(resource: &str, amount: &str) -> Value {
    json!({"spec": {"containers": [
        {"name": "c", "image": "i", "resources": {"requests": {resource: amount, "cpu": "1"}}}]}})
}

#[test]
fn devices_stand_behind_extended_resources() {
    let named = || class(json!({"spec": {"extendedResourceName": "example.com/gpu"}}));
    let of_plugin = json!({"status": {"allocatable": {"example.com/gpu": "1"}}});
    let stale = json!({"metadata": {
        "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"},
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": "new", "uid": "new", "controller": true}]}});
    let mut with_claim = asks("example.com/gpu", "1");
    merge(&mut with_claim, &uses(&["c"]));
    let one = || asks("example.com/gpu", "1");
    let cases: Vec<Case> = vec![
        ("where the device is", vec![named(), slice("b", &["x"])], one(), "b: made=x"),
        (
            "as many as are asked for",
            vec![named(), slice("b", &["x", "y"])],
            asks("example.com/gpu", "2"),
            "b: made=x+y",
        ),
        (
            "by the class's name",
            vec![class(json!({})), slice("b", &["x"])],
            asks("deviceclass.resource.kubernetes.io/gpu", "1"),
            "b: made=x",
        ),
        (
            "beside a claim",
            vec![named(), slice("b", &["x", "y"]), claim("c", json!({}))],
            with_claim,
            "b: c=x made=y",
        ),
        (
            "no device is free",
            vec![named(), slice("b", &["x"]), allocated("d", "b", "x", json!({}))],
            one(),
            "0/2 nodes are available: 2 cannot allocate all claims.",
        ),
        (
            "no class stands for it",
            vec![class(json!({})), slice("b", &["x"])],
            one(),
            "0/2 nodes are available: 2 Insufficient example.com/gpu.",
        ),
        (
            "a claim of an attempt that led nowhere",
            vec![named(), slice("b", &["x"]), claim("old", stale)],
            one(),
            "0/2 nodes are available: 2 cannot schedule extended resource claim.",
        ),
    ];
    for (what, objects, extra, expected) in cases {
        let mut cluster = cluster(&[node("a", json!({})), node("b", json!({}))], &[]);
        take_in(&mut cluster, &objects);
        let new = PodInfo::new(cached(&pod("new", extra))).unwrap();
        assert!(new.needs_devices());
        assert_eq!(place(&cluster, &new), expected, "{what}");
    }

    // Where a plugin counts it, nothing is claimed; when that is used up, devices elsewhere serve.
    let mut cluster = cluster(&[node("a", of_plugin), node("b", json!({}))], &[]);
    take_in(&mut cluster, &[named()]);
    let read = |name: &str| PodInfo::new(cached(&pod(name, one()))).unwrap();
    assert_eq!(place(&cluster, &read("new")), "a:");
    let mut there = pod("there", one());
    there["spec"]["nodeName"] = "a".into();
    cluster.set_pod(PodInfo::new(cached(&there)).unwrap());
    let none = "0/2 nodes are available: 1 Insufficient example.com/gpu, 1 cannot allocate all claims.";
    assert_eq!(place(&cluster, &read("new")), none);
    take_in(&mut cluster, &[slice("b", &["x"])]);
    assert_eq!(place(&cluster, &read("new")), "b: made=x");
    // What is decided counts before the claim is there.
    let decided = State::new(&read("new"), &cluster).decide_devices(&cluster, "b").unwrap();
    cluster.devices.assume_extended("new", decided.extended.unwrap().1.holdings);
    assert_eq!(place(&cluster, &read("next")), none);
}

#[test]
fn claims_that_are_in_the_way_are_named() {
    let mut cluster = cluster(&[node("a", json!({})), node("b", json!({}))], &[]);
    take_in(&mut cluster, &[allocated("c", "z", "x", json!({})), allocated("d", "a", "x", json!({}))]);
    let new = PodInfo::new(cached(&pod("new", uses(&["c", "d"])))).unwrap();
    let why = cycle::schedule(&new, &cluster, &mut 0, 7).unwrap_err();
    assert_eq!(*why.unavailable, [ObjectKey::new("default", "c"), ObjectKey::new("default", "d")]);
    assert!(why.helpable.is_empty(), "nobody's end would help");
    assert!(why.events.any_of(Events::DEVICES_FREED) && why.events.any_of(Events::RESOURCE_SLICE));
}

#[test]
fn what_is_decided_counts_at_once() {
    let mut cluster = cluster(&[node("a", json!({}))], &[]);
    take_in(
        &mut cluster,
        &[class(json!({})), slice("a", &["x"]), claim("c", json!({})), claim("d", json!({}))],
    );
    let read = |name: &str, claims: &[&str]| PodInfo::new(cached(&pod(name, uses(claims)))).unwrap();
    let one = read("one", &["c"]);
    assert_eq!(place(&cluster, &one), "a: c=x");
    let decided = State::new(&one, &cluster).decide_devices(&cluster, "a").unwrap();
    let (claim, allocation) = &decided.claims[0];
    cluster.devices.assume(claim.object.key(), allocation.as_ref().unwrap().holdings.clone());
    assert_eq!(
        place(&cluster, &read("two", &["d"])),
        "0/1 nodes are available: 1 cannot allocate all claims."
    );
    let shared = "0/1 nodes are available: resource claim default/c is in the process of being allocated.";
    assert_eq!(place(&cluster, &read("three", &["c"])), shared);
    cluster.devices.restore(claim.object.key());
    assert_eq!(place(&cluster, &read("two", &["d"])), "a: d=x");
}

#[test]
fn pods_wait_for_their_claims() {
    let mut cluster = cluster(&[], &[]);
    let mut queue = Queue::default();
    let now = Instant::now();
    let new = PodInfo::new(cached(&pod("new", uses(&["c"])))).unwrap();
    assert_eq!(cluster.lacks_claims(&new).as_deref(), Some("could not find claim \"default/c\""));
    queue.hold(new.clone(), now);
    assert!(queue.pop(now).is_none());
    take_in(&mut cluster, &[claim("c", json!({}))]);
    queue.release(now, |p| cluster.lacks_claims(p).is_none());
    assert_eq!(queue.pop(now).unwrap().key(), new.key());
    // Later only what may help wakes it, and only what is its own.
    queue.unschedulable(new.key(), Events::RESOURCE_CLAIM.and(Events::DEVICES_FREED), now);
    let later = now + Duration::from_secs(2);
    let other = ObjectKey::new("default", "other");
    queue.event_for(Events::RESOURCE_CLAIM, later, |p| p.uses_resource_claim(&other));
    assert!(queue.pop(later).is_none());
    queue.event_for(Events::DEVICES_FREED, later, PodInfo::needs_devices);
    assert!(queue.pop(later).is_some());
}

#[test]
fn changes_of_claims_are_told_apart() {
    let mut devices = Devices::default();
    let mut change = |claim: Value| {
        let change = devices.set_claim(cached(&claim)).unwrap();
        (change.freed, change.itself)
    };
    assert_eq!(change(claim("c", json!({}))), (false, true));
    assert_eq!(change(claim("c", json!({"metadata": {"labels": {"a": "b"}}}))), (false, false));
    assert_eq!(change(allocated("c", "a", "x", json!({}))), (false, true));
    assert_eq!(change(claim("c", json!({}))), (true, true));
}

#[test]
fn rules_come_and_go() {
    let mut cluster = cluster(&[node("b", json!({}))], &[]);
    take_in(&mut cluster, &[class(json!({})), slice("b", &["x"]), claim("c", json!({}))]);
    let new = PodInfo::new(cached(&pod("p", uses(&["c"])))).unwrap();
    let set = |cluster: &mut Cluster, rule: &Value| cluster.devices.set_rule(&cached(rule)).unwrap();
    let rule = taint_rule(json!({"device": "x"}), "NoSchedule");
    assert!(set(&mut cluster, &rule));
    assert!(place(&cluster, &new).starts_with("0/1"));
    // What is said in its status changes nothing.
    assert!(!set(&mut cluster, &merged(rule.clone(), json!({"status": {"conditions": [{"type": "T"}]}}))));
    assert!(set(&mut cluster, &taint_rule(json!({"device": "y"}), "NoSchedule")));
    assert_eq!(place(&cluster, &new), "b: c=x");
    assert!(set(&mut cluster, &rule));
    assert!(cluster.devices.remove_rule("broken") && !cluster.devices.remove_rule("broken"));
    assert_eq!(place(&cluster, &new), "b: c=x");
}
