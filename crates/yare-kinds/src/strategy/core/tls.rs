//! Whether a certificate and a key belong together, in the words of Go's `tls.X509KeyPair`, which clients see as
//! a warning of Secrets of type `kubernetes.io/tls`.

use ring::signature::{Ed25519KeyPair, KeyPair as _};
use x509_parser::{
    asn1_rs::{Any, FromDer as _, Tag},
    certificate::X509Certificate,
    pem::Pem,
    public_key::PublicKey,
};

/// What of a private key its public half shows.
#[derive(PartialEq, Eq, Debug)]
enum Half {
    /// Modulus, without leading zeros.
    Rsa(Vec<u8>),
    /// The point; none where the key does not tell.
    Ec(Option<Vec<u8>>),
    Ed25519(Vec<u8>),
}

/// What is wrong with the pair; `None` where all is well.
pub fn mismatch(certificate: &[u8], key: &[u8]) -> Option<String> {
    let leaf = match block(certificate, |label| label == "CERTIFICATE") {
        Ok(leaf) => leaf,
        Err(skipped) => return Some(no_certificate(&skipped)),
    };
    let key = match block(key, |label| label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY")) {
        Ok(key) => key,
        Err(skipped) => return Some(no_key(&skipped)),
    };
    let Ok((_, leaf)) = X509Certificate::from_der(&leaf) else {
        return Some("x509: malformed certificate".to_owned());
    };
    let Some(private) = private_half(&key) else {
        return Some("tls: failed to parse private key".to_owned());
    };
    let info = leaf.public_key();
    let public = match info.parsed() {
        Ok(PublicKey::RSA(rsa)) => Half::Rsa(trimmed(rsa.modulus)),
        Ok(PublicKey::EC(point)) => Half::Ec(Some(point.data().to_vec())),
        _ if info.algorithm.algorithm.to_id_string() == ED25519 => {
            Half::Ed25519(info.subject_public_key.data.to_vec())
        }
        _ => return Some("tls: unknown public key algorithm".to_owned()),
    };
    match (&public, &private) {
        (Half::Ec(_), Half::Ec(None)) => None,
        (Half::Rsa(_), Half::Rsa(_)) | (Half::Ec(_), Half::Ec(_)) | (Half::Ed25519(_), Half::Ed25519(_)) => {
            (public != private).then(|| "tls: private key does not match public key".to_owned())
        }
        _ => Some("tls: private key type does not match public key type".to_owned()),
    }
}

const RSA: &str = "1.2.840.113549.1.1.1";
const EC: &str = "1.2.840.10045.2.1";
const ED25519: &str = "1.3.101.112";

/// The first PEM block with such a label, or the labels of all others.
fn block(text: &[u8], wanted: impl Fn(&str) -> bool) -> Result<Vec<u8>, Vec<String>> {
    let mut skipped = Vec::new();
    for block in Pem::iter_from_buffer(text).map_while(Result::ok) {
        if wanted(&block.label) {
            return Ok(block.contents);
        }
        skipped.push(block.label);
    }
    Err(skipped)
}

fn no_certificate(skipped: &[String]) -> String {
    match skipped {
        [] => "tls: failed to find any PEM data in certificate input".to_owned(),
        [one] if one.ends_with("PRIVATE KEY") => {
            "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched".to_owned()
        }
        _ => format!(
            "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [{}]",
            skipped.join(" ")
        ),
    }
}

fn no_key(skipped: &[String]) -> String {
    match skipped {
        [] => "tls: failed to find any PEM data in key input".to_owned(),
        [one] if one == "CERTIFICATE" => {
            "tls: found a certificate rather than a key in the PEM for the private key".to_owned()
        }
        _ => format!(
            "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following types: [{}]",
            skipped.join(" ")
        ),
    }
}

fn trimmed(number: &[u8]) -> Vec<u8> {
    number.iter().copied().skip_while(|b| *b == 0).collect()
}

