//! Who owns which field, through the whole server: each case is a list of requests with what they answer, and
//! what the managers own in the end.

mod common;

use std::time::Duration;

use common::{Answer, Server};
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Map, Value, json};
use tower::ServiceExt;
use yare_apiserver::User;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// How an object is written.
#[derive(Clone, Copy, Debug)]
enum How {
    Apply,
    Force,
    Merge,
    Strategic,
    Json,
    Put,
}
use How::{Apply, Force, Json, Merge, Put, Strategic};

async fn write(server: &Server, how: How, path: &str, manager: &str, body: &Value) -> Answer {
    let with = |extra: &str| {
        let dash = if path.contains('?') { '&' } else { '?' };
        format!("{path}{dash}fieldManager={manager}{extra}")
    };
    match how {
        Apply => server.apply(path, manager, body).await,
        Force => {
            server
                .apply(&with("&force=true").replace(&format!("fieldManager={manager}&"), ""), manager, body)
                .await
        }
        Merge => server.patch("merge", &with(""), body).await,
        Strategic => server.patch("strategic", &with(""), body).await,
        Json => server.patch("json", &with(""), body).await,
        Put => server.put(&with(""), body).await,
    }
}

/// `manager operation[/subresource]` to what it owns.
fn owners(object: &Value) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let one = |e: Value| {
        let text = |field: &str| e[field].as_str().unwrap_or_default();
        let mut name = format!("{} {}", text("manager"), text("operation"));
        if let Some(subresource) = e["subresource"].as_str() {
            name = format!("{name}/{subresource}");
        }
        (name, e["fieldsV1"].clone())
    };
    Value::Object(entries.into_iter().map(one).collect::<Map<_, _>>())
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
}

fn deployment(replicas: Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
    });
    if !replicas.is_null() {
        object["spec"]["replicas"] = replicas;
    }
    object
}

#[tokio::test]
async fn configurations_that_cannot_be_applied() {
    let server = Server::start().await;
    let path = &format!("{CONFIG_MAPS}/a");
    server.apply(path, "one", &config_map(json!({"x": "1"}))).await.expect(201);
    let cases = [
        // Another kind or version than the URL's.
        (
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}}),
            400,
            "BadRequest",
            "invalid object type: /v1, Kind=Secret",
        ),
        (
            json!({"apiVersion": "apps/v1", "kind": "ConfigMap", "metadata": {"name": "a"}}),
            400,
            "BadRequest",
            "invalid object type: apps/v1, Kind=ConfigMap",
        ),
        (json!({"metadata": {"name": "a"}}), 400, "BadRequest", "invalid object type: /, Kind="),
        (
            json!([]),
            400,
            "BadRequest",
            "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        // Another object.
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}}),
            400,
            "BadRequest",
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "kube-system"}}),
            400,
            "BadRequest",
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        // The record is not the client's to apply.
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "managedFields": []}}),
            400,
            "BadRequest",
            "metadata.managedFields must be nil",
        ),
        // Another shape.
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "datum": {}}),
            500,
            "",
            "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .datum: field not declared in schema",
        ),
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": 5}}),
            500,
            "",
            "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .data.x: expected string, got &value.valueUnstructured{Value:5}",
        ),
        // Conditions that do not hold.
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "uid": "nobody"}}),
            422,
            "Invalid",
            "ConfigMap \"a\" is invalid: metadata.uid: Invalid value: \"nobody\": field is immutable",
        ),
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "resourceVersion": "1"}}),
            409,
            "Conflict",
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again",
        ),
    ];
    for (config, code, reason, message) in cases {
        let status = server.apply(path, "one", &config).await.expect(code);
        assert_eq!(status["reason"].as_str().unwrap_or_default(), reason, "{config}");
        assert!(status["message"].as_str().unwrap().starts_with(message), "{config}: {status}");
    }
    // An object that is not there is not made in the name of one that was.
    let gone = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b", "uid": "u"}});
    let message =
        server.apply(&format!("{CONFIG_MAPS}/b"), "one", &gone).await.expect_reason(409, "Conflict");
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"b\": uid mismatch: the provided object specified uid u, and no existing object was found"
    );
    let nameless = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    let message =
        server.apply(&format!("{CONFIG_MAPS}/b"), "one", &nameless).await.expect_reason(400, "BadRequest");
    assert_eq!(message, "the name of the object (b based on URL) was undeterminable: name must be provided");
    // One that is there need not be named again.
    server
        .apply(path, "one", &json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "1"}}))
        .await
        .expect(200);
    // Who applies says who it is, in printable letters.
    for (query, field) in [
        ("", "fieldManager: Required value: is required for apply patch"),
        (
            "?fieldManager=a%09b",
            "fieldManager: Invalid value: \"a\\tb\": invalid character U+0009 (at position 1)",
        ),
    ] {
        let headers = [("content-type", "application/apply-patch+yaml")];
        let answer = server
            .send("PATCH", &format!("{path}{query}"), &headers, config_map(json!({})).to_string())
            .await;
        let message = answer.expect_reason(422, "Invalid");
        assert!(message.contains(field), "{message}");
    }
    let long = "m".repeat(129);
    let message = server.apply(path, &long, &config_map(json!({}))).await.expect_reason(422, "Invalid");
    assert!(message.contains("fieldManager: Too long: may not be more than 128 bytes"), "{message}");
    // A key that Go always writes is there also where nobody says it; that it is empty is for validation to refuse.
    let unnamed = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"image": "i"}]}}}});
    let message =
        server.apply(&format!("{DEPLOYMENTS}/d"), "one", &unnamed).await.expect_reason(422, "Invalid");
    assert!(message.contains("spec.template.spec.containers[0].name: Required value"), "{message}");
    let accounts = "/api/v1/namespaces/default/serviceaccounts/s";
    let unnamed =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s"}, "secrets": [{}]});
    let status = server.apply(accounts, "one", &unnamed).await.expect(500);
    let message = status["message"].as_str().unwrap();
    assert!(message.contains("omits all key fields [\"name\"]"), "{message}");
}

