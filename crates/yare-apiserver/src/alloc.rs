//! Addresses of services: cluster IPs from the service ranges and node ports, each given out once.
//!
//! What is taken is what the stored services say; at start it is read from them. Like upstream, random picks
//! come from the upper part of a range first, so that the lower part is free for addresses people choose.

use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::{sync::Notify, time::Instant};
use yare_kinds::{
    net,
    strategy::core::service::{families, needs_health_check},
    view::{View, ViewMut},
};
use yare_metrics::table::Counts;
use yare_schema::field::{FieldError, Path};

use self::ports::Ports;
use crate::{
    core::{Call, Config, Random},
    status::{ApiError, ApiResult, GroupResource},
};

mod metrics;
pub mod objects;
mod ports;

const SERVICE: GroupResource<'_> = GroupResource { group: "", resource: "Service" };

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: u128,
    bits: u8,
    v6: bool,
}

impl Cidr {
    /// Parses `10.43.0.0/16`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let (value, width, v6) = match address {
            IpAddr::V4(a) => (u128::from(u32::from(a)), 32u8, false),
            IpAddr::V6(a) => (u128::from(a), 128, true),
        };
        let bits = width.checked_sub(prefix)?;
        let mask = if bits >= 128 { u128::MAX } else { (1u128 << bits) - 1 };
        Some(Self { base: value & !mask, bits, v6 })
    }

    /// The address at an offset from the base.
    pub fn address(&self, offset: u128) -> IpAddr {
        let value = self.base + offset;
        if self.v6 {
            IpAddr::V6(Ipv6Addr::from(value))
        } else {
            IpAddr::V4(Ipv4Addr::from(u32::try_from(value).unwrap_or(u32::MAX)))
        }
    }

    /// Whether the address is in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (value, v6) = match address {
            IpAddr::V4(a) => (u128::from(u32::from(a)), false),
            IpAddr::V6(a) => (u128::from(a), true),
        };
        v6 == self.v6
            && value >= self.base
            && value - self.base < 1u128.checked_shl(self.bits.into()).unwrap_or(u128::MAX)
    }

    /// Addresses that can be given out: without the first, and for IPv4 without the last.
    fn size(&self) -> u128 {
        let size = 1u128.checked_shl(self.bits.into()).unwrap_or(u128::MAX);
        if self.v6 { size - 1 } else { size.saturating_sub(2) }
    }

    /// Those of them that are given to who does not ask for one: of IPv6 no more than of a large range of IPv4.
    fn usable(&self) -> u128 {
        self.size().min((1 << 20) - 1)
    }

    /// Whether the address may be given out: not the first, and for IPv4 not the last.
    fn gives(&self, address: IpAddr) -> bool {
        let last = 1u128.checked_shl(self.bits.into()).map_or(u128::MAX, |size| size - 1);
        self.contains(address) && address != self.address(0) && (self.v6 || address != self.address(last))
    }

    /// `IPv4` or `IPv6`
    pub fn family(&self) -> &'static str {
        if self.v6 { "IPv6" } else { "IPv4" }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(0), if self.v6 { 128 } else { 32 } - self.bits)
    }
}

/// What is taken.
#[derive(Default)]
struct Taken {
    /// With the key of their service; empty: somebody else's.
    addresses: HashMap<IpAddr, Box<str>>,
    ports: HashSet<u16>,
}

/// Cluster IPs and node ports of one server.
pub struct Allocators {
    ranges: Vec<Cidr>,
    ports: (u16, u16),
    taken: Mutex<Taken>,
    /// Addresses whose objects are to be looked at.
    due: Mutex<BTreeSet<IpAddr>>,
    told: Notify,
    counts: Counts,
}

impl Allocators {
    /// Nothing taken yet.
    pub fn new(config: &Config) -> Self {
        Self {
            ranges: config.service_cidrs.iter().filter_map(|c| Cidr::parse(c)).collect(),
            ports: config.node_ports,
            taken: Mutex::default(),
            due: Mutex::default(),
            told: Notify::new(),
            counts: Counts::default(),
        }
    }

