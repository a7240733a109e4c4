//! A client, or a server, whose certificate comes later and is replaced while it runs.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::{
    ClientConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{Speaks, TlsError, bad, believing, certified, provider, roots};
use crate::pki::KeyPairPem;

/// What is shown to the other side: nothing, until it is given something. A client is then nobody in particular, and
/// with a server nobody speaks.
#[derive(Debug, Default)]
pub struct Shown(RwLock<Option<Arc<CertifiedKey>>>);

impl Shown {
    /// Shows `pair` on every connection that is made from now on.
    pub fn replace(&self, pair: &KeyPairPem) -> Result<(), TlsError> {
        let key = certified(pair)?;
        // What is in the lock is replaced as a whole; a panic elsewhere cannot have torn it.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
        Ok(())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_certs(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A client that trusts `authority` (PEM) and shows what `shown` has when a connection is made.
pub fn showing_client(
    authority: &str,
    shown: Arc<Shown>,
    speaks: Speaks,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(bad("the protocol versions"))?
        .dangerous()
        .with_custom_certificate_verifier(believing(roots(authority)?)?)
        .with_client_cert_resolver(shown);
    // A resumed session would go on under the certificate that it began with.
    config.resumption = Resumption::disabled();
    config.alpn_protocols = speaks.names();
    Ok(Arc::new(config))
}
