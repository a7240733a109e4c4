//! The garbage collector: deletes what has lost its last owner, and carries out foreground and orphaning
//! deletions.
//!
//! The graph of ownership is not built a second time: every informer indexes its objects by owner, so the
//! dependents of an object are one look-up per resource. Resources come from discovery, custom ones
//! included, and are watched as metadata's bytes that the API server holds anyway. What an event only
//! suggests is verified against the server before anything is deleted.

mod collect;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use yare_client::{
    API_SERVICES, CUSTOM_RESOURCE_DEFINITIONS, Cached, Change, Informer, ObjectKey, OwnerRef, Queue, Resource,
};

use crate::{
    context::{Context, Error},
    discovery::discover,
    harness::{Next, Reconcile, group_of},
};

/// Workers on the queue.
const WORKERS: usize = 8;
/// How long the first look at a resource may take before the others go on without it.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);
/// Discovery changes a moment after the CustomResourceDefinition does.
const SETTLE: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(3)];
/// Discovery is repeated after this time even if nothing was told.
const REDISCOVER: Duration = Duration::from_secs(300);
/// Owners known to be gone that are remembered.
const ABSENT_MAX: usize = 4096;
/// Waits for dependents to go first.
const FOREGROUND: &str = "foregroundDeletion";
/// Waits for dependents to be let go.
const ORPHAN: &str = "orphan";

/// Group and kind.
type GroupKind = (Box<str>, Box<str>);

/// One object, whichever its resource.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Item {
    kind: GroupKind,
    key: ObjectKey,
    uid: Box<str>,
}

/// What may have to be done about an object.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Work {
    /// Delete it if no owner is left; or finish its foreground deletion.
    Collect(Item),
    /// Let its dependents go.
    Orphan(Item),
}

/// One watched resource.
struct Monitor {
    resource: Resource,
    informer: Informer,
    task: tokio::task::AbortHandle,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What workers and monitors share.
struct Shared {
    context: Context,
    monitors: RwLock<HashMap<GroupKind, Monitor>>,
    queue: Queue<Work>,
    /// Owners (uid, kind, namespace and name) that the server did not have.
    absent: Mutex<HashSet<String>>,
    ready: watch::Sender<bool>,
}

struct GarbageCollector {
    shared: Arc<Shared>,
}

/// The controller; it has no keys of its own, see [`Reconcile::background`].
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(GarbageCollector {
        shared: Arc::new(Shared {
            context: context.clone(),
            monitors: RwLock::default(),
            queue: Queue::new(),
            absent: Mutex::default(),
            ready: watch::Sender::new(false),
        }),
    })
}

#[async_trait]
impl Reconcile for GarbageCollector {
    async fn reconcile(&self, _: &ObjectKey) -> Result<Next, Error> {
        Ok(Next::Done)
    }

    async fn background(&self, _: Queue<ObjectKey>, stop: CancellationToken) {
        let shared = &self.shared;
        let definitions =
            [CUSTOM_RESOURCE_DEFINITIONS, API_SERVICES].map(|r| shared.context.informer(r).subscribe());
        let [mut crds, mut services] = definitions;
        let mut workers = JoinSet::new();
        loop {
            shared.refresh().await;
            if workers.is_empty() {
                shared.first_sync().await;
                shared.ready.send_replace(true);
                for _ in 0..WORKERS {
                    workers.spawn(shared.clone().work());
                }
            }
            tokio::select! {
                Some(_) = crds.recv() => {}
                Some(_) = services.recv() => {}
                () = tokio::time::sleep(REDISCOVER) => continue,
                () = stop.cancelled() => break,
            }
            for settle in SETTLE {
                tokio::time::sleep(settle).await;
                while crds.try_recv().is_some() || services.try_recv().is_some() {}
                shared.refresh().await;
            }
        }
        shared.queue.close();
        while workers.join_next().await.is_some() {}
        shared.monitors.write().clear();
    }
}

