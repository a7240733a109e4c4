//! Service-account tokens: JSON Web Tokens signed with the cluster's key.
//!
//! The claims are upstream's (`k8s.io/kubernetes/pkg/serviceaccount/claims.go`): private claims under
//! `kubernetes.io` bind a token to a service account and, optionally, to a pod, secret or node. Tokens of the
//! old kind ([`legacy`]) rest in Secrets and do not expire.

mod keys;
pub mod legacy;

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::{
    cache::{self, Cache, Usage},
    gotext,
    jws::{self, KeyError, PrivateKey, PublicKey},
    user::{CREDENTIAL_ID, User},
};

pub use self::keys::Key;
use self::keys::Keys;

/// How far clocks may be apart.
pub const LEEWAY_S: i64 = 60;
/// Tokens whose signature is remembered.
const REMEMBERED: usize = 32 * 1024;

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// It is not one of ours: another authenticator may know it.
    #[error("not a service account token of this issuer")]
    Foreign,
    /// Its signature or form is wrong.
    #[error("{0}")]
    Invalid(&'static str),
    /// Its signature names a key that is not known.
    #[error("invalid signature, no keys found")]
    UnknownKey,
    /// Its time is over.
    #[error("service account token has expired")]
    Expired,
    /// Its time has not come.
    #[error("service account token is not valid yet")]
    NotYet,
    /// It was made later than now.
    #[error("service account token is issued in the future")]
    FromTheFuture,
    /// It is meant for somebody else.
    #[error("token audiences {} is invalid for the target audiences {}", gotext::list(.0), gotext::list(.1))]
    Audience(Vec<String>, Vec<String>),
    /// A key cannot be used.
    #[error("service account key: {0}")]
    Key(#[from] KeyError),
    /// There is no key to sign with.
    #[error("no service account signing key")]
    NoKey,
}

/// An object that a token is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// UID.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The `kubernetes.io` claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bound {
    /// Namespace of the service account.
    pub namespace: String,
    /// The service account.
    pub serviceaccount: Reference,
    /// The pod it was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The secret it was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The node that the pod runs on, or the node it was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// Unix seconds after which its holder should have replaced it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// The claims of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claims {
    /// Audiences.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub aud: Vec<String>,
    /// Expiry, Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    /// Issued at, Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iat: Option<i64>,
    /// Issuer.
    pub iss: String,
    /// Identifier of this token.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub jti: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    /// Not before, Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    /// `system:serviceaccount:<namespace>:<name>`
    pub sub: String,
}

/// `aud` is a string or a list of them (RFC 7519, section 4.1.3).
pub(crate) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Aud {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::<Aud>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Aud::One(one)) => vec![one],
        Some(Aud::Many(many)) => many,
    })
}

impl Claims {
    /// The identity that the token stands for.
    pub fn user(&self) -> User {
        let bound = &self.bound;
        let mut user = User::service_account(
            &bound.namespace,
            &bound.serviceaccount.name,
            bound.serviceaccount.uid.clone(),
        );
        let mut extra = |key: &str, value: String| {
            if !value.is_empty() {
                user.extra.insert(key.to_owned(), vec![value]);
            }
        };
        if !self.jti.is_empty() {
            extra(CREDENTIAL_ID, credential_id(&self.jti));
        }
        if let Some(pod) = &bound.pod {
            extra("authentication.kubernetes.io/pod-name", pod.name.clone());
            extra("authentication.kubernetes.io/pod-uid", pod.uid.clone());
        }
        if let Some(node) = &bound.node {
            extra("authentication.kubernetes.io/node-name", node.name.clone());
            extra("authentication.kubernetes.io/node-uid", node.uid.clone());
        }
        user
    }

