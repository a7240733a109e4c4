//! Discovery: which groups, versions and resources there are (`/api`, `/apis`, and the aggregated form that
//! clients ask for by `Accept`), read straight off the registry.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::{
    body::{self, Body, Reply},
    core::Call,
    negotiate,
    registry::{Registry, Served, Sub, api_version},
    status::{ApiError, ApiResult},
};

/// Built-in groups in the order clients should prefer them.
const ORDER: [&str; 22] = [
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "resource.k8s.io",
];

fn group_order(a: &str, b: &str) -> Ordering {
    let place = |g: &str| ORDER.iter().position(|o| *o == g).unwrap_or(ORDER.len());
    place(a).cmp(&place(b)).then_with(|| a.cmp(b))
}

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

fn sorted_groups(registry: &Registry) -> Vec<&String> {
    let mut groups: Vec<&String> = registry.groups().keys().collect();
    groups.sort_by(|a, b| group_order(a, b));
    groups
}

fn sorted_versions(versions: &BTreeMap<String, Vec<Arc<Served>>>) -> Vec<&String> {
    let mut names: Vec<&String> = versions.keys().collect();
    names.sort_by(|a, b| compare_versions(a, b));
    names
}

/// `/api` and `/apis`, plain or aggregated.
pub fn root(call: &Call, legacy: bool) -> ApiResult<Reply> {
    let registry = call.core.registry.load();
    for clause in negotiate::clauses(&call.headers) {
        if clause.param("as") == Some("APIGroupDiscoveryList")
            && clause.param("g") == Some("apidiscovery.k8s.io")
        {
            let version = match clause.param("v") {
                Some("v2") => "v2",
                Some("v2beta1") => "v2beta1",
                _ => continue,
            };
            if clause.covers(negotiate::JSON) {
                return Ok(aggregated(call, &registry, legacy, version));
            }
        } else if clause.param("as").is_none() {
            break;
        }
    }
    let document = if legacy {
        json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": address(call) }],
        })
    } else {
        let groups: Vec<Value> = sorted_groups(&registry)
            .into_iter()
            .filter(|g| !g.is_empty())
            .map(|g| group_document(&registry, g, false))
            .collect();
        json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
    };
    crate::render::document(call, StatusCode::OK, &with_version(document))
}

fn with_version(mut document: Value) -> Value {
    if let Some(map) = document.as_object_mut() {
        map.entry("apiVersion").or_insert_with(|| "v1".into());
    }
    document
}

fn address(call: &Call) -> String {
    match call.core.config.advertise {
        Some((ip, port)) => std::net::SocketAddr::new(ip, port).to_string(),
        None => String::new(),
    }
}

fn group_document(registry: &Registry, group: &str, alone: bool) -> Value {
    let versions = registry.groups().get(group).map(sorted_versions).unwrap_or_default();
    let versions: Vec<Value> =
        versions.iter().map(|v| json!({ "groupVersion": api_version(group, v), "version": v })).collect();
    let mut out = Map::new();
    if alone {
        out.insert("kind".into(), "APIGroup".into());
        out.insert("apiVersion".into(), "v1".into());
    }
    out.insert("name".into(), group.into());
    out.insert("preferredVersion".into(), versions.first().cloned().unwrap_or_default());
    out.insert("versions".into(), versions.into());
    Value::Object(out)
}

/// `/apis/GROUP`
pub fn group(call: &Call, name: &str) -> ApiResult<Reply> {
    let registry = call.core.registry.load();
    if name.is_empty() || !registry.groups().contains_key(name) {
        return Err(ApiError::unknown_resource());
    }
    crate::render::document(call, StatusCode::OK, &group_document(&registry, name, true))
}

/// `/api/v1` and `/apis/GROUP/VERSION`
pub fn version(call: &Call, group: &str, version: &str) -> ApiResult<Reply> {
    let registry = call.core.registry.load();
    let Some(resources) = registry.groups().get(group).and_then(|v| v.get(version)) else {
        return Err(ApiError::unknown_resource());
    };
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
    crate::render::document(call, StatusCode::OK, &document)
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
    if served.has_verb("get") {
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

fn aggregated(call: &Call, registry: &Registry, legacy: bool, version: &str) -> Reply {
    let groups: Vec<Value> = sorted_groups(registry)
        .into_iter()
        .filter(|g| g.is_empty() == legacy)
        .map(|g| {
            let versions = registry.groups().get(g);
            let documents: Vec<Value> = versions
                .map(sorted_versions)
                .unwrap_or_default()
                .into_iter()
                .map(|v| {
                    let resources =
                        versions.and_then(|all| all.get(v)).map(Vec::as_slice).unwrap_or_default();
                    json!({
                        "version": v, "freshness": "Current",
                        "resources": resources.iter().map(|r| aggregated_resource(r)).collect::<Vec<_>>(),
                    })
                })
                .collect();
            json!({ "metadata": { "name": g, "creationTimestamp": null }, "versions": documents })
        })
        .collect();
    let document = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": groups,
    });
    let bytes = Bytes::from(document.to_string());
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    let etag: String = digest.as_ref().iter().map(|b| format!("{b:02X}")).collect();
    let etag = format!("\"{etag}\"");
    let seen = call.headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    if seen.is_some_and(|s| s.trim_start_matches("W/") == etag) {
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    let mut response = body::reply(StatusCode::OK, negotiate::JSON, bytes);
    let media = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    for (name, value) in [(header::CONTENT_TYPE, media), (header::ETAG, etag)] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn aggregated_resource(served: &Served) -> Value {
    let response_kind =
        |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
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
