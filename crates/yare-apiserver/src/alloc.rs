//! Addresses of services: cluster IPs from the service ranges and node ports, each given out once.
//!
//! What is taken is what the stored services say; at start it is read from them. Like upstream, random picks
//! come from the upper part of a range first, so that the lower part is free for addresses people choose.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use yare_kinds::view::{View, ViewMut};
use yare_schema::field::{FieldError, Path};

use crate::{
    core::{Call, Config, Random},
    status::{ApiError, ApiResult, GroupResource},
};

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

    /// Addresses that can be given out: without the first, and for IPv4 without the last. Bounded for IPv6.
    fn usable(&self) -> u128 {
        let size = 1u128 << self.bits.min(20);
        if self.v6 { size - 1 } else { size.saturating_sub(2) }
    }

    /// `IPv4` or `IPv6`
    pub fn family(&self) -> &'static str {
        if self.v6 { "IPv6" } else { "IPv4" }
    }
}

/// What is taken.
#[derive(Default)]
struct Taken {
    addresses: HashSet<IpAddr>,
    ports: HashSet<u16>,
}

/// Cluster IPs and node ports of one server.
pub struct Allocators {
    ranges: Vec<Cidr>,
    ports: (u16, u16),
    taken: Mutex<Taken>,
}

impl Allocators {
    /// Nothing taken yet.
    pub fn new(config: &Config) -> Self {
        Self {
            ranges: config.service_cidrs.iter().filter_map(|c| Cidr::parse(c)).collect(),
            ports: config.node_ports,
            taken: Mutex::default(),
        }
    }

    /// Takes what a stored service has.
    pub fn restore(&self, service: &Value) {
        let mut taken = self.taken.lock();
        taken.addresses.extend(addresses(service));
        taken.ports.extend(node_ports(service));
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
    }

    fn take_address(&self, range: &Cidr, random: &dyn Random) -> Option<IpAddr> {
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
                .find(|a| !taken.addresses.contains(a))
        };
        let found = pick(band, size, &taken).or_else(|| pick(0, band, &taken))?;
        taken.addresses.insert(found);
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
        service.strings("spec.clusterIPs").iter().filter_map(|a| a.parse().ok()).collect();
    if all.is_empty() {
        all.extend(service.str_at("spec.clusterIP").parse::<IpAddr>().ok());
    }
    all
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
}

impl Reserved<'_> {
    /// Nothing was taken.
    pub fn nothing() -> Self {
        Self { allocators: None, addresses: Vec::new(), ports: Vec::new() }
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
    let mut reserved =
        Reserved { allocators: Some(&call.core.allocators), addresses: Vec::new(), ports: Vec::new() };
    assign(call, service, &Value::Null, &mut reserved)?;
    if dry_run {
        // Dropped at once: nothing stays taken.
        return Ok(Reserved::nothing());
    }
    Ok(reserved)
}

/// Gives a changed service what it needs now and keeps what it had.
pub fn update(call: &Call, new: &mut Value, old: &Value, dry_run: bool) -> ApiResult<()> {
    keep_allocated(new, old);
    let mut reserved =
        Reserved { allocators: Some(&call.core.allocators), addresses: Vec::new(), ports: Vec::new() };
    assign(call, new, old, &mut reserved)?;
    if !dry_run {
        // Should the write fail for another reason, the next start gives these back.
        reserved.keep();
    }
    Ok(())
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
    service.str_at("spec.clusterIP") == "None" || service.strings("spec.clusterIPs").first() == Some(&"None")
}

fn needs_node_ports(service: &Value) -> bool {
    match service.str_at("spec.type") {
        "NodePort" => true,
        "LoadBalancer" => service.bool_opt("spec.allocateLoadBalancerNodePorts").unwrap_or(true),
        _ => false,
    }
}

fn needs_health_port(service: &Value) -> bool {
    service.str_at("spec.type") == "LoadBalancer" && service.str_at("spec.externalTrafficPolicy") == "Local"
}

