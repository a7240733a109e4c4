//! OpenAPI documents, version 2 (`/openapi/v2`) and version 3 (`/openapi/v3`).
//!
//! In: the tables, the prose, and from the caller the resources that are served. Out: the bytes of a
//! document. A document is written part by part, so that making the whole of v2 (5 MB) holds no tree of
//! it in memory; callers keep the result compressed, or not at all.

mod custom;
pub mod docs;
pub mod merge;
mod operation;
mod pages;
mod parameters;
mod paths;
mod schema;
mod wire;
mod wire3;

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use self::{
    docs::Docs,
    operation::Item,
    parameters::Shared,
    schema::{Definitions, GroupVersions},
};
use crate::{builtin::builtin, encode};

/// Content type of the protobuf form of v2, which discovery clients ask for ...
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// ... by this name, which is no valid media type: answer it with [`V2_PROTOBUF`].
pub const V2_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The same of v3 ...
pub const V3_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";

/// ... and how it is asked for.
pub const V3_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf";

/// Changes with what documents are made of: this module, the tables and the prose.
const FINGERPRINT: &str = include_str!(concat!(env!("OUT_DIR"), "/openapi.fingerprint"));

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
    /// The version of a CustomResourceDefinition: its entry in `spec.versions`.
    Custom(&'a Value),
}

/// What a server serves, as far as its documents tell.
#[derive(Clone, Copy)]
pub struct Server<'a> {
    /// The version of Kubernetes that it behaves as, such as `1.36`.
    pub version: &'a str,
    /// The prose.
    pub docs: &'a Docs,
    /// Its resources.
    pub resources: &'a [Resource<'a>],
    /// Whether it tells how to verify tokens of service accounts.
    pub openid: bool,
    /// Whether built-in kinds are served in CBOR.
    pub cbor: bool,
    /// Whether enumerated strings list their values.
    pub enums: bool,
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
    /// `DeploymentList`
    pub list_kind: &'a str,
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
    /// Whether a deletion answers with the object instead of a `Status`.
    pub returns_deleted: bool,
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
        self.definition_named(self.kind)
    }

    /// The name of the list's definition.
    fn list_definition(&self) -> String {
        self.definition_named(self.list_kind)
    }

    fn definition_named(&self, kind: &str) -> String {
        let builtin = match self.source {
            Source::Builtin => definition_of(self.group, self.version, kind),
            Source::Custom(_) => None,
        };
        builtin.unwrap_or_else(|| {
            let mut parts: Vec<&str> = self.group.split('.').rev().collect();
            parts.extend([self.version, kind]);
            parts.join(".")
        })
    }

    /// The name of the v3 document that it is in.
    fn document(&self) -> String {
        v3_document(self.group, self.version)
    }
}

/// The name of the v3 document of a group's version.
pub fn v3_document(group: &str, version: &str) -> String {
    match group {
        "" => format!("api/{version}"),
        group => format!("apis/{group}/{version}"),
    }
}

fn definition_of(group: &str, version: &str, kind: &str) -> Option<String> {
    builtin().lookup(group, version, kind).map(|t| t.ty().name.to_string())
}

/// Where a part of a document goes.
trait Sink {
    fn path(&mut self, path: &str, item: &Value);
    fn definition(&mut self, name: &str, schema: &Value);
    /// A parameter that several operations share: in v2 only.
    fn parameter(&mut self, _name: &str, _parameter: &Value) {}
}

/// Parts as JSON text, sorted by name as Go writes them.
#[derive(Default)]
struct JsonParts {
    paths: BTreeMap<String, Vec<u8>>,
    definitions: BTreeMap<String, Vec<u8>>,
    parameters: BTreeMap<String, Vec<u8>>,
}

impl Sink for JsonParts {
    fn path(&mut self, path: &str, item: &Value) {
        self.paths.insert(path.to_owned(), encode::any(item));
    }

    fn definition(&mut self, name: &str, schema: &Value) {
        self.definitions.insert(name.to_owned(), encode::any(schema));
    }

