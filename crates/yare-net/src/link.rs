//! Links, addresses, neighbours and routes by rtnetlink.

use std::net::IpAddr;

use nix::errno::Errno;

use crate::netlink::{Attributes, Error, Message, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;

const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
const REPLACE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
/// Addresses are ours to give: no search for duplicates, which would delay their use.
const IFA_F_NODAD: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What a link is.
#[derive(Clone, Debug)]
pub struct Link {
    /// Kernel's index.
    pub index: u32,
    /// Ethernet address.
    pub mac: Mac,
    /// Largest packet, bytes.
    pub mtu: u32,
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// `struct ifinfomsg`
fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut out = [0; 16];
    out[4..8].copy_from_slice(&index.to_ne_bytes());
    out[8..12].copy_from_slice(&flags.to_ne_bytes());
    out[12..16].copy_from_slice(&change.to_ne_bytes());
    out
}

/// Takes an error that means "already so" for success.
fn unless(result: Result<(), Error>, fine: Errno) -> Result<(), Error> {
    match result {
        Err(Error::Kernel(errno, _)) if errno == fine => Ok(()),
        other => other,
    }
}

/// The link `name`; `None` where there is none.
pub fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    let mut found = None;
    let message = Message::new(RTM_GETLINK, 0).raw(&ifinfo(0, 0, 0)).str(IFLA_IFNAME, name);
    let result = socket.get(message, |kind, body| {
        if kind == RTM_NEWLINK {
            found = read_link(body);
        }
    });
    match result {
        Ok(()) => Ok(found),
        Err(Error::Kernel(Errno::ENODEV, _)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_link(body: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let attributes = body.get(16..)?;
    let mac = Attributes(attributes).find(IFLA_ADDRESS).and_then(|m| m.try_into().ok()).unwrap_or_default();
    let mtu = Attributes(attributes).find(IFLA_MTU).and_then(|m| m.try_into().ok()).map(u32::from_ne_bytes);
    Some(Link { index, mac, mtu: mtu.unwrap_or(1500) })
}

/// Makes a veth pair: `name` here and up, `peer` in the network namespace `namespace_fd`.
pub fn create_veth(
    socket: &mut Socket,
    name: &str,
    peer: &str,
    peer_mac: Mac,
    namespace_fd: i32,
    mtu: u32,
) -> Result<(), Error> {
    let up = libc::IFF_UP as u32;
    let message = Message::new(RTM_NEWLINK, CREATE)
        .raw(&ifinfo(0, up, up))
        .str(IFLA_IFNAME, name)
        .u32(IFLA_MTU, mtu)
        .nest(IFLA_LINKINFO, |m| {
            m.str(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.raw(&ifinfo(0, 0, 0))
                        .str(IFLA_IFNAME, peer)
                        .u32(IFLA_MTU, mtu)
                        .attr(IFLA_ADDRESS, &peer_mac)
                        .u32(IFLA_NET_NS_FD, namespace_fd as u32)
                })
            })
        });
    socket.request(message)
}

/// Sets a link up.
pub fn set_up(socket: &mut Socket, index: u32) -> Result<(), Error> {
    let up = libc::IFF_UP as u32;
    socket.request(Message::new(RTM_NEWLINK, 0).raw(&ifinfo(index, up, up)))
}

/// Removes a link; one that is gone is fine.
pub fn remove(socket: &mut Socket, name: &str) -> Result<(), Error> {
    let message = Message::new(RTM_DELLINK, 0).raw(&ifinfo(0, 0, 0)).str(IFLA_IFNAME, name);
    unless(socket.request(message), Errno::ENODEV)
}

/// Gives a link an address.
pub fn add_address(socket: &mut Socket, index: u32, ip: IpAddr, prefix: u8) -> Result<(), Error> {
    // `struct ifaddrmsg`: family, prefix length, flags, scope, index.
    let mut head = [family(ip), prefix, if ip.is_ipv6() { IFA_F_NODAD } else { 0 }, 0, 0, 0, 0, 0];
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    let message = Message::new(RTM_NEWADDR, REPLACE)
        .raw(&head)
        .attr(IFA_LOCAL, &octets(ip))
        .attr(IFA_ADDRESS, &octets(ip));
    unless(socket.request(message), Errno::EEXIST)
}