#[tokio::test]
async fn records_are_cleared_kept_and_refused() {
    let empty = [json!([]), json!([{}])];
    let server = Server::start().await;
    let path = &format!("{CONFIG_MAPS}/a");
    // Every kind of write may clear the record, which then stays empty until somebody applies.
    for entries in empty {
        for how in [Merge, Strategic, Json, Put] {
            server.delete(path).await;
            server.apply(path, "one", &config_map(json!({"x": "1"}))).await.expect(201);
            let body = match how {
                Json => json!([{"op": "replace", "path": "/metadata/managedFields", "value": entries}]),
                Put => {
                    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "managedFields": entries}, "data": {"x": "1"}})
                }
                _ => json!({"metadata": {"managedFields": entries}}),
            };
            if matches!(how, Strategic) && entries == json!([]) {
                // An empty list merges into what is there.
                continue;
            }
            let cleared = write(&server, how, path, "two", &body).await.expect(200);
            assert_eq!(owners(&cleared), json!({}), "{how:?} {body}");
            let still = server.patch("merge", path, &json!({"data": {"y": "1"}})).await.expect(200);
            assert_eq!(owners(&still), json!({}), "{how:?} {body}");
            let applied = server.apply(path, "one", &config_map(json!({"x": "1"}))).await.expect(200);
            assert_eq!(
                owners(&applied),
                json!({
                    "before-first-apply Update": {"f:data": {".": {}, "f:x": {}, "f:y": {}}},
                    "one Apply": {"f:data": {"f:x": {}}},
                }),
                "{how:?} {body}"
            );
        }
    }
    // A record that makes no sense is refused, or passed over where it is only incomplete.
    let before = owners(&server.get(path).await.expect(200));
    for (entry, code) in [
        (
            json!({"manager": "m", "operation": "Whatever", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {}}}),
            422,
        ),
        (
            json!({"manager": "m\u{1}", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {}}}),
            422,
        ),
        (json!({"manager": "m", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {}}), 200),
        (
            json!({"manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"nothing": {}}}),
            200,
        ),
    ] {
        let body = json!({"metadata": {"managedFields": [entry]}});
        let answer = server.patch("merge", path, &body).await;
        // Field managers that cannot be read are replaced by those of the live object before they are looked at.
        assert!([200, code].contains(&answer.code), "{body}: {}", answer.text());
        assert_eq!(owners(&server.get(path).await.expect(200)), before, "{body}");
    }
    // A subresource never changes the record.
    let deployment = deployment(json!(1));
    let path = &format!("{DEPLOYMENTS}/d");
    server.apply(path, "one", &deployment).await.expect(201);
    let before = owners(&server.get(path).await.expect(200));
    let after =
        server.patch("merge", &format!("{path}/status"), &json!({"metadata": {"managedFields": [{}]}})).await;
    assert_eq!(owners(&after.expect(200)), before);
}

