//! Flags about who is known: tokens, keys of service accounts, proxies that vouch for others.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use clap::{ArgAction, Args};
use yare_apiserver::{
    Auth,
    auth::{Anonymous, Authorities, authenticators::front_proxy::FrontProxy},
};
use yare_auth::{
    User,
    pki::Pki,
    static_tokens::StaticTokens,
    tls::ClientAuthority,
    token::{Options, Signer},
};

/// The audience and issuer of service-account tokens, as kubeadm and k3s have it.
const ISSUER: &str = "https://kubernetes.default.svc";
/// The name on the certificate with which this server itself speaks for others.
pub const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

/// Flags of `yare server` under kube-apiserver's names.
#[derive(Args, Debug, Clone)]
pub struct AuthenticationArgs {
    /// Callers without credentials are system:anonymous; else they get 401.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "YARE_ANONYMOUS_AUTH")]
    pub anonymous_auth: bool,
    /// Secrets of type bootstrap.kubernetes.io/token in kube-system let their holders in.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "YARE_ENABLE_BOOTSTRAP_TOKEN_AUTH")]
    pub enable_bootstrap_token_auth: bool,
    /// File of bearer tokens, one per line: token,user,uid,"group1,group2".
    #[arg(long, env = "YARE_TOKEN_AUTH_FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// Files with further keys (PEM, RSA or ECDSA) that verify service-account tokens.
    #[arg(long, env = "YARE_SERVICE_ACCOUNT_KEY_FILE", value_delimiter = ',')]
    pub service_account_key_file: Vec<PathBuf>,
    /// File with the private key that signs service-account tokens; by default one of the data directory.
    #[arg(long, env = "YARE_SERVICE_ACCOUNT_SIGNING_KEY_FILE")]
    pub service_account_signing_key_file: Option<PathBuf>,
    /// Issuer of service-account tokens; several: the first is written into tokens, all are accepted.
    #[arg(long, default_value = ISSUER, env = "YARE_SERVICE_ACCOUNT_ISSUER", value_delimiter = ',')]
    pub service_account_issuer: Vec<String>,
    /// Audiences that tokens must name one of; by default the issuers.
    #[arg(long, env = "YARE_API_AUDIENCES", value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// Authority (PEM) of proxies that name their users in X-Remote-User, -Uid, -Group and -Extra-*; by default one
    /// of the data directory.
    #[arg(long, env = "YARE_REQUESTHEADER_CLIENT_CA_FILE")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Names that such a proxy's certificate may have; with an authority of your own, by default any.
    #[arg(long, env = "YARE_REQUESTHEADER_ALLOWED_NAMES", value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

impl AuthenticationArgs {
    /// Authority (PEM) of proxies, and the names that they may have.
    pub fn front_proxy(&self, pki: &Pki) -> anyhow::Result<(String, Vec<String>)> {
        let Some(path) = &self.requestheader_client_ca_file else {
            return Ok((pki.front_proxy.certificate.clone(), vec![FRONT_PROXY_CLIENT.into()]));
        };
        // The server itself still has to be believed by what it forwards requests to.
        let authority = format!("{}\n{}", read(path)?, pki.front_proxy.certificate);
        let mut names = self.requestheader_allowed_names.clone();
        if !names.is_empty() {
            names.push(FRONT_PROXY_CLIENT.into());
        }
        Ok((authority, names))
    }

    fn signer(&self, pki: &Pki) -> anyhow::Result<Signer> {
        let key = match &self.service_account_signing_key_file {
            Some(path) => read(path)?,
            None => pki.service_account_key.clone(),
        };
        let mut keys = Vec::new();
        for path in &self.service_account_key_file {
            keys.push(read(path)?);
        }
        let issuers = &self.service_account_issuer;
        let audiences = if self.api_audiences.is_empty() { issuers } else { &self.api_audiences };
        let options = Options { signing_key: Some(&key), verification_keys: &keys, issuers, audiences };
        Ok(Signer::with(&options)?)
    }

    /// Who is known. `token`: the administrator's bearer token.
    pub fn auth(&self, pki: &Pki, token: Option<&str>) -> anyhow::Result<Auth> {
        if self.service_account_issuer.iter().any(String::is_empty) {
            bail!("--service-account-issuer: an issuer must not be empty");
        }
        let signer = self.signer(pki).context("keys of service-account tokens")?;
        let mut auth = Auth::new(Some(Arc::new(signer)));
        auth.anonymous = Anonymous { enabled: self.anonymous_auth, paths: Vec::new() };
        auth.bootstrap_tokens = self.enable_bootstrap_token_auth;
        if let Some(path) = &self.token_auth_file {
            auth.tokens = StaticTokens::parse(&read(path)?)
                .with_context(|| format!("--token-auth-file {}", path.display()))?;
        }
        if let Some(token) = token {
            auth.tokens.add(token, User::new("kubernetes-admin", &["system:masters"]));
        }
        let (authority, allowed_names) = self.front_proxy(pki).context("--requestheader-client-ca-file")?;
        auth.authorities.store(Arc::new(Authorities {
            clients: Some(ClientAuthority::new(&pki.cluster.certificate)?),
            front_proxy: Some(FrontProxy::new(ClientAuthority::new(&authority)?, allowed_names)),
        }));
        Ok(auth)
    }
}
