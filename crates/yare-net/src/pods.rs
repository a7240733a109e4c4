//! The pod network of a node: an address, a veth pair and a route for each pod.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use crate::{
    host_ports::{self, HostPort, HostPorts},
    ipam::{Cidr, Ipam, IpamError},
    link::{self, Mac, Route},
    netlink::{self, Socket},
};

/// The link that carries the node's own address in the pod range: always there, and no packet leaves by it.
const NODE_LINK: &str = "lo";
/// The name of a pod's interface, as everywhere.
const POD_LINK: &str = "eth0";
/// The address that pods send everything to. It exists nowhere: a permanent neighbour entry stands for it.
const NEXT_HOP_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const NEXT_HOP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// Why a pod has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No address.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// The kernel refused.
    #[error("{what}: {source}")]
    Netlink {
        /// What was being done.
        what: String,
        /// Why not.
        source: netlink::Error,
    },
    /// A file could not be opened or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The node has no range yet.
    #[error("the node has no podCIDR yet: it is given one by the controller manager")]
    NoRange,
}

fn doing(what: impl Into<String>) -> impl FnOnce(netlink::Error) -> NetError {
    move |source| NetError::Netlink { what: what.into(), source }
}

struct State {
    socket: Socket,
    ipam: Ipam,
    mtu: u32,
    /// `None` where nftables is missing, which is an error only for a pod that wants a port.
    host_ports: Option<HostPorts>,
}

impl State {
    fn host_ports(&mut self) -> Result<&mut HostPorts, netlink::Error> {
        match self.host_ports {
            Some(ref mut ports) => Ok(ports),
            None => Ok(self.host_ports.insert(HostPorts::open()?)),
        }
    }
}

/// What a sandbox has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The pod's address.
    pub ip: IpAddr,
    /// The node's end of its link.
    pub link: String,
    /// That end's Ethernet address; zeros where the link is gone.
    pub link_mac: Mac,
    /// The Ethernet address of the pod's end.
    pub mac: Mac,
    /// Where the pod sends everything to.
    pub next_hop: IpAddr,
}

/// The pod network. Its calls take microseconds to a millisecond and may block: call them where that is fine.
pub struct PodNetwork {
    directory: PathBuf,
    state: Mutex<Option<State>>,
}

