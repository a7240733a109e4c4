//! Who calls and what they may do: the chain of authenticators and authorizers around the mechanisms of
//! `yare-auth`, fed from the store.
//!
//! In: headers, client certificates, what a request asks for. Out: a [`User`], a decision, or the 401/403.

use std::{collections::HashSet, sync::Arc};

use arc_swap::ArcSwap;
use http::HeaderMap;
use serde_json::Value;
pub use yare_auth::User;
use yare_auth::{
    Action, Decision,
    node::NodeAuthorizer,
    rbac::{self, Rbac, Rule},
    static_tokens::StaticTokens,
    token::{Bound, Claims, Reference, Signer},
};
use yare_schema::selector::{FieldSelector, LabelSelector};
use yare_store::EventKind;

use crate::{
    core::Core,
    path::{Query, RequestInfo},
    registry::store_kind,
    status::{ApiError, ApiResult, GroupResource, quote},
};

pub mod authenticators;
mod peer;

pub use authenticators::{Anonymous, Credentials, authenticate};
pub use peer::{Authorities, Peer};

/// How service-account tokens are judged.
pub struct ServiceAccounts {
    /// Tokens of the old kind die with their Secret and account.
    pub lookup: bool,
}

/// Authenticators and authorizers of a server.
pub struct Auth {
    /// Everybody is `system:masters`, with or without credentials: for tests only.
    pub permissive: bool,
    /// Callers without credentials who come in as `system:anonymous` (else 401).
    pub anonymous: Anonymous,
    /// Who vouches for client certificates.
    pub authorities: ArcSwap<Authorities>,
    /// Secrets of bootstrap tokens let their holders in.
    pub bootstrap_tokens: bool,
    /// How service-account tokens are judged.
    pub service_accounts: ServiceAccounts,
    /// Role-based access control.
    pub rbac: Rbac,
    /// What node agents may do.
    pub nodes: NodeAuthorizer,
    /// Service-account tokens.
    pub signer: Option<Arc<Signer>>,
    /// Static bearer tokens and whose they are.
    pub tokens: StaticTokens,
}

impl Auth {
    /// RBAC and the Node authorizer, certificates, and service-account tokens of `signer`.
    pub fn new(signer: Option<Arc<Signer>>) -> Self {
        Self {
            permissive: false,
            anonymous: Anonymous { enabled: true, paths: Vec::new() },
            authorities: ArcSwap::default(),
            bootstrap_tokens: true,
            service_accounts: ServiceAccounts { lookup: true },
            rbac: Rbac::default(),
            nodes: NodeAuthorizer::default(),
            signer,
            tokens: StaticTokens::new(),
        }
    }

    /// Everybody may do everything: for tests.
    pub fn permissive() -> Self {
        Self { permissive: true, ..Self::new(None) }
    }

    /// The audiences that the API server itself answers to.
    pub fn audiences(&self) -> &[String] {
        self.signer.as_ref().map_or(&[], |signer| signer.audiences())
    }
}

/// Kinds whose changes the authorizers are told of: group, plural.
const FED: [(&str, &str); 9] = [
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("", "pods"),
    ("", "persistentvolumes"),
    ("storage.k8s.io", "volumeattachments"),
    ("resource.k8s.io", "resourceslices"),
    ("certificates.k8s.io", "podcertificaterequests"),
];

/// Keeps RBAC and the node graph in step with the store until the server stops. What is in the store already
/// is taken in before this returns.
pub fn feed(core: &Arc<Core>) {
    if core.config.auth.permissive {
        return;
    }
    for (group, plural) in FED {
        let kind = store_kind(group, plural);
        let apply = move |auth: &Auth, key: &str, object: Option<&[u8]>| {
            if rbac::RESOURCES.contains(&plural) && !group.is_empty() {
                auth.rbac.apply(plural, key, object);
            } else {
                auth.nodes.apply(plural, key, object);
            }
        };
        let mut known = HashSet::new();
        let mut from = take_in(core, &kind, &mut known, &apply);
        let core = core.clone();
        tokio::spawn(async move {
            loop {
                if let Ok(mut watcher) = core.store().watch(&kind, from) {
                    loop {
                        let batch = tokio::select! {
                            batch = watcher.next() => batch,
                            () = core.stop.cancelled() => return,
                        };
                        let Ok(batch) = batch else { break };
                        for event in batch {
                            let key = &event.object.key;
                            if event.kind == EventKind::Put {
                                known.insert(key.clone());
                                apply(&core.config.auth, key, Some(&event.object.bytes));
                            } else {
                                known.remove(key);
                                apply(&core.config.auth, key, None);
                            }
                        }
                    }
                }
                // Fell out of the watch's history: start over from the present state.
                from = take_in(&core, &kind, &mut known, &apply);
            }
        });
    }
}

