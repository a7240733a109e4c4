//! Connection tracking: as many connections as the machine's size suggests, tracked UDP connections whose endpoint is
//! gone end, idle TCP connections stay.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
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

/// Upstream's bound, which keeps the table from taking too much memory on machines with many processors.
const CONNECTIONS_MAX: u32 = 1 << 20;
/// So many connections share a bucket of the table when it is full.
const PER_BUCKET: u32 = 4;
const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "sys/module/nf_conntrack/parameters/hashsize";

/// How many connections the kernel is to track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// For each processor; 0 leaves the kernel's limit as it is.
    pub per_core: u32,
    /// At least so many.
    pub min: u32,
}

impl Default for Tracked {
    /// Upstream's.
    fn default() -> Self {
        Self { per_core: 32 << 10, min: 128 << 10 }
    }
}

impl Tracked {
    /// On a machine with so many processors; none where that is left to the kernel.
    fn on(self, cores: u32) -> Option<u32> {
        let scaled = self.per_core.saturating_mul(cores);
        match self.per_core {
            0 => None,
            _ if scaled > CONNECTIONS_MAX => Some(CONNECTIONS_MAX),
            _ => Some(scaled.max(self.min)),
        }
    }
}

/// Why the kernel tracks no more connections than it did.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct LimitError {
    path: String,
    source: io::Error,
}

/// Lets the kernel track as many connections as this machine's size suggests, never fewer than it did. Both limits are
/// the machine's and not a network namespace's: inside one they cannot be changed.
pub fn raise_limit(tracked: Tracked) -> Result<(), LimitError> {
    let cores = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1);
    match tracked.on(u32::try_from(cores).unwrap_or(1)) {
        Some(max) => raise(Path::new("/"), max),
        None => Ok(()),
    }
}

fn raise(root: &Path, max: u32) -> Result<(), LimitError> {
    for (name, least) in [(MAX, max), (BUCKETS, max / PER_BUCKET)] {
        let path = root.join(name);
        let raised = fs::read_to_string(&path).and_then(|text| {
            let now: u32 = text.trim().parse().map_err(io::Error::other)?;
            if now < least { fs::write(&path, least.to_string()) } else { Ok(()) }
        });
        raised.map_err(|source| LimitError { path: path.display().to_string(), source })?;
    }
    Ok(())
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_tracks_by_its_processors() {
        let own = |per_core, min| Tracked { per_core, min };
        for (tracked, cores, want) in [
            (Tracked::default(), 1, Some(131_072)),
            (Tracked::default(), 4, Some(131_072)),
            (Tracked::default(), 5, Some(163_840)),
            (Tracked::default(), 64, Some(1_048_576)),
            (own(10, 0), 2, Some(20)),
            (own(0, 131_072), 8, None),
            (own(u32::MAX, 0), u32::MAX, Some(1_048_576)),
        ] {
            assert_eq!(tracked.on(cores), want, "{tracked:?} on {cores}");
        }
    }

    #[test]
    fn limits_only_grow() {
        let dir = tempfile::tempdir().unwrap();
        let (max, buckets) = (dir.path().join(MAX), dir.path().join(BUCKETS));
        for path in [&max, &buckets] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        let now = || [&max, &buckets].map(|path| fs::read_to_string(path).unwrap().trim().to_owned());
        for (has, wants, gets) in [
            (["65536\n", "65536\n"], 131_072, ["131072", "65536"]),
            (["65536\n", "16384\n"], 131_072, ["131072", "32768"]),
            (["262144\n", "65536\n"], 131_072, ["262144", "65536"]),
        ] {
            fs::write(&max, has[0]).unwrap();
            fs::write(&buckets, has[1]).unwrap();
            raise(dir.path(), wants).unwrap();
            assert_eq!(now(), gets);
        }
        fs::write(&max, "many").unwrap();
        let error = raise(dir.path(), 1).unwrap_err().to_string();
        assert!(error.starts_with(&*max.to_string_lossy()), "{error}");
    }
}
