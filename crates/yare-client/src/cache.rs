//! One kind's objects in memory, indexed by key and by owner, with the subscribers to tell.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound,
    sync::{Arc, Weak},
};

use parking_lot::RwLock;

use crate::{
    Cached, Change, ChangeKind, ObjectKey,
    object::ByKey,
    subscription::{Mailbox, Subscription},
};

#[derive(Default)]
pub(crate) struct Cache {
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    objects: BTreeSet<ByKey>,
    by_owner: HashMap<Box<str>, BTreeSet<ByKey>>,
    subscribers: Vec<Weak<Mailbox>>,
    synced: bool,
    closed: bool,
    version: u64,
}

impl Cache {
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<Cached> {
        self.state.read().objects.get(key).map(|o| o.0.clone())
    }

    pub(crate) fn list(&self) -> Vec<Cached> {
        self.state.read().objects.iter().map(|o| o.0.clone()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Cached> {
        let first = ObjectKey::new(namespace, "");
        let state = self.state.read();
        state
            .objects
            .range::<ObjectKey, _>((Bound::Included(&first), Bound::Unbounded))
            .take_while(|o| o.0.namespace() == namespace)
            .map(|o| o.0.clone())
            .collect()
    }

    pub(crate) fn by_owner(&self, uid: &str) -> Vec<Cached> {
        let state = self.state.read();
        state.by_owner.get(uid).map(|set| set.iter().map(|o| o.0.clone()).collect()).unwrap_or_default()
    }

    pub(crate) fn subscribe(&self) -> Subscription {
        let mailbox = Arc::new(Mailbox::default());
        let mut state = self.state.write();
        for object in &state.objects {
            mailbox.push(Change { kind: ChangeKind::Added, new: Some(object.0.clone()), old: None });
        }
        if state.synced {
            mailbox.resynced();
        }
        if state.closed {
            mailbox.close();
        }
        state.subscribers.push(Arc::downgrade(&mailbox));
        Subscription::new(mailbox)
    }

    pub(crate) fn version(&self) -> u64 {
        self.state.read().version
    }

    /// Everything up to `version` has been seen.
    pub(crate) fn advance(&self, version: u64) {
        let mut state = self.state.write();
        state.version = state.version.max(version);
    }

    /// Stores a newer state of an object. Older ones are ignored: they come twice when a watch resumes.
    pub(crate) fn put(&self, object: Cached) {
        let mut state = self.state.write();
        state.version = state.version.max(object.resource_version());
        state.put(object, false);
    }

    /// Removes an object; `last` is its final state.
    pub(crate) fn remove(&self, last: Cached) {
        let mut state = self.state.write();
        state.version = state.version.max(last.resource_version());
        state.remove(last);
    }

    /// Replaces everything by the complete state at `version`; what is not in it has been deleted.
    pub(crate) fn replace(&self, objects: Vec<Cached>, version: u64) {
        let mut state = self.state.write();
        state.version = version;
        let complete: BTreeSet<ByKey> = objects.into_iter().map(ByKey).collect();
        let gone: Vec<Cached> =
            state.objects.iter().filter(|o| !complete.contains(*o)).map(|o| o.0.clone()).collect();
        for object in gone {
            state.remove(object);
        }
        for object in complete {
            state.put(object.0, true);
        }
        state.synced = true;
        state.each(Mailbox::resynced);
    }

    pub(crate) fn close(&self) {
        let mut state = self.state.write();
        state.closed = true;
        state.each(Mailbox::close);
    }
}

impl State {
    /// `complete`: the state is known to be current, even if its version is lower (a restored store).
    fn put(&mut self, object: Cached, complete: bool) {
        let old = self.objects.get(object.key()).map(|o| o.0.clone());
        if let Some(old) = &old {
            let (had, has) = (old.resource_version(), object.resource_version());
            if old.uid() == object.uid() && has != 0 && (had == has || (had > has && !complete)) {
                return;
            }
            self.unindex(old);
        }
        for owner in object.owners() {
            self.by_owner.entry(owner.uid.clone()).or_default().replace(ByKey(object.clone()));
        }
        self.objects.replace(ByKey(object.clone()));
        let kind = if old.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
        self.publish(&Change { kind, new: Some(object), old });
    }

    fn remove(&mut self, last: Cached) {
        let Some(old) = self.objects.take(last.key()) else { return };
        self.unindex(&old.0);
        self.publish(&Change { kind: ChangeKind::Deleted, new: None, old: Some(last) });
    }

    fn unindex(&mut self, object: &Cached) {
        for owner in object.owners() {
            if let Some(set) = self.by_owner.get_mut(&owner.uid) {
                set.remove(object.key());
                if set.is_empty() {
                    self.by_owner.remove(&owner.uid);
                }
            }
        }
    }

    fn publish(&mut self, change: &Change) {
        self.each(|mailbox| mailbox.push(change.clone()));
    }

    fn each(&mut self, mut tell: impl FnMut(&Mailbox)) {
        self.subscribers.retain(|s| {
            s.upgrade().is_some_and(|mailbox| {
                tell(&mailbox);
                true
            })
        });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn object(namespace: &str, name: &str, rv: u64, owner: Option<&str>) -> Cached {
        let owners = owner.map_or(String::new(), |o| format!(r#","ownerReferences":[{{"uid":"{o}"}}]"#));
        Cached::new(Bytes::from(format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"{namespace}","uid":"{name}","resourceVersion":"{rv}"{owners}}}}}"#
        )))
        .unwrap()
    }

    #[test]
    fn indexes_follow_the_objects() {
        let cache = Cache::default();
        cache.put(object("a", "x", 1, Some("o1")));
        cache.put(object("a", "y", 2, Some("o1")));
        cache.put(object("ab", "z", 3, None));
        assert_eq!(cache.by_owner("o1").len(), 2);
        assert_eq!(cache.in_namespace("a").len(), 2);
        cache.put(object("a", "x", 4, Some("o2")));
        assert_eq!((cache.by_owner("o1").len(), cache.by_owner("o2").len()), (1, 1));
        cache.put(object("a", "x", 3, Some("o1")));
        assert_eq!(cache.by_owner("o2").len(), 1, "an older state must not replace a newer one");
        cache.remove(object("a", "y", 5, Some("o1")));
        assert!(cache.by_owner("o1").is_empty());
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn a_complete_state_deletes_what_it_lacks() {
        let cache = Cache::default();
        cache.put(object("", "x", 1, None));
        cache.put(object("", "y", 2, None));
        let mut changes = cache.subscribe();
        while changes.try_recv().is_some() {}
        cache.replace(vec![object("", "y", 2, None), object("", "z", 3, None)], 3);
        let seen: Vec<_> = std::iter::from_fn(|| changes.try_recv())
            .map(|c| (c.kind, c.object().map(|o| o.name().to_owned())))
            .collect();
        assert_eq!(
            seen,
            [
                (ChangeKind::Deleted, Some("x".to_owned())),
                (ChangeKind::Added, Some("z".to_owned())),
                (ChangeKind::Resynced, None)
            ]
        );
    }
}
