//! The service proxy: what is sent to a Service reaches one of its endpoints.
//!
//! In flow Services, EndpointSlices and this node's name; out flow elements of a few global nftables maps:
//!
//! | Map | Key | Leads to |
//! |---|---|---|
//! | `services` | address, protocol, port | the chain for its number of endpoints |
//! | `node-ports` | protocol, port | likewise |
//! | `endpoints` | address (0 for node ports), protocol, port, slot | endpoint's address and port |
//! | `affinity` | client and `endpoints`' key without slot | the endpoint the client had |
//! | `no-endpoints`, `no-node-endpoints` | as `services`, `node-ports` | refused |
//! | `inside`, `inside-node-ports` | likewise | the chain for clients in the cluster (`externalTrafficPolicy: Local`) |
//! | `not-here`, `not-here-node-ports` | likewise | dropped: endpoints are on other nodes only |
//! | `restricted`, `allowed` | as `services`, and a range of clients | dropped (`loadBalancerSourceRanges`) |
//! | `hairpin` | an endpoint's address twice | masqueraded: it talks to itself |
//!
//! Rules do not grow with the number of services: there is one chain per *number of endpoints* (and few
//! variants), which draws a slot and looks the endpoint up. A change touches only its own elements.

mod answer;
pub(crate) mod conntrack;
mod health;
pub(crate) mod plan;
mod rules;
mod status;
mod view;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use tokio::task::JoinHandle;
use yare_client::{Cached, Change, Client, ENDPOINT_SLICES, ObjectKey, SERVICES};

use crate::{
    host_ports,
    ipam::Cidr,
    link::{self, Route},
    netlink::{self, Socket},
    nft::{self, Batch, Element, Family},
};

pub use conntrack::Tracked;
pub use health::HealthServers;
pub use plan::{Endpoint, Health, Plan, ServicePlan, plan};
pub use status::{Listen, Progress};
pub use view::{EndpointSlice, Service};

/// How the proxy runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node_name: String,
    /// Addresses of all pods.
    pub cluster_cidrs: Vec<Cidr>,
    /// Addresses of services.
    pub service_cidrs: Vec<Cidr>,
    /// How many connections this machine is to track.
    pub tracked: Tracked,
}

/// Why rules could not be set.
#[derive(Debug, thiserror::Error)]
#[error("service rules ({what}): {source}; is nftables in this kernel, and does yare run as root?")]
pub struct ProxyError {
    what: &'static str,
    source: netlink::Error,
}

fn doing(what: &'static str) -> impl FnOnce(netlink::Error) -> ProxyError {
    move |source| ProxyError { what, source }
}

/// The kernel's side: what is set, and how it is changed.
pub struct Rules {
    socket: Socket,
    /// Elements that are set, and how many services want each.
    set: HashMap<(Family, Element), u32>,
    chains: HashSet<(Family, plan::Chain)>,
    config: Config,
}

impl Rules {
    /// Empties the tables and writes what does not depend on services.
    pub fn new(config: Config) -> Result<Self, ProxyError> {
        let mut rules = Self::open(config)?;
        rules.reset(&[])?;
        Ok(rules)
    }

    /// Leaves in the kernel what an earlier process has set there, until [`Self::reset`].
    fn open(config: Config) -> Result<Self, ProxyError> {
        let socket = nft::socket().map_err(doing("netlink"))?;
        route_services(&config).map_err(doing("route to the service range"))?;
        Ok(Self { socket, set: HashMap::new(), chains: HashSet::new(), config })
    }

    /// Replaces whatever is there by the base rules and what these plans want, in one transaction: a
    /// connection that is made meanwhile finds its service under the old rules or under the new.
    fn reset(&mut self, plans: &[&Plan]) -> Result<(), ProxyError> {
        let (mut set, mut chains) = (HashMap::new(), HashSet::new());
        for family in [Family::V4, Family::V6] {
            let mut batch = Batch::new(family, rules::TABLE);
            rules::base(&mut batch, family, &self.config);
            let mut come = Vec::new();
            for plan in plans.iter().map(|plan| plan.family(family)) {
                for chain in &plan.chains {
                    if chains.insert((family, *chain)) {
                        rules::endpoint_chain(&mut batch, family, *chain);
                    }
                }
                for element in &plan.elements {
                    let count: &mut u32 = set.entry((family, element.clone())).or_default();
                    if *count == 0 {
                        come.push(element);
                    }
                    *count += 1;
                }
            }
            batch.add_elements(come);
            batch.commit(&mut self.socket).map_err(doing("base table"))?;
        }
        (self.set, self.chains) = (set, chains);
        // Only now is connection tracking there for certain.
        if let Err(error) = conntrack::set_timeouts() {
            tracing::warn!(%error, "timeouts of tracked TCP connections stay as they are");
        }
        if let Err(error) = conntrack::raise_limit(self.config.tracked) {
            tracing::info!(%error, "no more connections are tracked than before");
        }
        Ok(())
    }

