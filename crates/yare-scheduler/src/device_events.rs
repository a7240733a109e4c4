//! Changes of claims for devices, classes and slices: taken into the cluster's state, and told to pods that may be
//! placed because of them.

use tokio::time::Instant;
use yare_client::{
    Change, Client, DEVICE_CLASSES, Informer, RESOURCE_CLAIMS, RESOURCE_SLICES, Subscription, ViewError,
};

use crate::{devices::state::ClaimChange, plugins::Events, scheduler::State};

/// What changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Claim,
    Class,
    Slice,
}

/// All that is watched for devices.
pub(crate) struct DeviceEvents {
    informers: Vec<Informer>,
    changes: [(Kind, Subscription); 3],
}

impl DeviceEvents {
    /// Begins to watch.
    pub(crate) fn new(client: &Client) -> Self {
        let informers =
            [(Kind::Claim, RESOURCE_CLAIMS), (Kind::Class, DEVICE_CLASSES), (Kind::Slice, RESOURCE_SLICES)]
                .map(|(kind, resource)| (kind, client.informers().of(resource)));
        Self {
            changes: informers.each_ref().map(|(kind, informer)| (*kind, informer.subscribe())),
            informers: informers.map(|(_, informer)| informer).into(),
        }
    }

    /// Returns when all of it is known.
    pub(crate) async fn synced(&self) {
        futures::future::join_all(self.informers.iter().map(Informer::synced)).await;
    }

    /// The next change if there is one now.
    pub(crate) fn try_recv(&mut self) -> Option<(Kind, Change)> {
        self.changes.iter_mut().find_map(|(kind, changes)| Some((*kind, changes.try_recv()?)))
    }

    /// The next change. Cancel safe.
    pub(crate) async fn recv(&mut self) -> Option<(Kind, Change)> {
        let next = self.changes.iter_mut().map(|(kind, changes)| {
            let kind = *kind;
            Box::pin(async move { changes.recv().await.map(|change| (kind, change)) })
        });
        futures::future::select_all(next).await.0
    }
}

impl State {
    /// Takes in a change, and wakes the pods for which it may make a difference.
    pub(crate) fn devices_changed(&mut self, kind: Kind, change: &Change) {
        let taken = match kind {
            Kind::Claim => self.claim_changed(change),
            Kind::Class => self.class_changed(change),
            Kind::Slice => self.slice_changed(change),
        };
        match taken {
            Ok(Events::NONE) => {}
            Ok(events) => self.queue.event_for(events, Instant::now(), |pod| pod.needs_devices()),
            Err(error) => tracing::warn!(%error, "object of devices cannot be read"),
        }
    }

    fn claim_changed(&mut self, change: &Change) -> Result<Events, ViewError> {
        let devices = &mut self.cluster.devices;
        let Some(new) = &change.new else {
            let freed = change.old.as_ref().is_some_and(|old| devices.remove_claim(old.key()));
            return Ok(if freed { Events::DEVICES_FREED } else { Events::NONE });
        };
        let key = new.key().clone();
        let ClaimChange { freed, itself } = devices.set_claim(new.clone())?;
        for work in self.reserving.values().filter(|work| work.uses(&key)) {
            work.told.notify_one();
        }
        if itself {
            let now = Instant::now();
            let cluster = &self.cluster;
            self.queue
                .release(now, |pod| pod.uses_resource_claim(&key) && cluster.lacks_claims(pod).is_none());
            self.queue.event_for(Events::RESOURCE_CLAIM, now, |pod| pod.uses_resource_claim(&key));
        }
        Ok(if freed { Events::DEVICES_FREED } else { Events::NONE })
    }

    fn class_changed(&mut self, change: &Change) -> Result<Events, ViewError> {
        match (&change.new, &change.old) {
            (Some(new), _) => {
                self.cluster.devices.set_class(new)?;
                return Ok(Events::DEVICE_CLASS);
            }
            (None, Some(old)) => self.cluster.devices.remove_class(old.name()),
            (None, None) => {}
        }
        Ok(Events::NONE)
    }

    fn slice_changed(&mut self, change: &Change) -> Result<Events, ViewError> {
        match (&change.new, &change.old) {
            (Some(new), _) => {
                self.cluster.devices.set_slice(new)?;
                return Ok(Events::RESOURCE_SLICE);
            }
            (None, Some(old)) => self.cluster.devices.remove_slice(old.name()),
            (None, None) => {}
        }
        Ok(Events::NONE)
    }
}
