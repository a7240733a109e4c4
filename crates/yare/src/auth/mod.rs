//! Flags about who may come in and who decides what they may do, under kube-apiserver's names.

mod accounts;
mod flags;
mod oidc;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use yare_apiserver::{
    Auth, Egress,
    auth::{Authorities, Chain, Files, FrontProxy, Issuers, TokenWebhook},
};
use yare_auth::{
    User,
    abac::Abac,
    config::{
        authentication::{Anonymous, AuthenticationConfiguration},
        authorization::{self, ABAC, AuthorizationConfiguration, ConnectionInfo},
    },
    gotext,
    jws::Algorithm,
    pki::Pki,
    static_tokens::StaticTokens,
    tls::ClientAuthority,
};

pub use self::flags::AuthArgs;

/// The audience and issuer of service-account tokens, as kubeadm and k3s have it.
const ISSUER: &str = "https://kubernetes.default.svc";
/// The name under which this server's own front proxy comes in.
pub const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

fn read(path: &Path, flag: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("--{flag} {}", path.display()))
}

impl AuthArgs {
    /// Authenticators and authorizers. `admin`: a token of the administrator.
    /// `egress`: the ways to issuers of tokens.
    pub async fn open(
        &self,
        pki: &Pki,
        admin: Option<&str>,
        egress: Option<&Egress>,
    ) -> anyhow::Result<Auth> {
        let signer = Arc::new(self.accounts.signer(pki)?);
        let mut auth = Auth::new(Some(signer.clone()));
        auth.service_accounts = self.accounts.rules()?;
        auth.external = self.accounts.external(signer, &mut auth.service_accounts).await?;
        if let Some(path) = &self.token_auth_file {
            auth.tokens = StaticTokens::parse(&read(path, "token-auth-file")?)
                .with_context(|| format!("--token-auth-file {}", path.display()))?;
        }
        if let Some(token) = admin {
            auth.tokens.add(token, User::new("kubernetes-admin", &["system:masters"]));
        }
        auth.bootstrap_tokens = self.enable_bootstrap_token_auth;
        auth.authorities = arc_swap(self.authorities(pki)?);
        self.authenticators(&mut auth, egress)?;
        self.authorizers(&mut auth)?;
        if let Some(path) = &self.client_ca_file {
            auth.files.client_authority = Some((path.clone(), pki.cluster.certificate.clone()));
        }
        Ok(auth)
    }

    /// Authority (PEM) of proxies, and the names that they may have; none: all.
    pub fn front_proxy(&self, pki: &Pki) -> anyhow::Result<(String, Vec<String>)> {
        let mut names = self.proxy.requestheader_allowed_names.clone();
        let Some(path) = &self.proxy.requestheader_client_ca_file else {
            names.push(FRONT_PROXY_CLIENT.into());
            return Ok((pki.front_proxy.certificate.clone(), names));
        };
        // What this server forwards requests to must go on believing it.
        let authority =
            format!("{}\n{}", read(path, "requestheader-client-ca-file")?, pki.front_proxy.certificate);
        if !names.is_empty() {
            names.push(FRONT_PROXY_CLIENT.into());
        }
        Ok((authority, names))
    }

    /// The authorities (PEM) of clients.
    pub fn client_authority(&self, pki: &Pki) -> anyhow::Result<String> {
        let mut bundle = pki.cluster.certificate.clone();
        if let Some(path) = &self.client_ca_file {
            bundle.push('\n');
            bundle.push_str(&read(path, "client-ca-file")?);
        }
        Ok(bundle)
    }

