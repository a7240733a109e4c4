//! Who calls and what they may do: the tables of authenticators and authorizers around the mechanisms of
//! `yare-auth`, fed from the store.
//!
//! In: headers, client certificates, what a request asks for. Out: a [`User`], a decision, or the 401/403.
//! What the server knows itself is answered without waiting; only rows that ask somebody over the network are
//! asynchronous ([`authenticators`], [`authorizers`]).

pub mod authenticators;
pub mod authorizers;
mod external;
mod feed;
pub mod impersonate;
mod issue;
pub mod metrics;
mod peer;
mod reload;
pub mod tracking;

use std::sync::Arc;

use arc_swap::ArcSwap;
/// What is replaced as a whole while it is in use.
pub use arc_swap::ArcSwap as Swap;
use http::{HeaderMap, header};
pub use yare_auth::User;
use yare_auth::{
    Action, abac::Abac, node::NodeAuthorizer, rbac::Rbac, static_tokens::StaticTokens, tls::ClientAuthority,
    token::Signer,
};
use yare_schema::selector::{FieldSelector, LabelSelector};

pub use authenticators::{
    Anonymous, Bearer, Credentials, Identified, authenticate,
    front_proxy::FrontProxy,
    oidc::{Issuers, Oidc},
    review,
    webhook::TokenWebhook,
};
pub use authorizers::{Chain, Outcome, Rules, rules};
pub use external::{ExternalError, ExternalSigner, SignerTimings};
pub use issue::{EXTENDED_S, Issued, ServiceAccounts, TokenSpec, WARN_ONLY_S, issue};
pub use peer::{Authorities, Peer};
pub use reload::Files;

use crate::{
    core::Core,
    path::{Query, RequestInfo},
    status::{ApiError, ApiResult, GroupResource, quote},
};

/// Authenticators and authorizers of a server.
pub struct Auth {
    /// Everybody is `system:masters`, with or without credentials: for tests only.
    pub permissive: bool,
    /// Callers without credentials.
    pub anonymous: Anonymous,
    /// Who vouches for client certificates.
    pub authorities: ArcSwap<Authorities>,
    /// Static bearer tokens and whose they are.
    pub tokens: StaticTokens,
    /// Service-account tokens.
    pub signer: Option<Arc<Signer>>,
    /// Who signs them, where the signer holds no key that does.
    pub external: Option<Arc<ExternalSigner>>,
    /// How they are issued and checked.
    pub service_accounts: ServiceAccounts,
    /// What says since when the use of the old ones is noted has changed.
    pub tracking: tokio::sync::Notify,
    /// Whether Secrets in `kube-system` hold bootstrap tokens.
    pub bootstrap_tokens: bool,
    /// Issuers of tokens elsewhere.
    pub oidc: Oidc,
    /// A webhook that knows tokens.
    pub token_webhook: Option<TokenWebhook>,
    /// Role-based access control.
    pub rbac: Rbac,
    /// Policies from a file; absent where none is read.
    pub abac: Option<Abac>,
    /// What node agents may do.
    pub nodes: NodeAuthorizer,
    /// What keeps both in step with the store.
    pub feeds: feed::Feeds,
    /// Who decides, in order.
    pub chain: ArcSwap<Chain>,
    /// Files that are read again when they change.
    pub files: Files,
    /// What is counted.
    pub metrics: Box<metrics::AuthMetrics>,
}

impl Auth {
    /// Node and RBAC, and service-account tokens of `signer`; whose certificates are believed is set by
    /// [`Auth::trust`].
    pub fn new(signer: Option<Arc<Signer>>) -> Self {
        Self {
            permissive: false,
            anonymous: Anonymous { enabled: true, paths: Vec::new() },
            authorities: ArcSwap::from_pointee(Authorities::default()),
            tokens: StaticTokens::new(),
            signer,
            external: None,
            service_accounts: ServiceAccounts::default(),
            tracking: tokio::sync::Notify::new(),
            bootstrap_tokens: true,
            oidc: Oidc::default(),
            token_webhook: None,
            rbac: Rbac::default(),
            abac: None,
            nodes: NodeAuthorizer::default(),
            feeds: feed::Feeds::default(),
            chain: ArcSwap::from_pointee(Chain::usual()),
            files: Files::default(),
            metrics: Box::default(),
        }
    }

    /// Everybody may do everything: for tests.
    pub fn permissive() -> Self {
        Self { permissive: true, ..Self::new(None) }
    }

    /// Believes client certificates of `clients`, and what proxies say that prove themselves.
    pub fn trust(&self, clients: Option<ClientAuthority>, front_proxy: Option<FrontProxy>) {
        let front_proxy = front_proxy.map(Arc::new);
        self.authorities.store(Arc::new(Authorities { clients, front_proxy }));
    }