    /// Takes what a stored service has.
    pub fn restore(&self, service: &Value) {
        let (all, key) = (addresses(service), key(service));
        let mut taken = self.taken.lock();
        taken.addresses.extend(all.iter().map(|address| (*address, key.clone())));
        taken.ports.extend(node_ports(service));
        self.due.lock().extend(all);
    }

    /// The address of the API server's own service.
    pub fn first_address(&self) -> Option<IpAddr> {
        self.ranges.first().map(|r| r.address(1))
    }

    fn release(&self, addresses: &[IpAddr], ports: &[u16]) {
        let mut taken = self.taken.lock();
        for address in addresses {
            taken.addresses.remove(address);
        }
        for port in ports {
            taken.ports.remove(port);
        }
        drop(taken);
        self.look_at(addresses.iter().copied());
    }

    /// A free address of the range, taken for its owner; without one it is only looked for.
    fn take_address(&self, range: &Cidr, owner: Option<Box<str>>, random: &dyn Random) -> Option<IpAddr> {
        let mut taken = self.taken.lock();
        let size = range.usable();
        // The lower band is for addresses that people choose; KEP-3070.
        let band = (size / 16).clamp(16, 256).min(size);
        let pick = |from: u128, to: u128, taken: &Taken| {
            let span = to.checked_sub(from).filter(|s| *s > 0)?;
            let mut bytes = [0u8; 8];
            random.fill(&mut bytes);
            let start = u128::from(u64::from_le_bytes(bytes)) % span;
            (0..span)
                .map(|i| range.address(1 + from + (start + i) % span))
                .find(|a| !taken.addresses.contains_key(a))
        };
        let found = pick(band, size, &taken).or_else(|| pick(0, band, &taken))?;
        if let Some(owner) = owner {
            taken.addresses.insert(found, owner);
        }
        Some(found)
    }

    fn take_port(&self, random: &dyn Random) -> Option<u16> {
        let mut taken = self.taken.lock();
        let (low, high) = self.ports;
        let size = u32::from(high) - u32::from(low) + 1;
        let band = (size / 32).clamp(16, 128).min(size);
        let pick = |from: u32, to: u32, taken: &Taken| {
            let span = to.checked_sub(from).filter(|s| *s > 0)?;
            let mut bytes = [0u8; 4];
            random.fill(&mut bytes);
            let start = u32::from_le_bytes(bytes) % span;
            (0..span)
                .map(|i| low + u16::try_from(from + (start + i) % span).unwrap_or(0))
                .find(|p| !taken.ports.contains(p))
        };
        let found = pick(band, size, &taken).or_else(|| pick(0, band, &taken))?;
        taken.ports.insert(found);
        Some(found)
    }
}

fn addresses(service: &Value) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> =
        service.strings("spec.clusterIPs").iter().filter_map(|a| net::parse_ip_sloppy(a)).collect();
    if all.is_empty() {
        all.extend(net::parse_ip_sloppy(service.str_at("spec.clusterIP")));
    }
    all
}

/// Where a service stands in the store.
fn key(service: &Value) -> Box<str> {
    let metadata = service.at("metadata");
    format!("{}/{}", metadata.str_at("namespace"), metadata.str_at("name")).into()
}

fn node_ports(service: &Value) -> Vec<u16> {
    let mut ports: Vec<u16> =
        service.items("spec.ports").iter().filter_map(|p| u16::try_from(p.int_at("nodePort")).ok()).collect();
    ports.extend(u16::try_from(service.int_at("spec.healthCheckNodePort")).ok());
    ports.retain(|p| *p != 0);
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// What a write has taken; given back when the write does not happen.
pub struct Reserved<'a> {
    allocators: Option<&'a Allocators>,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    /// Nothing is to come of it.
    dry_run: bool,
}

impl<'a> Reserved<'a> {
    /// Nothing was taken.
    pub fn nothing() -> Self {
        Self { allocators: None, addresses: Vec::new(), ports: Vec::new(), dry_run: false }
    }

