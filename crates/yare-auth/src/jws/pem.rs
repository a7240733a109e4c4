//! Keys in PEM files, as `openssl`, kubeadm and we ourselves write them, and the little DER that takes.

use x509_parser::{
    certificate::X509Certificate,
    pem::Pem,
    prelude::{FromDer, SubjectPublicKeyInfo},
};

use super::{
    KeyError,
    key::{Curve, PrivateKey, PublicKey},
};

/// Blocks in one file.
const MAX_BLOCKS: usize = 64;

/// Every public key in `text`: of public keys, private keys and certificates. A file with none is an error.
pub fn public_keys(text: &str) -> Result<Vec<PublicKey>, KeyError> {
    let mut out = Vec::new();
    for block in Pem::iter_from_buffer(text.as_bytes()).take(MAX_BLOCKS) {
        let block = block.map_err(|e| KeyError::Malformed { label: "PEM".into(), why: e.to_string() })?;
        let bad = |why: String| KeyError::Malformed { label: block.label.clone(), why };
        match block.label.as_str() {
            "PUBLIC KEY" => {
                let (_, info) =
                    SubjectPublicKeyInfo::from_der(&block.contents).map_err(|e| bad(e.to_string()))?;
                out.push(of_info(&info).ok_or(KeyError::Unsupported)?);
            }
            "RSA PUBLIC KEY" => {
                let key = Reader::new(&block.contents).take(0x30).and_then(|inner| {
                    let mut inner = Reader::new(inner);
                    PublicKey::rsa(inner.take(0x02)?, inner.take(0x02)?)
                });
                out.push(key.ok_or(KeyError::Unsupported)?);
            }
            "CERTIFICATE" => {
                let (_, certificate) =
                    X509Certificate::from_der(&block.contents).map_err(|e| bad(e.to_string()))?;
                out.push(of_info(certificate.public_key()).ok_or(KeyError::Unsupported)?);
            }
            _ => {
                if let Some(key) = private(&block) {
                    out.push(key.map_err(bad)?.public().clone());
                }
            }
        }
    }
    if out.is_empty() { Err(KeyError::Empty) } else { Ok(out) }
}

/// The key of a SubjectPublicKeyInfo (RFC 5280, section 4.1), DER.
pub fn public_key_of_info(der: &[u8]) -> Result<PublicKey, KeyError> {
    let bad = |why: String| KeyError::Malformed { label: "SubjectPublicKeyInfo".into(), why };
    let (rest, info) = SubjectPublicKeyInfo::from_der(der).map_err(|e| bad(e.to_string()))?;
    if !rest.is_empty() {
        return Err(bad("bytes behind the key".into()));
    }
    of_info(&info).ok_or(KeyError::Unsupported)
}

/// The first private key in `text`.
pub fn private_key(text: &str) -> Result<PrivateKey, KeyError> {
    for block in Pem::iter_from_buffer(text.as_bytes()).take(MAX_BLOCKS) {
        let block = block.map_err(|e| KeyError::Malformed { label: "PEM".into(), why: e.to_string() })?;
        if let Some(key) = private(&block) {
            return key.map_err(|why| KeyError::Malformed { label: block.label, why });
        }
    }
    Err(KeyError::Empty)
}

/// The private key of a block; `None` where it holds none (`EC PARAMETERS`, …).
fn private(block: &Pem) -> Option<Result<PrivateKey, String>> {
    match block.label.as_str() {
        "PRIVATE KEY" => Some(PrivateKey::pkcs8(&block.contents)),
        "RSA PRIVATE KEY" => Some(PrivateKey::rsa(&block.contents)),
        "EC PRIVATE KEY" => {
            let curve = Reader::new(&block.contents).take(0x30).and_then(|inner| {
                let mut inner = Reader::new(inner);
                inner.take(0x02)?;
                inner.take(0x04)?;
                Curve::with_oid(Reader::new(inner.take(0xa0)?).take(0x06)?)
            });
            Some(match curve {
                Some(curve) => PrivateKey::ec(curve, &block.contents),
                None => Err(KeyError::Unsupported.to_string()),
            })
        }
        _ => None,
    }
}

