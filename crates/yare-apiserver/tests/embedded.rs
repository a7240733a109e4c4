//! Metadata of custom resources and of objects within them is read as all metadata is: by its Go type.

mod common;

use std::time::Duration;

use common::{Answer, Server};
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const BOXES: &str = "/apis/example.com/v1/namespaces/default/boxes";

fn definition(template: &Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boxes.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "boxes", "kind": "Box"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "properties": {"template": template}}}}}}],
        },
    })
}

fn embedded() -> Value {
    json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true})
}

async fn established(server: &Server) {
    for _ in 0..500 {
        if server.get(BOXES).await.code == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never established");
}

fn boxed(name: &str, metadata: &Value, template: &Value) -> Value {
    let mut metadata = metadata.clone();
    metadata["name"] = name.into();
    json!({"apiVersion": "example.com/v1", "kind": "Box", "metadata": metadata, "spec": {"template": template}})
}

fn pod(metadata: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata})
}

#[track_caller]
fn refused(answer: Answer, code: u16, part: &str) {
    let text = answer.text();
    assert_eq!(answer.code, code, "{text}");
    let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains(part), "{message}\n{part}");
}

#[tokio::test]
async fn values_of_wrong_types_are_refused() {
    let server = Server::start().await;
    server.post(CRDS, &definition(&embedded())).await.expect(201);
    established(&server).await;
    let owner =
        |uid: Value| json!({"ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "n", "uid": uid}]});
    let none = json!({});
    server.post(BOXES, &boxed("there", &none, &pod(&json!({"name": "p"})))).await.expect(201);
    let there = format!("{BOXES}/there");
    for (metadata, why) in [
        (
            owner(json!(true)),
            "json: cannot unmarshal bool into Go struct field OwnerReference.ownerReferences.uid of type types.UID",
        ),
        (
            json!({"labels": {"a": 1}}),
            "json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string",
        ),
        (
            json!({"finalizers": "x"}),
            "json: cannot unmarshal string into Go struct field ObjectMeta.finalizers of type []string",
        ),
        (json!({"deletionTimestamp": "soon"}), "parsing time \"soon\" as \"2006-01-02T15:04:05Z07:00\""),
    ] {
        // At the root.
        let within = "Box in version \"v1\" cannot be handled as a Box: ";
        refused(
            server.post(BOXES, &boxed("new", &metadata, &pod(&none))).await,
            400,
            &format!("{within}{why}"),
        );
        refused(server.put(&there, &boxed("there", &metadata, &pod(&none))).await, 400, why);
        // Of an object within.
        let template = pod(&metadata);
        let at = format!("{within}spec.template.metadata: Invalid value: ");
        let answer = server.post(BOXES, &boxed("new", &none, &template)).await;
        assert!(answer.text().contains(&why.replace('"', "\\\"")), "{}", answer.text());
        refused(answer, 400, &at);
        refused(server.put(&there, &boxed("there", &none, &template)).await, 400, why);
        let patch = json!({"spec": {"template": {"metadata": metadata}}});
        refused(server.patch("merge", &there, &patch).await, 422, why);
        let patch = json!([{"op": "add", "path": "/spec/template/metadata", "value": metadata}]);
        refused(server.patch("json", &there, &patch).await, 422, why);
        let answer = server.apply(&there, "me", &boxed("there", &none, &template)).await;
        assert!(matches!(answer.code, 400 | 422 | 500), "{}", answer.text());
        assert!(answer.text().contains("template.metadata"), "{}", answer.text());
    }
    // The same goes for what objects are.
    let template = json!({"apiVersion": "v1", "kind": 5, "metadata": {}});
    refused(
        server.post(BOXES, &boxed("new", &none, &template)).await,
        400,
        "cannot be handled as a Box: spec.template.kind: Invalid value: 5: must be a string",
    );
    // Nothing of it changed what was there.
    let now = server.get(&there).await.expect(200);
    assert_eq!(now["spec"]["template"]["metadata"], json!({"name": "p"}));
}

#[tokio::test]
async fn metadata_of_objects_within_takes_its_form() {
    let server = Server::start().await;
    server.post(CRDS, &definition(&embedded())).await.expect(201);
    established(&server).await;
    let metadata = json!({"name": "p", "creationTimestamp": null, "labels": {}, "generation": 0, "colour": "red",
        "deletionTimestamp": "2020-01-01T01:00:00.5+01:00"});
    let made = boxed("a", &json!({}), &pod(&metadata));
    let strict = server.post(&format!("{BOXES}?fieldValidation=Strict"), &made).await;
    refused(strict, 400, "strict decoding error: unknown field \"spec.template.metadata.colour\"");
    let answer = server.post(BOXES, &made).await;
    let warning = answer.headers.get("warning").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    assert!(warning.contains("unknown field \\\"spec.template.metadata.colour\\\""), "{warning}");
    let made = answer.expect(201);
    let expect = json!({"name": "p", "deletionTimestamp": "2020-01-01T00:00:00Z"});
    assert_eq!(made["spec"]["template"]["metadata"], expect);

    // Judged by the rules of all metadata.
    for (metadata, why) in [
        (json!({"name": "a/b"}), "spec.template.metadata.name: Invalid value: \"a/b\": may not contain '/'"),
        (json!({"namespace": "A"}), "spec.template.metadata.namespace: Invalid value: \"A\": "),
        (
            json!({"ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "n", "uid": ""}]}),
            "spec.template.metadata.ownerReferences.uid: Invalid value: \"\": must not be empty",
        ),
        (json!({"finalizers": ["a b"]}), "spec.template.metadata.finalizers: Invalid value: \"a b\": "),
        (json!({"generation": -1}), "spec.template.metadata.generation: Invalid value: -1: "),
        (
            json!({"annotations": {"a": "x".repeat(256 * 1024)}}),
            "spec.template.metadata.annotations: Too long: may not be more than 262144 bytes",
        ),
    ] {
        refused(server.post(BOXES, &boxed("b", &json!({}), &pod(&metadata))).await, 422, why);
    }
}

#[tokio::test]
async fn what_was_stored_before_loses_what_does_not_fit() {
    let server = Server::start().await;
    let free = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    server.post(CRDS, &definition(&free)).await.expect(201);
    established(&server).await;
    let metadata = json!({"name": "p", "labels": {"a": 1}, "colour": "red"});
    server.post(BOXES, &boxed("old", &json!({}), &pod(&metadata))).await.expect(201);
    let versions = definition(&embedded())["spec"]["versions"].clone();
    let path = format!("{CRDS}/boxes.example.com");
    server.patch("merge", &path, &json!({"spec": {"versions": versions}})).await.expect(200);
    for _ in 0..500 {
        let patch = json!({"metadata": {"annotations": {"touched": "yes"}}});
        let now = server.patch("merge", &format!("{BOXES}/old"), &patch).await.expect(200);
        if now["spec"]["template"]["metadata"] == json!({"name": "p"}) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{}", server.get(&format!("{BOXES}/old")).await.text());
}

#[tokio::test]
async fn defaults_in_schemas_are_judged_alike() {
    let server = Server::start().await;
    let with = |default: Value| {
        let mut template = embedded();
        template["default"] = default;
        definition(&template)
    };
    let at = "spec.validation.openAPIV3Schema.properties[spec].properties[template].default";
    for (default, why) in [
        (
            pod(&json!({"labels": {"a": 1}})),
            format!(
                "{at}.metadata: Invalid value: {{\"labels\":{{\"a\":1}}}}: json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string"
            ),
        ),
        (json!({"kind": "Pod", "metadata": {}}), format!("{at}.apiVersion: Required value")),
        (json!({"apiVersion": "v1", "kind": 1}), format!("{at}.kind: Invalid value: 1: must be a string")),
        (
            pod(&json!({"name": "a/b"})),
            format!("{at}.metadata.name: Invalid value: \"a/b\": may not contain '/'"),
        ),
    ] {
        refused(server.post(CRDS, &with(default)).await, 422, &why);
    }
    let mut labels = embedded();
    labels["properties"] = json!({"metadata": {"type": "object", "properties": {
        "labels": {"type": "object", "additionalProperties": {"type": "integer"}, "default": {"a": 1}}}}});
    refused(
        server.post(CRDS, &definition(&labels)).await,
        422,
        "must result in valid metadata: metadata: Invalid value: {\"labels\":{\"a\":1}}: json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string",
    );
    // What metadata leaves out is left out of defaults.
    let default = pod(&json!({"name": "p", "creationTimestamp": null, "labels": {}}));
    server.post(CRDS, &with(default)).await.expect(201);
    established(&server).await;
    let made = json!({"apiVersion": "example.com/v1", "kind": "Box", "metadata": {"name": "a"}, "spec": {}});
    let made = server.post(BOXES, &made).await.expect(201);
    assert_eq!(made["spec"]["template"]["metadata"], json!({"name": "p"}));
}