    fn of(allocators: &'a Allocators, dry_run: bool) -> Self {
        Self { allocators: Some(allocators), addresses: Vec::new(), ports: Vec::new(), dry_run }
    }

    /// The write happened.
    pub fn keep(mut self) {
        self.allocators = None;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(allocators) = self.allocators {
            allocators.release(&self.addresses, &self.ports);
        }
    }
}

/// Gives a new service its addresses and ports.
pub fn create<'a>(call: &'a Call, service: &mut Value, dry_run: bool) -> ApiResult<Reserved<'a>> {
    let mut reserved = Reserved::of(&call.core.allocators, dry_run);
    families(call, service, &Value::Null)?;
    if needs_address(service) {
        addresses_for_all(call, service, &mut reserved)?;
    }
    let mut ports = Ports::new(call, service, &mut reserved);
    if has_node_ports(service) {
        ports.create(service)?;
    }
    if needs_health_check(service) {
        ports.health(service)?;
    }
    // What a dry run took comes back when it ends, as of a write that fails.
    Ok(reserved)
}

/// Gives a changed service what it needs now and has not.
pub fn update<'a>(call: &'a Call, new: &mut Value, old: &Value, dry_run: bool) -> ApiResult<Reserved<'a>> {
    let mut reserved = Reserved::of(&call.core.allocators, dry_run);
    families(call, new, old)?;
    let named = |s: &Value| s.str_at("spec.type") == "ExternalName";
    if families::prefers_as_before(new, old) || named(new) {
        // It keeps what it has, or gives back all.
    } else if named(old) {
        if needs_address(new) {
            addresses_for_all(call, new, &mut reserved)?;
        }
    } else if !is_headless(old) && old.items("spec.ipFamilies").len() == 1 {
        second_address(call, new, &mut reserved)?;
    }
    let mut ports = Ports::new(call, new, &mut reserved);
    if has_node_ports(new) {
        ports.update(new, old)?;
    }
    if needs_health_check(new) && !needs_health_check(old) {
        ports.health(new)?;
    }
    Ok(reserved)
}

/// Gives back what a changed service no longer has.
pub fn updated(call: &Call, new: &Value, old: &Value) {
    let (have, ports) = (addresses(new), node_ports(new));
    let gone: Vec<IpAddr> = addresses(old).into_iter().filter(|a| !have.contains(a)).collect();
    let gone_ports: Vec<u16> = node_ports(old).into_iter().filter(|p| !ports.contains(p)).collect();
    call.core.allocators.release(&gone, &gone_ports);
}

/// Gives back what a deleted service had.
pub fn deleted(call: &Call, service: &Value) {
    call.core.allocators.release(&addresses(service), &node_ports(service));
}

fn needs_address(service: &Value) -> bool {
    service.str_at("spec.type") != "ExternalName" && !is_headless(service)
}

fn is_headless(service: &Value) -> bool {
    service.strings("spec.clusterIPs").first() == Some(&"None")
}

fn has_node_ports(service: &Value) -> bool {
    matches!(service.str_at("spec.type"), "NodePort" | "LoadBalancer")
}

fn invalid(service: &Value, errors: &[FieldError]) -> ApiError {
    ApiError::invalid(SERVICE, service.str_at("metadata.name"), errors)
}

/// Fills in which address families a service has.
fn families(call: &Call, service: &mut Value, old: &Value) -> ApiResult<()> {
    let known: Vec<&str> = call.core.allocators.ranges.iter().map(Cidr::family).collect();
    let strict = call.core.config.gates.is_on("StrictIPCIDRValidation");
    families::assign(service, old, &known, strict).map_err(|errors| invalid(service, &errors))
}

