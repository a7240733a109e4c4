//! The ciphers: AES-GCM, AES-CBC, secretbox, and AES-GCM with a key derived for each value. The bytes are
//! those of upstream, so that either reads what the other wrote.

use std::sync::Arc;

use aes::{
    Aes128, Aes192, Aes256,
    cipher::{
        BlockCipher, BlockDecryptMut, BlockEncryptMut, InnerIvInit, KeyInit,
        block_padding::Pkcs7,
        consts::{U12, U16},
    },
};
use aes_gcm::{AesGcm, aead::Aead, aead::Payload};
use crypto_secretbox::XSalsa20Poly1305;
use ring::hkdf;

use super::chain::{Context, Failure, Transformer};
use crate::core::Random;

const SHORT: &str = "the stored data was shorter than the required size";
const GCM_NONCE_BYTES: usize = 12;
const BLOCK_BYTES: usize = 16;
const SECRETBOX_NONCE_BYTES: usize = 24;
const SECRETBOX_TAG_BYTES: usize = 16;
/// Of a derived key, of what it is derived with, and the least of what it is derived from.
pub(super) const SEED_BYTES: usize = 32;

type Made = Option<Arc<dyn Transformer>>;

/// AES-GCM under a key of 16, 24 or 32 bytes.
pub(super) fn gcm(key: &[u8], random: &Arc<dyn Random>) -> Made {
    Some(match key.len() {
        16 => Arc::new(Gcm(AesGcm::<Aes128, U12>::new_from_slice(key).ok()?, random.clone())),
        24 => Arc::new(Gcm(AesGcm::<Aes192, U12>::new_from_slice(key).ok()?, random.clone())),
        32 => Arc::new(Gcm(AesGcm::<Aes256, U12>::new_from_slice(key).ok()?, random.clone())),
        _ => return None,
    })
}

/// AES-CBC under a key of 16, 24 or 32 bytes.
pub(super) fn cbc(key: &[u8], random: &Arc<dyn Random>) -> Made {
    Some(match key.len() {
        16 => Arc::new(Cbc(Aes128::new_from_slice(key).ok()?, random.clone())),
        24 => Arc::new(Cbc(Aes192::new_from_slice(key).ok()?, random.clone())),
        32 => Arc::new(Cbc(Aes256::new_from_slice(key).ok()?, random.clone())),
        _ => return None,
    })
}

/// NaCl's secretbox under a key of 32 bytes.
pub(super) fn secretbox(key: &[u8], random: &Arc<dyn Random>) -> Made {
    let cipher = XSalsa20Poly1305::new_from_slice(key).ok()?;
    Some(Arc::new(Secretbox(cipher, random.clone())))
}

/// Nonce, ciphertext, tag; bound to the value's place.
struct Gcm<C>(C, Arc<dyn Random>);

impl<C: Aead + aes_gcm::aead::AeadCore<NonceSize = U12> + Send + Sync> Transformer for Gcm<C> {
    fn read(&self, data: &[u8], context: &Context<'_>) -> Result<(Vec<u8>, bool), Failure> {
        let (nonce, msg) = data.split_at_checked(GCM_NONCE_BYTES).ok_or(SHORT)?;
        let payload = Payload { msg, aad: context.path.as_bytes() };
        let json = self.0.decrypt(nonce.into(), payload);
        Ok((json.map_err(|_| "cipher: message authentication failed")?, false))
    }

    fn write(&self, json: &[u8], context: &Context<'_>) -> Result<Vec<u8>, Failure> {
        let mut nonce = [0; GCM_NONCE_BYTES];
        self.1.fill(&mut nonce);
        let payload = Payload { msg: json, aad: context.path.as_bytes() };
        let data =
            self.0.encrypt((&nonce).into(), payload).map_err(|_| "the value is too large for AES-GCM")?;
        Ok([&nonce[..], &data].concat())
    }
}

/// Initialization vector and padded ciphertext. Nothing vouches for it.
struct Cbc<C>(C, Arc<dyn Random>);

