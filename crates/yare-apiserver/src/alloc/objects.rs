//! IPAddresses: for each address of a service an object that says whose it is (KEP-1880), and addresses that others
//! have taken by making such objects themselves.
//!
//! The objects come and go with the addresses of a service in one transaction: whoever sees the service sees them.
//! Objects that somebody removed, or that are left over, are put right a moment later, and at every start.

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde_json::{Value, json};
use yare_kinds::{
    conditions, net,
    view::{View, ViewMut},
};
use yare_store::{Draft, Expect, Object, Op, Write};

use super::{Allocators, Cidr, Reserved, addresses};
use crate::{
    bootstrap::{ensure, own_options, remove_as_read, rewrite},
    codec,
    core::{Call, Core},
    managed,
    status::{ApiError, ApiResult},
    verbs::write::{self, context},
};

const GROUP: &str = "networking.k8s.io";
const IP_ADDRESSES: (&str, &str) = (GROUP, "ipaddresses");
const KIND: &str = "networking.k8s.io/ipaddresses";
const RANGES: &str = "networking.k8s.io/servicecidrs";
/// The one that says what the flags say.
const OWN_RANGE: &str = "kubernetes";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const MANAGER: &str = "ipallocator.k8s.io";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";

/// Before what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

fn is_own(object: &Value) -> bool {
    object.at("metadata.labels").get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
}

fn address_of(object: &Value) -> Option<IpAddr> {
    net::parse_ip_sloppy(object.str_at("metadata.name"))
}

impl Allocators {
    /// Takes in a stored IPAddress.
    pub fn restore_object(&self, object: &Value) {
        let Some(address) = address_of(object) else { return };
        if is_own(object) {
            // Its service may have gone without it.
            self.due.lock().insert(address);
        } else {
            self.taken.lock().addresses.entry(address).or_default();
        }
    }

    /// The objects of these addresses are to be looked at.
    pub(super) fn look_at(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.due.lock().extend(addresses);
        self.told.notify_one();
    }
}

/// The ranges of a family that addresses may come from: those of the flags, and those that ServiceCIDRs add.
pub(super) fn ranges(core: &Core, family: &str) -> Vec<Cidr> {
    let mut all: Vec<Cidr> =
        core.allocators.ranges.iter().copied().filter(|r| r.family() == family).collect();
    let snapshot = core.store().snapshot(RANGES);
    for object in snapshot.range(std::ops::Bound::Unbounded, "") {
        let Ok(range) = serde_json::from_slice::<Value>(&object.bytes) else { continue };
        let is_ready = conditions::is_true(range.items("status.conditions"), "Ready");
        if range.has("metadata.deletionTimestamp") || !is_ready {
            continue;
        }
        for cidr in range.strings("spec.cidrs").into_iter().filter_map(Cidr::parse) {
            if cidr.family() == family && !all.contains(&cidr) {
                all.push(cidr);
            }
        }
    }
    all
}

/// The object `kubernetes` says the ranges of the flags: the second one is added to the first when it comes. Any other
/// difference is for the operator to mend, as upstream has it.
pub async fn own_range(core: &Arc<Core>) {
    let wanted = &core.config.service_cidrs;
    let Some(stored) = core.read(RANGES, OWN_RANGE) else { return };
    let said = stored.strings("spec.cidrs");
    if said == *wanted {
        return;
    }
    if wanted.len() != 2 || said != wanted[..1] {
        tracing::warn!(?said, ?wanted, "the default ServiceCIDR does not match the flags");
        return;
    }
    let make = |object: &Value| {
        let mut object = object.clone();
        object.set("spec.cidrs", wanted.clone());
        Ok(object)
    };
    let widened = rewrite(core, (GROUP, "servicecidrs"), &write::MAIN, ("", OWN_RANGE), &make).await;
    if let Err(error) = widened {
        tracing::warn!(
            why = error.message,
            ?wanted,
            "the default ServiceCIDR can not be updated to dual stack"
        );
    }
}

/// What is written together with a service that is made, changed or removed: the objects of the addresses that it
/// gains and loses.
pub fn beside(call: &Call, new: Option<&Value>, old: Option<&Value>) -> ApiResult<Vec<Write>> {
    let all = |service: Option<&Value>| service.map(addresses).unwrap_or_default();
    let (have, had) = (all(new), all(old));
    if have == had {
        return Ok(Vec::new());
    }
    let store = call.core.store();
    let write =
        |address: &IpAddr, expect, op| Write { kind: KIND.into(), key: address.to_string(), expect, op };
    let mut writes = Vec::new();
    for address in have.iter().filter(|address| !had.contains(address)) {
        let Some(service) = new else { continue };
        let expect = match store.get(KIND, &address.to_string()) {
            None => Expect::Absent,
            // Left over.
            Some(stored) if is_loose(&parsed(&stored)?) => Expect::Revision(stored.revision),
            Some(_) => continue,
        };
        let Some(draft) = draft(call, *address, service)? else { continue };
        writes.push(write(address, expect, Op::Put(draft)));
    }
    for address in had.iter().filter(|address| !have.contains(address)) {
        let Some(stored) = store.get(KIND, &address.to_string()) else { continue };
        let object = parsed(&stored)?;
        if is_loose(&object) && old.is_some_and(|service| is_of(&object, service)) {
            writes.push(write(address, Expect::Revision(stored.revision), Op::Delete));
        }
    }
    Ok(writes)
}

