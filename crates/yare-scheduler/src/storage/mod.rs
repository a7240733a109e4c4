//! What the scheduler knows of storage: claims, volumes, classes and what CSI drivers say of themselves.
//!
//! Each object is kept as the few fields that placing a pod needs. A claim or volume may be *assumed*: a pod
//! was given a node, and what that means for its volumes is on its way to the API. An assumption holds until
//! the API tells something newer of the object, or until it is taken back.

pub mod bind;
mod objects;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use yare_client::{Cached, ObjectKey, ViewError};

pub use objects::{
    Attachment, Capacity, Claim, ClaimRef, Class, CsiNode, Driver, Topology, Volume, ZONE_LABELS,
};

/// What placing a pod means for its claims, on one node.
#[derive(Debug, Default, Clone)]
pub struct Decision {
    /// Claims that get a volume that is there.
    pub bind: Vec<(Arc<Claim>, Arc<Volume>)>,
    /// Claims for which a volume is to be made.
    pub provision: Vec<Arc<Claim>>,
}

impl Decision {
    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.bind.is_empty() && self.provision.is_empty()
    }

    /// The claims it is about.
    pub fn claims(&self) -> impl Iterator<Item = &ObjectKey> {
        self.bind.iter().map(|(claim, _)| claim).chain(&self.provision).map(|claim| claim.object.key())
    }
}

/// What the API says of an object, and what we decided meanwhile.
#[derive(Debug)]
struct Known<T> {
    said: Arc<T>,
    assumed: Option<Arc<T>>,
}

impl<T> Known<T> {
    fn now(&self) -> &Arc<T> {
        self.assumed.as_ref().unwrap_or(&self.said)
    }
}

/// Claims, volumes and what belongs to them.
#[derive(Debug, Default)]
pub struct Storage {
    claims: HashMap<ObjectKey, Known<Claim>>,
    volumes: HashMap<Box<str>, Known<Volume>>,
    /// Names of volumes by class.
    of_class: HashMap<Box<str>, BTreeSet<Box<str>>>,
    classes: HashMap<Box<str>, Arc<Class>>,
    csi_nodes: HashMap<Box<str>, CsiNode>,
    drivers: HashMap<Box<str>, Driver>,
    capacities: BTreeMap<ObjectKey, Capacity>,
    attachments: HashMap<Box<str>, Attachment>,
}

impl Storage {
    /// A claim, with what was decided for it.
    pub fn claim(&self, key: &ObjectKey) -> Option<&Arc<Claim>> {
        self.claims.get(key).map(Known::now)
    }

    /// A volume, with what was decided for it.
    pub fn volume(&self, name: &str) -> Option<&Arc<Volume>> {
        self.volumes.get(name).map(Known::now)
    }

    /// The volumes of a class, by name.
    pub fn volumes_of(&self, class: &str) -> impl Iterator<Item = &Arc<Volume>> {
        let names = self.of_class.get(class).into_iter().flatten();
        names.filter_map(|name| self.volume(name))
    }

    /// A class.
    pub fn class(&self, name: &str) -> Option<&Arc<Class>> {
        self.classes.get(name)
    }

    /// What CSI drivers say of a node.
    pub fn csi_node(&self, node: &str) -> Option<&CsiNode> {
        self.csi_nodes.get(node)
    }

    /// A CSI driver.
    pub fn driver(&self, name: &str) -> Option<&Driver> {
        self.drivers.get(name)
    }

    /// How much room drivers have, everywhere.
    pub fn capacities(&self) -> impl Iterator<Item = &Capacity> {
        self.capacities.values()
    }

    /// Attachments to a node.
    pub fn attachments_of(&self, node: &str) -> impl Iterator<Item = &Attachment> {
        self.attachments.values().filter(move |a| *a.node == *node)
    }

    /// Takes in a claim.
    pub fn set_claim(&mut self, object: Cached) -> Result<(), ViewError> {
        let claim = Arc::new(Claim::new(object)?);
        let key = claim.object.key().clone();
        let assumed = self.claims.remove(&key).and_then(|known| known.assumed);
        let assumed = assumed.filter(|a| same_version(&a.object, &claim.object));
        self.claims.insert(key, Known { said: claim, assumed });
        Ok(())
    }

    /// Forgets a claim.
    pub fn remove_claim(&mut self, key: &ObjectKey) {
        self.claims.remove(key);
    }

