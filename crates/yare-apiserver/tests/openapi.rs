//! `/openapi/v2` and `/openapi/v3`: what is published, in which form, and how clients keep it.

mod common;

use std::time::Duration;

use common::Server;
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const PODS: &str = "/api/v1/namespaces/{namespace}/pods";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/{namespace}/widgets";
const DOCUMENT: &str = "/openapi/v3/apis/example.com/v1";

fn definition(spec: Value) -> Value {
    json!({"metadata": {"name": "widgets.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "Widgets"},
        "versions": [{
            "name": "v1", "served": true, "storage": true,
            "selectableFields": [{"jsonPath": ".spec.color"}],
            "subresources": {
                "status": {},
                "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"},
            },
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": spec},
                "status": {"type": "object", "properties": {"size": {"type": "integer"}}},
            }}},
        }],
    }})
}

/// The URL of the custom resource's document, as the index has it.
async fn url(server: &Server) -> Option<String> {
    let index = server.get("/openapi/v3").await.expect(200);
    index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn every_document_of_the_index_is_there() {
    let server = Server::start().await;
    let index = server.get("/openapi/v3").await.expect(200);
    let paths = index["paths"].as_object().unwrap();
    for name in ["api", "api/v1", "apis", "apis/apps", "apis/apps/v1", "version"] {
        assert!(paths.contains_key(name), "{name}");
    }
    for (name, entry) in paths {
        let url = entry["serverRelativeURL"].as_str().unwrap();
        let answer = server.get(url).await;
        let hash = url.strip_prefix(&format!("/openapi/v3/{name}?hash=")).unwrap();
        assert_eq!(answer.headers["etag"], format!("\"{hash}\""), "{name}");
        let document = answer.expect(200);
        assert_eq!(document["info"], json!({"title": "Kubernetes", "version": "1.36"}), "{name}");
        assert!(!document["paths"].as_object().unwrap().is_empty(), "{name}");
    }
    let v2 = server.get("/openapi/v2").await.expect(200);
    assert_eq!(v2["info"], json!({"title": "Kubernetes", "version": "1.36"}));
    let pods = &v2["paths"][format!("{PODS}/{{name}}")];
    // What deletions answer with differs from kind to kind.
    let answer = "responses/200/schema/$ref".split('/').fold(&pods["delete"], |v, part| &v[part]);
    assert_eq!(*answer, "#/definitions/io.k8s.api.core.v1.Pod");
    assert_eq!(
        v2["paths"]["/api/v1/watch/namespaces/{namespace}/pods/{name}"]["get"]["operationId"],
        "watchCoreV1NamespacedPod"
    );
}

#[tokio::test]
async fn forms() {
    let server = Server::start().await;
    const V2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    const V3: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";
    let weighted = format!("{V2};q=0.5,application/json");
    for (path, accept, code, media) in [
        ("/openapi/v2", "", 200, "application/json"),
        ("/openapi/v2", "text/html,*/*;q=0.1", 200, "application/json"),
        ("/openapi/v2", V2, 200, V2),
        ("/openapi/v2", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf", 200, V2),
        ("/openapi/v2", weighted.as_str(), 200, "application/json"),
        ("/openapi/v2", "application/xml", 406, ""),
        ("/openapi/v2/", "", 404, "text/plain; charset=utf-8"),
        ("/openapi", "", 404, "text/plain; charset=utf-8"),
        ("/openapi/v3", "", 200, "text/plain; charset=utf-8"),
        ("/openapi/v3/", "", 404, ""),
        ("/openapi/v3/apis/apps/v1", "", 200, "application/json"),
        ("/openapi/v3/apis/apps/v1", V3, 200, V3),
        ("/openapi/v3/apis/apps/v1", "application/com.github.proto-openapi.spec.v3@v1.0+protobuf", 200, V3),
        ("/openapi/v3/apis/apps/v1", V2, 406, ""),
        ("/openapi/v3/apis/apps/v9", "", 404, ""),
    ] {
        let headers = [("accept", accept)];
        let headers = if accept.is_empty() { &[][..] } else { &headers[..] };
        let answer = server.send("GET", path, headers, "").await;
        let got = answer.headers.get("content-type").map_or("", |v| v.to_str().unwrap());
        assert_eq!((answer.code, got), (code, media), "{path} as {accept:?}");
        assert_eq!(answer.bytes.is_empty(), media.is_empty(), "{path} as {accept:?}");
    }
}

#[tokio::test]
async fn what_is_known_is_not_sent_again() {
    let server = Server::start().await;
    for path in ["/openapi/v2", "/openapi/v3/apis/apps/v1"] {
        let etag = server.get(path).await.headers["etag"].to_str().unwrap().to_owned();
        for (known, code) in [
            (etag.clone(), 304),
            (format!("W/{etag}"), 304),
            (format!("\"other\", {etag}"), 304),
            ("*".to_owned(), 304),
            ("\"other\"".to_owned(), 200),
        ] {
            let answer = server.send("GET", path, &[("if-none-match", known.as_str())], "").await;
            assert_eq!((answer.code, answer.bytes.is_empty()), (code, code == 304), "{path} {known}");
            assert_eq!(answer.headers["etag"], etag, "{path} {known}");
        }
    }
    // What is asked for by its hash never changes; an old hash leads to the new one.
    let plain = server.get("/openapi/v3/apis/apps/v1").await;
    assert_eq!(plain.headers["cache-control"], "no-cache, private");
    let old = server.get("/openapi/v3/apis/apps/v1?hash=AB").await;
    assert_eq!((old.code, old.bytes.is_empty()), (301, true));
    let new = old.headers["location"].to_str().unwrap();
    let kept = server.get(new).await;
    assert_eq!(kept.headers["cache-control"], "public, immutable");
    assert!(kept.headers["expires"].to_str().unwrap().ends_with(" GMT"));
    assert_eq!(kept.bytes, plain.bytes);
}

#[tokio::test]
async fn custom_resources_are_published() {
    let server = Server::start().await;
    server.post(CRDS, &definition(json!({"color": {"type": "string", "default": "red"}}))).await.expect(201);
    let mut first = None;
    for _ in 0..200 {
        first = url(&server).await;
        if first.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let first = first.expect("the resource is in the index in the end");
    let v3 = server.get(&first).await.expect(200);
    let v2 = server.get("/openapi/v2").await.expect(200);
    assert_eq!(v3["info"]["title"], "Kubernetes CRD Swagger");
    for (document, definitions) in [(&v2, &v2["definitions"]), (&v3, &v3["components"]["schemas"])] {
        for (path, methods) in [
            ("/apis/example.com/v1/widgets".to_owned(), &["get"][..]),
            (WIDGETS.to_owned(), &["get", "post", "delete"]),
            (format!("{WIDGETS}/{{name}}"), &["get", "put", "patch", "delete"]),
            (format!("{WIDGETS}/{{name}}/status"), &["get", "put", "patch"]),
            (format!("{WIDGETS}/{{name}}/scale"), &["get", "put", "patch"]),
        ] {
            let item = document["paths"][&path].as_object().unwrap();
            let have = item.keys().filter(|key| *key != "parameters").count();
            assert_eq!(have, methods.len(), "{path}");
            for method in methods {
                let gvk = &item[*method]["x-kubernetes-group-version-kind"];
                assert_eq!(
                    *gvk,
                    json!({"group": "example.com", "kind": "Widget", "version": "v1"}),
                    "{path}"
                );
            }
        }
        for name in ["com.example.v1.Widget", "com.example.v1.Widgets"] {
            let selectable = &definitions[name]["x-kubernetes-selectable-fields"];
            assert_eq!(*selectable, json!([{"fieldPath": "spec.color"}]), "{name}");
        }
    }
    let color = |schemas: &Value| {
        schemas["com.example.v1.Widget"]["properties"]["spec"]["properties"]["color"].clone()
    };
    // Defaults are v3's.
    assert_eq!(color(&v2["definitions"]), json!({"type": "string"}));
    assert_eq!(color(&v3["components"]["schemas"]), json!({"type": "string", "default": "red"}));

    // Another schema is another document.
    let versions =
        definition(json!({"size": {"type": "integer"}, "color": {"type": "string"}}))["spec"]["versions"]
            .clone();
    let path = format!("{CRDS}/widgets.example.com");
    server.patch("merge", &path, &json!({"spec": {"versions": versions}})).await.expect(200);
    let mut second = first.clone();
    for _ in 0..200 {
        second = url(&server).await.unwrap();
        if second != first {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_ne!(second, first);
    assert_eq!(server.get(&first).await.headers["location"], second);
    assert_eq!(
        color(&server.get(DOCUMENT).await.expect(200)["components"]["schemas"]),
        json!({"type": "string"})
    );
}
