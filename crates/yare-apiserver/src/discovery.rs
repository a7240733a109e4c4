//! Discovery: which groups, versions and resources there are (`/api`, `/apis`, and the aggregated form that
//! clients ask for by `Accept`), read straight off the registry and the servers behind this one.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::{
    aggregation::{
        backend::Backend,
        priorities::{self, Priority},
        table::Table,
    },
    body::{self, Body, Reply},
    codec,
    core::{Call, Core},
    dispatch,
    encodings::{self, Form, Format, Named, TABLE},
    metrics::seldom,
    negotiate::{self, Offer},
    registry::{Registry, Served, Sub, TypeHandle, api_version},
    status::ApiResult,
};

/// The more stable and then the newer version first: `v10`, `v2`, `v1`, `v2beta1`, `v1alpha1`, others by name.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (parse_version(a), parse_version(b)) {
        (Some(x), Some(y)) => y.cmp(&x),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// Stability (2: stable, 1: beta, 0: alpha), major and minor number.
fn parse_version(text: &str) -> Option<(u8, u32, u32)> {
    let rest = text.strip_prefix('v')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let major = rest[..digits].parse().ok()?;
    let tail = &rest[digits..];
    if tail.is_empty() {
        return Some((2, major, 0));
    }
    let (stability, minor) =
        tail.strip_prefix("beta").map(|m| (1, m)).or_else(|| tail.strip_prefix("alpha").map(|m| (0, m)))?;
    Some((stability, major, minor.parse().ok()?))
}

/// Who serves a version.
enum Source<'a> {
    Here(&'a [Arc<Served>]),
    There(&'a Arc<Backend>),
}

/// A version in discovery.
struct Version<'a> {
    name: &'a str,
    priority: Priority,
    source: Source<'a>,
}

/// A group in discovery, its versions in the order clients should prefer them.
struct Group<'a> {
    name: &'a str,
    versions: Vec<Version<'a>>,
}

impl Group<'_> {
    fn priority(&self) -> i64 {
        self.versions.iter().map(|v| v.priority.group).max().unwrap_or_default()
    }

    /// The name of the APIService by which plain lists place the group among others of the same priority.
    fn place(&self) -> String {
        let priority = self.priority();
        let names = self.versions.iter().filter(|v| v.priority.group == priority);
        names.map(|v| format!("{}.{}", v.name, self.name)).min().unwrap_or_default()
    }
}

/// One group as it is served by whomever; `None` where nobody does.
fn group_of<'a>(registry: &'a Registry, table: &'a Table, name: &'a str) -> Option<Group<'a>> {
    let mut versions: Vec<Version<'a>> = Vec::new();
    for (version, resources) in registry.groups().get(name).into_iter().flatten() {
        let entry = table.entry(name, version);
        let custom = resources.iter().all(|r| r.stored.custom.is_some());
        let priority = match entry {
            Some(entry) => entry.priority,
            None if custom => priorities::CUSTOM,
            None => priorities::builtin(name, version),
        };
        let source = match entry.and_then(|e| e.backend.as_ref()) {
            Some(backend) => Source::There(backend),
            None => Source::Here(resources),
        };
        versions.push(Version { name: version, priority, source });
    }
    for (version, entry) in table.versions(name) {
        if let Some(backend) = &entry.backend
            && !versions.iter().any(|v| v.name == version)
        {
            versions.push(Version {
                name: version,
                priority: entry.priority,
                source: Source::There(backend),
            });
        }
    }
    versions.sort_by(|a, b| {
        b.priority.version.cmp(&a.priority.version).then_with(|| compare_versions(a.name, b.name))
    });
    (!versions.is_empty()).then_some(Group { name, versions })
}

