//! Flags about who may come in and who decides what they may do, under kube-apiserver's names.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{ArgAction, Args};
use yare_apiserver::{
    Auth,
    auth::{Authorities, Chain, Files, FrontProxy, Issuers, TokenWebhook},
};
use yare_auth::{
    User,
    config::{
        authentication::{
            Anonymous, AuthenticationConfiguration, ClaimMappings, ClaimValidationRule, Issuer,
            JwtAuthenticator, PrefixedClaim,
        },
        authorization::{self, AuthorizationConfiguration, ConnectionInfo},
    },
    gotext,
    jws::Algorithm,
    pki::Pki,
    static_tokens::StaticTokens,
    tls::ClientAuthority,
    token::{self, Signer},
};

use crate::requests::duration;

/// The audience and issuer of service-account tokens, as kubeadm and k3s have it.
const ISSUER: &str = "https://kubernetes.default.svc";
/// The name under which this server's own front proxy comes in.
pub const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

/// Flags of `yare server`.
#[derive(Args, Debug, Clone)]
pub struct AuthArgs {
    /// Let callers without credentials in as system:anonymous.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "YARE_ANONYMOUS_AUTH")]
    pub anonymous_auth: Option<bool>,
    /// File with bearer tokens: lines of token,user,uid[,"group,…"].
    #[arg(long, env = "YARE_TOKEN_AUTH_FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// Certificates (PEM) of further authorities whose client certificates are believed.
    #[arg(long, env = "YARE_CLIENT_CA_FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// Secrets of type bootstrap.kubernetes.io/token in kube-system let their holders in.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "YARE_ENABLE_BOOTSTRAP_TOKEN_AUTH")]
    pub enable_bootstrap_token_auth: bool,
    /// About service accounts.
    #[command(flatten)]
    pub accounts: ServiceAccountArgs,
    /// About proxies that authenticate.
    #[command(flatten)]
    pub proxy: RequestHeaderArgs,
    /// File with an AuthenticationConfiguration: issuers of tokens, anonymous callers. Read again when it changes.
    #[arg(long, env = "YARE_AUTHENTICATION_CONFIG")]
    pub authentication_config: Option<PathBuf>,
    /// About one issuer of tokens.
    #[command(flatten)]
    pub oidc: OidcArgs,
    /// Kubeconfig of a webhook that knows tokens.
    #[arg(long, env = "YARE_AUTHENTICATION_TOKEN_WEBHOOK_CONFIG_FILE")]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// Version of the TokenReviews it is asked with.
    #[arg(long, default_value = "v1beta1", env = "YARE_AUTHENTICATION_TOKEN_WEBHOOK_VERSION")]
    pub authentication_token_webhook_version: String,
    /// How long its answers are kept.
    #[arg(long, default_value = "2m0s", value_parser = duration, env = "YARE_AUTHENTICATION_TOKEN_WEBHOOK_CACHE_TTL")]
    pub authentication_token_webhook_cache_ttl: Duration,
    /// Who decides, in order: AlwaysAllow, AlwaysDeny, Webhook, RBAC, Node. By default Node,RBAC.
    #[arg(long, env = "YARE_AUTHORIZATION_MODE", value_delimiter = ',')]
    pub authorization_mode: Vec<String>,
    /// File with an AuthorizationConfiguration, instead of --authorization-mode. Read again when it changes.
    #[arg(long, env = "YARE_AUTHORIZATION_CONFIG")]
    pub authorization_config: Option<PathBuf>,
    /// Kubeconfig of the webhook of --authorization-mode=Webhook.
    #[arg(long, env = "YARE_AUTHORIZATION_WEBHOOK_CONFIG_FILE")]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// Version of the SubjectAccessReviews it is asked with.
    /// By default v1beta1.
    #[arg(long, env = "YARE_AUTHORIZATION_WEBHOOK_VERSION")]
    pub authorization_webhook_version: Option<String>,
    /// How long what it allows is remembered; by default 5m0s.
    #[arg(long, value_parser = duration, env = "YARE_AUTHORIZATION_WEBHOOK_CACHE_AUTHORIZED_TTL")]
    pub authorization_webhook_cache_authorized_ttl: Option<Duration>,
    /// How long what it refuses is remembered; by default 30s.
    #[arg(long, value_parser = duration, env = "YARE_AUTHORIZATION_WEBHOOK_CACHE_UNAUTHORIZED_TTL")]
    pub authorization_webhook_cache_unauthorized_ttl: Option<Duration>,
}

