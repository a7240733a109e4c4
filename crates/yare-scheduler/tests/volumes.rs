//! Where pods with volumes go, and what becomes of their claims there, as data.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::{cached, cluster, merge, node, pod};
use yare_client::ObjectKey;
use yare_scheduler::{
    cluster::Cluster,
    cycle,
    plugins::{Events, State},
    pod::PodInfo,
    storage::{Claim, Decision},
};

fn volume(name: &str, size: &str, extra: Value) -> Value {
    let mut out = json!({
        "kind": "PersistentVolume",
        "metadata": {"name": name, "uid": name, "resourceVersion": "1"},
        "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "wait"},
        "status": {"phase": "Available"},
    });
    merge(&mut out, &extra);
    out
}

fn claim(name: &str, extra: Value) -> Value {
    let mut out = json!({
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "wait",
            "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"},
    });
    merge(&mut out, &extra);
    out
}

fn bound(name: &str, volume: &str, extra: Value) -> Value {
    let mut out = claim(
        name,
        json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": volume}, "status": {"phase": "Bound"}}),
    );
    merge(&mut out, &extra);
    out
}

fn class(name: &str, extra: Value) -> Value {
    let mut out = json!({
        "kind": "StorageClass",
        "metadata": {"name": name, "uid": name},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    merge(&mut out, &extra);
    out
}

fn on(node: &str) -> Value {
    json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}})
}

fn uses(claims: &[&str]) -> Value {
    let volumes: Vec<Value> =
        claims.iter().map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}})).collect();
    json!({"spec": {"volumes": volumes}})
}

fn take_in(cluster: &mut Cluster, objects: &[Value]) {
    for object in objects {
        let cached = cached(object);
        let storage = &mut cluster.storage;
        match object["kind"].as_str().unwrap() {
            "PersistentVolume" => storage.set_volume(cached).unwrap(),
            "PersistentVolumeClaim" => storage.set_claim(cached).unwrap(),
            "StorageClass" => drop(storage.set_class(&cached).unwrap()),
            "CSINode" => drop(storage.set_csi_node(&cached).unwrap()),
            "CSIDriver" => drop(storage.set_driver(&cached).unwrap()),
            "CSIStorageCapacity" => drop(storage.set_capacity(&cached).unwrap()),
            "VolumeAttachment" => storage.set_attachment(&cached).unwrap(),
            other => panic!("{other}"),
        }
    }
}

/// `node: claim=volume claim=new`, or the message.
fn place(cluster: &Cluster, pod: &PodInfo) -> String {
    match cycle::schedule(pod, cluster, &mut 0, 7) {
        Ok(name) => {
            let decision = decide(cluster, pod, &name);
            let name_of = |c: &Claim| c.object.name().to_owned();
            let there = decision.bind.iter().map(|(c, v)| format!("{}={}", name_of(c), v.object.name()));
            let made = decision.provision.iter().map(|c| format!("{}=new", name_of(c)));
            there.chain(made).fold(format!("{name}:"), |text, word| format!("{text} {word}"))
        }
        Err(why) => why.message(),
    }
}

fn decide(cluster: &Cluster, pod: &PodInfo, node: &str) -> Decision {
    State::new(pod, cluster).decide(cluster, node).unwrap_or_default()
}

/// What it shows, objects of storage, pods that are placed, the new pod, what becomes of it.
type Case = (&'static str, Vec<Value>, Vec<Value>, Value, &'static str);

