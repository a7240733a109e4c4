//! Changes on their way to one consumer: a queue per subscriber, coalesced by key, so that nothing is
//! lost and a slow consumer costs at most one entry per object.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{Cached, ObjectKey};

/// What happened to an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeKind {
    /// It is new to this subscriber.
    Added,
    /// It was there and is different now; it is the same object. (What was deleted and made again before the
    /// subscriber looked comes as [`Self::Deleted`] and [`Self::Added`].)
    Modified,
    /// It is gone; `old` is its last state.
    Deleted,
    /// The cache holds a complete state: after the first synchronisation and after each repeated one.
    /// Neither `new` nor `old` is set.
    Resynced,
}

/// One change, possibly several coalesced into one.
#[derive(Clone, Debug)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The newest state, unless deleted.
    pub new: Option<Cached>,
    /// The state this subscriber was last told of (for [`ChangeKind::Deleted`]: the last state there was).
    pub old: Option<Cached>,
}

impl Change {
    /// The object, whichever state there is.
    pub fn object(&self) -> Option<&Cached> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

#[derive(Default)]
struct Pending {
    order: VecDeque<ObjectKey>,
    changes: HashMap<ObjectKey, Change>,
    resynced: bool,
    closed: bool,
}

/// The sending side, held by the cache.
#[derive(Default)]
pub(crate) struct Mailbox {
    pending: Mutex<Pending>,
    notify: Notify,
}

impl Mailbox {
    pub(crate) fn push(&self, change: Change) {
        let Some(object) = change.object() else { return };
        let key = object.key().clone();
        let mut pending = self.pending.lock();
        let merged = match pending.changes.remove(&key) {
            Some(earlier) => merge(earlier, change),
            None => {
                pending.order.push_back(key.clone());
                change
            }
        };
        pending.changes.insert(key, merged);
        drop(pending);
        self.notify.notify_one();
    }

    fn take(&self) -> Option<Change> {
        let mut pending = self.pending.lock();
        if let Some(key) = pending.order.pop_front() {
            let change = pending.changes.remove(&key)?;
            let Some(made_again) = made_again(&change) else { return Some(change) };
            pending.changes.insert(key.clone(), made_again);
            pending.order.push_front(key);
            return Some(Change { kind: ChangeKind::Deleted, new: None, old: change.old });
        }
        std::mem::take(&mut pending.resynced).then_some(Change {
            kind: ChangeKind::Resynced,
            new: None,
            old: None,
        })
    }

    pub(crate) fn resynced(&self) {
        self.pending.lock().resynced = true;
        self.notify.notify_one();
    }

