//! TLS set-ups from PEM: for the server's own listener and towards kubelets.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

/// Why PEM texts make no TLS set-up.
#[derive(Debug, thiserror::Error)]
#[error("TLS set-up from {what}: {why}")]
pub struct TlsError {
    /// Which text.
    what: &'static str,
    /// What is wrong with it.
    why: String,
}

fn bad<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> TlsError {
    move |e| TlsError { what, why: e.to_string() }
}

fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(bad("the certificate"))
}

fn roots(pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(pem)? {
        roots.add(certificate).map_err(bad("the authority's certificate"))?;
    }
    Ok(roots)
}

/// A listener that shows `certificate` and asks clients for one of `client_ca`, without requiring it.
pub fn server(certificate: &str, key: &str, client_ca: &str) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(client_ca)?), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(bad("the client authority"))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(bad("the key"))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(bad("the protocol versions"))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(certificate)?, key)
        .map_err(bad("the certificate and key"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Towards kubelets: trusts `authority`, shows the API server's client certificate. HTTP/1.1 only, because
/// streams are upgrades.
pub fn kubelet_client(certificate: &str, key: &str, authority: &str) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(bad("the key"))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(bad("the protocol versions"))?
        .with_root_certificates(roots(authority)?)
        .with_client_auth_cert(chain(certificate)?, key)
        .map_err(bad("the certificate and key"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
