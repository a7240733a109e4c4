//! Servers whose protocol versions, cipher suites and key exchange groups an administrator chooses.

use std::sync::Arc;

use rustls::{
    ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
    crypto::SupportedKxGroup,
    server::ResolvesServerCert,
    version::{TLS12, TLS13},
};

use super::{AnyCertificate, ClientAuthority, Speaks, TlsError, bad, provider};

/// What a server agrees to speak; by default all that is known.
#[derive(Clone, Debug)]
pub struct Limits {
    versions: Vec<&'static SupportedProtocolVersion>,
    groups: Vec<&'static dyn SupportedKxGroup>,
    suites: Vec<SupportedCipherSuite>,
}

impl Limits {
    /// From a least version (`VersionTLS12`; empty: TLS 1.2), cipher suites by their IANA names (empty: all) and
    /// key exchange groups by their IANA numbers (empty: all; their order is not a matter of choice). As in Go,
    /// neither are suites of TLS 1.3. The error says what is not known.
    pub fn new(min_version: &str, suites: &[String], groups: &[i32]) -> Result<Self, String> {
        let versions = match min_version {
            // What is older is not spoken at all.
            "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12" => vec![&TLS13, &TLS12],
            "VersionTLS13" => vec![&TLS13],
            other => return Err(format!("unknown tls version {other:?}")),
        };
        let all = provider().cipher_suites;
        let name = |suite: &SupportedCipherSuite| {
            suite.suite().as_str().unwrap_or_default().replacen("TLS13_", "TLS_", 1)
        };
        // Upstream keeps two names that Go once had.
        let suites: Vec<String> = suites
            .iter()
            .map(|s| if s.ends_with("_CHACHA20_POLY1305") { format!("{s}_SHA256") } else { s.clone() })
            .collect();
        for wanted in &suites {
            if !all.iter().any(|suite| name(suite) == *wanted) {
                return Err(format!("Cipher suite {wanted} not supported or doesn't exist"));
            }
        }
        let suites: Vec<SupportedCipherSuite> = all
            .into_iter()
            .filter(|suite| suite.tls13().is_some() || suites.is_empty() || suites.contains(&name(suite)))
            .collect();
        let known = provider().kx_groups;
        let number = |group: &dyn SupportedKxGroup| i32::from(u16::from(group.name()));
        for wanted in groups {
            if !known.iter().any(|group| number(*group) == *wanted) {
                return Err(format!("TLS curve preference {wanted} not supported or doesn't exist"));
            }
        }
        let groups =
            known.into_iter().filter(|g| groups.is_empty() || groups.contains(&number(*g))).collect();
        Ok(Self { versions, groups, suites })
    }
}

impl Default for Limits {
    fn default() -> Self {
        let provider = provider();
        Self { versions: vec![&TLS13, &TLS12], groups: provider.kx_groups, suites: provider.cipher_suites }
    }
}

/// A server that shows what `serving` chooses and asks for a certificate of one of `authorities`, without requiring
/// or judging one; [`ClientAuthority`] does that.
pub fn limited_server(
    serving: Arc<dyn ResolvesServerCert>,
    authorities: &[&ClientAuthority],
    limits: &Limits,
    speaks: Speaks,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut provider = provider();
    provider.cipher_suites.clone_from(&limits.suites);
    provider.kx_groups.clone_from(&limits.groups);
    let provider = Arc::new(provider);
    let hints = authorities.iter().flat_map(|a| a.names()).collect();
    let verifier = Arc::new(AnyCertificate { hints });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&limits.versions)
        .map_err(bad("the protocol versions"))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(serving);
    config.alpn_protocols = speaks.names();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_suites_by_name() {
        let limits = |version: &str, suites: &[&str]| {
            let suites: Vec<String> = suites.iter().map(|s| (*s).to_owned()).collect();
            Limits::new(version, &suites, &[])
        };
        let all = limits("", &[]).unwrap();
        let one = limits("VersionTLS12", &["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"]).unwrap();
        assert_eq!(one.suites.len(), 4, "{:?}", one.suites);
        assert!(all.suites.len() > 4 && all.versions.len() == 2);
        assert_eq!(limits("VersionTLS13", &["TLS_AES_128_GCM_SHA256"]).unwrap().versions.len(), 1);
        assert_eq!(limits("TLS12", &[]).unwrap_err(), "unknown tls version \"TLS12\"");
        let error = limits("", &["TLS_RSA_WITH_RC4_128_SHA"]).unwrap_err();
        assert_eq!(error, "Cipher suite TLS_RSA_WITH_RC4_128_SHA not supported or doesn't exist");
        let groups = |numbers: &[i32]| Limits::new("", &[], numbers).map(|limits| limits.groups.len());
        assert_eq!((groups(&[]), groups(&[23]), groups(&[24, 29])), (Ok(3), Ok(1), Ok(2)));
        assert_eq!(groups(&[25]).unwrap_err(), "TLS curve preference 25 not supported or doesn't exist");
    }
}