    /// Whether the tables are still there: another program may have emptied all there is (`nft flush ruleset`).
    pub fn are_there(&mut self) -> Result<bool, ProxyError> {
        for family in [Family::V4, Family::V6] {
            if !nft::has_table(&mut self.socket, family, rules::TABLE).map_err(doing("look"))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Replaces what `old` set by what `new` wants.
    pub fn apply(&mut self, old: Option<&Plan>, new: Option<&Plan>) -> Result<(), ProxyError> {
        for family in [Family::V4, Family::V6] {
            self.apply_family(family, old, new)?;
        }
        self.forget_connections(old, new).map_err(doing("connection tracking"))
    }

    fn apply_family(
        &mut self,
        family: Family,
        old: Option<&Plan>,
        new: Option<&Plan>,
    ) -> Result<(), ProxyError> {
        let none = ServicePlan::default();
        let side = |plan: Option<&Plan>| -> ServicePlan {
            plan.map_or_else(|| none.clone(), |p| p.family(family).clone())
        };
        let (old, new) = (side(old), side(new));
        let mut batch = Batch::new(family, rules::TABLE);
        for chain in &new.chains {
            if !self.chains.contains(&(family, *chain)) {
                rules::endpoint_chain(&mut batch, family, *chain);
            }
        }
        let gone: Vec<&Element> = old
            .elements
            .difference(&new.elements)
            .filter(|e| self.set.get(&(family, (*e).clone())) == Some(&1))
            .collect();
        let come: Vec<&Element> = new
            .elements
            .difference(&old.elements)
            .filter(|e| !self.set.contains_key(&(family, (*e).clone())))
            .collect();
        batch.delete_elements(gone);
        batch.add_elements(come);
        if !batch.is_empty() {
            batch.commit(&mut self.socket).map_err(doing("elements"))?;
        }
        // Only what the kernel took is remembered.
        self.chains.extend(new.chains.iter().map(|c| (family, *c)));
        for element in old.elements.difference(&new.elements) {
            let key = (family, element.clone());
            match self.set.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    self.set.remove(&key);
                }
            }
        }
        for element in new.elements.difference(&old.elements) {
            *self.set.entry((family, element.clone())).or_default() += 1;
        }
        self.forget_affinity(family, &old, &new)
    }

    /// Clients must not stick to an endpoint that is gone.
    fn forget_affinity(
        &mut self,
        family: Family,
        old: &ServicePlan,
        new: &ServicePlan,
    ) -> Result<(), ProxyError> {
        if !old.chains.iter().any(|c| c.affinity_s.is_some()) {
            return Ok(());
        }
        let gone: BTreeSet<Vec<u8>> = old.targets().difference(&new.targets()).cloned().collect();
        if gone.is_empty() {
            return Ok(());
        }
        let remembered = nft::elements(&mut self.socket, family, rules::TABLE, rules::AFFINITY.name)
            .map_err(doing("affinity"))?;
        for (key, value) in remembered.into_iter().filter(|(_, value)| gone.contains(value)) {
            let element = Element { set: rules::AFFINITY.name, key, data: nft::Data::Value(value) };
            let mut batch = Batch::new(family, rules::TABLE);
            batch.delete_elements([&element]);
            match batch.commit(&mut self.socket) {
                // It timed out meanwhile.
                Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => {}
                other => other.map_err(doing("affinity"))?,
            }
        }
        Ok(())
    }

    /// UDP "connections" last as long as packets flow: those to endpoints that are gone must end by hand.
    fn forget_connections(&mut self, old: Option<&Plan>, new: Option<&Plan>) -> Result<(), netlink::Error> {
        let before = old.map(|p| p.udp.clone()).unwrap_or_default();
        let after = new.map(|p| p.udp.clone()).unwrap_or_default();
        let gone: HashSet<_> = before.difference(&after).copied().collect();
        // Where there was nothing to send to, packets may be tracked as going to the service itself.
        let services: HashSet<_> = before.iter().map(|(service, _)| *service).collect();
        let fresh: HashSet<_> =
            after.iter().map(|(service, _)| *service).filter(|s| !services.contains(s)).collect();
        if gone.is_empty() && fresh.is_empty() {
            return Ok(());
        }
        conntrack::forget_udp(&mut self.socket, |sent_to, target| {
            // Of a node port, every address is a service's.
            [sent_to, plan::node_port(sent_to.is_ipv6(), sent_to.port())].iter().any(|service| {
                gone.contains(&(*service, target)) || (sent_to == target && fresh.contains(service))
            })
        })
    }

