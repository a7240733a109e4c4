//! A kind at one revision: an immutable map that costs one reference to take and to keep.

use std::ops::Bound;
use std::sync::Arc;

use crate::object::Object;
use crate::tree::{Iter, Keyed, Tree};

impl Keyed for Arc<Object> {
    fn key(&self) -> &str {
        &self.key
    }
}

/// All objects of one kind as of one revision.
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) revision: u64,
    pub(crate) objects: Tree<Arc<Object>>,
}

impl Snapshot {
    /// The revision this shows: everything up to it, nothing after it.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The object with `key`.
    pub fn get(&self, key: &str) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// The objects whose key starts with `prefix` (`""`: all; `"ns/"`: one namespace), in key order, starting
    /// at `from`.
    pub fn range(&self, from: Bound<&str>, prefix: &str) -> Range<'_> {
        let inner = self.objects.iter_from(|key| {
            key < prefix
                || match from {
                    Bound::Unbounded => false,
                    Bound::Included(from) => key < from,
                    Bound::Excluded(from) => key <= from,
                }
        });
        Range { inner, prefix: prefix.into() }
    }

    /// How many keys start with `prefix`; logarithmic.
    pub fn count(&self, prefix: &str) -> usize {
        if prefix.is_empty() {
            return self.len();
        }
        self.objects.rank(|key| key < prefix || key.starts_with(prefix))
            - self.objects.rank(|key| key < prefix)
    }

    /// How many objects [`Snapshot::range`] has with the same arguments (for `remainingItemCount`); logarithmic.
    pub fn count_from(&self, from: Bound<&str>, prefix: &str) -> usize {
        let end = self.objects.rank(|key| key < prefix || key.starts_with(prefix));
        let start = self.objects.rank(|key| {
            key < prefix
                || match from {
                    Bound::Unbounded => false,
                    Bound::Included(from) => key < from,
                    Bound::Excluded(from) => key <= from,
                }
        });
        end.saturating_sub(start)
    }
}

/// What [`Snapshot::range`] returns: objects in key order.
pub struct Range<'a> {
    inner: Iter<'a, Arc<Object>>,
    prefix: Box<str>,
}

impl<'a> Iterator for Range<'a> {
    type Item = &'a Arc<Object>;

    fn next(&mut self) -> Option<&'a Arc<Object>> {
        self.inner.next().filter(|object| object.key.starts_with(&*self.prefix))
    }
}