    /// What signs service-account tokens with a key of this server's; absent where it has none.
    pub fn own_signer(&self) -> Option<&Arc<Signer>> {
        self.signer.as_ref().filter(|_| self.external.is_none())
    }

    /// The audiences that the API server itself answers to.
    pub fn audiences(&self) -> &[String] {
        self.signer.as_ref().map_or(&[], |signer| signer.audiences())
    }
}

/// Keeps the authorizers in step with the store, and everything with its files, until the server stops.
pub fn start(core: &Arc<Core>) {
    feed::start(core);
    reload::start(core);
    tracking::start(core);
    external::start(core);
}

/// How the caller of a request is known.
pub enum Identity {
    /// In this process: by whoever handed the service out.
    Local(Arc<User>),
    /// Over a connection, by what it and the request's headers show.
    Remote(Option<Arc<Peer>>),
}

/// Who sent a request. What only authenticators need is taken off its headers.
pub async fn caller(
    core: &Arc<Core>,
    identity: Identity,
    headers: &mut HeaderMap,
    path: &str,
) -> ApiResult<Identified> {
    let certificate = match identity {
        Identity::Local(user) => return Ok(user.into()),
        Identity::Remote(certificate) => certificate,
    };
    if core.config.auth.permissive {
        return Ok(Arc::new(User::admin()).into());
    }
    let known =
        authenticate(core, &Credentials { headers, certificate: certificate.as_deref(), path }).await?;
    headers.remove(header::AUTHORIZATION);
    authenticators::front_proxy::clear(core.config.auth.authorities.load().front_proxy.as_deref(), headers);
    Ok(known)
}

/// The selectors that confine what a request is about.
#[derive(Default)]
pub struct Selectors {
    fields: FieldSelector,
    labels: LabelSelector,
}

impl Selectors {
    /// Those of a list, watch or collection deletion. One that cannot be read confines nothing here, and is an
    /// error where the request is carried out.
    pub fn of(info: &RequestInfo, query: &Query) -> Self {
        if !info.is_resource || !matches!(info.verb, "list" | "watch" | "deletecollection") {
            return Self::default();
        }
        let fields = query.get("fieldSelector").and_then(|text| FieldSelector::parse(text).ok());
        let labels = query.get("labelSelector").and_then(|text| LabelSelector::parse(text).ok());
        Self { fields: fields.unwrap_or_default(), labels: labels.unwrap_or_default() }
    }

    /// The action that the request is.
    pub fn action<'a>(&'a self, info: &'a RequestInfo) -> Action<'a> {
        if info.is_resource {
            Action {
                verb: info.verb,
                group: &info.group,
                version: &info.version,
                resource: &info.resource,
                subresource: &info.subresource,
                namespace: &info.namespace,
                name: &info.name,
                fields: self.fields.requirements(),
                labels: self.labels.requirements(),
                ..Action::default()
            }
        } else {
            Action { verb: info.verb, path: &info.path, ..Action::default() }
        }
    }
}

/// Refuses what the user may not do.
pub fn refuse(outcome: &Outcome, user: &User, wanted: &Action<'_>) -> ApiResult<()> {
    if outcome.is_allowed() {
        return Ok(());
    }
    if !outcome.error.is_empty() {
        return Err(ApiError::internal(&outcome.error));
    }
    Err(forbidden(user, wanted, outcome.reason()))
}

/// Whether the user may do it: the reason either way.
pub async fn decide(core: &Core, user: &User, wanted: &Action<'_>) -> Result<String, String> {
    reason(authorizers::decide(core, user, wanted).await)
}

/// The same for expressions, which are evaluated in one go.
pub fn decide_at_once(core: &Core, user: &User, wanted: &Action<'_>) -> Result<String, String> {
    reason(authorizers::decide_now(core, user, wanted))
}

fn reason(outcome: Outcome) -> Result<String, String> {
    let reason = outcome.reason().to_owned();
    if outcome.is_allowed() { Ok(reason) } else { Err(reason) }
}

/// The 403 of upstream, with the authorizers' reason.
pub fn forbidden(user: &User, wanted: &Action<'_>, reason: &str) -> ApiError {
    let mut message = if wanted.path.is_empty() {
        let mut resource = wanted.resource.to_owned();
        if !wanted.subresource.is_empty() {
            resource = format!("{resource}/{}", wanted.subresource);
        }
        let place = if wanted.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {}", quote(wanted.namespace))
        };
        format!(
            "User {} cannot {} resource {} in API group {} {place}",
            quote(&user.name),
            wanted.verb,
            quote(&resource),
            quote(wanted.group),
        )
    } else {
        format!("User {} cannot {} path {}", quote(&user.name), wanted.verb, quote(wanted.path))
    };
    message = message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    if !reason.is_empty() {
        message = format!("{message}: {reason}");
    }
    ApiError::forbidden(
        GroupResource { group: wanted.group, resource: wanted.resource },
        wanted.name,
        message,
    )
}
