//! What answers a request that may go on: another server, a verb of a resource, a subresource, or one of the
//! server's own pages. In: a call that is authorized and has its seats. Out: the answer.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};

use yare_auth::token::Signer;

use crate::{
    aggregation,
    body::{self, Reply, RequestBody},
    core::Call,
    discovery, encryption, flow, health, identity, negotiate,
    registry::{Registry, Served},
    status::{ApiError, ApiResult},
    subresource,
    verbs::{create, delete, list, patch, update, watch, write},
    zpages,
};

/// Answers a call.
pub async fn dispatch(call: &Call, body: RequestBody, upgrade: &mut http::Extensions) -> ApiResult<Reply> {
    identity::versions::check(call)?;
    if let Some(backend) = call.core.aggregation.route(&call.info) {
        return aggregation::proxy::forward(call, &backend, body, upgrade).await;
    }
    if !call.info.is_resource {
        return other(call).await;
    }
    let proxied = call.info.subresource == "proxy";
    if !proxied && call.info.path.trim_end_matches('/').contains("//") {
        return Err(ApiError::unknown_resource());
    }
    let registry = call.core.registry.load_full();
    let info = &call.info;
    let Some(served) = registry.find(&info.group, &info.version, &info.resource) else {
        return nothing_in(&registry, &info.group);
    };
    let shows_its_own_kind = served.sub(&info.subresource).is_none_or(|sub| sub.kind.is_none());
    if let Some(deprecation) = served.deprecation.as_ref().filter(|_| shows_its_own_kind) {
        call.warn(&*deprecation.warning);
        call.annotate("k8s.io/deprecated", "true");
        if !deprecation.removed.is_empty() {
            call.annotate("k8s.io/removed-release", &*deprecation.removed);
        }
        let sub = served.sub(&info.subresource).map_or("", |sub| &*sub.name);
        call.core.metrics.deprecated.used(served, sub, deprecation);
    }
    if !served.namespaced && !info.namespace.is_empty() && &*served.plural != "namespaces" {
        return Err(ApiError::unknown_resource());
    }
    let is_too_long = !info.rest.is_empty() && !proxied && served.stored.builtin.is_some();
    if info.subresource.is_empty() {
        route(call, served)?;
    } else if is_too_long || (served.namespaced && info.namespace.is_empty()) {
        return Err(ApiError::unknown_resource());
    }
    // A deletion says itself whether it minds.
    let deletes = matches!(info.verb, "delete" | "deletecollection") && info.subresource.is_empty();
    if !deletes && call.core.store().is_locked() {
        encryption::locked::guard(call, served).await?;
    }
    if !info.subresource.is_empty() {
        return subresource::handle(call, served, body, upgrade).await;
    }
    main(call, served, body).await
}

/// Whether the path has such a verb. Upstream has a router for built-in resources, which knows paths and methods
/// alone, and a handler for all others, which tells of resources and verbs.
fn route(call: &Call, served: &Served) -> ApiResult<()> {
    let info = &call.info;
    // A collection that is confined to one object has its name, too.
    let on_many = info.name.is_empty() || matches!(info.verb, "list" | "watch" | "deletecollection");
    let across = served.namespaced && info.namespace.is_empty();
    let verbs: &[&str] = match (on_many, across) {
        (true, false) => &["list", "watch", "create", "deletecollection"],
        // Nobody writes to several namespaces with one request.
        (true, true) => &["list", "watch"],
        (false, false) => &["get", "update", "patch", "delete"],
        (false, true) => &[],
    };
    let has = |verb: &str| served.has_verb(verb);
    let is_built_in = served.stored.builtin.is_some();
    // What is posted to a custom resource by its name is created all the same.
    let named = !is_built_in && !across && info.verb == "create";
    let may = (named || verbs.contains(&info.verb)) && has(info.verb);
    // The old paths of watches say what is done, whatever the method.
    let reads = matches!(info.verb, "get" | "list" | "watch");
    let by_method = !reads || call.method == Method::GET || (call.method == Method::HEAD && !is_built_in);
    if may && by_method {
        if is_built_in {
            if info.verb == "patch" {
                patch::media_type(call, false)?;
            }
            let streams = matches!(info.verb, "list" | "watch");
            negotiate::route(&call.headers, &[], streams, &call.core.config.gates)?;
        }
        return Ok(());
    }
    Err(match is_built_in {
        // The path of a proxy of long ago.
        true if info.verb == "proxy" => ApiError::unknown_resource(),
        true if verbs.iter().any(|verb| has(verb)) => ApiError::method_not_allowed(),
        false if !across && has(info.verb) => ApiError::bad_request("name must be provided"),
        false if !across => ApiError::method_not_supported(served.group_resource(), info.verb),
        _ => ApiError::unknown_resource(),
    })
}

/// The body of a request for a resource.
pub async fn read(call: &Call, served: &Served, body: RequestBody) -> ApiResult<Bytes> {
    let bytes = body::read(&call.headers, body).await?;
    call.core.metrics.bodies.read(served, call.info.verb, bytes.len());
    Ok(bytes)
}