/// Whether the object may go with its service. One with finalizers is deleted as others are, a moment later.
fn is_loose(object: &Value) -> bool {
    is_own(object) && object.items("metadata.finalizers").is_empty()
}

fn parsed(stored: &Object) -> ApiResult<Value> {
    serde_json::from_slice(&stored.bytes).map_err(ApiError::internal)
}

/// The object of a service's address for the store; none where there are none.
fn draft(call: &Call, address: IpAddr, service: &Value) -> ApiResult<Option<Draft>> {
    let Some(served) = call.core.builtin.stored(KIND) else { return Ok(None) };
    let mut object = object(address, service);
    let now = call.core.now_rfc3339();
    object.set("metadata.creationTimestamp", now.clone());
    object.set("metadata.uid", call.core.new_uid());
    served.stored.strategy.default(&mut object);
    managed::update(call, served, None, &mut object, &own_options(), "", &now);
    served.strategy.prepare_for_create(&mut object, &context(&now, call));
    codec::draft(&served.stored, &mut object).map(Some)
}

fn object(address: IpAddr, service: &Value) -> Value {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": { "name": address.to_string(), "labels": { FAMILY: family, MANAGED_BY: MANAGER } },
        "spec": { "parentRef": {
            "resource": "services",
            "namespace": service.str_at("metadata.namespace"), "name": service.str_at("metadata.name"),
        } },
    })
}

/// Whether the object says that its address is the service's.
fn is_of(object: &Value, service: &Value) -> bool {
    let parent = object.at("spec.parentRef");
    ["namespace", "name"].iter().all(|field| parent.str_at(field) == service.at("metadata").str_at(field))
}

/// Somebody makes an IPAddress: no service gets it.
pub fn create<'a>(call: &'a Call, object: &mut Value, dry_run: bool) -> ApiResult<Reserved<'a>> {
    let allocators = &call.core.allocators;
    let Some(address) = address_of(object).filter(|_| !dry_run) else { return Ok(Reserved::nothing()) };
    let mut taken = allocators.taken.lock();
    if taken.addresses.contains_key(&address) {
        // A service's, whose object this is.
        return Ok(Reserved::nothing());
    }
    taken.addresses.insert(address, Box::default());
    let mut reserved = Reserved::of(allocators, false);
    reserved.addresses.push(address);
    Ok(reserved)
}

/// An IPAddress is gone. That of a service comes back.
pub fn deleted(call: &Call, object: &Value) {
    let allocators = &call.core.allocators;
    let Some(address) = address_of(object) else { return };
    let mut taken = allocators.taken.lock();
    if taken.addresses.get(&address).is_some_and(|owner| owner.is_empty()) {
        taken.addresses.remove(&address);
    }
    drop(taken);
    allocators.look_at([address]);
}

/// Keeps the objects until the server stops.
pub fn start(core: &Arc<Core>) {
    let core = core.clone();
    tokio::spawn(async move {
        loop {
            let due = std::mem::take(&mut *core.allocators.due.lock());
            let mut failed = Vec::new();
            for address in due {
                if let Err(why) = settle(&core, address).await {
                    tracing::warn!(%address, why, "an IPAddress is not as its service is");
                    failed.push(address);
                }
            }
            let again = !failed.is_empty();
            core.allocators.due.lock().extend(failed);
            tokio::select! {
                () = core.allocators.told.notified() => {}
                () = tokio::time::sleep(RETRY), if again => {}
                () = core.stop.cancelled() => return,
            }
        }
    });
}

/// Makes the object of an address what it should be.
async fn settle(core: &Arc<Core>, address: IpAddr) -> Result<(), String> {
    let name = address.to_string();
    // Read before the service: what a service brought along after this is not taken for what one left behind.
    let stored = core.read(KIND, &name);
    let owner = core.allocators.taken.lock().addresses.get(&address).cloned();
    let service = owner.filter(|key| !key.is_empty()).and_then(|key| core.read("services", &key));
    let service = service.filter(|service| addresses(service).contains(&address));
    match (&service, &stored) {
        (_, Some(stored)) if !is_own(stored) => return Ok(()),
        (Some(service), Some(stored)) if is_of(stored, service) => return Ok(()),
        (_, Some(stored)) => match remove_as_read(core, IP_ADDRESSES, stored).await {
            Err(error) if error.reason == "Conflict" => {
                core.allocators.look_at([address]);
                return Ok(());
            }
            removed => removed.map_err(|e| e.message)?,
        },
        _ => {}
    }
    let Some(service) = service else { return Ok(()) };
    ensure(core, object(address, &service)).await.map_err(|e| e.to_string())
}
