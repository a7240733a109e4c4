//! Keeps the authorizers in step with the store: they are told each change of the kinds they decide by.
//!
//! A feed follows by itself, a moment behind the store. That moment shows: a node agent hears of its pod and asks
//! for the pod's ConfigMap before the Node authorizer heard that the pod is there; somebody uses a role that was
//! bound in the request before. So whoever is about to refuse [catches up](Feeds::catch_up) first.

use std::{
    collections::HashSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use yare_auth::{node, rbac};
use yare_store::{EventKind, Watcher};

use super::Auth;
use crate::{changes::Changes, core::Core, registry::store_kind};

const RBAC: &str = "rbac.authorization.k8s.io";

/// The feeds of a server; none until [`start`].
#[derive(Default)]
pub struct Feeds {
    list: OnceLock<Vec<Arc<Feed>>>,
    told: AtomicU64,
}

impl Feeds {
    /// How much the authorizers were told so far.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::Acquire)
    }

    /// Tells the authorizers all that is in the store now. `false`: they have not been told anything, by this or
    /// by others, after `since` was [told](Self::told).
    pub fn catch_up(&self, core: &Core, since: u64) -> bool {
        for feed in self.list.get().into_iter().flatten() {
            feed.catch_up(core);
        }
        self.told() != since
    }
}

/// One kind.
struct Feed {
    group: &'static str,
    plural: &'static str,
    kind: Arc<str>,
    position: Mutex<Position>,
}

/// How far the authorizers were told.
#[derive(Default)]
struct Position {
    /// None: start with the present state.
    watcher: Option<Watcher>,
    known: HashSet<Box<str>>,
}

/// Tells until the server stops. What is in the store already is told before this returns.
pub fn start(core: &Arc<Core>) {
    if core.config.auth.permissive {
        return;
    }
    let rbac = rbac::RESOURCES.into_iter().map(|plural| (RBAC, plural));
    let feeds = rbac.chain(node::RESOURCES).map(|(group, plural)| {
        let (kind, position) = (store_kind(group, plural), Mutex::default());
        Arc::new(Feed { group, plural, kind, position })
    });
    let feeds = core.config.auth.feeds.list.get_or_init(|| feeds.collect());
    for feed in feeds {
        feed.catch_up(core);
        tokio::spawn(feed.clone().follow(core.clone()));
    }
}

impl Feed {
    async fn follow(self: Arc<Self>, core: Arc<Core>) {
        // It only wakes: what is told is read from the position that all share.
        let mut changes = Changes::from_now(&core, [&*self.kind]);
        loop {
            self.catch_up(&core);
            if changes.next().await.is_none() {
                return;
            }
        }
    }

    fn catch_up(&self, core: &Core) {
        let mut position = self.position.lock();
        loop {
            let batch = match &mut position.watcher {
                Some(watcher) => watcher.ready(),
                None => {
                    self.take_in(core, &mut position);
                    match &mut position.watcher {
                        Some(watcher) => watcher.ready(),
                        // The store is closed.
                        None => return,
                    }
                }
            };
            match batch {
                Ok(Some(batch)) => {
                    for event in batch {
                        let object = (event.kind == EventKind::Put).then_some(&*event.object.bytes);
                        self.tell(core, &mut position, &event.object.key, object);
                    }
                }
                Ok(None) => return,
                // Fell out of the watch's history: start over from the present state.
                Err(_) if !core.stop.is_cancelled() => position.watcher = None,
                Err(_) => return,
            }
        }
    }

    fn tell(&self, core: &Core, position: &mut Position, key: &str, object: Option<&[u8]>) {
        if object.is_none() {
            position.known.remove(key);
        } else if !position.known.contains(key) {
            position.known.insert(key.into());
        }
        let auth: &Auth = &core.config.auth;
        if self.group == RBAC {
            auth.rbac.apply(self.plural, key, object);
        } else {
            let began = Instant::now();
            auth.nodes.apply(self.plural, key, object);
            auth.metrics.node_graph(self.plural, object.is_some(), began.elapsed());
        }
        // After: whoever reads this number decides by what was told.
        auth.feeds.told.fetch_add(1, Ordering::Release);
    }

    /// Tells all of the kind's present state, and watches from there.
    fn take_in(&self, core: &Core, position: &mut Position) {
        let snapshot = core.store().snapshot(&self.kind);
        for gone in std::mem::take(&mut position.known) {
            if snapshot.get(&gone).is_none() {
                self.tell(core, position, &gone, None);
            }
        }
        for object in snapshot.range(std::ops::Bound::Unbounded, "") {
            self.tell(core, position, &object.key, Some(&object.bytes));
        }
        position.watcher = core.store().watch(&self.kind, snapshot.revision()).ok();
    }
}
