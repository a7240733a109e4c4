//! Tests of the OpenAPI documents: whole, and of the right form.

use super::*;

fn server<'a>(docs: &'a Docs, resources: &'a [Resource<'a>]) -> Server<'a> {
    Server { version: "1.36", docs, resources, openid: true, cbor: false, enums: true }
}

fn parsed(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn resources(version: &Value) -> Vec<Resource<'_>> {
    let all = vec!["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    vec![
        Resource {
            group: "apps",
            version: "v1",
            kind: "Deployment",
            list_kind: "DeploymentList",
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
            returns_deleted: false,
        },
        Resource {
            group: "",
            version: "v1",
            kind: "Pod",
            list_kind: "PodList",
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
            returns_deleted: true,
        },
        Resource {
            group: "stable.example.com",
            version: "v1",
            kind: "CronTab",
            list_kind: "CronTabList",
            plural: "crontabs",
            namespaced: true,
            verbs: all,
            subresources: vec![Subresource {
                name: "scale",
                group: "autoscaling",
                version: "v1",
                kind: "Scale",
                verbs: vec!["get", "update", "patch"],
            }],
            source: Source::Custom(version),
            returns_deleted: false,
        },
    ]
}

fn custom_version() -> Value {
    json!({"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {
        "type": "object", "properties": {"n": {"type": "integer", "nullable": true, "default": 1}}}}}}})
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

/// Every parameter in the list, shared ones as what they stand for.
fn parameters<'a>(document: &'a Value, list: &'a Value) -> Vec<&'a Value> {
    let all = list.as_array().into_iter().flatten();
    all.map(|p| match p.get("$ref").and_then(Value::as_str) {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => p,
    })
    .collect()
}

fn names<'a>(document: &'a Value, list: &'a Value) -> Vec<&'a str> {
    parameters(document, list).iter().map(|p| p["name"].as_str().unwrap()).collect()
}

#[test]
fn v2_is_whole() {
    let version = custom_version();
    let (docs, resources) = (Docs::default(), resources(&version));
    let document = parsed(&server(&docs, &resources).v2(&[]));
    let definitions = document["definitions"].as_object().unwrap();
    let mut without_parameters = document.clone();
    without_parameters["paths"] = serde_json::from_str(
        &document["paths"].to_string().replace("#/parameters/", "#/definitions/io.k8s.api.core.v1.Pod?"),
    )
    .unwrap();
    let mut known = definitions.clone();
    for name in document["parameters"].as_object().unwrap().keys() {
        known.insert(format!("io.k8s.api.core.v1.Pod?{name}"), Value::Null);
    }
    references_resolve(&without_parameters, "#/definitions/", &known);
    let list = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments"];
    assert_eq!(list["post"]["operationId"], "createAppsV1NamespacedDeployment");
    assert_eq!(list["delete"]["operationId"], "deleteAppsV1CollectionNamespacedDeployment");
    assert_eq!(list["get"]["x-kubernetes-action"], "list");
    let containers = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["items"]["$ref"], "#/definitions/io.k8s.api.core.v1.Container");
    let scale = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"];
    assert_eq!(scale["put"]["x-kubernetes-group-version-kind"]["kind"], "Scale");
}

