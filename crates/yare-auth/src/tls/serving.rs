//! The certificates that a server shows: one, and others to clients that ask for a name.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use yare_schema::content::is_dns1123_subdomain;

use super::{TlsError, bad, chain, key};
use crate::pki::{KeyPairPem, Leaf};

/// A certificate for those who ask for one of these names.
#[derive(Clone)]
pub struct NamedPair {
    /// The certificate and its key.
    pub pair: KeyPairPem,
    /// Host names (`*.` in front stands for any first label) and addresses; empty: the host names in the certificate.
    pub names: Vec<String>,
}

#[derive(Debug)]
struct Choice {
    usual: Arc<CertifiedKey>,
    named: HashMap<String, Arc<CertifiedKey>>,
}

impl Choice {
    fn of(usual: &KeyPairPem, named: &[NamedPair]) -> Result<Arc<Self>, TlsError> {
        let (mut said, mut read) = (HashMap::new(), HashMap::new());
        for NamedPair { pair, names } in named {
            let shown = certified(pair)?;
            // The first that says a name has it; names that were said go before those that were read.
            let (table, names) =
                if names.is_empty() { (&mut read, names_in(pair)?) } else { (&mut said, names.clone()) };
            for name in names {
                table.entry(name.to_ascii_lowercase()).or_insert_with(|| shown.clone());
            }
        }
        read.extend(said);
        Ok(Arc::new(Self { usual: certified(usual)?, named: read }))
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let any = || name.split_once('.').map_or("*".to_owned(), |(_, rest)| format!("*.{rest}"));
        self.named.get(name).or_else(|| self.named.get(&any()))
    }
}

/// What a server shows; it may be replaced while the server runs.
#[derive(Debug)]
pub struct Serving(RwLock<Arc<Choice>>);

impl Serving {
    /// Shows `pair`.
    pub fn new(pair: &KeyPairPem) -> Result<Arc<Self>, TlsError> {
        Self::with_names(pair, &[])
    }

    /// Shows `usual`, and to those who ask by name what is there for it.
    pub fn with_names(usual: &KeyPairPem, named: &[NamedPair]) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(RwLock::new(Choice::of(usual, named)?))))
    }

    /// Shows `pair` from now on.
    pub fn replace(&self, pair: &KeyPairPem) -> Result<(), TlsError> {
        self.replace_all(pair, &[])
    }

    /// Shows these from now on.
    pub fn replace_all(&self, usual: &KeyPairPem, named: &[NamedPair]) -> Result<(), TlsError> {
        // What is in the lock is replaced as a whole; a panic elsewhere cannot have torn it.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Choice::of(usual, named)?;
        Ok(())
    }

    fn shown(&self) -> Arc<Choice> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is shown to a client that came to this address and asks for no name, where that is another certificate
    /// than the usual one: TLS has no way to ask for an address.
    pub fn at(&self, address: IpAddr) -> Option<Arc<dyn ResolvesServerCert>> {
        let shown = self.shown();
        let here = shown.named.get(&address.to_canonical().to_string())?.clone();
        Some(Arc::new(Here { here, shown }))
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.shown();
        let asked = hello.server_name().and_then(|name| shown.find(&name.to_ascii_lowercase()).cloned());
        Some(asked.unwrap_or_else(|| shown.usual.clone()))
    }
}

/// What is shown at one address.
#[derive(Debug)]
struct Here {
    here: Arc<CertifiedKey>,
    shown: Arc<Choice>,
}

impl ResolvesServerCert for Here {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(name) = hello.server_name() else { return Some(self.here.clone()) };
        Some(self.shown.find(&name.to_ascii_lowercase()).unwrap_or(&self.shown.usual).clone())
    }
}

pub(super) fn certified(pair: &KeyPairPem) -> Result<Arc<CertifiedKey>, TlsError> {
    let provider = rustls::crypto::ring::default_provider();
    let key = CertifiedKey::from_der(chain(&pair.certificate)?, key(&pair.key)?, &provider);
    Ok(Arc::new(key.map_err(bad("the certificate and key"))?))
}

/// The host names in a certificate: its common name, where it is one, and its DNS names. Addresses are left out, as
/// upstream does it.
fn names_in(pair: &KeyPairPem) -> Result<Vec<String>, TlsError> {
    let leaf = Leaf::read(&pair.certificate).map_err(bad("the certificate"))?;
    let common = Some(leaf.common_name).filter(|name| is_host(name));
    Ok(common.into_iter().chain(leaf.dns_names).collect())
}

/// A name of a host, perhaps with a wildcard, and no address.
fn is_host(name: &str) -> bool {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    name == "*" || (name.len() <= 253 && name.parse::<IpAddr>().is_err() && is_dns1123_subdomain(rest))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pki::{Pki, Subject, Usage};

    #[test]
    fn names_find_their_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let issue = |common_name: &str, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let subject = Subject { common_name, alternative_names: &names, ..Subject::default() };
            pki.cluster.issue(Usage::Server, &subject, Duration::from_secs(3600)).unwrap()
        };
        let usual = issue("usual", &["usual.test"]);
        let pairs = [
            (issue("a.test", &["b.test", "*.wild.test", "192.0.2.9"]), vec![]),
            (issue("said", &[]), vec!["b.test", "192.0.2.7", "FD00::1"]),
            (issue("late", &[]), vec!["b.test", "c.test"]),
        ];
        let named = pairs
            .clone()
            .map(|(pair, names)| NamedPair { pair, names: names.into_iter().map(str::to_owned).collect() });
        let serving = Serving::with_names(&usual, &named).unwrap();
        let shown = serving.shown();
        let der = |pair: &KeyPairPem| chain(&pair.certificate).unwrap();
        for (name, pair) in [
            ("a.test", Some(0)),
            ("b.test", Some(1)),
            ("c.test", Some(2)),
            ("x.wild.test", Some(0)),
            ("wild.test", None),
            ("x.y.wild.test", None),
            ("usual.test", None),
        ] {
            let found = shown.find(name).map(|key| key.cert.clone());
            assert_eq!(found, pair.map(|at: usize| der(&pairs[at].0)), "{name}");
        }
        for (address, there) in
            [("192.0.2.7", true), ("::ffff:192.0.2.7", true), ("fd00::1", true), ("192.0.2.9", false)]
        {
            assert_eq!(serving.at(address.parse().unwrap()).is_some(), there, "{address}");
        }
        serving.replace(&usual).unwrap();
        assert!(serving.shown().named.is_empty());
        let torn = KeyPairPem { key: pairs[0].0.key.clone(), ..usual };
        assert!(serving.replace(&torn).is_err(), "a key of another certificate");
    }

    #[test]
    fn hosts() {
        for (name, is) in [
            ("a.test", true),
            ("*.a.test", true),
            ("*", true),
            ("kube-apiserver", true),
            ("192.0.2.1", false),
            ("fd00::1", false),
            ("kubernetes admin", false),
            ("system:node:a", false),
            ("a..b", false),
            ("-a", false),
            ("", false),
        ] {
            assert_eq!(is_host(name), is, "{name}");
        }
    }
}
