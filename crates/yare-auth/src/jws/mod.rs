//! JSON Web Signatures (RFC 7515) in their compact form, and the keys that make and check them (RFC 7517,
//! RFC 7518): RSA and the three NIST curves, from PEM files and from JSON Web Keys.

mod key;
mod pem;
#[cfg(test)]
pub(crate) mod testing;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

pub use key::{PrivateKey, PublicKey};
pub use pem::{private_key, public_key_of_info, public_keys};

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Why a key cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// The text holds no key.
    #[error("holds no PEM block with a key")]
    Empty,
    /// A block is of a kind that holds no key, or what is in it cannot be read.
    #[error("{label}: {why}")]
    Malformed {
        /// The block's label.
        label: String,
        /// What is wrong with it.
        why: String,
    },
    /// The key's kind is not one of ours.
    #[error("keys of this kind are not supported: use RSA (2048 bits or more), P-256, P-384 or P-521")]
    Unsupported,
    /// Signing did not work.
    #[error("the key cannot sign: {0}")]
    Sign(String),
}

/// A signature algorithm of RFC 7518, section 3.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Algorithm {
    /// ECDSA with P-256 and SHA-256
    Es256,
    /// ECDSA with P-384 and SHA-384
    Es384,
    /// ECDSA with P-521 and SHA-512
    Es512,
    /// RSASSA-PSS with SHA-256
    Ps256,
    /// RSASSA-PSS with SHA-384
    Ps384,
    /// RSASSA-PSS with SHA-512
    Ps512,
    /// RSASSA-PKCS1-v1_5 with SHA-256
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512
    Rs512,
}

impl Algorithm {
    /// All, in the order of their names.
    pub const ALL: [Self; 9] = [
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
    ];

    /// The name in a header's `alg`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
        }
    }

    /// The algorithm of that name. `none` and the symmetric ones are no algorithms here.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }
}

/// What a token's header says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Header {
    /// `alg`
    pub alg: String,
    /// `kid`, empty where there is none.
    pub kid: String,
}

/// A compact token taken apart. Nothing in it is verified before [`Token::verify`] said so.
pub struct Token<'a> {
    /// Its header.
    pub header: Header,
    /// Its payload, decoded.
    pub payload: Vec<u8>,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Token<'a> {
    /// Takes `text` apart; `None` where it is not a token.
    pub fn parse(text: &'a str) -> Option<Self> {
        if text.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        if payload.contains('.') {
            return None;
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        Some(Self {
            header: serde_json::from_slice(&decode(header)?).ok()?,
            payload: decode(payload)?,
            signed,
            signature: decode(signature)?,
        })
    }

    /// Whether `key` made the signature with the algorithm that the header names.
    pub fn verify(&self, key: &PublicKey) -> bool {
        Algorithm::named(&self.header.alg)
            .is_some_and(|algorithm| key.verify(algorithm, self.signed.as_bytes(), &self.signature))
    }
}

/// The issuer that a token claims, unverified: it says only who should be asked.
pub fn claimed_issuer(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        iss: String,
    }
    if text.len() > MAX_TOKEN_BYTES {
        return None;
    }
    let mut parts = text.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice::<Claims>(&payload).ok().map(|c| c.iss)
}

/// A token of `claims` (JSON), signed with `key`.
pub fn sign(key: &PrivateKey, claims: &[u8]) -> Result<String, KeyError> {
    let header = serde_json::json!({"alg": key.algorithm().name(), "kid": key.public().id()});
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
    let signature = key.sign(signed.as_bytes())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
