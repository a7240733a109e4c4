//! `/openapi/v2` and `/openapi/v3`: made on demand from the registry and kept, compressed, while hot.
//!
//! A document says what is served; when a custom resource comes or goes all of them are forgotten.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write as _,
    sync::Arc,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use serde_json::Value;
use yare_kinds::view::View;
use yare_schema::{
    openapi::{self, Resource, Source, Subresource, docs::Docs},
    release::KUBERNETES_VERSION,
};

use crate::{
    body::{self, Body, Reply},
    core::{Call, Core},
    crd::DEFINITIONS,
    encodings::Encoding,
    registry::Registry,
    status::{ApiError, ApiResult},
};

/// A document as it is kept.
#[derive(Clone)]
struct Document {
    gzip: Bytes,
    etag: Arc<str>,
}

/// Documents by what they are.
#[derive(Default)]
pub struct Cache {
    documents: Mutex<HashMap<String, Document>>,
}

impl Cache {
    /// What is served has changed.
    pub fn forget(&self) {
        self.documents.lock().clear();
    }
}

/// Answers `/openapi/…`; `rest` is what follows.
pub fn handle(call: &Call, rest: &[&str]) -> ApiResult<Reply> {
    match rest {
        ["v2"] => v2(call),
        ["v3"] => index(call),
        ["v3", path @ ..] => v3(call, path),
        _ => Err(ApiError::unknown_resource()),
    }
}

fn v2(call: &Call) -> ApiResult<Reply> {
    let accept = call.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let protobuf = accept.contains(openapi::V2_PROTOBUF) || accept.contains(openapi::V2_PROTOBUF_ASKED);
    let (key, media) = if protobuf { ("v2.pb", openapi::V2_PROTOBUF) } else { ("v2", "application/json") };
    let document = document(call, key, |core, registry| {
        with_resources(core, registry, |resources| {
            let docs = Docs::load();
            let others = core.aggregation.openapi_v2();
            if protobuf {
                openapi::v2_protobuf(KUBERNETES_VERSION, &docs, resources, &others)
            } else {
                openapi::v2(KUBERNETES_VERSION, &docs, resources, &others)
            }
        })
    })?;
    answer(call, &document, media)
}

fn v3(call: &Call, path: &[&str]) -> ApiResult<Reply> {
    let (group, version) = match path {
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return Err(ApiError::unknown_resource()),
    };
    // What a server behind this one has is asked for there; what is made of its version 2 is here.
    if let Some(backend) = call.core.aggregation.table.load().backend(group, version) {
        let (bytes, _) =
            backend.documents.load().openapi_v3_made.clone().ok_or_else(ApiError::unknown_resource)?;
        return Ok(body::reply(StatusCode::OK, "application/json", bytes));
    }
    if !call.core.registry.load().groups().get(group).is_some_and(|v| v.contains_key(version)) {
        return Err(ApiError::unknown_resource());
    }
    let document = document(call, &path.join("/"), |core, registry| {
        with_resources(core, registry, |resources| openapi::v3(group, version, &Docs::load(), resources))
    })?;
    answer(call, &document, "application/json")
}

/// The index names every document with a hash. Making all documents to hash them would cost seconds, so the
/// hash is of what decides their content: this build, and the definitions of custom resources.
fn index(call: &Call) -> ApiResult<Reply> {
    let registry = call.core.registry.load_full();
    let mut paths: BTreeMap<String, String> = BTreeMap::new();
    for (group, versions) in registry.groups() {
        let custom = versions.values().flatten().any(|s| s.stored.custom.is_some());
        let mut seed = KUBERNETES_VERSION.to_owned();
        if custom {
            let snapshot = call.core.store().snapshot(DEFINITIONS);
            let names = versions
                .values()
                .flatten()
                .filter_map(|s| s.stored.custom.as_ref().map(|c| c.definition.clone()));
            for name in names {
                let revision = snapshot.get(&name).map_or(0, |o| o.revision);
                seed.push_str(&format!(",{name}={revision}"));
            }
        }
        for version in versions.keys() {
            let path =
                if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            let hash = digest(format!("{path}{seed}").as_bytes());
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, url);
        }
    }
    call.core.aggregation.openapi_v3(&mut paths);
    let bytes = openapi::v3_index(paths.iter().map(|(p, url)| (p.as_str(), url.as_str())));
    Ok(body::reply(StatusCode::OK, "application/json", bytes))
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02X}")).collect()
}

