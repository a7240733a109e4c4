//! Input that makes no sense: each row asserts upstream's status code and reason.

mod common;

use common::Server;
use serde_json::json;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Method, path, content type, body, code, reason, and a part of the message.
type Row = (&'static str, String, &'static str, Vec<u8>, u16, &'static str, &'static str);

#[tokio::test]
async fn bodies() {
    let server = Server::start().await;
    let json = "application/json";
    let yaml = "application/yaml";
    let post = |body: &[u8], code, reason, part| -> Row {
        ("POST", CONFIG_MAPS.to_owned(), json, body.to_vec(), code, reason, part)
    };
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let nested =
        format!(r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"a"}},"data":{deep}}}"#);
    let rows: Vec<Row> = vec![
        post(b"", 400, "BadRequest", "must be of type ConfigMap"),
        post(b"{", 400, "BadRequest", "must be of type ConfigMap"),
        post(b"nonsense", 400, "BadRequest", "must be of type ConfigMap"),
        post(b"[]", 400, "BadRequest", ""),
        post(b"7", 400, "BadRequest", ""),
        post(b"null", 422, "Invalid", "metadata.name: Required value: name or generateName is required"),
        // Invalid UTF-8 reads as replacement characters, as in Go.
        post(b"{\"metadata\":{\"name\":\"\xff\xfe\"}}", 422, "Invalid", "metadata.name"),
        post(
            br#"{"metadata":{"name":7}}"#,
            400,
            "BadRequest",
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string",
        ),
        post(br#"{"metadata":{"name":"a"},"data":["x"]}"#, 400, "BadRequest", "cannot unmarshal array"),
        post(br#"{"metadata":{"name":"a"},"data":{"x":1}}"#, 400, "BadRequest", "cannot unmarshal number"),
        post(br#"{"metadata":{"name":"a"},"binaryData":{"x":"%%%"}}"#, 400, "BadRequest", "illegal base64"),
        post(
            br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"}}"#,
            400,
            "BadRequest",
            "cannot be handled as a ConfigMap",
        ),
        post(
            br#"{"kind":"ConfigMap","apiVersion":"v2","metadata":{"name":"a"}}"#,
            400,
            "BadRequest",
            "no kind \"ConfigMap\" is registered for version \"v2\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
        ),
        post(br#"{"metadata":{}}"#, 422, "Invalid", "name or generateName is required"),
        post(br#"{"metadata":{"name":"UPPER"}}"#, 422, "Invalid", "RFC 1123 subdomain"),
        post(br#"{"metadata":{"name":"../etc"}}"#, 422, "Invalid", "metadata.name"),
        post(
            br#"{"metadata":{"name":"a","namespace":"other"}}"#,
            400,
            "BadRequest",
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        post(
            br#"{"metadata":{"name":"a","resourceVersion":"5"}}"#,
            500,
            "",
            "resourceVersion should not be set on objects to be created",
        ),
        post(br#"{"metadata":{"name":"a","labels":{"x y":"z"}}}"#, 422, "Invalid", "metadata.labels"),
        post(nested.as_bytes(), 400, "BadRequest", ""),
        post(deep.as_bytes(), 400, "BadRequest", ""),
        post(&vec![b' '; 4 << 20], 413, "RequestEntityTooLarge", "limit is 3145728"),
        ("POST", CONFIG_MAPS.into(), yaml, b"a: [".to_vec(), 400, "BadRequest", ""),
        ("POST", CONFIG_MAPS.into(), yaml, b"metadata: {name: a}\ndata: 7\n".to_vec(), 400, "BadRequest", ""),
        ("POST", CONFIG_MAPS.into(), "application/xml", b"<a/>".to_vec(), 415, "UnsupportedMediaType", ""),
        (
            "POST",
            CONFIG_MAPS.into(),
            "application/vnd.kubernetes.protobuf",
            b"k8s\0\xff\xff\xff".to_vec(),
            400,
            "BadRequest",
            "",
        ),
        (
            "POST",
            CONFIG_MAPS.into(),
            "application/vnd.kubernetes.protobuf",
            b"nope".to_vec(),
            400,
            "BadRequest",
            "",
        ),
        (
            "POST",
            format!("{CONFIG_MAPS}?fieldValidation=Strict"),
            json,
            br#"{"metadata":{"name":"a"},"dada":{}}"#.to_vec(),
            400,
            "BadRequest",
            "strict decoding error: unknown field \"dada\"",
        ),
        (
            "POST",
            format!("{CONFIG_MAPS}?fieldValidation=Strict"),
            json,
            br#"{"metadata":{"name":"a"},"data":{"a":"1","a":"2"}}"#.to_vec(),
            400,
            "BadRequest",
            "duplicate field",
        ),
        (
            "POST",
            format!("{CONFIG_MAPS}?fieldValidation=Maybe"),
            json,
            br#"{"metadata":{"name":"a"}}"#.to_vec(),
            422,
            "Invalid",
            "fieldValidation",
        ),
        (
            "POST",
            format!("{CONFIG_MAPS}?fieldManager={}", "x".repeat(200)),
            json,
            br#"{"metadata":{"name":"a"}}"#.to_vec(),
            422,
            "Invalid",
            "fieldManager",
        ),
        (
            "PUT",
            format!("{CONFIG_MAPS}/a"),
            json,
            br#"{"metadata":{"name":"b"}}"#.to_vec(),
            400,
            "BadRequest",
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (
            "DELETE",
            format!("{CONFIG_MAPS}/a"),
            json,
            br#"{"propagationPolicy":"Sideways"}"#.to_vec(),
            422,
            "Invalid",
            "propagationPolicy",
        ),
        (
            "DELETE",
            format!("{CONFIG_MAPS}/a?propagationPolicy=Sideways"),
            json,
            Vec::new(),
            422,
            "Invalid",
            "propagationPolicy",
        ),
        (
            "POST",
            "/api/v1/configmaps".into(),
            json,
            br#"{"metadata":{"name":"a"}}"#.to_vec(),
            405,
            "MethodNotAllowed",
            "",
        ),
        (
            "POST",
            format!("{CONFIG_MAPS}/a"),
            json,
            br#"{"metadata":{"name":"a"}}"#.to_vec(),
            405,
            "MethodNotAllowed",
            "",
        ),
        (
            "PATCH",
            CONFIG_MAPS.into(),
            "application/merge-patch+json",
            b"{}".to_vec(),
            405,
            "MethodNotAllowed",
            "",
        ),
        ("GET", "/api/v2/namespaces/default/configmaps".into(), json, Vec::new(), 404, "NotFound", ""),
        ("GET", format!("{CONFIG_MAPS}?limit=x"), json, Vec::new(), 400, "BadRequest", ""),
        (
            "GET",
            format!("{CONFIG_MAPS}?resourceVersion=x"),
            json,
            Vec::new(),
            400,
            "BadRequest",
            "resource version",
        ),
        ("GET", format!("{CONFIG_MAPS}?labelSelector=a%20in%20b"), json, Vec::new(), 400, "BadRequest", ""),
        (
            "GET",
            format!("{CONFIG_MAPS}?fieldSelector=spec.nope%3Dx"),
            json,
            Vec::new(),
            400,
            "BadRequest",
            "is not a known field selector",
        ),
        (
            "GET",
            format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true"),
            json,
            Vec::new(),
            422,
            "Invalid",
            "sendInitialEvents requires",
        ),
        ("GET", format!("{CONFIG_MAPS}/a?pretty=%ff"), json, Vec::new(), 404, "NotFound", ""),
    ];
    let mut wrong: Vec<String> = Vec::new();
    for (method, path, media, body, code, reason, part) in rows {
        let shown = format!("{method} {path} {}", String::from_utf8_lossy(&body[..body.len().min(80)]));
        let answer = server.send(method, &path, &[("content-type", media)], body).await;
        let status: serde_json::Value = serde_json::from_slice(&answer.bytes).unwrap_or_default();
        let message = status["message"].as_str().unwrap_or_default();
        if answer.code != code
            || status["reason"].as_str().unwrap_or_default() != reason
            || status["code"] != code
            || !message.contains(part)
        {
            wrong.push(format!(
                "{shown}\n    want {code} {reason} …{part}…\n    have {} {}",
                answer.code,
                answer.text()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Nothing of all that was stored, and the server still answers.
    let list = server.get(CONFIG_MAPS).await.expect(200);
    assert_eq!(list["items"].as_array().map(Vec::len), Some(0), "{list}");
}

#[tokio::test]
async fn revisions_out_of_reach() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}})).await.expect(201);
    let message =
        server.get(&format!("{CONFIG_MAPS}?resourceVersion=999999")).await.expect_reason(504, "Timeout");
    assert!(message.contains("Too large resource version: 999999"), "{message}");
    server.api.core().store().compact(server.api.core().store().revision()).await;
    let mut old = server.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=1")).await;
    let event = old.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event["object"]["reason"], "Expired");
    assert!(old.next().await.is_none());
    let message = server
        .get(&format!("{CONFIG_MAPS}?resourceVersion=1&resourceVersionMatch=Exact"))
        .await
        .expect_reason(410, "Expired");
    assert!(message.contains("too old"), "{message}");
}

#[tokio::test]
async fn preconditions() {
    let server = Server::start().await;
    let made = server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}})).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    for (options, part) in [
        (json!({"preconditions": {"uid": "other"}}), "the UID in the precondition (other) does not match"),
        (
            json!({"preconditions": {"resourceVersion": "1"}}),
            "the ResourceVersion in the precondition (1) does not match",
        ),
    ] {
        let answer =
            server.send("DELETE", &path, &[("content-type", "application/json")], options.to_string()).await;
        let message = answer.expect_reason(409, "Conflict");
        assert!(message.contains(part), "{message}");
    }
    let mut other = made.clone();
    other["metadata"]["uid"] = "other".into();
    server.put(&path, &other).await.expect_reason(409, "Conflict");
    let mut renamed = made.clone();
    renamed["metadata"]["name"] = "b".into();
    let message = server.put(&path, &renamed).await.expect_reason(400, "BadRequest");
    assert_eq!(message, "the name of the object (b) does not match the name on the URL (a)");
}