    fn parameter(&mut self, name: &str, parameter: &Value) {
        self.parameters.insert(name.to_owned(), encode::any(parameter));
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

/// Writes the parts of a document to `sink`, which needs no order.
struct Writer<'a, 's> {
    dialect: Dialect,
    server: &'a Server<'a>,
    definitions: Definitions<'a>,
    shared: Shared,
    sink: &'s mut dyn Sink,
}

impl<'a, 's> Writer<'a, 's> {
    fn new(
        dialect: Dialect,
        server: &'a Server<'a>,
        group_versions: GroupVersions<'_>,
        sink: &'s mut dyn Sink,
    ) -> Self {
        let definitions = Definitions::new(dialect, server.docs, server.enums, group_versions);
        Self { dialect, server, definitions, shared: Shared::default(), sink }
    }

    fn item(&mut self, item: &Item) {
        let written = item.write(self.dialect, &mut self.definitions);
        self.path(&item.path, written);
    }

    fn path(&mut self, path: &str, mut item: Value) {
        if self.dialect == Dialect::V2 {
            self.shared.share(&mut item);
        }
        self.sink.path(path, &item);
    }

    fn resource(&mut self, resource: &Resource<'_>) {
        paths::paths(self.server, resource, &mut |item| self.item(&item));
        if let Source::Custom(version) = resource.source {
            let (object, list) = custom::definitions(&mut self.definitions, resource, version);
            self.sink.definition(&resource.definition(), &object);
            self.sink.definition(&resource.list_definition(), &list);
        }
    }

    /// What paths and definitions refer to.
    fn finish(mut self) {
        while let Some((name, schema)) = self.definitions.next() {
            self.sink.definition(&name, &schema);
        }
        for (name, parameter) in &self.shared.0 {
            self.sink.parameter(name, parameter);
        }
    }
}

/// Sends the whole of v2 to `sink`, and what `others` adds to it.
fn generate(server: &Server<'_>, others: Option<&merge::Additions>, sink: &mut dyn Sink) {
    let mut writer = Writer::new(Dialect::V2, server, GroupVersions::All, sink);
    for item in pages::pages(server) {
        writer.item(&item);
    }
    for resource in server.resources {
        writer.resource(resource);
    }
    for (path, item) in others.into_iter().flat_map(|o| &o.paths) {
        writer.path(path, item.clone());
    }
    writer.finish();
    for (name, schema) in others.into_iter().flat_map(|o| &o.definitions) {
        sink.definition(name, schema);
    }
}

/// What documents of other servers add to this one's v2.
fn additions(server: &Server<'_>, others: &[Arc<Value>]) -> Option<merge::Additions> {
    if others.is_empty() {
        return None;
    }
    // Which names are taken, and by what, shows in JSON.
    let mut parts = JsonParts::default();
    generate(server, None, &mut parts);
    Some(merge::additions(
        others,
        |path| parts.paths.contains_key(path),
        |name| serde_json::from_slice(parts.definitions.get(name)?).ok(),
    ))
}

impl Server<'_> {
    /// The v2 document as JSON. `others`: what other servers' documents have about their versions, as
    /// [`merge::about`] gives it, the more important ones first.
    pub fn v2(&self, others: &[Arc<Value>]) -> Vec<u8> {
        let mut parts = JsonParts::default();
        generate(self, additions(self, others).as_ref(), &mut parts);
        let mut out = Vec::with_capacity(6 << 20);
        out.extend_from_slice(br#"{"swagger":"2.0","info":"#);
        encode::write_any(&json!({"title": "Kubernetes", "version": self.version}), &mut out);
        out.extend_from_slice(br#","paths":"#);
        object(&parts.paths, &mut out);
        out.extend_from_slice(br#","definitions":"#);
        object(&parts.definitions, &mut out);
        out.extend_from_slice(br#","parameters":"#);
        object(&parts.parameters, &mut out);
        out.extend_from_slice(br#","securityDefinitions":"#);
        encode::write_any(&security_definitions(), &mut out);
        out.extend_from_slice(br#","security":[{"BearerToken":[]}]}"#);
        out
    }

    /// The v2 document as protobuf ([`V2_PROTOBUF`]).
    pub fn v2_protobuf(&self, others: &[Arc<Value>]) -> Vec<u8> {
        let mut parts = wire::ProtoParts::default();
        generate(self, additions(self, others).as_ref(), &mut parts);
        parts.finish(self.version)
    }

    /// Sends the parts of a v3 document to `sink`, and returns what it says of itself and of who may come. `None`:
    /// there is no such document.
    fn v3_parts(&self, document: &str, sink: &mut dyn Sink) -> Option<(Value, Option<Value>)> {
        let pages = pages::pages(self);
        let pages: Vec<&Item> = pages.iter().filter(|item| item.path.trim_matches('/') == document).collect();
        let resources: Vec<&Resource<'_>> =
            self.resources.iter().filter(|resource| resource.document() == document).collect();
        let custom = pages.is_empty();
        let group_versions = match resources.first() {
            Some(resource) if !custom => GroupVersions::Own(resource.group, resource.version),
            Some(_) => GroupVersions::OfCustom,
            None if custom => return None,
            None => GroupVersions::Own("", "v1"),
        };
        let mut writer = Writer::new(Dialect::V3, self, group_versions, sink);
        pages.iter().for_each(|item| writer.item(item));
        resources.iter().for_each(|resource| writer.resource(resource));
        writer.finish();
        Some(match custom {
            true => (json!({"title": "Kubernetes CRD Swagger", "version": "v0.1.0"}), None),
            false => (json!({"title": "Kubernetes", "version": self.version}), Some(security_definitions())),
        })
    }

    /// The v3 document of this name ([`Server::v3_seeds`]), where there is one.
    pub fn v3(&self, document: &str) -> Option<Vec<u8>> {
        let mut parts = JsonParts::default();
        let (info, security) = self.v3_parts(document, &mut parts)?;
        let mut out = Vec::with_capacity(1 << 20);
        out.extend_from_slice(br#"{"openapi":"3.0.0","info":"#);
        encode::write_any(&info, &mut out);
        out.extend_from_slice(br#","paths":"#);
        object(&parts.paths, &mut out);
        out.extend_from_slice(br#","components":{"#);
        if !parts.definitions.is_empty() {
            out.extend_from_slice(br#""schemas":"#);
            object(&parts.definitions, &mut out);
        }
        if let Some(security) = security {
            out.extend_from_slice(if parts.definitions.is_empty() { b"" } else { b"," });
            out.extend_from_slice(br#""securitySchemes":"#);
            encode::write_any(&security, &mut out);
        }
        out.extend_from_slice(b"}}");
        Some(out)
    }

    /// The same as protobuf ([`V3_PROTOBUF`]).
    pub fn v3_protobuf(&self, document: &str) -> Option<Vec<u8>> {
        let mut parts = wire3::ProtoParts::default();
        let (info, security) = self.v3_parts(document, &mut parts)?;
        Some(parts.finish(&info, security.as_ref()))
    }

    /// The v3 documents by name (`api/v1`, `apis/apps`, `version`), each with all that decides its content but for
    /// the definitions of custom resources.
    pub fn v3_seeds(&self) -> BTreeMap<String, String> {
        let Self { version, openid, cbor, enums, .. } = self;
        let head = |document: &String| format!("{FINGERPRINT} {document} {version} {openid} {cbor} {enums}");
        let pages = pages::pages(self);
        let names = pages.iter().map(|page| page.path.trim_matches('/').to_owned());
        let mut seeds: BTreeMap<String, String> = names.map(|name| (name.clone(), head(&name))).collect();
        for resource in self.resources {
            let Resource {
                kind, list_kind, plural, namespaced, verbs, subresources, returns_deleted, ..
            } = resource;
            let seed = seeds.entry(resource.document()).or_insert_with_key(head);
            seed.push_str(&format!(
                ",{kind} {list_kind} {plural} {namespaced} {verbs:?} {subresources:?} {returns_deleted}"
            ));
        }
        seeds
    }
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
