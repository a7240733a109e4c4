//! Events: what components tell people about objects.
//!
//! Callers hand events over without waiting; a task correlates them as upstream's client does. The same
//! event again becomes a patch of `count` and `lastTimestamp`; many similar ones are combined under one
//! message; a source that floods one object is throttled. Every table here is bounded.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hash,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

use crate::{Cached, Resource};

/// Events that wait to be written; more are dropped.
const QUEUE_EVENTS: usize = 1000;
/// Keys that each table of the correlator remembers.
const TABLE_KEYS: usize = 4096;
/// Similar events within [`SIMILAR_WINDOW`] before they are combined.
const SIMILAR_MAX: usize = 10;
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
/// Events a source may emit about one object at once, and how long one takes to be earned back.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// Attempts to write one event that the server has no time for.
const ATTEMPTS: u32 = 5;
/// Between attempts: the first wait, which doubles, and the longest one. While the server is away there is no end to
/// them: what happened meanwhile is told when it is back.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Upstream's limit of an event message.
const MESSAGE_MAX_BYTES: usize = 1024;
/// The longest name of an object.
const NAME_MAX_BYTES: usize = 253;

/// `type` of an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EventKind {
    /// Information.
    Normal,
    /// Something a person may have to look at.
    Warning,
}

impl EventKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// The object an event is about.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ObjectRef {
    /// `apps/v1`
    pub api_version: String,
    /// `Deployment`
    pub kind: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Uid of the object.
    pub uid: String,
    /// The state the event is about; empty where that does not matter.
    pub resource_version: String,
    /// Part of the object, such as `spec.containers{web}`; empty for all of it.
    pub field_path: String,
}

impl ObjectRef {
    /// Refers to a cached object.
    pub fn of(resource: &Resource, object: &Cached) -> Self {
        Self {
            api_version: resource.api_version(),
            kind: resource.kind.to_string(),
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
            uid: object.uid().to_owned(),
            resource_version: object.resource_version().to_string(),
            field_path: String::new(),
        }
    }

    /// The same object, one of its fields.
    pub fn with_field_path(mut self, field_path: &str) -> Self {
        field_path.clone_into(&mut self.field_path);
        self
    }
}

/// Writes events of one component. Cheap to clone; never blocks its caller.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Note>,
}

struct Note {
    regarding: ObjectRef,
    annotations: BTreeMap<String, String>,
    kind: EventKind,
    reason: String,
    message: String,
    /// When it happened.
    at: Timestamp,
}

impl Recorder {
    /// For the component `component`, on the node `node` if it is a node's. Must be called within a tokio
    /// runtime.
    pub fn new(client: impl Into<kube::Client>, component: &str, node: Option<&str>) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE_EVENTS);
        let writer = Writer {
            kube: client.into(),
            component: component.to_owned(),
            node: node.map(str::to_owned),
            correlator: Correlator::default(),
        };
        tokio::spawn(writer.run(notes));
        Self { queue }
    }

    /// Records an event about an object. Dropped when too many wait already.
    pub fn event(&self, regarding: ObjectRef, kind: EventKind, reason: &str, message: impl Into<String>) {
        self.annotated_event(regarding, BTreeMap::new(), kind, reason, message);
    }

    /// Records an event with annotations for whoever reads it by program. Dropped when too many wait already.
    pub fn annotated_event(
        &self,
        regarding: ObjectRef,
        annotations: BTreeMap<String, String>,
        kind: EventKind,
        reason: &str,
        message: impl Into<String>,
    ) {
        let (reason, message) = (reason.to_owned(), message.into());
        let note = Note { regarding, annotations, kind, reason, message, at: Timestamp::now() };
        if let Err(mpsc::error::TrySendError::Full(note)) = self.queue.try_send(note) {
            tracing::warn!(
                reason = note.reason,
                name = note.regarding.name,
                "too many events wait, one is dropped"
            );
        }
    }
}

struct Writer {
    kube: kube::Client,
    component: String,
    node: Option<String>,
    correlator: Correlator,
}

/// What the correlator made of a note.
#[derive(Debug, PartialEq)]
enum Verdict {
    Drop,
    Write { message: String, key: String, seen: Option<Seen> },
}

/// An event that is stored.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    name: String,
    count: i32,
    first: Timestamp,
}

