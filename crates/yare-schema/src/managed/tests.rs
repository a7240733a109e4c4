//! Tests of field management: who owns what after updates and applies, and which conflicts arise.

mod custom;
mod structs;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{managed::typed::extract, testing::pod_like};

const T1: &str = "2026-01-01T00:00:01Z";
const T2: &str = "2026-01-01T00:00:02Z";

fn info<'a>(manager: &'a str, time: &'a str) -> ManagerInfo<'a> {
    ManagerInfo { manager, api_version: "v1", subresource: "", time }
}

fn with_kind<R>(run: impl FnOnce(&dyn Kind) -> R) -> R {
    let (schema, pod) = pod_like();
    run(&OneType { ty: schema.at(pod), api_versions: &["v1", "v1beta1"], evolves: true })
}

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec})
}

/// `manager operation`: fields.
fn owners(object: &Value) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    Value::Object(
        entries
            .into_iter()
            .map(|e| {
                let name = format!("{} {}", e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap());
                (name, e["fieldsV1"].clone())
            })
            .collect(),
    )
}

fn apply_ok(live: Option<&Value>, config: &Value, manager: &str, time: &str) -> Value {
    with_kind(|kind| apply(kind, live, config, &info(manager, time), false, None).unwrap().object)
}

fn updated(old: Option<&Value>, new: Value, manager: &str, time: &str) -> Value {
    let mut new = new;
    with_kind(|kind| update(kind, old, &mut new, &info(manager, time), None));
    new
}

#[test]
fn create_is_tracked_without_server_metadata() {
    let created = updated(
        None,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "uid": "u", "labels": {"app": "x"}, "finalizers": ["a<b"]},
            "spec": {"containers": [{"name": "c", "image": "i", "command": ["x"], "ports": [{"containerPort": 80}]}],
                     "nodeSelector": {"a": "b"}},
        }),
        "kubectl-create",
        T1,
    );
    assert_eq!(
        created["metadata"]["managedFields"],
        json!([{
            "manager": "kubectl-create", "operation": "Update", "apiVersion": "v1", "time": T1, "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {
                    "f:finalizers": {".": {}, "v:\"a\\u003cb\"": {}},
                    "f:labels": {".": {}, "f:app": {}},
                },
                "f:spec": {
                    ".": {},
                    "f:containers": {
                        ".": {},
                        "k:{\"name\":\"c\"}": {
                            ".": {}, "f:name": {}, "f:image": {}, "f:command": {},
                            "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                        },
                    },
                    "f:nodeSelector": {},
                },
            },
        }])
    );
}

/// What upstream records for these creations.
#[test]
fn built_in_kinds_are_tracked_as_upstream_does() {
    let container = json!({"name": "nginx", "image": "nginx", "imagePullPolicy": "Always", "resources": {},
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 80, "protocol": "TCP"}]});
    let owned_container = json!({".": {}, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {}, "f:resources": {},
        "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {},
        "f:env": {".": {}, "k:{\"name\":\"A\"}": {".": {}, "f:name": {}, "f:value": {}}},
        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}});
    let pod_spec = json!({"containers": [container], "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {}});
    let owned_pod_spec = json!({"f:containers": {"k:{\"name\":\"nginx\"}": owned_container}, "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:securityContext": {}});
    let cases = [
        (
            "",
            "v1",
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"run": "x"}}, "spec": pod_spec}),
            json!({"f:metadata": {"f:labels": {".": {}, "f:run": {}}}, "f:spec": owned_pod_spec}),
        ),
        (
            "",
            "v1",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "p"}, "data": {"a": "b"}}),
            json!({"f:data": {".": {}, "f:a": {}}}),
        ),
        (
            "apps",
            "v1",
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "p"}, "spec": {
                "replicas": 1, "selector": {"matchLabels": {"app": "x"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
                "template": {"metadata": {"labels": {"app": "x"}}, "spec": pod_spec}}, "status": {}}),
            json!({"f:spec": {"f:replicas": {}, "f:selector": {},
                "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
                "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": owned_pod_spec}}}),
        ),
        (
            "",
            "v1",
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "selector": {"a": "b"}, "type": "ClusterIP"}}),
            json!({"f:spec": {"f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}}},
                "f:selector": {}, "f:type": {}}}),
        ),
    ];
    for (group, version, mut object, expect) in cases {
        let kind = object["kind"].as_str().unwrap().to_owned();
        let api_version = object["apiVersion"].as_str().unwrap().to_owned();
        let ty = crate::builtin::builtin().lookup(group, version, &kind).unwrap();
        let one = OneType { ty, api_versions: &[&api_version], evolves: false };
        update(
            &one,
            None,
            &mut object,
            &ManagerInfo { manager: "kubectl", api_version: &api_version, subresource: "", time: T1 },
            None,
        );
        assert_eq!(object["metadata"]["managedFields"][0]["fieldsV1"], expect, "{kind}");
    }
}

