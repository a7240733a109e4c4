//! The flags themselves.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args};

use super::ISSUER;
use crate::requests::duration;

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
    /// Who decides, in order: AlwaysAllow, AlwaysDeny, ABAC, Webhook, RBAC, Node. By default Node,RBAC.
    #[arg(long, env = "YARE_AUTHORIZATION_MODE", value_delimiter = ',')]
    pub authorization_mode: Vec<String>,
    /// File with an AuthorizationConfiguration, instead of --authorization-mode. Read again when it changes.
    #[arg(long, env = "YARE_AUTHORIZATION_CONFIG")]
    pub authorization_config: Option<PathBuf>,
    /// File with the policies of --authorization-mode=ABAC, one a line.
    #[arg(long, env = "YARE_AUTHORIZATION_POLICY_FILE")]
    pub authorization_policy_file: Option<PathBuf>,
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
    /// Socket of an external signer (a path, or @NAME), which holds the keys that sign and says those that verify.
    #[arg(long, env = "YARE_SERVICE_ACCOUNT_SIGNING_ENDPOINT")]
    pub service_account_signing_endpoint: Option<String>,
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