#[tokio::test]
async fn writes_that_change_nothing_are_not_written() {
    let server = Server::start().await;
    let path = &format!("{DEPLOYMENTS}/d");
    let made = server.apply(path, "one", &deployment(json!(2))).await.expect(201);
    let version = made["metadata"]["resourceVersion"].clone();
    for (how, body) in [
        (Apply, deployment(json!(2))),
        (Merge, json!({"spec": {"replicas": 2}})),
        (Strategic, json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}})),
        (Json, json!([{"op": "replace", "path": "/spec/replicas", "value": 2}])),
        (Put, made.clone()),
    ] {
        let again = write(&server, how, path, "one", &body).await.expect(200);
        assert_eq!(again["metadata"]["resourceVersion"], version, "{how:?}");
        assert_eq!(again["metadata"]["managedFields"], made["metadata"]["managedFields"], "{how:?}");
    }
    // Neither is one that is only tried, though its answer shows what would be.
    let tried = server.apply(&format!("{path}?dryRun=All"), "one", &deployment(json!(3))).await.expect(200);
    assert_eq!((&tried["spec"]["replicas"], &tried["metadata"]["resourceVersion"]), (&json!(3), &version));
    let mut other = deployment(json!(1));
    other["metadata"]["name"] = json!("e");
    server.apply(&format!("{DEPLOYMENTS}/e?dryRun=All"), "one", &other).await.expect(201);
    assert_eq!(server.get(&format!("{DEPLOYMENTS}/e")).await.code, 404);
    assert_eq!(server.get(path).await.expect(200)["metadata"]["resourceVersion"], version);
}

/// How, where and by whom what is written, the answer's code, and who owns the replicas then.
type ScaleStep<'a> = (How, &'a str, &'a str, Value, u16, &'a [&'a str]);

#[tokio::test]
async fn replicas_go_through_the_scale() {
    let server = Server::start().await;
    let path = &format!("{DEPLOYMENTS}/d");
    let scale = &format!("{path}/scale");
    let body = |replicas: i64| json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "d", "namespace": "default"}, "spec": {"replicas": replicas}});
    let owner = |object: &Value| -> Vec<String> {
        let all = owners(object);
        let owning = all.as_object().unwrap().iter().filter(|(_, f)| f["f:spec"].get("f:replicas").is_some());
        owning.map(|(name, _)| name.clone()).collect()
    };
    server.apply(path, "main", &deployment(json!(1))).await.expect(201);
    let steps: [ScaleStep<'_>; 9] = [
        (Merge, scale, "scaler", json!({"spec": {"replicas": 5}}), 200, &["scaler Update/scale"]),
        (Apply, path, "main", deployment(json!(1)), 409, &["scaler Update/scale"]),
        (Force, path, "main", deployment(json!(1)), 200, &["main Apply"]),
        (Apply, scale, "applier", body(17), 409, &["main Apply"]),
        (Force, scale, "applier", body(17), 200, &["applier Apply/scale"]),
        (Put, scale, "replacer", body(7), 200, &["replacer Update/scale"]),
        (Apply, scale, "sharer", body(7), 200, &["replacer Update/scale", "sharer Apply/scale"]),
        (Strategic, scale, "scaler", json!({"spec": {"replicas": 5}}), 200, &["scaler Update/scale"]),
        // What is not the scale's to say changes nobody's fields.
        (Merge, scale, "other", json!({"status": {"replicas": 42}}), 200, &["scaler Update/scale"]),
    ];
    for (how, path_now, manager, body, code, expect) in steps {
        let answer = write(&server, how, path_now, manager, &body).await;
        let text = answer.text();
        assert_eq!(answer.code, code, "{how:?} {body}: {text}");
        if code == 409 {
            let cause = &answer.json()["details"]["causes"][0];
            assert_eq!(
                (&cause["reason"], &cause["field"]),
                (&json!("FieldManagerConflict"), &json!(".spec.replicas"))
            );
        }
        assert_eq!(owner(&server.get(path).await.expect(200)), expect, "{how:?} {body}: {text}");
    }
    // The rest of the object stayed who had it.
    let now = owners(&server.get(path).await.expect(200));
    assert_eq!(now["main Apply"]["f:spec"]["f:selector"], json!({}));
    for (body, code, message) in [
        (
            json!({"spec": {"replicas": -1}}),
            422,
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            json!({"metadata": {"name": "x"}}),
            400,
            "the name of the object (x) does not match the name on the URL (d)",
        ),
        (json!({"metadata": {"uid": "x"}}), 409, "Precondition failed: UID in precondition: x"),
        (json!({"metadata": {"resourceVersion": "1"}}), 409, "the object has been modified"),
        (json!({"spec": {"replicas": "x"}}), 422, "patch: Invalid value"),
    ] {
        let answer = server.patch("merge", scale, &body).await;
        assert!(
            answer.code == code && answer.text().contains(&message.replace('"', "\\\"")),
            "{body}: {}",
            answer.text()
        );
    }
    let wrong = json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"}});
    assert_eq!(
        server.apply(scale, "m", &wrong).await.expect_reason(400, "BadRequest"),
        "invalid object type: apps/v1, Kind=Deployment"
    );
}

