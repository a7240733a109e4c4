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
use jiff::ToSpan as _;
use parking_lot::Mutex;
use serde_json::Value;
use yare_kinds::view::View;
use yare_schema::openapi::{self, Resource, Server, Source, Subresource, docs::Docs};

use crate::{
    body::{self, Body, Reply},
    compress,
    core::{Call, Core},
    crd::DEFINITIONS,
    dispatch::nothing_here,
    encodings::Encoding,
    negotiate,
    registry::{Registry, Served},
    status::{ApiError, ApiResult},
};

const JSON: &str = "application/json";

/// How long clients may keep a document that they ask for by its hash.
const KEPT_DAYS: i32 = 365;

/// A document as it is kept.
#[derive(Clone)]
struct Document {
    gzip: Bytes,
    /// Changes with the content.
    hash: Arc<str>,
}

/// Documents by what they are.
#[derive(Default)]
pub struct Cache {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    documents: HashMap<String, Document>,
    /// How often everything was forgotten.
    changes: u64,
}

impl Cache {
    /// What is served has changed.
    pub fn forget(&self) {
        let mut kept = self.kept.lock();
        kept.documents.clear();
        kept.changes += 1;
    }
}

/// Answers `/openapi/…`; `rest` is what follows.
pub fn handle(call: &Call, rest: &[&str]) -> ApiResult<Reply> {
    // The server's other pages may end in a slash.
    let exact = !call.info.path.ends_with('/');
    match rest {
        ["v2"] if exact => v2(call),
        ["v3"] if exact => index(call),
        ["v3", path @ ..] if exact => v3(call, &path.join("/")),
        ["v3", ..] => Ok(empty(StatusCode::NOT_FOUND)),
        _ => Ok(nothing_here()),
    }
}