impl<C> Transformer for Cbc<C>
where
    C: BlockCipher<BlockSize = U16> + BlockEncryptMut + BlockDecryptMut + Clone + Send + Sync,
{
    fn read(&self, data: &[u8], _: &Context<'_>) -> Result<(Vec<u8>, bool), Failure> {
        let (iv, blocks) = data.split_at_checked(BLOCK_BYTES).ok_or(SHORT)?;
        if !blocks.len().is_multiple_of(BLOCK_BYTES) {
            return Err("the stored data is not a multiple of the block size".into());
        }
        let decryptor = cbc::Decryptor::inner_iv_init(self.0.clone(), iv.into());
        let json = decryptor.decrypt_padded_vec_mut::<Pkcs7>(blocks);
        Ok((json.map_err(|_| "invalid padding on input")?, false))
    }

    fn write(&self, json: &[u8], _: &Context<'_>) -> Result<Vec<u8>, Failure> {
        let mut iv = [0; BLOCK_BYTES];
        self.1.fill(&mut iv);
        let encryptor = cbc::Encryptor::inner_iv_init(self.0.clone(), (&iv).into());
        Ok([&iv[..], &encryptor.encrypt_padded_vec_mut::<Pkcs7>(json)].concat())
    }
}

/// Nonce, tag, ciphertext.
struct Secretbox(XSalsa20Poly1305, Arc<dyn Random>);

impl Transformer for Secretbox {
    fn read(&self, data: &[u8], _: &Context<'_>) -> Result<(Vec<u8>, bool), Failure> {
        if data.len() < SECRETBOX_NONCE_BYTES + SECRETBOX_TAG_BYTES {
            return Err(SHORT.into());
        }
        let (nonce, sealed) = data.split_at(SECRETBOX_NONCE_BYTES);
        let json = self.0.decrypt(nonce.into(), sealed);
        // Upstream says this of any value that the key does not open.
        Ok((json.map_err(|_| "output array was not large enough for encryption")?, false))
    }

    fn write(&self, json: &[u8], _: &Context<'_>) -> Result<Vec<u8>, Failure> {
        let mut nonce = [0; SECRETBOX_NONCE_BYTES];
        self.1.fill(&mut nonce);
        let data =
            self.0.encrypt((&nonce).into(), json).map_err(|_| "the value is too large for secretbox")?;
        Ok([&nonce[..], &data].concat())
    }
}

/// AES-256-GCM under a key of its own for each value, expanded from a seed: 32 random bytes (HKDF's `info`)
/// stand before nonce and ciphertext. A seed so never wears out.
pub(super) struct Seeded {
    seed: hkdf::Prk,
    random: Arc<dyn Random>,
}

struct DerivedKey;

impl hkdf::KeyType for DerivedKey {
    fn len(&self) -> usize {
        SEED_BYTES
    }
}

impl Seeded {
    pub fn new(seed: &[u8], random: Arc<dyn Random>) -> Result<Self, Failure> {
        if seed.len() < SEED_BYTES {
            return Err(format!("invalid seed length {} used for key generation", seed.len()).into());
        }
        Ok(Self { seed: hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, seed), random })
    }

    fn derived(&self, info: &[u8]) -> Result<Arc<dyn Transformer>, Failure> {
        let mut key = [0; SEED_BYTES];
        let info = [info];
        let expanded = self.seed.expand(&info, DerivedKey).and_then(|okm| okm.fill(&mut key));
        let made = expanded.ok().and_then(|()| gcm(&key, &self.random));
        made.ok_or_else(|| "failed to derive a key from the seed".into())
    }
}

impl Transformer for Seeded {
    fn read(&self, data: &[u8], context: &Context<'_>) -> Result<(Vec<u8>, bool), Failure> {
        let (info, rest) = data.split_at_checked(SEED_BYTES).ok_or(SHORT)?;
        self.derived(info)?.read(rest, context)
    }

