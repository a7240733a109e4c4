//! ConfigMaps, Secrets and other objects that pods refer to, each watched by name while a pod needs it.
//!
//! In: a reference and the pod that needs it. Out: the object's newest state; when it changes, the pods that
//! asked are woken. A node may read only what its own pods name, hence one watch per object and not per kind.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::task::AbortHandle;
use yare_client::{Client, Informer, ObjectKey, Resource, Selection};

use crate::pod::mailbox::Mailbox;

/// How long a start waits for the first state of an object.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    resource: Resource,
    selection: Selection,
}

pub(crate) struct Objects {
    client: Client,
    entries: Mutex<HashMap<Key, Arc<Entry>>>,
}

struct Entry {
    informer: Informer,
    listeners: Arc<Mutex<HashMap<String, Arc<Mailbox>>>>,
    task: AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why an object could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It does not exist.
    NotFound(String),
    /// It could not be read in time, or not decoded.
    Unavailable(String),
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Missing::NotFound(text) | Missing::Unavailable(text) => f.write_str(text),
        }
    }
}

impl Objects {
    pub(crate) fn new(client: Client) -> Self {
        Objects { client, entries: Mutex::default() }
    }

    /// The object, and from now on wake-ups of `mailbox` (of the pod `uid`) when it changes.
    pub(crate) async fn get<V: DeserializeOwned>(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        uid: &str,
        mailbox: &Arc<Mailbox>,
    ) -> Result<V, Missing> {
        let entry = self.entry(resource, selection(resource, namespace, name));
        entry.listeners.lock().insert(uid.to_owned(), mailbox.clone());
        let kind = resource.kind.to_lowercase();
        if tokio::time::timeout(SYNC_TIMEOUT, entry.informer.synced()).await.is_err() {
            let text = format!("failed to sync {kind} cache: timed out waiting for the condition");
            return Err(Missing::Unavailable(text));
        }
        let key =
            if resource.namespaced { ObjectKey::new(namespace, name) } else { ObjectKey::cluster(name) };
        let Some(cached) = entry.informer.get(&key) else {
            return Err(Missing::NotFound(format!("{kind} {name:?} not found")));
        };
        cached.view().map_err(|e| Missing::Unavailable(format!("{kind} {namespace}/{name}: {e}")))
    }

    /// All objects of a kind (those with these fields, `key=value`), and from now on wake-ups of `mailbox` (of the
    /// pod `uid`) when one of them changes.
    pub(crate) fn follow(
        &self,
        resource: Resource,
        fields: Option<String>,
        uid: &str,
        mailbox: &Arc<Mailbox>,
    ) -> Informer {
        let entry = self.entry(&resource, Selection { fields, ..Selection::default() });
        entry.listeners.lock().insert(uid.to_owned(), mailbox.clone());
        entry.informer.clone()
    }

    /// All objects of a kind that a node may read whole.
    pub(crate) fn all(&self, resource: Resource) -> Informer {
        self.client.informers().of(resource)
    }

    /// Ends a pod's interest in everything.
    pub(crate) fn release(&self, uid: &str) {
        let gone: Vec<(Key, Arc<Entry>)> = {
            let mut entries = self.entries.lock();
            let unused: Vec<Key> = entries
                .iter()
                .filter(|(_, entry)| {
                    let mut listeners = entry.listeners.lock();
                    listeners.remove(uid);
                    listeners.is_empty()
                })
                .map(|(key, _)| key.clone())
                .collect();
            unused.into_iter().filter_map(|key| entries.remove(&key).map(|e| (key, e))).collect()
        };
        for (key, entry) in gone {
            drop(entry);
            self.client.informers().release(&key.resource, &key.selection);
        }
    }

    fn entry(&self, resource: &Resource, selection: Selection) -> Arc<Entry> {
        let key = Key { resource: resource.clone(), selection };
        let mut entries = self.entries.lock();
        entries
            .entry(key)
            .or_insert_with_key(|key| {
                let informer = self.client.informers().select(key.resource.clone(), key.selection.clone());
                let listeners: Arc<Mutex<HashMap<String, Arc<Mailbox>>>> = Arc::default();
                let mut changes = informer.subscribe();
                let told = listeners.clone();
                let task = tokio::spawn(async move {
                    while changes.recv().await.is_some() {
                        let all: Vec<_> = told.lock().values().cloned().collect();
                        for mailbox in all {
                            mailbox.wake();
                        }
                    }
                });
                Arc::new(Entry { informer, listeners, task: task.abort_handle() })
            })
            .clone()
    }
}

/// One object.
fn selection(resource: &Resource, namespace: &str, name: &str) -> Selection {
    Selection {
        namespace: resource.namespaced.then(|| namespace.to_owned()),
        labels: None,
        fields: Some(format!("metadata.name={name}")),
    }
}