#[test]
fn updates_change_hands() {
    let first = updated(None, pod(json!({"replicas": 1, "nodeSelector": {"a": "1"}})), "a", T1);
    let mut second = first.clone();
    second["spec"]["replicas"] = json!(2);
    let second = updated(Some(&first), second, "b", T2);
    assert_eq!(
        owners(&second),
        json!({
            "a Update": {"f:spec": {".": {}, "f:nodeSelector": {}}},
            "b Update": {"f:spec": {"f:replicas": {}}},
        })
    );
    // Removing a field removes its ownership; an emptied entry goes.
    let mut third = second.clone();
    third["spec"] = json!({"nodeSelector": {"a": "1"}});
    let third = updated(Some(&second), third, "c", T2);
    assert_eq!(owners(&third), json!({"a Update": {"f:spec": {".": {}, "f:nodeSelector": {}}}}));
    // Nothing changed: nothing changes, not even a time.
    let again = updated(Some(&third), third.clone(), "d", "2027-01-01T00:00:00Z");
    assert_eq!(again, third);
}

#[test]
fn subresources_and_reset_fields() {
    let first = updated(None, pod(json!({"replicas": 1})), "a", T1);
    let mut second = first.clone();
    second["status"] = json!({"phase": "Running"});
    let status = ManagerInfo { subresource: "status", ..info("kubelet", T2) };
    with_kind(|kind| update(kind, Some(&first), &mut second, &status, None));
    let entry = &second["metadata"]["managedFields"][1];
    assert_eq!(entry["subresource"], "status");
    assert_eq!(entry["fieldsV1"], json!({"f:status": {".": {}, "f:phase": {}}}));

    let reset = ResetFields::Exclude(Set::of_fields(&[&["status"]]));
    let mut object = pod(json!({"replicas": 1}));
    object["status"] = json!({"phase": "x"});
    with_kind(|kind| update(kind, None, &mut object, &info("a", T1), Some(&reset)));
    assert_eq!(owners(&object), json!({"a Update": {"f:spec": {".": {}, "f:replicas": {}}}}));

    let only = ResetFields::Only(&[&["spec", "containers", "*", "image"]]);
    let mut object = pod(json!({"replicas": 1, "containers": [{"name": "c", "image": "i"}]}));
    with_kind(|kind| update(kind, None, &mut object, &info("a", T1), Some(&only)));
    assert_eq!(
        owners(&object),
        json!({"a Update": {"f:spec": {".": {}, "f:containers": {".": {}, "k:{\"name\":\"c\"}": {".": {}, "f:image": {}}}}}})
    );
}

#[test]
fn clients_may_reset_managed_fields() {
    let mut first = updated(None, pod(json!({"replicas": 1})), "a", T1);
    first["metadata"]["uid"] = json!("u");
    for reset in [json!([]), json!([{}])] {
        let mut second = first.clone();
        second["metadata"]["managedFields"] = reset;
        let second = updated(Some(&first), second, "b", T2);
        assert_eq!(second["metadata"].get("managedFields"), None);
        // From then on nothing is tracked.
        let mut third = second.clone();
        third["spec"]["replicas"] = json!(5);
        assert_eq!(updated(Some(&second), third.clone(), "b", T2), third);
    }
    // Malformed entries fall back on the live ones.
    let mut second = first.clone();
    second["metadata"]["managedFields"] = json!([{"manager": "x", "operation": "Guess"}]);
    let second = updated(Some(&first), second, "b", T2);
    assert_eq!(owners(&second), owners(&first));
}

