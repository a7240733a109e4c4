//! Parameters of operations, and the ones that a v2 document says once.
//!
//! In: the option kinds of the tables (`ListOptions`, `PodExecOptions`), whose fields are what stands in a query.
//! Out: parameters in either dialect, sorted as documents have them.

use std::{borrow::Cow, collections::BTreeMap};

use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use serde_json::{Map, Value, json};

use super::{Dialect, docs::Docs, operation::DELETE_OPTIONS};
use crate::{
    builtin::builtin,
    encode,
    model::{Scalar, Shape, TypeRef},
};

/// A parameter beside the body.
#[derive(Clone)]
pub(super) struct Parameter {
    pub(super) name: Cow<'static, str>,
    /// `query` or `path`.
    pub(super) place: &'static str,
    kind: &'static str,
    doc: String,
}

/// What fields of options do, where the API's prose does not say: of one option kind, or of all that have it.
const PROSE: &[(&str, &str, &str)] = &[
    ("", "allowWatchBookmarks", "The watch may send BOOKMARK events that only carry a resourceVersion."),
    ("", "continue", "Where the next part of a list begins, as the answer before said."),
    ("", "fieldManager", "Name of who makes the change; at most 128 characters."),
    (
        "PatchOptions",
        "fieldManager",
        "Name of who makes the change; at most 128 characters. Apply cannot do without.",
    ),
    ("", "fieldSelector", "Only objects with these fields."),
    ("", "fieldValidation", "What becomes of unknown and duplicate fields: Strict, Warn or Ignore."),
    ("", "force", "Apply takes over fields that others manage."),
    ("", "labelSelector", "Only objects with these labels."),
    ("", "limit", "The most objects to answer with."),
    ("", "resourceVersion", "How new the answer must be, or from where on to watch."),
    ("", "resourceVersionMatch", "How resourceVersion is meant: Exact or NotOlderThan."),
    ("", "sendInitialEvents", "The watch begins with what exists already."),
    ("", "shardSelector", "Only objects of these shards."),
    ("", "timeoutSeconds", "When the call ends, whatever happens."),
    ("", "watch", "Stream changes instead of a list."),
    ("PodLogOptions", "container", "Whose log; the pod's only container where it has one."),
    ("PodLogOptions", "follow", "Goes on with what is written from now on."),
    (
        "PodLogOptions",
        "insecureSkipTLSVerifyBackend",
        "The node's certificate is not checked: what comes may be somebody else's.",
    ),
    ("PodLogOptions", "limitBytes", "The most bytes to answer with."),
    ("PodLogOptions", "previous", "The log of the container that ran before."),
    ("PodLogOptions", "sinceSeconds", "Only lines that are no older than this."),
    ("PodLogOptions", "stream", "All, Stdout or Stderr."),
    ("PodLogOptions", "tailLines", "The most lines from the end of the log."),
    ("PodLogOptions", "timestamps", "Every line begins with its time, as RFC 3339 has it."),
    ("PodAttachOptions", "container", "The container to attach to; the pod's only one where it has one."),
    ("PodAttachOptions", "stderr", "Whether the container's standard error comes."),
    ("PodAttachOptions", "stdin", "Whether the container's standard input is sent."),
    ("PodAttachOptions", "stdout", "Whether the container's standard output comes."),
    ("PodAttachOptions", "tty", "Whether the container's terminal is attached to."),
    ("PodExecOptions", "command", "The command and its arguments, one by one; no shell reads them."),
    ("PodExecOptions", "container", "Where the command runs; the pod's only container where it has one."),
    ("PodExecOptions", "stderr", "Whether the command's standard error comes."),
    ("PodExecOptions", "stdin", "Whether the command's standard input is sent."),
    ("PodExecOptions", "stdout", "Whether the command's standard output comes."),
    ("PodExecOptions", "tty", "Whether the command gets a terminal."),
    ("PodPortForwardOptions", "ports", "Ports of the pod; WebSockets need them here."),
    ("NodeProxyOptions", "path", "Path of the request to the node."),
    ("PodProxyOptions", "path", "Path of the request to the pod."),
    ("ServiceProxyOptions", "path", "Path of the request to the service's endpoint."),
];

