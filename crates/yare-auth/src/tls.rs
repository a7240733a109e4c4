//! TLS configurations from the cluster's keys.

use std::sync::{Arc, OnceLock};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::pki::KeyPairPem;

mod lenient;
mod limits;
mod servers;
mod serving;
mod shown;
mod signatures;

use lenient::{CLIENT, is_vouched_for};
pub use limits::{Limits, limited_server};
pub use servers::unverified;
use servers::{any_server, believing};
use serving::certified;
pub use serving::{NamedPair, Serving};
pub use shown::{Shown, showing_client};
pub use signatures::provider;

/// Why keys and certificates make no TLS configuration.
#[derive(Debug, thiserror::Error)]
#[error("TLS from {what}: {why}")]
pub struct TlsError {
    /// Which of them.
    what: &'static str,
    /// What is wrong with it.
    why: String,
}

fn bad<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> TlsError {
    move |e| TlsError { what, why: e.to_string() }
}

/// Which protocols a side speaks, as ALPN names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speaks {
    /// HTTP/2 and HTTP/1.1.
    Both,
    /// HTTP/1.1 only: where connections are upgraded to streams.
    Http1,
}

impl Speaks {
    fn names(self) -> Vec<Vec<u8>> {
        match self {
            Self::Both => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::Http1 => vec![b"http/1.1".to_vec()],
        }
    }
}

fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(bad("the certificate"))
}

fn key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(bad("the key"))
}

fn roots(authority: &str) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(authority)? {
        roots.add(certificate).map_err(bad("the authority's certificate"))?;
    }
    Ok(Arc::new(roots))
}

/// A server that shows `pair` and asks clients for a certificate of `authority` (PEM), without requiring one.
pub fn server(pair: &KeyPairPem, authority: &str, speaks: Speaks) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority)?, provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(bad("the client authority"))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(bad("the protocol versions"))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(&pair.certificate)?, key(&pair.key)?)
        .map_err(bad("the certificate and key"))?;
    config.alpn_protocols = speaks.names();
    Ok(Arc::new(config))
}

/// A client that trusts `authority` (PEM) and shows `pair`.
pub fn client(pair: &KeyPairPem, authority: &str, speaks: Speaks) -> Result<Arc<ClientConfig>, TlsError> {
    outside_client(Trust::Authority(authority), Some(pair), speaks)
}

/// The authorities that this machine trusts: those of `SSL_CERT_FILE` and `SSL_CERT_DIR`, or the system's own.
/// Read once, as all programs do.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut roots = RootCertStore::empty();
        // One that cannot be parsed cannot be trusted; the others still can.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    };
    ROOTS.get_or_init(read).clone()
}

/// Whom a client believes.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// The authorities that this machine trusts.
    System,
    /// These (PEM).
    Authority(&'a str),
    /// Every server: for who asked for that in so many words.
    Anybody,
}

/// A client of servers elsewhere, which shows `pair`, if there is one.
pub fn outside_client(
    trust: Trust<'_>,
    pair: Option<&KeyPairPem>,
    speaks: Speaks,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(bad("the protocol versions"))?;
    let verifier = match trust {
        Trust::System => believing(system_roots())?,
        Trust::Authority(pem) => believing(roots(pem)?)?,
        Trust::Anybody => any_server(),
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match pair {
        Some(pair) => builder
            .with_client_auth_cert(chain(&pair.certificate)?, key(&pair.key)?)
            .map_err(bad("the certificate and key"))?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = speaks.names();
    Ok(Arc::new(config))
}

/// Says why `pem` holds no certificates of authorities.
pub fn check_authority(pem: &str) -> Result<(), String> {
    match roots(pem) {
        Ok(roots) if !roots.is_empty() => Ok(()),
        Ok(_) => Err("data does not contain any valid RSA or ECDSA certificates".into()),
        Err(error) => Err(error.why),
    }
}

/// Vouches for client certificates.
#[derive(Clone, Debug)]
pub struct ClientAuthority {
    verifier: Arc<dyn ClientCertVerifier>,
    roots: Arc<RootCertStore>,
}

impl ClientAuthority {
    /// The authorities of `pem`.
    pub fn new(pem: &str) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let roots = roots(pem)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider)
            .build()
            .map_err(bad("the client authority"))?;
        Ok(Self { verifier, roots })
    }

    /// Whether it vouches for the first certificate of `chain`, with the others in between, at `now_s` (Unix
    /// seconds).
    pub fn vouches(&self, chain: &[CertificateDer<'_>], now_s: i64) -> Result<(), String> {
        let Some((leaf, between)) = chain.split_first() else { return Err("no certificate".into()) };
        let now = std::time::Duration::from_secs(u64::try_from(now_s).unwrap_or_default());
        let now = UnixTime::since_unix_epoch(now);
        match self.verifier.verify_client_cert(leaf, between, now) {
            Err(error) if !is_vouched_for(&self.roots, leaf, between, now, CLIENT) => {
                Err(format!("verifying certificate failed: {error}"))
            }
            _ => Ok(()),
        }
    }

    /// The names of the authorities, by which clients choose what to show.
    fn names(&self) -> Vec<DistinguishedName> {
        self.verifier.root_hint_subjects().to_vec()
    }
}

/// Takes whatever certificate a client shows, as long as the client holds its key. Whether somebody vouches
/// for it is found out when the certificate is read, so that a bad one gets the answer of any bad credential
/// and not a broken handshake.
#[derive(Debug)]
struct AnyCertificate {
    hints: Vec<DistinguishedName>,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        signatures::verify_1_2(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        signatures::verify_1_3(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signatures::schemes()
    }
}