/// Flags about service-account tokens.
#[derive(Args, Debug, Clone)]
pub struct ServiceAccountArgs {
    /// Files with keys (PEM) that verify service-account tokens, beside the one that signs.
    #[arg(long, env = "YARE_SERVICE_ACCOUNT_KEY_FILE", value_delimiter = ',')]
    pub service_account_key_file: Vec<PathBuf>,
    /// File with the key that signs them; by default the cluster's own.
    #[arg(long, env = "YARE_SERVICE_ACCOUNT_SIGNING_KEY_FILE")]
    pub service_account_signing_key_file: Option<PathBuf>,
    /// Issuers of tokens that are accepted; the first stands in new ones.
    #[arg(long, default_value = ISSUER, env = "YARE_SERVICE_ACCOUNT_ISSUER", value_delimiter = ',')]
    pub service_account_issuer: Vec<String>,
    /// Where the issuer's document says that keys are; by default this server.
    #[arg(long, env = "YARE_SERVICE_ACCOUNT_JWKS_URI")]
    pub service_account_jwks_uri: Option<String>,
    /// Audiences of the API server; by default its issuers.
    #[arg(long, env = "YARE_API_AUDIENCES", value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// The longest validity of a token; by default what is asked for.
    #[arg(long, value_parser = duration, env = "YARE_SERVICE_ACCOUNT_MAX_TOKEN_EXPIRATION")]
    pub service_account_max_token_expiration: Option<Duration>,
    /// Let projected tokens live longer than they ask for, with a note in the audit log.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "YARE_SERVICE_ACCOUNT_EXTEND_TOKEN_EXPIRATION")]
    pub service_account_extend_token_expiration: bool,
    /// Tokens of the old kind die with their Secret.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "YARE_SERVICE_ACCOUNT_LOOKUP")]
    pub service_account_lookup: bool,
}

/// Flags about proxies that authenticate callers. By default only this server's own is believed.
#[derive(Args, Debug, Clone)]
pub struct RequestHeaderArgs {
    /// Certificates (PEM) of the authorities of such proxies; by default the cluster's front proxy authority.
    #[arg(long, env = "YARE_REQUESTHEADER_CLIENT_CA_FILE")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names they may have; empty with --requestheader-client-ca-file: all.
    #[arg(long, env = "YARE_REQUESTHEADER_ALLOWED_NAMES", value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    /// Headers with the user's name.
    #[arg(
        long,
        default_value = "X-Remote-User",
        env = "YARE_REQUESTHEADER_USERNAME_HEADERS",
        value_delimiter = ','
    )]
    pub requestheader_username_headers: Vec<String>,
    /// Headers with the user's UID.
    #[arg(
        long,
        default_value = "X-Remote-Uid",
        env = "YARE_REQUESTHEADER_UID_HEADERS",
        value_delimiter = ','
    )]
    pub requestheader_uid_headers: Vec<String>,
    /// Headers with groups.
    #[arg(
        long,
        default_value = "X-Remote-Group",
        env = "YARE_REQUESTHEADER_GROUP_HEADERS",
        value_delimiter = ','
    )]
    pub requestheader_group_headers: Vec<String>,
    /// How headers with extra attributes begin.
    #[arg(
        long,
        default_value = "X-Remote-Extra-",
        env = "YARE_REQUESTHEADER_EXTRA_HEADERS_PREFIX",
        value_delimiter = ','
    )]
    pub requestheader_extra_headers_prefix: Vec<String>,
}

/// Flags about one issuer of tokens; --authentication-config has more to say.
#[derive(Args, Debug, Clone)]
pub struct OidcArgs {
    /// The issuer's URL.
    #[arg(long, env = "YARE_OIDC_ISSUER_URL")]
    pub oidc_issuer_url: Option<String>,
    /// The audience that its tokens must be for.
    #[arg(long, env = "YARE_OIDC_CLIENT_ID")]
    pub oidc_client_id: Option<String>,
    /// Certificates (PEM) by which its server is trusted; by default the system's.
    #[arg(long, env = "YARE_OIDC_CA_FILE")]
    pub oidc_ca_file: Option<PathBuf>,
    /// The claim that is the user's name.
    #[arg(long, default_value = "sub", env = "YARE_OIDC_USERNAME_CLAIM")]
    pub oidc_username_claim: String,
    /// What is put before it; by default the issuer and #, unless the claim is email; - is nothing.
    #[arg(long, allow_hyphen_values = true, env = "YARE_OIDC_USERNAME_PREFIX")]
    pub oidc_username_prefix: Option<String>,
    /// The claim that holds groups.
    #[arg(long, env = "YARE_OIDC_GROUPS_CLAIM")]
    pub oidc_groups_claim: Option<String>,
    /// What is put before them.
    #[arg(long, allow_hyphen_values = true, env = "YARE_OIDC_GROUPS_PREFIX")]
    pub oidc_groups_prefix: Option<String>,
    /// Claims that must be there, CLAIM=VALUE.
    #[arg(long, env = "YARE_OIDC_REQUIRED_CLAIM", value_delimiter = ',')]
    pub oidc_required_claim: Vec<String>,
    /// Signature algorithms that are accepted.
    #[arg(long, default_value = "RS256", env = "YARE_OIDC_SIGNING_ALGS", value_delimiter = ',')]
    pub oidc_signing_algs: Vec<String>,
}