/// What clients are generated from: names of operations, what they answer with, and the old paths of watches.
#[test]
fn operations_are_upstreams() {
    let version = custom_version();
    let (docs, resources) = (Docs::default(), resources(&version));
    let document = parsed(&server(&docs, &resources).v2(&[]));
    for (path, method, id, answer) in [
        ("/api/v1/pods", "get", "listCoreV1PodForAllNamespaces", "core.v1.PodList"),
        ("/api/v1/watch/pods", "get", "watchCoreV1PodListForAllNamespaces", "meta.v1.WatchEvent"),
        (
            "/api/v1/watch/namespaces/{namespace}/pods",
            "get",
            "watchCoreV1NamespacedPodList",
            "meta.v1.WatchEvent",
        ),
        (
            "/api/v1/watch/namespaces/{namespace}/pods/{name}",
            "get",
            "watchCoreV1NamespacedPod",
            "meta.v1.WatchEvent",
        ),
        ("/api/v1/namespaces/{namespace}/pods/{name}", "delete", "deleteCoreV1NamespacedPod", "core.v1.Pod"),
        (
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}",
            "delete",
            "deleteAppsV1NamespacedDeployment",
            "meta.v1.Status",
        ),
        (
            "/api/v1/namespaces/{namespace}/pods/{name}/eviction",
            "post",
            "createCoreV1NamespacedPodEviction",
            "policy.v1.Eviction",
        ),
        ("/api/v1/namespaces/{namespace}/pods/{name}/exec", "post", "connectCoreV1PostNamespacedPodExec", ""),
        ("/api/v1/namespaces/{namespace}/pods/{name}/log", "get", "readCoreV1NamespacedPodLog", ""),
        ("/api/", "get", "getCoreAPIVersions", "meta.v1.APIVersions"),
        ("/api/v1/", "get", "getCoreV1APIResources", "meta.v1.APIResourceList"),
        ("/apis/", "get", "getAPIVersions", "meta.v1.APIGroupList"),
        ("/apis/apps/", "get", "getAppsAPIGroup", "meta.v1.APIGroup"),
        ("/version/", "get", "getCodeVersion", "pkg.version.Info"),
        ("/openid/v1/jwks/", "get", "getServiceAccountIssuerOpenIDKeyset", ""),
    ] {
        let operation = &document["paths"][path][method];
        assert_eq!(operation["operationId"], id, "{path}");
        let schema = &operation["responses"]["200"]["schema"];
        match answer {
            "" => assert_eq!(*schema, json!({"type": "string"}), "{path}"),
            answer => assert!(schema["$ref"].as_str().unwrap().ends_with(&format!(".{answer}")), "{path}"),
        }
    }
    // Custom resources came when those paths were old, and nobody else's discovery is here.
    let custom: Vec<&String> =
        document["paths"].as_object().unwrap().keys().filter(|p| p.contains("stable.example.com")).collect();
    let root = "/apis/stable.example.com/v1";
    let namespaced = format!("{root}/namespaces/{{namespace}}/crontabs");
    let expected = [
        format!("{root}/crontabs"),
        namespaced.clone(),
        format!("{namespaced}/{{name}}"),
        format!("{namespaced}/{{name}}/scale"),
    ];
    assert_eq!(custom, expected.iter().collect::<Vec<_>>());
    let scale = &document["paths"][&expected[3]]["get"];
    assert_eq!(scale["x-kubernetes-group-version-kind"]["kind"], "CronTab");
    assert_eq!(scale["responses"]["200"]["schema"]["$ref"], "#/definitions/io.k8s.api.autoscaling.v1.Scale");
}

#[test]
fn parameters_stand_where_they_hold() {
    let version = custom_version();
    let (docs, resources) = (Docs::default(), resources(&version));
    let document = parsed(&server(&docs, &resources).v2(&[]));
    let item = |path: &str| &document["paths"][path];
    // What every method takes is the path's; the body is the method's.
    let one = item("/api/v1/namespaces/{namespace}/pods/{name}");
    assert_eq!(names(&document, &one["parameters"]), ["name", "namespace", "pretty"]);
    assert!(one["get"].get("parameters").is_none());
    assert_eq!(
        names(&document, &one["patch"]["parameters"]),
        ["body", "dryRun", "fieldManager", "fieldValidation", "force"]
    );
    let eviction = item("/api/v1/namespaces/{namespace}/pods/{name}/eviction");
    assert_eq!(
        names(&document, &eviction["parameters"]),
        ["dryRun", "fieldManager", "fieldValidation", "name", "namespace", "pretty"]
    );
    assert_eq!(names(&document, &eviction["post"]["parameters"]), ["body"]);
    let exec = item("/api/v1/namespaces/{namespace}/pods/{name}/exec");
    assert_eq!(
        names(&document, &exec["parameters"]),
        ["command", "container", "name", "namespace", "stderr", "stdin", "stdout", "tty"]
    );
    // Old versions of kubectl look for these two in their places.
    let post = &item("/api/v1/namespaces/{namespace}/pods")["post"]["parameters"];
    let inline: Vec<&Value> = post.as_array().unwrap().iter().filter_map(|p| p.get("name")).collect();
    assert_eq!(inline, ["body", "dryRun", "fieldValidation"]);
    let all = &item("/api/v1/namespaces/{namespace}/pods")["delete"];
    let delete = names(&document, &all["parameters"]);
    assert!(delete.contains(&"propagationPolicy") && delete.contains(&"labelSelector"));
    assert!(!delete.contains(&"watch"));
    let custom = item("/apis/stable.example.com/v1/namespaces/{namespace}/crontabs");
    let delete = names(&document, &custom["delete"]["parameters"]);
    assert!(delete.contains(&"watch") && !delete.contains(&"body"));
    let one = item("/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}");
    assert_eq!(names(&document, &one["get"]["parameters"]), ["resourceVersion"]);
}

