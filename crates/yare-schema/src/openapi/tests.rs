//! Tests of the OpenAPI documents: whole, and of the right form.

use super::*;

fn resources(schema: &Value) -> Vec<Resource<'_>> {
    let all = vec!["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    vec![
        Resource {
            group: "apps",
            version: "v1",
            kind: "Deployment",
            plural: "deployments",
            namespaced: true,
            verbs: all.clone(),
            subresources: vec![
                Subresource {
                    name: "status",
                    group: "apps",
                    version: "v1",
                    kind: "Deployment",
                    verbs: vec!["get", "update", "patch"],
                },
                Subresource {
                    name: "scale",
                    group: "autoscaling",
                    version: "v1",
                    kind: "Scale",
                    verbs: vec!["get", "update", "patch"],
                },
            ],
            source: Source::Builtin,
            cbor: false,
        },
        Resource {
            group: "",
            version: "v1",
            kind: "Pod",
            plural: "pods",
            namespaced: true,
            verbs: all.clone(),
            subresources: vec![
                Subresource {
                    name: "exec",
                    group: "",
                    version: "v1",
                    kind: "PodExecOptions",
                    verbs: vec!["get", "create"],
                },
                Subresource { name: "log", group: "", version: "v1", kind: "Pod", verbs: vec!["get"] },
                Subresource {
                    name: "eviction",
                    group: "policy",
                    version: "v1",
                    kind: "Eviction",
                    verbs: vec!["create"],
                },
            ],
            source: Source::Builtin,
            cbor: false,
        },
        Resource {
            group: "stable.example.com",
            version: "v1",
            kind: "CronTab",
            plural: "crontabs",
            namespaced: true,
            verbs: all,
            subresources: vec![],
            source: Source::Custom(Some(schema)),
            cbor: false,
        },
    ]
}

fn custom_schema() -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "n": {"type": "integer", "nullable": true, "default": 1},
        "p": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}}}}})
}

/// Every reference in `value` must name a definition.
fn references_resolve(value: &Value, prefix: &str, known: &serde_json::Map<String, Value>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                let name = reference.strip_prefix(prefix).unwrap();
                assert!(known.contains_key(name), "{name} is not defined");
            }
            map.values().for_each(|v| references_resolve(v, prefix, known));
        }
        Value::Array(items) => items.iter().for_each(|v| references_resolve(v, prefix, known)),
        _ => {}
    }
}

#[test]
fn v2_is_whole() {
    let schema = custom_schema();
    let document: Value =
        serde_json::from_slice(&v2("v1.36.0", &Docs::load(), &resources(&schema), &[])).unwrap();
    let definitions = document["definitions"].as_object().unwrap();
    references_resolve(&document, "#/definitions/", definitions);
    let list = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments"];
    assert_eq!(list["post"]["operationId"], "createAppsV1NamespacedDeployment");
    assert_eq!(list["delete"]["operationId"], "deleteAppsV1CollectionNamespacedDeployment");
    assert_eq!(list["get"]["x-kubernetes-action"], "list");
    let containers = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["items"]["$ref"], "#/definitions/io.k8s.api.core.v1.Container");
    let cron = &definitions["com.example.stable.v1.CronTab"]["properties"]["spec"]["properties"];
    assert!(cron["n"].get("type").is_none() && cron["p"].get("anyOf").is_none());
    let scale = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"];
    assert_eq!(scale["put"]["x-kubernetes-group-version-kind"]["kind"], "Scale");
    assert_eq!(
        document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/exec"]["post"]["operationId"],
        "connectCoreV1PostNamespacedPodExec"
    );
}

#[test]
fn v3_is_whole() {
    let schema = custom_schema();
    let resources = resources(&schema);
    for (group, version) in [("apps", "v1"), ("", "v1"), ("stable.example.com", "v1")] {
        let document: Value = serde_json::from_slice(&v3(group, version, &Docs::load(), &resources)).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        references_resolve(&document, "#/components/schemas/", schemas);
        if group == "apps" {
            let spec = &schemas["io.k8s.api.apps.v1.Deployment"]["properties"]["spec"];
            assert_eq!(spec["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec");
            assert!(spec["description"].is_string());
            let patch =
                &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
            assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "dryRun"));
            assert_eq!(
                schemas["io.k8s.api.core.v1.ContainerPort"]["properties"]["protocol"]["default"],
                "TCP"
            );
        }
        if group == "stable.example.com" {
            let kinds = &schemas["com.example.stable.v1.CronTab"]["x-kubernetes-group-version-kind"];
            assert_eq!(kinds[0]["kind"], "CronTab");
        }
    }
    let index: Value =
        serde_json::from_slice(&v3_index([("apis/apps/v1", "/openapi/v3/apis/apps/v1?hash=AB")])).unwrap();
    assert_eq!(index["paths"]["apis/apps/v1"]["serverRelativeURL"], "/openapi/v3/apis/apps/v1?hash=AB");
}

#[test]
fn custom_kinds_are_published_with_what_every_object_has() {
    let docs = Docs::load();
    let publish = |dialect, schema: Option<&Value>| {
        let mut definitions = Definitions::new(dialect, &docs, BTreeSet::new());
        schema::custom(&mut definitions, "example.com", "v1", "Thing", schema)
    };
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"spec": {"type": "object"}}});
    let kinds = json!([{"group": "example.com", "kind": "Thing", "version": "v1"}]);
    // Nothing is said in v2 of what an open object may have; v3 has words for it.
    let bare = json!({"type": "object", "x-kubernetes-group-version-kind": kinds});
    assert_eq!(publish(Dialect::V2, None), bare);
    assert_eq!(publish(Dialect::V3, None), bare);
    assert_eq!(publish(Dialect::V2, Some(&open)), bare);
    let v3 = publish(Dialect::V3, Some(&open));
    assert_eq!(v3["x-kubernetes-preserve-unknown-fields"], true);
    assert!(
        v3["properties"]["apiVersion"]["description"].as_str().unwrap().starts_with("APIVersion defines")
    );
    assert!(v3["properties"]["metadata"]["description"].as_str().unwrap().starts_with("Standard object's"));
    // An object within an object has the same three fields, and must name its kind.
    let embedding = json!({"type": "object", "properties": {"inner": {
        "type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}}}});
    let v2 = publish(Dialect::V2, Some(&embedding));
    let inner = &v2["properties"]["inner"];
    assert_eq!(inner["required"], json!(["kind", "apiVersion"]));
    assert!(inner["properties"]["metadata"]["$ref"].is_string());
}

/// Counts the fields of a message by number; fails on anything that is no protobuf.
fn count(mut bytes: &[u8]) -> BTreeMap<u64, usize> {
    let mut out = BTreeMap::new();
    let varint = |bytes: &mut &[u8]| {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (b, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(b & 0x7f) << shift;
            if *b < 0x80 {
                break;
            }
        }
        value
    };
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        assert_eq!(tag & 7, 2);
        let length = varint(&mut bytes) as usize;
        bytes = &bytes[length..];
        *out.entry(tag >> 3).or_default() += 1;
    }
    out
}

#[test]
fn protobuf_is_well_formed() {
    let schema = custom_schema();
    let document = v2_protobuf("v1.36.0", &Docs::load(), &resources(&schema), &[]);
    let fields = count(&document);
    assert_eq!(fields.keys().copied().collect::<Vec<_>>(), [1, 2, 8, 9, 12, 13]);
}