    /// Whether its time is now (`now_s`: Unix seconds).
    fn check_time(&self, now_s: i64) -> Result<(), TokenError> {
        if self.nbf.is_some_and(|nbf| now_s + LEEWAY_S < nbf) {
            return Err(TokenError::NotYet);
        }
        if self.exp.is_some_and(|exp| now_s - LEEWAY_S > exp) {
            return Err(TokenError::Expired);
        }
        if self.iat.is_some_and(|iat| now_s + LEEWAY_S < iat) {
            return Err(TokenError::FromTheFuture);
        }
        Ok(())
    }
}

/// How a token's `jti` stands among a user's extras.
pub fn credential_id(jti: &str) -> String {
    format!("JTI={jti}")
}

/// A token with a good signature.
#[derive(Debug, PartialEq, Eq)]
pub struct Verified {
    /// What it says.
    pub claims: Claims,
    /// What it says, if it is of the old kind.
    pub legacy: Option<legacy::Claims>,
    /// Whose it is.
    pub user: Arc<User>,
}

/// What makes a [`Signer`].
#[derive(Default)]
pub struct Options<'a> {
    /// The key that signs, PEM; absent: tokens are only verified.
    pub signing_key: Option<&'a str>,
    /// Files with further keys that verify, PEM.
    pub verification_keys: &'a [String],
    /// Who makes the tokens: the first is written into new ones, all are accepted.
    pub issuers: &'a [String],
    /// The audiences that the API server answers to.
    pub audiences: &'a [String],
}

/// Signs and verifies service-account tokens.
pub struct Signer {
    issuers: Vec<String>,
    audiences: Vec<String>,
    key: Option<PrivateKey>,
    keys: ArcSwap<Keys>,
    /// Tokens whose signature was good, by digest.
    seen: Cache<Arc<Verified>>,
}

impl Signer {
    /// A signer with the one key `pem`. `audiences` are the API server's own.
    pub fn new(pem: &str, issuer: &str, audiences: &[String]) -> Result<Self, TokenError> {
        Self::with(&Options {
            signing_key: Some(pem),
            issuers: &[issuer.to_owned()],
            audiences,
            ..Options::default()
        })
    }

    /// A signer of several keys and issuers.
    pub fn with(options: &Options<'_>) -> Result<Self, TokenError> {
        let key = options.signing_key.map(jws::private_key).transpose()?;
        let own = key.as_ref().map(|k| k.public().clone());
        let mut all: Vec<PublicKey> = own.into_iter().collect();
        for pem in options.verification_keys {
            all.extend(jws::public_keys(pem)?);
        }
        let mut keys: Vec<Key> = Vec::new();
        for public in all {
            let key = Key::new(public);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        Ok(Self {
            issuers: options.issuers.to_vec(),
            audiences: options.audiences.to_vec(),
            key,
            keys: ArcSwap::from_pointee(Keys::default().followed_by(keys)),
            seen: Cache::new(REMEMBERED),
        })
    }

    /// Puts other keys in the place of those that verify. What the ones before had verified is looked at again.
    pub fn replace_keys(&self, keys: Vec<Key>) {
        let before = self.keys.load();
        if before.all() != keys {
            self.keys.store(Arc::new(before.followed_by(keys)));
        }
    }

    /// Whether the key that tokens name so is kept out of what the issuer publishes; `None`: no key is named so.
    pub fn is_unpublished(&self, id: &str) -> Option<bool> {
        self.keys.load().named(id).map(|key| key.unpublished).reduce(|one, other| one || other)
    }

    /// How tokens were found that had been seen before.
    pub fn usage(&self) -> Usage {
        self.seen.usage()
    }

    /// The issuer that new tokens name.
    pub fn issuer(&self) -> &str {
        self.issuers.first().map_or("", String::as_str)
    }

    /// All issuers whose tokens are accepted.
    pub fn issuers(&self) -> &[String] {
        &self.issuers
    }

    /// The audiences that the API server itself answers to.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// A token for `claims`.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        self.sign_json(&serde_json::to_vec(claims).map_err(|e| KeyError::Sign(e.to_string()))?)
    }

