//! `get` and `list`: bytes at rest copied out. A list is sent while it is read from an immutable snapshot, so
//! it costs no memory beyond a page of pointers.

use std::{ops::Bound, sync::Arc, time::Duration};

use base64::{DecodeError, Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use yare_store::{Kind, Object, Snapshot, SnapshotError};

use crate::{
    audit::Layer,
    body::Reply,
    core::{Call, Core},
    encodings::Items,
    encryption::locked,
    negotiate::Asked,
    options::{ListOptions, VersionMatch, revision},
    registry::Served,
    render::Renderer,
    selection::Selection,
    status::{ApiError, ApiResult},
    trace,
};

/// How long a read waits for a revision that is not there yet.
const FRESH_TIMEOUT: Duration = Duration::from_secs(3);

/// Reads one object.
pub async fn get(call: &Call, served: &Arc<Served>) -> ApiResult<Reply> {
    let renderer = Renderer::new(call, served, Asked::One)?;
    yare_trace::event("About to Get from storage", &[]);
    let object = find(call, served).await?;
    trace::answer(call, renderer.media_type(), || renderer.reply(StatusCode::OK, &object.bytes))
}

/// The object that the request names.
pub async fn find(call: &Call, served: &Served) -> ApiResult<Arc<Object>> {
    let key = served.stored.key(&call.info.namespace, &call.info.name);
    let _reading = trace::reads(call, &served.stored, &key);
    if let Some(text) = call.query.get("resourceVersion") {
        // Upstream gives no reason here, and 500.
        let wanted = revision(text).map_err(|e| ApiError::new(500, "", e.to_string()))?;
        let kind = &served.stored.kind_key;
        call.timed(Layer::Storage, fresh(&call.core, kind, wanted.unwrap_or(0))).await?;
    }
    let stored = || {
        let found = call.core.store().get(&served.stored.kind_key, &key);
        found.ok_or_else(|| ApiError::not_found(served.group_resource(), &call.info.name))
    };
    let object = stored()?;
    if !object.is_locked() {
        return Ok(object);
    }
    // Since the request came in.
    locked::guard(call, served).await?;
    stored()
}

/// Waits until the revision is visible, for a read of the kind.
pub async fn fresh(core: &Core, kind: &Kind, wanted: u64) -> ApiResult<()> {
    if wanted == 0 {
        return Ok(());
    }
    let (began, current) = (Instant::now(), core.store().revision());
    let is_there = wanted <= current || core.store().wait_for(wanted, FRESH_TIMEOUT).await;
    core.metrics.lists.waited(kind, began.elapsed());
    if is_there { Ok(()) } else { Err(ApiError::too_large(wanted, current)) }
}

/// Where the next page starts. The form is upstream's, so that tokens look alike; clients must not read it.
#[derive(Serialize, Deserialize)]
struct Continue {
    v: String,
    rv: i64,
    start: String,
}

const CONTINUE_VERSION: &str = "meta.k8s.io/v1";

fn encode_continue(revision: i64, start: &str) -> String {
    let token = Continue { v: CONTINUE_VERSION.into(), rv: revision, start: start.into() };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

fn decode_continue(token: &str) -> ApiResult<Continue> {
    let invalid = |why: &str| {
        ApiError::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
    };
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|e| {
        let at = match e {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
            DecodeError::InvalidLength(length) => length.saturating_sub(1),
            DecodeError::InvalidPadding => token.find('=').unwrap_or(token.len()),
        };
        invalid(&format!("illegal base64 data at input byte {at}"))
    })?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| invalid(&e.to_string()))?;
    let version = value["v"].as_str().unwrap_or_default();
    if version != CONTINUE_VERSION {
        return Err(invalid(&format!("server does not recognize this encoded version {version}")));
    }
    let token: Continue = serde_json::from_value(value).map_err(|e| invalid(&e.to_string()))?;
    if token.rv == 0 {
        return Err(invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
    }
    if token.start.is_empty() {
        return Err(invalid("encoded start key empty (version meta.k8s.io/v1)"));
    }
    if token.start.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(invalid(&token.start));
    }
    Ok(token)
}