/// A route.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Destination and prefix length; `None` is the default route.
    pub to: Option<(IpAddr, u8)>,
    /// The next hop.
    pub via: Option<IpAddr>,
    /// The link.
    pub link: u32,
    /// Source address of packets that the node itself sends.
    pub source: Option<IpAddr>,
    /// An IPv6 route?
    pub v6: bool,
}

impl Route {
    /// Adds the route, or replaces the one to the same destination.
    pub fn set(&self, socket: &mut Socket) -> Result<(), Error> {
        let scope = if self.via.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
        // `struct rtmsg`: family, destination and source prefix lengths, tos, table, protocol, scope, type,
        // flags.
        let head = [
            if self.v6 { libc::AF_INET6 as u8 } else { libc::AF_INET as u8 },
            self.to.map_or(0, |(_, prefix)| prefix),
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            if self.v6 { libc::RT_SCOPE_UNIVERSE } else { scope },
            libc::RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let mut message = Message::new(RTM_NEWROUTE, REPLACE).raw(&head);
        if let Some((ip, _)) = self.to {
            message = message.attr(RTA_DST, &octets(ip));
        }
        if let Some(ip) = self.via {
            message = message.attr(RTA_GATEWAY, &octets(ip));
        }
        if let Some(ip) = self.source {
            message = message.attr(RTA_PREFSRC, &octets(ip));
        }
        socket.request(message.u32(RTA_OIF, self.link))
    }
}

/// The link that the route to `ip` takes, and the source address it gives.
pub fn route_to(socket: &mut Socket, ip: IpAddr) -> Result<Option<(u32, Option<IpAddr>)>, Error> {
    let prefix = if ip.is_ipv4() { 32 } else { 128 };
    let head = [family(ip), prefix, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut found = None;
    let message = Message::new(RTM_GETROUTE, 0).raw(&head).attr(RTA_DST, &octets(ip));
    let result = socket.get(message, |kind, body| {
        let Some(attributes) = body.get(12..).filter(|_| kind == RTM_NEWROUTE) else { return };
        let link = Attributes(attributes).find(RTA_OIF).and_then(|v| v.try_into().ok());
        let source = Attributes(attributes).find(RTA_PREFSRC).and_then(address);
        found = link.map(|l| (u32::from_ne_bytes(l), source));
    });
    match result {
        Ok(()) => Ok(found),
        Err(Error::Kernel(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ESRCH, _)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The link with this index.
pub fn by_index(socket: &mut Socket, index: u32) -> Result<Option<Link>, Error> {
    let mut found = None;
    socket.get(Message::new(RTM_GETLINK, 0).raw(&ifinfo(index, 0, 0)), |kind, body| {
        if kind == RTM_NEWLINK {
            found = read_link(body);
        }
    })?;
    Ok(found)
}

/// Sets a permanent neighbour: the address that answers for `ip` on the link.
pub fn set_neighbour(socket: &mut Socket, link: u32, ip: IpAddr, mac: Mac) -> Result<(), Error> {
    // `struct ndmsg`: family, padding, link, state, flags, type.
    let mut head = [0; 12];
    head[0] = family(ip);
    head[4..8].copy_from_slice(&link.to_ne_bytes());
    head[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    let message =
        Message::new(RTM_NEWNEIGH, REPLACE).raw(&head).attr(NDA_DST, &octets(ip)).attr(NDA_LLADDR, &mac);
    socket.request(message)
}

/// All addresses in this network namespace.
pub fn addresses(socket: &mut Socket) -> Result<Vec<IpAddr>, Error> {
    let mut out = Vec::new();
    socket.dump(Message::new(RTM_GETADDR, 0).raw(&[0; 8]), |kind, body| {
        if kind == RTM_NEWADDR
            && let Some(ip) = body.get(8..).and_then(|b| Attributes(b).find(IFA_ADDRESS)).and_then(address)
        {
            out.push(ip);
        }
    })?;
    Ok(out)
}