/// An update that leaves allocated fields out keeps them.
fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_address(new) && needs_address(old) {
        if !new.is_set("spec.clusterIP") && !new.is_set("spec.clusterIPs") {
            new.copy_from(old, "spec.clusterIP");
            new.copy_from(old, "spec.clusterIPs");
        } else if !new.is_set("spec.clusterIPs")
            && new.str_at("spec.clusterIP") == old.str_at("spec.clusterIP")
        {
            new.copy_from(old, "spec.clusterIPs");
        }
    }
    if needs_node_ports(new) && needs_node_ports(old) {
        let before: Vec<Value> = old.items("spec.ports").to_vec();
        let used: Vec<i64> =
            new.items("spec.ports").iter().map(|p| p.int_at("nodePort")).filter(|p| *p != 0).collect();
        for port in new.items_mut("spec.ports") {
            if port.int_at("nodePort") != 0 {
                continue;
            }
            let same = before.iter().find(|b| {
                b.int_at("port") == port.int_at("port") && b.str_at("protocol") == port.str_at("protocol")
            });
            if let Some(kept) = same.map(|b| b.int_at("nodePort")).filter(|p| *p != 0 && !used.contains(p)) {
                port.set("nodePort", kept);
            }
        }
    }
    if needs_health_port(new) && needs_health_port(old) && !new.is_set("spec.healthCheckNodePort") {
        new.copy_from(old, "spec.healthCheckNodePort");
    }
    for field in ["spec.ipFamilies", "spec.ipFamilyPolicy"] {
        if new.str_at("spec.type") != "ExternalName" && !new.is_set(field) {
            new.copy_from(old, field);
        }
    }
}

fn assign(call: &Call, service: &mut Value, old: &Value, reserved: &mut Reserved<'_>) -> ApiResult<()> {
    let name = service.str_at("metadata.name").to_owned();
    let invalid = |error: FieldError| ApiError::invalid(SERVICE, &name, &[error]);
    let spec = Path::new("spec");
    let allocators = &call.core.allocators;
    let random = &*call.core.config.random;
    if service.str_at("spec.type") == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            service.remove(&format!("spec.{field}"));
        }
    } else {
        families(service, &allocators.ranges).map_err(invalid)?;
    }
    if needs_address(service) {
        let mut wanted: Vec<String> =
            service.strings("spec.clusterIPs").iter().map(|s| (*s).to_owned()).collect();
        if wanted.is_empty() && service.is_set("spec.clusterIP") {
            wanted.push(service.str_at("spec.clusterIP").to_owned());
        }
        let had = addresses(old);
        let families: Vec<String> =
            service.strings("spec.ipFamilies").iter().map(|s| (*s).to_owned()).collect();
        let mut given: Vec<String> = Vec::new();
        for (i, family) in families.iter().enumerate() {
            let Some(range) = allocators.ranges.iter().find(|r| r.family() == family) else { continue };
            match wanted.get(i).filter(|w| !w.is_empty()) {
                Some(text) => {
                    let path = spec.child("clusterIPs");
                    let refuse = |why: String| invalid(FieldError::invalid(&path, json!(wanted), why));
                    let Ok(address) = text.parse::<IpAddr>() else {
                        return Err(refuse(format!("failed to allocate IP {text}: not a valid IP address")));
                    };
                    if !had.contains(&address) {
                        if !range.contains(address) || address == range.address(0) {
                            return Err(refuse(format!(
                                "failed to allocate IP {text}: the provided IP ({text}) is not in the valid range. The range of valid IPs is {}",
                                call.core.config.service_cidrs.join(",")
                            )));
                        }
                        if !allocators.taken.lock().addresses.insert(address) {
                            return Err(refuse(format!(
                                "failed to allocate IP {text}: provided IP is already allocated"
                            )));
                        }
                        reserved.addresses.push(address);
                    }
                    given.push(text.clone());
                }
                None => {
                    let Some(address) = allocators.take_address(range, random) else {
                        return Err(ApiError::internal("failed to allocate a serviceIP: range is full"));
                    };
                    reserved.addresses.push(address);
                    given.push(address.to_string());
                }
            }
        }
        if let Some(first) = given.first() {
            service.set("spec.clusterIP", first.clone());
            service.set("spec.clusterIPs", given);
        }
    } else if is_headless(service) {
        service.set("spec.clusterIP", "None");
        service.set("spec.clusterIPs", vec!["None"]);
    }
    ports(call, service, old, reserved)
}

