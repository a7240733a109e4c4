//! What the server says of definitions in their conditions, and how their versions judge objects.

mod common;

use std::time::Duration;

use common::Server;
use serde_json::{Value, json};
use yare_apiserver::registry::TypeHandle;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn definition(group: &str, plural: &str, kind: &str, versions: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {"group": group, "scope": "Cluster", "names": {"plural": plural, "kind": kind}, "versions": versions},
    })
}

fn version(name: &str, storage: bool, spec: Value) -> Value {
    json!({
        "name": name, "served": true, "storage": storage,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": spec}}}},
    })
}

/// The definition once its condition `kind` has this status: reason and message.
async fn condition(server: &Server, name: &str, kind: &str, status: &str) -> (String, String) {
    let mut crd = Value::Null;
    for _ in 0..400 {
        crd = server.get(&format!("{CRDS}/{name}")).await.expect(200);
        let all = crd["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if let Some(found) = all.iter().find(|c| c["type"] == kind && c["status"] == status) {
            let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
            return (text("reason"), text("message"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{name} never had {kind}={status}: {crd}");
}

#[tokio::test]
async fn names_belong_to_one_definition() {
    let server = Server::start().await;
    let one = || json!([version("v1", true, json!({}))]);
    server.post(CRDS, &definition("g.io", "as", "A", one())).await.expect(201);
    condition(&server, "as.g.io", "Established", "True").await;
    server.post(CRDS, &definition("g.io", "bs", "A", one())).await.expect(201);
    let (reason, message) = condition(&server, "bs.g.io", "NamesAccepted", "False").await;
    assert_eq!((reason.as_str(), message.as_str()), ("ListKindConflict", "\"AList\" is already in use"));
    let (reason, _) = condition(&server, "bs.g.io", "Established", "False").await;
    assert_eq!(reason, "NotAccepted");
    server.get("/apis/g.io/v1/bs").await.expect_no_such_path();

    // An established definition keeps its names when it wants those of another.
    server.post(CRDS, &definition("g.io", "cs", "C", one())).await.expect(201);
    condition(&server, "cs.g.io", "Established", "True").await;
    let patch = json!({"spec": {"names": {"shortNames": ["as"]}}});
    server.patch("merge", &format!("{CRDS}/cs.g.io"), &patch).await.expect(200);
    let (reason, _) = condition(&server, "cs.g.io", "NamesAccepted", "False").await;
    assert_eq!(reason, "ShortNamesConflict");
    server.get("/apis/g.io/v1/cs").await.expect(200);

    // The end of one makes its names free.
    server.delete(&format!("{CRDS}/as.g.io")).await.expect(200);
    condition(&server, "bs.g.io", "Established", "True").await;
    condition(&server, "cs.g.io", "NamesAccepted", "True").await;
    server.get("/apis/g.io/v1/bs").await.expect(200);
}

#[tokio::test]
async fn ends_and_approvals_are_told() {
    let server = Server::start().await;
    let mut crd = definition("x.k8s.io", "as", "A", json!([version("v1", true, json!({}))]));
    let message = server.post(CRDS, &crd).await.expect_reason(422, "Invalid");
    assert!(message.contains("protected groups must have approval annotation"), "{message}");
    crd["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, experimental-only"});
    server.post(CRDS, &crd).await.expect(201);
    let kind = "KubernetesAPIApprovalPolicyConformant";
    let (reason, message) = condition(&server, "as.x.k8s.io", kind, "False").await;
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("UnapprovedAnnotation", "not approved: \"unapproved, experimental-only\"")
    );
    condition(&server, "as.x.k8s.io", "Established", "True").await;
    let object = json!({"apiVersion": "x.k8s.io/v1", "kind": "A", "metadata": {"name": "a", "finalizers": ["x.io/hold"]}});
    let made = server.post("/apis/x.k8s.io/v1/as", &object).await;
    assert_eq!(made.code, 201, "{}", made.text());
    let bare =
        json!({"apiVersion": "x.k8s.io/v1", "kind": "A", "metadata": {"name": "b", "finalizers": ["hold"]}});
    let answer = server.post("/apis/x.k8s.io/v1/as", &bare).await;
    let warning = answer.headers.get("warning").unwrap().to_str().unwrap().to_owned();
    assert!(warning.contains("prefer a domain-qualified finalizer name to avoid"), "{warning}");

    let deleted = server.delete(&format!("{CRDS}/as.x.k8s.io")).await.expect(200);
    let conditions = deleted["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["type"] == "Terminating" && c["status"] == "True"), "{deleted}");
    condition(&server, "as.x.k8s.io", "Terminating", "True").await;
    for name in ["a", "b"] {
        let path = format!("/apis/x.k8s.io/v1/as/{name}");
        server.patch("merge", &path, &json!({"metadata": {"finalizers": null}})).await.expect(200);
    }
    for _ in 0..400 {
        if server.get(&format!("{CRDS}/as.x.k8s.io")).await.code == 404 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the definition stays");
}

#[tokio::test]
async fn each_version_judges_for_itself() {
    let server = Server::start().await;
    let mut old = version(
        "v1beta1",
        false,
        json!({"size": {"type": "integer", "maximum": 5}, "old": {"type": "string", "default": "x"}}),
    );
    old["deprecated"] = json!(true);
    let versions = json!([
        version("v1", true, json!({"size": {"type": "integer"}, "new": {"type": "string", "default": "y"}})),
        old
    ]);
    server.post(CRDS, &definition("g.io", "as", "A", versions)).await.expect(201);
    condition(&server, "as.g.io", "Established", "True").await;
    let object = |version: &str, spec: Value| json!({"apiVersion": format!("g.io/{version}"), "kind": "A", "metadata": {"name": "a"}, "spec": spec});
    let beta = "/apis/g.io/v1beta1/as";
    let answer = server.post(beta, &object("v1beta1", json!({"size": 6}))).await;
    let warning = answer.headers.get("warning").unwrap().to_str().unwrap().to_owned();
    assert_eq!(warning, "299 - \"g.io/v1beta1 A is deprecated; use g.io/v1 A\"");
    let message = answer.expect_reason(422, "Invalid");
    assert!(message.contains("spec.size in body should be less than or equal to 5"), "{message}");
    // What only one version knows does not reach the other.
    let made = server.post(beta, &object("v1beta1", json!({"size": 5, "old": "z"}))).await.expect(201);
    assert_eq!(made["spec"], json!({"size": 5}));
    let read = server.get("/apis/g.io/v1/as/a").await.expect(200);
    assert_eq!(read["spec"], json!({"size": 5, "new": "y"}));
    server.patch("merge", "/apis/g.io/v1/as/a", &json!({"spec": {"size": 9}})).await.expect(200);
    server
        .patch("merge", &format!("{beta}/a"), &json!({"spec": {"size": 7}}))
        .await
        .expect_reason(422, "Invalid");
    // What is not touched may stay as it is.
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    server.patch("merge", &format!("{beta}/a"), &label).await.expect(200);
}

#[tokio::test]
async fn tightened_schemas_spare_what_stays() {
    let server = Server::start().await;
    let spec = |maximum: u32| {
        json!({
            "size": {"type": "integer", "maximum": maximum}, "other": {"type": "string"},
            "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": if maximum > 5 { "atomic" } else { "set" }},
        })
    };
    let mut v1 = version("v1", true, spec(100));
    v1["subresources"] =
        json!({"scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}});
    server.post(CRDS, &definition("g.io", "as", "A", json!([v1]))).await.expect(201);
    condition(&server, "as.g.io", "Established", "True").await;
    let path = "/apis/g.io/v1/as";
    let object = |size: i64| json!({"apiVersion": "g.io/v1", "kind": "A", "metadata": {"name": "a"}, "spec": {"size": size, "set": ["x", "x"]}});
    let message = server.post(path, &object(-1)).await.expect_reason(422, "Invalid");
    assert!(message.contains(".spec.size: Invalid value: -1: should be a non-negative integer"), "{message}");
    server.post(path, &object(50)).await.expect(201);
    let patch = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties", "value": spec(5)}]);
    server.patch("json", &format!("{CRDS}/as.g.io"), &patch).await.expect(200);
    let mut refused = false;
    for _ in 0..400 {
        let mut other = object(50);
        other["metadata"]["name"] = json!("b");
        refused = server.post(&format!("{path}?dryRun=All"), &other).await.code == 422;
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(refused, "the new schema holds for new objects");
    let item = format!("{path}/a");
    server.patch("merge", &item, &json!({"spec": {"other": "x"}})).await.expect(200);
    server.patch("merge", &item, &json!({"spec": {"size": 51}})).await.expect_reason(422, "Invalid");
    server.patch("merge", &item, &json!({"spec": {"size": 5, "set": ["y"]}})).await.expect(200);
    server.patch("merge", &item, &json!({"spec": {"set": ["y", "y"]}})).await.expect_reason(422, "Invalid");
}

#[tokio::test]
async fn a_schema_is_compiled_when_an_object_needs_it() {
    let server = Server::start().await;
    let spec = json!({"size": {"type": "integer", "default": 3}});
    let crd = definition("g.io", "as", "A", json!([version("v1", true, spec)]));
    server.post(CRDS, &crd).await.expect(201);
    condition(&server, "as.g.io", "Established", "True").await;
    let is_compiled = || {
        let registry = server.api.core().registry.load_full();
        match &registry.find("g.io", "v1", "as").unwrap().ty {
            TypeHandle::Owned(custom) => custom.is_compiled(),
            TypeHandle::Static(_) => unreachable!("a custom resource"),
        }
    };
    server.get("/apis/g.io/v1/as").await.expect(200);
    // A controller's watch: the end of the initial events is a bookmark.
    let watch = "/apis/g.io/v1/as?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1";
    let events = server.get(watch).await.text();
    assert!(events.contains("initial-events-end"), "{events}");
    server.get("/apis/g.io/v1/as/a").await.expect(404);
    assert!(!is_compiled());
    let object = json!({"apiVersion": "g.io/v1", "kind": "A", "metadata": {"name": "a"}, "spec": {}});
    let created = server.post("/apis/g.io/v1/as", &object).await.expect(201);
    assert_eq!(created["spec"]["size"], 3);
    assert!(is_compiled());
}

#[tokio::test]
async fn definitions_of_what_is_built_in_take_nothing_with_them() {
    let server = Server::start().await;
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    let ingress = json!({"metadata": {"name": "a"}, "spec": {"defaultBackend": backend}});
    server.post(ingresses, &ingress).await.expect(201);
    let name = "ingresses.networking.k8s.io";
    let mut crd =
        definition("networking.k8s.io", "ingresses", "Ingress", json!([version("v9", true, json!({}))]));
    crd["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, a mistake"});
    server.post(CRDS, &crd).await.expect(201);
    condition(&server, name, "Established", "True").await;
    // Its objects would be those of the built-in resource, so that it has none.
    server.get("/apis/networking.k8s.io/v9/ingresses").await.expect_reason(404, "NotFound");
    // Somebody else holds it, so that what is told of its end can be read.
    let patch =
        json!({"metadata": {"finalizers": ["customresourcecleanup.apiextensions.k8s.io", "e.com/hold"]}});
    server.patch("merge", &format!("{CRDS}/{name}"), &patch).await.expect(200);
    server.delete(&format!("{CRDS}/{name}")).await.expect(200);
    let (reason, message) = condition(&server, name, "Terminating", "False").await;
    assert_eq!(reason, "OverlappingBuiltInResource");
    assert_eq!(message, "instances overlap with built-in resources in storage");
    let left = server.get(&format!("{ingresses}/a")).await.expect(200);
    assert_eq!(left["metadata"]["deletionTimestamp"], Value::Null);
}

#[tokio::test]
async fn a_definition_goes_when_the_last_of_its_objects_is_let_go() {
    let server = Server::start().await;
    let things = "/apis/g.io/v1/things";
    let crd = definition("g.io", "things", "Thing", json!([version("v1", true, json!({}))]));
    server.post(CRDS, &crd).await.expect(201);
    condition(&server, "things.g.io", "Established", "True").await;
    // Two are held by finalizers, one by a policy.
    for name in ["a", "b", "guarded"] {
        let finalizers = if name == "guarded" { json!([]) } else { json!(["e.com/hold"]) };
        let thing = json!({
            "apiVersion": "g.io/v1", "kind": "Thing", "metadata": {"name": name, "finalizers": finalizers},
        });
        server.post(things, &thing).await.expect(201);
    }
    let policies = "/apis/admissionregistration.k8s.io/v1";
    let policy = json!({"metadata": {"name": "guard"}, "spec": {
        "matchConstraints": {"resourceRules": [{
            "apiGroups": ["g.io"], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["things"],
        }]},
        "validations": [{"expression": "oldObject.metadata.name != 'guarded'"}],
    }});
    server.post(&format!("{policies}/validatingadmissionpolicies"), &policy).await.expect(201);
    let binding = json!({
        "metadata": {"name": "guard"}, "spec": {"policyName": "guard", "validationActions": ["Deny"]},
    });
    server.post(&format!("{policies}/validatingadmissionpolicybindings"), &binding).await.expect(201);
    let refused = async || server.delete(&format!("{things}/guarded?dryRun=All")).await.code == 422;
    while !refused().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let crd = format!("{CRDS}/things.g.io");
    server.delete(&crd).await.expect(200);
    let marked = |_: u16, object: &Value| object["metadata"]["deletionTimestamp"].is_string();
    for name in ["a", "b"] {
        let path = format!("{things}/{name}");
        server.until_is(&path, "marked", marked).await;
        let patch = json!({"metadata": {"finalizers": null}});
        server.patch("merge", &path, &patch).await.expect(200);
        server.get(&path).await.expect(404);
    }
    assert_eq!(server.get(&format!("{things}/guarded")).await.expect(200)["metadata"]["name"], "guarded");
    let (reason, _) = condition(&server, "things.g.io", "Terminating", "True").await;
    assert_eq!(reason, "InstanceDeletionInProgress");
    // Nobody changes the object itself: it is asked for again.
    server.delete(&format!("{policies}/validatingadmissionpolicybindings/guard")).await.expect(200);
    server.until_is(&crd, "gone", |code, _| code == 404).await;
}