/// The state that a list shows, and the key behind which it starts.
async fn state(core: &Core, kind: &Kind, options: &ListOptions) -> ApiResult<(Snapshot, Option<String>)> {
    let store = core.store();
    if !options.continue_token.is_empty() {
        let token = decode_continue(&options.continue_token)?;
        if !options.resource_version.is_empty() && options.resource_version != "0" {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let Ok(revision) = u64::try_from(token.rv) else {
            return Ok((store.snapshot(kind), Some(token.start)));
        };
        fresh(core, kind, revision).await?;
        return match store.snapshot_at(kind, revision) {
            Ok(snapshot) => Ok((snapshot, Some(token.start))),
            Err(SnapshotError::Compacted { .. }) => Err(continue_expired(&token.start)),
            Err(_) => Err(ApiError::too_large(revision, store.revision())),
        };
    }
    let wanted =
        options.revision().map_err(|e| ApiError::bad_request(format!("invalid resource version: {e}")))?;
    let Some(wanted) = wanted.filter(|wanted| *wanted > 0) else {
        return Ok((store.snapshot(kind), None));
    };
    fresh(core, kind, wanted).await?;
    // A page at a revision is that revision exactly, unless the client says any newer one will do.
    let exact = options.version_match == VersionMatch::Exact
        || (options.version_match == VersionMatch::Unset && options.limit > 0);
    if !exact {
        return Ok((store.snapshot(kind), None));
    }
    match store.snapshot_at(kind, wanted) {
        Ok(snapshot) => Ok((snapshot, None)),
        Err(SnapshotError::Compacted { .. }) => {
            Err(ApiError::expired("The resourceVersion for the provided list is too old."))
        }
        Err(_) => Err(ApiError::too_large(wanted, store.revision())),
    }
}

fn continue_expired(start: &str) -> ApiError {
    // The token that comes with the error continues at the present state instead.
    let mut error = ApiError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    error.continue_token = Some(encode_continue(-1, start));
    error
}

/// Lists a collection.
pub async fn list(call: &Call, served: &Arc<Served>) -> ApiResult<Reply> {
    let renderer = Renderer::new(call, served, Asked::List)?;
    let mut options = ListOptions::parse(&call.query, false, &call.core.config.gates)?;
    let selection = Selection::new(served, &call.info, &options)?;
    let state = state(&call.core, &served.stored.kind_key, &options);
    let listing = trace::caches(call, &served.stored, "cacher.GetList");
    let (snapshot, after) = call.timed(Layer::Storage, state).await?;
    if let Some(listing) = &listing {
        listing.event("Ready", &[]);
    }
    if call.core.store().is_locked() {
        // A state of the past may have what the present has no more.
        locked::guard_list(call, served, &snapshot).await?;
    }
    if selection.converts() {
        let all = snapshot.range(Bound::Unbounded, &selection.prefix).map(|o| &o.bytes);
        call.timed_now(Layer::Transform, || renderer.prepare(all))?;
    }
    if options.resource_version == "0" {
        // Whoever takes any state gets all of it: upstream's cache makes no pages of that.
        options.limit = 0;
    }
    let page = page(&snapshot, &selection, after.as_deref(), options.limit);
    if let Some(listing) = listing {
        listing.event("Listed items from cache", &[trace::number("count", page.fetched)]);
        listing.event("Filtered items", &[trace::number("count", page.objects.len())]);
    }
    let consistent = options.resource_version.is_empty() && options.continue_token.is_empty();
    call.core.metrics.lists.listed(&served.stored.kind_key, consistent, page.fetched, page.objects.len());
    call.timed_now(Layer::Transform, || renderer.prepare(page.objects.iter().map(|o| &o.bytes)))?;
    let mut metadata = metadata(&snapshot, &selection, &page);
    if let Some(shard) = &selection.shard {
        metadata.insert("shardInfo".into(), json!({ "selector": shard.to_string() }));
    }
    let items = Items::Stored(page.objects);
    let media_type = renderer.media_type();
    let list = || renderer.list(metadata, items, call.in_process);
    call.timed_now(Layer::Serialization, || trace::serialize(call, media_type, list))
}

/// What a list says of itself: its state, and where it goes on.
pub fn metadata(snapshot: &Snapshot, selection: &Selection, page: &Page) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), snapshot.revision().to_string().into());
    if let Some(last) = &page.next {
        let revision = i64::try_from(snapshot.revision()).unwrap_or(i64::MAX);
        metadata.insert("continue".into(), encode_continue(revision, last).into());
        if selection.is_open() {
            let rest = snapshot.count_from(Bound::Excluded(last), &selection.prefix);
            metadata.insert("remainingItemCount".into(), rest.into());
        }
    }
    metadata
}

/// One page.
pub struct Page {
    /// Its objects.
    pub objects: Vec<Arc<Object>>,
    /// The last key, where more follow.
    pub next: Option<String>,
    /// How many objects were looked at.
    pub fetched: usize,
}

/// The objects of a page: at most `limit` (0: all) that match, behind the key `after`.
pub fn page(snapshot: &Snapshot, selection: &Selection, after: Option<&str>, limit: usize) -> Page {
    if let Some(key) = &selection.only {
        let found = snapshot.get(key).filter(|o| {
            after.is_none_or(|a| &*o.key > a) && selection.has_key(&o.key) && selection.matches(o)
        });
        return Page { objects: found.cloned().into_iter().collect(), next: None, fetched: 1 };
    }
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut objects: Vec<Arc<Object>> = Vec::new();
    if selection.is_open() && limit == 0 {
        objects.reserve(snapshot.count(&selection.prefix));
    }
    let mut fetched = 0;
    for object in snapshot.range(from, &selection.prefix) {
        fetched += 1;
        if !selection.matches(object) {
            continue;
        }
        if limit > 0 && objects.len() == limit {
            let next = objects.last().map(|o| o.key.to_string());
            return Page { objects, next, fetched };
        }
        objects.push(object.clone());
    }
    Page { objects, next: None, fetched }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens() {
        let token = decode_continue(&encode_continue(7, "ns/a")).unwrap();
        assert_eq!((token.rv, token.start.as_str()), (7, "ns/a"));
        let wrong = |json: &str| URL_SAFE_NO_PAD.encode(json);
        for (bad, want) in [
            ("a%b".to_owned(), "illegal base64 data at input byte 1"),
            ("e30=".to_owned(), "illegal base64 data at input byte 3"),
            (wrong("{}"), "server does not recognize this encoded version "),
            (wrong(r#"{"v":"v9","rv":1,"start":"a"}"#), "server does not recognize this encoded version v9"),
            (encode_continue(0, "a"), "incorrect encoded start resourceVersion (version meta.k8s.io/v1)"),
            (encode_continue(1, ""), "encoded start key empty (version meta.k8s.io/v1)"),
            (encode_continue(1, "../../secrets"), "../../secrets"),
            (encode_continue(1, "a//b"), "a//b"),
        ] {
            let error = decode_continue(&bad).err().unwrap();
            assert_eq!(error.code, 400, "{bad}");
            assert_eq!(
                error.message,
                format!("invalid continue token: continue key is not valid: {want}"),
                "{bad}"
            );
        }
    }
}
