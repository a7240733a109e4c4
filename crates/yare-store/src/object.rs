//! What the store holds and what callers hand in: objects at rest, drafts, writes and events. Plain data.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::sealer::{Stored, Value};

/// Names a kind: `"apps/deployments"` (group, slash, plural), or the plural alone for the core group (`"pods"`).
pub type Kind = Arc<str>;

/// One stored object: the JSON at rest and the little that selectors need. Always behind an [`Arc`], so that
/// every reader and every watcher shares the same bytes.
pub struct Object {
    /// The kind it belongs to.
    pub kind: Kind,
    /// `"namespace/name"`, or `"name"` for cluster scope.
    pub key: Box<str>,
    /// JSON whose `metadata.resourceVersion` is [`Object::revision`]; nothing where the object is locked.
    pub bytes: Bytes,
    /// The revision that created the object.
    pub created: u64,
    /// The revision that wrote these bytes.
    pub revision: u64,
    /// What selectors need, read from the JSON by the [`Indexer`].
    pub attrs: Attrs,
    /// Where the digits of the resourceVersion start in `bytes`: a deletion replaces them.
    pub(crate) rv_at: u32,
    /// What lies on disk, where that is not the JSON.
    pub(crate) sealed: Option<Box<[u8]>>,
}

impl Object {
    pub(crate) fn new(kind: Kind, key: Box<str>, created: u64, revision: u64, value: Value) -> Object {
        let Value { bytes, rv_at, attrs, sealed } = value;
        Object { kind, key, bytes, created, revision, attrs, rv_at, sealed }
    }

    /// Whether what lies on disk of it could not be opened.
    pub fn is_locked(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What lies on disk in the place of its JSON, where that is sealed.
    pub fn sealed(&self) -> Option<&[u8]> {
        self.sealed.as_deref()
    }

    /// What lies on disk.
    pub(crate) fn stored(&self) -> Stored<'_> {
        Stored::of(self.rv_at, &self.bytes, self.sealed())
    }

    /// The same object as a deletion at `revision` shows it: only the resourceVersion differs.
    pub(crate) fn deleted_at(&self, revision: u64) -> Object {
        let start = self.rv_at as usize;
        let old = decimal_len(self.revision);
        let bytes = if self.is_locked() {
            Bytes::new()
        } else {
            splice(&self.bytes[..start], revision, &self.bytes[start + old..])
        };
        Object {
            kind: self.kind.clone(),
            key: self.key.clone(),
            bytes,
            created: self.created,
            revision,
            attrs: self.attrs.clone(),
            rv_at: self.rv_at,
            sealed: self.sealed.clone().filter(|_| self.is_locked()),
        }
    }
}

// Not derived: the bytes may be a Secret, and debug output ends up in logs.
impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} @{} ({} bytes)", self.kind, self.key, self.revision, self.bytes.len())
    }
}

/// Labels and selectable fields of an object, each sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attrs {
    /// `metadata.labels`.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Selectable fields (`metadata.name`, `spec.nodeName`, …).
    pub fields: Box<[(Box<str>, Box<str>)]>,
}

impl Attrs {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        find(&self.labels, name)
    }

    /// The value of a selectable field.
    pub fn field(&self, name: &str) -> Option<&str> {
        find(&self.fields, name)
    }
}

fn find<'a>(pairs: &'a [(Box<str>, Box<str>)], name: &str) -> Option<&'a str> {
    pairs.binary_search_by(|(k, _)| (**k).cmp(name)).ok().map(|i| &*pairs[i].1)
}

/// Reads attributes from JSON at rest; run when an object is written and when the log is replayed.
/// It must be a pure function of its arguments, and must not depend on the resourceVersion.
pub trait Indexer: Send + Sync {
    /// The attributes of one object.
    fn attrs(&self, kind: &str, json: &[u8]) -> Attrs;
}

/// An object before it has a revision: JSON with `"resourceVersion":""`, whose empty string starts (after
/// its opening quote) at `rv_at`. The store writes the revision there when it assigns it.
#[derive(Clone)]
pub struct Draft {
    /// The JSON.
    pub json: Vec<u8>,
    /// The offset just after the opening quote of the empty resourceVersion.
    pub rv_at: usize,
    /// What the [`Indexer`] would read, where whoever wrote the JSON knows it already.
    pub attrs: Option<Attrs>,
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Draft({} bytes)", self.json.len())
    }
}

