//! Shared informers: one watch and one cache of bytes per resource and selection.
//!
//! An informer opens a watch that starts with the complete state (`sendInitialEvents`), or lists and then
//! watches where a server cannot do that. It resumes from the last resource version it has seen, starts
//! over on `410 Gone`, and retries with jittered back-off.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::{
    Backoff, Cached, ObjectKey, Resource, Subscription,
    cache::Cache,
    frames::{EventType, FrameError, Framer},
};

/// Objects per page of the list fallback.
const PAGE_OBJECTS: u32 = 500;
/// The most that one page may take.
const PAGE_MAX_BYTES: usize = 1 << 30;
/// The most of an error body that is read.
const ERROR_MAX_BYTES: usize = 64 << 10;
/// Retries: fast at first, since the server in this process may be about to start.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// A watch is renewed after this and up to twice this time, so that load spreads over servers.
const WATCH_MIN_S: f64 = 300.0;

/// Restricts an informer to some objects of its resource.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Selection {
    /// One namespace.
    pub namespace: Option<String>,
    /// A label selector.
    pub labels: Option<String>,
    /// A field selector.
    pub fields: Option<String>,
}

/// The informers of a process.
pub struct Informers {
    kube: kube::Client,
    running: Mutex<HashMap<(Resource, Selection), Informer>>,
}

/// One watch, one cache of bytes. Cheap to clone.
#[derive(Clone)]
pub struct Informer {
    shared: Arc<Shared>,
    // Declared after `shared`: the task ends with the last handle.
    _task: Arc<StopOnDrop>,
}

struct Shared {
    resource: Resource,
    cache: Cache,
    synced: watch::Sender<bool>,
}

struct StopOnDrop {
    task: OnceLock<tokio::task::AbortHandle>,
    shared: Arc<Shared>,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
        self.shared.cache.close();
    }
}

impl Informers {
    pub(crate) fn new(kube: kube::Client) -> Self {
        Self { kube, running: Mutex::default() }
    }

    /// The informer of all objects of a resource, started if this is the first request. Must be called
    /// within a tokio runtime.
    pub fn of(&self, resource: Resource) -> Informer {
        self.select(resource, Selection::default())
    }

    /// The informer of some objects of a resource.
    pub fn select(&self, resource: Resource, selection: Selection) -> Informer {
        let mut running = self.running.lock();
        running
            .entry((resource, selection))
            .or_insert_with_key(|(resource, selection)| {
                Informer::start(self.kube.clone(), resource.clone(), selection.clone())
            })
            .clone()
    }

    /// Lets go of the informers of a resource that is no longer served. Each stops when its last other
    /// holder lets go too.
    pub fn forget(&self, resource: &Resource) {
        let gone: Vec<Informer> = {
            let mut running = self.running.lock();
            let keys: Vec<_> = running.keys().filter(|(r, _)| r == resource).cloned().collect();
            keys.iter().filter_map(|k| running.remove(k)).collect()
        };
        drop(gone);
    }

    /// Lets go of one informer, which stops when its last other holder lets go too.
    pub fn release(&self, resource: &Resource, selection: &Selection) {
        let gone = self.running.lock().remove(&(resource.clone(), selection.clone()));
        // Dropped after the lock: ending an informer is not this table's business.
        drop(gone);
    }
}

impl Informer {
    fn start(kube: kube::Client, resource: Resource, selection: Selection) -> Self {
        let shared =
            Arc::new(Shared { resource, cache: Cache::default(), synced: watch::Sender::new(false) });
        let stop = Arc::new(StopOnDrop { task: OnceLock::new(), shared: shared.clone() });
        let reflector = Reflector::new(kube, shared.clone(), selection);
        let handle = tokio::spawn(reflector.run()).abort_handle();
        stop.task.get_or_init(|| handle);
        Self { shared, _task: stop }
    }

    /// Returns after the first complete state has arrived.
    pub async fn synced(&self) {
        let mut synced = self.shared.synced.subscribe();
        // The sender lives in `self`, so the only outcome is that the value came.
        let _ = synced.wait_for(|s| *s).await;
    }

