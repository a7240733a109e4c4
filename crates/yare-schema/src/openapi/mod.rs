//! OpenAPI documents, version 2 (`/openapi/v2`) and version 3 (`/openapi/v3`).
//!
//! In: the tables, the prose, and from the caller the resources that are served. Out: the bytes of a
//! document. A document is written part by part, so that making the whole of v2 (5 MB) holds no tree of
//! it in memory; callers keep the result compressed, or not at all.

pub mod docs;
pub mod merge;
mod paths;
mod schema;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::{Value, json};

use self::{docs::Docs, schema::Definitions};
use crate::{builtin::builtin, encode};

/// Content type of the protobuf form of v2, which discovery clients ask for ...
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// ... by this name, which is no valid media type: answer it with [`V2_PROTOBUF`].
pub const V2_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Which OpenAPI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    /// Swagger 2.0.
    V2,
    /// OpenAPI 3.0.
    V3,
}

impl Dialect {
    fn prefix(self) -> &'static str {
        match self {
            Self::V2 => "#/definitions/",
            Self::V3 => "#/components/schemas/",
        }
    }
}

/// Where a kind's schema comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The tables.
    Builtin,
    /// `openAPIV3Schema` of a CustomResourceDefinition's version, where it has one.
    Custom(Option<&'a Value>),
}

/// A resource that is served.
#[derive(Clone, Debug)]
pub struct Resource<'a> {
    /// API group, empty for core.
    pub group: &'a str,
    /// `v1`
    pub version: &'a str,
    /// `Deployment`
    pub kind: &'a str,
    /// `deployments`
    pub plural: &'a str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verbs: Vec<&'a str>,
    /// Its subresources.
    pub subresources: Vec<Subresource<'a>>,
    /// Where its schema comes from.
    pub source: Source<'a>,
    /// Whether it is served in CBOR.
    pub cbor: bool,
}

/// A subresource that is served.
#[derive(Clone, Debug)]
pub struct Subresource<'a> {
    /// `status`, `scale`, `exec`, …
    pub name: &'a str,
    /// Group of the kind of its body.
    pub group: &'a str,
    /// Version of the kind of its body.
    pub version: &'a str,
    /// Kind of its body.
    pub kind: &'a str,
    /// Its verbs.
    pub verbs: Vec<&'a str>,
}

impl Subresource<'_> {
    /// Whether it is a stream rather than an object.
    fn connects(&self) -> bool {
        matches!(self.name, "exec" | "attach" | "portforward" | "proxy")
    }
}

impl Resource<'_> {
    /// The name of the kind's definition: `io.k8s.api.apps.v1.Deployment`, `com.example.v1.Widget`.
    fn definition(&self) -> String {
        let builtin = match self.source {
            Source::Builtin => definition_of(self.group, self.version, self.kind),
            Source::Custom(_) => None,
        };
        builtin.unwrap_or_else(|| {
            let mut parts: Vec<&str> = self.group.split('.').rev().collect();
            parts.extend([self.version, self.kind]);
            parts.join(".")
        })
    }
}

fn definition_of(group: &str, version: &str, kind: &str) -> Option<String> {
    builtin().lookup(group, version, kind).map(|t| t.ty().name.to_string())
}

/// Where a part of a document goes.
trait Sink {
    fn path(&mut self, path: &str, item: &Value);
    fn definition(&mut self, name: &str, schema: &Value);
}

/// Parts as JSON text, sorted by name as Go writes them.
#[derive(Default)]
struct JsonParts {
    paths: BTreeMap<String, Vec<u8>>,
    definitions: BTreeMap<String, Vec<u8>>,
}

impl Sink for JsonParts {
    fn path(&mut self, path: &str, item: &Value) {
        self.paths.insert(path.to_owned(), encode::any(item));
    }

    fn definition(&mut self, name: &str, schema: &Value) {
        self.definitions.insert(name.to_owned(), encode::any(schema));
    }
}

fn object(parts: &BTreeMap<String, Vec<u8>>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, (name, json)) in parts.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        encode::write_string(name, out);
        out.push(b':');
        out.extend_from_slice(json);
    }
    out.push(b'}');
}

/// Sends the paths and definitions of the resources to `sink`.
fn generate(dialect: Dialect, docs: &Docs, resources: &[Resource<'_>], sink: &mut dyn Sink) {
    let group_versions: BTreeSet<(String, String)> =
        resources.iter().map(|r| (r.group.to_owned(), r.version.to_owned())).collect();
    let mut definitions = Definitions::new(dialect, docs, group_versions);
    sink.definition(
        "io.k8s.apimachinery.pkg.apis.meta.v1.Patch",
        &json!({"description": "Whatever the patch's content type says.", "type": "object"}),
    );
    for resource in resources {
        paths::paths(dialect, resource, &mut definitions, &mut |path, item| sink.path(&path, &item));
        let Source::Custom(custom) = resource.source else { continue };
        let name = resource.definition();
        let (group, version, kind) = (resource.group, resource.version, resource.kind);
        let schema = schema::custom(&mut definitions, group, version, kind, custom);
        sink.definition(&name, &schema);
        let mut meta = definitions.reference("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta");
        if dialect == Dialect::V3 {
            meta = json!({ "allOf": [meta] });
        }
        let list = json!({
            "description": format!("{kind}List is a list of {kind} objects."),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": meta,
                "items": {"type": "array", "items": {"$ref": format!("{}{name}", dialect.prefix())}},
            },
            "x-kubernetes-group-version-kind": [
                {"group": group, "kind": format!("{kind}List"), "version": version}
            ],
        });
        sink.definition(&format!("{name}List"), &list);
    }
    discovery(dialect, resources, &mut definitions, sink);
    while let Some((name, schema)) = definitions.next() {
        sink.definition(&name, &schema);
    }
}

