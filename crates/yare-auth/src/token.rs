//! Service-account tokens: JSON Web Tokens (RFC 7519) signed with ES256, and static bearer tokens.
//!
//! The claims are upstream's (`k8s.io/kubernetes/pkg/serviceaccount/claims.go`): private claims under
//! `kubernetes.io` bind a token to a service account and, optionally, to a pod, secret or node.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
        UnparsedPublicKey,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::user::{CREDENTIAL_ID, User};

/// The longest token that is looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// It is not one of ours: another authenticator may know it.
    #[error("not a service account token of this issuer")]
    Foreign,
    /// Its signature or form is wrong.
    #[error("invalid bearer token")]
    Invalid,
    /// Its time is over.
    #[error("service account token has expired")]
    Expired,
    /// Its time has not come.
    #[error("service account token is not valid yet")]
    NotYet,
    /// It is meant for somebody else.
    #[error("token audiences {0:?} is invalid for the target audiences")]
    Audience(Vec<String>),
    /// The signing key cannot be used.
    #[error("service account signing key: {0}")]
    Key(String),
}

/// An object that a token is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// UID.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The `kubernetes.io` claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Namespace of the service account.
    pub namespace: String,
    /// The service account.
    pub serviceaccount: Reference,
    /// The pod it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The secret it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The node that the pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// Unix seconds after which its holder should have replaced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// The claims of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Audiences.
    pub aud: Vec<String>,
    /// Expiry, Unix seconds.
    pub exp: i64,
    /// Issued at, Unix seconds.
    pub iat: i64,
    /// Issuer.
    pub iss: String,
    /// Identifier of this token.
    pub jti: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    /// Not before, Unix seconds.
    pub nbf: i64,
    /// `system:serviceaccount:<namespace>:<name>`
    pub sub: String,
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
        let mut extra = |key: &str, value: &str| {
            if !value.is_empty() {
                user.extra.insert(key.to_owned(), vec![value.to_owned()]);
            }
        };
        extra(CREDENTIAL_ID, &format!("JTI={}", self.jti));
        if let Some(pod) = &bound.pod {
            extra("authentication.kubernetes.io/pod-name", &pod.name);
            extra("authentication.kubernetes.io/pod-uid", &pod.uid);
        }
        if let Some(node) = &bound.node {
            extra("authentication.kubernetes.io/node-name", &node.name);
            extra("authentication.kubernetes.io/node-uid", &node.uid);
        }
        user
    }
}

/// Signs and verifies service-account tokens.
pub struct Signer {
    issuer: String,
    audiences: Vec<String>,
    key: EcdsaKeyPair,
    key_id: String,
    random: SystemRandom,
}

