//! Which servers a client believes.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use super::{
    TlsError, bad,
    lenient::{SERVER, is_vouched_for},
    provider, signatures,
};

/// Whom to believe. Whoever that is must hold the key of the certificate.
#[derive(Debug)]
enum Believed {
    Anybody,
    Nobody,
    /// Whom the roots vouch for.
    Known {
        usual: Arc<WebPkiServerVerifier>,
        roots: Arc<RootCertStore>,
    },
}

/// Believes servers that `roots` vouch for.
pub(super) fn believing(roots: Arc<RootCertStore>) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    // That there are no roots is heard of when a server is met.
    if roots.is_empty() {
        return Ok(Arc::new(Believed::Nobody));
    }
    let usual = WebPkiServerVerifier::builder_with_provider(roots.clone(), Arc::new(provider()))
        .build()
        .map_err(bad("the authority's certificate"))?;
    Ok(Arc::new(Believed::Known { usual, roots }))
}

/// Believes every certificate. For who asked for that in so many words (`insecureSkipTLSVerify`).
pub(super) fn any_server() -> Arc<dyn ServerCertVerifier> {
    Arc::new(Believed::Anybody)
}

/// A client without a certificate that takes whatever certificate the server shows: for backends that an
/// administrator reaches through the `proxy` subresource, which nobody vouches for.
pub fn unverified() -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(bad("the protocol versions"))?
        .dangerous()
        .with_custom_certificate_verifier(any_server())
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl ServerCertVerifier for Believed {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (usual, roots) = match self {
            Self::Anybody => return Ok(ServerCertVerified::assertion()),
            Self::Nobody => return Err(CertificateError::UnknownIssuer.into()),
            Self::Known { usual, roots } => (usual, roots),
        };
        match usual.verify_server_cert(shown, between, name, ocsp, now) {
            Err(_) if is_vouched_for(roots, shown, between, now, SERVER) => {
                verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        signatures::verify_1_2(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        signatures::verify_1_3(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signatures::schemes()
    }
}