async fn main(call: &Call, served: &Arc<Served>, body: RequestBody) -> ApiResult<Reply> {
    let is_virtual = served.stored.builtin.is_some_and(|row| row.is_virtual());
    if is_virtual {
        let bytes = read(call, served, body).await?;
        return crate::review::handle(call, served, bytes).await;
    }
    match call.info.verb {
        "get" => list::get(call, served).await,
        "list" => list::list(call, served).await,
        "watch" => watch::watch(call, served).await,
        "create" => {
            let bytes = read(call, served, body).await?;
            create::create(call, served, bytes).await
        }
        "update" => {
            let bytes = read(call, served, body).await?;
            update::update(call, served, &write::MAIN, bytes).await
        }
        "patch" => {
            let bytes = read(call, served, body).await?;
            patch::patch(call, served, &write::MAIN, bytes).await
        }
        "delete" => {
            let bytes = read(call, served, body).await?;
            delete::delete(call, served, &bytes).await
        }
        "deletecollection" => {
            let bytes = read(call, served, body).await?;
            delete::collection(call, served, &bytes).await
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// What upstream's router leads to has its methods. All else does not ask.
pub fn only_get(call: &Call) -> ApiResult<()> {
    if call.method == Method::GET { Ok(()) } else { Err(ApiError::method_not_allowed()) }
}

const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Paths that are not resources.
async fn other(call: &Call) -> ApiResult<Reply> {
    let path = call.info.path.strip_prefix('/').unwrap_or_default();
    // What a router serves may end in slashes; all else is known to the letter.
    let first = path.split('/').next().unwrap_or_default();
    let is_lenient = matches!(first, "version" | "api" | "apis" | ".well-known" | "openid");
    let path = if is_lenient { path.trim_end_matches('/') } else { path };
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["" | "index.html"] => {
            Ok(body::json_reply(StatusCode::OK, &serde_json::json!({ "paths": paths(call) })))
        }
        ["version"] => {
            only_get(call)?;
            negotiate::accept_one_of(&call.headers, &[negotiate::JSON])?;
            Ok(body::json_reply(StatusCode::OK, &health::version(&call.core)))
        }
        [endpoint @ ("healthz" | "livez" | "readyz"), single @ ..] if single != [""] => {
            let single = single.join("/");
            health::ask(call, endpoint, &single).await;
            Ok(health::check(call, endpoint, &single).unwrap_or_else(nothing_here))
        }
        ["metrics"] => Ok(body::reply(StatusCode::OK, METRICS, call.core.metrics.render(&call.core))),
        ["metrics", "slis"] => {
            Ok(body::reply(StatusCode::OK, METRICS, call.core.metrics.checks.lock().render()))
        }
        ["metrics", "resources"] => {
            Ok(body::reply(StatusCode::OK, METRICS, crate::metrics::pods::render(&call.core)))
        }
        ["debug", "api_priority_and_fairness", what] => {
            flow::debug::handle(call, what).ok_or_else(ApiError::unknown_resource)
        }
        ["statusz"] => zpage(call, zpages::STATUSZ),
        ["flagz"] => zpage(call, zpages::FLAGZ),
        ["version" | "api" | "apis", "", ..] | ["version", _, ..] | ["apis", _, "", ..] => {
            Err(ApiError::unknown_resource())
        }
        ["api"] => {
            only_get(call)?;
            discovery::root(call, true)
        }
        ["apis"] => discovery::root(call, false),
        ["api", version] => discovery::version(call, "", version),
        ["apis", group] => discovery::group(call, group),
        ["apis", group, version] => discovery::version(call, group, version),
        ["openapi", rest @ ..] => crate::openapi::handle(call, rest),
        [".well-known", "openid-configuration"] => {
            openid(call, "application/json", Signer::openid_configuration)
        }
        ["openid", "v1", "jwks"] => openid(call, "application/jwk-set+json", |signer, _| signer.jwks()),
        _ => Ok(nothing_here()),
    }
}

/// The answer where a group does not have what is asked for.
pub fn nothing_in(registry: &Registry, group: &str) -> ApiResult<Reply> {
    if registry.is_built_in(group) { Err(ApiError::unknown_resource()) } else { Ok(nothing_here()) }
}

/// The answer where nothing is served at all: upstream's routers know nothing of such paths, and no `Status` is made.
pub fn nothing_here() -> Reply {
    body::unsniffed(body::reply(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n"))
}

/// A document of the issuer of service-account tokens. Others may keep it for an hour, or until the keys of a
/// signer elsewhere are fetched again.
fn openid(
    call: &Call,
    media: &'static str,
    document: fn(&Signer, &str) -> serde_json::Value,
) -> ApiResult<Reply> {
    only_get(call)?;
    let config = &call.core.config;
    let signer = config.auth.signer.as_ref().filter(|signer| signer.publishes());
    let (Some(signer), Some(keys_at)) = (signer, &config.openid) else {
        return Err(ApiError::unknown_resource());
    };
    let mut reply = body::reply(StatusCode::OK, media, document(signer, keys_at).to_string());
    let max_age_s = config.auth.external.as_ref().map_or(3600, |external| external.keys_last_s());
    let control =
        HeaderValue::try_from(format!("public, max-age={max_age_s}")).map_err(ApiError::internal)?;
    reply.headers_mut().insert(header::CACHE_CONTROL, control);
    Ok(reply)
}

fn zpage(call: &Call, page: zpages::Page) -> ApiResult<Reply> {
    zpages::handle(call, page, &paths(call)).unwrap_or_else(|| Err(ApiError::unknown_resource()))
}

/// The paths that `/` lists.
fn paths(call: &Call) -> Vec<String> {
    let mut all: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/apis/",
        "/healthz",
        "/livez",
        "/metrics",
        "/metrics/slis",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .to_vec();
    all.extend(zpages::paths(&call.core.config.gates));
    all.extend(health::paths(&call.core));
    for (group, versions) in call.core.registry.load().groups().iter().filter(|(g, _)| !g.is_empty()) {
        all.push(format!("/apis/{group}"));
        all.extend(versions.keys().map(|v| format!("/apis/{group}/{v}")));
    }
    for backend in call.core.aggregation.table.load().backends().filter(|b| !b.group.is_empty()) {
        all.push(format!("/apis/{}", backend.group));
        all.push(backend.root());
    }
    all.sort();
    all.dedup();
    all
}