/// The fields of an option kind that a query may have: scalars and lists of them, but no times. What they share with
/// those of deletions has its prose there.
pub(super) fn of_options(kind: &str, docs: &Docs) -> Vec<Parameter> {
    let Some(ty) = builtin().lookup("", "v1", kind) else { return Vec::new() };
    let fields = ty.as_struct().map(|s| s.fields.as_slice()).unwrap_or_default();
    fields
        .iter()
        .filter(|field| !matches!(&*field.name, "apiVersion" | "kind"))
        .filter_map(|field| {
            let kind_of_value = scalar(ty.to(&field.slot))?;
            let prose = || {
                let of = |whose: &str| PROSE.iter().find(|(k, f, _)| *k == whose && *f == &*field.name);
                of(kind).or_else(|| of("")).map(|(.., doc)| (*doc).to_owned())
            };
            let said = |definition: &str| docs.field(definition, &field.name);
            let doc = said(&ty.ty().name).or_else(|| said(DELETE_OPTIONS)).or_else(prose).unwrap_or_default();
            let name = field.name.to_string().into();
            Some(Parameter { name, place: "query", kind: kind_of_value, doc })
        })
        .collect()
}

fn scalar(ty: TypeRef<'_>) -> Option<&'static str> {
    match ty.shape() {
        Shape::Scalar(Scalar::Bool) => Some("boolean"),
        Shape::Scalar(Scalar::Int32 | Scalar::Int64) => Some("integer"),
        Shape::Scalar(Scalar::String) => Some("string"),
        Shape::List(_) => scalar(ty.item()?),
        _ => None,
    }
}

/// Whether the answer is indented.
pub(super) fn pretty() -> Parameter {
    let doc = "'true' indents the answer for people.".to_owned();
    Parameter { name: "pretty".into(), place: "query", kind: "string", doc }
}

/// A part of the path.
pub(super) fn in_path(name: &'static str, doc: impl Into<String>) -> Parameter {
    Parameter { name: name.into(), place: "path", kind: "string", doc: doc.into() }
}

impl Parameter {
    /// Whether both are one parameter, whatever is said of them.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        self.name == other.name && self.place == other.place
    }

    pub(super) fn write(&self, dialect: Dialect) -> Value {
        let mut out = json!({ "name": self.name, "in": self.place });
        if !self.doc.is_empty() {
            out["description"] = self.doc.as_str().into();
        }
        if self.place == "path" {
            out["required"] = true.into();
        }
        match dialect {
            Dialect::V3 => out["schema"] = json!({ "type": self.kind, "uniqueItems": true }),
            Dialect::V2 => {
                out["type"] = self.kind.into();
                out["uniqueItems"] = true.into();
            }
        }
        out
    }
}

/// Parameters that a v2 document has once, by their names there.
#[derive(Default)]
pub(super) struct Shared(pub(super) BTreeMap<String, Value>);

impl Shared {
    /// Takes out of a path's item what documents have once, and leaves references.
    pub(super) fn share(&mut self, item: &mut Value) {
        let Value::Object(item) = item else { return };
        for (method, of) in item {
            let list = if method == "parameters" { Some(of) } else { of.get_mut("parameters") };
            for parameter in list.and_then(Value::as_array_mut).into_iter().flatten() {
                if may_be_shared(parameter) {
                    *parameter = json!({ "$ref": format!("#/parameters/{}", self.put(parameter)) });
                }
            }
        }
    }

    /// The name under which the parameter is kept: its own, and a hash of all that it says.
    fn put(&mut self, parameter: &Value) -> String {
        let own = parameter.get("name").and_then(Value::as_str).unwrap_or("param");
        let mut name = format!("{own}-{}", hash(parameter));
        let mut at = 0;
        while self.0.get(&name).is_some_and(|there| there != parameter) {
            at += 1;
            name = format!("{own}-{at}");
        }
        self.0.entry(name.clone()).or_insert_with(|| parameter.clone());
        name
    }
}