/// Tells the authorizers all of a kind's present state; gives its revision.
fn take_in(
    core: &Core,
    kind: &str,
    known: &mut HashSet<Box<str>>,
    apply: &impl Fn(&Auth, &str, Option<&[u8]>),
) -> u64 {
    let snapshot = core.store().snapshot(kind);
    for gone in known.iter().filter(|key| snapshot.get(key).is_none()) {
        apply(&core.config.auth, gone, None);
    }
    known.clear();
    for object in snapshot.range(std::ops::Bound::Unbounded, "") {
        known.insert(object.key.clone());
        apply(&core.config.auth, &object.key, Some(&object.bytes));
    }
    snapshot.revision()
}

/// A service-account token to be issued.
#[derive(Clone, Debug, Default)]
pub struct TokenSpec {
    /// Namespace of the service account.
    pub namespace: String,
    /// The service account.
    pub account: Reference,
    /// Audiences, empty for the server's own.
    pub audiences: Vec<String>,
    /// Validity.
    pub expiration_s: i64,
    /// What the token dies with: its kind, and which.
    pub bound: Option<(String, Reference)>,
    /// Node of the pod it is bound to.
    pub node: Option<Reference>,
}

/// Issues a token: itself, its audiences, and when it expires (Unix seconds).
pub fn issue(core: &Core, spec: TokenSpec) -> ApiResult<(String, Vec<String>, i64)> {
    let Some(signer) = &core.config.auth.signer else {
        return Err(ApiError::internal("this server issues no service account tokens"));
    };
    let audiences = if spec.audiences.is_empty() { signer.audiences().to_vec() } else { spec.audiences };
    let now_s = core.now().as_second();
    let mut bound =
        Bound { namespace: spec.namespace.clone(), serviceaccount: spec.account.clone(), ..Bound::default() };
    match spec.bound {
        Some((kind, reference)) if kind == "Pod" => {
            bound.pod = Some(reference);
            bound.node = spec.node;
        }
        Some((kind, reference)) if kind == "Secret" => bound.secret = Some(reference),
        Some((_, reference)) => bound.node = Some(reference),
        None => {}
    }
    let claims = Claims {
        aud: audiences.clone(),
        exp: Some(now_s + spec.expiration_s),
        iat: Some(now_s),
        iss: signer.issuer().to_owned(),
        jti: core.new_uid(),
        sub: format!("system:serviceaccount:{}:{}", spec.namespace, spec.account.name),
        bound,
        nbf: Some(now_s),
    };
    let token = signer.sign(&claims).map_err(ApiError::internal)?;
    Ok((token, audiences, now_s + spec.expiration_s))
}

/// The action that a request is, without its selectors.
pub fn action(info: &RequestInfo) -> Action<'_> {
    if info.is_resource {
        Action {
            verb: info.verb,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            ..Action::default()
        }
    } else {
        Action { verb: info.verb, path: &info.path, ..Action::default() }
    }
}

/// Refuses what the user may not do.
pub fn authorize_request(core: &Core, user: &User, info: &RequestInfo, query: &Query) -> ApiResult<()> {
    let wanted = action(info);
    if !matches!(info.verb, "list" | "watch" | "deletecollection") {
        return authorize(core, user, &wanted);
    }
    // Selectors narrow what is asked for (KEP-4601). One that cannot be read narrows nothing; the request fails
    // for it later.
    let text = |name: &str| query.get(name).filter(|text| !text.is_empty());
    let fields = text("fieldSelector").and_then(|text| FieldSelector::parse(text).ok());
    let labels = text("labelSelector").and_then(|text| LabelSelector::parse(text).ok());
    let wanted = Action {
        fields: fields.as_ref().map_or(&[], FieldSelector::requirements),
        labels: labels.as_ref().map_or(&[], LabelSelector::requirements),
        ..wanted
    };
    authorize(core, user, &wanted)
}