/// All groups, the core group among them or alone. `plain`: in the order of lists that are not aggregated,
/// where another name breaks ties.
fn groups<'a>(registry: &'a Registry, table: &'a Table, legacy: bool, plain: bool) -> Vec<Group<'a>> {
    let mut names: Vec<&str> = registry.groups().keys().map(String::as_str).collect();
    names.extend(table.backends().map(|b| b.group.as_str()));
    names.sort_unstable();
    names.dedup();
    let mut groups: Vec<Group<'_>> = names
        .into_iter()
        .filter(|name| name.is_empty() == legacy)
        .filter_map(|name| group_of(registry, table, name))
        .collect();
    // Names are in order already, and sorting is stable.
    if plain {
        groups.sort_by_cached_key(|g| (std::cmp::Reverse(g.priority()), g.place()));
    } else {
        groups.sort_by_key(|g| std::cmp::Reverse(g.priority()));
    }
    groups
}

/// `/api` and `/apis`, plain or aggregated.
pub fn root(call: &Call, legacy: bool) -> ApiResult<Reply> {
    if let Some((format, version)) = aggregation_asked(call) {
        return aggregated(call, legacy, format, version);
    }
    let document = if legacy {
        negotiate::accept_one_of(&call.headers, &encodings::media_types(None))?;
        json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": address(call) }],
        })
    } else {
        let (registry, table) = (call.core.registry.load(), call.core.aggregation.table.load());
        let groups: Vec<Value> =
            groups(&registry, &table, false, true).iter().map(|g| group_document(g, false)).collect();
        json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
    };
    crate::render::document_of(call, StatusCode::OK, &document, UNGATED)
}

/// What upstream serves of this by codecs that no gate changes.
const UNGATED: Offer<'static> = Offer { gates: None, custom: false, transforms: false };

/// In what encoding and version the client takes all groups in one document, where it does.
fn aggregation_asked(call: &Call) -> Option<(&'static Format, &'static str)> {
    let gates = &call.core.config.gates;
    negotiate::clauses(&call.headers).iter().find_map(|clause| {
        let named = ["as", "g"].map(|name| clause.param(name));
        if named != [Some(LIST), Some(GROUP)] {
            return None;
        }
        let version = match clause.param("v") {
            Some("v2") => "v2",
            Some("v2beta1") if !gates.is_on("AggregatedDiscoveryRemoveBetaType") => "v2beta1",
            _ => return None,
        };
        let format = TABLE.iter().find(|f| f.is_on(None) && clause.covers(f.media_type))?;
        Some((format, version))
    })
}

fn address(call: &Call) -> String {
    let config = &call.core.config;
    match (&config.external, config.advertise) {
        (Some(external), _) => external.clone(),
        (None, Some((ip, port))) => std::net::SocketAddr::new(ip, port).to_string(),
        (None, None) => String::new(),
    }
}

fn group_document(group: &Group<'_>, alone: bool) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|v| json!({ "groupVersion": api_version(group.name, v.name), "version": v.name }))
        .collect();
    let mut out = Map::new();
    if alone {
        out.insert("kind".into(), "APIGroup".into());
        out.insert("apiVersion".into(), "v1".into());
    }
    out.insert("name".into(), group.name.into());
    out.insert("preferredVersion".into(), versions.first().cloned().unwrap_or_default());
    out.insert("versions".into(), versions.into());
    Value::Object(out)
}

/// `/apis/GROUP`
pub fn group(call: &Call, name: &str) -> ApiResult<Reply> {
    let (registry, table) = (call.core.registry.load(), call.core.aggregation.table.load());
    match group_of(&registry, &table, name).filter(|_| !name.is_empty()) {
        Some(group) => {
            crate::render::document_of(call, StatusCode::OK, &group_document(&group, true), UNGATED)
        }
        None => Ok(dispatch::nothing_here()),
    }
}

/// `/api/v1` and `/apis/GROUP/VERSION`
pub fn version(call: &Call, group: &str, version: &str) -> ApiResult<Reply> {
    let registry = call.core.registry.load();
    let Some(resources) = registry.groups().get(group).and_then(|v| v.get(version)) else {
        return dispatch::nothing_in(&registry, group);
    };
    dispatch::only_get(call)?;
    let mut list: Vec<Value> = Vec::new();
    let mut sorted: Vec<&Arc<Served>> = resources.iter().collect();
    sorted.sort_by(|a, b| a.plural.cmp(&b.plural));
    for served in sorted {
        if !served.verbs.is_empty() {
            list.push(resource_document(served));
        }
        list.extend(served.subresources.iter().map(|sub| subresource_document(served, sub)));
    }
    let document = json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": api_version(group, version), "resources": list,
    });
    let custom = resources.iter().any(|served| served.stored.custom.is_some());
    let offer = if custom { UNGATED } else { crate::render::offer(call) };
    if !custom {
        negotiate::route(&call.headers, &[], false, &call.core.config.gates)?;
    }
    crate::render::document_of(call, StatusCode::OK, &document, offer)
}

