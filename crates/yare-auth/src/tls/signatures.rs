//! Which signatures are understood, and whether who shows a certificate holds its key.

use std::sync::LazyLock;

use p521::ecdsa::signature::hazmat::PrehashVerifier as _;
use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use rustls::{
    DigitallySignedStruct, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
        verify_tls13_signature_with_raw_key,
    },
    pki_types::{
        AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm,
        SubjectPublicKeyInfoDer, alg_id,
    },
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer, x509::X509Version};

/// The cryptography of all connections: ring's, and with it signatures of P-521, which Go knows and ring does not.
pub fn provider() -> CryptoProvider {
    let ring = rustls::crypto::ring::default_provider();
    CryptoProvider { signature_verification_algorithms: *ALGORITHMS, ..ring }
}

static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> = LazyLock::new(|| {
    let ring = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let (mut all, mut mapping) = (ring.all.to_vec(), ring.mapping.to_vec());
    for (scheme, algorithm) in OF_P521 {
        all.push(*algorithm);
        // Before TLS 1.3 a scheme names the digest alone, so that it goes with keys of every curve. What is made here is
        // made once, and for as long as the program runs.
        match mapping.iter_mut().find(|(known, _)| known == scheme) {
            Some((_, algorithms)) => *algorithms = [algorithms, &[*algorithm][..]].concat().leak(),
            None => mapping.push((*scheme, vec![*algorithm].leak())),
        }
    }
    WebPkiSupportedAlgorithms { all: all.leak(), mapping: mapping.leak() }
});

type Known = (SignatureScheme, &'static dyn SignatureVerificationAlgorithm);

/// Signatures of keys of P-521, with the schemes of their digests.
const OF_P521: &[Known] = &[
    (SignatureScheme::ECDSA_NISTP521_SHA512, &P521 { digest: &SHA512, id: alg_id::ECDSA_SHA512 }),
    (SignatureScheme::ECDSA_NISTP384_SHA384, &P521 { digest: &SHA384, id: alg_id::ECDSA_SHA384 }),
    (SignatureScheme::ECDSA_NISTP256_SHA256, &P521 { digest: &SHA256, id: alg_id::ECDSA_SHA256 }),
];

/// Bytes of a number of the curve.
const P521_BYTES: usize = 66;

#[derive(Debug)]
struct P521 {
    digest: &'static Algorithm,
    id: AlgorithmIdentifier,
}

impl P521 {
    /// The digest of a message as a number of the curve.
    fn number(&self, message: &[u8]) -> [u8; P521_BYTES] {
        let digest = digest(self.digest, message);
        let mut number = [0; P521_BYTES];
        number[P521_BYTES - digest.as_ref().len()..].copy_from_slice(digest.as_ref());
        number
    }
}

impl SignatureVerificationAlgorithm for P521 {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(key).map_err(|_| InvalidSignature)?;
        let signature = p521::ecdsa::Signature::from_der(signature).map_err(|_| InvalidSignature)?;
        key.verify_prehash(&self.number(message), &signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.id
    }
}

/// What others may sign handshakes with.
pub(super) fn schemes() -> Vec<SignatureScheme> {
    ALGORITHMS.supported_schemes()
}

/// Whether the signature of a handshake of TLS 1.2 is of the certificate's key.
pub(super) fn verify_1_2(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls12_signature(message, certificate, signed, &ALGORITHMS).or_else(|error| {
        let key = old(certificate).ok_or(error.clone())?;
        let known = ALGORITHMS.mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme);
        let is_signed = |algorithm: &&dyn SignatureVerificationAlgorithm| {
            algorithm.verify_signature(&key.bits, message, signed.signature()).is_ok()
        };
        match known.flat_map(|(_, algorithms)| *algorithms).any(is_signed) {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(error),
        }
    })
}

/// The same of TLS 1.3.
pub(super) fn verify_1_3(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature(message, certificate, signed, &ALGORITHMS).or_else(|error| {
        let key = SubjectPublicKeyInfoDer::from(old(certificate).ok_or(error)?.der);
        verify_tls13_signature_with_raw_key(message, &key, signed, &ALGORITHMS)
    })
}

/// The key of a certificate.
struct Key {
    /// As the certificate has it.
    der: Vec<u8>,
    /// Without its algorithm.
    bits: Vec<u8>,
}

/// The key of a certificate from before version 3, which webpki does not read. It is what `openssl x509 -req` makes
/// unless it is told more.
fn old(certificate: &CertificateDer<'_>) -> Option<Key> {
    let (_, certificate) = X509Certificate::from_der(certificate.as_ref()).ok()?;
    let key = certificate.public_key();
    let key = Key { der: key.raw.to_vec(), bits: key.subject_public_key.data.to_vec() };
    (certificate.version() != X509Version::V3).then_some(key)
}

#[cfg(test)]
mod tests {
    use p521::ecdsa::{Signature, SigningKey, VerifyingKey, signature::Signer as _};

    use super::*;

    #[test]
    fn signatures_of_p521() {
        let key = SigningKey::from_slice(&[1; P521_BYTES]).or_else(|_| {
            let mut scalar = [1; P521_BYTES];
            scalar[0] = 0;
            SigningKey::from_slice(&scalar)
        });
        let key = key.unwrap();
        let public = VerifyingKey::from(&key).to_sec1_point(false);
        let signature: Signature = key.sign(b"said");
        let der = signature.to_der();
        for (scheme, algorithm) in OF_P521 {
            let holds = |message: &[u8]| {
                algorithm.verify_signature(public.as_bytes(), message, der.as_bytes()).is_ok()
            };
            // The key signs with SHA-512 by itself.
            assert_eq!(holds(b"said"), *scheme == SignatureScheme::ECDSA_NISTP521_SHA512, "{scheme:?}");
            assert!(!holds(b"not said"), "{scheme:?}");
        }
        let algorithms = &*ALGORITHMS;
        for (scheme, _) in OF_P521 {
            let (_, known) = algorithms.mapping.iter().find(|(known, _)| known == scheme).unwrap();
            assert!(known.iter().any(|a| a.public_key_alg_id() == alg_id::ECDSA_P521), "{scheme:?}");
        }
    }
}