    /// A token for claims that are JSON already.
    pub(crate) fn sign_json(&self, claims: &[u8]) -> Result<String, TokenError> {
        let key = self.key.as_ref().ok_or(TokenError::NoKey)?;
        Ok(jws::sign(key, claims)?)
    }

    /// The token's claims if a key of ours signed it, its time is right (`now_s`: Unix seconds) and it is
    /// meant for one of `audiences` (empty: for the API server). Whether the objects it is bound to still
    /// exist is the caller's to check.
    pub fn verify(&self, token: &str, audiences: &[String], now_s: i64) -> Result<Arc<Verified>, TokenError> {
        let keys = self.keys.load();
        let id = cache::key(&[token.as_bytes(), &keys.generation().to_le_bytes()]);
        let verified = match self.seen.get(&id, 0) {
            Some(known) => known,
            None => {
                let verified = Arc::new(self.check_signature(token, &keys)?);
                // A signature stays good while the keys are the same; the time is looked at each time.
                self.seen.put(id, verified.clone(), i64::MAX);
                verified
            }
        };
        let claims = &verified.claims;
        // Tokens of the old kind name no audience and are for the API server.
        let has = if claims.aud.is_empty() { &self.audiences } else { &claims.aud };
        let wanted = if audiences.is_empty() { &self.audiences } else { audiences };
        if !has.iter().any(|a| wanted.contains(a)) && !self.audiences.is_empty() {
            return Err(TokenError::Audience(has.clone(), wanted.to_vec()));
        }
        if verified.legacy.is_none() {
            claims.check_time(now_s)?;
        }
        Ok(verified)
    }

    /// Which of `wanted` (empty: the API server's own) a verified token is good for.
    pub fn good_for(&self, verified: &Verified, wanted: &[String]) -> Vec<String> {
        let has = if verified.claims.aud.is_empty() { &self.audiences } else { &verified.claims.aud };
        let wanted = if wanted.is_empty() { &self.audiences } else { wanted };
        has.iter().filter(|a| wanted.contains(a)).cloned().collect()
    }

    fn check_signature(&self, text: &str, keys: &Keys) -> Result<Verified, TokenError> {
        // The issuer is read before the signature is checked only to tell foreign tokens from forged ones.
        let issuer = jws::claimed_issuer(text).ok_or(TokenError::Foreign)?;
        let legacy = issuer == legacy::ISSUER;
        if !legacy && !self.issuers.contains(&issuer) {
            return Err(TokenError::Foreign);
        }
        let token = jws::Token::parse(text).ok_or(TokenError::Foreign)?;
        let mut candidates = keys.named(&token.header.kid).peekable();
        if candidates.peek().is_none() {
            return Err(TokenError::UnknownKey);
        }
        if !candidates.any(|candidate| token.verify(&candidate.key)) {
            return Err(TokenError::Invalid("go-jose/go-jose: error in cryptographic primitive"));
        }
        let malformed = |_| TokenError::Invalid("go-jose/go-jose/jwt: validation failed, invalid claims");
        let claims: Claims = serde_json::from_slice(&token.payload).map_err(malformed)?;
        let legacy = if legacy {
            let claims: legacy::Claims = serde_json::from_slice(&token.payload).map_err(malformed)?;
            claims.check()?;
            Some(claims)
        } else {
            None
        };
        let user = Arc::new(legacy.as_ref().map_or_else(|| claims.user(), legacy::Claims::user));
        Ok(Verified { claims, legacy, user })
    }

    /// Whether there is something to publish for others who verify tokens: the issuer is the URL of an OpenID
    /// provider (OpenID Connect Discovery 1.0, section 3), and there are keys that are not kept out.
    pub fn publishes(&self) -> bool {
        let scheme = self.issuer().split_once("://").map_or("", |(scheme, _)| scheme);
        scheme.eq_ignore_ascii_case("https")
            && !self.issuer().contains(['?', '#'])
            && !self.keys.load().published().is_empty()
    }

