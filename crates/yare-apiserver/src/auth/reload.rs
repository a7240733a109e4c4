//! Files that may change while the server runs: who authenticates, who authorizes, whose certificates are
//! believed.

use std::{path::PathBuf, sync::Arc, time::Duration};

use yare_auth::{
    config::{
        authentication::AuthenticationConfiguration,
        authorization::{ABAC, AuthorizationConfiguration},
    },
    jws::Algorithm,
    tls::{self, ClientAuthority},
};

use super::{Auth, Authorities, Chain, authenticators::oidc::Issuers};
use crate::{core::Core, files::follow, outbound::egress::Egress};

/// Files, where there are some.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// `--authentication-config`
    pub authentication: Option<PathBuf>,
    /// `--authorization-config`
    pub authorization: Option<PathBuf>,
    /// `--client-ca-file`, and the certificates (PEM) that are believed beside those in it.
    pub client_authority: Option<(PathBuf, String)>,
    /// Types of authorizers that must stay in the chain.
    pub required: Vec<String>,
}

/// How long new issuers have to answer before they replace the old ones.
const ISSUERS_PATIENCE: Duration = Duration::from_secs(60);
const ISSUERS_STEP: Duration = Duration::from_millis(250);

/// Watches the files until the server stops.
pub fn start(core: &Arc<Core>) {
    let (files, metrics) = (&core.config.auth.files, &core.config.auth.metrics);
    if let Some(path) = &files.authentication {
        let loaded = follow(core, path, |core, text| {
            Box::pin(async move {
                let issuers = authentication(&core.config.auth, core.config.egress.as_deref(), &text);
                let reloads = &core.config.auth.metrics.authentication_file;
                reloads.reloaded(issuers.is_ok().then_some(&text), core.now());
                replace(core, issuers?).await;
                Ok(())
            })
        });
        metrics.authentication_file.loaded(&loaded);
    }
    if let Some(path) = &files.authorization {
        let loaded = follow(core, path, |core, text| {
            Box::pin(async move {
                let done = authorization(&core.config.auth, &text);
                let reloads = &core.config.auth.metrics.authorization_file;
                reloads.reloaded(done.is_ok().then_some(&text), core.now());
                done
            })
        });
        metrics.authorization_file.loaded(&loaded);
    }
    if let Some((path, _)) = &files.client_authority {
        follow(core, path, |core, text| Box::pin(async move { client_authority(&core.config.auth, &text) }));
    }
}

fn authentication(auth: &Auth, egress: Option<&Egress>, text: &[u8]) -> Result<Issuers, String> {
    let own = auth.signer.as_ref().map(|s| s.issuers().to_vec()).unwrap_or_default();
    let config = AuthenticationConfiguration::parse(text, &own).map_err(|e| e.to_string())?;
    Issuers::start(&config, &Algorithm::ALL, egress)
}

fn authorization(auth: &Auth, text: &[u8]) -> Result<(), String> {
    let config = AuthorizationConfiguration::parse(text, &auth.files.required).map_err(|e| e.to_string())?;
    if auth.abac.is_none() && config.authorizers.iter().any(|authorizer| authorizer.r#type == ABAC) {
        return Err(
            "authorizer type ABAC is not allowed if it was not enabled at initial server startup".into()
        );
    }
    let chain = Chain::new(&config)?.after(&auth.chain.load());
    auth.chain.store(Arc::new(chain));
    Ok(())
}

fn client_authority(auth: &Auth, text: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
    tls::check_authority(text)?;
    let beside = auth.files.client_authority.as_ref().map_or("", |(_, beside)| beside);
    let clients = Some(ClientAuthority::new(&format!("{beside}\n{text}")).map_err(|e| e.to_string())?);
    let front_proxy = auth.authorities.load().front_proxy.clone();
    auth.authorities.store(Arc::new(Authorities { clients, front_proxy }));
    Ok(())
}

/// Puts new issuers in place once they answer, or after a while anyway.
async fn replace(core: &Core, issuers: Issuers) {
    let patience = async {
        while !issuers.are_ready() {
            tokio::time::sleep(ISSUERS_STEP).await;
        }
    };
    if tokio::time::timeout(ISSUERS_PATIENCE, patience).await.is_err() {
        tracing::warn!("not all issuers of tokens answer");
    }
    core.config.auth.oidc.replace(issuers);
}
