//! What the servers behind this one serve: read from their aggregated discovery, or where they have none from
//! their list of resources.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};
use yare_kinds::view::View;

use super::{available, backend::Backend};
use crate::core::Core;

/// What is asked for: both versions of the aggregated form, the newer one first.
const ACCEPT: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest document that is read.
const MAX_BYTES: usize = 16 << 20;

/// What came back.
pub(super) struct Fetched {
    /// HTTP status.
    pub code: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub bytes: Bytes,
}

/// Reads a document of a backend.
pub(super) async fn fetch(
    core: &Arc<Core>,
    backend: &Backend,
    path: &str,
    accept: &'static str,
    etag: &str,
    timeout: Duration,
) -> Result<Fetched, String> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
    if let Ok(etag) = HeaderValue::from_str(etag)
        && !etag.is_empty()
    {
        headers.insert(header::IF_NONE_MATCH, etag);
    }
    let read = async {
        let response = available::ask(core, backend, path, headers).await?;
        let (parts, body) = response.into_parts();
        let bytes = Limited::new(body, MAX_BYTES).collect().await.map_err(|e| format!("{path}: {e}"))?;
        Ok(Fetched { code: parts.status, headers: parts.headers, bytes: bytes.to_bytes() })
    };
    tokio::time::timeout(timeout, read).await.map_err(|_| format!("{path}: request timed out"))?
}

/// Reads what a backend serves. Where that fails, what was read before stays and counts as stale.
pub async fn refresh(core: &Arc<Core>, backend: &Arc<Backend>) {
    match read(core, backend).await {
        Ok(found) => {
            let before = backend.documents.load_full();
            if before.discovery.as_ref() != Some(&found) || before.stale {
                backend.documents.rcu(|documents| {
                    let mut documents = (**documents).clone();
                    documents.discovery = Some(found.clone());
                    documents.stale = false;
                    documents
                });
                core.aggregation.touch();
            }
        }
        Err(error) => {
            tracing::warn!(error, apiservice = backend.name, "cannot read what an APIService serves");
            mark_stale(core, backend);
        }
    }
}

/// What is known of a backend may be wrong by now.
pub fn mark_stale(core: &Core, backend: &Backend) {
    if !backend.documents.load().stale {
        backend.documents.rcu(|documents| {
            let mut documents = (**documents).clone();
            documents.stale = true;
            documents
        });
        core.aggregation.touch();
    }
}

async fn read(core: &Arc<Core>, backend: &Backend) -> Result<Value, String> {
    let path = if backend.group.is_empty() { "/api" } else { "/apis" };
    let fetched = fetch(core, backend, path, ACCEPT, "", FETCH_TIMEOUT).await?;
    let media = fetched.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).map_err(|e| format!("{path}: {e}"));
    if fetched.code == StatusCode::SERVICE_UNAVAILABLE {
        return Err(format!("{path}: {}", fetched.code));
    }
    if fetched.code == StatusCode::OK && media.contains("as=APIGroupDiscoveryList") {
        return Ok(of_aggregated(&parse(&fetched.bytes)?, &backend.group, &backend.version));
    }
    let root = backend.root();
    let fetched = fetch(core, backend, &root, "application/json", "", FETCH_TIMEOUT).await?;
    if fetched.code != StatusCode::OK {
        return Err(format!("{root}: {}", fetched.code));
    }
    Ok(of_list(&parse(&fetched.bytes)?, &backend.version))
}

/// The version's part of an aggregated document; empty where it is not in it.
fn of_aggregated(document: &Value, group: &str, version: &str) -> Value {
    let found = document
        .items("items")
        .iter()
        .filter(|g| g.str_at("metadata.name") == group)
        .flat_map(|g| g.items("versions"))
        .find(|v| v.str_at("version") == version);
    let mut out = match found {
        Some(found) if found.is_object() => found.clone(),
        _ => json!({ "version": version }),
    };
    // Clients of v0.26 do without any check.
    for resource in out["resources"].as_array_mut().into_iter().flatten() {
        complete(resource);
        for sub in resource.get_mut("subresources").and_then(Value::as_array_mut).into_iter().flatten() {
            complete(sub);
        }
    }
    if out["resources"].is_null() {
        out["resources"] = json!([]);
    }
    out
}