fn read(path: &Path, flag: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("--{flag} {}", path.display()))
}

impl AuthArgs {
    /// Signs and verifies service-account tokens.
    pub fn signer(&self, pki: &Pki) -> anyhow::Result<Signer> {
        let flags = &self.accounts;
        let own = match &flags.service_account_signing_key_file {
            Some(path) => read(path, "service-account-signing-key-file")?,
            None => pki.service_account_key.clone(),
        };
        let mut keys = Vec::new();
        for path in &flags.service_account_key_file {
            keys.push(read(path, "service-account-key-file")?);
        }
        let audiences = match flags.api_audiences.as_slice() {
            [] => &flags.service_account_issuer,
            given => given,
        };
        let signer = Signer::with(&token::Options {
            signing_key: Some(&own),
            verification_keys: &keys,
            issuers: &flags.service_account_issuer,
            audiences,
        });
        signer.context("--service-account-key-file, --service-account-signing-key-file")
    }

    /// Authenticators and authorizers. `admin`: a token of the administrator.
    pub fn open(&self, pki: &Pki, admin: Option<&str>) -> anyhow::Result<Auth> {
        let mut auth = Auth::new(Some(Arc::new(self.signer(pki)?)));
        if let Some(path) = &self.token_auth_file {
            auth.tokens = StaticTokens::parse(&read(path, "token-auth-file")?)
                .with_context(|| format!("--token-auth-file {}", path.display()))?;
        }
        if let Some(token) = admin {
            auth.tokens.add(token, User::new("kubernetes-admin", &["system:masters"]));
        }
        auth.bootstrap_tokens = self.enable_bootstrap_token_auth;
        auth.service_accounts.lookup = self.accounts.service_account_lookup;
        auth.service_accounts.extend = self.accounts.service_account_extend_token_expiration;
        if let Some(max) = self.accounts.service_account_max_token_expiration.filter(|max| !max.is_zero()) {
            if max < Duration::from_secs(3600) || max.as_secs() > 1 << 32 {
                bail!("--service-account-max-token-expiration must be between 1 hour and 2^32 seconds");
            }
            auth.service_accounts.max_expiration_s = i64::try_from(max.as_secs()).ok();
        }
        auth.authorities = arc_swap(self.authorities(pki)?);
        self.authenticators(&mut auth)?;
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

    fn authorities(&self, pki: &Pki) -> anyhow::Result<Authorities> {
        let mut bundle = pki.cluster.certificate.clone();
        if let Some(path) = &self.client_ca_file {
            bundle.push('\n');
            bundle.push_str(&read(path, "client-ca-file")?);
        }
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

    fn authenticators(&self, auth: &mut Auth) -> anyhow::Result<()> {
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
        auth.oidc.replace(Issuers::start(&config, &algorithms).map_err(anyhow::Error::msg)?);
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
        let types = config.authorizers.iter().map(|a| a.r#type.clone());
        auth.files.required = types.filter(|t| t != authorization::WEBHOOK).collect();
        auth.chain = arc_swap(Chain::new(&config).map_err(anyhow::Error::msg)?);
        Ok(())
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
    fn configuration(&self) -> anyhow::Result<Option<AuthenticationConfiguration>> {
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

    fn algorithms(&self) -> anyhow::Result<Vec<Algorithm>> {
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
        auth: AuthArgs,
    }

    fn open(args: &[&str]) -> Result<Auth, String> {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let flags = Flags::try_parse_from([&["x"], args].concat()).map_err(|e| e.to_string())?;
        flags.auth.open(&pki, Some("secret")).map_err(|e| format!("{e:#}"))
    }

    #[tokio::test]
    async fn what_flags_mean() {
        let auth = open(&[]).unwrap();
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
        .unwrap();
        assert!(!auth.anonymous.enabled);
        assert_eq!(auth.audiences(), ["a", "b"]);
        assert_eq!(auth.signer.unwrap().issuers(), ["https://x", "https://y"]);
        assert_eq!(auth.service_accounts.max_expiration_s, Some(7200));
        for (args, part) in [
            (&["--authorization-mode=Nobody"][..], "authorization-mode \"Nobody\" is not a valid mode"),
            (&["--authorization-mode=ABAC"], "ABAC is not supported"),
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
            (&["--authentication-token-webhook-config-file=/no/such"], "/no/such"),
        ] {
            let error = open(args).err().unwrap();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }

    #[test]
    fn oidc_flags_are_a_configuration() {
        let parse = |args: &[&str]| {
            let flags = Flags::try_parse_from(
                [&["x", "--oidc-issuer-url=https://a", "--oidc-client-id=b"], args].concat(),
            );
            flags.unwrap().auth.oidc.configuration().unwrap().unwrap().jwt.remove(0)
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
