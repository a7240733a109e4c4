//! Addresses of pods from the node's range, one file each, so that a restart forgets none.
//!
//! `<directory>/<address>` holds the sandbox's identifier. The next address is searched after the last one
//! given out, so that an address is not reused while others still remember its former owner.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

/// A range of addresses in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// First address.
    pub base: IpAddr,
    /// Prefix length.
    pub prefix: u8,
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not an address range such as 10.42.0.0/24");
        let (ip, prefix) = text.split_once('/').ok_or_else(bad)?;
        let ip: IpAddr = ip.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        if prefix > bits {
            return Err(bad());
        }
        Ok(Self { base: ip, prefix }.at(0).map_or(Self { base: ip, prefix }, |base| Self { base, prefix }))
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl Cidr {
    /// How many addresses the range has (at most `u64::MAX`).
    pub fn size(&self) -> u64 {
        let bits = if self.base.is_ipv4() { 32 } else { 128 };
        1_u64.checked_shl(u32::from(bits - self.prefix)).unwrap_or(u64::MAX)
    }

    /// The address `offset` after the first.
    pub fn at(&self, offset: u64) -> Option<IpAddr> {
        if offset >= self.size() {
            return None;
        }
        Some(match self.base {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                Ipv4Addr::from((u32::from(ip) & mask) + offset as u32).into()
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                Ipv6Addr::from((u128::from(ip) & mask) + u128::from(offset)).into()
            }
        })
    }

    /// The last address.
    pub fn last(&self) -> IpAddr {
        match self.base {
            IpAddr::V4(ip) => {
                let host = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                Ipv4Addr::from(u32::from(ip) | host).into()
            }
            IpAddr::V6(ip) => {
                let host = u128::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                Ipv6Addr::from(u128::from(ip) | host).into()
            }
        }
    }

    /// Whether the range holds `ip`.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.base, ip) {
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
                Self { base: ip, prefix: self.prefix }.at(0) == self.at(0)
            }
            _ => false,
        }
    }
}

/// Why no address was given out.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// All are taken.
    #[error("no address left in {0}: delete pods or give the node a larger podCIDR")]
    Full(Cidr),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The addresses of one node.
#[derive(Debug)]
pub struct Ipam {
    directory: PathBuf,
    range: Cidr,
    by_owner: HashMap<String, IpAddr>,
    taken: HashMap<IpAddr, String>,
    last: u64,
}

impl Ipam {
    /// Reads what is given out. Addresses outside `range` (it may have changed) stay with their owners.
    pub fn open(directory: &Path, range: Cidr) -> Result<Self, IpamError> {
        fs::create_dir_all(directory).map_err(at(directory))?;
        let mut out = Self {
            directory: directory.to_owned(),
            range,
            by_owner: HashMap::new(),
            taken: HashMap::new(),
            last: 1,
        };
        for entry in fs::read_dir(directory).map_err(at(directory))? {
            let path = entry.map_err(at(directory))?.path();
            let ip = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<IpAddr>().ok());
            let Some(ip) = ip else { continue };
            let owner = fs::read_to_string(&path).map_err(at(&path))?;
            out.by_owner.insert(owner.clone(), ip);
            out.taken.insert(ip, owner);
        }
        Ok(out)
    }

    /// The node's own address in the range: the first after the network's.
    pub fn gateway(&self) -> IpAddr {
        self.range.at(1).unwrap_or(self.range.base)
    }

    /// The address of `owner`: the one it has, or the next that is free.
    pub fn take(&mut self, owner: &str) -> Result<IpAddr, IpamError> {
        if let Some(ip) = self.by_owner.get(owner) {
            return Ok(*ip);
        }
        // The network's and the node's own address, and the last (broadcast), are nobody's.
        let usable = self.range.size().saturating_sub(3);
        for step in 1..=usable {
            let offset = 2 + (self.last - 1 + step - 1) % usable;
            let Some(ip) = self.range.at(offset) else { continue };
            if self.taken.contains_key(&ip) {
                continue;
            }
            let path = self.directory.join(ip.to_string());
            fs::write(&path, owner).map_err(at(&path))?;
            self.last = offset;
            self.by_owner.insert(owner.to_owned(), ip);
            self.taken.insert(ip, owner.to_owned());
            return Ok(ip);
        }
        Err(IpamError::Full(self.range))
    }

    /// The address of `owner`, if it has one.
    pub fn of(&self, owner: &str) -> Option<IpAddr> {
        self.by_owner.get(owner).copied()
    }

    /// Gives the address of `owner` back.
    pub fn release(&mut self, owner: &str) -> Result<(), IpamError> {
        let Some(ip) = self.by_owner.remove(owner) else { return Ok(()) };
        self.taken.remove(&ip);
        let path = self.directory.join(ip.to_string());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(&path)(e)),
            _ => Ok(()),
        }
    }

    /// Who has addresses.
    pub fn owners(&self) -> impl Iterator<Item = &str> {
        self.by_owner.keys().map(String::as_str)
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> IpamError + '_ {
    move |source| IpamError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range: Cidr = "10.42.3.7/24".parse().unwrap();
        assert_eq!(range.to_string(), "10.42.3.0/24");
        assert_eq!(range.at(255), Some("10.42.3.255".parse().unwrap()));
        assert_eq!(range.at(256), None);
        assert_eq!(range.last(), "10.42.3.255".parse::<IpAddr>().unwrap());
        assert_eq!("0.0.0.0/0".parse::<Cidr>().unwrap().last(), "255.255.255.255".parse::<IpAddr>().unwrap());
        assert_eq!("1.2.3.4/32".parse::<Cidr>().unwrap().last(), "1.2.3.4".parse::<IpAddr>().unwrap());
        assert!(range.contains("10.42.3.200".parse().unwrap()));
        assert!(!range.contains("10.42.4.0".parse().unwrap()));
        let six: Cidr = "fd00::/64".parse().unwrap();
        assert_eq!(six.at(2), Some("fd00::2".parse().unwrap()));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "x/8", "fd00::/129"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_unique_kept_and_reused_last() {
        let dir = tempfile::tempdir().unwrap();
        let range: Cidr = "10.0.0.0/29".parse().unwrap();
        let mut ipam = Ipam::open(dir.path(), range).unwrap();
        let given: Vec<String> = (0..5).map(|i| ipam.take(&format!("s{i}")).unwrap().to_string()).collect();
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert!(matches!(ipam.take("more"), Err(IpamError::Full(_))));
        assert_eq!(ipam.take("s1").unwrap().to_string(), "10.0.0.3");
        ipam.release("s1").unwrap();
        ipam.release("s3").unwrap();
        let mut again = Ipam::open(dir.path(), range).unwrap();
        assert_eq!(again.of("s4"), Some("10.0.0.6".parse().unwrap()));
        assert_eq!(again.of("s1"), None);
        assert_eq!(again.take("new").unwrap().to_string(), "10.0.0.3");
        assert_eq!(again.take("newer").unwrap().to_string(), "10.0.0.5");
    }
}