fn of_info(info: &SubjectPublicKeyInfo<'_>) -> Option<PublicKey> {
    let parameters = info.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    let parameters = parameters.as_ref().map(|oid| oid.as_bytes());
    PublicKey::from_spki(info.algorithm.algorithm.as_bytes(), parameters, &info.subject_public_key.data)
}

/// Reads DER elements one after the other.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(der: &'a [u8]) -> Self {
        Self(der)
    }

    /// The contents of the next element if it has the tag.
    pub(super) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let [first, length, rest @ ..] = self.0 else { return None };
        if *first != tag {
            return None;
        }
        let (length, rest) = match *length {
            short @ 0..0x80 => (usize::from(short), rest),
            long => {
                let count = usize::from(long & 0x7f);
                let bytes = rest.get(..count).filter(|_| (1..=4).contains(&count))?;
                (bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b)), &rest[count..])
            }
        };
        let contents = rest.get(..length)?;
        self.0 = &rest[length..];
        Some(contents)
    }
}

fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(contents.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes = contents.len().to_be_bytes();
            let zeros = bytes.iter().take_while(|b| **b == 0).count();
            // A length has at most eight bytes.
            out.push(0x80 | (bytes.len() - zeros) as u8);
            out.extend(&bytes[zeros..]);
        }
    }
    out.extend(contents);
    out
}

pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(0x30, &parts.concat())
}

pub(super) fn oid(value: &[u8]) -> Vec<u8> {
    element(0x06, value)
}

pub(super) fn octet_string(value: &[u8]) -> Vec<u8> {
    element(0x04, value)
}

/// A number, big-endian, that is not negative.
pub(super) fn integer(value: &[u8]) -> Vec<u8> {
    if value.first().is_some_and(|b| *b >= 0x80) {
        return element(0x02, &[&[0], value].concat());
    }
    element(0x02, value)
}

pub(super) fn bit_string(value: &[u8]) -> Vec<u8> {
    element(0x03, &[&[0], value].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_key_is_said_to_be_none() {
        assert_eq!(public_keys("").err(), Some(KeyError::Empty));
        assert_eq!(private_key("hello").err(), Some(KeyError::Empty));
        let broken = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let error = private_key(broken).err().unwrap().to_string();
        assert!(error.starts_with("PRIVATE KEY: "), "{error}");
        let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(public_keys(certificate), Err(KeyError::Malformed { .. })));
        assert_eq!(private_key(certificate).err(), Some(KeyError::Empty));
    }

    #[test]
    fn keys_as_others_send_them() {
        for (pem, _) in crate::jws::testing::KEYS {
            let key = private_key(pem).unwrap().public().clone();
            let mut der = key.to_spki();
            assert_eq!(public_key_of_info(&der), Ok(key));
            der.push(0);
            assert!(matches!(public_key_of_info(&der), Err(KeyError::Malformed { .. })));
            assert!(matches!(public_key_of_info(&der[..20]), Err(KeyError::Malformed { .. })));
        }
        let ed25519 = [&sequence(&[&oid(&[0x2b, 0x65, 0x70])])[..], &bit_string(&[1; 32])];
        assert_eq!(public_key_of_info(&sequence(&ed25519)), Err(KeyError::Unsupported));
    }

    #[test]
    fn der_that_lies_about_its_length_is_refused() {
        for bytes in
            [&[][..], &[0x30], &[0x30, 0x05, 1], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 1], &[0x30, 0x80]]
        {
            assert!(Reader::new(bytes).take(0x30).is_none(), "{bytes:?}");
        }
        let long = element(0x04, &[7; 300]);
        assert_eq!(Reader::new(&long).take(0x04).unwrap(), [7; 300]);
    }
}