    /// Whether the first complete state has arrived.
    pub fn has_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// What is watched.
    pub fn resource(&self) -> &Resource {
        &self.shared.resource
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<Cached> {
        self.shared.cache.get(key)
    }

    /// All objects, in key order.
    pub fn list(&self) -> Vec<Cached> {
        self.shared.cache.list()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.shared.cache.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Resource version up to which the cache has seen every change: what was written at or before it is
    /// in the cache (or has been replaced since).
    pub fn version(&self) -> u64 {
        self.shared.cache.version()
    }

    /// The objects of one namespace, in key order.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Cached> {
        self.shared.cache.in_namespace(namespace)
    }

    /// The objects with an owner reference to `uid`, in key order.
    pub fn by_owner(&self, uid: &str) -> Vec<Cached> {
        self.shared.cache.by_owner(uid)
    }

    /// Changes from now on, after everything cached as added. Nothing is lost; unread changes of one
    /// object are coalesced.
    pub fn subscribe(&self) -> Subscription {
        self.shared.cache.subscribe()
    }
}

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("{0}")]
    Send(Box<kube::Error>),
    #[error("status {code}: {message}")]
    Status { code: u16, message: String },
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("page of a list: {0}")]
    Page(#[from] serde_json::Error),
    #[error("a response is longer than {0} bytes")]
    TooLong(usize),
    #[error("request: {0}")]
    Request(#[from] http::Error),
    #[error("the stream ended before the initial events did")]
    Incomplete,
}

impl From<kube::Error> for WatchError {
    fn from(error: kube::Error) -> Self {
        Self::Send(Box::new(error))
    }
}

impl WatchError {
    fn is_gone(&self) -> bool {
        matches!(self, Self::Status { code: 410, .. })
    }

    /// The server does not know `sendInitialEvents`.
    fn is_unsupported(&self) -> bool {
        matches!(self, Self::Status { code: 400 | 405 | 406 | 415 | 422, .. })
    }
}

/// What error bodies and bookmarks are read for.
#[derive(Deserialize, Default)]
#[serde(default)]
struct StatusBody {
    code: u16,
    message: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Bookmark {
    metadata: BookmarkMeta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct BookmarkMeta {
    resource_version: String,
    annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Page<'a> {
    metadata: PageMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: String,
}

struct Reflector {
    kube: kube::Client,
    shared: Arc<Shared>,
    path: String,
    /// Selectors, already encoded, each starting with `&`.
    selectors: String,
    backoff: Backoff,
    /// Where to resume; `None` before the first complete state and after `410 Gone`.
    version: Option<String>,
    streams_lists: bool,
}

impl Reflector {
    fn new(kube: kube::Client, shared: Arc<Shared>, selection: Selection) -> Self {
        let path = shared.resource.path(selection.namespace.as_deref());
        let mut selectors = String::new();
        for (name, value) in [("labelSelector", &selection.labels), ("fieldSelector", &selection.fields)] {
            if let Some(value) = value {
                selectors.push_str(&format!("&{name}={}", encode(value)));
            }
        }
        let backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        Self { kube, shared, path, selectors, backoff, version: None, streams_lists: true }
    }

    async fn run(mut self) {
        let mut quiet_failures = 0u32;
        loop {
            match self.once().await {
                Ok(()) => quiet_failures = 0,
                Err(error) if error.is_gone() => {
                    tracing::debug!(path = self.path, "watch history is gone, starting over");
                    self.version = None;
                    // Immediately the first time; a server that always says so must not be hammered.
                    if quiet_failures > 0 {
                        tokio::time::sleep(self.backoff.next_delay()).await;
                    }
                    quiet_failures += 1;
                }
                Err(error) if self.version.is_none() && self.streams_lists && error.is_unsupported() => {
                    tracing::debug!(path = self.path, %error, "server cannot stream lists, listing instead");
                    self.streams_lists = false;
                }
                Err(error) => {
                    quiet_failures += 1;
                    // One failure is a restart of the server; more are worth a line.
                    if quiet_failures == 3 {
                        tracing::warn!(path = self.path, %error, "watch fails, retrying");
                    } else {
                        tracing::debug!(path = self.path, %error, "watch failed, retrying");
                    }
                    tokio::time::sleep(self.backoff.next_delay()).await;
                }
            }
        }
    }

    /// One request after another until a stream ends: `Ok` when it ended in order.
    async fn once(&mut self) -> Result<(), WatchError> {
        if self.version.is_none() && !self.streams_lists {
            self.list().await?;
        }
        let timeout_s = (WATCH_MIN_S * (1.0 + self.backoff.random())) as u64;
        let mut query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={timeout_s}");
        match &self.version {
            Some(version) => query.push_str(&format!("&resourceVersion={}", encode(version))),
            None => query.push_str("&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
        }
        let mut body = self.get(&query).await?;
        let mut framer = Framer::default();
        let mut initial = self.version.is_none().then(Vec::new);
        let mut events: Vec<(EventType, Bytes)> = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            framer.push(data, &mut |kind, object| events.push((kind, object)))?;
            for (kind, object) in events.drain(..) {
                self.event(kind, object, &mut initial)?;
            }
        }
        // An orderly end (timeoutSeconds) resumes at once, but a server that ends every stream at birth
        // must not turn this into a busy loop; progress resets the back-off.
        match initial {
            Some(_) => Err(WatchError::Incomplete),
            None => {
                tokio::time::sleep(self.backoff.next_delay()).await;
                Ok(())
            }
        }
    }

    fn event(
        &mut self,
        kind: EventType,
        object: Bytes,
        initial: &mut Option<Vec<Cached>>,
    ) -> Result<(), WatchError> {
        let cache = &self.shared.cache;
        match kind {
            EventType::Added | EventType::Modified | EventType::Deleted => {
                let object = match Cached::new(object) {
                    Ok(object) => object,
                    Err(error) => {
                        tracing::warn!(path = self.path, %error, "an object in the watch is unreadable");
                        return Ok(());
                    }
                };
                match (initial.as_mut(), kind) {
                    (Some(initial), EventType::Deleted) => initial.retain(|o| o.key() != object.key()),
                    (Some(initial), _) => initial.push(object),
                    (None, kind) => {
                        self.version = Some(object.resource_version().to_string());
                        match kind {
                            EventType::Deleted => cache.remove(object),
                            _ => cache.put(object),
                        }
                        self.backoff.reset();
                    }
                }
            }
            EventType::Bookmark => {
                let mark: Bookmark = serde_json::from_slice(&object)?;
                let ends =
                    mark.metadata.annotations.get("k8s.io/initial-events-end").is_some_and(|v| v == "true");
                let version = mark.metadata.resource_version.parse().unwrap_or(0);
                if ends && let Some(objects) = initial.take() {
                    cache.replace(objects, version);
                    self.shared.synced.send_replace(true);
                }
                if initial.is_none() {
                    cache.advance(version);
                    self.version = Some(mark.metadata.resource_version);
                    self.backoff.reset();
                }
            }
            EventType::Error => {
                let status: StatusBody = serde_json::from_slice(&object)?;
                return Err(WatchError::Status { code: status.code, message: status.message });
            }
        }
        Ok(())
    }

    /// The fallback for servers that cannot stream lists: pages, copied item by item.
    async fn list(&mut self) -> Result<(), WatchError> {
        let mut objects = Vec::new();
        let mut next = String::new();
        let version = loop {
            let mut query = format!("limit={PAGE_OBJECTS}");
            if !next.is_empty() {
                query.push_str(&format!("&continue={}", encode(&next)));
            }
            let body = self.get(&query).await?;
            let bytes = collect(body, PAGE_MAX_BYTES).await?;
            let page: Page<'_> = serde_json::from_slice(&bytes)?;
            for item in page.items.unwrap_or_default() {
                match Cached::new(self.with_type(item.get())) {
                    Ok(object) => objects.push(object),
                    Err(error) => {
                        tracing::warn!(path = self.path, %error, "an object in the list is unreadable")
                    }
                }
            }
            next = page.metadata.next;
            if next.is_empty() {
                break page.metadata.resource_version;
            }
        };
        self.shared.cache.replace(objects, version.parse().unwrap_or(0));
        self.shared.synced.send_replace(true);
        self.version = Some(version);
        Ok(())
    }

    /// Items of typed lists leave `kind` and `apiVersion` out; cached objects always have them.
    fn with_type(&self, item: &str) -> Bytes {
        let inner = item.trim_start().strip_prefix('{').unwrap_or_default().trim_start();
        if inner.starts_with("\"kind\"") || inner.starts_with("\"apiVersion\"") || inner.starts_with('}') {
            return Bytes::copy_from_slice(item.as_bytes());
        }
        let resource = &self.shared.resource;
        let (kind, version) = (&resource.kind, resource.api_version());
        Bytes::from(format!(r#"{{"kind":"{kind}","apiVersion":"{version}",{inner}"#))
    }

    async fn get(&self, query: &str) -> Result<Body, WatchError> {
        let uri = format!("{}?{query}{}", self.path, self.selectors);
        let request =
            Request::get(uri).header(http::header::ACCEPT, "application/json").body(Body::empty())?;
        let response = self.kube.send(request).await?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response.into_body());
        }
        let bytes = collect(response.into_body(), ERROR_MAX_BYTES).await.unwrap_or_default();
        let body: StatusBody = serde_json::from_slice(&bytes).unwrap_or_default();
        Err(WatchError::Status { code: status.as_u16(), message: body.message })
    }
}

async fn collect(mut body: Body, max_bytes: usize) -> Result<Bytes, WatchError> {
    let mut gathered = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if gathered.len() + data.len() > max_bytes {
            return Err(WatchError::TooLong(max_bytes));
        }
        gathered.extend_from_slice(&data);
    }
    Ok(gathered.into())
}

/// Percent-encodes a query value.
fn encode(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for &byte in value.as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