impl PodNetwork {
    /// A network that keeps its addresses under `directory` and waits for its range.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), state: Mutex::new(None) }
    }

    /// Sets the node's range, its own address in it, and forwarding; takes back what sandboxes have that are not
    /// `alive`: they ended while nobody could. Repeatable.
    pub fn configure(&self, range: Cidr, alive: impl Fn(&str) -> bool) -> Result<(), NetError> {
        let mut socket = Socket::open(netlink::ROUTE).map_err(doing("netlink"))?;
        let ipam = Ipam::open(&self.directory, range)?;
        let node = link::find(&mut socket, NODE_LINK)
            .map_err(doing(format!("link {NODE_LINK}")))?
            .map(|l| l.index)
            .unwrap_or_default();
        let gateway = ipam.gateway();
        let prefix = if gateway.is_ipv4() { 32 } else { 128 };
        link::set_up(&mut socket, node).map_err(doing(format!("link {NODE_LINK}")))?;
        link::add_address(&mut socket, node, gateway, prefix).map_err(doing(format!("address {gateway}")))?;
        forward(gateway)?;
        let mtu = uplink_mtu(&mut socket, gateway).map_err(doing("route to the outside"))?;
        let host_ports = HostPorts::open()
            .inspect_err(|error| tracing::warn!(%error, "no host ports: is nftables in this kernel?"))
            .ok();
        let mut state = State { socket, ipam, mtu, host_ports };
        let gone: Vec<String> = state.ipam.owners().filter(|o| !alive(o)).map(str::to_owned).collect();
        for id in gone {
            close_ports(&mut state, &id)?;
            remove_link(&mut state.socket, &id)?;
            state.ipam.release(&id)?;
        }
        *self.state.lock() = Some(state);
        Ok(())
    }

    /// Whether pods can be attached.
    pub fn ready(&self) -> bool {
        self.state.lock().is_some()
    }

    /// The node's own address in the pod range.
    pub fn gateway(&self) -> Option<IpAddr> {
        self.state.lock().as_ref().map(|s| s.ipam.gateway())
    }

    /// Gives the sandbox `id`, whose network namespace is at `namespace`, an address, an interface and its
    /// ports on the node. A sandbox that is attached already keeps what it has.
    pub fn attach(&self, id: &str, namespace: &Path, ports: &[HostPort]) -> Result<IpAddr, NetError> {
        let file =
            File::open(namespace).map_err(|source| NetError::Io { path: namespace.to_owned(), source })?;
        let mut guard = self.state.lock();
        let state = guard.as_mut().ok_or(NetError::NoRange)?;
        let ip = state.ipam.take(id)?;
        let result = attach(state, id, &file, ip).and_then(|()| open_ports(state, id, ip, ports));
        if result.is_err() {
            let _ = state.host_ports.as_mut().map(|open| open.remove(ip));
            // The error that matters is the first one; a link that stays behind is removed at the next try.
            let _ = link::remove(&mut state.socket, &link_name(id));
            let _ = state.ipam.release(id);
        }
        result.map(|()| ip)
    }

    /// What the sandbox was given.
    pub fn attached(&self, id: &str) -> Option<Attached> {
        let mut guard = self.state.lock();
        let state = guard.as_mut()?;
        let ip = state.ipam.of(id)?;
        let link = link_name(id);
        let link_mac = link::find(&mut state.socket, &link).ok().flatten().map(|l| l.mac).unwrap_or_default();
        let next_hop = if ip.is_ipv4() { NEXT_HOP_V4 } else { NEXT_HOP_V6 };
        Some(Attached { ip, link, link_mac, mac: pod_mac(ip), next_hop })
    }

    /// Whether the sandbox's link is there, which it is for as long as its network namespace.
    pub fn linked(&self, id: &str) -> bool {
        let found =
            Socket::open(netlink::ROUTE).and_then(|mut socket| link::find(&mut socket, &link_name(id)));
        found.ok().flatten().is_some()
    }

    /// The sandboxes that have addresses.
    pub fn owners(&self) -> Vec<String> {
        self.state.lock().as_ref().map(|s| s.ipam.owners().map(str::to_owned).collect()).unwrap_or_default()
    }

    /// Closes the sandbox's ports on the node. Repeatable.
    pub fn close_ports(&self, id: &str) -> Result<(), NetError> {
        self.state.lock().as_mut().map_or(Ok(()), |state| close_ports(state, id))
    }

    /// Takes the sandbox's interface and address away. Repeatable; a sandbox never attached is fine. The kernel
    /// removes an interface only after a pause of tens of milliseconds, in which others are attached and detached.
    pub fn detach(&self, id: &str) -> Result<(), NetError> {
        match self.state.lock().as_mut() {
            Some(state) => close_ports(state, id)?,
            None => return Ok(()),
        }
        let mut socket = Socket::open(netlink::ROUTE).map_err(doing("netlink"))?;
        remove_link(&mut socket, id)?;
        // Last: the address is somebody else's from here on.
        self.state.lock().as_mut().map_or(Ok(()), |state| state.ipam.release(id).map_err(NetError::from))
    }
}

fn close_ports(state: &mut State, id: &str) -> Result<(), NetError> {
    if let (Some(ip), Some(ports)) = (state.ipam.of(id), &mut state.host_ports) {
        ports.remove(ip).map_err(doing(format!("host ports of {ip}")))?;
    }
    Ok(())
}

fn remove_link(socket: &mut Socket, id: &str) -> Result<(), NetError> {
    let name = link_name(id);
    link::remove(socket, &name).map_err(doing(format!("link {name}")))
}