/// Not what is of one kind only: names of objects, and bodies. Nor what old versions of `kubectl` look for in its
/// place, to learn what the server can do.
fn may_be_shared(parameter: &Value) -> bool {
    let text = |field: &str| parameter.get(field).and_then(Value::as_str);
    let (Some(name), Some(place)) = (text("name"), text("in")) else { return false };
    match (place, name) {
        ("query" | "path", "name") | ("query", "dryRun" | "fieldValidation") => false,
        ("body", "body") => {
            let target = parameter.pointer("/schema/$ref").and_then(Value::as_str).unwrap_or_default();
            target.starts_with("#/definitions/io.k8s.apimachinery")
        }
        _ => true,
    }
}

/// FNV-1 of the parameter's JSON with its fields in the order in which upstream writes them: what says the same there
/// has the same name.
fn hash(parameter: &Value) -> String {
    const ORDER: [&str; 8] =
        ["uniqueItems", "format", "type", "description", "name", "in", "schema", "required"];
    let empty = Map::new();
    let fields = parameter.as_object().unwrap_or(&empty);
    let others = fields.keys().map(String::as_str).filter(|f| !ORDER.contains(f));
    let mut text = Vec::new();
    for field in ORDER.into_iter().chain(others) {
        let Some(value) = fields.get(field) else { continue };
        text.push(if text.is_empty() { b'{' } else { b',' });
        encode::write_string(field, &mut text);
        text.push(b':');
        encode::write_any(value, &mut text);
    }
    text.push(b'}');
    let fnv =
        text.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| h.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*b));
    URL_SAFE.encode(&fnv.to_be_bytes()[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_upstreams() {
        let mut item = json!({
            "parameters": [
                {"name": "namespace", "in": "path", "required": true, "type": "string", "uniqueItems": true,
                 "description": "object name and auth scope, such as for teams and projects"},
                {"name": "name", "in": "path", "required": true, "type": "string"},
                {"name": "dryRun", "in": "query", "type": "string"},
            ],
            "delete": {"parameters": [
                {"name": "body", "in": "body",
                 "schema": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"}},
                {"name": "body", "in": "body", "schema": {"$ref": "#/definitions/io.k8s.api.core.v1.Pod"}},
            ], "responses": {}},
        });
        let before = item.clone();
        let mut shared = Shared::default();
        shared.share(&mut item);
        // As in Kubernetes' own swagger.json.
        let names: Vec<_> = shared.0.keys().map(String::as_str).collect();
        assert_eq!(names, ["body-2Y1dVQaQ", "namespace-vgWSWtn3"]);
        assert_eq!(item["parameters"][0], json!({"$ref": "#/parameters/namespace-vgWSWtn3"}));
        assert_eq!(item["delete"]["parameters"][0], json!({"$ref": "#/parameters/body-2Y1dVQaQ"}));
        for (list, at) in [("/parameters", 1), ("/parameters", 2), ("/delete/parameters", 1)] {
            let pointer = format!("{list}/{at}");
            assert_eq!(item.pointer(&pointer), before.pointer(&pointer), "{pointer}");
        }
    }

    #[test]
    fn options_become_parameters() {
        let names = |kind: &str| -> Vec<String> {
            let all = of_options(kind, &Docs::default());
            assert!(all.iter().all(|p| !p.doc.is_empty()), "{kind} has a parameter that says nothing");
            all.iter().map(|p| format!("{} {}", p.name, p.kind)).collect()
        };
        // Neither a time nor a struct stands in a query.
        assert!(!names("PodLogOptions").iter().any(|n| n.starts_with("sinceTime")));
        assert!(!names("DeleteOptions").iter().any(|n| n.starts_with("preconditions")));
        assert!(names("DeleteOptions").contains(&"dryRun string".to_owned()));
        assert!(names("PodPortForwardOptions").contains(&"ports integer".to_owned()));
        for kind in ["ListOptions", "CreateOptions", "UpdateOptions", "PatchOptions", "PodExecOptions"] {
            assert!(!names(kind).is_empty(), "{kind}");
        }
    }
}
