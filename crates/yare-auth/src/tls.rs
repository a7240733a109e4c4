//! TLS configurations from the cluster's keys.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
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

/// A client without a certificate that takes whatever certificate the server shows: for backends that an
/// administrator reaches through the `proxy` subresource, which nobody vouches for.
pub fn unverified() -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(bad("the protocol versions"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Believes every certificate; the server must still hold its key.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
