//! Bootstrap tokens: `id.secret`, each known by a Secret `bootstrap-token-<id>` in `kube-system`
//! (<https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>).

use std::collections::{BTreeMap, BTreeSet};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jiff::Timestamp;
use ring::{
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};
use serde::Deserialize;

use crate::{
    token::secrets_equal,
    user::{AUTHENTICATED, User},
};

/// Where the Secrets are.
pub const NAMESPACE: &str = "kube-system";
/// Their type.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// How their names start.
pub const SECRET_PREFIX: &str = "bootstrap-token-";
/// What tokens are made of.
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
/// What the user's name starts with.
const USER_PREFIX: &str = "system:bootstrap:";
/// The group of everybody who comes with such a token; extra groups start with it and a colon.
const GROUP: &str = "system:bootstrappers";

/// Takes a token apart into identifier and secret; `None` where it has not the form of one.
pub fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    (is_word(id, 6) && is_word(secret, 16)).then_some((id, secret))
}

/// The identifier in the name of a Secret that holds a bootstrap token.
pub fn id_of_name(name: &str) -> Option<&str> {
    name.strip_prefix(SECRET_PREFIX).filter(|id| is_word(id, 6))
}

fn is_word(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// A new token: its identifier and secret; `None` where the system has no randomness.
pub fn generate() -> Option<(String, String)> {
    let random = SystemRandom::new();
    let word = |length: usize| {
        let mut out = String::new();
        while out.len() < length {
            let mut bytes = [0; 32];
            random.fill(&mut bytes).ok()?;
            // What is over the largest multiple of 36 would make some characters likelier than others.
            let fair = bytes.into_iter().filter(|byte| *byte < 252);
            out.extend(fair.take(length - out.len()).map(|b| char::from(ALPHABET[usize::from(b % 36)])));
        }
        Some(out)
    };
    Some((word(6)?, word(16)?))
}

/// Signs `content` with a token: a JSON Web Signature (RFC 7515, appendix F) without what it signs, byte for
/// byte as those who check it make it.
pub fn detached_signature(content: &str, id: &str, secret: &str) -> String {
    let header = serde_json::json!({"alg": "HS256", "kid": id}).to_string();
    let header = URL_SAFE_NO_PAD.encode(header);
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let signature = hmac::sign(&key, signed.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// A Secret that holds a bootstrap token.
#[derive(Debug, Default)]
pub struct BootstrapToken {
    data: BTreeMap<String, String>,
    deleting: bool,
}

impl BootstrapToken {
    /// Reads a Secret (JSON); `None` where it is of another type.
    pub fn from_secret(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Secret {
            #[serde(default)]
            metadata: Metadata,
            #[serde(default)]
            r#type: String,
            #[serde(default)]
            data: Option<BTreeMap<String, String>>,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct Metadata {
            deletion_timestamp: Option<String>,
        }
        let secret: Secret = serde_json::from_slice(json).ok()?;
        if secret.r#type != SECRET_TYPE {
            return None;
        }
        let decode = |text: String| String::from_utf8(STANDARD.decode(text).ok()?).ok();
        let data = secret.data?.into_iter().filter_map(|(k, v)| Some((k, decode(v)?))).collect();
        Some(Self { data, deleting: secret.metadata.deletion_timestamp.is_some() })
    }

    fn text(&self, key: &str) -> &str {
        self.data.get(key).map_or("", String::as_str)
    }

    /// `token-id`
    pub fn id(&self) -> &str {
        self.text("token-id")
    }

    /// `token-secret`
    pub fn secret(&self) -> &str {
        self.text("token-secret")
    }

    /// Whether it may be used to sign the `cluster-info` ConfigMap.
    pub fn signs(&self) -> bool {
        self.text("usage-bootstrap-signing") == "true"
    }

    /// When it ends: `Ok(None)` never, an error where what is written there is no time.
    pub fn expiration(&self) -> Result<Option<Timestamp>, jiff::Error> {
        match self.text("expiration") {
            "" => Ok(None),
            text => text.parse().map(Some),
        }
    }

    /// Whether its time is over. One with an unreadable end is over.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expiration().map_or(true, |end| end.is_some_and(|end| end <= now))
    }

    /// Groups beside `system:bootstrappers`, where all of them are well formed.
    fn groups(&self) -> Option<BTreeSet<String>> {
        let mut groups = BTreeSet::from([GROUP.to_owned()]);
        for group in self.text("auth-extra-groups").split(',').filter(|g| !g.is_empty()) {
            let rest = group.strip_prefix(GROUP)?.strip_prefix(':')?;
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b':' | b'-');
            let ends = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            let (first, last) = (rest.bytes().next()?, rest.bytes().last()?);
            if rest.len() > 256 || !rest.bytes().all(inner) || !ends(last) || !(ends(first) || inner(first)) {
                return None;
            }
            groups.insert(group.to_owned());
        }
        Some(groups)
    }

    /// Whose the token `id.secret` is, if this Secret knows it and lets it in.
    pub fn authenticate(&self, id: &str, secret: &str, now: Timestamp) -> Option<User> {
        if self.deleting
            || !secrets_equal(self.secret().as_bytes(), secret.as_bytes())
            || self.id() != id
            || self.is_expired(now)
            || self.text("usage-bootstrap-authentication") != "true"
        {
            return None;
        }
        let mut groups: Vec<String> = self.groups()?.into_iter().collect();
        groups.push(AUTHENTICATED.into());
        Some(User { name: format!("{USER_PREFIX}{id}"), groups, ..User::default() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn forms() {
        assert_eq!(parse("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for bad in [
            "",
            "abcdef",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcde",
            "abcdef.0123456789abcdef0",
            "abcdef.0123456789abcde.",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn new_ones_have_the_form() {
        let made: BTreeSet<String> = (0..50)
            .map(|_| generate().map(|(id, secret)| format!("{id}.{secret}")).unwrap())
            .inspect(|token| assert!(parse(token).is_some(), "{token}"))
            .collect();
        assert_eq!(made.len(), 50);
    }

    #[test]
    fn signatures_without_what_they_sign() {
        // Computed with another implementation of RFC 7515.
        assert_eq!(
            detached_signature("content", "abcdef", "0123456789abcdef"),
            "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..psz1NayrXM3IaFzKZGsb5n_mBl7MjtlsZ1xE8MRmF_4"
        );
        assert_eq!(id_of_name("bootstrap-token-abcdef"), Some("abcdef"));
        assert_eq!(id_of_name("bootstrap-token-abcdeF"), None);
        assert_eq!(id_of_name("abcdef"), None);
    }

    #[test]
    fn who_gets_in() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let read = |change: serde_json::Value| {
            let mut data = json!({
                "token-id": "abcdef", "token-secret": "0123456789abcdef",
                "usage-bootstrap-authentication": "true",
                "auth-extra-groups": "system:bootstrappers:x,system:bootstrappers:w",
            });
            for (k, v) in change.as_object().unwrap() {
                data[k] = v.clone();
            }
            let data: BTreeMap<String, String> = data
                .as_object()
                .unwrap()
                .iter()
                .map(|(k, v)| (k.clone(), STANDARD.encode(v.as_str().unwrap())))
                .collect();
            let secret = json!({"type": SECRET_TYPE, "data": data});
            BootstrapToken::from_secret(secret.to_string().as_bytes()).unwrap()
        };
        let user = read(json!({})).authenticate("abcdef", "0123456789abcdef", now).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(
            user.groups,
            ["system:bootstrappers", "system:bootstrappers:w", "system:bootstrappers:x", AUTHENTICATED]
        );
        for refused in [
            json!({"token-secret": "x123456789abcdef"}),
            json!({"token-id": "abcdeg"}),
            json!({"expiration": "2025-12-31T23:59:59Z"}),
            json!({"expiration": "2026-01-01T00:00:00Z"}),
            json!({"expiration": "soon"}),
            json!({"usage-bootstrap-authentication": "false"}),
            json!({"auth-extra-groups": "system:masters"}),
            json!({"auth-extra-groups": "system:bootstrappers:-"}),
        ] {
            assert_eq!(
                read(refused.clone()).authenticate("abcdef", "0123456789abcdef", now),
                None,
                "{refused}"
            );
        }
        assert!(
            read(json!({"expiration": "2026-01-01T00:00:01Z"}))
                .authenticate("abcdef", "0123456789abcdef", now)
                .is_some()
        );
        let other = json!({"type": "Opaque", "data": {}});
        assert!(BootstrapToken::from_secret(other.to_string().as_bytes()).is_none());
    }
}