impl Draft {
    /// Whether `rv_at` points between two quotes.
    pub(crate) fn is_well_formed(&self) -> bool {
        self.rv_at > 0 && self.json.get(self.rv_at - 1..=self.rv_at) == Some(b"\"\"".as_slice())
    }

    /// The JSON with the revision written in.
    pub(crate) fn at(&self, revision: u64) -> Bytes {
        let (head, tail) = self.json.split_at(self.rv_at);
        splice(head, revision, tail)
    }
}

/// What must be true of a key for a transaction to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing (a [`Op::Delete`] still needs the object to exist).
    Anything,
    /// No object has the key.
    Absent,
    /// The object exists and was last written at this revision.
    Revision(u64),
}

/// One write of a transaction.
#[derive(Clone, Debug)]
pub struct Write {
    /// The kind.
    pub kind: Kind,
    /// The key within the kind.
    pub key: String,
    /// The precondition.
    pub expect: Expect,
    /// What happens when all preconditions of the transaction hold.
    pub op: Op,
}

/// What a [`Write`] does.
#[derive(Clone, Debug)]
pub enum Op {
    /// Creates or replaces the object.
    Put(Draft),
    /// Removes the object.
    Delete,
    /// Writes nothing; the precondition alone must hold when the others commit.
    Check,
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Event {
    /// The revision of the transaction.
    pub revision: u64,
    /// The object as written; for a deletion, the last state with the deletion's revision in it.
    pub object: Arc<Object>,
    /// The object before the change.
    pub previous: Option<Arc<Object>>,
    /// Put or delete.
    pub kind: EventKind,
}

/// What an [`Event`] did to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Created (no `previous`) or replaced.
    Put,
    /// Removed.
    Delete,
}

/// `head`, the revision in decimal, `tail`; allocated exactly, because these bytes live long.
pub(crate) fn splice(head: &[u8], revision: u64, tail: &[u8]) -> Bytes {
    let mut digits = [0u8; 20];
    let digits = decimal(revision, &mut digits);
    let mut out = Vec::with_capacity(head.len() + digits.len() + tail.len());
    out.extend_from_slice(head);
    out.extend_from_slice(digits);
    out.extend_from_slice(tail);
    Bytes::from(out.into_boxed_slice())
}

fn decimal(mut value: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return &buffer[at..];
        }
    }
}

/// How many decimal digits `value` has.
pub(crate) fn decimal_len(value: u64) -> usize {
    value.checked_ilog10().unwrap_or(0) as usize + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revision_is_spliced_and_replaced() {
        let json = br#"{"metadata":{"resourceVersion":""}}"#.to_vec();
        let rv_at = json.windows(2).position(|w| w == b"\"\"").unwrap() + 1;
        let draft = Draft { json, rv_at, attrs: None };
        assert!(draft.is_well_formed());
        for revision in [1, 9, 10, 99, 100, u64::MAX] {
            let object = Object {
                kind: "pods".into(),
                key: "a/b".into(),
                bytes: draft.at(revision),
                created: 1,
                revision,
                attrs: Attrs::default(),
                rv_at: rv_at as u32,
                sealed: None,
            };
            assert_eq!(object.bytes, format!(r#"{{"metadata":{{"resourceVersion":"{revision}"}}}}"#));
            for later in [7, 12_345] {
                let gone = object.deleted_at(later);
                assert_eq!(gone.bytes, format!(r#"{{"metadata":{{"resourceVersion":"{later}"}}}}"#));
            }
        }
        for bad in [0, 3, 1000] {
            assert!(!Draft { json: draft.json.clone(), rv_at: bad, attrs: None }.is_well_formed());
        }
    }

    #[test]
    fn attributes_are_found_by_name() {
        let pair = |k: &str, v: &str| (Box::from(k), Box::from(v));
        let attrs = Attrs { labels: [pair("app", "x"), pair("tier", "y")].into(), fields: Box::default() };
        assert_eq!(attrs.label("tier"), Some("y"));
        assert_eq!(attrs.label("none"), None);
        assert_eq!(attrs.field("metadata.name"), None);
    }
}