    /// `/.well-known/openid-configuration`; `jwks_uri` is where [`Signer::jwks`] is served.
    pub fn openid_configuration(&self, jwks_uri: &str) -> Value {
        let keys = self.keys.load();
        let mut algorithms: Vec<&str> = keys.published().iter().map(|k| k.key.algorithm().name()).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        json!({
            "issuer": self.issuer(),
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }

    /// `/openid/v1/jwks` (RFC 7517).
    pub fn jwks(&self) -> Value {
        let keys = self.keys.load();
        json!({"keys": keys.published().iter().map(|k| k.key.to_jwk_called(&k.id)).collect::<Vec<_>>()})
    }
}

/// Whether two secrets are equal, in time that depends on their lengths only.
pub fn secrets_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0_u8, |acc, (x, y)| acc | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::*;
    use crate::jws::testing::KEYS;

    fn signer() -> Signer {
        Signer::new(KEYS[1].0, "https://issuer", &["api".into()]).unwrap()
    }

    fn claims(signer: &Signer) -> Claims {
        Claims {
            aud: vec!["api".into()],
            exp: Some(2000),
            iat: Some(1000),
            nbf: Some(1000),
            iss: signer.issuer().into(),
            jti: "1".into(),
            bound: Bound {
                namespace: "ns".into(),
                serviceaccount: Reference { name: "sa".into(), uid: "u".into() },
                pod: Some(Reference { name: "p".into(), uid: "pu".into() }),
                node: Some(Reference { name: "n".into(), uid: "nu".into() }),
                ..Bound::default()
            },
            sub: "system:serviceaccount:ns:sa".into(),
        }
    }

    #[test]
    fn a_token_verifies_only_as_it_was_signed() {
        let signer = signer();
        let claims = claims(&signer);
        let token = signer.sign(&claims).unwrap();
        let verify = |token: &str, now_s| signer.verify(token, &[], now_s).map(|v| v.claims.clone());
        assert_eq!(verify(&token, 1500), Ok(claims.clone()));
        // The second time the signature is remembered; time and audience are not.
        for (now_s, error) in
            [(2061, TokenError::Expired), (939, TokenError::NotYet), (i64::MAX / 2, TokenError::Expired)]
        {
            assert_eq!(verify(&token, now_s), Err(error));
        }
        assert_eq!(verify(&token, 2060), Ok(claims.clone()));
        let error = signer.verify(&token, &["other".into()], 1500).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"token audiences ["api"] is invalid for the target audiences ["other"]"#
        );
        let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
        let mut forged = claims.clone();
        forged.bound.serviceaccount.name = "admin".into();
        parts[1] = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&forged).unwrap());
        assert!(matches!(verify(&parts.join("."), 1500), Err(TokenError::Invalid(_))));
        for header in [r#"{"alg":"none"}"#, r#"{"alg":"HS256"}"#, r#"{"alg":"RS256"}"#, "{}"] {
            parts[0] = URL_SAFE_NO_PAD.encode(header);
            assert!(matches!(verify(&parts.join("."), 1500), Err(TokenError::Invalid(_))), "{header}");
        }
        parts[0] = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"unknown"}"#);
        let error = verify(&parts.join("."), 1500).unwrap_err();
        assert_eq!(error, TokenError::UnknownKey);
        for foreign in ["", "abc", "a.b.c", "a.b.c.d", &"x".repeat(100_000)] {
            assert_eq!(verify(foreign, 1500), Err(TokenError::Foreign));
        }
        let user = claims.user();
        assert_eq!(user.name, "system:serviceaccount:ns:sa");
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(user.extra["authentication.kubernetes.io/node-uid"], ["nu"]);
        assert_eq!(user.extra[CREDENTIAL_ID], ["JTI=1"]);
    }

    #[test]
    fn keys_and_issuers_rotate() {
        let old = Signer::new(KEYS[0].0, "https://old", &["api".into()]).unwrap();
        let token = old.sign(&Claims { iss: "https://old".into(), ..claims(&old) }).unwrap();
        let keys = [KEYS[0].0.to_owned() + KEYS[3].0, KEYS[1].0.to_owned()];
        let new = Signer::with(&Options {
            signing_key: Some(KEYS[1].0),
            verification_keys: &keys,
            issuers: &["https://new".into(), "https://old".into()],
            audiences: &["api".into()],
        })
        .unwrap();
        assert!(new.verify(&token, &[], 1500).is_ok());
        assert_eq!(new.issuer(), "https://new");
        let jwks = new.jwks();
        let of = |field: &str| -> Vec<&str> {
            jwks["keys"].as_array().unwrap().iter().filter_map(|k| k[field].as_str()).collect()
        };
        assert_eq!(of("alg"), ["ES256", "RS256", "ES512"]);
        assert_eq!(of("kty"), ["EC", "RSA", "EC"]);
        let document = new.openid_configuration("https://x/jwks");
        assert_eq!(document["id_token_signing_alg_values_supported"], json!(["ES256", "ES512", "RS256"]));
        let verifier = Signer::with(&Options { verification_keys: &keys, ..Options::default() }).unwrap();
        assert_eq!(verifier.sign(&Claims::default()), Err(TokenError::NoKey));
    }

    #[test]
    fn keys_of_another_signer_come_and_go() {
        let key = |at: usize, id: &str, unpublished| {
            let key = jws::private_key(KEYS[at].0).unwrap().public().clone();
            Key { id: id.into(), key, unpublished }
        };
        let issuers = ["https://issuer".to_owned()];
        let options = Options { issuers: &issuers, ..Options::default() };
        let signer = Signer::with(&options).unwrap();
        let others = Signer::new(KEYS[1].0, "https://issuer", &[]).unwrap();
        let token = others.sign(&claims(&others)).unwrap();
        let verify = || signer.verify(&token, &[], 1500).map(|_| ());
        let ids = || {
            let jwks = signer.jwks();
            let ids = jwks["keys"].as_array().unwrap().iter().map(|k| k["kid"].as_str().unwrap().to_owned());
            ids.collect::<Vec<_>>()
        };
        assert!(!signer.publishes());
        assert_eq!(verify(), Err(TokenError::UnknownKey));
        let id = key(1, "", false).key.id();
        signer.replace_keys(vec![key(1, &id, true), key(0, "a", false)]);
        assert_eq!(verify(), Ok(()));
        assert!(signer.publishes());
        assert_eq!(ids(), ["a"]);
        for (asked, found) in [("a", Some(false)), (id.as_str(), Some(true)), ("b", None)] {
            assert_eq!(signer.is_unpublished(asked), found, "{asked}");
        }
        // Where all are kept out, what was published stays.
        signer.replace_keys(vec![key(1, &id, true)]);
        assert_eq!(ids(), ["a"]);
        assert_eq!(verify(), Ok(()));
        // A key of that name which did not sign it; a set without one.
        signer.replace_keys(vec![key(2, &id, false)]);
        assert!(matches!(verify(), Err(TokenError::Invalid(_))));
        signer.replace_keys(vec![key(2, "c", false)]);
        assert_eq!(verify(), Err(TokenError::UnknownKey));
        assert_eq!(ids(), ["c"]);
        for (issuer, publishes) in [
            ("https://issuer/path", true),
            ("http://issuer", false),
            ("issuer", false),
            ("https://issuer?a=b", false),
            ("https://issuer#a", false),
        ] {
            assert_eq!(Signer::new(KEYS[1].0, issuer, &[]).unwrap().publishes(), publishes, "{issuer}");
        }
    }

    #[test]
    fn secrets_compare_by_content() {
        assert!(secrets_equal(b"abc", b"abc"));
        assert!(!secrets_equal(b"abc", b"abd"));
        assert!(!secrets_equal(b"abc", b"ab"));
    }
}
