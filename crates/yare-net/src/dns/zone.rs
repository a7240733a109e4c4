//! The names of the cluster, and what they stand for. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
};

pub use super::view::{EndpointSlice, Service};

/// How long answers may be kept, seconds.
const TTL_S: u32 = 5;
/// The version of the DNS schema.
const SCHEMA_VERSION: &str = "1.1.0";

/// What is said to a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// These records (none: the name exists, but has nothing of the type).
    Records {
        /// What was asked for.
        answers: Vec<Record>,
        /// Addresses of names in the answers.
        additionals: Vec<Record>,
    },
    /// An alias to a name outside the zone: the caller looks it up.
    Alias(Box<Record>, Name),
    /// There is no such name.
    NoSuchName,
    /// The name is not in the zone.
    NotOurs,
}

impl Answer {
    fn records(answers: Vec<Record>) -> Self {
        Self::Records { answers, additionals: Vec::new() }
    }
}

type Key = (Box<str>, Box<str>);

/// All names of the cluster.
pub struct Zone {
    domain: Name,
    services: HashMap<Key, Service>,
    slices: HashMap<Key, BTreeMap<Box<str>, EndpointSlice>>,
    namespaces: HashSet<Box<str>>,
    /// Address to services whose cluster IP or endpoint it is.
    reverse: HashMap<IpAddr, BTreeSet<Key>>,
}

/// A service's endpoint, with the name it has there.
struct Host {
    name: String,
    address: IpAddr,
    ports: Vec<super::view::Port>,
}

impl Zone {
    /// An empty zone for `domain` (`cluster.local`). A domain that is no name serves nothing.
    pub fn new(domain: &str) -> Self {
        let mut domain = Name::from_ascii(domain).unwrap_or_default().to_lowercase();
        domain.set_fqdn(true);
        Self {
            domain,
            services: HashMap::new(),
            slices: HashMap::new(),
            namespaces: HashSet::new(),
            reverse: HashMap::new(),
        }
    }

    /// Takes in a service; `None`: it is gone.
    pub fn set_service(&mut self, namespace: &str, name: &str, service: Option<Service>) {
        let key: Key = (namespace.into(), name.into());
        self.unlink(&key);
        match service {
            Some(service) => self.services.insert(key.clone(), service),
            None => self.services.remove(&key),
        };
        self.link(&key);
    }

    /// Takes in a slice of a service; `None`: it is gone.
    pub fn set_slice(&mut self, namespace: &str, service: &str, slice: &str, value: Option<EndpointSlice>) {
        let key: Key = (namespace.into(), service.into());
        self.unlink(&key);
        let slices = self.slices.entry(key.clone()).or_default();
        match value {
            Some(value) => slices.insert(slice.into(), value),
            None => slices.remove(slice),
        };
        if slices.is_empty() {
            self.slices.remove(&key);
        }
        self.link(&key);
    }

    /// Takes in a namespace, present or gone.
    pub fn set_namespace(&mut self, name: &str, present: bool) {
        if present {
            self.namespaces.insert(name.into());
        } else {
            self.namespaces.remove(name);
        }
    }

    fn addresses(&self, key: &Key) -> Vec<IpAddr> {
        let Some(service) = self.services.get(key) else { return Vec::new() };
        let mut out = cluster_ips(service);
        out.extend(self.hosts(key).into_iter().map(|h| h.address));
        out
    }

    fn unlink(&mut self, key: &Key) {
        for ip in self.addresses(key) {
            if let Some(keys) = self.reverse.get_mut(&ip) {
                keys.remove(key);
                if keys.is_empty() {
                    self.reverse.remove(&ip);
                }
            }
        }
    }

    fn link(&mut self, key: &Key) {
        for ip in self.addresses(key) {
            self.reverse.entry(ip).or_default().insert(key.clone());
        }
    }

    /// The endpoints of a service that are ready.
    fn hosts(&self, key: &Key) -> Vec<Host> {
        let mut out = Vec::new();
        for slice in self.slices.get(key).into_iter().flat_map(BTreeMap::values) {
            for endpoint in slice.endpoints.iter().filter(|e| e.conditions.ready.unwrap_or(true)) {
                for address in &endpoint.addresses {
                    let name = match &endpoint.hostname {
                        Some(name) if !name.is_empty() => name.to_ascii_lowercase(),
                        _ => dashed(*address),
                    };
                    out.push(Host { name, address: *address, ports: slice.ports.clone() });
                }
            }
        }
        out
    }