#[test]
fn v3_is_whole() {
    let version = custom_version();
    let (docs, resources) = (Docs::default(), resources(&version));
    let server = server(&docs, &resources);
    assert_eq!(
        server.v3_seeds().into_keys().collect::<Vec<_>>(),
        [
            ".well-known/openid-configuration",
            "api",
            "api/v1",
            "apis",
            "apis/apps",
            "apis/apps/v1",
            "apis/stable.example.com/v1",
            "openid/v1/jwks",
            "version",
        ]
    );
    for name in server.v3_seeds().into_keys() {
        let document = parsed(&server.v3(&name).unwrap());
        let schemas = document["components"]["schemas"].as_object().cloned().unwrap_or_default();
        references_resolve(&document, "#/components/schemas/", &schemas);
        assert!(!document["paths"].as_object().unwrap().is_empty(), "{name}");
        match name.as_str() {
            "apis/apps/v1" => {
                let spec = &schemas["io.k8s.api.apps.v1.Deployment"]["properties"]["spec"];
                assert_eq!(
                    spec["allOf"][0]["$ref"],
                    "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"
                );
                assert!(spec["description"].is_string());
                let one = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
                assert!(one["patch"]["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "dryRun"));
                assert_eq!(one["patch"]["requestBody"]["required"], true);
                assert!(one["delete"]["requestBody"].get("required").is_none());
                let port = &schemas["io.k8s.api.core.v1.ContainerPort"]["properties"]["protocol"];
                assert_eq!(port["default"], "TCP");
                assert!(document["paths"].get("/apis/apps/v1/").is_some());
            }
            "apis/stable.example.com/v1" => {
                let kinds = &schemas["com.example.stable.v1.CronTab"]["x-kubernetes-group-version-kind"];
                assert_eq!(kinds[0]["kind"], "CronTab");
                assert_eq!(document["info"]["title"], "Kubernetes CRD Swagger");
                assert!(document["components"].get("securitySchemes").is_none());
            }
            _ => assert_eq!(document["info"]["version"], "1.36"),
        }
    }
    assert!(server.v3("apis/apps/v2").is_none());
    let index = parsed(&v3_index([("apis/apps/v1", "/openapi/v3/apis/apps/v1?hash=AB")]));
    assert_eq!(index["paths"]["apis/apps/v1"]["serverRelativeURL"], "/openapi/v3/apis/apps/v1?hash=AB");
}

/// The seed of one document does not know the others.
#[test]
fn seeds_change_with_the_document() {
    let version = custom_version();
    let (docs, before) = (Docs::default(), resources(&version));
    let mut after = before.clone();
    after[0].verbs.pop();
    let seeds = |resources: &[Resource<'_>]| {
        let mut seeds = server(&docs, resources).v3_seeds();
        ["api/v1", "apis/apps/v1"].map(|document| seeds.remove(document).unwrap())
    };
    let (before, after) = (seeds(&before), seeds(&after));
    assert_eq!(before[0], after[0]);
    assert_ne!(before[1], after[1]);
    assert_ne!(before[0], before[1]);
}

/// Strings of which only some values count say so, unless the feature is off (KEP-1940).
#[test]
fn enumerations_are_told() {
    let version = custom_version();
    let (docs, resources) = (Docs::default(), resources(&version));
    let on = server(&docs, &resources);
    let container = "io.k8s.api.core.v1.Container";
    let policy = |document: Value| {
        let definitions = document.get("definitions").unwrap_or(&document["components"]["schemas"]);
        definitions[container]["properties"]["imagePullPolicy"].clone()
    };
    for document in [on.v2(&[]), on.v3("api/v1").unwrap()] {
        let policy = policy(parsed(&document));
        assert_eq!(policy["enum"], json!(["Always", "IfNotPresent", "Never"]));
        let description = policy["description"].as_str().unwrap();
        assert!(description.contains("\n\nPossible enum values:\n - `\"Always\"`\n"), "{description}");
    }
    let off = policy(parsed(&Server { enums: false, ..on }.v2(&[])));
    assert!(off.get("enum").is_none());
    assert!(!off["description"].as_str().unwrap().contains("Possible enum values"));
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
    let version = custom_version();
    let (docs, resources) = (Docs::default(), resources(&version));
    let document = server(&docs, &resources).v2_protobuf(&[]);
    let fields = count(&document);
    assert_eq!(fields.keys().copied().collect::<Vec<_>>(), [1, 2, 8, 9, 10, 12, 13]);
    for (name, resources_in) in [("apis/apps/v1", 9), ("apis/stable.example.com/v1", 4), ("version", 1)] {
        let document = server(&docs, &resources).v3_protobuf(name).unwrap();
        let fields = count(&document);
        assert_eq!(fields.keys().copied().collect::<Vec<_>>(), [1, 2, 4, 5], "{name}");
        let json = parsed(&server(&docs, &resources).v3(name).unwrap());
        assert_eq!(json["paths"].as_object().unwrap().len(), resources_in, "{name}");
        // Not a word is lost on the way: every path and every definition is there by its name.
        let names =
            ["/paths", "/components/schemas"].map(|at| json.pointer(at).unwrap().as_object().unwrap());
        for name in names.into_iter().flat_map(|map| map.keys()) {
            assert!(document.windows(name.len()).any(|w| w == name.as_bytes()), "{name}");
        }
    }
    assert!(server(&docs, &resources).v3_protobuf("apis/nothing").is_none());
}