fn resource_document(served: &Served) -> Value {
    let mut out = json!({
        "name": &*served.plural, "singularName": &*served.singular, "namespaced": served.namespaced,
        "kind": &*served.kind, "verbs": strings(&served.verbs),
    });
    if !served.short_names.is_empty() {
        out["shortNames"] = strings(&served.short_names);
    }
    if !served.categories.is_empty() {
        out["categories"] = strings(&served.categories);
    }
    // What is only made for an answer is stored in no version.
    if served.has_verb("get") && !served.stored.builtin.is_some_and(|row| row.is_virtual()) {
        out["storageVersionHash"] = storage_hash(served).into();
    }
    out
}

fn strings(list: &[Box<str>]) -> Value {
    list.iter().map(|s| Value::from(&**s)).collect()
}

/// Eight bytes that change when objects are stored in another version.
fn storage_hash(served: &Served) -> String {
    use base64::Engine as _;
    let stored = &served.stored;
    let text = format!("{}/{}/{}", stored.group, stored.version, stored.kind);
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&digest.as_ref()[..8])
}

fn subresource_document(served: &Served, sub: &Sub) -> Value {
    let mut out = json!({
        "name": format!("{}/{}", served.plural, sub.name), "singularName": "",
        "namespaced": served.namespaced, "kind": &*served.kind, "verbs": strings(&sub.verbs),
    });
    if let Some((group, version, kind)) = &sub.kind {
        out["kind"] = (&**kind).into();
        if **group != *served.group || **version != *served.version {
            out["group"] = (&**group).into();
            out["version"] = (&**version).into();
        }
    }
    out
}

