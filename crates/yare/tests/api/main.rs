//! The control plane as clients see it: custom resources, access control, server-side apply, what bad requests
//! get, and what a server says that cannot start. What the tests share is here.

mod access;
mod apply;
mod beside;
mod certificates;
mod custom;
mod disk;
mod flags;
mod persistence;
mod refusal;
mod start;

use yare_testkit::{Answer, Cluster, Https, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
/// The administrator's bearer token.
const TOKEN: &str = "administrator-of-a-test";

const JSON: &str = "application/json";

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

/// A cluster whose administrator has [`TOKEN`].
fn control_plane() -> Options {
    let args = ["--token".to_owned(), TOKEN.to_owned()];
    Options { args: args.into(), ..Options::control_plane() }
}

/// A request; where it is refused, how.
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