impl Writer {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            let verdict = self.correlator.judge(&note, Instant::now());
            if let Verdict::Write { message, key, seen } = verdict {
                let seen = self.write(note, message, seen).await;
                match seen {
                    Some(seen) => self.correlator.seen.insert(key, seen),
                    None => self.correlator.seen.remove(&key),
                }
            }
        }
    }

    /// Creates or patches the event; what is stored then, or `None` if nothing is.
    async fn write(&self, note: Note, message: String, mut seen: Option<Seen>) -> Option<Seen> {
        let namespace =
            if note.regarding.namespace.is_empty() { "default" } else { &note.regarding.namespace };
        let api: Api<Event> = Api::namespaced(self.kube.clone(), namespace);
        let (mut attempts, mut wait) = (0, RETRY_MIN);
        let now = note.at;
        while attempts < ATTEMPTS {
            let result = match &seen {
                Some(s) => {
                    let next = Seen { count: s.count.saturating_add(1), ..s.clone() };
                    let patch = json!({"count": next.count, "lastTimestamp": Time(now), "message": message});
                    let patch = Patch::Strategic(patch);
                    api.patch(&s.name, &PatchParams::default(), &patch).await.map(|_| next)
                }
                None => {
                    let event = self.build(&note, namespace, &message, now);
                    let name = event.metadata.name.clone().unwrap_or_default();
                    api.create(&PostParams::default(), &event).await.map(|_| Seen {
                        name,
                        count: 1,
                        first: now,
                    })
                }
            };
            match result {
                Ok(stored) => return Some(stored),
                // Expired meanwhile: make it anew.
                Err(kube::Error::Api(status)) if status.code == 404 && seen.is_some() => seen = None,
                // The server will not have it (its namespace is going away, say): retrying is no use.
                Err(kube::Error::Api(status)) if (400..500).contains(&status.code) && status.code != 429 => {
                    tracing::debug!(
                        reason = note.reason,
                        name = note.regarding.name,
                        status = status.message,
                        "event refused"
                    );
                    return None;
                }
                Err(error) => {
                    tracing::debug!(reason = note.reason, name = note.regarding.name, %error, "event not written yet");
                    attempts += u32::from(matches!(error, kube::Error::Api(_)));
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
        None
    }

    fn build(&self, note: &Note, namespace: &str, message: &str, now: Timestamp) -> Event {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        let regarding = &note.regarding;
        Event {
            metadata: ObjectMeta {
                name: Some(event_name(&regarding.name, now)),
                namespace: Some(namespace.to_owned()),
                annotations: (!note.annotations.is_empty()).then(|| note.annotations.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: some(&regarding.api_version),
                kind: some(&regarding.kind),
                namespace: some(&regarding.namespace),
                name: some(&regarding.name),
                uid: some(&regarding.uid),
                resource_version: some(&regarding.resource_version),
                field_path: some(&regarding.field_path),
            },
            reason: Some(note.reason.clone()),
            message: Some(message.to_owned()),
            type_: Some(note.kind.as_str().to_owned()),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource { component: Some(self.component.clone()), host: self.node.clone() }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.node.clone().unwrap_or_default()),
            ..Event::default()
        }
    }
}

#[derive(Default)]
struct Correlator {
    buckets: Table<String, Bucket>,
    similar: Table<String, Similar>,
    seen: Table<String, Seen>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

struct Similar {
    messages: HashSet<String>,
    last: Instant,
}

impl Correlator {
    fn judge(&mut self, note: &Note, now: Instant) -> Verdict {
        let r = &note.regarding;
        let object = [&*r.api_version, &r.kind, &r.namespace, &r.name, &r.uid].join("\u{0}");
        let bucket = self.buckets.entry(object.clone(), || Bucket { tokens: BURST, at: now });
        let earned = (now - bucket.at).as_secs_f64() / REFILL.as_secs_f64();
        bucket.tokens = (bucket.tokens + earned).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return Verdict::Drop;
        }
        bucket.tokens -= 1.0;

        let mut message = note.message.clone();
        truncate(&mut message, MESSAGE_MAX_BYTES);
        let group = [&*object, &r.field_path, note.kind.as_str(), &note.reason].join("\u{0}");
        let similar = self.similar.entry(group.clone(), || Similar { messages: HashSet::new(), last: now });
        if now - similar.last > SIMILAR_WINDOW {
            similar.messages.clear();
        }
        similar.last = now;
        let key = if similar.messages.contains(&message) || similar.messages.len() < SIMILAR_MAX - 1 {
            similar.messages.insert(message.clone());
            [&*group, &message].join("\u{0}")
        } else {
            message = format!("(combined from similar events): {message}");
            truncate(&mut message, MESSAGE_MAX_BYTES);
            group
        };
        let seen = self.seen.get(&key).cloned();
        Verdict::Write { message, key, seen }
    }
}

/// A name that nothing else has: the object's, shortened to what names may have, and the time.
fn event_name(regarding: &str, now: Timestamp) -> String {
    let suffix = format!(".{:x}", now.as_nanosecond());
    let mut name = regarding.to_owned();
    truncate(&mut name, NAME_MAX_BYTES - suffix.len());
    // What is before a dot has to end with a letter or digit.
    name.truncate(name.trim_end_matches(['-', '.']).len());
    name + &suffix
}

fn truncate(text: &mut String, max_bytes: usize) {
    if text.len() > max_bytes {
        let end = (0..=max_bytes).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text.truncate(end);
    }
}

/// A map that forgets its oldest keys beyond [`TABLE_KEYS`].
struct Table<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { map: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Clone + Eq + Hash, V> Table<K, V> {
    fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key)
    }

    fn entry(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if !self.map.contains_key(&key) {
            self.make_room();
            self.order.push_back(key.clone());
        }
        self.map.entry(key).or_insert_with(make)
    }

    fn insert(&mut self, key: K, value: V) {
        if !self.map.contains_key(&key) {
            self.make_room();
            self.order.push_back(key.clone());
        }
        self.map.insert(key, value);
    }

    fn remove(&mut self, key: &K) {
        // Its place in `order` stays and is dropped when its turn comes.
        self.map.remove(key);
    }

    fn make_room(&mut self) {
        while self.order.len() >= TABLE_KEYS {
            if let Some(oldest) = self.order.pop_front() {
                self.map.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &str, message: &str) -> Note {
        let regarding = ObjectRef { kind: "Pod".into(), name: name.into(), ..ObjectRef::default() };
        let annotations = BTreeMap::new();
        Note {
            regarding,
            annotations,
            kind: EventKind::Normal,
            reason: "R".into(),
            message: message.into(),
            at: Timestamp::now(),
        }
    }

    fn judge(c: &mut Correlator, note: &Note, now: Instant) -> Option<(String, Option<i32>)> {
        match c.judge(note, now) {
            Verdict::Drop => None,
            Verdict::Write { message, key, seen } => {
                let count = seen.as_ref().map(|s| s.count);
                let next =
                    Seen { name: "e".into(), count: count.unwrap_or(0) + 1, first: Timestamp::UNIX_EPOCH };
                c.seen.insert(key, next);
                Some((message, count))
            }
        }
    }

    #[test]
    fn names_of_events_are_valid() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        assert_eq!(event_name("web-0", now), "web-0.17979cfe362a0000");
        let long = format!("{}-{}", "a".repeat(235), "b".repeat(17));
        assert_eq!(event_name(&long, now), format!("{}.17979cfe362a0000", "a".repeat(235)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_event_counts_up() {
        let mut c = Correlator::default();
        let now = Instant::now();
        assert_eq!(judge(&mut c, &note("a", "m"), now), Some(("m".into(), None)));
        assert_eq!(judge(&mut c, &note("a", "m"), now), Some(("m".into(), Some(1))));
        assert_eq!(judge(&mut c, &note("b", "m"), now), Some(("m".into(), None)));
    }

    #[tokio::test(start_paused = true)]
    async fn similar_events_are_combined() {
        let mut c = Correlator::default();
        let now = Instant::now();
        for i in 0..9 {
            assert_eq!(judge(&mut c, &note("a", &format!("m{i}")), now), Some((format!("m{i}"), None)));
        }
        let combined = |m: &str| format!("(combined from similar events): {m}");
        assert_eq!(judge(&mut c, &note("a", "m9"), now), Some((combined("m9"), None)));
        assert_eq!(judge(&mut c, &note("a", "m10"), now), Some((combined("m10"), Some(1))));
        let later = now + SIMILAR_WINDOW + Duration::from_secs(1);
        assert_eq!(judge(&mut c, &note("a", "m11"), later), Some(("m11".into(), None)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_throttled_and_recovers() {
        let mut c = Correlator::default();
        let now = Instant::now();
        let written = (0..100).filter(|_| judge(&mut c, &note("a", "m"), now).is_some()).count();
        assert_eq!(written, 25);
        assert!(judge(&mut c, &note("a", "m"), now + REFILL).is_some());
    }
}