impl Shared {
    /// Watches what is served now, and stops watching what no longer is.
    async fn refresh(self: &Arc<Self>) {
        let found = match discover(&self.context.api).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "garbage collection goes on with the resources known so far");
                return;
            }
        };
        let mut served: HashMap<GroupKind, Resource> = HashMap::new();
        for s in found.resources {
            let ignored = s.resource.plural == "events" && matches!(&*s.resource.group, "" | "events.k8s.io");
            if !ignored && s.supports(&["delete", "list", "watch"]) {
                served.insert(group_kind(&s.resource), s.resource);
            }
        }
        let mut monitors = self.monitors.write();
        // What could not be discovered just now may be back any moment.
        if found.failed.is_empty() {
            let gone: Vec<GroupKind> = monitors
                .iter()
                .filter(|(kind, m)| served.get(*kind) != Some(&m.resource))
                .map(|(k, _)| k.clone())
                .collect();
            for kind in gone {
                if let Some(monitor) = monitors.remove(&kind) {
                    self.context.client.informers().forget(&monitor.resource);
                }
            }
        }
        for (kind, resource) in served {
            monitors.entry(kind.clone()).or_insert_with(|| {
                let informer = self.context.informer(resource.clone());
                let task = tokio::spawn(self.clone().monitor(kind, informer.clone())).abort_handle();
                Monitor { resource, informer, task }
            });
        }
    }

    /// An incomplete graph must not decide that owners are gone. (The server is asked anyway, but for
    /// every object.)
    async fn first_sync(&self) {
        let informers: Vec<Informer> = self.monitors.read().values().map(|m| m.informer.clone()).collect();
        let all = async {
            for informer in &informers {
                informer.synced().await;
            }
        };
        if tokio::time::timeout(SYNC_TIMEOUT, all).await.is_err() {
            tracing::warn!("garbage collection starts though not all resources could be listed yet");
        }
    }

    async fn monitor(self: Arc<Self>, kind: GroupKind, informer: Informer) {
        let mut ready = self.ready.subscribe();
        if ready.wait_for(|r| *r).await.is_err() {
            return;
        }
        let mut changes = informer.subscribe();
        drop(informer);
        while let Some(change) = changes.recv().await {
            self.changed(&kind, &change);
        }
    }

    fn add(&self, kind: &GroupKind, object: &Cached) {
        self.queue.add(Work::Collect(item(kind, object)));
    }

    /// Queues what a change may have made superfluous.
    fn changed(&self, kind: &GroupKind, change: &Change) {
        let Some(object) = &change.new else {
            let Some(old) = &change.old else { return };
            for (kind, dependent) in self.dependents(old.uid()) {
                self.add(&kind, &dependent);
            }
            self.wake_owners(old, |_| true);
            return;
        };
        if let Some(old) = &change.old {
            // An owner that waits for this object waits no longer if the reference is gone or harmless.
            self.wake_owners(old, |owner| {
                !object.owners().iter().any(|o| o.uid == owner.uid && o.block_owner_deletion)
            });
        }
        if object.deletion_timestamp().is_some() {
            if object.has_finalizer(ORPHAN) {
                self.queue.add(Work::Orphan(item(kind, object)));
                return;
            }
            if object.has_finalizer(FOREGROUND) {
                for (kind, dependent) in self.dependents(object.uid()) {
                    self.add(&kind, &dependent);
                }
                self.add(kind, object);
            }
            return;
        }
        let same_owners = change.old.as_ref().is_some_and(|old| old.owners() == object.owners());
        if !same_owners && object.owners().iter().any(|o| !self.is_alive(object, o)) {
            self.add(kind, object);
        }
    }

    /// Queues the owners of `object` that are being deleted in the foreground.
    fn wake_owners(&self, object: &Cached, which: impl Fn(&OwnerRef) -> bool) {
        for owner in object.owners().iter().filter(|o| o.block_owner_deletion && which(o)) {
            if let Some((kind, owner)) =
                self.owner(object, owner).filter(|(_, o)| o.deletion_timestamp().is_some())
            {
                self.add(&kind, &owner);
            }
        }
    }

    /// Everything with a reference to `uid`.
    fn dependents(&self, uid: &str) -> Vec<(GroupKind, Cached)> {
        let monitors = self.monitors.read();
        monitors
            .iter()
            .flat_map(|(kind, m)| m.informer.by_owner(uid).into_iter().map(|o| (kind.clone(), o)))
            .collect()
    }

    /// The owner that a reference means, as far as the cache knows it.
    fn owner(&self, object: &Cached, owner: &OwnerRef) -> Option<(GroupKind, Cached)> {
        let kind: GroupKind = (group_of(&owner.api_version).into(), owner.kind.clone());
        let monitors = self.monitors.read();
        let monitor = monitors.get(&kind)?;
        let namespace = if monitor.resource.namespaced { object.namespace() } else { "" };
        let found = monitor.informer.get(&ObjectKey::new(namespace, &owner.name))?;
        (found.uid() == &*owner.uid).then_some((kind, found))
    }

    fn is_alive(&self, object: &Cached, owner: &OwnerRef) -> bool {
        self.owner(object, owner).is_some_and(|(_, o)| o.deletion_timestamp().is_none())
    }

    fn resource(&self, kind: &GroupKind) -> Option<Resource> {
        self.monitors.read().get(kind).map(|m| m.resource.clone())
    }

    /// Remembers that an owner is gone for good: uids never come back.
    fn remember_absent(&self, owner: String) {
        let mut absent = self.absent.lock();
        if absent.len() >= ABSENT_MAX {
            absent.clear();
        }
        absent.insert(owner);
    }
}

fn item(kind: &GroupKind, object: &Cached) -> Item {
    Item { kind: kind.clone(), key: object.key().clone(), uid: object.uid().into() }
}

fn group_kind(resource: &Resource) -> GroupKind {
    (resource.group.as_ref().into(), resource.kind.as_ref().into())
}
