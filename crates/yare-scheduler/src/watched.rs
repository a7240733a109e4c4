//! Several resources that are watched together, each change with what it is a change of.

use yare_client::{Change, Client, Informer, Resource, Subscription};

/// Changes of resources, told apart by `K`.
pub(crate) struct Watched<K> {
    informers: Vec<Informer>,
    changes: Vec<(K, Subscription)>,
}

impl<K: Copy> Watched<K> {
    /// Begins to watch.
    pub(crate) fn new(client: &Client, resources: impl IntoIterator<Item = (K, Resource)>) -> Self {
        let (mut informers, mut changes) = (Vec::new(), Vec::new());
        for (kind, resource) in resources {
            let informer = client.informers().of(resource);
            changes.push((kind, informer.subscribe()));
            informers.push(informer);
        }
        Self { informers, changes }
    }

    /// Returns when all of it is known.
    pub(crate) async fn synced(&self) {
        futures::future::join_all(self.informers.iter().map(Informer::synced)).await;
    }

    /// The next change if there is one now.
    pub(crate) fn try_recv(&mut self) -> Option<(K, Change)> {
        self.changes.iter_mut().find_map(|(kind, changes)| Some((*kind, changes.try_recv()?)))
    }

    /// The next change; never one where nothing is watched. Cancel safe.
    pub(crate) async fn recv(&mut self) -> Option<(K, Change)> {
        if self.changes.is_empty() {
            return futures::future::pending().await;
        }
        let next = self.changes.iter_mut().map(|(kind, changes)| {
            Box::pin(async move { changes.recv().await.map(|change| (*kind, change)) })
        });
        futures::future::select_all(next).await.0
    }
}
