//! Tokens of OpenID Connect issuers: their signature, their claims, and the user that these become
//! (<https://openid.net/specs/openid-connect-core-1_0.html>). Fetching documents is the caller's.

mod distributed;
mod mapping;

use serde_json::{Map, Value};

pub use distributed::Source;
pub use mapping::Mapping;

use crate::{
    gotext,
    jws::{Algorithm, PublicKey, Token},
};

/// How far ahead of ours the clock may be that says from when a token is good.
const NOT_BEFORE_LEEWAY_S: i64 = 300;
/// The most keys of one issuer.
const MAX_KEYS: usize = 256;

/// The claims of a token.
pub type Claims = Map<String, Value>;

/// What an issuer's configuration document says (OpenID Connect Discovery 1.0, section 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Where the keys are.
    pub jwks_uri: String,
}

impl Discovery {
    /// Where the document of `issuer` is.
    pub fn url(issuer: &str) -> String {
        format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
    }

    /// Reads the document; it must be of `issuer`.
    pub fn parse(text: &[u8], issuer: &str) -> Result<Self, String> {
        let document: Value = serde_json::from_slice(text)
            .map_err(|e| format!("oidc: failed to decode provider discovery object: {e}"))?;
        let field = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
        if field("issuer") != issuer {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {issuer:?} got {:?}",
                field("issuer")
            ));
        }
        if field("jwks_uri").is_empty() {
            return Err("provider did not return JWKS URL".into());
        }
        Ok(Self { jwks_uri: field("jwks_uri").to_owned() })
    }
}

/// An issuer's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet(Vec<(String, PublicKey)>);

