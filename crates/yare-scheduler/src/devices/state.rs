//! What the scheduler knows of devices: claims, classes, slices, and allocations that are on their way to the API.

use std::{collections::HashMap, sync::Arc, sync::OnceLock};

use parking_lot::Mutex;
use yare_client::{Cached, ObjectKey, ViewError};
use yare_schema::features::Gates;

use super::{
    allocator::{Features, World},
    claim::Claim,
    extended::Resources,
    programs::Programs,
    requests::{ClaimSpec, Class},
    rules::Rules,
    slices::Slices,
    taken::{Holding, Taken},
    types::Slice,
};

/// A claim, and what was decided for it.
#[derive(Debug)]
struct Known {
    said: Arc<Claim>,
    /// What it asks for, read when a pod first wants it; it never changes.
    spec: Arc<OnceLock<Arc<ClaimSpec>>>,
    assumed: Option<Assumed>,
}

/// An allocation that was decided. It counts until the API tells of it.
#[derive(Debug)]
struct Assumed {
    holdings: Vec<Holding>,
    /// The claim's version with it, once it is written.
    written: Option<u64>,
}

/// What a change of a claim means to pods that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClaimChange {
    /// Devices have become free.
    pub freed: bool,
    /// It is new, or its status is.
    pub itself: bool,
}

/// Claims, classes and slices.
#[derive(Debug)]
pub struct Devices {
    features: Features,
    programs: Mutex<Programs>,
    claims: HashMap<ObjectKey, Known>,
    classes: HashMap<Box<str>, Arc<Class>>,
    slices: Slices,
    taken: Taken,
    /// Taints that administrators put on devices.
    rules: Rules,
    /// Which class stands for which extended resource.
    resources: Resources,
    /// Claims that were made for extended resources, by the pod's uid.
    extended: HashMap<Box<str>, ObjectKey>,
    /// What was decided for such claims that are not known yet, by the pod's uid.
    coming: HashMap<Box<str>, Vec<Holding>>,
}

impl Default for Devices {
    fn default() -> Self {
        Self::new(&Gates::default())
    }
}

impl Devices {
    /// Nothing yet; the features decide what may be used.
    pub fn new(gates: &Gates) -> Self {
        Self {
            features: Features::new(gates),
            programs: Mutex::new(Programs::new(gates.clone())),
            claims: HashMap::new(),
            classes: HashMap::new(),
            slices: Slices::default(),
            taken: Taken::default(),
            rules: Rules::default(),
            resources: Resources::default(),
            extended: HashMap::new(),
            coming: HashMap::new(),
        }
    }

    /// What may be used.
    pub fn features(&self) -> Features {
        self.features
    }

