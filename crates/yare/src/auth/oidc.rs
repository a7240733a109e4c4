//! Flags about one issuer of tokens, as the configuration that they stand for.

use anyhow::{Context as _, bail};
use yare_auth::{
    config::authentication::{
        AuthenticationConfiguration, ClaimMappings, ClaimValidationRule, Issuer, JwtAuthenticator,
        PrefixedClaim,
    },
    jws::Algorithm,
};

use super::{flags::OidcArgs, read};

impl OidcArgs {
    fn is_set(&self) -> bool {
        self.oidc_issuer_url.is_some()
            || self.oidc_client_id.is_some()
            || self.oidc_ca_file.is_some()
            || self.oidc_username_prefix.is_some()
            || self.oidc_groups_claim.is_some()
            || self.oidc_groups_prefix.is_some()
            || !self.oidc_required_claim.is_empty()
    }

    /// What the flags say as a configuration; `None`: nothing.
    pub fn configuration(&self) -> anyhow::Result<Option<AuthenticationConfiguration>> {
        if !self.is_set() {
            return Ok(None);
        }
        let (Some(url), Some(client_id)) = (&self.oidc_issuer_url, &self.oidc_client_id) else {
            bail!(
                "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set"
            );
        };
        let username_prefix = match self.oidc_username_prefix.as_deref() {
            Some("-") => String::new(),
            Some(prefix) if !prefix.is_empty() => prefix.to_owned(),
            _ if self.oidc_username_claim == "email" => String::new(),
            _ => format!("{url}#"),
        };
        let claim = |claim: &str, prefix: String| PrefixedClaim {
            claim: claim.to_owned(),
            prefix: Some(prefix),
            ..PrefixedClaim::default()
        };
        let rules = self.oidc_required_claim.iter().map(|pair| match pair.split_once('=') {
            Some((claim, value)) => Ok(ClaimValidationRule {
                claim: claim.to_owned(),
                required_value: value.to_owned(),
                ..ClaimValidationRule::default()
            }),
            None => bail!("--oidc-required-claim {pair:?} is not CLAIM=VALUE"),
        });
        let certificate_authority = match &self.oidc_ca_file {
            Some(path) => read(path, "oidc-ca-file")?,
            None => String::new(),
        };
        let groups = self.oidc_groups_claim.as_deref().unwrap_or_default();
        let authenticator = JwtAuthenticator {
            issuer: Issuer {
                url: url.clone(),
                certificate_authority,
                audiences: vec![client_id.clone()],
                ..Issuer::default()
            },
            claim_validation_rules: rules.collect::<anyhow::Result<_>>()?,
            claim_mappings: ClaimMappings {
                username: claim(&self.oidc_username_claim, username_prefix),
                groups: claim(groups, self.oidc_groups_prefix.clone().unwrap_or_default()),
                ..ClaimMappings::default()
            },
            ..JwtAuthenticator::default()
        };
        Ok(Some(AuthenticationConfiguration { jwt: vec![authenticator], anonymous: None }))
    }

    pub fn algorithms(&self) -> anyhow::Result<Vec<Algorithm>> {
        let named = |name: &String| {
            Algorithm::named(name)
                .with_context(|| format!("--oidc-signing-algs: unsupported signing alg {name:?}"))
        };
        self.oidc_signing_algs.iter().map(named).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        oidc: OidcArgs,
    }

    #[test]
    fn oidc_flags_are_a_configuration() {
        let parse = |args: &[&str]| {
            let flags = Flags::try_parse_from(
                [&["x", "--oidc-issuer-url=https://a", "--oidc-client-id=b"], args].concat(),
            );
            flags.unwrap().oidc.configuration().unwrap().unwrap().jwt.remove(0)
        };
        let prefix = |args: &[&str]| parse(args).claim_mappings.username.prefix.unwrap();
        assert_eq!(prefix(&[]), "https://a#");
        assert_eq!(prefix(&["--oidc-username-claim=email"]), "");
        assert_eq!(prefix(&["--oidc-username-prefix=-"]), "");
        assert_eq!(prefix(&["--oidc-username-prefix=p:"]), "p:");
        let all = parse(&["--oidc-groups-claim=g", "--oidc-groups-prefix=x-", "--oidc-required-claim=c=d"]);
        assert_eq!(all.claim_mappings.groups.prefix.as_deref(), Some("x-"));
        assert_eq!(all.claim_validation_rules[0].required_value, "d");
    }
}
