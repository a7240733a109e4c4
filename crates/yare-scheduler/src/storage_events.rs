//! Changes of claims, volumes and what CSI drivers say: taken into the cluster's state, and told to pods that
//! may be placed because of them.

use tokio::time::Instant;
use yare_client::{
    CSI_DRIVERS, CSI_NODES, CSI_STORAGE_CAPACITIES, Change, Client, PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES, STORAGE_CLASSES, VOLUME_ATTACHMENTS, ViewError,
};

use crate::{plugins::Events, scheduler::State, watched::Watched};

/// What changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Claim,
    Volume,
    Class,
    CsiNode,
    Driver,
    Capacity,
    Attachment,
}

/// All that is watched for volumes.
pub(crate) fn watched(client: &Client) -> Watched<Kind> {
    Watched::new(
        client,
        [
            (Kind::Claim, PERSISTENT_VOLUME_CLAIMS),
            (Kind::Volume, PERSISTENT_VOLUMES),
            (Kind::Class, STORAGE_CLASSES),
            (Kind::CsiNode, CSI_NODES),
            (Kind::Driver, CSI_DRIVERS),
            (Kind::Capacity, CSI_STORAGE_CAPACITIES),
            (Kind::Attachment, VOLUME_ATTACHMENTS),
        ],
    )
}

impl State {
    /// Takes in a change, and wakes the pods for which it may make a difference.
    pub(crate) fn storage_changed(&mut self, kind: Kind, change: Change) {
        let Some(key) = change.object().map(|o| o.key().clone()) else { return };
        match kind {
            Kind::Claim => {
                let waiting = self.waiting.values().filter(|w| w.decision.claims().any(|c| *c == key));
                waiting.for_each(|w| w.told.notify_one());
            }
            Kind::Volume => self.waiting.values().for_each(|w| w.told.notify_one()),
            _ => {}
        }
        let events = match self.take_in(kind, &change) {
            Ok(events) => events,
            Err(error) => return tracing::warn!(%error, "object of storage cannot be read"),
        };
        if events == Events::NONE {
            return;
        }
        let claim = kind == Kind::Claim;
        self.queue.event_for(events, Instant::now(), |pod| {
            if claim { pod.uses_claim(&key) } else { !pod.claims.is_empty() }
        });
    }

    /// Which events the change stands for.
    fn take_in(&mut self, kind: Kind, change: &Change) -> Result<Events, ViewError> {
        let storage = &mut self.cluster.storage;
        let Some(new) = &change.new else {
            let Some(old) = &change.old else { return Ok(Events::NONE) };
            match kind {
                Kind::Claim => storage.remove_claim(old.key()),
                Kind::Volume => storage.remove_volume(old.name()),
                Kind::Class => storage.remove_class(old.name()),
                Kind::CsiNode => storage.remove_csi_node(old.name()),
                Kind::Driver => storage.remove_driver(old.name()),
                Kind::Capacity => storage.remove_capacity(old.key()),
                Kind::Attachment => {
                    storage.remove_attachment(old.name());
                    return Ok(Events::DETACHED);
                }
            }
            return Ok(Events::NONE);
        };
        let (helps, events) = match kind {
            Kind::Claim => (storage.set_claim(new.clone()).map(|()| true)?, Events::CLAIM),
            Kind::Volume => (storage.set_volume(new.clone()).map(|()| true)?, Events::VOLUME),
            Kind::Class => (storage.set_class(new)?, Events::STORAGE_CLASS),
            Kind::CsiNode => (storage.set_csi_node(new)?, Events::CSI_NODE),
            Kind::Driver => (storage.set_driver(new)?, Events::CSI_DRIVER),
            Kind::Capacity => (storage.set_capacity(new)?, Events::CSI_CAPACITY),
            Kind::Attachment => (storage.set_attachment(new).map(|()| false)?, Events::NONE),
        };
        Ok(if helps { events } else { Events::NONE })
    }
}