fn document(call: &Call, key: &str, make: impl FnOnce(&Core, &Registry) -> Vec<u8>) -> ApiResult<Document> {
    if let Some(found) = call.core.openapi.documents.lock().get(key) {
        return Ok(found.clone());
    }
    let registry = call.core.registry.load_full();
    let bytes = make(&call.core, &registry);
    let etag = format!("\"{}\"", digest(&bytes));
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    encoder.write_all(&bytes).map_err(ApiError::internal)?;
    let gzip = encoder.finish().map_err(ApiError::internal)?;
    let document = Document { gzip: gzip.into(), etag: etag.into() };
    // Only if nothing changed meanwhile is this still the document.
    if Arc::ptr_eq(&registry, &call.core.registry.load_full()) {
        call.core.openapi.documents.lock().insert(key.to_owned(), document.clone());
    }
    Ok(document)
}

fn answer(call: &Call, document: &Document, media: &'static str) -> ApiResult<Reply> {
    let etag = HeaderValue::from_str(&document.etag).map_err(ApiError::internal)?;
    let seen = call.headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    if seen.is_some_and(|s| s.trim_start_matches("W/") == &*document.etag) {
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().insert(header::ETAG, etag);
        return Ok(response);
    }
    let compressed = call
        .headers
        .get(header::ACCEPT_ENCODING)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.contains("gzip"));
    let mut reply = if compressed {
        let mut reply = body::reply(StatusCode::OK, media, document.gzip.clone());
        reply.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        reply
    } else {
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*document.gzip), &mut plain)
            .map_err(ApiError::internal)?;
        body::reply(StatusCode::OK, media, plain)
    };
    reply.headers_mut().insert(header::ETAG, etag);
    reply.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    Ok(reply)
}

/// Calls `make` with what is served, schemas of custom resources read from the store.
fn with_resources(
    core: &Core,
    registry: &Registry,
    make: impl FnOnce(&[Resource<'_>]) -> Vec<u8>,
) -> Vec<u8> {
    let definitions: HashMap<String, Value> = core
        .store()
        .snapshot(DEFINITIONS)
        .range(std::ops::Bound::Unbounded, "")
        .filter_map(|o| Some((o.key.to_string(), serde_json::from_slice(&o.bytes).ok()?)))
        .collect();
    let all: Vec<_> = registry.groups().values().flat_map(|v| v.values()).flatten().collect();
    let cbor = Encoding::Cbor.format().is_on(Some(&core.config.gates));
    let resources: Vec<Resource<'_>> =
        all.iter()
            .map(|served| {
                let source = match &served.stored.custom {
                    None => Source::Builtin,
                    Some(custom) => Source::Custom(
                        definitions
                            .get(&custom.definition)
                            .and_then(|d| {
                                d.items("spec.versions").iter().find(|v| v.str_at("name") == &*served.version)
                            })
                            .and_then(|v| v.get("schema")?.get("openAPIV3Schema")),
                    ),
                };
                Resource {
                    group: &served.group,
                    version: &served.version,
                    kind: &served.kind,
                    plural: &served.plural,
                    namespaced: served.namespaced,
                    verbs: served.verbs.iter().map(|v| &**v).collect(),
                    subresources: served
                        .subresources
                        .iter()
                        .map(|sub| {
                            let (group, version, kind) =
                                sub.kind.as_ref().map_or(
                                    (&*served.group, &*served.version, &*served.kind),
                                    |(g, v, k)| (&**g, &**v, &**k),
                                );
                            Subresource {
                                name: &sub.name,
                                group,
                                version,
                                kind,
                                verbs: sub.verbs.iter().map(|v| &**v).collect(),
                            }
                        })
                        .collect(),
                    source,
                    cbor,
                }
            })
            .collect();
    make(&resources)
}
