//! Keys: what signs, what verifies, and their forms as JSON Web Keys.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use p521::ecdsa::signature::{Signer as _, Verifier as _};
use ring::{
    rand::SystemRandom,
    signature::{self, EcdsaKeyPair, KeyPair as _, RsaKeyPair, RsaPublicKeyComponents, UnparsedPublicKey},
};
use serde_json::{Value, json};

use super::{Algorithm, KeyError};

/// Object identifiers of key kinds and curves, as DER values.
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

/// A NIST curve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    pub(super) fn oid(self) -> &'static [u8] {
        match self {
            Self::P256 => &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
            Self::P384 => &[0x2b, 0x81, 0x04, 0x00, 0x22],
            Self::P521 => &[0x2b, 0x81, 0x04, 0x00, 0x23],
        }
    }

    pub(super) fn with_oid(oid: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.oid() == oid)
    }

    fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// Bytes of one coordinate.
    fn size(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    fn algorithm(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::Es256,
            Self::P384 => Algorithm::Es384,
            Self::P521 => Algorithm::Es512,
        }
    }
}

/// What verifies a signature.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicKey(Kind);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    /// Modulus and exponent, big-endian without leading zeros.
    Rsa { n: Vec<u8>, e: Vec<u8> },
    /// An uncompressed point: 0x04, x, y.
    Ec { curve: Curve, point: Vec<u8> },
}

impl PublicKey {
    /// An RSA key of modulus and exponent (big-endian).
    pub(super) fn rsa(n: &[u8], e: &[u8]) -> Option<Self> {
        let trim = |b: &[u8]| {
            let zeros = b.iter().take_while(|b| **b == 0).count();
            b[zeros..].to_vec()
        };
        let (n, e) = (trim(n), trim(e));
        ((256..=1024).contains(&n.len()) && !e.is_empty()).then_some(Self(Kind::Rsa { n, e }))
    }

    /// A point of a curve.
    pub(super) fn ec(curve: Curve, point: &[u8]) -> Option<Self> {
        (point.len() == 1 + 2 * curve.size() && point[0] == 4)
            .then(|| Self(Kind::Ec { curve, point: point.to_vec() }))
    }

    /// The algorithm that service-account tokens of this key are signed with.
    pub fn algorithm(&self) -> Algorithm {
        match &self.0 {
            Kind::Rsa { .. } => Algorithm::Rs256,
            Kind::Ec { curve, .. } => curve.algorithm(),
        }
    }

