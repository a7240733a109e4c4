//! Connection tracking: tracked UDP connections whose endpoint is gone end, idle TCP connections stay.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
};

use crate::netlink::{Attributes, Error, Message, Socket};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;

/// How long the kernel keeps TCP connections in mind, in seconds; upstream's values. One of which only one side has
/// ended lasts as long as the other holds its socket open, which may be long after the kernel's own minute.
const TIMEOUTS_S: [(&str, u32); 2] =
    [("nf_conntrack_tcp_timeout_established", 86_400), ("nf_conntrack_tcp_timeout_close_wait", 3_600)];

/// Sets these times in this network namespace.
pub fn set_timeouts() -> io::Result<()> {
    for (name, seconds) in TIMEOUTS_S {
        let path = format!("/proc/sys/net/netfilter/{name}");
        // What is so already may lie on a read-only file system.
        if fs::read_to_string(&path)?.trim() != seconds.to_string() {
            fs::write(&path, seconds.to_string())?;
        }
    }
    Ok(())
}

/// Ends connections for which `ended(service, target)` holds: where they were sent, and who answers.
pub fn forget_udp(socket: &mut Socket, ended: impl Fn(SocketAddr, SocketAddr) -> bool) -> Result<(), Error> {
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let head = [family, 0, 0, 0];
        let mut originals = Vec::new();
        socket.dump(Message::new((SUBSYSTEM << 8) | GET, 0).raw(&head), |_, body| {
            let Some(attributes) = body.get(4..) else { return };
            let tuple = |kind| Attributes(attributes).find(kind);
            let (Some(original), Some(reply)) = (tuple(TUPLE_ORIGINAL), tuple(TUPLE_REPLY)) else { return };
            let sent_to = read(original, Side::Destination);
            let answers = read(reply, Side::Source);
            if let (Some(service), Some(target)) = (sent_to, answers)
                && ended(service, target)
            {
                originals.push(original.to_vec());
            }
        })?;
        for original in originals {
            let message = Message::new((SUBSYSTEM << 8) | DELETE, 0)
                .raw(&head)
                .nest(TUPLE_ORIGINAL, |m| m.raw(&original));
            match socket.request(message) {
                // It ended by itself meanwhile.
                Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// One side of a UDP tuple (`CTA_TUPLE_IP`, `CTA_TUPLE_PROTO`); `None` for other protocols.
fn read(tuple: &[u8], side: Side) -> Option<SocketAddr> {
    let (v4, v6, port) = if side == Side::Source { (1, 3, 2) } else { (2, 4, 3) };
    let ip = Attributes(tuple).find(1)?;
    let protocol = Attributes(tuple).find(2)?;
    if Attributes(protocol).find(1)? != [libc::IPPROTO_UDP as u8] {
        return None;
    }
    let address: IpAddr = match Attributes(ip).find(v4) {
        Some(bytes) => <[u8; 4]>::try_from(bytes).ok()?.into(),
        None => <[u8; 16]>::try_from(Attributes(ip).find(v6)?).ok()?.into(),
    };
    let port = u16::from_be_bytes(Attributes(protocol).find(port)?.try_into().ok()?);
    Some(SocketAddr::new(address, port))
}