    pub(crate) fn close(&self) {
        self.pending.lock().closed = true;
        self.notify.notify_one();
    }
}

/// Two changes of one object as one.
fn merge(earlier: Change, later: Change) -> Change {
    use ChangeKind::{Added, Deleted, Modified, Resynced};
    let kind = match (earlier.kind, later.kind) {
        (_, Deleted) => Deleted,
        (Added, _) => Added,
        // Known to the subscriber before, deleted meanwhile, there again.
        (Modified | Deleted | Resynced, _) => Modified,
    };
    let old = match kind {
        Added => None,
        // A deleted object's last state says more than the one the subscriber knew, if it knew that object.
        Deleted if earlier.kind == Added || !are_two(&earlier.old, &later.old) => later.old.or(earlier.old),
        _ => earlier.old,
    };
    Change { kind, new: later.new, old }
}

/// Whether both are there, and are different objects of the same name.
fn are_two(old: &Option<Cached>, new: &Option<Cached>) -> bool {
    matches!((old, new), (Some(old), Some(new)) if old.uid() != new.uid())
}

/// Of a change from one object to another of its name: that this one came.
fn made_again(change: &Change) -> Option<Change> {
    let came = || Change { kind: ChangeKind::Added, new: change.new.clone(), old: None };
    are_two(&change.old, &change.new).then(came)
}

/// Changes of an informer's cache, starting with everything cached as [`ChangeKind::Added`]. Nothing is
/// lost; changes of one object that have not been received yet are coalesced.
pub struct Subscription {
    mailbox: Arc<Mailbox>,
}

impl Subscription {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox }
    }

    /// The next change; `None` when the informer has been stopped. Cancel safe.
    pub async fn recv(&mut self) -> Option<Change> {
        loop {
            // What arrives after this look leaves a permit with `notify`, so the wait below ends at once.
            let closed = self.mailbox.pending.lock().closed;
            match self.mailbox.take() {
                Some(change) => return Some(change),
                None if closed => return None,
                None => self.mailbox.notify.notified().await,
            }
        }
    }

    /// The next change if there is one now.
    pub fn try_recv(&mut self) -> Option<Change> {
        self.mailbox.take()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn of_uid(uid: &str, rv: u64) -> Cached {
        let text = format!(r#"{{"metadata":{{"name":"a","uid":"{uid}","resourceVersion":"{rv}"}}}}"#);
        Cached::new(Bytes::from(text)).unwrap()
    }

    fn object(rv: u64) -> Cached {
        of_uid("", rv)
    }

    fn change(kind: ChangeKind, new: Option<u64>, old: Option<u64>) -> Change {
        Change { kind, new: new.map(object), old: old.map(object) }
    }

    #[test]
    fn changes_of_one_object_coalesce() {
        use ChangeKind::{Added, Deleted, Modified};
        let table = [
            ((Added, Some(1), None), (Modified, Some(2), Some(1)), (Added, Some(2), None)),
            ((Added, Some(1), None), (Deleted, None, Some(2)), (Deleted, None, Some(2))),
            ((Modified, Some(2), Some(1)), (Modified, Some(3), Some(2)), (Modified, Some(3), Some(1))),
            ((Deleted, None, Some(2)), (Added, Some(3), None), (Modified, Some(3), Some(2))),
        ];
        for (first, second, expected) in table {
            let mailbox = Arc::new(Mailbox::default());
            mailbox.push(change(first.0, first.1, first.2));
            mailbox.push(change(second.0, second.1, second.2));
            let mut subscription = Subscription::new(mailbox);
            let got = subscription.try_recv().unwrap();
            let rv = |c: Option<Cached>| c.map(|c| c.resource_version());
            assert_eq!((got.kind, rv(got.new), rv(got.old)), expected);
            assert!(subscription.try_recv().is_none());
        }
    }

    /// Whoever knows an object hears that it is gone, however many of its name came and went meanwhile.
    #[test]
    fn what_was_made_again_is_another_object() {
        use ChangeKind::{Added, Deleted, Modified};
        let of = |kind, new: Option<(&str, u64)>, old: Option<(&str, u64)>| {
            let object = |(uid, rv)| of_uid(uid, rv);
            Change { kind, new: new.map(object), old: old.map(object) }
        };
        let mailbox = Arc::new(Mailbox::default());
        let mut subscription = Subscription::new(mailbox.clone());
        let mut got = || {
            let said = |c: Option<Cached>| c.map(|c| format!("{}{}", c.uid(), c.resource_version()));
            let change = subscription.try_recv()?;
            Some((change.kind, said(change.new), said(change.old)))
        };
        let (gone, came) = (
            |what: &str| Some((Deleted, None, Some(what.to_owned()))),
            |what: &str| Some((Added, Some(what.to_owned()), None)),
        );

        mailbox.push(of(Deleted, None, Some(("a", 2))));
        mailbox.push(of(Added, Some(("b", 3)), None));
        assert_eq!(got(), gone("a2"));
        mailbox.push(of(Modified, Some(("b", 4)), Some(("b", 3))));
        assert_eq!(got(), came("b4"));
        assert_eq!(got(), None);

        mailbox.push(of(Deleted, None, Some(("b", 5))));
        mailbox.push(of(Added, Some(("c", 6)), None));
        mailbox.push(of(Deleted, None, Some(("c", 7))));
        assert_eq!(got(), gone("b5"));
        assert_eq!(got(), None);

        mailbox.push(of(Modified, Some(("d", 9)), Some(("c", 8))));
        assert_eq!((got(), got(), got()), (gone("c8"), came("d9"), None));
    }
}