    /// Whether the zone is to answer for `name`.
    pub fn answers_for(&self, name: &Name) -> bool {
        self.domain.zone_of(name) || self.reverse_of(name).is_some()
    }

    /// The start of authority, which says how long "no such name" may be kept.
    pub fn authority(&self) -> Record {
        let under = |label: &str| self.domain.prepend_label(label).unwrap_or_else(|_| self.domain.clone());
        let soa = SOA::new(under("ns"), under("hostmaster"), 1, 7200, 1800, 86400, TTL_S);
        Record::from_rdata(self.domain.clone(), TTL_S, RData::SOA(soa))
    }

    /// Answers a question.
    pub fn resolve(&self, name: &Name, kind: RecordType) -> Answer {
        let lower = name.to_lowercase();
        if let Some(keys) = self.reverse_of(&lower) {
            return self.pointers(name, &lower, kind, keys);
        }
        if !self.domain.zone_of(&lower) {
            return Answer::NotOurs;
        }
        let depth = usize::from(lower.num_labels() - self.domain.num_labels());
        let labels: Vec<String> =
            lower.iter().take(depth).map(|l| String::from_utf8_lossy(l).into_owned()).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        // Read from the right: `svc`, the namespace, the service, …
        match labels.as_slice() {
            [] => self.apex(name, kind),
            ["dns-version"] if kind == RecordType::TXT => {
                let text = TXT::new(vec![SCHEMA_VERSION.to_owned()]);
                Answer::records(vec![record(name, RData::TXT(text))])
            }
            ["dns-version" | "svc" | "pod"] => Answer::records(Vec::new()),
            [namespace, "svc" | "pod"] if self.namespaces.contains(*namespace) => Answer::records(Vec::new()),
            [ip, namespace, "pod"] if self.namespaces.contains(*namespace) => match undashed(ip) {
                Some(ip) => Answer::records(address(name, ip, kind).into_iter().collect()),
                None => Answer::NoSuchName,
            },
            [rest @ .., service, namespace, "svc"] => {
                let key: Key = ((*namespace).into(), (*service).into());
                match self.services.get(&key) {
                    Some(found) => self.service(name, kind, &key, found, rest),
                    None => Answer::NoSuchName,
                }
            }
            _ => Answer::NoSuchName,
        }
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Answer {
        Answer::records(match kind {
            RecordType::SOA => vec![self.authority()],
            RecordType::NS => match self.domain.prepend_label("ns") {
                Ok(ns) => vec![record(name, RData::NS(NS(ns)))],
                Err(_) => Vec::new(),
            },
            _ => Vec::new(),
        })
    }

    fn service(&self, name: &Name, kind: RecordType, key: &Key, service: &Service, rest: &[&str]) -> Answer {
        if service.spec.kind == "ExternalName" {
            if !rest.is_empty() {
                return Answer::NoSuchName;
            }
            let Ok(mut target) = Name::from_utf8(&service.spec.external_name) else {
                return Answer::NoSuchName;
            };
            target.set_fqdn(true);
            let alias = record(name, RData::CNAME(CNAME(target.clone())));
            return Answer::Alias(Box::new(alias), target);
        }
        let cluster = cluster_ips(service);
        let headless = cluster.is_empty();
        match rest {
            [] => match kind {
                RecordType::SRV => self.srv(name, key, service, None),
                _ if headless => {
                    let hosts = self.hosts(key);
                    if hosts.is_empty() {
                        return Answer::NoSuchName;
                    }
                    Answer::records(hosts.iter().filter_map(|h| address(name, h.address, kind)).collect())
                }
                _ => Answer::records(cluster.into_iter().filter_map(|ip| address(name, ip, kind)).collect()),
            },
            [port, protocol] if port.starts_with('_') && protocol.starts_with('_') => {
                let wanted = Some((&port[1..], &protocol[1..]));
                match self.srv(name, key, service, wanted) {
                    Answer::Records { answers, .. } if answers.is_empty() => Answer::NoSuchName,
                    found if kind == RecordType::SRV => found,
                    _ => Answer::records(Vec::new()),
                }
            }
            [host] => {
                let matching: Vec<Host> = self.hosts(key).into_iter().filter(|h| h.name == *host).collect();
                if matching.is_empty() {
                    return Answer::NoSuchName;
                }
                Answer::records(matching.iter().filter_map(|h| address(name, h.address, kind)).collect())
            }
            _ => Answer::NoSuchName,
        }
    }

    /// SRV records: of the service itself, or of each endpoint of a headless one.
    fn srv(&self, name: &Name, key: &Key, service: &Service, wanted: Option<(&str, &str)>) -> Answer {
        let matches = |port: &super::view::Port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            wanted.is_none_or(|(n, p)| {
                port.name.as_deref().unwrap_or_default().eq_ignore_ascii_case(n)
                    && protocol.eq_ignore_ascii_case(p)
            })
        };
        let base = self.name_of(key);
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        let mut add = |target: &Name, port: u16, ips: &[IpAddr]| {
            answers.push(record(name, RData::SRV(SRV::new(0, 100, port, target.clone()))));
            for ip in ips {
                let found = [RecordType::A, RecordType::AAAA].map(|kind| address(target, *ip, kind));
                additionals.extend(found.into_iter().flatten());
            }
        };
        let cluster = cluster_ips(service);
        if cluster.is_empty() {
            for host in self.hosts(key) {
                let Ok(target) = base.prepend_label(host.name.as_str()) else { continue };
                for port in host.ports.iter().filter(|p| matches(p)) {
                    add(&target, port.port.unwrap_or_default(), &[host.address]);
                }
            }
        } else {
            for port in service.spec.ports.iter().filter(|p| matches(p)) {
                add(&base, port.port.unwrap_or_default(), &cluster);
            }
        }
        additionals.dedup();
        Answer::Records { answers, additionals }
    }

