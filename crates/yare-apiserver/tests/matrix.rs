//! Every verb in every encoding and shape, for a built-in and a custom resource, with and without CBOR.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Answer, Server};
use futures::future::join_all;
use serde_json::{Value, json};
use yare_schema::{
    builtin::builtin,
    cbor,
    decode::{self, Mode, Syntax},
    features::Gates,
    model::TypeRef,
    proto,
};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const CBOR: &str = "application/cbor";
const ENCODINGS: [&str; 4] = [JSON, YAML, PROTOBUF, CBOR];
const WITHOUT: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const WITH: &str =
    "application/json, application/yaml, application/vnd.kubernetes.protobuf, application/cbor";

async fn server(cbor: bool) -> Server {
    let server = Server::with(|config| {
        config.gates = Gates::parse(&format!("CBORServingAndStorage={cbor}")).unwrap();
    })
    .await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "properties": {
                    "size": {"type": "integer"}, "share": {"type": "number"}, "text": {"type": "string"}
                }}}
            }}}],
        },
    });
    server.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.expect(201);
    for _ in 0..200 {
        if server.get("/apis/example.com/v1/widgets").await.code == 200 {
            return server;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("widgets are not served");
}

/// A resource under test.
#[derive(Clone, Copy)]
struct Kind {
    path: &'static str,
    api_version: &'static str,
    kind: &'static str,
    custom: bool,
}

const KINDS: [Kind; 2] = [
    Kind {
        path: "/api/v1/namespaces/default/configmaps",
        api_version: "v1",
        kind: "ConfigMap",
        custom: false,
    },
    Kind {
        path: "/apis/example.com/v1/namespaces/default/widgets",
        api_version: "example.com/v1",
        kind: "Widget",
        custom: true,
    },
];

impl Kind {
    fn object(self, name: &str) -> Value {
        let mut object = json!({"apiVersion": self.api_version, "kind": self.kind, "metadata": {"name": name, "labels": {"a": name}}});
        if self.custom {
            object["spec"] = json!({"size": 3, "share": 0.25, "text": "ä"});
        } else {
            object["data"] = json!({"text": "ä"});
            object["binaryData"] = json!({"raw": "AAH/"});
        }
        object
    }
}

fn type_of(api_version: &str, kind: &str) -> Option<TypeRef<'static>> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let meta = format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}");
    builtin().lookup(group, version, kind).or_else(|| builtin().definition(&meta))
}

fn encoded(media: &str, value: &Value) -> Vec<u8> {
    match media {
        PROTOBUF => {
            let ty = type_of(value["apiVersion"].as_str().unwrap(), value["kind"].as_str().unwrap()).unwrap();
            proto::to_wire(ty, value)
        }
        CBOR | "application/apply-patch+cbor" => {
            let mut out = cbor::SELF_DESCRIBED.to_vec();
            cbor::write(None, value.to_string().as_bytes(), &mut out).unwrap();
            out
        }
        // JSON is YAML.
        _ => value.to_string().into_bytes(),
    }
}

fn decoded(media: &str, bytes: &[u8]) -> Value {
    match media {
        YAML => yare_apiserver::codec::from_yaml(bytes).unwrap(),
        CBOR => {
            assert!(bytes.starts_with(&cbor::SELF_DESCRIBED));
            decode::decode_untyped_as(bytes, Syntax::Cbor, Mode::Strict).unwrap().value
        }
        PROTOBUF => {
            let envelope = proto::unwrap(bytes).unwrap();
            let ty = type_of(&envelope.api_version, &envelope.kind);
            let ty = ty.unwrap_or_else(|| panic!("no type for {} {}", envelope.api_version, envelope.kind));
            let mut value = proto::decode(ty, envelope.raw).unwrap();
            value["apiVersion"] = envelope.api_version.into();
            value["kind"] = envelope.kind.into();
            value
        }
        _ => serde_json::from_slice(bytes)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(bytes))),
    }
}