/// The paths at which groups and resources are listed.
fn discovery(
    dialect: Dialect,
    resources: &[Resource<'_>],
    definitions: &mut Definitions<'_>,
    sink: &mut dyn Sink,
) {
    let mut paths: BTreeMap<String, &str> = BTreeMap::new();
    for resource in resources {
        if resource.group.is_empty() {
            paths.insert(format!("/api/{}/", resource.version), "APIResourceList");
        } else {
            paths.insert(format!("/apis/{}/{}/", resource.group, resource.version), "APIResourceList");
        }
    }
    for (path, kind) in paths {
        let reference = definitions.reference(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"));
        let response = match dialect {
            Dialect::V3 => {
                json!({"description": "OK", "content": {"application/json": {"schema": reference}}})
            }
            Dialect::V2 => json!({"description": "OK", "schema": reference}),
        };
        let item = json!({"get": {
            "description": "get available resources",
            "responses": {"200": response, "401": {"description": "Unauthorized"}},
        }});
        sink.path(&path, &item);
    }
}

/// What documents of other servers add to this one's v2.
fn additions(parts: &JsonParts, others: &[Arc<Value>]) -> merge::Additions {
    merge::additions(
        others,
        |path| parts.paths.contains_key(path),
        |name| serde_json::from_slice(parts.definitions.get(name)?).ok(),
    )
}

fn add(additions: &merge::Additions, sink: &mut dyn Sink) {
    for (path, item) in &additions.paths {
        sink.path(path, item);
    }
    for (name, schema) in &additions.definitions {
        sink.definition(name, schema);
    }
}

/// The v2 document as JSON. `version`: of the server, such as `v1.36.0`. `others`: what other servers' documents
/// have about their versions, as [`merge::about`] gives it, the more important ones first.
pub fn v2(version: &str, docs: &Docs, resources: &[Resource<'_>], others: &[Arc<Value>]) -> Vec<u8> {
    let mut parts = JsonParts::default();
    generate(Dialect::V2, docs, resources, &mut parts);
    add(&additions(&parts, others), &mut parts);
    let mut out = Vec::with_capacity(6 << 20);
    out.extend_from_slice(br#"{"swagger":"2.0","info":"#);
    encode::write_any(&json!({"title": "Kubernetes", "version": version}), &mut out);
    out.extend_from_slice(br#","paths":"#);
    object(&parts.paths, &mut out);
    out.extend_from_slice(br#","definitions":"#);
    object(&parts.definitions, &mut out);
    out.extend_from_slice(br#","securityDefinitions":"#);
    encode::write_any(&security_definitions(), &mut out);
    out.extend_from_slice(br#","security":[{"BearerToken":[]}]}"#);
    out
}

/// The v2 document as protobuf ([`V2_PROTOBUF`]).
pub fn v2_protobuf(version: &str, docs: &Docs, resources: &[Resource<'_>], others: &[Arc<Value>]) -> Vec<u8> {
    let mut parts = wire::ProtoParts::default();
    generate(Dialect::V2, docs, resources, &mut parts);
    if !others.is_empty() {
        // Which names are taken by what shows in JSON only.
        let mut json = JsonParts::default();
        generate(Dialect::V2, docs, resources, &mut json);
        add(&additions(&json, others), &mut parts);
    }
    parts.finish(version)
}

/// The v3 document of one group version, of whose resources only those count.
pub fn v3(group: &str, version: &str, docs: &Docs, resources: &[Resource<'_>]) -> Vec<u8> {
    let resources: Vec<Resource<'_>> =
        resources.iter().filter(|r| r.group == group && r.version == version).cloned().collect();
    let mut parts = JsonParts::default();
    generate(Dialect::V3, docs, &resources, &mut parts);
    let mut out = Vec::with_capacity(1 << 20);
    out.extend_from_slice(
        br#"{"openapi":"3.0.0","info":{"title":"Kubernetes","version":"unversioned"},"paths":"#,
    );
    object(&parts.paths, &mut out);
    out.extend_from_slice(br#","components":{"schemas":"#);
    object(&parts.definitions, &mut out);
    out.extend_from_slice(br#","securitySchemes":"#);
    encode::write_any(&security_definitions(), &mut out);
    out.extend_from_slice(b"}}");
    out
}

/// The v3 index: for each document its path below `/openapi/v3` (`apis/apps/v1`) and its URL with a hash that
/// changes with its content.
pub fn v3_index<'a>(documents: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let paths: serde_json::Map<String, Value> = documents
        .into_iter()
        .map(|(path, url)| (path.to_owned(), json!({ "serverRelativeURL": url })))
        .collect();
    encode::any(&json!({ "paths": paths }))
}

fn security_definitions() -> Value {
    json!({"BearerToken": {"description": "Bearer Token authentication", "in": "header",
        "name": "authorization", "type": "apiKey"}})
}

#[cfg(test)]
mod tests;
