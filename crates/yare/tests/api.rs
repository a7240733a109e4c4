//! The control plane as clients see it: custom resources, access control, server-side apply, what bad requests
//! get, and what a server says that cannot start.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use yare_testkit::{Answer, Cluster, Https, Namespace, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
/// The administrator's bearer token.
const TOKEN: &str = "administrator-of-a-test";

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// Below it the table of bad requests names its paths.
const NAMESPACE: &str = "/api/v1/namespaces/default/";

const WIDGETS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.test.yare.local}
spec:
  group: test.yare.local
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Color, type: string, jsonPath: .spec.color}
    - {name: Ready, type: integer, jsonPath: .status.ready}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.size, statusReplicasPath: .status.ready, labelSelectorPath: .status.selector}
    schema:
      openAPIV3Schema:
        type: object
        description: A widget of this shop.
        required: [spec]
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 0, maximum: 10, description: How large it is.}
              color: {type: string, enum: [red, blue], default: red, description: What it looks like.}
          status:
            type: object
            properties: {ready: {type: integer}, selector: {type: string}}
"#;

/// Specs of a Widget that are refused, and what is said.
const BAD_WIDGETS: &[(&str, &str)] = &[
    ("{size: 30}", "spec.size: Invalid value: 30: spec.size in body should be less than or equal to 10"),
    (
        "{size: large}",
        "spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\"",
    ),
    ("{color: red}", "spec.size: Required value"),
    ("{size: 1, color: green}", "spec.color: Unsupported value: \"green\": supported values: "),
    ("{size: 1, colour: red}", "strict decoding error: unknown field \"spec.colour\""),
];

/// A cluster whose administrator has [`TOKEN`].
fn control_plane() -> Options {
    let args = ["--token".to_owned(), TOKEN.to_owned()];
    Options { args: args.into(), ..Options::control_plane() }
}

/// Calls the API server from the cluster's machine.
fn send(cluster: &Cluster, client: &Https, request: &Bad) -> anyhow::Result<Answer> {
    let path = match request.path.strip_prefix('/') {
        Some(_) => request.path.to_owned(),
        None => format!("{NAMESPACE}{}", request.path),
    };
    cluster.namespace().run(|| client.send(request.method, &path, request.content_type, &request.body))?
}

fn get(cluster: &Cluster, client: &Https, path: &str) -> anyhow::Result<Answer> {
    cluster.namespace().run(|| client.get(path))?
}