    /// This node's plan for a service.
    pub fn plan(&self, service: &Service, slices: &[EndpointSlice]) -> Plan {
        plan(&self.config.node_name, service, slices)
    }
}

/// Removes all rules, those of host ports too, of whichever agent; that there are none is fine.
pub fn remove_rules() -> Result<(), ProxyError> {
    let mut socket = nft::socket().map_err(doing("netlink"))?;
    let tables = [rules::TABLE, host_ports::TABLE];
    for (family, table) in tables.into_iter().flat_map(|t| [(Family::V4, t), (Family::V6, t)]) {
        let mut batch = Batch::new(family, table);
        batch.delete_table();
        match batch.commit(&mut socket) {
            Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => {}
            other => other.map_err(doing("removal"))?,
        }
    }
    Ok(())
}

/// Gives the node itself a route to services, so that a connection from here finds a way even where there is
/// no default route; its destination is then translated before it would leave.
fn route_services(config: &Config) -> Result<(), netlink::Error> {
    let mut socket = Socket::open(netlink::ROUTE)?;
    let Some(lo) = link::find(&mut socket, "lo")? else { return Ok(()) };
    link::set_up(&mut socket, lo.index)?;
    for range in &config.service_cidrs {
        let v6 = range.base.is_ipv6();
        let to = Some((range.base, range.prefix));
        // The packet leaves with the node's own address of the pod range, to which every pod has a way back.
        let source = config.cluster_cidrs.iter().find(|c| c.base.is_ipv6() == v6);
        let source = source.and_then(|_| node_address(&mut socket, v6, config));
        Route { to, via: None, link: lo.index, source, v6 }.set(&mut socket)?;
    }
    Ok(())
}

/// The address that the node has towards its pods.
fn node_address(socket: &mut Socket, v6: bool, config: &Config) -> Option<IpAddr> {
    let range = config.cluster_cidrs.iter().find(|c| c.base.is_ipv6() == v6)?;
    let addresses = link::addresses(socket).ok()?;
    addresses.into_iter().find(|ip| range.contains(*ip))
}

/// A running proxy; it stops when dropped, and the rules stay: services go on.
pub struct Proxy {
    task: JoinHandle<()>,
    _servers: status::Servers,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Takes the rules over from an earlier process, if there was one, and keeps them as services change.
    pub fn start(client: Client, config: Config, listen: Listen) -> Result<Self, ProxyError> {
        let progress = Arc::new(Progress::default());
        let family = |cidr: &Cidr| if cidr.base.is_ipv4() { "IPv4" } else { "IPv6" };
        let families = config.cluster_cidrs.iter().map(family).collect();
        let servers = status::Servers::start(&client, listen, &config.node_name, families, progress.clone());
        let rules = Rules::open(config)?;
        Ok(Self { task: tokio::spawn(run(client, rules, progress)), _servers: servers })
    }
}

async fn run(client: Client, rules: Rules, progress: Arc<Progress>) {
    let services = client.informers().of(SERVICES);
    let slices = client.informers().of(ENDPOINT_SLICES);
    tokio::join!(services.synced(), slices.synced());
    let mut service_changes = services.subscribe();
    let mut slice_changes = slices.subscribe();
    let mut state = State {
        rules,
        services: HashMap::new(),
        slices: HashMap::new(),
        applied: HashMap::new(),
        health: HealthServers::new(progress.clone()),
    };
    let mut retry = HashSet::new();
    // Both caches are whole: what is known now comes into the kernel at once.
    while let Some(change) = service_changes.try_recv() {
        state.service_changed(change, &mut retry);
    }
    while let Some(change) = slice_changes.try_recv() {
        state.slice_changed(change, &mut retry);
    }
    progress.heard();
    while let Err(error) = state.take_over(&retry) {
        tracing::warn!(%error, "service rules not set, trying again");
        tokio::time::sleep(RETRY).await;
    }
    retry.clear();
    progress.done();
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        let mut touched: HashSet<ObjectKey> = std::mem::take(&mut retry);
        // What cannot be set may have lost the table that it belongs into.
        let mut is_doubtful = !touched.is_empty();
        if touched.is_empty() {
            tokio::select! {
                Some(change) = service_changes.recv() => state.service_changed(change, &mut touched),
                Some(change) = slice_changes.recv() => state.slice_changed(change, &mut touched),
                _ = look.tick() => is_doubtful = true,
                else => return,
            }
        } else {
            tokio::time::sleep(RETRY).await;
        }
        progress.heard();
        // What came meanwhile is taken along: a rolling update is one change, not fifty.
        while let Some(change) = service_changes.try_recv() {
            state.service_changed(change, &mut touched);
        }
        while let Some(change) = slice_changes.try_recv() {
            state.slice_changed(change, &mut touched);
        }
        if is_doubtful && let Err(error) = state.restore() {
            tracing::warn!(%error, "service rules that somebody removed are not set again yet");
        }
        for key in touched {
            if let Err(error) = state.sync(&key) {
                tracing::warn!(service = %key, %error, "service rules not set, trying again");
                retry.insert(key);
            }
        }
        if retry.is_empty() {
            progress.done();
        }
    }
}