    fn authorities(&self, pki: &Pki) -> anyhow::Result<Authorities> {
        let bundle = self.client_authority(pki)?;
        let (authority, allowed_names) = self.front_proxy(pki)?;
        let flags = &self.proxy;
        let lower = |list: &[String]| list.iter().map(|h| h.trim().to_ascii_lowercase()).collect();
        let front_proxy = FrontProxy {
            authority: ClientAuthority::new(&authority).context("--requestheader-client-ca-file")?,
            allowed_names,
            username_headers: lower(&flags.requestheader_username_headers),
            uid_headers: lower(&flags.requestheader_uid_headers),
            group_headers: lower(&flags.requestheader_group_headers),
            extra_prefixes: lower(&flags.requestheader_extra_headers_prefix),
        };
        Ok(Authorities {
            clients: Some(ClientAuthority::new(&bundle).context("--client-ca-file")?),
            front_proxy: Some(Arc::new(front_proxy)),
        })
    }

    fn authenticators(&self, auth: &mut Auth, egress: Option<&Egress>) -> anyhow::Result<()> {
        let own = &self.accounts.service_account_issuer;
        let from_flags = self.oidc.configuration()?;
        let (config, algorithms) = match (&self.authentication_config, from_flags) {
            (Some(_), Some(_)) => bail!("authentication-config file and oidc-* flags are mutually exclusive"),
            (Some(path), None) => {
                let text = read(path, "authentication-config")?;
                let config = AuthenticationConfiguration::parse(text.as_bytes(), own)
                    .with_context(|| format!("--authentication-config {}", path.display()))?;
                auth.files.authentication = Some(path.clone());
                (config, Algorithm::ALL.to_vec())
            }
            (None, Some(config)) => (config.checked(own).context("--oidc-*")?, self.oidc.algorithms()?),
            (None, None) => (AuthenticationConfiguration::default(), Vec::new()),
        };
        match (&config.anonymous, self.anonymous_auth) {
            (Some(_), Some(_)) => bail!(
                "--anonymous-auth cannot be set where the authentication configuration has a field anonymous"
            ),
            (Some(Anonymous { enabled, conditions }), None) => {
                auth.anonymous.enabled = *enabled;
                auth.anonymous.paths = conditions.iter().map(|c| c.path.clone()).collect();
            }
            (None, given) => auth.anonymous.enabled = given.unwrap_or(true),
        }
        auth.oidc.replace(Issuers::start(&config, &algorithms, egress).map_err(anyhow::Error::msg)?);
        if let Some(path) = &self.authentication_token_webhook_config_file {
            let webhook = TokenWebhook::open(
                path,
                &self.authentication_token_webhook_version,
                self.authentication_token_webhook_cache_ttl,
            );
            let webhook = webhook.map_err(anyhow::Error::msg);
            auth.token_webhook = Some(webhook.context("--authentication-token-webhook-config-file")?);
        }
        Ok(())
    }