/// Aggregated documents by which one: `/api` or `/apis`, and version.
type Documents = BTreeMap<(bool, &'static str), (Bytes, HeaderValue)>;

/// Aggregated documents while hot: good for one registry and one state of the aggregation layer.
#[derive(Default)]
pub struct Cache(Mutex<Option<(Arc<Registry>, u64, Documents)>>);

impl Cache {
    /// The document and its `ETag`.
    fn document(&self, core: &Core, legacy: bool, version: &'static str) -> (Bytes, HeaderValue) {
        // In this order: what changes in between makes the next caller start over.
        let changes = core.aggregation.changes();
        let registry = core.registry.load_full();
        let key = (legacy, version);
        if let Some((of, at, documents)) = &*self.0.lock()
            && Arc::ptr_eq(of, &registry)
            && *at == changes
            && let Some(found) = documents.get(&key)
        {
            return found.clone();
        }
        core.metrics.seldom.count(&seldom::DISCOVERY, &[]);
        let made = make(&registry, &core.aggregation.table.load(), legacy, version);
        let ty = codec::builtin_type(GROUP, version, LIST).map(TypeHandle::Static);
        let bytes = ty.map_or_else(|| made.to_string().into_bytes(), |ty| codec::to_json(&ty, &made));
        let bytes = Bytes::from(bytes);
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        let etag: String = digest.as_ref().iter().map(|b| format!("{b:02X}")).collect();
        // Hexadecimal digits are a header's value.
        let etag = HeaderValue::from_str(&format!("\"{etag}\"")).unwrap_or(HeaderValue::from_static("\"\""));
        let mut kept = self.0.lock();
        match &mut *kept {
            Some((of, at, documents)) if Arc::ptr_eq(of, &registry) && *at == changes => {
                documents.insert(key, (bytes.clone(), etag.clone()));
            }
            _ => *kept = Some((registry, changes, BTreeMap::from([(key, (bytes.clone(), etag.clone()))]))),
        }
        (bytes, etag)
    }
}

/// What an aggregated document is.
const GROUP: &str = "apidiscovery.k8s.io";
const LIST: &str = "APIGroupDiscoveryList";

fn make(registry: &Registry, table: &Table, legacy: bool, version: &str) -> Value {
    let groups: Vec<Value> = groups(registry, table, legacy, false)
        .iter()
        .map(|group| {
            let versions: Vec<Value> = group.versions.iter().map(aggregated_version).collect();
            let metadata = if group.name.is_empty() { json!({}) } else { json!({ "name": group.name }) };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({
        "kind": LIST, "apiVersion": format!("{GROUP}/{version}"),
        "metadata": {}, "items": groups,
    })
}

fn aggregated_version(version: &Version<'_>) -> Value {
    match version.source {
        Source::Here(resources) => json!({
            "version": version.name, "freshness": "Current",
            "resources": resources.iter().map(|r| aggregated_resource(r)).collect::<Vec<_>>(),
        }),
        Source::There(backend) => {
            let documents = backend.documents.load();
            let mut out = documents
                .discovery
                .clone()
                .unwrap_or_else(|| json!({ "version": version.name, "resources": [] }));
            let current = documents.discovery.is_some() && !documents.stale;
            out["freshness"] = if current { "Current" } else { "Stale" }.into();
            out
        }
    }
}

fn aggregated(call: &Call, legacy: bool, format: &'static Format, version: &'static str) -> ApiResult<Reply> {
    let (bytes, etag) = call.core.discovery.document(&call.core, legacy, version);
    let seen = call.headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    if seen.is_some_and(|s| s.trim_start_matches("W/").as_bytes() == etag.as_bytes()) {
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let api_version = format!("{GROUP}/{version}");
    let ty = codec::builtin_type(GROUP, version, LIST).map(TypeHandle::Static);
    let of = Named { ty: ty.as_ref(), api_version: &api_version, kind: LIST };
    let bytes = (format.document)(&of, Form::Json(bytes), false)?;
    let mut response = body::reply(StatusCode::OK, format.media_type, bytes);
    let media = format!("{};g={GROUP};v={version};as={LIST}", format.media_type);
    let headers = response.headers_mut();
    if let Ok(media) = HeaderValue::from_str(&media) {
        headers.insert(header::CONTENT_TYPE, media);
    }
    headers.insert(header::ETAG, etag);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

fn aggregated_resource(served: &Served) -> Value {
    // Of what is built in, group and version are said only where they are others than the resource's.
    let is_built_in = served.stored.builtin.is_some();
    let response_kind = |group: &str, version: &str, kind: &str| {
        let is_own = is_built_in && (group, version) == (&*served.group, &*served.version);
        let (group, version) = if is_own { ("", "") } else { (group, version) };
        json!({ "group": group, "version": version, "kind": kind })
    };
    let mut out = json!({
        "resource": &*served.plural,
        "responseKind": response_kind(&served.group, &served.version, &served.kind),
        "scope": if served.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": &*served.singular,
        "verbs": strings(&served.verbs),
    });
    if !served.short_names.is_empty() {
        out["shortNames"] = strings(&served.short_names);
    }
    if !served.categories.is_empty() {
        out["categories"] = strings(&served.categories);
    }
    if !served.subresources.is_empty() {
        out["subresources"] = served
            .subresources
            .iter()
            .map(|sub| {
                let (group, version, kind) = sub
                    .kind
                    .as_ref()
                    .map_or((&*served.group, &*served.version, &*served.kind), |(g, v, k)| (g, v, k));
                json!({
                    "subresource": &*sub.name, "responseKind": response_kind(group, version, kind),
                    "verbs": strings(&sub.verbs),
                })
            })
            .collect();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_order() {
        let mut all = ["v1alpha1", "foo", "v2", "v1", "v10", "v1beta2", "v1beta10", "bar", "v2alpha1"];
        all.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(all, ["v10", "v2", "v1", "v1beta10", "v1beta2", "v2alpha1", "v1alpha1", "bar", "foo"]);
    }
}