    fn name_of(&self, (namespace, service): &Key) -> Name {
        let labels = [&**service, &**namespace, "svc"];
        Name::from_labels(labels.iter().map(|l| l.as_bytes()))
            .and_then(|name| name.append_domain(&self.domain))
            .unwrap_or_else(|_| self.domain.clone())
    }

    /// The services of the address that a reverse name stands for.
    fn reverse_of(&self, name: &Name) -> Option<&BTreeSet<Key>> {
        self.reverse.get(&reverse_address(name)?)
    }

    fn pointers(&self, name: &Name, lower: &Name, kind: RecordType, keys: &BTreeSet<Key>) -> Answer {
        if kind != RecordType::PTR {
            return Answer::records(Vec::new());
        }
        let Some(ip) = reverse_address(lower) else { return Answer::NoSuchName };
        let mut answers = Vec::new();
        for key in keys {
            let Some(service) = self.services.get(key) else { continue };
            let base = self.name_of(key);
            if cluster_ips(service).contains(&ip) {
                answers.push(record(name, RData::PTR(PTR(base))));
                continue;
            }
            for host in self.hosts(key).iter().filter(|h| h.address == ip) {
                if let Ok(target) = base.prepend_label(host.name.as_str()) {
                    answers.push(record(name, RData::PTR(PTR(target))));
                }
            }
        }
        Answer::records(answers)
    }
}

fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    service.spec.cluster_ips.iter().filter_map(|ip| ip.parse().ok()).collect()
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL_S, data)
}

/// An address record, if `ip` is of the kind asked for.
fn address(name: &Name, ip: IpAddr, kind: RecordType) -> Option<Record> {
    match (ip, kind) {
        (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => Some(record(name, RData::A(A(ip)))),
        (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => Some(record(name, RData::AAAA(AAAA(ip)))),
        _ => None,
    }
}

/// `10-1-2-3` for `10.1.2.3`
fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

fn undashed(label: &str) -> Option<IpAddr> {
    label.replace('-', ".").parse().ok().or_else(|| label.replace('-', ":").parse().ok())
}

/// The address of `4.3.2.1.in-addr.arpa` or its IPv6 sibling, where it is a whole one.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let labels: Vec<&[u8]> = name.iter().collect();
    let text = |label: &&[u8]| std::str::from_utf8(label).ok().map(str::to_owned);
    match labels.as_slice() {
        [parts @ .., b"in-addr", b"arpa"] if parts.len() == 4 => {
            let parts: Option<Vec<String>> = parts.iter().rev().map(text).collect();
            parts?.join(".").parse().ok()
        }
        [parts @ .., b"ip6", b"arpa"] if parts.len() == 32 => {
            let digits: Option<Vec<String>> = parts.iter().rev().map(text).collect();
            let groups: Vec<String> = digits?.chunks(4).map(<[String]>::concat).collect();
            groups.join(":").parse().ok()
        }
        _ => None,
    }
}