    fn authorizers(&self, auth: &mut Auth) -> anyhow::Result<()> {
        let config = match &self.authorization_config {
            Some(_) if self.has_authorization_flags() => bail!(
                "--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags are defined"
            ),
            Some(path) => {
                let text = read(path, "authorization-config")?;
                let config = AuthorizationConfiguration::parse(text.as_bytes(), &[])
                    .with_context(|| format!("--authorization-config {}", path.display()))?;
                auth.files = Files { authorization: Some(path.clone()), ..auth.files.clone() };
                config
            }
            None => {
                let usual = ["Node".to_owned(), "RBAC".to_owned()];
                let given = self.authorization_mode.as_slice();
                let modes = if given.is_empty() { &usual } else { given };
                self.check_modes(modes)?;
                AuthorizationConfiguration::of_modes(modes, self.authorization_webhook())
                    .context("--authorization-mode")?
            }
        };
        if config.authorizers.iter().any(|authorizer| authorizer.r#type == ABAC) {
            auth.abac = Some(self.abac()?);
        }
        let types = config.authorizers.iter().map(|a| a.r#type.clone());
        auth.files.required = types.filter(|t| t != authorization::WEBHOOK).collect();
        auth.chain = arc_swap(Chain::new(&config).map_err(anyhow::Error::msg)?);
        Ok(())
    }

    /// The policies of --authorization-policy-file.
    fn abac(&self) -> anyhow::Result<Abac> {
        let path = self.authorization_policy_file.as_deref().unwrap_or(Path::new(""));
        let text = read(path, "authorization-policy-file")?;
        let abac = Abac::parse(&text)
            .map_err(|error| anyhow::anyhow!("error reading policy file {}{error}", path.display()))?;
        if abac.unversioned > 0 {
            tracing::warn!(file = %path.display(), lines = abac.unversioned, "policies without a version");
        }
        Ok(abac)
    }

    fn has_authorization_flags(&self) -> bool {
        !self.authorization_mode.is_empty()
            || self.authorization_webhook_config_file.is_some()
            || self.authorization_webhook_version.is_some()
            || self.authorization_webhook_cache_authorized_ttl.is_some()
            || self.authorization_webhook_cache_unauthorized_ttl.is_some()
    }

    /// What flags get wrong that a configuration cannot.
    fn check_modes(&self, modes: &[String]) -> anyhow::Result<()> {
        let webhook = modes.iter().any(|mode| mode == authorization::WEBHOOK);
        if let Some(mode) = modes.iter().find(|mode| !authorization::MODES.contains(&mode.as_str())) {
            bail!("authorization-mode {mode:?} is not a valid mode");
        }
        let abac = modes.iter().any(|mode| mode == ABAC);
        match &self.authorization_policy_file {
            None if abac => bail!("authorization-mode ABAC's authorization policy file not passed"),
            Some(_) if !abac => bail!("cannot specify --authorization-policy-file without mode ABAC"),
            _ => {}
        }
        match &self.authorization_webhook_config_file {
            None if webhook => bail!("authorization-mode Webhook's authorization config file not passed"),
            Some(_) if !webhook => {
                bail!("cannot specify --authorization-webhook-config-file without mode Webhook")
            }
            _ => {}
        }
        let repeated = modes.iter().enumerate().any(|(at, mode)| modes[..at].contains(mode));
        if repeated {
            bail!("authorization-mode {} has mode specified more than once", gotext::list(modes));
        }
        Ok(())
    }

    /// The webhook that flags describe.
    fn authorization_webhook(&self) -> Option<authorization::Webhook> {
        let path = self.authorization_webhook_config_file.as_ref()?;
        // Configurations want an absolute path; flags do not.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let keep = |given: Option<Duration>, usual_s| {
            let ttl = given.unwrap_or(Duration::from_secs(usual_s));
            (Some(ttl), Some(!ttl.is_zero()))
        };
        let (authorized_ttl, cache_authorized_requests) =
            keep(self.authorization_webhook_cache_authorized_ttl, 300);
        let (unauthorized_ttl, cache_unauthorized_requests) =
            keep(self.authorization_webhook_cache_unauthorized_ttl, 30);
        let version = self.authorization_webhook_version.as_deref().unwrap_or("v1beta1");
        Some(authorization::Webhook {
            authorized_ttl,
            cache_authorized_requests,
            unauthorized_ttl,
            cache_unauthorized_requests,
            timeout: Some(Duration::from_secs(30)),
            subject_access_review_version: version.to_owned(),
            failure_policy: "NoOpinion".into(),
            connection_info: ConnectionInfo {
                r#type: "KubeConfigFile".into(),
                kube_config_file: Some(path.display().to_string()),
            },
            ..authorization::Webhook::default()
        })
    }
}

