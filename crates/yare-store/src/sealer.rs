//! The seam to encryption at rest. A [`Sealer`] says what lies on disk in the place of an object's JSON. In
//! memory objects are JSON, as everywhere; beside it is kept what lies on disk, so that a checkpoint copies
//! that and needs no key. What cannot be opened is *locked*: it keeps its place, its key and its revision, has
//! no bytes, and is read once it can be opened ([`crate::Store::unlock`]).

use bytes::Bytes;

use crate::object::{Attrs, Indexer, decimal_len, splice};

/// Turns JSON into what lies on disk, and back. The JSON has an empty resourceVersion: the revision is not
/// known when a value is sealed.
///
/// `seal` runs in the time of whoever commits and should only compute. `open` runs on threads that may block.
pub trait Sealer: Send + Sync {
    /// What lies on disk in the place of `json`; `None` where that is the JSON itself.
    fn seal(&self, kind: &str, key: &str, json: &[u8]) -> Result<Option<Box<[u8]>>, String>;
    /// The JSON of what [`Sealer::seal`] gave, now or years ago.
    fn open(&self, kind: &str, key: &str, sealed: &[u8]) -> Result<Vec<u8>, String>;
    /// Whether JSON that was never sealed may be read. Where it may not, `open` gets it and says why.
    fn reads_plain(&self, kind: &str) -> bool;
}

/// Nothing is sealed, and nothing sealed can be read.
pub struct Plain;

impl Sealer for Plain {
    fn seal(&self, _kind: &str, _key: &str, _json: &[u8]) -> Result<Option<Box<[u8]>>, String> {
        Ok(None)
    }

    fn open(&self, _kind: &str, _key: &str, _sealed: &[u8]) -> Result<Vec<u8>, String> {
        // Upstream's words, which people look for.
        Err("identity transformer tried to read encrypted data".into())
    }

    fn reads_plain(&self, _kind: &str) -> bool {
        true
    }
}

/// Set in the place of the resourceVersion of a value on disk that is sealed. Objects are far smaller.
const SEALED: u32 = 1 << 31;

/// A value as it lies on disk, borrowed from a record.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    rv_at: u32,
    bytes: &'a [u8],
}

impl<'a> Stored<'a> {
    /// Checks the little that can be checked without opening it.
    pub fn new(rv_at: u32, bytes: &'a [u8], revision: u64) -> Option<Self> {
        let stored = Stored { rv_at, bytes };
        let end = (rv_at as usize).checked_add(decimal_len(revision))?;
        (stored.is_sealed() || end < bytes.len()).then_some(stored)
    }

    /// Of an object: what lies on disk of it.
    pub fn of(rv_at: u32, bytes: &'a [u8], sealed: Option<&'a [u8]>) -> Self {
        match sealed {
            Some(sealed) => Stored { rv_at: rv_at | SEALED, bytes: sealed },
            None => Stored { rv_at, bytes },
        }
    }

    /// The two parts of it in a record.
    pub fn parts(&self) -> (u32, &'a [u8]) {
        (self.rv_at, self.bytes)
    }

    fn is_sealed(&self) -> bool {
        self.rv_at & SEALED != 0
    }
}

/// What an object is made of, beside its names and revisions.
#[derive(Clone)]
pub(crate) struct Value {
    /// JSON that shows its revision; nothing where it is locked.
    pub bytes: Bytes,
    pub rv_at: u32,
    pub attrs: Attrs,
    /// What lies on disk, where that is not the JSON.
    pub sealed: Option<Box<[u8]>>,
}

/// Reads what lies on disk.
pub(crate) struct Restorer<'a> {
    pub indexer: &'a dyn Indexer,
    pub sealer: &'a dyn Sealer,
}

impl Restorer<'_> {
    /// The value of a record, locked where it cannot be opened.
    pub fn restore(&self, kind: &str, key: &str, revision: u64, stored: Stored<'_>) -> Value {
        let Stored { rv_at, bytes } = stored;
        if stored.is_sealed() {
            let rv_at = rv_at & !SEALED;
            return match open(self.sealer, kind, key, bytes, rv_at, revision) {
                Ok(json) => self.value(kind, json, rv_at, Some(bytes.into())),
                Err(_) => Value::locked(rv_at, bytes.into()),
            };
        }
        if self.sealer.reads_plain(kind) {
            return self.value(kind, Bytes::from(Box::<[u8]>::from(bytes)), rv_at, None);
        }
        let at = rv_at as usize;
        Value::locked(rv_at, [&bytes[..at], &bytes[at + decimal_len(revision)..]].concat().into())
    }

    fn value(&self, kind: &str, bytes: Bytes, rv_at: u32, sealed: Option<Box<[u8]>>) -> Value {
        let attrs = self.indexer.attrs(kind, &bytes);
        Value { bytes, rv_at, attrs, sealed }
    }
}

impl Value {
    fn locked(rv_at: u32, sealed: Box<[u8]>) -> Value {
        Value { bytes: Bytes::new(), rv_at, attrs: Attrs::default(), sealed: Some(sealed) }
    }
}

/// Opens a sealed value and writes its revision in.
pub(crate) fn open(
    sealer: &dyn Sealer,
    kind: &str,
    key: &str,
    sealed: &[u8],
    rv_at: u32,
    revision: u64,
) -> Result<Bytes, String> {
    let json = sealer.open(kind, key, sealed)?;
    let at = rv_at as usize;
    // What comes out may have been made by somebody else, where nothing vouches for it (CBC).
    if at == 0 || json.get(at - 1..=at) != Some(b"\"\"".as_slice()) {
        return Err("the decrypted data is not the object that was stored".into());
    }
    Ok(splice(&json[..at], revision, &json[at..]))
}
