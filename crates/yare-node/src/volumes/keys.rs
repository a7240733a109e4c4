//! Private keys for pods' certificates, and the requests that prove that the node has them (PKCS #10, KEP-4317).

use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use rsa::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _};
use yasna::models::ObjectIdentifier;
use yasna::{DERWriter, construct_der};

use super::trust_bundle::pem;

/// A new key, and a request that names nobody.
#[derive(Debug)]
pub(super) struct Proof {
    /// PKCS #8 in PEM.
    pub(super) key: String,
    /// PKCS #10 in DER.
    pub(super) request: Vec<u8>,
}

/// A key and what is needed to ask for a certificate for it.
struct Key {
    /// PKCS #8 in DER.
    private: Vec<u8>,
    /// SubjectPublicKeyInfo in DER.
    public: Vec<u8>,
    /// The signature's algorithm, and whether it has parameters (that are null).
    algorithm: (&'static [u64], bool),
    sign: Sign,
}

/// Signs a message.
type Sign = Box<dyn Fn(&[u8]) -> Result<Vec<u8>, String>>;

const EC_PUBLIC_KEY: &[u64] = &[1, 2, 840, 10045, 2, 1];
const P256: &[u64] = &[1, 2, 840, 10045, 3, 1, 7];
const P384: &[u64] = &[1, 3, 132, 0, 34];
const P521: &[u64] = &[1, 3, 132, 0, 35];
const ECDSA_SHA256: &[u64] = &[1, 2, 840, 10045, 4, 3, 2];
const ECDSA_SHA384: &[u64] = &[1, 2, 840, 10045, 4, 3, 3];
const ECDSA_SHA512: &[u64] = &[1, 2, 840, 10045, 4, 3, 4];
const ED25519: &[u64] = &[1, 3, 101, 112];
const RSA_SHA256: &[u64] = &[1, 2, 840, 113_549, 1, 1, 11];

/// Makes a key of a type that projections name. Those of RSA take their time.
pub(super) fn generate(kind: &str) -> Result<Proof, String> {
    let key = match kind {
        "RSA3072" => rsa_key(3072)?,
        "RSA4096" => rsa_key(4096)?,
        "ECDSAP256" => ring_key(&ECDSA_P256_SHA256_ASN1_SIGNING, P256, ECDSA_SHA256)?,
        "ECDSAP384" => ring_key(&ECDSA_P384_SHA384_ASN1_SIGNING, P384, ECDSA_SHA384)?,
        "ECDSAP521" => p521_key()?,
        "ED25519" => ed25519_key()?,
        other => return Err(format!("unknown key type {other:?}")),
    };
    let request = request(&key)?;
    Ok(Proof { key: pem("PRIVATE KEY", &key.private), request })
}

fn oid(parts: &[u64]) -> ObjectIdentifier {
    ObjectIdentifier::from_slice(parts)
}

fn request(key: &Key) -> Result<Vec<u8>, String> {
    let algorithm = |writer: DERWriter<'_>| {
        writer.write_sequence(|w| {
            w.next().write_oid(&oid(key.algorithm.0));
            if key.algorithm.1 {
                w.next().write_null();
            }
        });
    };
    let info = construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_u8(0);
            // No name.
            w.next().write_sequence(|_| {});
            w.next().write_der(&key.public);
            // No attributes.
            w.next().write_tagged_implicit(yasna::Tag::context(0), |w| w.write_set(|_| {}));
        });
    });
    let signature = (key.sign)(&info)?;
    Ok(construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_der(&info);
            algorithm(w.next());
            w.next().write_bitvec_bytes(&signature, signature.len() * 8);
        });
    }))
}

/// SubjectPublicKeyInfo of a point on a curve.
fn ec_public(curve: &[u64], point: &[u8]) -> Vec<u8> {
    construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_sequence(|w| {
                w.next().write_oid(&oid(EC_PUBLIC_KEY));
                w.next().write_oid(&oid(curve));
            });
            w.next().write_bitvec_bytes(point, point.len() * 8);
        });
    })
}

fn ring_key(
    algorithm: &'static EcdsaSigningAlgorithm,
    curve: &'static [u64],
    signature: &'static [u64],
) -> Result<Key, String> {
    let random = SystemRandom::new();
    let private = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(|e| e.to_string())?;
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, private.as_ref(), &random).map_err(|e| e.to_string())?;
    Ok(Key {
        private: private.as_ref().to_vec(),
        public: ec_public(curve, pair.public_key().as_ref()),
        algorithm: (signature, false),
        sign: Box::new(move |message| {
            pair.sign(&random, message).map(|s| s.as_ref().to_vec()).map_err(|e| e.to_string())
        }),
    })
}

