//! How many watches a write will be told to: counted per resource, namespace and name.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::path::{Query, RequestInfo};

/// The watches that are open.
#[derive(Default)]
pub struct Watches {
    hasher: RandomState,
    open: Mutex<HashMap<u64, u32>>,
}

impl Watches {
    fn key(&self, info: &RequestInfo, namespace: &str, name: &str) -> u64 {
        // A collision makes an estimate a little too high.
        self.hasher.hash_one((&*info.group, &*info.resource, namespace, name))
    }

    /// Counts a watch until the guard is dropped. None for a watch that sees only the pods of one node: an
    /// event of another node's pod costs it nothing.
    pub fn open(self: &Arc<Self>, info: &RequestInfo, query: &Query) -> Option<Watching> {
        let of_node = |selector: &str| {
            selector.split(',').any(|clause| {
                let node = clause.strip_prefix("spec.nodeName=").map(|n| n.trim_start_matches('='));
                node.is_some_and(|node| !node.is_empty())
            })
        };
        if info.resource == "pods" && query.get("fieldSelector").is_some_and(of_node) {
            return None;
        }
        let key = self.key(info, &info.namespace, &info.name);
        *self.open.lock().entry(key).or_default() += 1;
        Some(Watching { watches: self.clone(), key })
    }

    /// How many watches may be told of what the request does.
    pub fn interested(&self, info: &RequestInfo) -> u32 {
        let open = self.open.lock();
        if open.is_empty() {
            return 0;
        }
        let count = |namespace, name| open.get(&self.key(info, namespace, name)).copied().unwrap_or(0);
        let mut sum = count("", "");
        if !info.namespace.is_empty() {
            sum += count(&info.namespace, "");
        }
        if !info.name.is_empty() {
            sum += count(&info.namespace, &info.name);
        }
        sum
    }
}

/// An open watch.
pub struct Watching {
    watches: Arc<Watches>,
    key: u64,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut open = self.watches.open.lock();
        if let Some(count) = open.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(namespace: &str, name: &str) -> RequestInfo {
        RequestInfo {
            resource: "pods".into(),
            namespace: namespace.into(),
            name: name.into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn watches_are_counted_by_scope() {
        let watches = Arc::new(Watches::default());
        let none = Query::default();
        let all = watches.open(&info("", ""), &none);
        let namespace = watches.open(&info("a", ""), &none);
        let one = watches.open(&info("a", "x"), &none);
        let node = Query::parse(Some("fieldSelector=spec.nodeName%3Dn1"));
        assert!(watches.open(&info("", ""), &node).is_none());
        for (namespace, name, want) in [("a", "x", 3), ("a", "y", 2), ("b", "x", 1), ("", "", 1)] {
            assert_eq!(watches.interested(&info(namespace, name)), want, "{namespace}/{name}");
        }
        drop((all, namespace, one));
        assert_eq!(watches.interested(&info("a", "x")), 0);
        assert!(watches.open.lock().is_empty());
    }
}