fn complete(resource: &mut Value) {
    if resource.is_object() && resource["responseKind"].is_null() {
        resource["responseKind"] = json!({ "group": "", "version": "", "kind": "" });
    }
}

/// The same made of an `APIResourceList`.
fn of_list(document: &Value, version: &str) -> Value {
    // Nothing in the place of a group or version stands for that of the list.
    let response_kind = |resource: &Value| {
        let [group, version, kind] = ["group", "version", "kind"].map(|field| resource.str_at(field));
        json!({ "group": group, "version": version, "kind": kind })
    };
    let mut out: Vec<Value> = Vec::new();
    let list = document.items("resources");
    for resource in list.iter().filter(|r| !r.str_at("name").contains('/')) {
        let mut found = json!({
            "resource": resource.str_at("name"),
            "responseKind": response_kind(resource),
            "scope": if resource.bool_at("namespaced") { "Namespaced" } else { "Cluster" },
            "singularResource": resource.str_at("singularName"),
            "verbs": resource.strings("verbs"),
        });
        for field in ["shortNames", "categories"] {
            let words = resource.strings(field);
            if !words.is_empty() {
                found[field] = json!(words);
            }
        }
        out.push(found);
    }
    for resource in list {
        let Some((parent, name)) = resource.str_at("name").split_once('/') else { continue };
        let sub = json!({
            "subresource": name, "responseKind": response_kind(resource), "verbs": resource.strings("verbs"),
        });
        let at = match out.iter().position(|r| r.str_at("resource") == parent) {
            Some(at) => at,
            None => {
                // A subresource alone, as some servers have it.
                out.push(json!({
                    "resource": parent,
                    "scope": if resource.bool_at("namespaced") { "Namespaced" } else { "Cluster" },
                    "responseKind": { "group": "", "version": "", "kind": "" }, "verbs": [],
                }));
                out.len() - 1
            }
        };
        match out[at].get_mut("subresources").and_then(Value::as_array_mut) {
            Some(list) => list.push(sub),
            None => out[at]["subresources"] = json!([sub]),
        }
    }
    json!({ "version": version, "resources": out })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aggregated() {
        let document = json!({"items": [
            {"metadata": {"name": "other"}, "versions": [{"version": "v1", "resources": [{"resource": "x"}]}]},
            {"metadata": {"name": "g"}, "versions": [{"version": "v1", "freshness": "Current",
                "resources": [{"resource": "a", "subresources": [{"subresource": "s"}]}]}]},
        ]});
        let found = of_aggregated(&document, "g", "v1");
        assert_eq!(found["resources"][0]["resource"], "a");
        assert_eq!(found["resources"][0]["responseKind"]["kind"], "");
        assert_eq!(found["resources"][0]["subresources"][0]["responseKind"]["kind"], "");
        assert_eq!(of_aggregated(&document, "g", "v2"), json!({"version": "v2", "resources": []}));
        assert_eq!(of_aggregated(&json!(7), "g", "v2"), json!({"version": "v2", "resources": []}));
    }

    #[test]
    fn legacy() {
        let document = json!({"resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
             "verbs": ["get"], "shortNames": ["fl"]},
            {"name": "flunders/scale", "namespaced": true, "kind": "Scale", "group": "autoscaling", "version": "v1",
             "verbs": ["get"]},
            {"name": "lonely/connect", "namespaced": false, "kind": "C", "verbs": ["create"]},
        ]});
        assert_eq!(
            of_list(&document, "v1"),
            json!({"version": "v1", "resources": [
                {"resource": "flunders", "singularResource": "flunder", "scope": "Namespaced", "verbs": ["get"],
                 "shortNames": ["fl"], "responseKind": {"group": "", "version": "", "kind": "Flunder"},
                 "subresources": [{"subresource": "scale", "verbs": ["get"],
                    "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}}]},
                {"resource": "lonely", "scope": "Cluster", "verbs": [],
                 "responseKind": {"group": "", "version": "", "kind": ""},
                 "subresources": [{"subresource": "connect", "verbs": ["create"],
                    "responseKind": {"group": "", "version": "", "kind": "C"}}]},
            ]})
        );
    }
}
