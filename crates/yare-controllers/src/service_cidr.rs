//! ServiceCIDRs, the ranges that services' addresses come from: each is said to be ready, and one that is deleted
//! stays while an address would be left in no range at all.

use std::{net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::{Value, json};
use yare_client::{Cached, Change, IP_ADDRESSES, Informer, ObjectKey, SERVICE_CIDRS};
use yare_kinds::{
    conditions, net,
    view::{View, ViewMut},
};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    views::since,
};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// The label of addresses that services have.
const LABEL: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");
/// How long a range that is deleted stays at least, so that whoever gives out addresses knows.
const GRACE: Duration = Duration::from_secs(10);
const IN_USE: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

struct Ranges {
    context: Context,
    ranges: Informer,
    addresses: Informer,
}

/// The controller; keys are ServiceCIDRs.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Ranges {
        ranges: context.informer(SERVICE_CIDRS),
        addresses: context.informer(IP_ADDRESSES),
        context: context.clone(),
    })
}

/// A range that came or went may be what keeps others from going; there are never many.
pub fn changed_range(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let Some(range) = &change.new {
        add(range.key().clone());
    }
    for other in context.informer(SERVICE_CIDRS).list() {
        if other.deletion_timestamp().is_some() {
            add(other.key().clone());
        }
    }
}

/// An address that went may be the last that kept a range.
pub fn changed_address(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(address) = change.old.as_ref().filter(|_| change.new.is_none()) else { return };
    let Ok(address) = address.name().parse::<IpAddr>() else { return };
    for range in context.informer(SERVICE_CIDRS).list() {
        if range.deletion_timestamp().is_some() && prefixes(&range).iter().any(|p| contains(*p, address)) {
            add(range.key().clone());
        }
    }
}

type Prefix = (IpAddr, u8);

fn prefixes(range: &Cached) -> Vec<Prefix> {
    let value: Value = serde_json::from_slice(range.bytes()).unwrap_or_default();
    value.strings("spec.cidrs").iter().filter_map(|cidr| net::parse_cidr_sloppy(cidr)).collect()
}

fn contains((base, length): Prefix, address: IpAddr) -> bool {
    net::masked(base, length) == net::masked(address, length)
}

/// What a range is needed for.
struct Others<'a> {
    /// All other ranges.
    ranges: &'a [Vec<Prefix>],
    /// Addresses of services.
    addresses: &'a [IpAddr],
}

impl Others<'_> {
    /// Whether nothing would be missed of a range.
    fn can_spare(&self, own: &[Prefix]) -> bool {
        let others = || self.ranges.iter().flatten();
        let is_within =
            |inner: &Prefix| others().any(|outer| outer.1 <= inner.1 && contains(*outer, inner.0));
        own.iter().all(is_within)
            || !self.addresses.iter().any(|address| {
                own.iter().any(|prefix| contains(*prefix, *address))
                    && !others().any(|prefix| contains(*prefix, *address))
            })
    }
}

#[async_trait]
impl Reconcile for Ranges {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(range) = self.ranges.get(key) else { return Ok(Next::Done) };
        let value: Value = serde_json::from_slice(range.bytes())
            .map_err(|e| Error::Other(format!("ServiceCIDR {}: {e}", key.name)))?;
        let mut finalizers = value.items("metadata.finalizers").to_vec();
        let is_held = finalizers.iter().any(|f| f == FINALIZER);
        let Some(deleted) = range.deletion_timestamp() else {
            let mut held = range;
            if !is_held {
                finalizers.push(FINALIZER.into());
                let edit = |body: &mut Value| body.set("metadata.finalizers", finalizers);
                held = self.context.api.update(&SERVICE_CIDRS, &held, edit).await?;
            }
            self.say(&held, "True", "", "Kubernetes Service CIDR is ready").await?;
            return Ok(Next::Done);
        };
        if !is_held {
            return Ok(Next::Done);
        }
        if !self.is_spare(&range) {
            self.say(&range, "False", "Terminating", IN_USE).await?;
            return Ok(Next::Done);
        }
        let passed = deleted.parse().map_or(GRACE, |at| since(self.context.now(), at));
        if let Some(left) = GRACE.checked_sub(passed).filter(|left| !left.is_zero()) {
            return Ok(Next::After(left));
        }
        finalizers.retain(|f| f != FINALIZER);
        let edit = |body: &mut Value| body.set("metadata.finalizers", finalizers);
        self.context.api.update(&SERVICE_CIDRS, &range, edit).await?;
        Ok(Next::Done)
    }
}

impl Ranges {
    fn is_spare(&self, range: &Cached) -> bool {
        let others: Vec<Vec<Prefix>> =
            self.ranges.list().iter().filter(|other| other.key() != range.key()).map(prefixes).collect();
        let is_own = |address: &Cached| address.labels().iter().any(|(k, v)| (&**k, &**v) == LABEL);
        let addresses = self.addresses.list();
        let addresses = addresses.iter().filter(|address| is_own(address));
        let addresses: Vec<IpAddr> = addresses.filter_map(|address| address.name().parse().ok()).collect();
        Others { ranges: &others, addresses: &addresses }.can_spare(&prefixes(range))
    }

    /// Sets the condition `Ready`, unless it says so already.
    async fn say(&self, range: &Cached, status: &str, reason: &str, message: &str) -> Result<(), Error> {
        let value: Value = serde_json::from_slice(range.bytes())
            .map_err(|e| Error::Other(format!("ServiceCIDR {}: {e}", range.name())))?;
        let mut conditions = value.items("status.conditions").to_vec();
        let now = self.context.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let condition = json!({"type": "Ready", "status": status, "reason": reason, "message": message});
        if !conditions::put(&mut conditions, condition, &now) {
            return Ok(());
        }
        let status = json!({ "conditions": conditions });
        self.context.api.update_status(&SERVICE_CIDRS, range, &status).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_go_when_nothing_needs_them() {
        let prefix = |text: &str| net::parse_cidr_sloppy(text).unwrap();
        let range = |text: &str| text.split(' ').filter(|t| !t.is_empty()).map(prefix).collect::<Vec<_>>();
        for (own, others, addresses, spare) in [
            ("10.0.0.0/24", vec![], vec![], true),
            ("10.0.0.0/24", vec![], vec!["10.0.0.5"], false),
            ("10.0.0.0/24", vec![], vec!["10.0.1.5", "fd00::1"], true),
            // A larger one is there, or the same.
            ("10.0.0.0/24", vec!["10.0.0.0/16"], vec!["10.0.0.5"], true),
            ("10.0.0.0/24", vec!["10.0.0.0/24"], vec!["10.0.0.5"], true),
            // A smaller one has the address.
            ("10.0.0.0/24", vec!["10.0.0.0/28"], vec!["10.0.0.5"], true),
            ("10.0.0.0/24", vec!["10.0.0.0/28"], vec!["10.0.0.5", "10.0.0.99"], false),
            ("10.0.0.0/24 fd00::/64", vec!["10.0.0.0/16"], vec!["fd00::1"], false),
            ("10.0.0.0/24 fd00::/64", vec!["10.0.0.0/16 fd00::/48"], vec!["fd00::1"], true),
            ("0.0.0.0/0", vec![], vec!["10.0.0.5"], false),
        ] {
            let ranges: Vec<Vec<Prefix>> = others.iter().map(|o| range(o)).collect();
            let parsed: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            let others_are = Others { ranges: &ranges, addresses: &parsed };
            assert_eq!(others_are.can_spare(&range(own)), spare, "{own} {others:?} {addresses:?}");
        }
    }
}