/// Events of a watch with their objects.
fn events(media: &str, mut bytes: &[u8]) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (event, length) = match media {
            CBOR => {
                let length = cbor::first(bytes).unwrap();
                (decoded(CBOR, &bytes[..length]), length)
            }
            PROTOBUF => {
                let length = 4 + u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
                // WatchEvent{type = 1, object = 2: RawExtension{raw = 1}}
                let event = &bytes[4..length];
                let kind = usize::from(event[1]);
                let start = event.windows(4).position(|w| w == b"k8s\0").unwrap();
                let name = String::from_utf8(event[2..2 + kind].to_vec()).unwrap();
                (json!({"type": name, "object": decoded(PROTOBUF, &event[start..])}), length)
            }
            _ => {
                let length = bytes.iter().position(|b| *b == b'\n').unwrap() + 1;
                (serde_json::from_slice(&bytes[..length]).unwrap(), length)
            }
        };
        out.push((event["type"].as_str().unwrap().to_owned(), event["object"].clone()));
        bytes = &bytes[length..];
    }
    out
}

/// What objects are made into.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Shape {
    Full,
    Table(&'static str),
    Partial(&'static str),
}

const SHAPES: [Shape; 5] = [
    Shape::Full,
    Shape::Table("v1"),
    Shape::Table("v1beta1"),
    Shape::Partial("v1"),
    Shape::Partial("v1beta1"),
];

impl Shape {
    fn accept(self, media: &str, list: bool) -> String {
        match self {
            Self::Full => media.to_owned(),
            Self::Table(v) => format!("{media};as=Table;v={v};g=meta.k8s.io"),
            Self::Partial(v) => {
                let list = if list { "List" } else { "" };
                format!("{media};as=PartialObjectMetadata{list};v={v};g=meta.k8s.io")
            }
        }
    }

    /// `apiVersion` and `kind` of what is answered.
    fn identity(self, of: Kind, list: bool) -> (String, String) {
        let list = if list { "List" } else { "" };
        match self {
            Self::Full => (of.api_version.to_owned(), format!("{}{list}", of.kind)),
            Self::Table(v) => (format!("meta.k8s.io/{v}"), "Table".into()),
            Self::Partial(v) => (format!("meta.k8s.io/{v}"), format!("PartialObjectMetadata{list}")),
        }
    }
}

#[track_caller]
fn refused(answer: &Answer, code: u16, message: &str, what: &str) {
    assert_eq!(answer.code, code, "{what}: {}", answer.text());
    let media = answer.headers["content-type"].to_str().unwrap();
    assert_eq!(decoded(media, &answer.bytes)["message"], message, "{what}");
}

/// What an answer holds must be what was asked for.
#[track_caller]
fn checked(answer: &Answer, media: &str, shape: Shape, of: Kind, list: bool, what: &str) {
    assert!(matches!(answer.code, 200 | 201), "{what}: {} {}", answer.code, answer.text());
    assert_eq!(answer.headers["content-type"], media, "{what}");
    let value = decoded(media, &answer.bytes);
    let (api_version, kind) = shape.identity(of, list);
    assert_eq!(
        (value["apiVersion"].as_str(), value["kind"].as_str()),
        (Some(&*api_version), Some(&*kind)),
        "{what}"
    );
    let first = match (shape, list) {
        (Shape::Table(_), _) => &value["rows"][0]["object"],
        (_, true) => &value["items"][0],
        (_, false) => &value,
    };
    assert!(first["metadata"]["labels"]["a"].is_string(), "{what}: {value}");
    if shape == Shape::Full && of.custom {
        assert_eq!(first["spec"], json!({"size": 3, "share": 0.25, "text": "ä"}), "{what}");
    } else if shape == Shape::Full {
        assert_eq!(
            (&first["data"]["text"], &first["binaryData"]["raw"]),
            (&json!("ä"), &json!("AAH/")),
            "{what}"
        );
    } else if let Shape::Table(version) = shape {
        assert_eq!(first["apiVersion"], format!("meta.k8s.io/{version}"), "{what}");
        assert!(value["columnDefinitions"].as_array().is_some_and(|c| c.len() >= 2), "{what}");
    }
}

async fn one_cell(server: &Server, of: Kind, media: &'static str, shape: Shape, cbor: bool, number: usize) {
    let what = format!("{} {media} {shape:?} cbor={cbor}", of.kind);
    let name = format!("n{number}");
    let path = format!("{}/{name}", of.path);
    let (one, many) = (shape.accept(media, false), shape.accept(media, true));
    let all = if cbor { WITH } else { WITHOUT };
    let body = if (of.custom && media == PROTOBUF) || (media == CBOR && !cbor) { JSON } else { media };
    let create = server
        .send("POST", of.path, &[("accept", &one), ("content-type", body)], encoded(body, &of.object(&name)))
        .await;
    let possible = match (media, shape) {
        (CBOR, _) if !cbor => false,
        (PROTOBUF | CBOR, Shape::Table(_)) => false,
        (PROTOBUF, Shape::Full) => !of.custom,
        _ => true,
    };
    if !possible {
        // What the router of built-in resources does not know it refuses itself.
        let routed = !of.custom && media == CBOR && !cbor;
        let message = match routed {
            true => format!("406: Not Acceptable\n\nAvailable representations: {all}"),
            false => format!("only the following media types are accepted: {all}"),
        };
        refused(&create, 406, &message, &what);
        assert_eq!(server.get(&path).await.code, 404, "{what}: nothing is done for who takes no answer");
        server.post(of.path, &of.object(&name)).await.expect(201);
        let (patch, merge) =
            (json!({"metadata": {"labels": {"b": "c"}}}).to_string(), "application/merge-patch+json");
        for (method, content, body) in
            [("GET", "", ""), ("PUT", JSON, "{}"), ("PATCH", merge, &patch), ("DELETE", "", "")]
        {
            let mut headers = vec![("accept", &*one)];
            if !content.is_empty() {
                headers.push(("content-type", content));
            }
            refused(&server.send(method, &path, &headers, body.to_owned()).await, 406, &message, &what);
        }
        for (method, query) in [("GET", ""), ("DELETE", "?labelSelector=a=none")] {
            let path = format!("{}{query}", of.path);
            let streams = match routed && method == "GET" {
                true => ", application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch",
                false => "",
            };
            let message = format!("{message}{streams}");
            refused(&server.send(method, &path, &[("accept", &many)], "").await, 406, &message, &what);
        }
        let left = server.get(&path).await.expect(200);
        assert!(left["metadata"]["labels"]["b"].is_null());
        server.delete(&path).await.expect(200);
        return;
    }
    checked(&create, media, shape, of, false, &format!("create {what}"));
    checked(&server.send("GET", &path, &[("accept", &one)], "").await, media, shape, of, false, &what);
    let list = format!("{}?labelSelector=a={name}", of.path);
    checked(
        &server.send("GET", &list, &[("accept", &many)], "").await,
        media,
        shape,
        of,
        true,
        &format!("list {what}"),
    );
    let stored = server.get(&path).await.expect(200);
    let headers = [("accept", &*one), ("content-type", body)];
    let update = server.send("PUT", &path, &headers, encoded(body, &stored)).await;
    checked(&update, media, shape, of, false, &format!("update {what}"));
    let merge = [("accept", &*one), ("content-type", "application/merge-patch+json; charset=utf-8")];
    let patch =
        server.send("PATCH", &path, &merge, json!({"metadata": {"labels": {"b": "c"}}}).to_string()).await;
    checked(&patch, media, shape, of, false, &format!("patch {what}"));

    let watch = format!(
        "{list}&watch=1&timeoutSeconds=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    );
    let watched = server.send("GET", &watch, &[("accept", &one)], "").await;
    let streams = if cbor { ", application/cbor-seq" } else { "" };
    if media == YAML {
        let message = format!(
            "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch{streams}"
        );
        refused(&watched, 406, &message, &what);
    } else {
        let content = match media {
            PROTOBUF => "application/vnd.kubernetes.protobuf;stream=watch",
            CBOR => "application/cbor-seq",
            media => media,
        };
        assert_eq!(watched.headers["content-type"], content, "{what}");
        let events = events(media, &watched.bytes);
        // As the watch ends it says once more how far it came.
        let kinds: Vec<&str> = events.iter().map(|e| &*e.0).collect();
        assert_eq!(kinds[..2], ["ADDED", "BOOKMARK"], "{what}");
        assert!(kinds[2..].iter().all(|k| *k == "BOOKMARK"), "{what}");
        let (api_version, kind) = shape.identity(of, false);
        for (at, (_, object)) in events.iter().enumerate() {
            assert_eq!(
                (object["apiVersion"].as_str(), object["kind"].as_str()),
                (Some(&*api_version), Some(&*kind)),
                "{what}"
            );
            if matches!(shape, Shape::Table(_)) {
                assert_eq!(object["columnDefinitions"].is_array(), at == 0, "{what}: columns come once");
            }
        }
    }

    // What is gone is a Status, whatever form its object was to have.
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "other"}});
    let content = if media == CBOR && !cbor { JSON } else { media };
    let wrong = server
        .send("DELETE", &path, &[("accept", &one), ("content-type", content)], encoded(content, &options))
        .await;
    assert_eq!(wrong.code, 409, "{what}: {}", wrong.text());
    let gone = server.send("DELETE", &path, &[("accept", &one)], "").await;
    assert_eq!(
        (gone.code, gone.headers["content-type"].to_str().unwrap()),
        (200, media),
        "{what}: {}",
        gone.text()
    );
    let status = decoded(media, &gone.bytes);
    assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Success")), "{what}");
    server.post(of.path, &of.object(&name)).await.expect(201);
    let all = server.send("DELETE", &list, &[("accept", &many)], "").await;
    checked(&all, media, shape, of, true, &format!("deletecollection {what}"));
    assert_eq!(server.get(&path).await.code, 404, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_in_every_encoding_and_shape() {
    for cbor in [true, false] {
        let server = server(cbor).await;
        let mut cells = Vec::new();
        for of in KINDS {
            for media in ENCODINGS {
                for shape in SHAPES {
                    cells.push(one_cell(&server, of, media, shape, cbor, cells.len()));
                }
            }
        }
        join_all(cells).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_refused() {
    let server = server(true).await;
    let [maps, widgets] = KINDS;
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    };
    let strange = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "y": 1});
    let enveloped = proto::wrap("example.com/v1", "Widget", b"");
    let unknown = "cbor: found unknown field at map element index 3";
    let accepted =
        format!("the body of the request was in an unknown format - accepted media types include: {WITH}");
    for (of, query, media, body, code, want) in [
        (maps, "", "text/plain", b"{}".to_vec(), 415, accepted.clone()),
        (maps, "", "application/cbor-seq", b"{}".to_vec(), 415, accepted.clone()),
        (widgets, "", "application/json;charset", b"{}".to_vec(), 415, accepted),
        (maps, "", CBOR, vec![], 400, "the object provided is unrecognized (must be of type ConfigMap): unable to determine group/version/kind: EOF (<empty>)".into()),
        (maps, "", PROTOBUF, vec![], 400, "the object provided is unrecognized (must be of type ConfigMap): empty data (<empty>)".into()),
        (maps, "", CBOR, hex("a1"), 400, "the object provided is unrecognized (must be of type ConfigMap): unable to determine group/version/kind: unexpected EOF (a1)".into()),
        (maps, "", CBOR, hex("a2646b696e64646b696e64446b696e646161"), 400, "the object provided is unrecognized (must be of type ConfigMap): unable to determine group/version/kind: cbor: found duplicate map key \"kind\" at map element index 1 (a2646b696e64646b696e64446b696e646161)".into()),
        (maps, "?fieldValidation=Strict", CBOR, encoded(CBOR, &strange), 400, format!("ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: {unknown}")),
        (maps, "", CBOR, encoded(CBOR, &json!({"data": {"a": 1}})), 400, "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: cbor: cannot unmarshal positive integer into Go struct field v1.ConfigMap.data of type string".into()),
        (widgets, "", PROTOBUF, enveloped, 400, "Widget in version \"v1\" cannot be handled as a Widget: object *unstructured.Unstructured does not implement the protobuf marshalling interface and cannot be encoded to a protobuf message".into()),
        (widgets, "", PROTOBUF, b"{}".to_vec(), 400, "the object provided is unrecognized (must be of type Widget): provided data does not appear to be a protobuf message, expected prefix [107 56 115 0] ({})".into()),
    ] {
        let path = format!("{}{query}", of.path);
        let answer = server.send("POST", &path, &[("content-type", media)], body).await;
        refused(&answer, code, &want, media);
    }
    // What is not refused is warned of, or said nothing of.
    for (of, query, warning) in
        [(maps, "", unknown), (maps, "?fieldValidation=Ignore", ""), (widgets, "?fieldValidation=Strict", "")]
    {
        let mut object = of.object(if query.is_empty() { "warned" } else { "quiet" });
        object.as_object_mut().unwrap().remove("binaryData");
        let at = object.as_object().unwrap().len();
        object["zzz"] = json!(1);
        let path = format!("{}{query}", of.path);
        let answer = server.send("POST", &path, &[("content-type", CBOR)], encoded(CBOR, &object)).await;
        assert_eq!(answer.code, 201, "{}", answer.text());
        let warned =
            answer.headers.get("warning").map(|w| w.to_str().unwrap().to_owned()).unwrap_or_default();
        if warning.is_empty() {
            assert_eq!(warned, "");
        } else {
            assert!(warned.contains(&format!("index {at}")), "{warned}");
        }
        assert!(answer.json()["zzz"].is_null());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_in_cbor() {
    let apply = "application/apply-patch+cbor";
    let server = server(true).await;
    let off = self::server(false).await;
    for of in KINDS {
        let path = format!("{}/a?fieldManager=m", of.path);
        let body = encoded(CBOR, &of.object("a"));
        let made =
            server.send("PATCH", &path, &[("content-type", apply), ("accept", CBOR)], body.clone()).await;
        checked(&Answer { code: made.code, ..made }, CBOR, Shape::Full, of, false, of.kind);
        let fields = server.get(&path).await.expect(200);
        assert_eq!(fields["metadata"]["managedFields"][0]["operation"], "Apply");
        let without =
            server.send("PATCH", &format!("{}/a", of.path), &[("content-type", apply)], body.clone()).await;
        refused(
            &without,
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
            of.kind,
        );
        let bad = server.send("PATCH", &path, &[("content-type", apply)], vec![0xa1]).await;
        refused(&bad, 400, "error decoding YAML: unexpected EOF", of.kind);
        // Only what takes custom resources says which types it takes.
        let types = |more: &str| match of.custom {
            true => format!(
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml{more}"
            ),
            false => "415: Unsupported Media Type".to_owned(),
        };
        refused(&off.send("PATCH", &path, &[("content-type", apply)], body).await, 415, &types(""), of.kind);
        let other = server.send("PATCH", &path, &[("content-type", JSON)], "{}").await;
        refused(&other, 415, &types(&format!(", {apply}")), of.kind);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_tables_and_their_options() {
    let server = server(true).await;
    let [maps, widgets] = KINDS;
    for i in 0..40 {
        let mut object = maps.object(&format!("m{i}"));
        object["data"]["long"] = "0123456789".repeat(600).into();
        server.post(maps.path, &object).await.expect(201);
    }
    // A list in CBOR is the list in JSON, in pieces, compressed or not.
    let want = server.get(maps.path).await.expect(200);
    let plain = server.send("GET", maps.path, &[("accept", CBOR)], "").await;
    assert_eq!(decoded(CBOR, &plain.bytes), want);
    let packed = server.send("GET", maps.path, &[("accept", CBOR), ("accept-encoding", "gzip")], "").await;
    assert_eq!(
        (&packed.headers["content-encoding"], &packed.headers["content-type"]),
        (&"gzip".parse().unwrap(), &CBOR.parse().unwrap())
    );
    assert!(packed.bytes.len() < plain.bytes.len() / 10);
    // Bytes are bytes: tag 22.
    assert!(plain.bytes.windows(8).any(|w| w == b"Craw\xd6\x43\x00\x01"));

    for (include, object) in [
        ("", json!("PartialObjectMetadata")),
        ("None", Value::Null),
        ("Metadata", json!("PartialObjectMetadata")),
        ("Object", json!("ConfigMap")),
    ] {
        for media in [JSON, YAML] {
            let path = format!("{}?includeObject={include}&limit=1", maps.path);
            let answer =
                server.send("GET", &path, &[("accept", &Shape::Table("v1").accept(media, true))], "").await;
            assert_eq!(
                decoded(media, &answer.bytes)["rows"][0]["object"]["kind"],
                object,
                "{include} {media}"
            );
        }
    }
    server.post(widgets.path, &widgets.object("w")).await.expect(201);
    for (path, accept, want) in [
        (
            maps.path.to_owned(),
            "PartialObjectMetadata",
            "you requested PartialObjectMetadata, but the requested object is a list (*core.ConfigMapList)",
        ),
        (
            widgets.path.to_owned(),
            "PartialObjectMetadata",
            "you requested PartialObjectMetadata, but the requested object is a list (*unstructured.UnstructuredList)",
        ),
        (
            format!("{}/m1", maps.path),
            "PartialObjectMetadataList",
            "you requested PartialObjectMetadataList, but the requested object is not a list (*core.ConfigMap)",
        ),
    ] {
        let accept = format!("application/json;as={accept};v=v1;g=meta.k8s.io");
        refused(&server.send("GET", &path, &[("accept", &accept)], "").await, 406, want, &accept);
    }
    // Errors come in the encoding that is taken; who takes none of it gets JSON.
    let missing = format!("{}/none", maps.path);
    for (accept, media) in [
        (CBOR, CBOR),
        ("application/cbor;as=Table;v=v1;g=meta.k8s.io", JSON),
        ("text/html,application/cbor", CBOR),
    ] {
        let answer = server.send("GET", &missing, &[("accept", accept)], "").await;
        let message = if media == CBOR {
            "configmaps \"none\" not found".to_owned()
        } else {
            format!("only the following media types are accepted: {WITH}")
        };
        assert_eq!(answer.headers["content-type"], media, "{accept}");
        refused(&answer, if media == CBOR { 404 } else { 406 }, &message, accept);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_and_openapi() {
    let server = server(true).await;
    let aggregated = ";g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    for (path, media, kind) in [
        ("/api", JSON, "APIVersions"),
        ("/apis", YAML, "APIGroupList"),
        ("/apis", PROTOBUF, "APIGroupList"),
        ("/apis/apps", PROTOBUF, "APIGroup"),
        ("/api/v1", CBOR, "APIResourceList"),
        ("/apis/apps/v1", CBOR, "APIResourceList"),
        ("/apis/example.com/v1", PROTOBUF, "APIResourceList"),
    ] {
        let answer = server.send("GET", path, &[("accept", media)], "").await;
        assert_eq!((answer.code, answer.headers["content-type"].to_str().unwrap()), (200, media), "{path}");
        assert_eq!(decoded(media, &answer.bytes)["kind"], kind, "{path}");
    }
    for path in ["/apis", "/apis/apps", "/apis/example.com/v1"] {
        let answer = server.send("GET", path, &[("accept", CBOR)], "").await;
        refused(&answer, 406, &format!("only the following media types are accepted: {WITHOUT}"), path);
    }
    for media in [JSON, YAML, PROTOBUF] {
        let accept = format!("application/json, {media}{aggregated}");
        let answer = server.send("GET", "/apis", &[("accept", &accept)], "").await;
        assert_eq!(answer.headers["content-type"], format!("{media}{aggregated}"), "{media}");
        let groups = decoded(media, &answer.bytes);
        let names: Vec<&str> = groups["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|g| g["metadata"]["name"].as_str().unwrap())
            .collect();
        assert!(names.contains(&"apps") && names.contains(&"example.com"), "{media}: {names:?}");
    }
    let off = self::server(false).await;
    for (server, cbor) in [(&server, true), (&off, false)] {
        let document = server.get("/openapi/v2").await.expect(200);
        let item = &document["paths"]["/api/v1/namespaces/{namespace}/configmaps"]["get"]["produces"];
        let patch =
            &document["paths"]["/api/v1/namespaces/{namespace}/configmaps/{name}"]["patch"]["consumes"];
        let has = |list: &Value, media: &str| list.as_array().unwrap().iter().any(|m| m == media);
        assert_eq!((has(item, CBOR), has(item, "application/cbor-seq")), (cbor, cbor), "{item}");
        assert_eq!(has(patch, "application/apply-patch+cbor"), cbor, "{patch}");
    }
}