/// Refuses what the user may not do.
pub fn authorize(core: &Core, user: &User, wanted: &Action<'_>) -> ApiResult<()> {
    decide(core, user, wanted).map(|_| ()).map_err(|reason| forbidden(user, wanted, &reason))
}

/// Whether the user may do it: the reason either way.
pub fn decide(core: &Core, user: &User, wanted: &Action<'_>) -> Result<String, String> {
    let auth = &core.config.auth;
    if auth.permissive {
        return Ok(String::new());
    }
    let mut reasons = Vec::new();
    let chain: [&dyn Fn() -> Decision; 2] =
        [&|| auth.nodes.authorize(user, wanted), &|| auth.rbac.authorize(user, wanted)];
    for authorizer in chain {
        match authorizer() {
            Decision::Allow(reason) => return Ok(reason),
            Decision::Deny(reason) => return Err(reason),
            Decision::NoOpinion(reason) if !reason.is_empty() => reasons.push(reason),
            Decision::NoOpinion(_) => {}
        }
    }
    Err(reasons.join("; "))
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

/// The identity that `Impersonate-*` headers ask for, where the caller may take it on.
pub fn impersonate(core: &Core, user: User, headers: &HeaderMap) -> ApiResult<User> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let name = text("impersonate-user");
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .map(str::to_owned)
        .collect();
    let uid = text("impersonate-uid");
    let extra: Vec<(String, String)> = headers
        .iter()
        .filter_map(|(k, v)| {
            let key = k.as_str().strip_prefix("impersonate-extra-")?;
            Some((crate::path::percent_decode(key, false).into_owned(), v.to_str().ok()?.to_owned()))
        })
        .collect();
    if name.is_empty() {
        if !groups.is_empty() || !uid.is_empty() || !extra.is_empty() {
            return Err(ApiError::internal(
                "requested impersonation of groups, UID or extras without impersonating a user",
            ));
        }
        return Ok(user);
    }
    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        authorize(
            core,
            &user,
            &Action {
                verb: "impersonate",
                group,
                resource,
                subresource,
                namespace,
                name,
                ..Action::default()
            },
        )
    };
    let account = name.strip_prefix("system:serviceaccount:").and_then(|n| n.split_once(':'));
    let mut out = match account {
        Some((namespace, account)) => {
            may("", "serviceaccounts", "", namespace, account)?;
            User::service_account(namespace, account, "")
        }
        None => {
            may("", "users", "", "", name)?;
            User { name: name.to_owned(), ..User::default() }
        }
    };
    for group in &groups {
        may("", "groups", "", "", group)?;
    }
    if !groups.is_empty() {
        out.groups = groups;
    }
    if !uid.is_empty() {
        may("authentication.k8s.io", "uids", "", "", uid)?;
        out.uid = uid.to_owned();
    }
    for (key, value) in extra {
        may("authentication.k8s.io", "userextras", &key, "", &value)?;
        out.extra.entry(key).or_default().push(value);
    }
    let everybody =
        if name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    if !out.in_group(everybody) {
        out.groups.push(everybody.into());
    }
    Ok(out)
}

/// `status` of a SelfSubjectRulesReview.
pub fn rules(core: &Core, user: &User, namespace: &str) -> Value {
    let (rules, why) = if core.config.auth.permissive {
        (Rule::everything().into(), String::new())
    } else {
        core.config.auth.rbac.rules_for(user, namespace)
    };
    let (urls, resources): (Vec<Rule>, Vec<Rule>) =
        rules.into_iter().partition(|rule| !rule.non_resource_urls.is_empty());
    let list = |rules: &[Rule]| rules.iter().map(Rule::to_json).collect::<Vec<_>>();
    let mut status = serde_json::json!({
        "incomplete": !why.is_empty(),
        "nonResourceRules": list(&urls),
        "resourceRules": list(&resources),
    });
    if !why.is_empty() {
        status["evaluationError"] = why.into();
    }
    status
}
