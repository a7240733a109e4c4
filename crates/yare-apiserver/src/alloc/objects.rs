//! IPAddresses: for each address of a service an object that says whose it is (KEP-1880), and addresses that others
//! have taken by making such objects themselves.
//!
//! In: addresses that were given out or came back. Out: the objects, made or removed a moment later; what was missed
//! is found at the next start.

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde_json::{Value, json};
use yare_kinds::{net, view::View};

use super::{Allocators, Cidr, Reserved, addresses};
use crate::{
    bootstrap::{ensure, remove},
    core::{Call, Core},
    status::ApiResult,
};

const GROUP: &str = "networking.k8s.io";
const IP_ADDRESSES: (&str, &str) = (GROUP, "ipaddresses");
const KIND: &str = "networking.k8s.io/ipaddresses";
const RANGES: &str = "networking.k8s.io/servicecidrs";
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
        let is_ready = |c: &Value| c.str_at("type") == "Ready" && c.str_at("status") == "True";
        if range.has("metadata.deletionTimestamp") || !range.items("status.conditions").iter().any(is_ready) {
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
    Ok(Reserved { allocators: Some(allocators), addresses: vec![address], ports: Vec::new() })
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
    let owner = core.allocators.taken.lock().addresses.get(&address).cloned();
    let service = owner.filter(|key| !key.is_empty()).and_then(|key| core.read("services", &key));
    let service = service.filter(|service| addresses(service).contains(&address));
    let parent = service.map(|service| {
        json!({
            "resource": "services",
            "namespace": service.str_at("metadata.namespace"), "name": service.str_at("metadata.name"),
        })
    });
    let object = core.read(KIND, &name);
    let is_right = |object: &Value| {
        parent.as_ref().is_some_and(|parent| {
            ["namespace", "name"]
                .iter()
                .all(|field| object.at("spec.parentRef").at(field) == parent.at(field))
        })
    };
    match (&parent, &object) {
        (_, Some(object)) if !is_own(object) || is_right(object) => return Ok(()),
        (_, Some(_)) => remove(core, IP_ADDRESSES, ("", &name)).await.map_err(|e| e.message)?,
        (None, None) => return Ok(()),
        (Some(_), None) => {}
    }
    let Some(parent) = parent else { return Ok(()) };
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": { "name": name, "labels": { FAMILY: family, MANAGED_BY: MANAGER } },
        "spec": { "parentRef": parent },
    });
    ensure(core, object).await.map_err(|e| e.to_string())
}
