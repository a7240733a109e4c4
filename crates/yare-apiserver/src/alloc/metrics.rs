//! What is counted of addresses and ports, under upstream's names.

use tokio::time::Instant;
use yare_metrics::{
    table::{Family, Kind},
    text::Page,
    timing::USUAL_S,
};

use super::{Allocators, Cidr, Reserved, objects};
use crate::core::Core;

/// The caller says which.
pub const STATIC: &str = "static";
/// Any free one.
pub const DYNAMIC: &str = "dynamic";

static ADDRESSES: Family = Family::labelled(
    "kube_apiserver_clusterip_allocator_allocated_ips",
    Kind::Gauge,
    &["cidr"],
    "[ALPHA] Gauge measuring the number of allocated IPs for Services",
);
static FREE_ADDRESSES: Family = Family::labelled(
    "kube_apiserver_clusterip_allocator_available_ips",
    Kind::Gauge,
    &["cidr"],
    "[ALPHA] Gauge measuring the number of available IPs for Services",
);
static ADDRESSES_GIVEN: Family = Family::labelled(
    "kube_apiserver_clusterip_allocator_allocation_total",
    Kind::Counter,
    &["cidr", "scope"],
    "[ALPHA] Number of Cluster IPs allocations",
);
static ADDRESSES_REFUSED: Family = Family::labelled(
    "kube_apiserver_clusterip_allocator_allocation_errors_total",
    Kind::Counter,
    &["cidr", "scope"],
    "[ALPHA] Number of errors trying to allocate Cluster IPs",
);
static ADDRESSES_TOOK: Family = Family::labelled(
    "kube_apiserver_clusterip_allocator_allocation_duration_seconds",
    Kind::Histogram(&USUAL_S),
    &["cidr"],
    "[ALPHA] Duration in seconds to allocate a Cluster IP by ServiceCIDR",
);
static PORTS: Family = Family::plain(
    "kube_apiserver_nodeport_allocator_allocated_ports",
    Kind::Gauge,
    "[ALPHA] Gauge measuring the number of allocated NodePorts for Services",
);
static FREE_PORTS: Family = Family::plain(
    "kube_apiserver_nodeport_allocator_available_ports",
    Kind::Gauge,
    "[ALPHA] Gauge measuring the number of available NodePorts for Services",
);
static PORTS_GIVEN: Family = Family::labelled(
    "kube_apiserver_nodeport_allocator_allocation_total",
    Kind::Counter,
    &["scope"],
    "[ALPHA] Number of NodePort allocations",
);
static PORTS_REFUSED: Family = Family::labelled(
    "kube_apiserver_nodeport_allocator_allocation_errors_total",
    Kind::Counter,
    &["scope"],
    "[ALPHA] Number of errors trying to allocate NodePort",
);

static TABLE: [&Family; 9] = [
    &ADDRESSES,
    &FREE_ADDRESSES,
    &ADDRESSES_GIVEN,
    &ADDRESSES_REFUSED,
    &ADDRESSES_TOOK,
    &PORTS,
    &FREE_PORTS,
    &PORTS_GIVEN,
    &PORTS_REFUSED,
];

impl Reserved<'_> {
    /// An address of the range was wanted, and given or not.
    pub(super) fn counts(&self, range: &Cidr, scope: &'static str, began: Instant, given: bool) {
        let Some(allocators) = self.allocators.filter(|_| !self.dry_run) else { return };
        let cidr = range.to_string();
        let total = if given { &ADDRESSES_GIVEN } else { &ADDRESSES_REFUSED };
        allocators.counts.count(total, &[&cidr, scope]);
        if given {
            allocators.counts.observe(&ADDRESSES_TOOK, &[&cidr], began.elapsed().as_secs_f64());
        }
    }

    /// The same of a port.
    pub(super) fn counts_port(&self, scope: &'static str, given: bool) {
        let Some(allocators) = self.allocators.filter(|_| !self.dry_run) else { return };
        allocators.counts.count(if given { &PORTS_GIVEN } else { &PORTS_REFUSED }, &[scope]);
    }
}

impl Allocators {
    /// Adds all of it to a page.
    pub fn expose(&self, core: &Core, page: &mut Page) {
        let ranges: Vec<Cidr> = ["IPv4", "IPv6"].iter().flat_map(|f| objects::ranges(core, f)).collect();
        let taken = self.taken.lock();
        // Only what services have, as upstream counts.
        let own =
            || taken.addresses.iter().filter(|(_, owner)| !owner.is_empty()).map(|(address, _)| *address);
        let used: Vec<usize> =
            ranges.iter().map(|range| own().filter(|address| range.contains(*address)).count()).collect();
        let ports = taken.ports.len();
        drop(taken);
        for (range, used) in ranges.iter().zip(used) {
            let cidr = range.to_string();
            // Counts of addresses that are too large for a number here are so for Prometheus as well.
            let free = range.size().saturating_sub(used as u128) as f64;
            self.counts.set(&ADDRESSES, &[&cidr], used as f64);
            self.counts.set(&FREE_ADDRESSES, &[&cidr], free);
        }
        let known = |values: &[Box<str>]| ranges.iter().any(|range| *range.to_string() == *values[0]);
        self.counts.retain(&ADDRESSES, known);
        self.counts.retain(&FREE_ADDRESSES, known);
        let (low, high) = self.ports;
        let all = usize::from(high - low) + 1;
        self.counts.set(&PORTS, &[], ports as f64);
        self.counts.set(&FREE_PORTS, &[], all.saturating_sub(ports) as f64);
        self.counts.expose(&TABLE, page);
    }
}