/// The address of a family that the service asks for, or one that is free.
fn address(
    call: &Call,
    service: &Value,
    family: &str,
    wanted: &str,
    reserved: &mut Reserved<'_>,
) -> ApiResult<String> {
    let allocators = &call.core.allocators;
    let full = || {
        ApiError::internal(format!(
            "failed to allocate a serviceIP for Service {:?}: range is full",
            service.str_at("metadata.name")
        ))
    };
    let ranges = objects::ranges(&call.core, family);
    let owner = (!reserved.dry_run).then(|| key(service));
    let began = Instant::now();
    if wanted.is_empty() {
        let random = &*call.core.config.random;
        let mut given = ranges.iter().filter_map(|range| {
            let given = allocators.take_address(range, owner.clone(), random);
            reserved.counts(range, metrics::DYNAMIC, began, given.is_some());
            given
        });
        let given = given.next().ok_or_else(full)?;
        if !reserved.dry_run {
            reserved.addresses.push(given);
        }
        return Ok(given.to_string());
    }
    let Some(address) = net::parse_ip_sloppy(wanted) else {
        return Err(ApiError::internal(format!("failed to parse service IP {wanted:?}")));
    };
    let refuse = |why: &str| {
        let path = Path::new("spec");
        let why = format!("failed to allocate IP {wanted}: {why}");
        let shown = service.at("spec.clusterIPs").clone();
        Err(invalid(service, &[FieldError::invalid(&path.child("clusterIPs"), shown, why)]))
    };
    // The first and the last address of a range are of none.
    let Some(range) = ranges.iter().find(|r| r.gives(address)) else {
        return refuse("the provided network does not match the current range");
    };
    // A dry run takes nothing, and does not ask who has the address either: that of the service itself is taken.
    let Some(owner) = owner else { return Ok(wanted.to_owned()) };
    let free = match allocators.taken.lock().addresses.entry(address) {
        Entry::Occupied(_) => false,
        Entry::Vacant(free) => {
            free.insert(owner);
            true
        }
    };
    reserved.counts(range, metrics::STATIC, began, free);
    if !free {
        return refuse("provided IP is already allocated");
    }
    reserved.addresses.push(address);
    Ok(wanted.to_owned())
}

/// An address for each family of a service that has none yet.
fn addresses_for_all(call: &Call, service: &mut Value, reserved: &mut Reserved<'_>) -> ApiResult<()> {
    let mut given: Vec<String> = Vec::new();
    let wanted = service.strings("spec.clusterIPs");
    for (i, family) in service.strings("spec.ipFamilies").into_iter().enumerate() {
        given.push(address(call, service, family, wanted.get(i).unwrap_or(&""), reserved)?);
    }
    if let Some(first) = given.first() {
        service.set("spec.clusterIP", first.clone());
        service.set("spec.clusterIPs", given);
    }
    Ok(())
}

/// The second address of a service that had one.
fn second_address(call: &Call, service: &mut Value, reserved: &mut Reserved<'_>) -> ApiResult<()> {
    let families = service.strings("spec.ipFamilies");
    let [_, family] = families.as_slice() else { return Ok(()) };
    let mut ips: Vec<String> = service.strings("spec.clusterIPs").into_iter().map(str::to_owned).collect();
    let second = address(call, service, family, ips.get(1).map_or("", String::as_str), reserved)?;
    ips.truncate(1);
    ips.push(second);
    service.set("spec.clusterIPs", ips);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range = Cidr::parse("10.43.0.0/16").unwrap();
        assert_eq!(range.address(1).to_string(), "10.43.0.1");
        assert!(range.contains("10.43.255.255".parse().unwrap()));
        assert!(!range.contains("10.44.0.0".parse().unwrap()));
        assert_eq!(range.usable(), 65534);
        assert!(!range.gives("10.43.255.255".parse().unwrap()) && !range.gives("10.43.0.0".parse().unwrap()));
        assert!(range.gives("10.43.255.254".parse().unwrap()));
        assert_eq!(range.to_string(), "10.43.0.0/16");
        let six = Cidr::parse("fd00::/108").unwrap();
        assert_eq!((six.family(), six.address(2).to_string().as_str()), ("IPv6", "fd00::2"));
        assert_eq!(Cidr::parse("10.0.0.0/33"), None);
        assert_eq!(Cidr::parse("x"), None);
    }
}