const RETRY: std::time::Duration = std::time::Duration::from_secs(1);
/// How often somebody looks whether the rules are still there, while nothing changes.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(30);
/// On a Service: another proxy, of this name, looks after it.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// On an EndpointSlice: it is for DNS alone.
const HEADLESS: &str = "service.kubernetes.io/headless";

struct State {
    rules: Rules,
    services: HashMap<ObjectKey, Cached>,
    /// Slices by service, then by their own key.
    slices: HashMap<ObjectKey, HashMap<ObjectKey, Cached>>,
    applied: HashMap<ObjectKey, Plan>,
    health: HealthServers,
}

impl State {
    fn service_changed(&mut self, change: Change, touched: &mut HashSet<ObjectKey>) {
        let Some(key) = change.object().map(|o| o.key().clone()) else { return };
        match change.new.filter(|service| service.label(OTHER_PROXY).is_none()) {
            Some(new) => self.services.insert(key.clone(), new),
            None => self.services.remove(&key),
        };
        touched.insert(key);
    }

    fn slice_changed(&mut self, change: Change, touched: &mut HashSet<ObjectKey>) {
        let service = |slice: &Cached| {
            slice.label("kubernetes.io/service-name").map(|name| ObjectKey::new(slice.namespace(), name))
        };
        // Its labels may have changed: it leaves one service and comes to another.
        for (slice, present) in [(&change.old, false), (&change.new, true)] {
            let Some(slice) = slice else { continue };
            let Some(key) = service(slice).filter(|_| slice.label(HEADLESS).is_none()) else { continue };
            let own = slice.key().clone();
            let list = self.slices.entry(key.clone()).or_default();
            if present {
                list.insert(own, slice.clone());
            } else {
                list.remove(&own);
            }
            if list.is_empty() {
                self.slices.remove(&key);
            }
            touched.insert(key);
        }
    }

    fn plan(&self, key: &ObjectKey) -> Option<Plan> {
        let service: Service = self.services.get(key)?.view().ok()?;
        let slices = self.slices.get(key).into_iter().flat_map(HashMap::values);
        let slices: Vec<EndpointSlice> = slices.filter_map(|s| s.view().ok()).collect();
        Some(self.rules.plan(&service, &slices))
    }

    /// Sets the rules of all services in place of those of an earlier process.
    fn take_over(&mut self, services: &HashSet<ObjectKey>) -> Result<(), ProxyError> {
        let plans: HashMap<ObjectKey, Plan> =
            services.iter().filter_map(|key| Some((key.clone(), self.plan(key)?))).collect();
        self.rules.reset(&plans.values().collect::<Vec<_>>())?;
        for (key, plan) in &plans {
            self.health.set(key, plan.health);
        }
        self.applied = plans;
        Ok(())
    }

    /// Sets all rules anew where somebody has removed them.
    fn restore(&mut self) -> Result<(), ProxyError> {
        if self.rules.are_there()? {
            return Ok(());
        }
        tracing::warn!("somebody removed the service rules; they are set again");
        for key in self.applied.keys().filter(|key| !self.services.contains_key(key)) {
            self.health.set(key, None);
        }
        let all = self.services.keys().cloned().collect();
        self.take_over(&all)
    }

    fn sync(&mut self, key: &ObjectKey) -> Result<(), ProxyError> {
        let new = self.plan(key);
        let old = self.applied.get(key);
        if old == new.as_ref() {
            return Ok(());
        }
        self.rules.apply(old, new.as_ref())?;
        self.health.set(key, new.as_ref().and_then(|plan| plan.health));
        match new {
            Some(new) => self.applied.insert(key.clone(), new),
            None => self.applied.remove(key),
        };
        Ok(())
    }
}