fn arc_swap<T>(value: T) -> yare_apiserver::auth::Swap<T> {
    yare_apiserver::auth::Swap::from_pointee(value)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        auth: AuthArgs,
    }

    async fn open(args: &[&str]) -> Result<Auth, String> {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let flags = Flags::try_parse_from([&["x"], args].concat()).map_err(|e| e.to_string())?;
        flags.auth.open(&pki, Some("secret"), None).await.map_err(|e| format!("{e:#}"))
    }

    #[tokio::test]
    async fn what_flags_mean() {
        let auth = open(&[]).await.unwrap();
        assert!(auth.anonymous.enabled && auth.bootstrap_tokens);
        assert_eq!(auth.audiences(), [ISSUER]);
        assert_eq!(auth.tokens.find("secret").unwrap().name, "kubernetes-admin");
        assert_eq!(auth.files.required, ["Node", "RBAC"]);
        let auth = open(&[
            "--anonymous-auth=false",
            "--api-audiences=a,b",
            "--service-account-issuer=https://x",
            "--service-account-issuer=https://y",
            "--service-account-max-token-expiration=2h",
            "--authorization-mode=AlwaysAllow",
        ])
        .await
        .unwrap();
        assert!(!auth.anonymous.enabled);
        assert_eq!(auth.audiences(), ["a", "b"]);
        assert_eq!(auth.signer.unwrap().issuers(), ["https://x", "https://y"]);
        assert_eq!(auth.service_accounts.max_expiration_s, Some(7200));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("abac.jsonl");
        let flag = format!("--authorization-policy-file={}", file.display());
        let abac = ["--authorization-mode=ABAC,RBAC", flag.as_str()];
        std::fs::write(&file, "# nothing\n{\"user\": \"jane\"}\n").unwrap();
        let auth = open(&abac).await.unwrap();
        assert_eq!(
            (auth.abac.unwrap().unversioned, auth.files.required),
            (1, vec!["ABAC".into(), "RBAC".into()])
        );
        std::fs::write(&file, "# nothing\nkind: Policy\napiVersion: v1\n").unwrap();
        let error = open(&abac).await.err().unwrap();
        let start = format!("error reading policy file {}, line 3: apiVersion: v1: ", file.display());
        assert!(error.starts_with(&start), "{error}");
        for (args, part) in [
            (&["--authorization-mode=Nobody"][..], "authorization-mode \"Nobody\" is not a valid mode"),
            (
                &["--authorization-mode=ABAC"],
                "authorization-mode ABAC's authorization policy file not passed",
            ),
            (
                &["--authorization-policy-file=/x"],
                "cannot specify --authorization-policy-file without mode ABAC",
            ),
            (&["--authorization-mode=ABAC", "--authorization-policy-file=/no/such"], "/no/such"),
            (&["--authorization-mode=Webhook"], "Webhook's authorization config file not passed"),
            (&["--authorization-mode=RBAC,RBAC"], "has mode specified more than once"),
            (&["--authorization-webhook-config-file=/x"], "without mode Webhook"),
            (
                &["--authorization-webhook-version=v1", "--authorization-config=/x"],
                "--authorization-webhook-* flags are defined",
            ),
            (&["--authorization-mode=RBAC", "--authorization-config=/x"], "can not be specified when"),
            (&["--authorization-config=/no/such"], "/no/such"),
            (&["--oidc-issuer-url=https://a"], "must be specified together"),
            (&["--oidc-issuer-url=http://a", "--oidc-client-id=b"], "URL scheme must be https"),
            (&["--token-auth-file=/no/such"], "/no/such"),
            (&["--client-ca-file=/no/such"], "/no/such"),
            (&["--service-account-key-file=/no/such"], "/no/such"),
            (&["--service-account-max-token-expiration=1m"], "between 1 hour"),
            (&["--service-account-jwks-uri=http://x/keys"], "requires https scheme"),
            (
                &["--service-account-signing-endpoint=/x", "--service-account-key-file=/y"],
                "can't set `--service-account-signing-key-file` and/or `--service-account-key-file` with `--service-account-signing-endpoint`",
            ),
            (
                &["--service-account-signing-endpoint=/x", "--service-account-signing-key-file=/y"],
                "They are mutually exclusive",
            ),
            (
                &["--service-account-signing-endpoint=@a/b"],
                "invalid value \"@a/b\" passed for `--service-account-signing-endpoint`, when prefixed with @ must be a valid abstract socket name",
            ),
            (&["--authentication-token-webhook-config-file=/no/such"], "/no/such"),
        ] {
            let error = open(args).await.err().unwrap();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }
}