#[test]
fn a_custom_resource_is_defined_used_and_taken_away() {
    Cluster::test(YARE, control_plane(), |cluster| {
        let widget = |name: &str, spec: &str| {
            format!(
                "apiVersion: test.yare.local/v1\nkind: Widget\nmetadata: {{name: {name}}}\nspec: {spec}\n"
            )
        };
        cluster.apply(WIDGETS)?;
        cluster.kubectl(&["wait", "--for=condition=Established", "crd/widgets.test.yare.local"])?;
        cluster.apply(&(widget("one", "{size: 3}") + "status: {ready: 7}\n"))?;

        // A default came in; the status has an endpoint of its own.
        let table = cluster.kubectl(&["get", "wd"])?;
        let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        ensure!(rows == [vec!["NAME", "SIZE", "COLOR", "READY"], vec!["one", "3", "red"]], "{table}");
        ensure!(cluster.kubectl(&["get", "all", "-o", "name"])?.contains("widget.test.yare.local/one"));

        let resources = cluster.kubectl(&["api-resources", "--api-group=test.yare.local", "--no-headers"])?;
        let row: Vec<&str> = resources.split_whitespace().collect();
        ensure!(row == ["widgets", "wd", "test.yare.local/v1", "true", "Widget"], "{resources}");
        let explained = cluster.kubectl(&["explain", "widget.spec.color"])?;
        for part in ["test.yare.local", "Widget", "What it looks like.", "red", "blue"] {
            ensure!(explained.contains(part), "no {part:?} in {explained}");
        }

        for (spec, want) in BAD_WIDGETS {
            let (status, out, err) = cluster.kubectl_with(&["create", "-f", "-"], &widget("two", spec))?;
            ensure!(!status.success() && err.contains(want), "{spec}: {out}{err}");
        }
        // Without validation, what is unknown is pruned.
        let (status, _, err) = cluster.kubectl_with(
            &["create", "--validate=false", "-f", "-"],
            &widget("two", "{size: 1, colour: red}"),
        )?;
        ensure!(status.success(), "{err}");
        ensure!(cluster.field("wd/two", ".spec")? == r#"{"color":"red","size":1}"#);

        let patch = r#"{"spec": {"size": 9}, "status": {"ready": 2, "selector": "a=b"}}"#;
        cluster.kubectl(&["patch", "wd", "one", "--subresource=status", "--type=merge", "-p", patch])?;
        ensure!(cluster.field("wd/one", ".spec.size")? == "3");
        cluster.kubectl(&["scale", "wd/one", "--replicas=5"])?;
        ensure!(cluster.field("wd/one", ".spec.size")? == "5");
        let scale = cluster.kubectl(&[
            "get",
            "--raw",
            "/apis/test.yare.local/v1/namespaces/default/widgets/one/scale",
        ])?;
        let scale: Value = serde_json::from_str(&scale)?;
        ensure!(scale["spec"] == json!({"replicas": 5}), "{scale}");
        ensure!(scale["status"] == json!({"replicas": 2, "selector": "a=b"}), "{scale}");
        ensure!(
            cluster
                .kubectl_fails(&["scale", "wd/one", "--replicas=50"])?
                .contains("less than or equal to 10")
        );

        // A new column, and a field that the next definition knows.
        let wider = WIDGETS
            .replace("name: Color, type", "name: Paint, type")
            .replace("{type: integer, minimum", "{type: integer, default: 1, minimum")
            .replace("required: [size]", "nullable: false");
        cluster.apply(&wider)?;
        cluster.soon(|| {
            let table = cluster.kubectl(&["get", "wd"])?;
            ensure!(table.contains("PAINT"), "{table}");
            Ok(())
        })?;
        cluster.soon(|| cluster.apply(&widget("three", "{color: blue}")))?;
        ensure!(cluster.field("wd/three", ".spec.size")? == "1");

        cluster.kubectl(&["delete", "crd", "widgets.test.yare.local", "--timeout=20s"])?;
        let error = cluster.kubectl_fails(&["get", "widgets.test.yare.local"])?;
        ensure!(
            error.contains("the server doesn't have a resource type") || error.contains("NotFound"),
            "{error}"
        );
        // A definition of the same name begins with nothing.
        cluster.apply(WIDGETS)?;
        cluster.kubectl(&["wait", "--for=condition=Established", "crd/widgets.test.yare.local"])?;
        ensure!(cluster.soon(|| cluster.kubectl(&["get", "wd", "-o", "name"]))?.is_empty());
        Ok(())
    });
}

/// What the service account `viewer`, who may read ConfigMaps of its namespace, is told.
const FORBIDDEN: &[(&[&str], &str)] = &[
    (
        &["get", "secrets"],
        r#"secrets is forbidden: User "USER" cannot list resource "secrets" in API group "" in the namespace "default""#,
    ),
    (
        &["get", "nodes"],
        r#"nodes is forbidden: User "USER" cannot list resource "nodes" in API group "" at the cluster scope"#,
    ),
    (
        &["get", "configmaps", "-n", "kube-system"],
        r#"configmaps is forbidden: User "USER" cannot list resource "configmaps" in API group "" in the namespace "kube-system""#,
    ),
    (
        &["get", "deployment", "web"],
        r#"deployments.apps "web" is forbidden: User "USER" cannot get resource "deployments" in API group "apps" in the namespace "default""#,
    ),
    (
        &["create", "configmap", "mine"],
        r#"configmaps is forbidden: User "USER" cannot create resource "configmaps" in API group "" in the namespace "default""#,
    ),
    (
        &["delete", "configmap", "kube-root-ca.crt"],
        r#"configmaps "kube-root-ca.crt" is forbidden: User "USER" cannot delete resource "configmaps" in API group "" in the namespace "default""#,
    ),
    (&["get", "--raw", "/metrics"], r#"forbidden: User "USER" cannot get path "/metrics""#),
];

/// `auth can-i` as the service account, and the answer.
const CAN_I: &[(&[&str], &str)] = &[
    (&["list", "configmaps"], "yes"),
    (&["watch", "configmaps"], "no"),
    (&["list", "configmaps", "-n", "kube-system"], "no"),
    (&["get", "pods", "--subresource=log"], "no"),
    (&["get", "/healthz"], "yes"),
    (&["get", "/metrics"], "no"),
];

#[test]
fn a_service_account_may_do_what_its_role_says() {
    Cluster::test(YARE, control_plane(), |cluster| {
        let user = "system:serviceaccount:default:viewer";
        for args in [
            &["create", "serviceaccount", "viewer"][..],
            &["create", "role", "reader", "--verb=get,list", "--resource=configmaps"],
            &["create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:viewer"],
        ] {
            cluster.kubectl(args)?;
        }
        let token = cluster.kubectl(&["create", "token", "viewer", "--duration=10m"])?;
        let ca = cluster.path("data/tls/ca.crt").display().to_string();
        let as_token = |token: &str, args: &[&str]| {
            let token = format!("--token={token}");
            let start =
                ["--kubeconfig=/dev/null", "--server=https://127.0.0.1:6443", "--certificate-authority", &ca];
            cluster.kubectl_with(&[&start[..], &[token.as_str()], args].concat(), "")
        };
        let token = token.trim();

        cluster.soon(|| {
            let (status, out, err) = as_token(token, &["get", "configmaps", "-o", "name"])?;
            ensure!(status.success() && out.contains("configmap/kube-root-ca.crt"), "{out}{err}");
            Ok(())
        })?;
        for (args, want) in FORBIDDEN {
            let (status, out, err) = as_token(token, args)?;
            ensure!(!status.success() && err.contains(&want.replace("USER", user)), "{args:?}: {out}{err}");
        }
        for (args, want) in CAN_I {
            let (_, out, err) = as_token(token, &[&["auth", "can-i"], *args].concat())?;
            ensure!(out.trim() == *want, "{args:?}: {out}{err}");
        }
        let whoami = as_token(token, &["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])?.1;
        ensure!(whoami == user, "{whoami}");
        // The administrator asks on behalf of others.
        ensure!(cluster.kubectl(&["auth", "can-i", "list", "configmaps", "--as", user])?.trim() == "yes");
        let error = cluster.kubectl_fails(&["get", "pods", "--as=jane", "--as-group=developers"])?;
        ensure!(error.contains(r#"User "jane" cannot list resource "pods""#), "{error}");

        // Nobody hands out what they do not have.
        let grant = ["create", "role", "bind", "--verb=create", "--resource=roles,rolebindings"];
        cluster.kubectl(&grant)?;
        cluster.kubectl(&[
            "create",
            "rolebinding",
            "bind",
            "--role=bind",
            "--serviceaccount=default:viewer",
        ])?;
        cluster.soon(|| {
            let (_, _, err) =
                as_token(token, &["create", "role", "more", "--verb=get", "--resource=secrets"])?;
            ensure!(err.contains("is attempting to grant RBAC permissions not currently held"), "{err}");
            Ok(())
        })?;

        // A token ends with its account.
        cluster.kubectl(&["delete", "serviceaccount", "viewer"])?;
        for token in [token, "no-such-token"] {
            let (status, _, err) = as_token(token, &["get", "configmaps"])?;
            ensure!(!status.success() && err.contains("Unauthorized"), "{err}");
        }
        Ok(())
    });
}

#[test]
fn server_side_apply_tells_conflicts_and_can_be_forced() {
    Cluster::test(YARE, control_plane(), |cluster| {
        let apply = |manager: &str, data: &str, flags: &[&str]| {
            let text =
                format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: shared}}, data: {data}}}");
            let manager = format!("--field-manager={manager}");
            let args = [&["apply", "--server-side", "-f", "-", &manager][..], flags].concat();
            cluster.kubectl_with(&args, &text)
        };
        let data = || cluster.field("configmap/shared", ".data");
        ensure!(apply("one", "{owner: first, one: a}", &[])?.0.success());
        let (status, _, err) = apply("two", "{owner: second, two: b}", &[])?;
        let want = "Apply failed with 1 conflict: conflict with \"one\": .data.owner";
        ensure!(!status.success() && err.contains(want), "{err}");
        // The same value is no conflict, and makes two owners.
        ensure!(apply("two", "{owner: first, two: b}", &[])?.0.success());
        ensure!(data()? == r#"{"one":"a","owner":"first","two":"b"}"#, "{}", data()?);
        let (status, _, err) = apply("two", "{owner: second, two: b}", &["--force-conflicts"])?;
        ensure!(status.success(), "{err}");
        ensure!(data()? == r#"{"one":"a","owner":"second","two":"b"}"#, "{}", data()?);

        let managers = cluster.field("configmap/shared", ".metadata.managedFields")?;
        let managers: Value = serde_json::from_str(&managers)?;
        let owned = |name: &str| {
            let found = managers.as_array().into_iter().flatten().find(|m| m["manager"] == name);
            found.map(|m| m["fieldsV1"]["f:data"].clone()).unwrap_or_default()
        };
        ensure!(owned("one") == json!({"f:one": {}}), "{managers:#}");
        ensure!(owned("two") == json!({"f:owner": {}, "f:two": {}}), "{managers:#}");

        // What its only owner leaves out goes; what another changed by other means is a conflict too.
        ensure!(apply("two", "{owner: second}", &[])?.0.success());
        ensure!(data()? == r#"{"one":"a","owner":"second"}"#, "{}", data()?);
        cluster.kubectl(&["patch", "configmap", "shared", "-p", r#"{"data": {"owner": "third"}}"#])?;
        let (_, _, err) = apply("two", "{owner: second}", &[])?;
        ensure!(err.contains(r#"conflict with "kubectl-patch" using v1: .data.owner"#), "{err}");
        // Client-side apply of old goes over to server-side apply.
        cluster.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: moved}, data: {a: b, c: d}}")?;
        let moved = "{apiVersion: v1, kind: ConfigMap, metadata: {name: moved}, data: {a: e}}";
        let (status, _, err) = cluster.kubectl_with(&["apply", "--server-side", "-f", "-"], moved)?;
        ensure!(status.success(), "{err}");
        ensure!(cluster.field("configmap/moved", ".data")? == r#"{"a":"e"}"#);
        Ok(())
    });
}

/// A request that is refused.
struct Bad {
    method: &'static str,
    /// Absolute, or below [`NAMESPACE`].
    path: &'static str,
    content_type: &'static str,
    body: Vec<u8>,
    code: u16,
    reason: &'static str,
    /// Part of the message.
    message: &'static str,
}

fn bad(
    (method, path): (&'static str, &'static str),
    (content_type, body): (&'static str, impl Into<Vec<u8>>),
    (code, reason, message): (u16, &'static str, &'static str),
) -> Bad {
    Bad { method, path, content_type, body: body.into(), code, reason, message }
}

/// A ConfigMap with further members.
fn config_map(name: &str, members: &str) -> String {
    format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}}{members}}}"#)
}

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
    let big = config_map("bad", &format!(r#","data":{{"a":"{}"}}"#, "a".repeat(4 << 20)));
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
        bad(create, (JSON, "null"), (422, "Invalid", "name or generateName is required")),
        bad(create, (YAML, "a: [b\nc: d"), (400, "BadRequest", "yaml: line 2")),
        bad(create, (YAML, "a: &a [*a, *b]"), (400, "BadRequest", "yaml")),
        bad(create, (YAML, latin), (400, "BadRequest", "yaml")),
        bad(create, (JSON, deep(r#"{"a":"#, "}")), (400, "BadRequest", "exceeded max depth")),
        bad(create, (JSON, deep("[", "]")), (400, "BadRequest", "exceeded max depth")),
        bad(create, (YAML, deep("[", "]")), (400, "BadRequest", "the object provided is unrecognized")),
        bad(
            create,
            (JSON, big.clone()),
            (413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728"),
        ),
        bad(
            create,
            (YAML, big),
            (413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728"),
        ),
        bad(
            create,
            ("text/plain", "hello"),
            (415, "UnsupportedMediaType", "accepted media types include: application/json"),
        ),
        bad(
            create,
            ("application/vnd.kubernetes.protobuf", b"k8s\0\xff\xff\xff\xff".to_vec()),
            (400, "BadRequest", "the object provided is unrecognized"),
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
            (422, "Invalid", "dryRun: Unsupported value: \"some\""),
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
            get("/apis/none.yare.local/v1/things"),
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
        bad(
            get("configmaps?watch=true&resourceVersion=new"),
            none,
            (400, "BadRequest", "Invalid value: \"new\""),
        ),
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
            (400, "BadRequest", "field label not supported: data.a"),
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
            (409, "Conflict", "Precondition failed: UID in precondition: other, UID in object meta: "),
        ),
        bad(
            ("PATCH", "configmaps/there"),
            (JSON_PATCH, r#"{"a":1}"#),
            (400, "BadRequest", "json: cannot unmarshal object into Go value of type jsonpatch.Patch"),
        ),
        bad(
            ("PATCH", "configmaps/there"),
            (JSON_PATCH, r#"[{"op":"remove","path":"/data/none"}]"#),
            (422, "Invalid", "the server rejected our request due to an error in our request"),
        ),
        bad(
            ("PATCH", "configmaps/there"),
            (JSON_PATCH, r#"[{"op":"test","path":"/data/a","value":"c"}]"#),
            (422, "Invalid", "testing value /data/a failed"),
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
            (400, "BadRequest", "turn"),
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
            (415, "UnsupportedMediaType", "accepted media types include: application/json-patch+json"),
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
                && status["reason"] == request.reason
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

#[test]
fn old_revisions_are_gone_after_much_change() {
    Cluster::test(YARE, control_plane(), |cluster| {
        let client = cluster.https(TOKEN)?;
        for name in ["one", "two", "three"] {
            cluster.kubectl(&["create", "configmap", name])?;
        }
        let path = "/api/v1/namespaces/default/configmaps";
        let page = get(cluster, &client, &format!("{path}?limit=1"))?.json()?;
        let token = page["metadata"]["continue"].as_str().context("a token")?.to_owned();
        let revision = page["metadata"]["resourceVersion"].as_str().context("a revision")?.to_owned();
        let rest = get(cluster, &client, &format!("{path}?limit=50&continue={token}"))?;
        ensure!(rest.code == 200, "{rest:?}");

        // More than the server remembers.
        for round in 0..40 {
            let data = format!(r#","data":{{"a":"{}"}}"#, format!("{round:04}").repeat(225_000));
            let request = bad(("PUT", "configmaps/one"), (JSON, config_map("one", &data)), (200, "", ""));
            let answer = send(cluster, &client, &request)?;
            ensure!(answer.code == 200, "{} {:.300}", answer.code, answer.body);
        }

        let expired = get(cluster, &client, &format!("{path}?limit=50&continue={token}"))?;
        let status = expired.json()?;
        ensure!(expired.code == 410 && status["reason"] == "Expired", "{status:#}");
        let message = status["message"].as_str().unwrap_or_default();
        ensure!(message.contains("The provided continue parameter is too old"), "{message}");
        // The answer carries a token that goes on with what is there now.
        let token = status["metadata"]["continue"].as_str().context("a token to go on with")?;
        let rest = get(cluster, &client, &format!("{path}?limit=50&continue={token}"))?;
        ensure!(rest.code == 200, "{} {:.300}", rest.code, rest.body);

        let exact = format!("{path}?resourceVersion={revision}&resourceVersionMatch=Exact");
        let exact = get(cluster, &client, &exact)?;
        ensure!(
            exact.code == 410 && exact.json()?["reason"] == "Expired",
            "{} {:.300}",
            exact.code,
            exact.body
        );
        let watch =
            get(cluster, &client, &format!("{path}?watch=true&resourceVersion={revision}&timeoutSeconds=5"))?;
        let event = watch.body.lines().next().unwrap_or_default();
        let event: Value = serde_json::from_str(event).with_context(|| format!("{:.300}", watch.body))?;
        let status = if watch.code == 200 { &event["object"] } else { &event };
        ensure!(status["code"] == 410 && status["reason"] == "Expired", "{} {event:#}", watch.code);
        ensure!(
            status["message"].as_str().is_some_and(|m| m.contains("too old resource version")),
            "{event:#}"
        );
        Ok(())
    });
}

#[test]
fn data_and_revisions_survive_sigkill() {
    Cluster::test(YARE, control_plane(), |cluster| {
        let client = cluster.https(TOKEN)?;
        cluster.apply(WIDGETS)?;
        cluster.kubectl(&["wait", "--for=condition=Established", "crd/widgets.test.yare.local"])?;
        cluster.apply(
            "{apiVersion: test.yare.local/v1, kind: Widget, metadata: {name: one}, spec: {size: 3}}",
        )?;
        let kinds = "configmaps,secrets,serviceaccounts,services,clusterroles,widgets,crd";
        let list =
            |cluster: &Cluster| cluster.kubectl(&["get", kinds, "-A", "-o", "json", "--show-managed-fields"]);

        let mut revision = 0;
        for round in 0..3 {
            // Killed right behind the last answer.
            let mut acknowledged = Vec::new();
            for number in 0..20 {
                let name = format!("round-{round}-{number}");
                let body = config_map(&name, r#","data":{"a":"b"}"#);
                let request = bad(("POST", "configmaps"), (JSON, body), (201, "", ""));
                let answer = send(cluster, &client, &request)?;
                ensure!(answer.code == 201, "{answer:?}");
                acknowledged.push((name, answer.json()?["metadata"]["resourceVersion"].clone()));
            }
            let before = (round == 2).then(|| list(cluster)).transpose()?;
            cluster.kill()?;
            cluster.launch()?;
            for (name, version) in &acknowledged {
                let found = get(cluster, &client, &format!("{NAMESPACE}configmaps/{name}"))?.json()?;
                ensure!(
                    found["metadata"]["resourceVersion"] == *version,
                    "{name} was at {version}: {found:#}"
                );
                let version: u64 = version.as_str().unwrap_or_default().parse()?;
                ensure!(version > revision, "{name}: {version} comes behind {revision}");
                revision = version;
            }
            if let Some(before) = before {
                ensure!(list(cluster)? == before, "objects changed over a restart");
            }
        }
        // What was stored before is served, defaulted and validated as before.
        cluster.kubectl(&["scale", "wd/one", "--replicas=5"])?;
        ensure!(cluster.field("wd/one", ".spec")? == r#"{"color":"red","size":5}"#);
        cluster.stop()
    });
}

/// Runs a server that cannot start; the one line that it wrote to its standard error.
fn complaint(namespace: &Namespace, command: &mut Command) -> anyhow::Result<String> {
    let Output { status, stdout, stderr } = namespace.run(|| command.output())??;
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(!status.success(), "{command:?} succeeds:\n{out}{err}");
    ensure!(status.code().is_some(), "{command:?}: {status}\n{err}");
    ensure!(err.lines().count() == 1, "not one line:\n{err}");
    Ok(err.into_owned())
}

/// Adds the arguments of a control plane that keeps everything in `directory`.
fn server(program: &mut Command, directory: &Path) {
    program.args(["server", "--disable-agent", "--data-dir"]).arg(directory.join("data"));
    program
        .arg("--run-dir")
        .arg(directory.join("run"))
        .arg("--write-kubeconfig")
        .arg(directory.join("kubeconfig"));
}

#[test]
fn a_server_that_cannot_start_says_why_and_what_to_do() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    // Where another user can run it from; a hard link where the disk is the same.
    let binary = directory.path().join("yare");
    if fs::hard_link(YARE, &binary).is_err() {
        fs::copy(YARE, &binary)?;
    }
    let nobody = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
        command
    };

    // A port in use.
    let taken = namespace.run(|| TcpListener::bind("127.0.0.1:6443"))??;
    let mut command = Command::new(&binary);
    server(&mut command, directory.path());
    let line = complaint(&namespace, &mut command)?;
    for part in ["cannot listen on", ":6443", "another process uses this port", "choose another"] {
        ensure!(line.contains(part), "no {part:?} in {line}");
    }
    ensure!(line.matches("Address already in use").count() == 1, "{line}");
    ensure!(!directory.path().join("data").exists(), "something was written before the port was taken");
    drop(taken);

    // No root.
    let mut command = nobody();
    command.arg("server").arg("--data-dir").arg(directory.path().join("data"));
    let line = complaint(&namespace, &mut command)?;
    ensure!(line.contains("containers need root: run as root") && line.contains("--disable-agent"), "{line}");

    // A data directory that cannot be written, or is none.
    let mut command = nobody();
    server(&mut command, directory.path());
    let line = complaint(&namespace, &mut command)?;
    let data = directory.path().join("data").display().to_string();
    for part in ["--data-dir", &data, "Permission denied"] {
        ensure!(line.contains(part), "no {part:?} in {line}");
    }
    fs::write(directory.path().join("data"), "")?;
    let mut command = Command::new(&binary);
    server(&mut command, directory.path());
    let line = complaint(&namespace, &mut command)?;
    ensure!(line.contains("--data-dir") && line.contains(&data), "{line}");
    fs::remove_file(directory.path().join("data"))?;

    // Without root, the control plane alone runs.
    let own = directory.path().join("own");
    fs::create_dir(&own)?;
    std::os::unix::fs::chown(&own, Some(65534), Some(65534))?;
    let mut command = nobody();
    server(&mut command, &own);
    let mut running = namespace.run(|| command.spawn())??;
    let ready = || -> anyhow::Result<bool> {
        let ca = fs::read_to_string(own.join("data/tls/ca.crt"))?;
        let client = Https::new(([127, 0, 0, 1], 6443).into(), &ca, "")?;
        Ok(namespace.run(|| client.get("/readyz"))??.code == 200)
    };
    let mut came = false;
    for _ in 0..300 {
        came = ready().unwrap_or(false);
        if came || running.try_wait()?.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    running.kill()?;
    running.wait()?;
    ensure!(came, "the control plane does not start without root");
    Ok(())
}