#[test]
fn places() {
    let placed = |name: &str, node: &str, extra: Value| {
        let mut out = pod(name, extra);
        out["spec"]["nodeName"] = node.into();
        out
    };
    let rwop = json!({"spec": {"accessModes": ["ReadWriteOncePod"]}});
    let provisioned = json!({"provisioner": "csi.example.com"});
    let driver = json!({"kind": "CSIDriver", "metadata": {"name": "csi.example.com"}, "spec": {"storageCapacity": true}});
    let room = |size: &str| {
        json!({"kind": "CSIStorageCapacity", "metadata": {"name": "c", "namespace": "default"},
            "storageClassName": "wait", "capacity": size,
            "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": "b"}}})
    };
    let csi = |handle: &str| json!({"spec": {"csi": {"driver": "csi.example.com", "volumeHandle": handle}}});
    let limit = |node: &str, count: u32| {
        json!({"kind": "CSINode", "metadata": {"name": node},
            "spec": {"drivers": [{"name": "csi.example.com", "allocatable": {"count": count}}]}})
    };
    let zone = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z1__z2"}}});
    let disk = |read: bool| json!({"spec": {"volumes": [{"name": "d", "gcePersistentDisk": {"pdName": "disk", "readOnly": read}}]}});
    let cases: Vec<Case> = vec![
        (
            "no such claim",
            vec![],
            vec![],
            uses(&["c"]),
            "0/2 nodes are available: persistentvolumeclaim \"c\" not found.",
        ),
        (
            "an ephemeral claim is on its way",
            vec![],
            vec![],
            json!({"spec": {"volumes": [{"name": "v", "ephemeral": {}}]}}),
            "0/2 nodes are available: waiting for ephemeral volume controller to create the persistentvolumeclaim \"new-v\".",
        ),
        (
            "somebody else's ephemeral claim",
            vec![claim("new-v", json!({}))],
            vec![],
            json!({"spec": {"volumes": [{"name": "v", "ephemeral": {}}]}}),
            "0/2 nodes are available: PVC \"default/new-v\" was not created for pod \"default/new\" (pod is not owner).",
        ),
        (
            "not bound, and nobody waits for the pod",
            vec![claim("c", json!({"spec": {"storageClassName": "now"}}))],
            vec![],
            uses(&["c"]),
            "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
        ),
        (
            "lost",
            vec![bound("c", "v", json!({"status": {"phase": "Lost"}}))],
            vec![],
            uses(&["c"]),
            "0/2 nodes are available: persistentvolumeclaim \"c\" bound to non-existent persistentvolume \"v\".",
        ),
        (
            "on its way out",
            vec![claim("c", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}))],
            vec![],
            uses(&["c"]),
            "0/2 nodes are available: persistentvolumeclaim \"c\" is being deleted.",
        ),
        (
            "bound, and its volume is gone",
            vec![bound("c", "v", json!({}))],
            vec![],
            uses(&["c"]),
            "0/2 nodes are available: persistentvolume \"v\" not found.",
        ),
        (
            "bound to a volume on b",
            vec![volume("v", "1Gi", on("b")), bound("c", "v", json!({}))],
            vec![],
            uses(&["c"]),
            "b:",
        ),
        (
            "bound to a volume elsewhere",
            vec![volume("v", "1Gi", on("x")), bound("c", "v", json!({}))],
            vec![],
            uses(&["c"]),
            "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity.",
        ),
        (
            "the smallest that is large enough",
            vec![
                class("wait", json!({})),
                volume("tiny", "500Mi", on("b")),
                volume("large", "9Gi", on("b")),
                volume("right", "2Gi", on("b")),
                volume("mode", "1Gi", json!({"spec": {"volumeMode": "Block"}})),
                volume("other", "1Gi", json!({"spec": {"storageClassName": "other"}})),
                volume("taken", "1Gi", json!({"spec": {"claimRef": {"namespace": "default", "name": "x"}}})),
                volume("early", "1Gi", json!({"status": {"phase": "Pending"}})),
                volume("many", "1Gi", json!({"spec": {"accessModes": null}})),
                claim("c", json!({})),
            ],
            vec![],
            uses(&["c"]),
            "b: c=right",
        ),
        (
            "two claims, two volumes",
            vec![
                class("wait", json!({})),
                volume("small", "1Gi", on("b")),
                volume("large", "5Gi", on("b")),
                claim("big", json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}})),
                claim("c", json!({})),
            ],
            vec![],
            uses(&["big", "c"]),
            "b: c=small big=large",
        ),
        (
            "one that names the claim comes first",
            vec![
                class("wait", json!({})),
                volume("small", "1Gi", on("b")),
                volume(
                    "own",
                    "5Gi",
                    json!({"spec": {"claimRef": {"namespace": "default", "name": "c"},
                    "nodeAffinity": on("b")["spec"]["nodeAffinity"]}}),
                ),
                claim("c", json!({})),
            ],
            vec![],
            uses(&["c"]),
            "b: c=own",
        ),
        (
            "none, and nobody makes one",
            vec![class("wait", json!({})), claim("c", json!({}))],
            vec![],
            uses(&["c"]),
            "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind.",
        ),
        (
            "one is made where the class allows",
            vec![
                class(
                    "wait",
                    json!({"provisioner": "csi.example.com", "allowedTopologies": [
                    {"matchLabelExpressions": [{"key": "kubernetes.io/hostname", "values": ["b"]}]}]}),
                ),
                claim("c", json!({})),
            ],
            vec![],
            uses(&["c"]),
            "b: c=new",
        ),
        (
            "one is being made on b",
            vec![
                class("wait", provisioned.clone()),
                claim("c", json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "b"}}})),
            ],
            vec![],
            uses(&["c"]),
            "b: c=new",
        ),
        (
            "room on b",
            vec![class("wait", provisioned.clone()), driver.clone(), room("2Gi"), claim("c", json!({}))],
            vec![],
            uses(&["c"]),
            "b: c=new",
        ),
        (
            "no room anywhere",
            vec![class("wait", provisioned.clone()), driver, room("100Mi"), claim("c", json!({}))],
            vec![],
            uses(&["c"]),
            "0/2 nodes are available: 2 node(s) did not have enough free storage.",
        ),
        (
            "a copy stays with what it is a copy of",
            vec![
                class("wait", json!({"provisioner": "yare.io/local-path"})),
                volume(
                    "v",
                    "1Gi",
                    json!({"spec": {"claimRef": {"namespace": "default", "name": "from"},
                    "nodeAffinity": on("b")["spec"]["nodeAffinity"]}}),
                ),
                bound("from", "v", json!({})),
                claim(
                    "c",
                    json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "from"}}}),
                ),
            ],
            vec![],
            uses(&["c"]),
            "b: c=new",
        ),
        (
            "one pod at a time",
            vec![volume("v", "1Gi", json!({})), bound("c", "v", rwop.clone())],
            vec![placed("p", "a", uses(&["c"]))],
            uses(&["c"]),
            "0/2 nodes are available: 2 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod.",
        ),
        (
            "of a pod in another namespace",
            vec![volume("v", "1Gi", on("b")), bound("c", "v", rwop)],
            vec![placed("p", "a", json!({"metadata": {"namespace": "else"}, "spec": uses(&["c"])["spec"]}))],
            uses(&["c"]),
            "b:",
        ),
        (
            "a disk that somebody writes to",
            vec![],
            vec![placed("p", "a", disk(true)), placed("q", "b", disk(true))],
            disk(false),
            "0/2 nodes are available: 2 node(s) had no available disk.",
        ),
        (
            "a disk that all read",
            vec![],
            vec![placed("p", "a", disk(true)), placed("q", "a", json!({}))],
            disk(true),
            "b:",
        ),
        (
            "as many volumes as the driver attaches",
            vec![
                limit("a", 1),
                limit("b", 2),
                volume("v1", "1Gi", csi("h1")),
                volume("v2", "1Gi", csi("h2")),
                volume("v3", "1Gi", csi("h3")),
                bound("c1", "v1", json!({})),
                bound("c2", "v2", json!({})),
                bound("c3", "v3", json!({})),
                json!({"kind": "VolumeAttachment", "metadata": {"name": "left"}, "spec": {
                    "attacher": "csi.example.com", "nodeName": "b", "source": {"persistentVolumeName": "v3"}}}),
            ],
            vec![placed("p", "a", uses(&["c1"])), placed("q", "b", uses(&["c2"]))],
            uses(&["c1", "c2"]),
            "0/2 nodes are available: 2 node(s) exceed max volume count.",
        ),
        (
            "a volume that is there already costs nothing",
            vec![limit("a", 1), limit("b", 0), volume("v1", "1Gi", csi("h1")), bound("c1", "v1", json!({}))],
            vec![placed("p", "a", uses(&["c1"]))],
            uses(&["c1"]),
            "a:",
        ),
        (
            "nodes of a zone",
            vec![volume("v", "1Gi", zone), bound("c", "v", json!({}))],
            vec![],
            uses(&["c"]),
            "0/2 nodes are available: 2 node(s) had no available volume zone.",
        ),
    ];
    for (what, objects, pods, new, expected) in cases {
        let zones = what == "nodes of a zone";
        let labels = if zones {
            json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z3"}}})
        } else {
            json!({})
        };
        let mut cluster = cluster(&[node("a", labels.clone()), node("b", labels)], &pods);
        take_in(&mut cluster, &objects);
        let new = PodInfo::new(cached(&pod("new", new))).unwrap();
        assert_eq!(place(&cluster, &new), expected, "{what}");
    }
}

