//! The client certificates that this server shows to nodes and to the servers behind it, from files that are read
//! again when they change. Connections that are there stay what they are; new ones show what is new.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use yare_auth::{
    pki::KeyPairPem,
    tls::{Speaks, Trust, check_authority, outside_client},
};

use crate::{core::Core, files::follow, serving::Source};

/// A client certificate.
pub struct ClientPair {
    source: Source,
    now: ArcSwap<KeyPairPem>,
}

impl ClientPair {
    /// The cluster's own.
    pub fn own(pair: KeyPairPem) -> Self {
        Self { now: ArcSwap::from_pointee(pair.clone()), source: Source::Own(pair) }
    }

    /// What the source has.
    ///
    /// # Errors
    /// A file that cannot be read, or a key that is not the certificate's.
    pub fn open(source: Source) -> Result<Self, String> {
        let pair = checked(&source)?;
        Ok(Self { now: ArcSwap::from_pointee(pair), source })
    }

    /// What is shown now. As long as nothing changes, it is the very same.
    pub fn now(&self) -> Arc<KeyPairPem> {
        self.now.load_full()
    }

    fn read_again(&self) -> Result<(), String> {
        self.now.store(Arc::new(checked(&self.source)?));
        Ok(())
    }
}

/// A pair that fits.
fn checked(source: &Source) -> Result<KeyPairPem, String> {
    let pair = source.read()?;
    outside_client(Trust::Anybody, Some(&pair), Speaks::Both).map_err(|e| e.to_string())?;
    Ok(pair)
}

/// Who vouches for nodes.
pub struct NodeAuthority {
    /// The cluster's own authority, PEM.
    pub own: String,
    /// A file with others.
    pub file: Option<PathBuf>,
}

impl NodeAuthority {
    fn read(&self) -> Result<String, String> {
        let Some(path) = &self.file else { return Ok(self.own.clone()) };
        let named = |why: String| format!("{}: {why}", path.display());
        let given = std::fs::read_to_string(path).map_err(|e| named(e.to_string()))?;
        check_authority(&given).map_err(named)?;
        Ok(format!("{given}\n{}", self.own))
    }
}

/// How nodes' own APIs are spoken to.
pub struct Kubelets {
    shown: Source,
    /// Nobody: nodes may show any certificate.
    authority: Option<NodeAuthority>,
    tls: ArcSwap<ClientConfig>,
}

impl Kubelets {
    /// Reads the files. `shown`: what nodes are shown.
    ///
    /// # Errors
    /// Which file is wrong, and why.
    pub fn open(shown: Source, authority: Option<NodeAuthority>) -> Result<Self, String> {
        let tls = ArcSwap::new(config(&shown, authority.as_ref())?);
        Ok(Self { shown, authority, tls })
    }

    /// For a new connection.
    pub fn tls(&self) -> Arc<ClientConfig> {
        self.tls.load_full()
    }

    fn read_again(&self) -> Result<(), String> {
        self.tls.store(config(&self.shown, self.authority.as_ref())?);
        Ok(())
    }
}

/// A session that is resumed goes on under the certificate that it began with: a new configuration knows none.
fn config(shown: &Source, authority: Option<&NodeAuthority>) -> Result<Arc<ClientConfig>, String> {
    let vouching = authority.map(NodeAuthority::read).transpose()?;
    let trust = vouching.as_deref().map_or(Trust::Anybody, Trust::Authority);
    outside_client(trust, Some(&shown.read()?), Speaks::Http1).map_err(|e| e.to_string())
}

/// Follows the files until the server stops. What does not fit (one file is new, the other not yet) is not shown.
pub fn start(core: &Arc<Core>) {
    if let Some(kubelets) = &core.config.kubelets {
        let authority = kubelets.authority.as_ref().and_then(|a| a.file.as_deref());
        for path in kubelets.shown.files().chain(authority) {
            follow(core, path, |core, _| {
                Box::pin(async move { core.config.kubelets.as_ref().map_or(Ok(()), Kubelets::read_again) })
            });
        }
    }
    for path in core.config.front_proxy.iter().flat_map(|proxy| proxy.pair.source.files()) {
        follow(core, path, |core, _| {
            Box::pin(async move {
                core.config.front_proxy.as_ref().map_or(Ok(()), |proxy| proxy.pair.read_again())
            })
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use yare_auth::pki::{Authority, Pki, Subject, Usage};

    use super::*;
    use crate::serving::Pair;

    fn issue(authority: &Authority, common_name: &str) -> KeyPairPem {
        let subject = Subject { common_name, ..Subject::default() };
        authority.issue(Usage::Client, &subject, Duration::from_secs(3600)).unwrap()
    }

    fn write(dir: &Path, pair: &KeyPairPem) {
        std::fs::write(dir.join("c.crt"), &pair.certificate).unwrap();
        std::fs::write(dir.join("c.key"), &pair.key).unwrap();
    }

    fn files(dir: &Path) -> Source {
        Source::Files(Pair { certificate: dir.join("c.crt"), key: dir.join("c.key") })
    }

    /// What a new connection shows.
    fn shown(kubelets: &Kubelets) -> Vec<u8> {
        let schemes =
            rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes();
        let key = kubelets.tls().client_auth_cert_resolver.resolve(&[], &schemes).unwrap();
        key.cert[0].to_vec()
    }

    #[test]
    fn new_connections_show_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(&dir.path().join("pki")).unwrap();
        let [first, second] = ["first", "second"].map(|name| issue(&pki.cluster, name));
        write(dir.path(), &first);
        let authority = dir.path().join("ca.crt");
        std::fs::write(&authority, &pki.front_proxy.certificate).unwrap();
        let vouching =
            || NodeAuthority { own: pki.cluster.certificate.clone(), file: Some(authority.clone()) };
        let kubelets = Kubelets::open(files(dir.path()), Some(vouching())).unwrap();
        let proxy = ClientPair::open(files(dir.path())).unwrap();
        let (before, pair) = (shown(&kubelets), proxy.now());
        assert!(Arc::ptr_eq(&pair, &proxy.now()), "nothing has changed");

        // A key of another certificate, and an authority that is none: what was good stays.
        std::fs::write(dir.path().join("c.key"), &second.key).unwrap();
        kubelets.read_again().unwrap_err();
        proxy.read_again().unwrap_err();
        std::fs::write(&authority, "nonsense").unwrap();
        write(dir.path(), &second);
        let why = kubelets.read_again().unwrap_err();
        assert!(why.contains("ca.crt"), "{why}");
        assert_eq!(shown(&kubelets), before);
        assert!(Arc::ptr_eq(&pair, &proxy.now()));

        std::fs::write(&authority, &pki.front_proxy.certificate).unwrap();
        kubelets.read_again().unwrap();
        proxy.read_again().unwrap();
        assert_ne!(shown(&kubelets), before);
        assert_eq!(proxy.now().certificate, second.certificate);
    }

    #[test]
    fn files_must_be_there_at_start() {
        let dir = tempfile::tempdir().unwrap();
        for why in [
            Kubelets::open(files(dir.path()), None).err().unwrap(),
            ClientPair::open(files(dir.path())).err().unwrap(),
        ] {
            assert!(why.contains("c.crt"), "{why}");
        }
    }
}
