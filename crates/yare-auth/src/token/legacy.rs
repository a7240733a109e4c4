//! Service-account tokens of the old kind: they rest in Secrets of type
//! `kubernetes.io/service-account-token`, do not expire, and die with their Secret
//! (`k8s.io/kubernetes/pkg/serviceaccount/legacy.go`).

use serde::{Deserialize, Serialize};

use super::{Signer, TokenError};
use crate::user::User;

/// Their issuer.
pub const ISSUER: &str = "kubernetes/serviceaccount";
/// Label with the day of a token's last use.
pub const LAST_USED_LABEL: &str = "kubernetes.io/legacy-token-last-used";
/// The ConfigMap in `kube-system` that says since when uses are noted.
pub const TRACKING_MAP: &str = "kube-apiserver-legacy-service-account-token-tracking";
/// Where it says so: a day, `2026-01-31`.
pub const TRACKING_SINCE: &str = "since";
/// Label of a token that is not accepted any more.
pub const INVALID_SINCE_LABEL: &str = "kubernetes.io/legacy-token-invalid-since";

/// What such a token says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claims {
    /// Issuer.
    pub iss: String,
    /// Namespace of account and Secret.
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub namespace: String,
    /// The Secret it rests in.
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub secret: String,
    /// The service account.
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub account: String,
    /// UID of the service account.
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub uid: String,
    /// `system:serviceaccount:<namespace>:<name>`
    pub sub: String,
}

impl Claims {
    /// The token of the account `namespace/account` in `secret`.
    pub fn new(namespace: &str, account: &str, uid: &str, secret: &str) -> Self {
        Self {
            iss: ISSUER.into(),
            namespace: namespace.into(),
            secret: secret.into(),
            account: account.into(),
            uid: uid.into(),
            sub: format!("system:serviceaccount:{namespace}:{account}"),
        }
    }

    /// Whether everything that it must say is there.
    pub(super) fn check(&self) -> Result<(), TokenError> {
        for (value, missing) in [
            (&self.sub, "sub claim is missing"),
            (&self.namespace, "namespace claim is missing"),
            (&self.secret, "secretName claim is missing"),
            (&self.account, "serviceAccountName claim is missing"),
            (&self.uid, "serviceAccountUID claim is missing"),
        ] {
            if value.is_empty() {
                return Err(TokenError::Invalid(missing));
            }
        }
        if self.sub != format!("system:serviceaccount:{}:{}", self.namespace, self.account) {
            return Err(TokenError::Invalid("sub claim is invalid"));
        }
        Ok(())
    }

    /// The identity that the token stands for.
    pub(super) fn user(&self) -> User {
        User::service_account(&self.namespace, &self.account, self.uid.clone())
    }
}

impl Signer {
    /// A token of the old kind.
    pub fn sign_legacy(&self, claims: &Claims) -> Result<String, TokenError> {
        let json = serde_json::to_vec(claims).map_err(|e| crate::jws::KeyError::Sign(e.to_string()))?;
        self.sign_json(&json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jws::testing::KEYS;

    #[test]
    fn a_token_of_the_old_kind_says_all_it_must() {
        let signer = Signer::new(KEYS[0].0, "https://issuer", &["api".into()]).unwrap();
        let good = Claims::new("ns", "sa", "u", "secret");
        let check = |claims: &Claims| {
            let token = signer.sign_legacy(claims).unwrap();
            signer.verify(&token, &[], 0).map(|v| v.user.name.clone()).map_err(|e| e.to_string())
        };
        assert_eq!(check(&good), Ok("system:serviceaccount:ns:sa".into()));
        let cases = [
            (Claims { secret: String::new(), ..good.clone() }, "secretName claim is missing"),
            (Claims { uid: String::new(), ..good.clone() }, "serviceAccountUID claim is missing"),
            (Claims { account: "other".into(), ..good.clone() }, "sub claim is invalid"),
        ];
        for (claims, error) in cases {
            assert_eq!(check(&claims), Err(error.into()));
        }
        let token = signer.sign_legacy(&good).unwrap();
        assert!(signer.verify(&token, &["elsewhere".into()], 0).is_err());
    }
}