#[test]
fn too_many_updaters_become_ancient_changes() {
    let mut live = updated(None, pod(json!({"nodeSelector": {}})), "creator", T1);
    for i in 0..15 {
        let mut new = live.clone();
        new["metadata"]["labels"][format!("l{i}")] = json!("x");
        live = updated(Some(&live), new, &format!("m{i:02}"), &format!("2026-01-02T00:00:{i:02}Z"));
    }
    let owners = owners(&live);
    let names: Vec<&String> = owners.as_object().unwrap().keys().collect();
    assert_eq!(names.len(), 10);
    let ancient = &owners["ancient-changes Update"];
    assert_eq!(ancient.pointer("/f:metadata/f:labels/f:l0"), Some(&json!({})));
    assert_eq!(ancient.pointer("/f:spec/f:nodeSelector"), Some(&json!({})));
    assert_eq!(names.last().unwrap().as_str(), "m14 Update");
}

#[test]
fn apply_owns_what_it_says_and_removes_what_it_no_longer_says() {
    let config = pod(json!({"replicas": 3, "containers": [
        {"name": "c", "image": "1", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}]}));
    let live = apply_ok(None, &config, "kubectl", T1);
    assert_eq!(
        owners(&live),
        json!({"kubectl Apply": {"f:spec": {"f:replicas": {}, "f:containers": {"k:{\"name\":\"c\"}": {
            ".": {}, "f:name": {}, "f:image": {},
            "f:env": {"k:{\"name\":\"A\"}": {".": {}, "f:name": {}, "f:value": {}},
                      "k:{\"name\":\"B\"}": {".": {}, "f:name": {}, "f:value": {}}}}}}}})
    );
    // Somebody else adds a sidecar and a label.
    let mut other = live.clone();
    other["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "side", "image": "s"}));
    let live = updated(Some(&live), other, "injector", T2);
    let smaller =
        pod(json!({"containers": [{"name": "c", "image": "2", "env": [{"name": "B", "value": "2"}]}]}));
    let live = apply_ok(Some(&live), &smaller, "kubectl", T2);
    assert_eq!(
        live["spec"],
        json!({"containers": [{"name": "c", "image": "2", "env": [{"name": "B", "value": "2"}]}, {"name": "side", "image": "s"}]})
    );
    // All of it goes, the sidecar stays.
    let live = apply_ok(Some(&live), &pod(json!({})), "kubectl", T2);
    assert_eq!(live["spec"], json!({"containers": [{"name": "side", "image": "s"}]}));
}

#[test]
fn conflicts_and_force() {
    let live = updated(None, pod(json!({"replicas": 1, "nodeSelector": {"a": "b"}})), "kubectl-edit", T1);
    let config = pod(json!({"replicas": 2, "nodeSelector": {"a": "c"}}));
    with_kind(|kind| {
        let error = apply(kind, Some(&live), &config, &info("ci", T2), false, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Apply failed with 2 conflicts: conflicts with \"kubectl-edit\" using v1:\n- .spec.nodeSelector\n- .spec.replicas"
        );
        let one = pod(json!({"replicas": 2}));
        let error = apply(kind, Some(&live), &one, &info("ci", T2), false, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Apply failed with 1 conflict: conflict with \"kubectl-edit\" using v1: .spec.replicas"
        );
        let ApplyError::Conflicts(conflicts) = error else { panic!("conflicts") };
        assert_eq!(conflicts[0].field, ".spec.replicas");
        assert_eq!(conflicts[0].message(), "conflict with \"kubectl-edit\" using v1");
        // The same value is no conflict: it is shared.
        let same = pod(json!({"replicas": 1}));
        let shared = apply(kind, Some(&live), &same, &info("ci", T2), false, None).unwrap();
        assert!(!shared.changed);
        assert_eq!(owners(&shared.object)["ci Apply"], json!({"f:spec": {"f:replicas": {}}}));
        let forced = apply(kind, Some(&live), &config, &info("ci", T2), true, None).unwrap();
        assert!(forced.changed);
        assert_eq!(
            owners(&forced.object),
            json!({
                "ci Apply": {"f:spec": {"f:nodeSelector": {}, "f:replicas": {}}},
                "kubectl-edit Update": {"f:spec": {}},
            })
        );
    });
    // Between two appliers the operation is not shown.
    let live = apply_ok(None, &pod(json!({"replicas": 1})), "a", T1);
    with_kind(|kind| {
        let error =
            apply(kind, Some(&live), &pod(json!({"replicas": 2})), &info("b", T2), false, None).unwrap_err();
        assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
    });
}

#[test]
fn shared_fields_stay_when_one_owner_lets_go() {
    let live = apply_ok(None, &pod(json!({"replicas": 1, "nodeSelector": {"a": "b"}})), "a", T1);
    let live = apply_ok(Some(&live), &pod(json!({"replicas": 1})), "b", T2);
    let live = apply_ok(Some(&live), &pod(json!({})), "a", T2);
    assert_eq!(live["spec"], json!({"replicas": 1}));
    let live = apply_ok(Some(&live), &pod(json!({})), "b", T2);
    assert_eq!(live.get("spec").and_then(|s| s.get("replicas")), None);
}

#[test]
fn objects_without_entries_get_an_owner_at_the_first_apply() {
    let mut live = pod(json!({"replicas": 1}));
    live["metadata"]["uid"] = json!("u");
    with_kind(|kind| {
        let error =
            apply(kind, Some(&live), &pod(json!({"replicas": 2})), &info("ci", T1), false, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .spec.replicas"
        );
    });
}

#[test]
fn kubectl_takes_over_from_client_side_apply() {
    let mut object = pod(json!({"replicas": 1}));
    let last = pod(json!({"replicas": 1})).to_string();
    object["metadata"]["annotations"] = json!({LAST_APPLIED_ANNOTATION: last});
    let live = updated(None, object, "kubectl-client-side-apply", T1);
    let config = pod(json!({"replicas": 2}));
    let applied = apply_ok(Some(&live), &config, "kubectl", T2);
    assert_eq!(applied["spec"]["replicas"], 2);
    let annotation = applied["metadata"]["annotations"][LAST_APPLIED_ANNOTATION].as_str().unwrap();
    assert_eq!(annotation, format!("{config}\n"));
    with_kind(|kind| {
        assert!(apply(kind, Some(&live), &config, &info("other", T2), false, None).is_err());
    });
    // Somebody changed it since: that is a conflict again.
    let mut edited = live.clone();
    edited["spec"]["replicas"] = json!(7);
    let edited = updated(Some(&live), edited, "hpa", T2);
    with_kind(|kind| {
        let error = apply(kind, Some(&edited), &config, &info("kubectl", T2), false, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Apply failed with 1 conflict: conflict with \"hpa\" using v1: .spec.replicas"
        );
    });
}

#[test]
fn bad_configurations() {
    let cases = [
        (
            json!({"apiVersion": "v2", "kind": "Pod"}),
            "Incorrect version specified in apply patch. Specified patch version: v2, expected: v1",
        ),
        (
            json!({"apiVersion": "v1", "metadata": {"managedFields": []}}),
            "metadata.managedFields must be nil",
        ),
        (
            pod(json!({"replica": 1})),
            "failed to create typed patch object (/p; /v1, Kind=Pod): .spec.replica: field not declared in schema",
        ),
        (
            pod(json!({"replicas": "x"})),
            "failed to create typed patch object (/p; /v1, Kind=Pod): .spec.replicas: expected numeric (int or float), got string",
        ),
        (
            pod(json!({"nodeSelector": {"a": 5}})),
            "failed to create typed patch object (/p; /v1, Kind=Pod): .spec.nodeSelector.a: expected string, got &value.valueUnstructured{Value:5}",
        ),
        (
            pod(json!({"nodeSelector": {"a": [{"x": "y", "z": null}, true]}})),
            "failed to create typed patch object (/p; /v1, Kind=Pod): .spec.nodeSelector.a: expected string, got &value.valueUnstructured{Value:[]interface {}{map[string]interface {}{\"x\":\"y\", \"z\":interface {}(nil)}, true}}",
        ),
        (
            pod(json!({"containers": {"name": "a"}, "nodeSelector": ["x"]})),
            "failed to create typed patch object (/p; /v1, Kind=Pod): errors:\n  .spec.containers: expected list, got &{map[name:a]}\n  .spec.nodeSelector: expected map, got &{[x]}",
        ),
        // The first unknown field of an object is the last that is looked at.
        (
            pod(json!({"aaa": 1, "bbb": 1, "containers": 5})),
            "failed to create typed patch object (/p; /v1, Kind=Pod): .spec.aaa: field not declared in schema",
        ),
        (
            pod(json!({"containers": [{"name": ["q"]}]})),
            "failed to create typed patch object (/p; /v1, Kind=Pod): .spec.containers[name=[\"q\"]].name: expected string, got &value.valueUnstructured{Value:[]interface {}{\"q\"}}",
        ),
        (
            pod(json!({"containers": [{"name": "a"}, {"name": "a"}]})),
            "failed to create typed patch object (/p; /v1, Kind=Pod): .spec.containers: duplicate entries for key [name=\"a\"]",
        ),
        (
            pod(json!({"containers": [{"image": "a"}]})),
            "failed to create typed patch object (/p; /v1, Kind=Pod): .spec.containers: element 0: associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have default values for any key fields)",
        ),
    ];
    for (config, message) in cases {
        with_kind(|kind| {
            let error = apply(kind, None, &config, &info("m", T1), false, None).unwrap_err();
            assert_eq!(error.to_string(), message);
        });
    }
}

#[test]
fn list_order_follows_the_configuration() {
    let containers =
        |names: &[&str]| Value::from(names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>());
    let cases: [(&[&str], &[&str], &[&str]); 5] = [
        (&["a", "b", "c"], &["b"], &["a", "b", "c"]),
        (&["a", "b", "c"], &["c", "a"], &["b", "c", "a"]),
        (&["a", "b"], &["n", "b"], &["a", "n", "b"]),
        (&["a"], &["x", "y"], &["a", "x", "y"]),
        (&["s", "a", "t", "b"], &["b", "a"], &["s", "t", "b", "a"]),
    ];
    let (schema, id) = pod_like();
    for (live, config, expect) in cases {
        let merged = merge::merge(
            Some(schema.at(id)),
            Some(&json!({"spec": {"containers": containers(live)}})),
            Some(&json!({"spec": {"containers": containers(config)}})),
        )
        .unwrap();
        assert_eq!(merged["spec"]["containers"], containers(expect), "{live:?} + {config:?}");
    }
}

#[test]
fn entries_of_versions_that_are_gone_are_dropped_and_others_converted() {
    let mut live = updated(None, pod(json!({"replicas": 1})), "a", T1);
    live["metadata"]["managedFields"].as_array_mut().unwrap().extend([
        json!({"manager": "old", "operation": "Update", "apiVersion": "v0", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}}),
        json!({"manager": "beta", "operation": "Update", "apiVersion": "v1beta1", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}, "f:nodeSelector": {"f:x": {}}}}}),
    ]);
    let mut new = live.clone();
    new["spec"]["replicas"] = json!(2);
    let new = updated(Some(&live), new, "b", T2);
    assert_eq!(
        owners(&new),
        json!({
            "a Update": {"f:spec": {}},
            "b Update": {"f:spec": {"f:replicas": {}}},
            // The type says atomic now, so the whole is owned.
            "beta Update": {"f:spec": {"f:nodeSelector": {}}},
        })
    );
}