/// The first of the media types that the client likes best. Without `Accept` that is the first one.
fn choose(call: &Call, media_types: &[&'static str]) -> Option<&'static str> {
    if call.headers.get(header::ACCEPT).is_none_or(HeaderValue::is_empty) {
        return media_types.first().copied();
    }
    let clauses = negotiate::clauses(&call.headers);
    clauses.iter().find_map(|clause| media_types.iter().find(|media| clause.covers(media)).copied())
}

fn empty(code: StatusCode) -> Reply {
    let mut response = Response::new(Body::default());
    *response.status_mut() = code;
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn v2(call: &Call) -> ApiResult<Reply> {
    let Some(media) = choose(call, &[JSON, openapi::V2_PROTOBUF_ASKED, openapi::V2_PROTOBUF]) else {
        return Ok(empty(StatusCode::NOT_ACCEPTABLE));
    };
    let protobuf = media != JSON;
    let (key, media) = if protobuf { ("v2.pb", openapi::V2_PROTOBUF) } else { ("v2", JSON) };
    let document = document(call, key, |core, registry| {
        let definitions = definitions(core, registry, |_| true);
        with_server(core, registry, &definitions, |server| {
            let others = core.aggregation.openapi_v2();
            let bytes = if protobuf { server.v2_protobuf(&others) } else { server.v2(&others) };
            let hash = digest(&bytes);
            Some((bytes, hash))
        })
    })?;
    let document = document.ok_or_else(ApiError::unknown_resource)?;
    answer(call, &document, media, false)
}

fn v3(call: &Call, path: &str) -> ApiResult<Reply> {
    // What a server behind this one has is asked for there; what is made of its version 2 is here.
    if let ["apis", group, version] = *path.split('/').collect::<Vec<_>>()
        && let Some(backend) = call.core.aggregation.table.load().backend(group, version)
    {
        let Some(media) = choose(call, &[JSON]) else { return Ok(empty(StatusCode::NOT_ACCEPTABLE)) };
        let (bytes, _) =
            backend.documents.load().openapi_v3_made.clone().ok_or_else(ApiError::unknown_resource)?;
        return Ok(body::reply(StatusCode::OK, media, bytes));
    }
    let Some(media) = choose(call, &[JSON, openapi::V3_PROTOBUF_ASKED, openapi::V3_PROTOBUF]) else {
        return Ok(empty(StatusCode::NOT_ACCEPTABLE));
    };
    let protobuf = media != JSON;
    let (key, media) = match protobuf {
        true => (format!("{path}.pb"), openapi::V3_PROTOBUF),
        false => (path.to_owned(), JSON),
    };
    let document = document(call, &key, |core, registry| {
        // Before the definitions: what is newer than its hash says will be forgotten, and what is older would be kept.
        let hash = hashes(core, registry).remove(path)?;
        let is_in = |served: &Served| openapi::v3_document(&served.group, &served.version) == path;
        let definitions = definitions(core, registry, is_in);
        with_server(core, registry, &definitions, |server| {
            let bytes = if protobuf { server.v3_protobuf(path)? } else { server.v3(path)? };
            Some((bytes, hash))
        })
    })?;
    let Some(document) = document else { return Ok(empty(StatusCode::NOT_FOUND)) };
    let asked = call.query.get("hash").filter(|hash| !hash.is_empty());
    if let Some(asked) = asked
        && asked != &*document.hash
    {
        return moved(path, &document.hash);
    }
    answer(call, &document, media, asked.is_some())
}

/// Sends who knows an old hash to what is there now.
fn moved(path: &str, hash: &str) -> ApiResult<Reply> {
    let value = |text: &str| HeaderValue::from_str(text).map_err(ApiError::internal);
    let mut reply = empty(StatusCode::MOVED_PERMANENTLY);
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    headers.insert(header::ETAG, value(&format!("\"{hash}\""))?);
    headers.insert(header::LOCATION, value(&url(path, hash))?);
    Ok(reply)
}

fn url(path: &str, hash: &str) -> String {
    format!("/openapi/v3/{path}?hash={hash}")
}

/// The hashes of the v3 documents by their names. Making all documents to hash them would cost seconds, so they are of
/// what decides the content: this build, what is served, and the definitions of custom resources by name and revision.
fn hashes(core: &Core, registry: &Registry) -> BTreeMap<String, String> {
    let mut seeds = with_server(core, registry, &HashMap::new(), |server| server.v3_seeds());
    let snapshot = core.store().snapshot(DEFINITIONS);
    for served in registry.groups().values().flat_map(|versions| versions.values()).flatten() {
        let Some(custom) = &served.stored.custom else { continue };
        let revision = snapshot.get(&custom.definition).map_or(0, |object| object.revision);
        if let Some(seed) = seeds.get_mut(&openapi::v3_document(&served.group, &served.version)) {
            seed.push_str(&format!(",{}={revision}", custom.definition));
        }
    }
    for seed in seeds.values_mut() {
        *seed = digest(seed.as_bytes());
    }
    seeds
}

/// The index names every document with its hash.
fn index(call: &Call) -> ApiResult<Reply> {
    let document = document(call, "v3", |core, registry| {
        let mut urls = hashes(core, registry);
        for (path, hash) in &mut urls {
            *hash = url(path, hash);
        }
        core.aggregation.openapi_v3(&mut urls);
        let bytes = openapi::v3_index(urls.iter().map(|(path, url)| (path.as_str(), url.as_str())));
        let hash = digest(&bytes);
        Some((bytes, hash))
    })?;
    let document = document.ok_or_else(ApiError::unknown_resource)?;
    // Upstream leaves it to the bytes to say what they are.
    answer(call, &document, "text/plain; charset=utf-8", false)
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02X}")).collect()
}

/// The document that is kept as `key`, or else what `make` makes: its bytes and its hash.
fn document(
    call: &Call,
    key: &str,
    make: impl FnOnce(&Core, &Registry) -> Option<(Vec<u8>, String)>,
) -> ApiResult<Option<Document>> {
    let changes = {
        let kept = call.core.openapi.kept.lock();
        if let Some(found) = kept.documents.get(key) {
            return Ok(Some(found.clone()));
        }
        kept.changes
    };
    let registry = call.core.registry.load_full();
    let Some((bytes, hash)) = make(&call.core, &registry) else { return Ok(None) };
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    encoder.write_all(&bytes).map_err(ApiError::internal)?;
    let gzip = encoder.finish().map_err(ApiError::internal)?;
    let document = Document { gzip: gzip.into(), hash: hash.into() };
    // Only if nothing changed meanwhile is this still the document.
    let mut kept = call.core.openapi.kept.lock();
    if kept.changes == changes && Arc::ptr_eq(&registry, &call.core.registry.load_full()) {
        kept.documents.insert(key.to_owned(), document.clone());
    }
    Ok(Some(document))
}

/// Answers with the document, unless the client has it. `by_hash`: it was asked for by its hash, so that it never
/// changes.
fn answer(call: &Call, document: &Document, media: &'static str, by_hash: bool) -> ApiResult<Reply> {
    let etag = format!("\"{}\"", document.hash);
    let seen = call.headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let known = seen.split(',').map(str::trim).any(|s| s == "*" || s.trim_start_matches("W/") == etag);
    let mut reply = if known {
        empty(StatusCode::NOT_MODIFIED)
    } else if compress::wanted(&call.headers) {
        let mut reply = body::reply(StatusCode::OK, media, document.gzip.clone());
        reply.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        reply
    } else {
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*document.gzip), &mut plain)
            .map_err(ApiError::internal)?;
        body::reply(StatusCode::OK, media, plain)
    };
    let headers = reply.headers_mut();
    headers.insert(header::ETAG, HeaderValue::from_str(&etag).map_err(ApiError::internal)?);
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    if by_hash {
        let until = call.core.now().checked_add((24 * KEPT_DAYS).hours()).map_err(ApiError::internal)?;
        let until = HeaderValue::from_str(&until.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
        headers.insert(header::EXPIRES, until.map_err(ApiError::internal)?);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    Ok(reply)
}

/// The versions of definitions whose resources are `wanted`, by definition and version: their entries in
/// `spec.versions`.
fn definitions(
    core: &Core,
    registry: &Registry,
    wanted: impl Fn(&Served) -> bool,
) -> HashMap<(String, String), Value> {
    let all = registry.groups().values().flat_map(|versions| versions.values()).flatten();
    let custom = all.filter(|served| served.stored.custom.is_some() && wanted(served));
    let mut snapshot = None;
    custom
        .filter_map(|served| {
            let name = &served.stored.custom.as_ref()?.definition;
            let snapshot = snapshot.get_or_insert_with(|| core.store().snapshot(DEFINITIONS));
            let definition: Value = serde_json::from_slice(&snapshot.get(name)?.bytes).ok()?;
            let versions = definition.items("spec.versions");
            let version = versions.iter().find(|v| v.str_at("name") == &*served.version)?;
            Some(((name.to_string(), served.version.to_string()), version.clone()))
        })
        .collect()
}

/// Calls `make` with what is served. Of custom resources only those in `definitions` have a schema.
fn with_server<T>(
    core: &Core,
    registry: &Registry,
    definitions: &HashMap<(String, String), Value>,
    make: impl FnOnce(&Server<'_>) -> T,
) -> T {
    let all: Vec<_> = registry.groups().values().flat_map(|v| v.values()).flatten().collect();
    let resources: Vec<Resource<'_>> = all.iter().map(|served| resource(served, definitions)).collect();
    let config = &core.config;
    let server = Server {
        version: &format!("1.{}", config.gates.emulation().minor),
        docs: &Docs::default(),
        resources: &resources,
        openid: config.openid.is_some() && config.auth.signer.as_ref().is_some_and(|s| s.publishes()),
        cbor: Encoding::Cbor.format().is_on(Some(&config.gates)),
        enums: config.gates.is_on("OpenAPIEnums"),
    };
    make(&server)
}

fn resource<'a>(served: &'a Served, definitions: &'a HashMap<(String, String), Value>) -> Resource<'a> {
    let own = (&*served.group, &*served.version, &*served.kind);
    let source = match &served.stored.custom {
        None => Source::Builtin,
        Some(custom) => {
            let key = (custom.definition.to_string(), served.version.to_string());
            Source::Custom(definitions.get(&key).unwrap_or(&Value::Null))
        }
    };
    let subresources = served.subresources.iter().map(|sub| {
        let (group, version, kind) = sub.kind.as_ref().map_or(own, |(g, v, k)| (&**g, &**v, &**k));
        Subresource { name: &sub.name, group, version, kind, verbs: sub.verbs.iter().map(|v| &**v).collect() }
    });
    Resource {
        group: own.0,
        version: own.1,
        kind: own.2,
        list_kind: &served.list_kind,
        plural: &served.plural,
        namespaced: served.namespaced,
        verbs: served.verbs.iter().map(|v| &**v).collect(),
        subresources: subresources.collect(),
        source,
        returns_deleted: served.stored.builtin.is_some_and(|row| row.returns_deleted()),
    }
}
