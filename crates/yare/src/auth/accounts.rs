//! What the flags about service-account tokens come to.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use yare_apiserver::{
    SystemClock,
    auth::{EXTENDED_S, ExternalSigner, ServiceAccounts, SignerTimings, WARN_ONLY_S},
};
use yare_auth::{
    pki::Pki,
    token::{self, Signer},
};

use super::{flags::ServiceAccountArgs, read};

impl ServiceAccountArgs {
    /// Verifies service-account tokens, and signs them where nobody else does.
    pub fn signer(&self, pki: &Pki) -> anyhow::Result<Signer> {
        let (mut own, mut keys) = (None, Vec::new());
        if self.endpoint().is_none() {
            own = Some(match &self.service_account_signing_key_file {
                Some(path) => read(path, "service-account-signing-key-file")?,
                None => pki.service_account_key.clone(),
            });
            for path in &self.service_account_key_file {
                keys.push(read(path, "service-account-key-file")?);
            }
        }
        let audiences = match self.api_audiences.as_slice() {
            [] => &self.service_account_issuer,
            given => given,
        };
        let signer = Signer::with(&token::Options {
            signing_key: own.as_deref(),
            verification_keys: &keys,
            issuers: &self.service_account_issuer,
            audiences,
        });
        signer.context("--service-account-key-file, --service-account-signing-key-file")
    }

    /// How they are issued and checked.
    pub fn rules(&self) -> anyhow::Result<ServiceAccounts> {
        let mut rules = ServiceAccounts {
            lookup: self.service_account_lookup,
            extend: self.service_account_extend_token_expiration,
            ..ServiceAccounts::default()
        };
        if let Some(uri) = self.service_account_jwks_uri.as_ref().filter(|uri| !uri.starts_with("https://")) {
            bail!("service-account-jwks-uri requires https scheme, parsed as: {uri}");
        }
        if let Some(max) = self.service_account_max_token_expiration.filter(|max| !max.is_zero()) {
            if max < Duration::from_secs(3600) || max.as_secs() > 1 << 32 {
                bail!("--service-account-max-token-expiration must be between 1 hour and 2^32 seconds");
            }
            rules.max_expiration_s = i64::try_from(max.as_secs()).ok();
        }
        Ok(rules)
    }

    /// Who signs them elsewhere; its keys are put into `signer`, and what it says of tokens' lives into `rules`.
    pub async fn external(
        &self,
        signer: Arc<Signer>,
        rules: &mut ServiceAccounts,
    ) -> anyhow::Result<Option<Arc<ExternalSigner>>> {
        let mut whose = "service-account-max-token-expiration";
        let mut external = None;
        if let Some(socket) = self.endpoint() {
            self.check_endpoint(socket)?;
            let opened =
                ExternalSigner::open(socket, signer, Arc::new(SystemClock), SignerTimings::default()).await;
            let opened = opened.context("while setting up external-jwt-signer")?;
            let longest_s = opened.max_expiration_s();
            if let Some(max_s) = rules.max_expiration_s.filter(|max_s| *max_s > longest_s) {
                bail!(
                    "service-account-max-token-expiration cannot be set longer than the token expiration supported by service-account-signing-endpoint: {max_s}s > {longest_s}s"
                );
            }
            rules.max_expiration_s.get_or_insert(longest_s);
            rules.extended_s = EXTENDED_S.min(longest_s);
            whose = "token lifetime supported by external-jwt-signer";
            external = Some(Arc::new(opened));
        }
        if let Some(max_s) = rules.max_expiration_s.filter(|_| rules.extend) {
            if max_s < WARN_ONLY_S {
                tracing::warn!(
                    max_s,
                    "service-account-extend-token-expiration is true, in order to correctly trigger safe transition logic, {whose} must be longer than {WARN_ONLY_S} seconds"
                );
            }
            if max_s < EXTENDED_S {
                tracing::warn!(
                    max_s,
                    "service-account-extend-token-expiration is true, tokens of pods are valid for up to {} seconds",
                    rules.extended_s
                );
            }
        }
        Ok(external)
    }

    fn endpoint(&self) -> Option<&str> {
        self.service_account_signing_endpoint.as_deref().filter(|socket| !socket.is_empty())
    }

    fn check_endpoint(&self, socket: &str) -> anyhow::Result<()> {
        if self.service_account_signing_key_file.is_some() || !self.service_account_key_file.is_empty() {
            bail!(
                "can't set `--service-account-signing-key-file` and/or `--service-account-key-file` with `--service-account-signing-endpoint` (They are mutually exclusive)"
            );
        }
        if socket.strip_prefix('@').is_some_and(|name| !is_abstract_name(name)) {
            bail!(
                "invalid value {socket:?} passed for `--service-account-signing-endpoint`, when prefixed with @ must be a valid abstract socket name"
            );
        }
        Ok(())
    }
}

/// Words of letters, digits, `-` and `_`, with dots between them.
fn is_abstract_name(name: &str) -> bool {
    name.split('.').all(|word| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sockets() {
        for (name, good) in
            [("a", true), ("a-b.c_d.0", true), ("", false), ("a.", false), (".a", false), ("a/b", false)]
        {
            assert_eq!(is_abstract_name(name), good, "{name}");
        }
    }
}