impl KeySet {
    /// Reads a JSON Web Key Set (RFC 7517). Keys of unknown kinds and keys that are not for signatures are
    /// left out.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let document: Value =
            serde_json::from_slice(text).map_err(|e| format!("oidc: failed to decode keys: {e}"))?;
        let Some(keys) = document.get("keys").and_then(Value::as_array) else {
            return Err("oidc: failed to decode keys: no member \"keys\"".into());
        };
        let keys = keys.iter().take(MAX_KEYS).filter(|k| k.get("use").is_none_or(|u| u == "sig"));
        let named = |k: &Value| {
            let id = k.get("kid").and_then(Value::as_str).unwrap_or_default().to_owned();
            Some((id, PublicKey::from_jwk(k)?))
        };
        Ok(Self(keys.filter_map(named).collect()))
    }

    /// Whether one of the keys made the token's signature.
    fn verifies(&self, token: &Token<'_>) -> bool {
        let kid = &token.header.kid;
        self.0.iter().filter(|(id, _)| kid.is_empty() || id == kid).any(|(_, key)| token.verify(key))
    }
}

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OidcError {
    /// No key that is known made it: the issuer may have new ones.
    #[error("failed to verify signature: failed to verify id token signature")]
    Signature,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

fn other(why: impl Into<String>) -> OidcError {
    OidcError::Other(why.into())
}

/// The claims of `token` if `issuer` made it for one of `audiences`, its time is right (`now_s`: Unix seconds)
/// and one of `keys` signed it with one of `algorithms`.
pub fn verify(
    token: &str,
    issuer: &str,
    audiences: &[String],
    algorithms: &[Algorithm],
    keys: &KeySet,
    now_s: i64,
) -> Result<Claims, OidcError> {
    let fail = |why: String| other(why);
    let token = Token::parse(token).ok_or_else(|| fail("oidc: malformed jwt".into()))?;
    let claims: Claims = serde_json::from_slice(&token.payload)
        .map_err(|e| fail(format!("oidc: failed to unmarshal claims: {e}")))?;
    let claimed = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
    if claimed != issuer && !(claimed == "accounts.google.com" && issuer == "https://accounts.google.com") {
        return Err(fail(format!(
            "oidc: id token issued by a different provider, expected {issuer:?} got {claimed:?}"
        )));
    }
    let aud = strings(claims.get("aud"));
    if !aud.iter().any(|a| audiences.contains(a)) {
        let mut wanted = audiences.to_vec();
        wanted.sort();
        return Err(fail(format!(
            "oidc: expected audience in {} got {}",
            gotext::list(&wanted),
            gotext::list(&aud)
        )));
    }
    let time =
        |name: &str| claims.get(name).and_then(|v| v.as_i64().or_else(|| v.as_f64().map(|f| f as i64)));
    let expiry = time("exp").unwrap_or_default();
    if expiry < now_s {
        return Err(fail(format!(
            "oidc: token is expired (Token Expiry: {})",
            yare_schema::gotime::format_time(expiry)
        )));
    }
    if time("nbf").is_some_and(|nbf| now_s + NOT_BEFORE_LEEWAY_S < nbf) {
        return Err(fail("oidc: current time is before the nbf (not before) time".into()));
    }
    if !algorithms.iter().any(|a| a.name() == token.header.alg) {
        let known: Vec<&str> = algorithms.iter().map(|a| a.name()).collect();
        return Err(fail(format!(
            "oidc: malformed jwt: unexpected signature algorithm {:?}; expected {}",
            token.header.alg,
            gotext::list(&known)
        )));
    }
    if !keys.verifies(&token) {
        return Err(OidcError::Signature);
    }
    Ok(claims)
}

/// A string or a list of strings.
fn strings(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::jws::{private_key, sign, testing::KEYS};

    fn keys(of: &[usize]) -> KeySet {
        let keys: Vec<Value> =
            of.iter().map(|i| private_key(KEYS[*i].0).unwrap().public().to_jwk()).collect();
        KeySet::parse(json!({"keys": keys}).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_token_is_its_issuers_and_ours_and_of_now() {
        let token = |change: Value| {
            let mut claims = json!({"iss": "https://a", "aud": ["x", "y"], "exp": 100, "sub": "jane"});
            for (k, v) in change.as_object().unwrap() {
                claims[k] = v.clone();
            }
            sign(&private_key(KEYS[0].0).unwrap(), claims.to_string().as_bytes()).unwrap()
        };
        let check = |token: &str, keys: &KeySet| {
            let algorithms = [Algorithm::Rs256];
            verify(token, "https://a", &["y".into()], &algorithms, keys, 50)
                .map(|c| c["sub"].clone())
                .map_err(|e| e.to_string())
        };
        let own = keys(&[1, 0]);
        assert_eq!(check(&token(json!({})), &own), Ok("jane".into()));
        assert_eq!(check(&token(json!({"aud": "y"})), &own), Ok("jane".into()));
        for (change, error) in [
            (
                json!({"iss": "https://b"}),
                "oidc: id token issued by a different provider, expected \"https://a\" got \"https://b\"",
            ),
            (json!({"aud": "z"}), "oidc: expected audience in [\"y\"] got [\"z\"]"),
            (json!({"exp": 49}), "oidc: token is expired (Token Expiry: 1970-01-01T00:00:49Z)"),
            (json!({"exp": null}), "oidc: token is expired (Token Expiry: 1970-01-01T00:00:00Z)"),
            (json!({"nbf": 351}), "oidc: current time is before the nbf (not before) time"),
        ] {
            assert_eq!(check(&token(change), &own), Err(error.into()));
        }
        assert_eq!(check(&token(json!({})), &keys(&[1])), Err(OidcError::Signature.to_string()));
        let es256 =
            sign(&private_key(KEYS[1].0).unwrap(), br#"{"iss":"https://a","aud":"y","exp":100}"#).unwrap();
        assert!(check(&es256, &own).unwrap_err().contains("unexpected signature algorithm"));
        assert!(check("a.b", &own).unwrap_err().contains("malformed"));
    }

    #[test]
    fn documents() {
        let text = br#"{"issuer": "https://a", "jwks_uri": "https://a/keys"}"#;
        assert_eq!(Discovery::parse(text, "https://a"), Ok(Discovery { jwks_uri: "https://a/keys".into() }));
        assert!(Discovery::parse(text, "https://b").unwrap_err().contains("did not match"));
        assert!(Discovery::parse(b"{}", "").unwrap_err().contains("JWKS"));
        assert!(KeySet::parse(b"[]").is_err());
        let odd = br#"{"keys": [{"kty": "oct"}, {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "use": "enc"}]}"#;
        assert_eq!(KeySet::parse(odd), Ok(KeySet::default()));
    }
}