    /// What devices are allocated from.
    pub fn world(&self) -> World<'_> {
        let Self { slices, classes, taken, rules, features, .. } = self;
        World { slices, classes, taken, rules, features: *features }
    }

    /// A claim as the API says.
    pub fn claim(&self, key: &ObjectKey) -> Option<&Arc<Claim>> {
        self.claims.get(key).map(|known| &known.said)
    }

    /// What a claim asks for.
    pub fn spec(&self, key: &ObjectKey) -> Result<Option<Arc<ClaimSpec>>, ViewError> {
        let Some(known) = self.claims.get(key) else { return Ok(None) };
        if let Some(spec) = known.spec.get() {
            return Ok(Some(spec.clone()));
        }
        let spec = Arc::new(ClaimSpec::read(&known.said.object, &mut self.programs.lock())?);
        Ok(Some(known.spec.get_or_init(|| spec).clone()))
    }

    /// Whether an allocation of the claim is on its way to the API.
    pub fn is_in_flight(&self, key: &ObjectKey) -> bool {
        self.claims.get(key).is_some_and(|known| known.assumed.is_some())
    }

    /// A class.
    pub fn class(&self, name: &str) -> Option<&Arc<Class>> {
        self.classes.get(name)
    }

    /// All classes.
    pub fn classes(&self) -> impl Iterator<Item = &Arc<Class>> {
        self.classes.values()
    }

    /// The class that stands for an extended resource.
    pub fn class_of_resource(&self, resource: &str) -> Option<&str> {
        self.resources.class(resource).filter(|_| self.features.extended)
    }

    /// The claim that was made for a pod's extended resources.
    pub fn extended_claim(&self, pod_uid: &str) -> Option<&Arc<Claim>> {
        self.claim(self.extended.get(pod_uid)?)
    }

    /// Counts what a pod's claim for extended resources will hold, once it is made.
    pub fn assume_extended(&mut self, pod_uid: &str, holdings: Vec<Holding>) {
        self.taken.add(&holdings);
        if let Some(before) = self.coming.insert(pod_uid.into(), holdings) {
            self.taken.remove(&before);
        }
    }

    /// Takes back what [`Self::assume_extended`] did, or it is told otherwise now; whether there was something.
    pub fn restore_extended(&mut self, pod_uid: &str) -> bool {
        let coming = self.coming.remove(pod_uid);
        if let Some(holdings) = &coming {
            self.taken.remove(holdings);
        }
        coming.is_some()
    }

    /// Takes in a claim.
    pub fn set_claim(&mut self, object: Cached) -> Result<ClaimChange, ViewError> {
        let claim = Arc::new(Claim::new(object)?);
        let key = claim.object.key().clone();
        self.taken.add(claim.holdings());
        if let Some(pod) = &claim.extended_for {
            self.extended.insert(pod.clone(), key.clone());
            if claim.allocation.is_some() {
                self.restore_extended(pod);
            }
        }
        let before = self.claims.remove(&key);
        let mut change = ClaimChange { freed: false, itself: true };
        let mut spec = Arc::default();
        let mut assumed = None;
        if let Some(before) = before {
            self.taken.remove(before.said.holdings());
            if before.said.object.uid() == claim.object.uid() {
                spec = before.spec;
                assumed = before.assumed;
                change.itself = status(&before.said.object) != status(&claim.object);
            } else if let Some(old) = before.assumed {
                self.taken.remove(&old.holdings);
            }
            change.freed = before.said.allocation.is_some() && claim.allocation.is_none();
        }
        // Once the API tells of it, or of what became of it, the assumption is over.
        let over = |a: &mut Assumed| {
            claim.allocation.is_some() || a.written.is_some_and(|v| claim.object.resource_version() >= v)
        };
        if let Some(told) = assumed.take_if(over) {
            self.taken.remove(&told.holdings);
        }
        self.claims.insert(key, Known { said: claim, spec, assumed });
        Ok(change)
    }

    /// Forgets a claim; whether devices have become free.
    pub fn remove_claim(&mut self, key: &ObjectKey) -> bool {
        let Some(known) = self.claims.remove(key) else { return false };
        self.taken.remove(known.said.holdings());
        if let Some(assumed) = &known.assumed {
            self.taken.remove(&assumed.holdings);
        }
        let mut freed = known.said.allocation.is_some() || known.assumed.is_some();
        if let Some(pod) = &known.said.extended_for
            && self.extended.get(pod) == Some(key)
        {
            self.extended.remove(pod);
            self.restore_extended(pod);
            // Its pod may be waiting for it to go.
            freed = true;
        }
        freed
    }

    /// Counts an allocation as if it were written already.
    pub fn assume(&mut self, key: &ObjectKey, holdings: Vec<Holding>) {
        if let Some(known) = self.claims.get_mut(key) {
            self.taken.add(&holdings);
            if let Some(before) = known.assumed.replace(Assumed { holdings, written: None }) {
                self.taken.remove(&before.holdings);
            }
        }
    }

    /// The allocation was written, and the claim has this version with it.
    pub fn settle(&mut self, key: &ObjectKey, version: u64) {
        let Some(known) = self.claims.get_mut(key) else { return };
        let Some(assumed) = &mut known.assumed else { return };
        assumed.written = Some(version);
        if known.said.object.resource_version() >= version
            && let Some(told) = known.assumed.take()
        {
            self.taken.remove(&told.holdings);
        }
    }

    /// Takes back what [`Self::assume`] did; whether there was something.
    pub fn restore(&mut self, key: &ObjectKey) -> bool {
        let assumed = self.claims.get_mut(key).and_then(|known| known.assumed.take());
        if let Some(assumed) = &assumed {
            self.taken.remove(&assumed.holdings);
        }
        assumed.is_some()
    }

    /// Takes in a class.
    pub fn set_class(&mut self, object: &Cached) -> Result<(), ViewError> {
        let class = Class::new(object, self.programs.get_mut())?;
        self.classes.insert(class.name.clone(), Arc::new(class));
        self.resources = Resources::new(self.classes.values());
        Ok(())
    }

    /// Forgets a class.
    pub fn remove_class(&mut self, name: &str) {
        self.classes.remove(name);
        self.resources = Resources::new(self.classes.values());
    }

    /// Takes in a slice.
    pub fn set_slice(&mut self, object: &Cached) -> Result<(), ViewError> {
        self.slices.set(Slice::new(object)?);
        Ok(())
    }

    /// Forgets a slice.
    pub fn remove_slice(&mut self, name: &str) {
        self.slices.remove(name);
    }

    /// Takes in a DeviceTaintRule; whether anything but its status is new.
    pub fn set_rule(&mut self, object: &Cached) -> Result<bool, ViewError> {
        self.rules.set(object)
    }

    /// Forgets a DeviceTaintRule; whether it was known.
    pub fn remove_rule(&mut self, name: &str) -> bool {
        self.rules.remove(name)
    }
}