/// A kind whose webhook is out of order.
struct Broken<'a>(OneType<'a>);

impl Kind for Broken<'_> {
    fn type_in(&self, api_version: &str) -> Option<TypeRef<'_>> {
        self.0.type_in(api_version)
    }

    fn convert(&self, _object: &Value, _api_version: &str) -> Result<Option<Value>, String> {
        Err("out of order".to_owned())
    }
}

#[test]
fn entries_of_versions_that_cannot_be_had_stay() {
    let (schema, of) = pod_like();
    let kind = Broken(OneType { ty: schema.at(of), api_versions: &["v1", "v1beta1"], evolves: true });
    let beta = json!({"manager": "beta", "operation": "Update", "apiVersion": "v1beta1", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}});
    let mut live = updated(None, pod(json!({"replicas": 1})), "a", T1);
    live["metadata"]["managedFields"].as_array_mut().unwrap().push(beta);
    // Who applies is told.
    let config = pod(json!({"replicas": 2}));
    for force in [false, true] {
        let error = apply(&kind, Some(&live), &config, &info("c", T2), force, None).unwrap_err();
        assert_eq!(error, ApplyError::Conversion("out of order".to_owned()));
    }
    // Who updates is not, and takes nothing there.
    let mut new = live.clone();
    new["spec"]["replicas"] = json!(2);
    update(&kind, Some(&live), &mut new, &info("b", T2), None);
    assert_eq!(owners(&new)["beta Update"], json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(owners(&new)["b Update"], json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn timestamps_alone_are_no_change() {
    let old = updated(None, pod(json!({"replicas": 1})), "a", T1);
    let mut new = old.clone();
    new["metadata"]["managedFields"][0]["time"] = json!(T2);
    let mut changed = new.clone();
    ignore_timestamps(&old, &mut new);
    assert_eq!(new, old);
    changed["spec"]["replicas"] = json!(2);
    let before = changed.clone();
    ignore_timestamps(&old, &mut changed);
    assert_eq!(changed, before);
}

fn any_spec() -> impl Strategy<Value = Value> {
    let container = ("[a-c]", prop::option::of("[xy]"), prop::collection::btree_map("[p-r]", "[01]", 0..3))
        .prop_map(|(name, image, env)| {
            let mut out = json!({"name": name});
            if let Some(image) = image {
                out["image"] = json!(image);
            }
            if !env.is_empty() {
                out["env"] = env.iter().map(|(n, v)| json!({"name": n, "value": v})).collect();
            }
            out
        });
    (
        prop::option::of(0..3),
        prop::collection::vec(container, 0..4),
        prop::collection::btree_map("[kl]", "[01]", 0..3),
    )
        .prop_map(|(replicas, containers, selector)| {
            let mut out = json!({});
            if let Some(replicas) = replicas {
                out["replicas"] = json!(replicas);
            }
            let mut seen = std::collections::HashSet::new();
            let containers: Vec<Value> =
                containers.into_iter().filter(|c| seen.insert(c["name"].to_string())).collect();
            if !containers.is_empty() {
                out["containers"] = json!(containers);
            }
            if !selector.is_empty() {
                out["nodeSelector"] = json!(selector);
            }
            out
        })
}

proptest! {
    #[test]
    fn applying_twice_changes_nothing(first in any_spec(), config in any_spec()) {
        let live = updated(None, pod(first), "someone", T1);
        with_kind(|kind| {
            let once = apply(kind, Some(&live), &pod(config.clone()), &info("ci", T1), true, None).unwrap();
            let twice = apply(kind, Some(&once.object), &pod(config.clone()), &info("ci", T2), false, None).unwrap();
            assert!(!twice.changed);
            assert_eq!(twice.object, once.object);
        });
    }

    #[test]
    fn applying_then_letting_go_leaves_nothing(config in any_spec()) {
        let live = apply_ok(None, &pod(config), "ci", T1);
        let gone = apply_ok(Some(&live), &pod(json!({})), "ci", T2);
        let spec = &gone["spec"];
        prop_assert!(spec.is_null() || spec == &json!({}), "{}", gone);
    }

    #[test]
    fn everything_in_an_object_is_owned_after_create(spec in any_spec()) {
        let (schema, id) = pod_like();
        let created = updated(None, pod(spec.clone()), "a", T1);
        let mut fields = extract(Some(schema.at(id)), &pod(spec));
        strip(&mut fields);
        let owned = owners(&created);
        let owned = owned.get("a Update").map_or_else(Set::new, |s| Set::parse(s).unwrap());
        fields.difference(&owned);
        prop_assert!(fields.is_empty());
    }

    #[test]
    fn comparing_is_extracting_for_new_objects(a in any_spec(), b in any_spec()) {
        let (schema, id) = pod_like();
        let ty = Some(schema.at(id));
        let c = compare(ty, &pod(a.clone()), &pod(b.clone()), Structs::BOTH);
        prop_assert_eq!(c.added.is_empty() && c.modified.is_empty() && c.removed.is_empty(), {
            // The order of items with keys says nothing.
            let sort = |spec: &Value| { let mut s = spec.clone(); if let Some(c) = s["containers"].as_array_mut() { c.sort_by_key(|c| c["name"].to_string()); } s };
            let nothing = |s: Value| if s["containers"].is_null() { let mut s = s; s.as_object_mut().unwrap().remove("containers"); s } else { s };
            nothing(sort(&a)) == nothing(sort(&b))
        });
        let back = compare(ty, &pod(b), &pod(a), Structs::BOTH);
        prop_assert_eq!(c.added, back.removed);
        prop_assert_eq!(c.modified, back.modified);
    }

    #[test]
    fn hostile_values_do_not_panic(old in crate::patch::merge::tests::any_json(), new in crate::patch::merge::tests::any_json(), fields in crate::patch::merge::tests::any_json()) {
        with_kind(|kind| {
            let live = json!({"apiVersion": "v1", "metadata": old, "spec": {"containers": new, "nodeSelector": old}});
            let mut sent = json!({"apiVersion": "v1", "metadata": {"managedFields": fields}, "spec": {"containers": old, "tolerations": new}});
            let _ = apply(kind, Some(&live), &sent, &info("a", T1), true, None);
            update(kind, Some(&live), &mut sent, &info("a", T1), None);
        });
    }
}

/// Types of custom resources, which Kubernetes' own do not have.
fn custom() -> crate::crd::Compiled {
    let text = || json!({"type": "string"});
    crate::crd::load(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"inner": {"type": "object", "properties": {"a": text()}}}},
        "anything": {"type": "object", "additionalProperties": true},
        "empty": {"type": "object"},
        "maps": {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": text()}},
        "ports": {"type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["port", "protocol"], "items": {"type": "object", "properties": {
                "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}, "note": text()}}},
    }}}}))
}