    fn write(&self, json: &[u8], context: &Context<'_>) -> Result<Vec<u8>, Failure> {
        let mut info = [0; SEED_BYTES];
        self.random.fill(&mut info);
        let data = self.derived(&info)?.write(json, context)?;
        Ok([&info[..], &data].concat())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{core::SystemRandom, encryption::metrics::Metrics};

    /// Gives 0, 1, 2, …: what upstream's libraries were given for the values below.
    struct Counting;

    impl Random for Counting {
        fn fill(&self, bytes: &mut [u8]) {
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = i as u8;
            }
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn key(len: usize) -> Vec<u8> {
        (0..len).map(|i| 100 + i as u8).collect()
    }

    #[test]
    fn bytes_are_those_of_other_implementations() {
        let random: Arc<dyn Random> = Arc::new(Counting);
        let metrics = Metrics::default();
        let context = Context::new("secrets", "default/a", &metrics);
        let seeded: Arc<dyn Transformer> = Arc::new(Seeded::new(&key(32), random.clone()).unwrap());
        for (name, transformer) in [
            ("gcm16", gcm(&key(16), &random).unwrap()),
            ("gcm24", gcm(&key(24), &random).unwrap()),
            ("gcm32", gcm(&key(32), &random).unwrap()),
            ("cbc16", cbc(&key(16), &random).unwrap()),
            ("cbc24", cbc(&key(24), &random).unwrap()),
            ("cbc32", cbc(&key(32), &random).unwrap()),
            ("secretbox", secretbox(&key(32), &random).unwrap()),
            ("seeded", seeded),
        ] {
            let data = transformer.write(b"the quick brown fox", &context).unwrap();
            let expected = VECTORS.iter().find(|(n, _)| *n == name).unwrap().1;
            assert_eq!(hex(&data), expected, "{name}");
            assert_eq!(transformer.read(&data, &context).unwrap(), (b"the quick brown fox".to_vec(), false));
        }
    }

    /// Made with OpenSSL and libsodium.
    const VECTORS: [(&str, &str); 8] = [
        (
            "gcm16",
            "000102030405060708090a0bfff4d4b66dfbcfd4aa5ec845d3967c3c0b2659663b77979dcfba4d205f034f8ba1a6c9",
        ),
        (
            "gcm24",
            "000102030405060708090a0b1312efb2d3ddcb1c844cbffb7a45c03565a9b0b4b469161dc4b4181988f29a0bd46937",
        ),
        (
            "gcm32",
            "000102030405060708090a0bebc35d6ccc38a88af633fcbaf9ede6928f784599fd35c9b9dc87b82279db22bbcb3a3b",
        ),
        (
            "cbc16",
            "000102030405060708090a0b0c0d0e0fc2b372d55bae08aed0c7a19f4eeea54b4ed488d1bc2c75f7e8a592b469ff30ee",
        ),
        (
            "cbc24",
            "000102030405060708090a0b0c0d0e0fdef6dd26bb31fc0f6da59dc2d5cade98330241de55646031f928363f9406cd58",
        ),
        (
            "cbc32",
            "000102030405060708090a0b0c0d0e0fe75a3cbdceb832d95899d66c1436615963dadfbf3a1b467e28b4d72eec083738",
        ),
        (
            "secretbox",
            "000102030405060708090a0b0c0d0e0f1011121314151617bb71d531f12ff37b1415e6b07398826bc656643c84495fc9af6d25e76a922f3ba41b40",
        ),
        (
            "seeded",
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f000102030405060708090a0b5b2549d6746d0d536fac20b554823c11ef7e643b66e272c429ee8fc43fd349f6f163e0",
        ),
    ];

    #[test]
    fn damage_is_noticed() {
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let metrics = Metrics::default();
        let context = Context::new("secrets", "default/a", &metrics);
        let elsewhere = Context::new("secrets", "default/b", &metrics);
        let seeded: Arc<dyn Transformer> = Arc::new(Seeded::new(&key(40), random.clone()).unwrap());
        let all = [gcm(&key(32), &random).unwrap(), secretbox(&key(32), &random).unwrap(), seeded];
        for transformer in &all {
            let data = transformer.write(b"{}", &context).unwrap();
            for at in 0..data.len() {
                let mut bad = data.clone();
                bad[at] ^= 1;
                assert!(transformer.read(&bad, &context).is_err(), "byte {at}");
                assert!(transformer.read(&data[..at], &context).is_err(), "length {at}");
            }
        }
        for bound in [&all[0], &all[2]] {
            let data = bound.write(b"{}", &context).unwrap();
            assert!(bound.read(&data, &elsewhere).is_err(), "a value is bound to its place");
        }
        let cbc = cbc(&key(32), &random).unwrap();
        let data = cbc.write(b"{}", &context).unwrap();
        for (bad, expected) in [
            (&data[..15], SHORT),
            (&data[..16], "invalid padding on input"),
            (&data[..20], "the stored data is not a multiple of the block size"),
        ] {
            assert_eq!(cbc.read(bad, &context).unwrap_err().message, expected);
        }
        assert!(gcm(&key(20), &random).is_none() && super::cbc(&key(0), &random).is_none());
        assert!(secretbox(&key(16), &random).is_none() && Seeded::new(&key(31), random).is_err());
    }
}