    /// Whether `signature` is this key's over `message`.
    pub(super) fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        use Algorithm::{Es256, Es384, Es512, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        match (&self.0, algorithm) {
            (Kind::Rsa { n, e }, _) => {
                let parameters = match algorithm {
                    Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
                    Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
                    Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
                    Es256 | Es384 | Es512 => return false,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            (Kind::Ec { curve: Curve::P256, point }, Es256) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, signature)
                    .is_ok()
            }
            (Kind::Ec { curve: Curve::P384, point }, Es384) => {
                UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point)
                    .verify(message, signature)
                    .is_ok()
            }
            (Kind::Ec { curve: Curve::P521, point }, Es512) => {
                let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(point);
                let signature = p521::ecdsa::Signature::from_slice(signature);
                matches!((key, signature), (Ok(key), Ok(s)) if key.verify(message, &s).is_ok())
            }
            (Kind::Ec { .. }, _) => false,
        }
    }

    /// The SubjectPublicKeyInfo (RFC 5280, section 4.1), DER.
    pub fn to_spki(&self) -> Vec<u8> {
        use super::pem::{bit_string, integer, oid, sequence};
        let (algorithm, key) = match &self.0 {
            Kind::Rsa { n, e } => {
                (sequence(&[&oid(RSA), &[0x05, 0x00]]), sequence(&[&integer(n), &integer(e)]))
            }
            Kind::Ec { curve, point } => (sequence(&[&oid(EC), &oid(curve.oid())]), point.clone()),
        };
        sequence(&[&algorithm, &bit_string(&key)])
    }

    /// The key of a SubjectPublicKeyInfo.
    pub(super) fn from_spki(algorithm: &[u8], parameters: Option<&[u8]>, key: &[u8]) -> Option<Self> {
        match algorithm {
            RSA => {
                let mut outer = super::pem::Reader::new(key);
                let mut inner = super::pem::Reader::new(outer.take(0x30)?);
                Self::rsa(inner.take(0x02)?, inner.take(0x02)?)
            }
            EC => Self::ec(Curve::with_oid(parameters?)?, key),
            _ => None,
        }
    }

    /// The identifier by which tokens name the key, as upstream derives it: the SHA-256 of its
    /// SubjectPublicKeyInfo.
    pub fn id(&self) -> String {
        URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, &self.to_spki()).as_ref())
    }

    /// As a JSON Web Key (RFC 7517).
    pub fn to_jwk(&self) -> Value {
        self.to_jwk_called(&self.id())
    }

    /// As a JSON Web Key that tokens call `id`.
    pub fn to_jwk_called(&self, id: &str) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.0 {
            Kind::Rsa { n, e } => json!({
                "use": "sig", "kty": "RSA", "kid": id, "alg": self.algorithm().name(),
                "n": encode(n), "e": encode(e),
            }),
            Kind::Ec { curve, point } => json!({
                "use": "sig", "kty": "EC", "kid": id, "crv": curve.name(),
                "alg": self.algorithm().name(),
                "x": encode(&point[1..=curve.size()]), "y": encode(&point[1 + curve.size()..]),
            }),
        }
    }

    /// The key of a JSON Web Key, where it is of a kind known here.
    pub fn from_jwk(jwk: &Value) -> Option<Self> {
        let field = |name: &str| {
            let text = jwk.get(name)?.as_str()?;
            URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
        };
        match jwk.get("kty")?.as_str()? {
            "RSA" => Self::rsa(&field("n")?, &field("e")?),
            "EC" => {
                let name = jwk.get("crv")?.as_str()?;
                let curve = Curve::ALL.into_iter().find(|c| c.name() == name)?;
                let mut point = vec![4];
                for coordinate in [field("x")?, field("y")?] {
                    let missing = curve.size().checked_sub(coordinate.len())?;
                    point.extend(std::iter::repeat_n(0, missing));
                    point.extend(coordinate);
                }
                Self::ec(curve, &point)
            }
            _ => None,
        }
    }
}

/// What signs.
pub struct PrivateKey {
    pair: Pair,
    public: PublicKey,
    random: SystemRandom,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ring(Box<EcdsaKeyPair>),
    P521(Box<p521::ecdsa::SigningKey>),
}

impl PrivateKey {
    /// An RSA key: RSAPrivateKey (RFC 8017, appendix A.1.2), DER.
    pub(super) fn rsa(der: &[u8]) -> Result<Self, String> {
        let pair = RsaKeyPair::from_der(der).map_err(|e| e.to_string())?;
        let mut outer = super::pem::Reader::new(pair.public().as_ref());
        let parts = outer.take(0x30).and_then(|inner| {
            let mut inner = super::pem::Reader::new(inner);
            PublicKey::rsa(inner.take(0x02)?, inner.take(0x02)?)
        });
        let public = parts.ok_or("the key's size is not supported")?;
        Ok(Self { pair: Pair::Rsa(Box::new(pair)), public, random: SystemRandom::new() })
    }

