//! What the slices of all services come to, as gauges that change with every service.

use std::collections::HashMap;

use parking_lot::Mutex;
use yare_client::ObjectKey;
use yare_metrics::table::Counts;

use super::MAX_ENDPOINTS;
use crate::metrics;

/// What there is for one service.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Share {
    endpoints: usize,
    /// Slices if they were as full as may be.
    desired: usize,
    /// Slices that there are.
    pub(super) slices: usize,
    distribution: Option<Box<str>>,
}

impl Share {
    /// That of a service with this `trafficDistribution`.
    pub(super) fn of(distribution: Option<&str>) -> Self {
        let known = |d: &&str| matches!(*d, "PreferClose" | "PreferSameZone" | "PreferSameNode");
        Self { distribution: distribution.filter(known).map(Into::into), ..Self::default() }
    }

    /// Adds an address family, by the number of endpoints that have the same ports. There is always a slice.
    pub(super) fn family(&mut self, groups: impl Iterator<Item = usize>) {
        let before = self.desired;
        for endpoints in groups {
            self.endpoints += endpoints;
            self.desired += endpoints.div_ceil(MAX_ENDPOINTS);
        }
        self.desired = self.desired.max(before + 1);
    }

    /// The `trafficDistribution`, where it is one that has an effect.
    pub(super) fn distribution(&self) -> &str {
        self.distribution.as_deref().unwrap_or_default()
    }
}

/// The shares of all services.
#[derive(Default)]
pub(super) struct Totals(Mutex<HashMap<ObjectKey, Share>>);

impl Totals {
    /// A service comes to `share` now; `None`: it is gone.
    pub(super) fn set(&self, service: &ObjectKey, share: Option<Share>, table: &Counts) {
        let mut shares = self.0.lock();
        let known = shares.contains_key(service);
        let old = shares.remove(service).unwrap_or_default();
        let new = share.clone().unwrap_or_default();
        for (family, before, now) in [
            (&metrics::ENDPOINTS_DESIRED, old.endpoints, new.endpoints),
            (&metrics::SLICES_DESIRED, old.desired, new.desired),
            (&metrics::SLICES, old.slices, new.slices),
        ] {
            if known || share.is_some() {
                table.add(family, &[], now as f64 - before as f64);
            }
        }
        if old.distribution != new.distribution {
            for (distribution, by) in [(old.distribution, -1.0), (new.distribution, 1.0)] {
                if let Some(distribution) = distribution {
                    table.add(&metrics::SERVICES_BY_DISTRIBUTION, &[&distribution], by);
                }
            }
        }
        if let Some(share) = share {
            shares.insert(service.clone(), share);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_follow_services() {
        let (totals, table) = (Totals::default(), Counts::default());
        let is = |endpoints: f64, desired: f64, slices: f64| {
            for (family, value) in [
                (&metrics::ENDPOINTS_DESIRED, endpoints),
                (&metrics::SLICES_DESIRED, desired),
                (&metrics::SLICES, slices),
            ] {
                assert_eq!(table.value(family, &[]), Some(value), "{}", family.name);
            }
        };
        let by = |distribution: &str| table.value(&metrics::SERVICES_BY_DISTRIBUTION, &[distribution]);
        let (a, b) = (ObjectKey::new("d", "a"), ObjectKey::new("d", "b"));
        totals.set(&a, None, &table);
        assert_eq!(table.value(&metrics::SLICES, &[]), None);
        let mut share = Share::of(Some("PreferClose"));
        share.family([150, 20].into_iter());
        share.slices = 4;
        totals.set(&a, Some(share), &table);
        is(170.0, 3.0, 4.0);
        let mut share = Share::of(Some("nonsense"));
        share.family([].into_iter());
        share.family([0].into_iter());
        share.slices = 2;
        totals.set(&b, Some(share), &table);
        is(170.0, 5.0, 6.0);
        assert_eq!((by("PreferClose"), by("nonsense")), (Some(1.0), None));
        let mut share = Share::of(Some("PreferSameNode"));
        share.family([1].into_iter());
        share.slices = 1;
        totals.set(&a, Some(share), &table);
        is(1.0, 3.0, 3.0);
        assert_eq!((by("PreferClose"), by("PreferSameNode")), (Some(0.0), Some(1.0)));
        totals.set(&a, None, &table);
        totals.set(&b, None, &table);
        is(0.0, 0.0, 0.0);
        assert_eq!(by("PreferSameNode"), Some(0.0));
    }
}