#[test]
fn what_is_decided_counts_until_the_api_knows_better() {
    let objects = [
        class("wait", json!({})),
        volume("v", "1Gi", json!({})),
        claim("c", json!({})),
        claim("d", json!({})),
    ];
    let mut cluster = cluster(&[node("a", json!({}))], &[]);
    take_in(&mut cluster, &objects);
    let of = |claim: &str| PodInfo::new(cached(&pod("new", uses(&[claim])))).unwrap();
    let decision = decide(&cluster, &of("c"), "a");
    cluster.storage.assume(&decision, "a");
    let none = "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind.";
    assert_eq!(place(&cluster, &of("d")), none);
    // The same version again says nothing new.
    take_in(&mut cluster, &objects[1..2]);
    assert_eq!(place(&cluster, &of("d")), none);
    cluster.storage.restore(&decision);
    assert_eq!(place(&cluster, &of("d")), "a: d=v");
    cluster.storage.assume(&decision, "a");
    take_in(&mut cluster, &[volume("v", "1Gi", json!({"metadata": {"resourceVersion": "2"}}))]);
    assert_eq!(place(&cluster, &of("d")), "a: d=v");
    cluster.storage.remove_volume("v");
    assert_eq!(place(&cluster, &of("d")), none);
}

#[test]
fn users_of_a_claim_are_counted_through_placing_and_leaving() {
    let mut cluster = cluster(&[node("a", json!({}))], &[]);
    let key = ObjectKey::new("default", "c");
    let user = |name: &str| PodInfo::new(cached(&pod(name, uses(&["c"])))).unwrap();
    cluster.assume(user("p"), "a");
    cluster.assume(user("q"), "nowhere");
    assert_eq!(cluster.claim_users(&key), 2);
    cluster.assume(user("p"), "a");
    assert_eq!(cluster.claim_users(&key), 2);
    cluster.remove_node("a");
    assert_eq!(cluster.claim_users(&key), 2);
    cluster.remove_pod(user("p").key());
    cluster.remove_pod(user("q").key());
    assert_eq!(cluster.claim_users(&key), 0);
}

#[test]
fn a_refusal_names_what_may_lift_it() {
    let cluster = cluster(&[node("a", json!({}))], &[]);
    let new = PodInfo::new(cached(&pod("new", uses(&["c"])))).unwrap();
    let why = cycle::schedule(&new, &cluster, &mut 0, 7).unwrap_err();
    assert!(why.events.any_of(Events::CLAIM) && why.helpable.is_empty());
    assert!(new.uses_claim(&ObjectKey::new("default", "c")) && !new.uses_claim(&ObjectKey::new("else", "c")));
}