    /// A key of a curve: ECPrivateKey (RFC 5915), DER.
    pub(super) fn ec(curve: Curve, der: &[u8]) -> Result<Self, String> {
        use super::pem::{Reader, integer, octet_string, oid, sequence};
        let random = SystemRandom::new();
        if curve == Curve::P521 {
            let scalar = Reader::new(der).take(0x30).and_then(|inner| {
                let mut inner = Reader::new(inner);
                inner.take(0x02)?;
                inner.take(0x04)
            });
            let scalar = scalar.ok_or("not an ECPrivateKey")?;
            let key = p521::ecdsa::SigningKey::from_slice(scalar).map_err(|e| e.to_string())?;
            let point = p521::ecdsa::VerifyingKey::from(&key).to_sec1_point(false);
            let public = PublicKey::ec(curve, point.as_bytes()).ok_or("the key has no public point")?;
            return Ok(Self { pair: Pair::P521(Box::new(key)), public, random });
        }
        let algorithm = sequence(&[&oid(EC), &oid(curve.oid())]);
        let pkcs8 = sequence(&[&integer(&[0]), &algorithm, &octet_string(der)]);
        let signing = match curve {
            Curve::P256 => &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            _ => &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
        };
        let pair = EcdsaKeyPair::from_pkcs8(signing, &pkcs8, &random).map_err(|e| e.to_string())?;
        let public = PublicKey::ec(curve, pair.public_key().as_ref()).ok_or("the key has no public point")?;
        Ok(Self { pair: Pair::Ring(Box::new(pair)), public, random })
    }

    /// The key of a PrivateKeyInfo (PKCS #8, RFC 5208).
    pub(super) fn pkcs8(der: &[u8]) -> Result<Self, String> {
        use super::pem::Reader;
        let read = || {
            let mut info = Reader::new(Reader::new(der).take(0x30)?);
            info.take(0x02)?;
            let mut algorithm = Reader::new(info.take(0x30)?);
            let kind = algorithm.take(0x06)?;
            let curve = algorithm.take(0x06).and_then(Curve::with_oid);
            Some((kind, curve, info.take(0x04)?))
        };
        match read().ok_or("not a PKCS #8 key")? {
            (RSA, _, key) => Self::rsa(key),
            (EC, Some(curve), key) => Self::ec(curve, key),
            _ => Err(KeyError::Unsupported.to_string()),
        }
    }

    /// What verifies its signatures.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The algorithm it signs with.
    pub fn algorithm(&self) -> Algorithm {
        self.public.algorithm()
    }

    /// Its signature over `message`, as it stands in a token.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let failed = |e: ring::error::Unspecified| KeyError::Sign(e.to_string());
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut out = vec![0; pair.public().modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &self.random, message, &mut out).map_err(failed)?;
                Ok(out)
            }
            Pair::Ring(pair) => pair.sign(&self.random, message).map(|s| s.as_ref().to_vec()).map_err(failed),
            Pair::P521(key) => {
                let signature: p521::ecdsa::Signature =
                    key.try_sign(message).map_err(|e| KeyError::Sign(e.to_string()))?;
                Ok(signature.to_bytes().to_vec())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jws::{Token, private_key, public_keys, sign, testing};

    #[test]
    fn every_kind_of_key_signs_and_verifies() {
        for (pem, algorithm) in testing::KEYS {
            let key = private_key(pem).unwrap();
            assert_eq!(key.algorithm().name(), *algorithm);
            let text = sign(&key, br#"{"iss":"a"}"#).unwrap();
            let token = Token::parse(&text).unwrap();
            assert_eq!((token.header.alg.as_str(), token.header.kid), (*algorithm, key.public().id()));
            let again = public_keys(pem).unwrap().remove(0);
            let from_jwk = PublicKey::from_jwk(&key.public().to_jwk()).unwrap();
            assert_eq!((&again, &from_jwk), (key.public(), key.public()), "{algorithm}");
            assert!(Token::parse(&text).unwrap().verify(&again), "{algorithm}");
            for (other, name) in testing::KEYS.iter().filter(|(_, name)| name != algorithm) {
                let other = private_key(other).unwrap();
                assert!(!Token::parse(&text).unwrap().verify(other.public()), "{algorithm} by {name}");
            }
            let forged = text.replacen('.', ".x", 1);
            assert!(Token::parse(&forged).is_none_or(|t| !t.verify(&again)));
        }
    }

    #[test]
    fn key_ids_are_upstreams() {
        // openssl pkey -pubout -outform DER | openssl dgst -sha256 -binary | basenc --base64url
        for ((pem, _), id) in testing::KEYS.iter().zip(testing::IDS) {
            assert_eq!(private_key(pem).unwrap().public().id(), *id);
        }
    }
}