/// Fills in which address families a service has.
fn families(service: &mut Value, ranges: &[Cidr]) -> Result<(), FieldError> {
    let spec = Path::new("spec");
    let known: Vec<&'static str> = ranges.iter().map(Cidr::family).collect();
    let primary = known.first().copied().unwrap_or("IPv4");
    let dual = known.len() > 1;
    let policy = service.str_at("spec.ipFamilyPolicy").to_owned();
    let mut families: Vec<String> =
        service.strings("spec.ipFamilies").iter().map(|s| (*s).to_owned()).collect();
    if families.is_empty() {
        families = service
            .strings("spec.clusterIPs")
            .iter()
            .chain(&[service.str_at("spec.clusterIP")])
            .filter_map(|a| a.parse::<IpAddr>().ok())
            .map(|a| if a.is_ipv4() { "IPv4".to_owned() } else { "IPv6".to_owned() })
            .collect();
        families.dedup();
    }
    let selectorless_headless = is_headless(service) && !service.is_set("spec.selector");
    for (i, family) in families.iter().enumerate() {
        if !known.contains(&family.as_str()) && !selectorless_headless {
            return Err(FieldError::invalid(
                &spec.child("ipFamilies").index(i),
                family.as_str(),
                "not configured on this cluster",
            ));
        }
    }
    if policy == "RequireDualStack" && !dual && !selectorless_headless {
        return Err(FieldError::invalid(
            &spec.child("ipFamilyPolicy"),
            policy,
            "this cluster is not configured for dual-stack services",
        ));
    }
    let policy = if policy.is_empty() {
        if families.len() > 1 { "RequireDualStack".to_owned() } else { "SingleStack".to_owned() }
    } else {
        policy
    };
    if families.is_empty() {
        families.push(primary.to_owned());
    }
    if policy != "SingleStack" && families.len() == 1 && dual {
        families.extend(known.iter().find(|k| **k != families[0]).map(|k| (*k).to_owned()));
    }
    service.set("spec.ipFamilyPolicy", policy);
    service.set("spec.ipFamilies", families);
    Ok(())
}

fn ports(call: &Call, service: &mut Value, old: &Value, reserved: &mut Reserved<'_>) -> ApiResult<()> {
    let name = service.str_at("metadata.name").to_owned();
    let allocators = &call.core.allocators;
    let random = &*call.core.config.random;
    let had = node_ports(old);
    let spec = Path::new("spec");
    let list = spec.child("ports");
    let (low, high) = allocators.ports;
    let take = |wanted: i64, path: &Path<'_>, reserved: &mut Reserved<'_>| -> ApiResult<()> {
        let refuse =
            |why: String| ApiError::invalid(SERVICE, &name, &[FieldError::invalid(path, wanted, why)]);
        let port = u16::try_from(wanted).ok().filter(|p| (low..=high).contains(p));
        let Some(port) = port else {
            return Err(refuse(format!(
                "provided port is not in the valid range. The range of valid ports is {low}-{high}"
            )));
        };
        // One port may serve several protocols of the same service.
        if had.contains(&port) || reserved.ports.contains(&port) {
            return Ok(());
        }
        if !allocators.taken.lock().ports.insert(port) {
            return Err(refuse("provided port is already allocated".into()));
        }
        reserved.ports.push(port);
        Ok(())
    };
    let full = || ApiError::internal("failed to allocate a nodePort: range is full");
    if needs_node_ports(service) || service.str_at("spec.type") == "LoadBalancer" {
        let wants_new = needs_node_ports(service);
        for (i, port) in service.items_mut("spec.ports").iter_mut().enumerate() {
            let wanted = port.int_at("nodePort");
            if wanted != 0 {
                let at = list.index(i);
                take(wanted, &at.child("nodePort"), reserved)?;
            }
        }
        if wants_new {
            for port in service.items_mut("spec.ports") {
                if port.int_at("nodePort") == 0 {
                    let given = allocators.take_port(random).ok_or_else(full)?;
                    reserved.ports.push(given);
                    port.set("nodePort", given);
                }
            }
        }
    } else if needs_node_ports(old) {
        // No longer a node port service: ports that were only carried along go.
        let before = node_ports(old);
        for port in service.items_mut("spec.ports") {
            if u16::try_from(port.int_at("nodePort")).is_ok_and(|p| before.contains(&p)) {
                port.remove("nodePort");
            }
        }
    }
    if needs_health_port(service) {
        let wanted = service.int_at("spec.healthCheckNodePort");
        if wanted == 0 {
            let given = allocators.take_port(random).ok_or_else(full)?;
            reserved.ports.push(given);
            service.set("spec.healthCheckNodePort", given);
        } else {
            take(wanted, &spec.child("healthCheckNodePort"), reserved)?;
        }
    } else if needs_health_port(old)
        && service.int_at("spec.healthCheckNodePort") == old.int_at("spec.healthCheckNodePort")
    {
        service.remove("spec.healthCheckNodePort");
    }
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
        let six = Cidr::parse("fd00::/108").unwrap();
        assert_eq!((six.family(), six.address(2).to_string().as_str()), ("IPv6", "fd00::2"));
        assert_eq!(Cidr::parse("10.0.0.0/33"), None);
        assert_eq!(Cidr::parse("x"), None);
    }
}
