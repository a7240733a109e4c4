//! Changes of claims for devices, classes and slices: taken into the cluster's state, and told to pods that may be
//! placed because of them.

use tokio::time::Instant;
use yare_client::{
    Change, Client, DEVICE_CLASSES, DEVICE_TAINT_RULES, RESOURCE_CLAIMS, RESOURCE_SLICES, ViewError,
};
use yare_schema::features::Gates;

use crate::{
    devices::{bind::Work, state::ClaimChange},
    plugins::Events,
    scheduler::State,
    watched::Watched,
};

/// What changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Claim,
    Class,
    Slice,
    TaintRule,
}

/// All that is watched for devices: nothing where they are not dynamic.
pub(crate) fn watched(client: &Client, gates: &Gates) -> Watched<Kind> {
    if !gates.is_on("DynamicResourceAllocation") {
        return Watched::new(client, []);
    }
    let mut kinds =
        vec![(Kind::Claim, RESOURCE_CLAIMS), (Kind::Class, DEVICE_CLASSES), (Kind::Slice, RESOURCE_SLICES)];
    if gates.is_on("DRADeviceTaintRules") {
        kinds.push((Kind::TaintRule, DEVICE_TAINT_RULES));
    }
    Watched::new(client, kinds)
}

impl State {
    /// Takes in a change, and wakes the pods for which it may make a difference.
    pub(crate) fn devices_changed(&mut self, kind: Kind, change: &Change) {
        let taken = match kind {
            Kind::Claim => self.claim_changed(change),
            Kind::Class => self.class_changed(change),
            Kind::Slice => self.slice_changed(change),
            Kind::TaintRule => self.taint_rule_changed(change),
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
        let made_for = devices.claim(&key).and_then(|claim| claim.extended_for.clone());
        let concerns =
            |work: &&Work| work.uses(&key) || made_for.as_deref().is_some_and(|p| work.makes_for(p));
        for work in self.reserving.values().filter(concerns) {
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

    /// To pods that wait a rule is a change of the slices whose devices it selects.
    fn taint_rule_changed(&mut self, change: &Change) -> Result<Events, ViewError> {
        let devices = &mut self.cluster.devices;
        let changed = match (&change.new, &change.old) {
            (Some(new), _) => devices.set_rule(new)?,
            (None, Some(old)) => devices.remove_rule(old.name()),
            (None, None) => false,
        };
        Ok(if changed { Events::RESOURCE_SLICE } else { Events::NONE })
    }
}
