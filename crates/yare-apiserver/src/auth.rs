//! Who calls and what they may do: the chain of authenticators and authorizers around the mechanisms of
//! `yare-auth`, fed from the store.
//!
//! In: headers, client certificates, what a request asks for. Out: a [`User`], a decision, or the 401/403.

use std::{collections::HashSet, sync::Arc};

use http::{HeaderMap, header};
use serde_json::Value;
pub use yare_auth::User;
use yare_auth::{
    Action, Decision,
    node::NodeAuthorizer,
    rbac::{self, Rbac},
    token::{Bound, Claims, Reference, Signer, TokenError, secrets_equal},
};
use yare_kinds::view::View;
use yare_store::EventKind;

use crate::{
    core::Core,
    path::{Query, RequestInfo},
    registry::store_kind,
    status::{ApiError, ApiResult, GroupResource, quote},
};

/// Authenticators and authorizers of a server.
pub struct Auth {
    /// Everybody is `system:masters`, with or without credentials: for tests only.
    pub permissive: bool,
    /// Callers without credentials come in as `system:anonymous` (else 401).
    pub anonymous: bool,
    /// Role-based access control.
    pub rbac: Rbac,
    /// What node agents may do.
    pub nodes: NodeAuthorizer,
    /// Service-account tokens.
    pub signer: Option<Arc<Signer>>,
    /// Static bearer tokens and whose they are.
    pub tokens: Vec<(String, User)>,
}

impl Auth {
    /// RBAC and the Node authorizer, certificates, and service-account tokens of `signer`.
    pub fn new(signer: Option<Arc<Signer>>) -> Self {
        Self {
            permissive: false,
            anonymous: true,
            rbac: Rbac::default(),
            nodes: NodeAuthorizer::default(),
            signer,
            tokens: Vec::new(),
        }
    }

    /// Everybody may do everything: for tests.
    pub fn permissive() -> Self {
        Self { permissive: true, ..Self::new(None) }
    }
}

/// Kinds whose changes the authorizers are told of: group, plural.
const FED: [(&str, &str); 7] = [
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("", "pods"),
    ("", "persistentvolumes"),
    ("storage.k8s.io", "volumeattachments"),
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

/// What a request shows of its sender.
pub struct Credentials<'a> {
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// Whom the client's certificate names, which the TLS layer verified against the client CA.
    pub certificate: Option<&'a User>,
}

/// Who sent this.
pub fn authenticate(core: &Core, credentials: &Credentials<'_>) -> ApiResult<User> {
    let auth = &core.config.auth;
    if auth.permissive {
        return Ok(User::admin());
    }
    if let Some(user) = credentials.certificate {
        return Ok(user.clone());
    }
    if let Some(value) = credentials.headers.get(header::AUTHORIZATION) {
        let token = value.to_str().ok().and_then(|v| {
            let (scheme, token) = v.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        if let Some(token) = token.filter(|t| !t.is_empty()) {
            return token_user(core, token, &[]).map(|(user, _)| user).map_err(|_| ApiError::unauthorized());
        }
    }
    // WebSocket clients in browsers can set no header but this one.
    if let Some(token) = websocket_token(credentials.headers) {
        return token_user(core, &token, &[]).map(|(user, _)| user).map_err(|_| ApiError::unauthorized());
    }
    if auth.anonymous { Ok(User::anonymous()) } else { Err(ApiError::unauthorized()) }
}

fn websocket_token(headers: &HeaderMap) -> Option<String> {
    use base64::Engine as _;
    let protocols = headers.get("sec-websocket-protocol")?.to_str().ok()?;
    let encoded =
        protocols.split(',').find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(bytes).ok()
}

/// Whose token it is, and for which of `audiences` (empty: the API server's own) it is good.
pub fn token_user(core: &Core, token: &str, audiences: &[String]) -> Result<(User, Vec<String>), String> {
    let auth = &core.config.auth;
    for (known, user) in &auth.tokens {
        if secrets_equal(known.as_bytes(), token.as_bytes()) {
            return Ok((user.clone(), audiences.to_vec()));
        }
    }
    let Some(signer) = &auth.signer else { return Err("invalid bearer token".into()) };
    let claims = match signer.verify(token, audiences, core.now().as_second()) {
        Ok(claims) => claims,
        Err(TokenError::Foreign) => return Err("invalid bearer token".into()),
        Err(error) => return Err(error.to_string()),
    };
    check_bound(core, &claims)?;
    let wanted = if audiences.is_empty() { signer.audiences() } else { audiences };
    let good = claims.aud.iter().filter(|a| wanted.contains(a)).cloned().collect();
    Ok((claims.user(), good))
}

/// A token dies with what it is bound to.
fn check_bound(core: &Core, claims: &Claims) -> Result<(), String> {
    let bound = &claims.bound;
    let alive = |kind: &str, key: &str, uid: &str| {
        core.read(kind, key).is_some_and(|o| uid.is_empty() || o.str_at("metadata.uid") == uid)
    };
    let ns = &bound.namespace;
    let account = &bound.serviceaccount;
    if !alive("serviceaccounts", &format!("{ns}/{}", account.name), &account.uid) {
        return Err(format!("serviceaccount {ns}/{} does not exist or was replaced", account.name));
    }
    if let Some(pod) = &bound.pod
        && !alive("pods", &format!("{ns}/{}", pod.name), &pod.uid)
    {
        return Err(format!("pod {ns}/{} does not exist or was replaced", pod.name));
    }
    if let Some(secret) = &bound.secret
        && !alive("secrets", &format!("{ns}/{}", secret.name), &secret.uid)
    {
        return Err(format!("secret {ns}/{} does not exist or was replaced", secret.name));
    }
    if bound.pod.is_none()
        && let Some(node) = &bound.node
        && !alive("nodes", &node.name, &node.uid)
    {
        return Err(format!("node {} does not exist or was replaced", node.name));
    }
    Ok(())
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
        exp: now_s + spec.expiration_s,
        iat: now_s,
        iss: signer.issuer().to_owned(),
        jti: core.new_uid(),
        sub: format!("system:serviceaccount:{}:{}", spec.namespace, spec.account.name),
        bound,
        nbf: now_s,
    };
    let token = signer.sign(&claims).map_err(ApiError::internal)?;
    Ok((token, audiences, claims.exp))
}

/// The action that a request is. `selected_node` is set by [`authorize_request`].
pub fn action(info: &RequestInfo) -> Action<'_> {
    if info.is_resource {
        Action {
            verb: info.verb,
            group: &info.group,
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
    let mut wanted = action(info);
    let selector = query.get("fieldSelector").unwrap_or_default();
    wanted.selected_node = selector
        .split(',')
        .find_map(|c| c.strip_prefix("spec.nodeName="))
        .unwrap_or_default()
        .trim_start_matches('=');
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
    if core.config.auth.permissive {
        return serde_json::json!({
            "incomplete": false,
            "nonResourceRules": [{"nonResourceURLs": ["*"], "verbs": ["*"]}],
            "resourceRules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}],
        });
    }
    core.config.auth.rbac.rules_review(user, namespace)
}
