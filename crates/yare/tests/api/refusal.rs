//! Bad requests: a table of what is sent, and the answer of upstream.

use anyhow::ensure;
use yare_testkit::Cluster;

use crate::{Bad, JSON, TOKEN, YARE, bad, config_map, control_plane, get, send};

const YAML: &str = "application/yaml";
const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// Bodies that are no object of the kind.
fn bad_bodies() -> Vec<Bad> {
    let create = ("POST", "configmaps");
    let strict = ("POST", "configmaps?fieldValidation=Strict");
    let deployments = ("POST", "/apis/apps/v1/namespaces/default/deployments");
    let deployment = |spec: &str| {
        format!(r#"{{"apiVersion":"apps/v1","kind":"Deployment","metadata":{{"name":"bad"}},"spec":{spec}}}"#)
    };
    let deep = |open: &str, close: &str| {
        config_map("bad", &format!(r#","data":{}1{}"#, open.repeat(10_000), close.repeat(10_000)))
    };
    let mut latin: Vec<u8> = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bad}\ndata: {a: \"".to_vec();
    latin.extend_from_slice(b"\xff\xfe\"}\n");
    vec![
        // What cannot be read at all.
        bad(
            create,
            (JSON, ""),
            (400, "BadRequest", "the object provided is unrecognized (must be of type ConfigMap)"),
        ),
        bad(
            create,
            (JSON, r#"{"apiVersion":"v1","#),
            (400, "BadRequest", "the object provided is unrecognized"),
        ),
        bad(create, (JSON, r#"{"apiVersion":"v1"} {"#), (400, "BadRequest", "ConfigMap")),
        bad(create, (JSON, "[]"), (400, "BadRequest", "the object provided is unrecognized")),
        bad(create, (YAML, "a: [b\nc: d"), (400, "BadRequest", "yaml: line 2")),
        bad(create, (YAML, "a: &a [*a, *b]"), (400, "BadRequest", "yaml")),
        bad(create, (YAML, latin), (400, "BadRequest", "yaml")),
        bad(create, (JSON, deep(r#"{"a":"#, "}")), (400, "BadRequest", "exceeded max depth")),
        bad(create, (JSON, deep("[", "]")), (400, "BadRequest", "exceeded max depth")),
        bad(create, (YAML, deep("[", "]")), (400, "BadRequest", "the object provided is unrecognized")),
        bad(
            create,
            ("text/plain", "hello"),
            (415, "UnsupportedMediaType", "accepted media types include: application/json"),
        ),
        bad(
            create,
            ("application/vnd.kubernetes.protobuf", b"k8s\0\xff\xff\xff\xff".to_vec()),
            (400, "BadRequest", "ConfigMap"),
        ),
        // Another kind, version, name or place.
        bad(
            create,
            (JSON, r#"{"apiVersion":"v2","kind":"ConfigMap","metadata":{"name":"bad"}}"#),
            (400, "BadRequest", "v2"),
        ),
        bad(
            create,
            (JSON, r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"bad"}}"#),
            (400, "BadRequest", "Secret in version \"v1\" cannot be handled as a ConfigMap"),
        ),
        bad(
            create,
            (JSON, r#"{"metadata":{"name":"bad","namespace":"kube-system"}}"#),
            (
                400,
                "BadRequest",
                "the namespace of the provided object does not match the namespace sent on the request",
            ),
        ),
        bad(
            create,
            (JSON, config_map("Not_a_name", "")),
            (422, "Invalid", "metadata.name: Invalid value: \"Not_a_name\": a lowercase RFC 1123 subdomain"),
        ),
        bad(
            create,
            (JSON, config_map("there", "")),
            (409, "AlreadyExists", "configmaps \"there\" already exists"),
        ),
        // Wrong types.
        bad(
            create,
            (JSON, config_map("bad", r#","data":{"a":1}"#)),
            (
                400,
                "BadRequest",
                "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
            ),
        ),
        bad(
            create,
            (JSON, config_map("bad", r#","data":["a"]"#)),
            (400, "BadRequest", "cannot unmarshal array into Go struct field ConfigMap.data"),
        ),
        bad(
            deployments,
            (JSON, deployment(r#"{"replicas":"three"}"#)),
            (
                400,
                "BadRequest",
                "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
        ),
        bad(
            deployments,
            (JSON, deployment(r#"{"replicas":99999999999}"#)),
            (
                400,
                "BadRequest",
                "cannot unmarshal number 99999999999 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
        ),
        bad(deployments, (JSON, deployment("{}")), (422, "Invalid", "spec.selector: Required value")),
        bad(
            deployments,
            (
                JSON,
                deployment(
                    r#"{"selector":{"matchLabels":{"a":"b"}},"template":{"spec":{"containers":[{"name":"a","image":"b","resources":{"limits":{"cpu":"a lot"}}}]}}}"#,
                ),
            ),
            (400, "BadRequest", "quantities must match the regular expression"),
        ),
        // Fields that nobody knows.
        bad(
            strict,
            (JSON, config_map("bad", r#","dat":{},"data":{"a":"b","a":"c"}"#)),
            (
                400,
                "BadRequest",
                r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "dat", duplicate field "data.a""#,
            ),
        ),
        bad(
            ("POST", "configmaps?fieldValidation=Perhaps"),
            (JSON, config_map("bad", "")),
            (422, "Invalid", "fieldValidation: Unsupported value: \"Perhaps\""),
        ),
        bad(
            ("POST", "configmaps?dryRun=some"),
            (JSON, config_map("bad", "")),
            (422, "Invalid", "dryRun: Unsupported value: [\"some\"]"),
        ),
    ]
}

/// Requests for what is not there, or in words that nobody understands.
fn bad_requests() -> Vec<Bad> {
    let none = ("", "");
    let get = |path| ("GET", path);
    vec![
        bad(get("nothings"), none, (404, "NotFound", "the server could not find the requested resource")),
        bad(
            get("/apis/apps/v1/things"),
            none,
            (404, "NotFound", "the server could not find the requested resource"),
        ),
        bad(get("configmaps/none"), none, (404, "NotFound", "configmaps \"none\" not found")),
        bad(
            get("configmaps/there/status"),
            none,
            (404, "NotFound", "the server could not find the requested resource"),
        ),
        bad(("DELETE", "configmaps/none"), none, (404, "NotFound", "configmaps \"none\" not found")),
        bad(
            ("POST", "/api/v1/namespaces/none/configmaps"),
            (JSON, config_map("bad", "")),
            (404, "NotFound", "namespaces \"none\" not found"),
        ),
        bad(
            ("POST", "configmaps/there"),
            (JSON, config_map("bad", "")),
            (405, "MethodNotAllowed", "the server does not allow this method on the requested resource"),
        ),
        // Revisions, pages and selectors.
        bad(
            get("configmaps?resourceVersion=99999999"),
            none,
            (504, "Timeout", "Too large resource version: 99999999, current: "),
        ),
        bad(get("configmaps?resourceVersion=new"), none, (400, "BadRequest", "Invalid value: \"new\"")),
        bad(get("configmaps?watch=true&resourceVersion=new"), none, (500, "", "Invalid value: \"new\"")),
        bad(
            get("configmaps?resourceVersionMatch=Exact"),
            none,
            (422, "Invalid", "resourceVersionMatch is forbidden unless resourceVersion is provided"),
        ),
        bad(
            get("configmaps?limit=1&continue=nonsense"),
            none,
            (400, "BadRequest", "continue key is not valid"),
        ),
        bad(
            get("configmaps?limit=few"),
            none,
            (400, "BadRequest", "strconv.ParseInt: parsing \"few\": invalid syntax"),
        ),
        bad(
            get("configmaps?labelSelector=a%3D%3D%3Db"),
            none,
            (400, "BadRequest", "unable to parse requirement"),
        ),
        bad(get("configmaps?labelSelector=-a"), none, (400, "BadRequest", "unable to parse requirement")),
        bad(
            get("configmaps?fieldSelector=data.a%3Db"),
            none,
            (
                400,
                "BadRequest",
                "\"data.a\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            ),
        ),
        bad(
            get("pods?fieldSelector=spec.none%3Db"),
            none,
            (400, "BadRequest", "field label not supported: spec.none"),
        ),
        // Updates and patches.
        bad(
            ("PUT", "configmaps/there"),
            (JSON, r#"{"metadata":{"name":"there","resourceVersion":"1"}}"#),
            (
                409,
                "Conflict",
                "Operation cannot be fulfilled on configmaps \"there\": the object has been modified; please apply your changes to the latest version and try again",
            ),
        ),
        bad(
            ("PUT", "configmaps/there"),
            (JSON, config_map("other", "")),
            (400, "BadRequest", "the name of the object (other) does not match the name on the URL (there)"),
        ),
        bad(
            ("PUT", "configmaps/there"),
            (JSON, r#"{"metadata":{"name":"there","uid":"other"}}"#),
            (
                409,
                "Conflict",
                "StorageError: invalid object, Code: 4, Key: /registry/configmaps/default/there, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: other, UID in object meta: ",
            ),
        ),
        bad(
            ("PATCH", "configmaps/there"),
            (JSON_PATCH, r#"{"a":1}"#),
            (
                400,
                "BadRequest",
                "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
            ),
        ),
        bad(
            ("PATCH", "configmaps/there"),
            (JSON_PATCH, r#"[{"op":"remove","path":"/data/none"}]"#),
            (422, "Invalid", "the server rejected our request due to an error in our request"),
        ),
        bad(
            ("PATCH", "configmaps/there"),
            (JSON_PATCH, r#"[{"op":"test","path":"/data/a","value":"c"}]"#),
            (422, "Invalid", "the server rejected our request due to an error in our request"),
        ),
        bad(("PATCH", "configmaps/there"), (MERGE_PATCH, "{"), (400, "BadRequest", "")),
        bad(
            ("PATCH", "configmaps/there"),
            (MERGE_PATCH, r#"{"data":{"a":1}}"#),
            (422, "Invalid", "cannot unmarshal number into Go struct field ConfigMap.data of type string"),
        ),
        bad(
            ("PATCH", "configmaps/there"),
            (MERGE_PATCH, r#"{"metadata":{"resourceVersion":"1"}}"#),
            (409, "Conflict", "the object has been modified"),
        ),
        bad(
            ("PATCH", "configmaps/there"),
            (MERGE_PATCH, r#"{"metadata":{"name":"other"}}"#),
            (400, "BadRequest", "the name of the object (other) does not match the name on the URL (there)"),
        ),
        bad(
            ("PATCH", "configmaps/there"),
            (STRATEGIC, r#"{"data":{"$patch":"turn"}}"#),
            (500, "", "unknown patch type: turn in map: map[$patch:turn]"),
        ),
        bad(
            ("PATCH", "configmaps/there?fieldValidation=Strict"),
            (MERGE_PATCH, r#"{"dat":{}}"#),
            (422, "Invalid", "unknown field \"dat\""),
        ),
        bad(
            ("PATCH", "configmaps/none"),
            (MERGE_PATCH, "{}"),
            (404, "NotFound", "configmaps \"none\" not found"),
        ),
        bad(
            ("PATCH", "configmaps/there"),
            ("text/plain", "{}"),
            (415, "UnsupportedMediaType", "415: Unsupported Media Type"),
        ),
        bad(
            ("PATCH", "configmaps/there"),
            (APPLY, config_map("there", "")),
            (422, "Invalid", "fieldManager: Required value: is required for apply patch"),
        ),
        bad(
            ("PATCH", "configmaps/there?fieldManager=a"),
            (APPLY, "a: [b\nc: d"),
            (400, "BadRequest", "yaml"),
        ),
        bad(
            ("PATCH", "configmaps/there?fieldManager=a"),
            (APPLY, config_map("there", r#","data":{"a":"c"}"#)),
            (409, "Conflict", "Apply failed with 1 conflict"),
        ),
        bad(
            ("DELETE", "configmaps/there"),
            (JSON, r#"{"preconditions":{"uid":"other"}}"#),
            (409, "Conflict", "the UID in the precondition (other) does not match the UID in record"),
        ),
        bad(
            ("DELETE", "configmaps/there"),
            (JSON, r#"{"propagationPolicy":"Perhaps"}"#),
            (422, "Invalid", "propagationPolicy: Unsupported value: \"Perhaps\""),
        ),
    ]
}

/// Names of everything that a bad request could leave, and the one object that it could change.
fn everything(cluster: &Cluster) -> anyhow::Result<String> {
    let kinds = "configmaps,secrets,pods,services,deployments,replicasets,namespaces";
    let there = cluster.kubectl(&["get", "configmap", "there", "-o", "yaml", "--show-managed-fields"])?;
    Ok(cluster.kubectl(&["get", kinds, "-A", "-o", "name"])? + &there)
}

#[test]
fn bad_requests_get_upstreams_answers_and_leave_nothing() {
    Cluster::test(YARE, control_plane(), |cluster| {
        let client = cluster.https(TOKEN)?;
        cluster.kubectl(&["create", "configmap", "there", "--from-literal=a=b"])?;
        // The controllers' own objects.
        cluster
            .soon(|| cluster.kubectl(&["get", "configmap", "kube-root-ca.crt", "-n", "kube-node-lease"]))?;
        let before = everything(cluster)?;

        let mut wrong = Vec::new();
        for request in bad_bodies().iter().chain(&bad_requests()) {
            let answer = send(cluster, &client, request)?;
            let status = answer.json().unwrap_or_default();
            let matches = answer.code == request.code
                && status["kind"] == "Status"
                && status["status"] == "Failure"
                && status["code"] == request.code
                && status["reason"].as_str().unwrap_or_default() == request.reason
                && status["message"].as_str().is_some_and(|m| m.contains(request.message));
            if !matches {
                let body: String = String::from_utf8_lossy(&request.body).chars().take(120).collect();
                let answered: String = answer.body.chars().take(600).collect();
                wrong.push(format!(
                    "{} {} {body}\n  want {} {} {:?}\n  got  {} {answered}",
                    request.method, request.path, request.code, request.reason, request.message, answer.code
                ));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        for (token, code) in [("no-such-token", 401), ("", 403)] {
            let answer = get(cluster, &client.with_token(token), "/api/v1/nodes")?;
            ensure!(answer.code == code, "{token:?}: {answer:?}");
        }

        // What is too long, in pieces over HTTP/2: the answer comes before the end of the request.
        let long = config_map("bad", &format!(r#","data":{{"a":"{}"}}"#, "a".repeat(4 << 20)));
        let (status, _, err) = cluster.kubectl_with(&["create", "-f", "-"], &long)?;
        let want = "(RequestEntityTooLarge): error when creating \"STDIN\": Request entity too large: limit is 3145728";
        ensure!(!status.success() && err.contains(want), "{err}");
        let after = everything(cluster)?;
        ensure!(after == before, "before\n{before}\nafter\n{after}");
        cluster.kubectl(&["get", "--raw", "/livez"])?;

        // What is not refused: a warning, silence, and bytes that are no text in JSON, which Go replaces.
        let warned = config_map("odd", r#","dat":{}"#);
        let flags = ["create", "--dry-run=server", "-f", "-"];
        let (status, _, err) = cluster.kubectl_with(&[&flags[..], &["--validate=warn"]].concat(), &warned)?;
        ensure!(status.success() && err.contains("Warning: unknown field \"dat\""), "{err}");
        let (status, _, err) =
            cluster.kubectl_with(&[&flags[..], &["--validate=ignore"]].concat(), &warned)?;
        ensure!(status.success() && err.is_empty(), "{err}");
        let odd =
            [config_map("odd", r#","data":{"a":""#).trim_end_matches('}').as_bytes(), b"\xff\"}}"].concat();
        let request = bad(("POST", "configmaps"), (JSON, odd), (201, "", ""));
        let answer = send(cluster, &client, &request)?;
        ensure!(answer.json()?["data"]["a"] == "\u{fffd}", "{answer:?}");
        Ok(())
    });
}