/// Steps of managers on one custom resource: who, whether it applies, what; and what is there afterwards, with
/// what each manager owns of the specification.
#[test]
fn custom_resources_go_through_their_managers_hands() {
    struct Step(&'static str, bool, Value, Value, Value);
    let compiled = custom();
    let kind = OneType { ty: compiled.ty(), api_versions: &["x.io/v1"], evolves: true };
    #[rustfmt::skip]
    let cases = [
        // What a manager lets go stays as an empty object where somebody else made the object.
        vec![
            Step("u", false, json!({"maps": {"m": {}}}), json!({"maps": {"m": {}}}), json!({"u": {".": {}, "f:maps": {".": {}, "f:m": {}}}})),
            Step("a", true, json!({"maps": {"m": {"x": "1"}}}), json!({"maps": {"m": {"x": "1"}}}), json!({"a": {"f:maps": {"f:m": {".": {}, "f:x": {}}}}, "u": {".": {}, "f:maps": {".": {}, "f:m": {}}}})),
            Step("a", true, json!({}), json!({"maps": {"m": {}}}), json!({"a": {}, "u": {".": {}, "f:maps": {".": {}, "f:m": {}}}})),
        ],
        // A default is part of the key, said or not.
        vec![
            Step("a", true, json!({"ports": [{"port": 80, "note": "a"}]}), json!({"ports": [{"port": 80, "note": "a"}]}),
                json!({"a": {"f:ports": {r#"k:{"port":80,"protocol":"TCP"}"#: {".": {}, "f:note": {}, "f:port": {}}}}})),
            Step("b", true, json!({"ports": [{"port": 80, "protocol": "TCP"}, {"port": 80, "protocol": "UDP"}]}),
                json!({"ports": [{"port": 80, "protocol": "TCP", "note": "a"}, {"port": 80, "protocol": "UDP"}]}),
                json!({"a": {"f:ports": {r#"k:{"port":80,"protocol":"TCP"}"#: {".": {}, "f:note": {}, "f:port": {}}}},
                    "b": {"f:ports": {r#"k:{"port":80,"protocol":"TCP"}"#: {".": {}, "f:port": {}, "f:protocol": {}}, r#"k:{"port":80,"protocol":"UDP"}"#: {".": {}, "f:port": {}, "f:protocol": {}}}}})),
        ],
        // Items that share a key are one thing, and come apart when they no longer do.
        vec![
            Step("u", false, json!({"ports": [{"port": 1, "note": "x"}, {"port": 1, "note": "y"}]}), json!({"ports": [{"port": 1, "note": "x"}, {"port": 1, "note": "y"}]}),
                json!({"u": {".": {}, "f:ports": {".": {}, r#"k:{"port":1,"protocol":"TCP"}"#: {}}}})),
            Step("v", false, json!({"ports": [{"port": 1, "note": "x"}]}), json!({"ports": [{"port": 1, "note": "x"}]}),
                json!({"u": {".": {}, "f:ports": {}}, "v": {"f:ports": {r#"k:{"port":1,"protocol":"TCP"}"#: {".": {}, "f:note": {}, "f:port": {}}}}})),
        ],
        // Below a type that keeps what it does not know, and in objects of nothing known, anything may be.
        vec![
            Step("a", true, json!({"open": {"inner": {"a": "1", "z": 2}, "y": [1]}, "empty": {"q": 1}, "anything": {"k": {"l": 1}}}),
                json!({"open": {"inner": {"a": "1", "z": 2}, "y": [1]}, "empty": {"q": 1}, "anything": {"k": {"l": 1}}}),
                json!({"a": {"f:open": {"f:inner": {"f:a": {}, "f:z": {}}, "f:y": {}}, "f:empty": {"f:q": {}}, "f:anything": {"f:k": {".": {}, "f:l": {}}}}})),
            // A value that changes from object to text takes the object's members with it.
            Step("b", false, json!({"open": {"inner": {"a": "1", "z": 2}, "y": [1]}, "empty": {"q": 1}, "anything": {"k": "t"}}),
                json!({"open": {"inner": {"a": "1", "z": 2}, "y": [1]}, "empty": {"q": 1}, "anything": {"k": "t"}}),
                json!({"a": {"f:open": {"f:inner": {"f:a": {}, "f:z": {}}, "f:y": {}}, "f:empty": {"f:q": {}}}, "b": {"f:anything": {"f:k": {}}}})),
        ],
    ];
    for steps in cases {
        let mut live: Option<Value> = None;
        for Step(manager, applies, spec, spec_after, owned) in steps {
            let info = ManagerInfo { manager, api_version: "x.io/v1", subresource: "", time: T1 };
            let mut new =
                json!({"apiVersion": "x.io/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec});
            if applies {
                new = apply(&kind, live.as_ref(), &new, &info, false, None).unwrap().object;
            } else {
                update(&kind, live.as_ref(), &mut new, &info, None);
            }
            assert_eq!(new["spec"], spec_after, "{manager}: {spec}");
            let entries = array(new.pointer("/metadata/managedFields"));
            let found: Map<String, Value> = entries
                .iter()
                .map(|e| (e["manager"].as_str().unwrap().to_owned(), e["fieldsV1"]["f:spec"].clone()))
                .collect();
            assert_eq!(Value::Object(found), owned, "{manager}: {spec}");
            new["metadata"]["uid"] = json!("u");
            live = Some(new);
        }
    }
}