fn attach(state: &mut State, id: &str, namespace: &File, ip: IpAddr) -> Result<(), NetError> {
    let name = link_name(id);
    let socket = &mut state.socket;
    let mac = pod_mac(ip);
    if link::find(socket, &name).map_err(doing(format!("link {name}")))?.is_some() {
        link::remove(socket, &name).map_err(doing(format!("link {name}")))?;
    }
    link::create_veth(socket, &name, POD_LINK, mac, namespace.as_raw_fd(), state.mtu)
        .map_err(doing(format!("veth {name}")))?;
    let node = link::find(socket, &name)
        .map_err(doing(format!("link {name}")))?
        .ok_or_else(|| doing(format!("link {name}"))(io::Error::from(io::ErrorKind::NotFound).into()))?;
    let (prefix, next_hop, v6) = match ip {
        IpAddr::V4(_) => (32, NEXT_HOP_V4, false),
        IpAddr::V6(_) => (128, NEXT_HOP_V6, true),
    };
    link::set_neighbour(socket, node.index, ip, mac).map_err(doing(format!("neighbour {ip}")))?;
    let source = Some(state.ipam.gateway());
    Route { to: Some((ip, prefix)), via: None, link: node.index, source, v6 }
        .set(socket)
        .map_err(doing(format!("route to {ip}")))?;
    let mut inside =
        Socket::open_in(namespace.as_fd(), netlink::ROUTE).map_err(doing("pod's network namespace"))?;
    let inside = &mut inside;
    let lo = link::find(inside, "lo").map_err(doing("pod's lo"))?;
    if let Some(lo) = lo {
        link::set_up(inside, lo.index).map_err(doing("pod's lo"))?;
    }
    let eth = link::find(inside, POD_LINK)
        .map_err(doing("pod's eth0"))?
        .ok_or_else(|| doing("pod's eth0")(io::Error::from(io::ErrorKind::NotFound).into()))?;
    link::set_up(inside, eth.index).map_err(doing("pod's eth0"))?;
    link::add_address(inside, eth.index, ip, prefix).map_err(doing("pod's address"))?;
    link::set_neighbour(inside, eth.index, next_hop, node.mac).map_err(doing("pod's next hop"))?;
    Route { to: Some((next_hop, prefix)), via: None, link: eth.index, source: None, v6 }
        .set(inside)
        .map_err(doing("pod's route to its next hop"))?;
    Route { to: None, via: Some(next_hop), link: eth.index, source: None, v6 }
        .set(inside)
        .map_err(doing("pod's default route"))
}

fn open_ports(state: &mut State, id: &str, ip: IpAddr, ports: &[HostPort]) -> Result<(), NetError> {
    if ports.is_empty() {
        return Ok(());
    }
    let open = state.host_ports().and_then(|open| open.add(ip, ports));
    open.map_err(doing(format!("host ports of {ip}")))?;
    let name = link_name(id);
    host_ports::allow_loopback(&name, ip, ports)
        .map_err(|source| NetError::Io { path: format!("/proc/sys/net/ipv4/conf/{name}").into(), source })
}

/// The name of the node's end: at most 15 bytes, unique per sandbox.
fn link_name(id: &str) -> String {
    let tail: String = id.chars().filter(char::is_ascii_alphanumeric).take(11).collect();
    format!("yare{tail}")
}

/// A locally administered Ethernet address that follows from the pod's address.
fn pod_mac(ip: IpAddr) -> Mac {
    let tail = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let o = ip.octets();
            [o[12], o[13], o[14], o[15]]
        }
    };
    [0x0a, 0x58, tail[0], tail[1], tail[2], tail[3]]
}

fn forward(gateway: IpAddr) -> Result<(), NetError> {
    let path = if gateway.is_ipv4() {
        "/proc/sys/net/ipv4/ip_forward"
    } else {
        "/proc/sys/net/ipv6/conf/all/forwarding"
    };
    let on = fs::read_to_string(path).is_ok_and(|v| v.trim() == "1");
    if on {
        return Ok(());
    }
    fs::write(path, "1").map_err(|source| NetError::Io { path: path.into(), source })
}

/// The MTU of the link to the outside; 1500 where there is none.
fn uplink_mtu(socket: &mut Socket, gateway: IpAddr) -> Result<u32, netlink::Error> {
    // Documentation addresses: never local, so the answer is the default route.
    let outside: IpAddr = if gateway.is_ipv4() {
        Ipv4Addr::new(203, 0, 113, 1).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
    };
    let Some((index, _)) = link::route_to(socket, outside)? else { return Ok(1500) };
    Ok(link::by_index(socket, index)?.map_or(1500, |l| l.mtu.min(9000)))
}

/// The address that this machine has towards the outside; `None` where it has no route there.
pub fn outside_address() -> Result<Option<IpAddr>, NetError> {
    let mut socket = Socket::open(netlink::ROUTE).map_err(doing("netlink"))?;
    let route = link::route_to(&mut socket, Ipv4Addr::new(203, 0, 113, 1).into());
    Ok(route.map_err(doing("route to the outside"))?.and_then(|(_, source)| source))
}