fn p521_key() -> Result<Key, String> {
    use p521::ecdsa::{Signature, SigningKey, VerifyingKey, signature::Signer as _};
    let mut scalar = [0; 66];
    let key = loop {
        SystemRandom::new().fill(&mut scalar).map_err(|e| e.to_string())?;
        // 521 bits; nearly all of them are below the group's order.
        scalar[0] &= 1;
        if let Ok(key) = SigningKey::from_slice(&scalar) {
            break key;
        }
    };
    let point = VerifyingKey::from(&key).to_sec1_point(false);
    let private = construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_u8(0);
            w.next().write_sequence(|w| {
                w.next().write_oid(&oid(EC_PUBLIC_KEY));
                w.next().write_oid(&oid(P521));
            });
            let inner = construct_der(|w| {
                w.write_sequence(|w| {
                    w.next().write_u8(1);
                    w.next().write_bytes(&scalar);
                    w.next().write_tagged(yasna::Tag::context(1), |w| {
                        w.write_bitvec_bytes(point.as_bytes(), point.len() * 8);
                    });
                });
            });
            w.next().write_bytes(&inner);
        });
    });
    Ok(Key {
        private,
        public: ec_public(P521, point.as_bytes()),
        algorithm: (ECDSA_SHA512, false),
        sign: Box::new(move |message| {
            let signature: Signature = key.try_sign(message).map_err(|e| e.to_string())?;
            let bytes = signature.to_bytes();
            let (r, s) = bytes.split_at(bytes.len() / 2);
            Ok(construct_der(|w| {
                w.write_sequence(|w| {
                    w.next().write_bigint_bytes(r, true);
                    w.next().write_bigint_bytes(s, true);
                });
            }))
        }),
    })
}

fn ed25519_key() -> Result<Key, String> {
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|e| e.to_string())?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|e| e.to_string())?;
    let private = construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_u8(0);
            w.next().write_sequence(|w| w.next().write_oid(&oid(ED25519)));
            w.next().write_bytes(&construct_der(|w| w.write_bytes(&seed)));
        });
    });
    let public = construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_sequence(|w| w.next().write_oid(&oid(ED25519)));
            let point = pair.public_key().as_ref();
            w.next().write_bitvec_bytes(point, point.len() * 8);
        });
    });
    let sign = Box::new(move |message: &[u8]| Ok(pair.sign(message).as_ref().to_vec()));
    Ok(Key { private, public, algorithm: (ED25519, false), sign })
}

fn rsa_key(bits: usize) -> Result<Key, String> {
    let key = rsa::PrivateKey::new(&mut Random(SystemRandom::new()), bits).map_err(|e| e.to_string())?;
    let private = key.to_pkcs8_der().map_err(|e| e.to_string())?;
    let public = key.to_public_key().to_public_key_der().map_err(|e| e.to_string())?;
    let pair = RsaKeyPair::from_pkcs8(private.as_bytes()).map_err(|e| e.to_string())?;
    Ok(Key {
        private: private.as_bytes().to_vec(),
        public: public.as_bytes().to_vec(),
        algorithm: (RSA_SHA256, true),
        sign: Box::new(move |message| {
            let mut signature = vec![0; pair.public().modulus_len()];
            pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
                .map_err(|e| e.to_string())?;
            Ok(signature)
        }),
    })
}

/// The system's random numbers, for those who ask in another way.
struct Random(SystemRandom);

impl rsa::rand_core::TryRng for Random {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes).map(|()| u32::from_ne_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes).map(|()| u64::from_ne_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        // It fails only while the system has no entropy yet.
        while self.0.fill(bytes).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(())
    }
}

impl rsa::rand_core::TryCryptoRng for Random {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::trust_bundle::blocks;

    #[test]
    fn requests_are_signed_by_the_keys_they_are_for() {
        for kind in ["ECDSAP256", "ECDSAP384", "ED25519", "RSA3072"] {
            let proof = generate(kind).unwrap();
            let der = rcgen::CertificateSigningRequestParams::from_der(&proof.request.as_slice().into());
            der.unwrap_or_else(|e| panic!("{kind}: {e}"));
            // Read back by another library, the key is the one that was asked for.
            let key = rcgen::KeyPair::from_pem(&proof.key).unwrap_or_else(|e| panic!("{kind}: {e}"));
            let public = rcgen::PublicKeyData::subject_public_key_info(&key);
            assert!(proof.request.windows(public.len()).any(|w| w == public), "{kind}");
        }
        // A curve that no library here reads whole: the halves agree.
        let proof = generate("ECDSAP521").unwrap();
        let private = blocks(&proof.key).remove(0);
        let point = &private[private.len() - 133..];
        assert!(proof.request.windows(133).any(|w| w == point));
        assert_eq!(generate("DSA").unwrap_err(), "unknown key type \"DSA\"");
    }
}