    /// Takes in a volume.
    pub fn set_volume(&mut self, object: Cached) -> Result<(), ViewError> {
        let volume = Arc::new(Volume::new(object)?);
        let name: Box<str> = volume.object.name().into();
        let before = self.volumes.remove(&name);
        if let Some(before) = &before
            && before.said.class != volume.class
        {
            self.forget_class(&before.said.class, &name);
        }
        let assumed = before.and_then(|known| known.assumed);
        let assumed = assumed.filter(|a| same_version(&a.object, &volume.object));
        self.of_class.entry(volume.class.clone()).or_default().insert(name.clone());
        self.volumes.insert(name, Known { said: volume, assumed });
        Ok(())
    }

    /// Forgets a volume.
    pub fn remove_volume(&mut self, name: &str) {
        if let Some(known) = self.volumes.remove(name) {
            self.forget_class(&known.said.class, name);
        }
    }

    fn forget_class(&mut self, class: &str, volume: &str) {
        if let Some(names) = self.of_class.get_mut(class) {
            names.remove(volume);
            if names.is_empty() {
                self.of_class.remove(class);
            }
        }
    }

    /// Takes in a class; whether that may let a pod be placed that could not be before.
    pub fn set_class(&mut self, object: &Cached) -> Result<bool, ViewError> {
        let class = Arc::new(Class::new(object)?);
        let before = self.classes.insert(object.name().into(), class.clone());
        Ok(before.is_none_or(|b| b.allowed_topologies != class.allowed_topologies))
    }

    /// Forgets a class.
    pub fn remove_class(&mut self, name: &str) {
        self.classes.remove(name);
    }

    /// Takes in what drivers say of a node; whether there is more room than before.
    pub fn set_csi_node(&mut self, object: &Cached) -> Result<bool, ViewError> {
        let node = CsiNode::new(object)?;
        let helps = self.csi_nodes.get(object.name()).is_none_or(|before| node.offers_more_than(before));
        self.csi_nodes.insert(object.name().into(), node);
        Ok(helps)
    }

    /// Forgets a node's drivers.
    pub fn remove_csi_node(&mut self, name: &str) {
        self.csi_nodes.remove(name);
    }

    /// Takes in a driver; whether its room does not have to be asked for any more.
    pub fn set_driver(&mut self, object: &Cached) -> Result<bool, ViewError> {
        let driver = Driver::new(object)?;
        let before = self.drivers.insert(object.name().into(), driver);
        Ok(before.is_some_and(|b| b.storage_capacity && !driver.storage_capacity))
    }

    /// Forgets a driver.
    pub fn remove_driver(&mut self, name: &str) {
        self.drivers.remove(name);
    }

    /// Takes in how much room there is; whether it is more than before.
    pub fn set_capacity(&mut self, object: &Cached) -> Result<bool, ViewError> {
        let capacity = Capacity::new(object)?;
        let limit = capacity.limit_bytes;
        let before = self.capacities.insert(object.key().clone(), capacity);
        Ok(before.is_none_or(|b| limit > b.limit_bytes))
    }

    /// Forgets how much room there is.
    pub fn remove_capacity(&mut self, key: &ObjectKey) {
        self.capacities.remove(key);
    }

    /// Takes in an attachment.
    pub fn set_attachment(&mut self, object: &Cached) -> Result<(), ViewError> {
        self.attachments.insert(object.name().into(), Attachment::new(object)?);
        Ok(())
    }

    /// Forgets an attachment.
    pub fn remove_attachment(&mut self, name: &str) {
        self.attachments.remove(name);
    }

    /// Counts a decision as if it were written already.
    pub fn assume(&mut self, decision: &Decision, node: &str) {
        for (claim, volume) in &decision.bind {
            if let Some(known) = self.volumes.get_mut(volume.object.name()) {
                known.assumed = Some(Arc::new(volume.bound_to(claim)));
            }
        }
        for claim in &decision.provision {
            if let Some(known) = self.claims.get_mut(claim.object.key()) {
                known.assumed = Some(Arc::new(claim.selected(node)));
            }
        }
    }

    /// Takes back what [`Self::assume`] did.
    pub fn restore(&mut self, decision: &Decision) {
        for (_, volume) in &decision.bind {
            if let Some(known) = self.volumes.get_mut(volume.object.name()) {
                known.assumed = None;
            }
        }
        for claim in &decision.provision {
            if let Some(known) = self.claims.get_mut(claim.object.key()) {
                known.assumed = None;
            }
        }
    }
}

/// What was assumed of an object holds for this version of it only.
fn same_version(assumed: &Cached, said: &Cached) -> bool {
    assumed.uid() == said.uid() && assumed.resource_version() >= said.resource_version()
}