/// The elements of a DER sequence, at most so many as a key has.
fn elements(der: &[u8]) -> Option<Vec<Any<'_>>> {
    const MOST: usize = 16;
    let (_, sequence) = Any::from_der(der).ok()?;
    if sequence.tag() != Tag::Sequence {
        return None;
    }
    let mut rest = sequence.data;
    let mut out = Vec::new();
    while !rest.is_empty() && out.len() < MOST {
        let (more, element) = Any::from_der(rest).ok()?;
        out.push(element);
        rest = more;
    }
    Some(out)
}

/// PKCS#1, PKCS#8 or SEC 1, whatever the label says, as Go tries them.
fn private_half(der: &[u8]) -> Option<Half> {
    let parts = elements(der)?;
    match parts.get(1)?.tag() {
        Tag::Integer => pkcs1(&parts),
        Tag::Sequence => pkcs8(&parts),
        Tag::OctetString => Some(sec1(&parts)),
        _ => None,
    }
}

/// `RSAPrivateKey` (RFC 8017, A.1.2): version, modulus, and more.
fn pkcs1(parts: &[Any<'_>]) -> Option<Half> {
    (parts.len() >= 9).then(|| Half::Rsa(trimmed(parts[1].data)))
}

/// `PrivateKeyInfo` (RFC 5958): version, algorithm, key.
fn pkcs8(parts: &[Any<'_>]) -> Option<Half> {
    let (_, algorithm) = Any::from_der(parts[1].data).ok()?;
    let algorithm = algorithm.oid().ok()?.to_id_string();
    let key = parts.get(2).filter(|key| key.tag() == Tag::OctetString)?;
    match algorithm.as_str() {
        RSA => pkcs1(&elements(key.data)?),
        EC => Some(sec1(&elements(key.data)?)),
        ED25519 => {
            let (_, seed) = Any::from_der(key.data).ok()?;
            let pair = Ed25519KeyPair::from_seed_unchecked(seed.data).ok()?;
            Some(Half::Ed25519(pair.public_key().as_ref().to_vec()))
        }
        _ => None,
    }
}

/// `ECPrivateKey` (RFC 5915): version, number, and perhaps curve and point, each in a tag of its own.
fn sec1(parts: &[Any<'_>]) -> Half {
    const POINT: Tag = Tag(1);
    let bits = parts.iter().skip(2).find(|p| p.tag() == POINT).and_then(|p| Any::from_der(p.data).ok());
    // The first byte of a bit string counts the bits that are not used.
    Half::Ec(bits.and_then(|(_, bits)| Some(bits.data.get(1..)?.to_vec())))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn pair(key: &KeyPair) -> String {
        let params = CertificateParams::new(["example.com".to_owned()]).expect("a name");
        params.self_signed(key).expect("signs").pem()
    }

    #[test]
    fn keys_belong_to_certificates() {
        let p256 = KeyPair::generate().expect("a key");
        let other = KeyPair::generate().expect("a key");
        let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key");
        let ed = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let certificate = pair(&p256);
        let is = |certificate: &str, key: &str| mismatch(certificate.as_bytes(), key.as_bytes());
        for key in [&p256, &p384, &ed] {
            assert_eq!(is(&pair(key), &key.serialize_pem()), None);
        }
        let text = |expected: &str| Some(expected.to_owned());
        let differs = text("tls: private key does not match public key");
        assert_eq!(is(&certificate, &other.serialize_pem()), differs);
        assert_eq!(
            is(&certificate, &ed.serialize_pem()),
            text("tls: private key type does not match public key type")
        );
        assert_eq!(is("", ""), text("tls: failed to find any PEM data in certificate input"));
        assert_eq!(is(&certificate, "x"), text("tls: failed to find any PEM data in key input"));
        assert_eq!(
            is(&certificate, &certificate),
            text("tls: found a certificate rather than a key in the PEM for the private key")
        );
        assert_eq!(
            is(&p256.serialize_pem(), &certificate),
            text(
                "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched"
            )
        );
        let rubbish = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert_eq!(is(&certificate, rubbish), text("tls: failed to parse private key"));
        let rubbish = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(is(rubbish, &p256.serialize_pem()), text("x509: malformed certificate"));
    }
}
