//! TLS configurations from the cluster's keys.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

use crate::pki::KeyPairPem;

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
    let provider = Arc::new(rustls::crypto::ring::default_provider());
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
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(bad("the protocol versions"))?
        .with_root_certificates(roots(authority)?)
        .with_client_auth_cert(chain(&pair.certificate)?, key(&pair.key)?)
        .map_err(bad("the certificate and key"))?;
    config.alpn_protocols = speaks.names();
    Ok(Arc::new(config))
}