#[tokio::test]
async fn requests_own_nothing_that_they_cannot_set() {
    let server = Server::start().await;
    let labels = json!({"l": "x"});
    let schema = |level: &str| {
        json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": "f", "labels": labels},
        "spec": {"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": 100}, "status": {"conditions": [{"type": "Dangling", "status": "False"}]}})
    };
    let mut with_status = deployment(json!(1));
    with_status["metadata"]["labels"] = labels.clone();
    with_status["status"] = json!({"replicas": 3});
    let status_fields = json!({"f:replicas": {}});
    let cases = [
        (format!("{DEPLOYMENTS}/d"), with_status, status_fields),
        (
            "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas/f".to_owned(),
            schema("exempt"),
            json!({"f:conditions": {r#"k:{"type":"Dangling"}"#: {".": {}, "f:type": {}, "f:status": {}}}}),
        ),
    ];
    for (path, object, status_fields) in cases {
        let main = server.apply(&path, "main", &object).await.expect(201);
        let owned = owners(&main);
        assert!(owned["main Apply"].get("f:status").is_none(), "{owned}");
        let mut other = object.clone();
        other["metadata"]["labels"] = json!({"l": "y", "m": "z"});
        let after = server.apply(&format!("{path}/status"), "status", &other).await.expect(200);
        // Nothing but the status is taken, and nothing else changed.
        assert_eq!(owners(&after)["status Apply/status"], json!({"f:status": status_fields}), "{path}");
        assert_eq!(after["metadata"]["labels"], labels, "{path}");
        // So the main resource and its status do not conflict.
        server.apply(&path, "main", &object).await.expect(200);
        // An update of the status leaves metadata alone as well.
        let mut update = after.clone();
        update["metadata"]["labels"] = json!({});
        let updated = server.put(&format!("{path}/status"), &update).await.expect(200);
        assert_eq!(updated["metadata"]["labels"], labels, "{path}");
    }
}

#[tokio::test]
async fn whoever_creates_by_applying_must_be_allowed_to_create() {
    let server = Server::with(|config| config.auth.permissive = false).await;
    let role = json!({"metadata": {"name": "patcher"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}]});
    server.post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", &role).await.expect(201);
    let binding = json!({"metadata": {"name": "patcher"}, "subjects": [{"kind": "User", "name": "p"}], "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "patcher"}});
    server
        .post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &binding)
        .await
        .expect(201);
    let apply = async || {
        let request = Request::builder()
            .method("PATCH")
            .uri(format!("{CONFIG_MAPS}/a?fieldManager=p"))
            .header("content-type", "application/apply-patch+yaml")
            .body(Full::from(config_map(json!({"x": "1"})).to_string()))
            .unwrap();
        let (parts, body) =
            server.api.service(User::new("p", &[])).oneshot(request).await.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, bytes }
    };
    // The authorizers hear of the role a moment later.
    let mut message = String::new();
    for _ in 0..500 {
        message = apply().await.expect_reason(403, "Forbidden");
        if !message.contains("cannot patch") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(message.starts_with("configmaps \"a\" is forbidden: User \"p\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\""), "{message}");
    server.post(CONFIG_MAPS, &config_map(json!({}))).await.expect(201);
    apply().await.expect(200);
}

#[tokio::test]
async fn custom_resources_have_owners_in_every_version() {
    let server = Server::start().await;
    let version = |name: &str, storage: bool, replicas: &str| {
        json!({
            "name": name, "served": true, "storage": storage,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {
                    "replicas": {"type": "integer"}, "count": {"type": "integer"},
                    "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
                        "items": {"type": "object", "required": ["port"], "properties": {"port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}}}},
                    "names": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}},
                "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}}}}},
            "subresources": {"status": {}, "scale": {"specReplicasPath": replicas, "statusReplicasPath": ".status.replicas"}},
        })
    };
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.x.io"}, "spec": {
        "group": "x.io", "scope": "Namespaced", "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
        "versions": [version("v1", true, ".spec.replicas"), version("v2", false, ".spec.replicas")]}});
    server.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.expect(201);
    let path = |version: &str| format!("/apis/x.io/{version}/namespaces/default/things/t");
    for _ in 0..500 {
        if server.get("/apis/x.io/v2/namespaces/default/things").await.code == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let thing = |version: &str, spec: Value| json!({"apiVersion": format!("x.io/{version}"), "kind": "Thing", "metadata": {"name": "t"}, "spec": spec});
    let made = server
        .apply(
            &path("v1"),
            "one",
            &thing("v1", json!({"replicas": 1, "names": ["a", "b"], "ports": [{"port": 80}]})),
        )
        .await;
    let made = made.expect(201);
    assert_eq!(made["spec"]["ports"], json!([{"port": 80, "protocol": "TCP"}]));
    // Another manager in another version; a set and a list with keys grow.
    let grown = server
        .apply(
            &path("v2"),
            "two",
            &thing("v2", json!({"names": ["c", "a"], "ports": [{"port": 80, "protocol": "UDP"}]})),
        )
        .await;
    let grown = grown.expect(200);
    assert_eq!(grown["spec"]["names"], json!(["c", "a", "b"]));
    assert_eq!(
        grown["spec"]["ports"],
        json!([{"port": 80, "protocol": "TCP"}, {"port": 80, "protocol": "UDP"}])
    );
    // The first moves to the newer version and lets go of what it says no more; what both own stays.
    let moved = server.apply(&path("v2"), "one", &thing("v2", json!({"replicas": 1}))).await.expect(200);
    assert_eq!(
        moved["spec"],
        json!({"replicas": 1, "names": ["c", "a"], "ports": [{"port": 80, "protocol": "UDP"}]})
    );
    let versions: Vec<&Value> =
        moved["metadata"]["managedFields"].as_array().unwrap().iter().map(|e| &e["apiVersion"]).collect();
    assert_eq!(versions, [&json!("x.io/v2"), &json!("x.io/v2")]);
    // Duplicates in a configuration.
    let twice = server
        .apply(
            &path("v1"),
            "one",
            &thing("v1", json!({"ports": [{"port": 1}, {"port": 1, "protocol": "TCP"}]})),
        )
        .await
        .expect(500);
    assert_eq!(
        twice["message"],
        "failed to create typed patch object (/t; x.io/v1, Kind=Thing): .spec.ports: duplicate entries for key [port=1,protocol=\"TCP\"]"
    );
    // The scale of a custom resource.
    let scale = format!("{}/scale", path("v1"));
    let conflict = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "t", "namespace": "default"}, "spec": {"replicas": 4}});
    server.apply(&scale, "scaler", &conflict).await.expect_reason(409, "Conflict");
    server
        .patch("merge", &format!("{scale}?fieldManager=scaler"), &json!({"spec": {"replicas": 4}}))
        .await
        .expect(200);
    let now = server.get(&path("v1")).await.expect(200);
    assert_eq!(owners(&now)["scaler Update/scale"], json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(owners(&now)["one Apply"], Value::Null);
    let strategic = server.patch("strategic", &scale, &json!({"spec": {"replicas": 4}})).await;
    strategic.expect_reason(415, "UnsupportedMediaType");
    server.patch("strategic", &path("v1"), &json!({})).await.expect_reason(415, "UnsupportedMediaType");
}
