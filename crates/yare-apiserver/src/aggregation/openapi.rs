//! OpenAPI of the servers behind this one. Version 3 stays with them: the index names it, requests go there.
//! Version 2 is one document for all, so that it is read, and its part about the APIService's version kept to be
//! merged. A server without version 3 gets it made of version 2.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::{StatusCode, header};
use serde_json::Value;
use yare_schema::openapi::merge;

use super::{
    Aggregation,
    backend::{Backend, Documents},
    discovery::fetch,
};
use crate::{core::Core, openapi::digest};

/// How long a server may take over its documents.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

impl Aggregation {
    /// The parts of OpenAPI v2 that the servers behind this one have, in the order of their priority.
    pub fn openapi_v2(&self) -> Vec<Arc<Value>> {
        let table = self.table.load();
        let mut all: Vec<_> = table
            .all()
            .filter_map(|(_, _, e)| {
                let document = e.backend.as_ref()?.documents.load().openapi_v2.clone()?;
                Some((std::cmp::Reverse((e.priority.group, e.priority.version)), document))
            })
            .collect();
        all.sort_by_key(|(priority, _)| *priority);
        all.into_iter().map(|(_, document)| document).collect()
    }

    /// Puts the v3 documents of the servers behind this one into the index: path and URL.
    pub fn openapi_v3(&self, paths: &mut BTreeMap<String, String>) {
        for backend in self.table.load().backends() {
            let path = backend.root().trim_start_matches('/').to_owned();
            let documents = backend.documents.load();
            let url = match (&documents.openapi_v3, &documents.openapi_v3_made) {
                (Some(url), _) => url.clone(),
                (None, Some((_, hash))) => format!("/openapi/v3/{path}?hash={hash}"),
                (None, None) => String::new(),
            };
            if url.is_empty() {
                paths.remove(&path);
            } else {
                paths.insert(path, url);
            }
        }
    }
}

/// Reads the documents of a backend. Where that fails, what was read before stays.
pub async fn refresh(core: &Arc<Core>, backend: &Arc<Backend>) {
    let before = backend.documents.load_full();
    let mut after = (*before).clone();
    let mut changed = false;
    match read_v2(core, backend, &before.openapi_v2_etag).await {
        Ok(Some((document, etag))) => {
            changed |= before.openapi_v2.as_deref() != document.as_ref();
            after.openapi_v2 = document.map(Arc::new);
            after.openapi_v2_etag = etag;
        }
        Ok(None) => {}
        Err(error) => tracing::debug!(error, apiservice = backend.name, "cannot read OpenAPI v2"),
    }
    match read_v3(core, backend).await {
        Ok(Some(url)) => {
            changed |= before.openapi_v3.as_ref() != Some(&url);
            after.openapi_v3 = Some(url);
            after.openapi_v3_made = None;
        }
        Ok(None) => {
            after.openapi_v3 = None;
            if changed || before.openapi_v3_made.is_none() {
                after.openapi_v3_made = after.openapi_v2.as_ref().map(|document| {
                    let bytes = merge::to_v3(document).to_string();
                    let hash = digest(bytes.as_bytes());
                    (bytes.into(), hash)
                });
                changed = true;
            }
        }
        Err(error) => tracing::debug!(error, apiservice = backend.name, "cannot read OpenAPI v3"),
    }
    if changed {
        backend.documents.rcu(|documents| Documents {
            discovery: documents.discovery.clone(),
            stale: documents.stale,
            ..after.clone()
        });
        core.openapi.forget();
    }
}

/// The part of the v2 document about the backend's version (`None` inside: there is no document), and its ETag;
/// `None` where it is what it was.
async fn read_v2(
    core: &Arc<Core>,
    backend: &Backend,
    etag: &str,
) -> Result<Option<(Option<Value>, String)>, String> {
    let fetched = fetch(core, backend, "/openapi/v2", "application/json", etag, FETCH_TIMEOUT).await?;
    match fetched.code {
        StatusCode::NOT_MODIFIED => return Ok(None),
        StatusCode::NOT_FOUND => return Ok(Some((None, String::new()))),
        StatusCode::OK => {}
        other => return Err(format!("/openapi/v2: {other}")),
    }
    let document: Value = serde_json::from_slice(&fetched.bytes).map_err(|e| format!("/openapi/v2: {e}"))?;
    let etag = fetched.headers.get(header::ETAG).and_then(|v| v.to_str().ok()).unwrap_or_default();
    Ok(Some((Some(merge::about(document, &format!("{}/", backend.root()))), etag.to_owned())))
}

/// Where the v3 document of the backend's version is; `None` where the server has no v3 at all.
async fn read_v3(core: &Arc<Core>, backend: &Backend) -> Result<Option<String>, String> {
    let fetched = fetch(core, backend, "/openapi/v3", "application/json", "", FETCH_TIMEOUT).await?;
    match fetched.code {
        StatusCode::NOT_FOUND => return Ok(None),
        StatusCode::OK => {}
        other => return Err(format!("/openapi/v3: {other}")),
    }
    let index: Value = serde_json::from_slice(&fetched.bytes).map_err(|e| format!("/openapi/v3: {e}"))?;
    let path = backend.root();
    let path = path.trim_start_matches('/');
    let url = index["paths"][path]["serverRelativeURL"].as_str();
    // Only a path of the index itself: what else a server names there is not reached through here.
    Ok(Some(url.filter(|u| u.starts_with("/openapi/v3/")).unwrap_or_default().to_owned()))
}