impl Signer {
    /// A signer with the ECDSA P-256 key `pem` (PKCS #8). `audiences` are the API server's own.
    pub fn new(pem: &str, issuer: &str, audiences: &[String]) -> Result<Self, TokenError> {
        let random = SystemRandom::new();
        let (_, block) =
            x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|e| TokenError::Key(e.to_string()))?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &block.contents, &random)
            .map_err(|e| TokenError::Key(e.to_string()))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        let key_id = URL_SAFE_NO_PAD.encode(digest.as_ref());
        Ok(Self { issuer: issuer.to_owned(), audiences: audiences.to_vec(), key, key_id, random })
    }

    /// The issuer that tokens name.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The audiences that the API server itself answers to.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// A token for `claims`.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let body = serde_json::to_vec(claims).map_err(|e| TokenError::Key(e.to_string()))?;
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(body));
        let signature =
            self.key.sign(&self.random, signed.as_bytes()).map_err(|e| TokenError::Key(e.to_string()))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    /// The claims of `token` if we signed it, its time is right (`now_s`: Unix seconds) and it is meant for
    /// one of `audiences` (empty: for the API server). Whether the objects it is bound to still exist is the
    /// caller's to check.
    pub fn verify(&self, token: &str, audiences: &[String], now_s: i64) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid);
        }
        let mut parts = token.split('.');
        let (Some(header), Some(body), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Foreign);
        };
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Foreign);
        // The issuer is read before the signature is checked only to tell foreign tokens from forged ones.
        let claims = decode(body)?;
        let issuer: Value = serde_json::from_slice(&claims).map_err(|_| TokenError::Foreign)?;
        if issuer.get("iss").and_then(Value::as_str) != Some(self.issuer.as_str()) {
            return Err(TokenError::Foreign);
        }
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Invalid)?;
        if header.get("alg").and_then(Value::as_str) != Some("ES256") {
            return Err(TokenError::Invalid);
        }
        let signed = &token[..token.rfind('.').unwrap_or_default()];
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| TokenError::Invalid)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| TokenError::Invalid)?;
        if now_s >= claims.exp {
            return Err(TokenError::Expired);
        }
        if now_s < claims.nbf {
            return Err(TokenError::NotYet);
        }
        let wanted = if audiences.is_empty() { &self.audiences } else { audiences };
        if !claims.aud.iter().any(|a| wanted.contains(a)) {
            return Err(TokenError::Audience(claims.aud));
        }
        Ok(claims)
    }

    /// `/.well-known/openid-configuration`; `jwks_uri` is where [`Signer::jwks`] is served.
    pub fn openid_configuration(&self, jwks_uri: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks` (RFC 7517).
    pub fn jwks(&self) -> Value {
        // An uncompressed point: 0x04, then x and y of 32 bytes each.
        let point = self.key.public_key().as_ref();
        json!({"keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.key_id,
            "crv": "P-256",
            "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(&point[1..33]),
            "y": URL_SAFE_NO_PAD.encode(&point[33..65]),
        }]})
    }
}

/// Whether two secrets are equal, in time that depends on their lengths only.
pub fn secrets_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0_u8, |acc, (x, y)| acc | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Pki;

    fn signer() -> (tempfile::TempDir, Signer) {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let signer = Signer::new(&pki.service_account_key, "https://issuer", &["api".into()]).unwrap();
        (dir, signer)
    }

    fn claims(signer: &Signer) -> Claims {
        Claims {
            aud: vec!["api".into()],
            exp: 200,
            iat: 100,
            nbf: 100,
            iss: signer.issuer().into(),
            jti: "1".into(),
            bound: Bound {
                namespace: "ns".into(),
                serviceaccount: Reference { name: "sa".into(), uid: "u".into() },
                pod: Some(Reference { name: "p".into(), uid: "pu".into() }),
                ..Bound::default()
            },
            sub: "system:serviceaccount:ns:sa".into(),
        }
    }

    #[test]
    fn a_token_verifies_only_as_it_was_signed() {
        let (_dir, signer) = signer();
        let claims = claims(&signer);
        let token = signer.sign(&claims).unwrap();
        assert_eq!(signer.verify(&token, &[], 150), Ok(claims.clone()));
        assert_eq!(signer.verify(&token, &[], 200), Err(TokenError::Expired));
        assert_eq!(signer.verify(&token, &[], 99), Err(TokenError::NotYet));
        assert_eq!(
            signer.verify(&token, &["other".into()], 150),
            Err(TokenError::Audience(vec!["api".into()]))
        );
        let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
        let mut forged = claims.clone();
        forged.bound.serviceaccount.name = "admin".into();
        parts[1] = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&forged).unwrap());
        assert_eq!(signer.verify(&parts.join("."), &[], 150), Err(TokenError::Invalid));
        parts[0] = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        assert_eq!(signer.verify(&parts.join("."), &[], 150), Err(TokenError::Invalid));
        for foreign in ["", "abc", "a.b.c", "a.b.c.d"] {
            assert_eq!(signer.verify(foreign, &[], 150), Err(TokenError::Foreign));
        }
        let user = claims.user();
        assert_eq!(user.name, "system:serviceaccount:ns:sa");
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
    }

    #[test]
    fn secrets_compare_by_content() {
        assert!(secrets_equal(b"abc", b"abc"));
        assert!(!secrets_equal(b"abc", b"abd"));
        assert!(!secrets_equal(b"abc", b"ab"));
    }
}