/// The status of a claim, to see whether it changed.
fn status(claim: &Cached) -> Option<serde_json::Value> {
    #[derive(serde::Deserialize, Default)]
    #[serde(default)]
    struct View {
        status: Option<serde_json::Value>,
    }
    claim.view::<View>().ok().and_then(|view| view.status)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::devices::{
        extended::ANNOTATION,
        types::{DeviceId, PoolId},
    };

    fn claim(version: u64, device: Option<&str>) -> Cached {
        let mut out = json!({"metadata": {"name": "c", "namespace": "default", "uid": "u",
            "resourceVersion": version.to_string()}, "spec": {}, "status": {}});
        if let Some(device) = device {
            out["status"]["allocation"]["devices"]["results"] =
                json!([{"request": "r", "driver": "d", "pool": "p", "device": device}]);
        }
        Cached::new(Bytes::from(Value::to_string(&out))).unwrap()
    }

    fn id(name: &str) -> DeviceId {
        DeviceId { pool: PoolId { driver: "d".into(), pool: "p".into() }, device: name.into() }
    }

    fn assume(devices: &mut Devices) {
        let key = ObjectKey::new("default", "c");
        devices.assume(&key, vec![Holding { device: id("x"), share: None }]);
        assert!(devices.world().taken.has(&id("x")) && devices.is_in_flight(&key));
    }

    #[test]
    fn extended_resources_count_from_the_decision_on() {
        let holdings = || vec![Holding { device: id("x"), share: None }];
        let mut devices = Devices::default();
        let taken = |devices: &Devices| devices.world().taken.has(&id("x"));
        let own = |version: u64, device: Option<&str>| {
            let mut object: Value = serde_json::from_slice(claim(version, device).bytes()).unwrap();
            object["metadata"]["annotations"] = json!({ANNOTATION: "true"});
            object["metadata"]["ownerReferences"] =
                json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "pod", "controller": true}]);
            Cached::new(Bytes::from(object.to_string())).unwrap()
        };
        devices.assume_extended("pod", holdings());
        assert!(taken(&devices) && devices.extended_claim("pod").is_none());
        // Made, then allocated: it counts once.
        devices.set_claim(own(1, None)).unwrap();
        assert!(taken(&devices) && devices.extended_claim("pod").is_some());
        devices.set_claim(own(2, Some("x"))).unwrap();
        assert!(taken(&devices) && !devices.restore_extended("pod"));
        assert!(devices.remove_claim(&ObjectKey::new("default", "c")));
        assert!(!taken(&devices) && devices.extended_claim("pod").is_none());

        // It could not be made, or went before it was allocated.
        devices.assume_extended("pod", holdings());
        assert!(devices.restore_extended("pod") && !taken(&devices));
        devices.assume_extended("pod", holdings());
        devices.set_claim(own(3, None)).unwrap();
        assert!(devices.remove_claim(&ObjectKey::new("default", "c")));
        assert!(!taken(&devices));
    }

    #[test]
    fn allocations_count_from_the_decision_on() {
        let key = ObjectKey::new("default", "c");
        let mut devices = Devices::default();
        let taken = |devices: &Devices| devices.world().taken.has(&id("x"));
        let change = |freed, itself| ClaimChange { freed, itself };
        assert_eq!(devices.set_claim(claim(1, None)).unwrap(), change(false, true));
        assume(&mut devices);
        // The finalizer alone ends nothing, the allocation does.
        assert_eq!(devices.set_claim(claim(2, None)).unwrap(), change(false, false));
        assert!(devices.is_in_flight(&key));
        assert_eq!(devices.set_claim(claim(3, Some("x"))).unwrap(), change(false, true));
        assert!(!devices.is_in_flight(&key) && taken(&devices));
        devices.settle(&key, 3);
        assert!(taken(&devices));
        assert_eq!(devices.set_claim(claim(4, None)).unwrap(), change(true, true));
        assert!(!taken(&devices));

        // Allocated and deallocated before we heard of either.
        assume(&mut devices);
        devices.settle(&key, 5);
        assert!(taken(&devices));
        devices.set_claim(claim(6, None)).unwrap();
        assert!(!taken(&devices) && !devices.is_in_flight(&key));

        // It could not be written.
        assume(&mut devices);
        assert!(devices.restore(&key) && !devices.restore(&key));
        assert!(!taken(&devices));

        // It went meanwhile.
        assume(&mut devices);
        assert!(devices.remove_claim(&key));
        assert!(!taken(&devices));
    }
}
