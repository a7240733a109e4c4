//! A request's way through the server: who, may they, is there room, and then the verb.

use std::{panic::AssertUnwindSafe, sync::Arc, sync::atomic::Ordering, time::Instant};

use futures::FutureExt;
use http::{HeaderValue, Method, Request, StatusCode, header};

use crate::{
    aggregation,
    auth::{self, Credentials, User},
    body::{self, Reply, RequestBody},
    core::{Call, Core},
    discovery, health,
    path::{Query, RequestInfo},
    registry::Served,
    render,
    status::{ApiError, ApiResult},
    subresource,
    verbs::{create, delete, list, patch, update, watch, write},
    warnings,
};

/// How the caller is known.
pub enum Identity {
    /// In this process: by whoever handed the service out.
    Local(User),
    /// Over a connection, by the certificate's user and by headers.
    Remote(Option<Arc<User>>),
}

/// Answers a request, whatever happens in it.
pub async fn handle(core: Arc<Core>, request: Request<RequestBody>, identity: Identity) -> Reply {
    let started = Instant::now();
    let query = Query::parse(request.uri().query());
    let info = RequestInfo::parse(request.method(), request.uri(), &query);
    let seen = info.clone();
    let outcome = AssertUnwindSafe(answer(core.clone(), request, info, query, identity)).catch_unwind().await;
    let mut reply = match outcome {
        Ok(reply) => reply,
        Err(_) => {
            tracing::error!(path = seen.path, verb = seen.verb, "a request panicked");
            render::error(&ApiError::internal(
                "this request caused apiserver to panic. Look in the logs for details.",
            ))
        }
    };
    let headers = reply.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    let known =
        seen.is_resource && core.registry.load().find(&seen.group, &seen.version, &seen.resource).is_some();
    core.metrics.request(&seen, known, reply.status().as_u16(), started.elapsed());
    reply
}

async fn answer(
    core: Arc<Core>,
    request: Request<RequestBody>,
    info: RequestInfo,
    query: Query,
    identity: Identity,
) -> Reply {
    let (parts, body) = request.into_parts();
    let mut upgrade = parts.extensions;
    let in_process = matches!(identity, Identity::Local(_));
    let user = match who(&core, identity, &parts.headers) {
        Ok(user) => user,
        Err(error) => return render::error(&error),
    };
    let mut call = Call::new(core, parts.method, info, query, parts.headers, user, in_process);
    call.raw_query = parts.uri.query().map(str::to_owned);
    let result = admitted(&call, body, &mut upgrade).await;
    let mut reply = result.unwrap_or_else(|error| render::error(&error));
    for text in call.take_warnings() {
        if let Ok(value) = HeaderValue::from_bytes(warnings::header(&text).as_bytes()) {
            reply.headers_mut().append(header::WARNING, value);
        }
    }
    reply
}

fn who(core: &Core, identity: Identity, headers: &http::HeaderMap) -> ApiResult<User> {
    let user = match identity {
        Identity::Local(user) => user,
        Identity::Remote(certificate) => {
            auth::authenticate(core, &Credentials { headers, certificate: certificate.as_deref() })?
        }
    };
    auth::impersonate(core, user, headers)
}

/// Requests that last as long as the client wants are bounded by connections, not here.
fn is_long_running(info: &RequestInfo) -> bool {
    info.verb == "watch"
        || info.verb == "proxy"
        || matches!(info.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward")
}

async fn admitted(call: &Call, body: RequestBody, upgrade: &mut http::Extensions) -> ApiResult<Reply> {
    let core = &call.core;
    auth::authorize_request(core, &call.user, &call.info, &call.query)?;
    if is_long_running(&call.info) {
        core.metrics.long_running.fetch_add(1, Ordering::Relaxed);
        let reply = dispatch(call, body, upgrade).await;
        core.metrics.long_running.fetch_sub(1, Ordering::Relaxed);
        return reply;
    }
    let reading = matches!(call.info.verb, "get" | "list" | "head" | "options");
    let (places, gauge) = if reading {
        (&core.readonly, &core.metrics.in_flight_readonly)
    } else {
        (&core.mutating, &core.metrics.in_flight_mutating)
    };
    let _place = match places.try_acquire() {
        Ok(place) => Some(place),
        // The administrator must get in to see what is wrong.
        Err(_) if call.user.in_group("system:masters") => None,
        Err(_) => {
            core.metrics.dropped.fetch_add(1, Ordering::Relaxed);
            return Err(ApiError::too_many_requests("Too many requests, please try again later.", 1));
        }
    };
    gauge.fetch_add(1, Ordering::Relaxed);
    let reply = dispatch(call, body, upgrade).await;
    gauge.fetch_sub(1, Ordering::Relaxed);
    reply
}

async fn dispatch(call: &Call, body: RequestBody, upgrade: &mut http::Extensions) -> ApiResult<Reply> {
    if let Some(backend) = call.core.aggregation.route(&call.info) {
        return aggregation::proxy::forward(call, &backend, body, upgrade).await;
    }
    if !call.info.is_resource {
        return other(call).await;
    }
    let registry = call.core.registry.load_full();
    let info = &call.info;
    let Some(served) = registry.find(&info.group, &info.version, &info.resource) else {
        return Err(ApiError::unknown_resource());
    };
    let shows_its_own_kind = served.sub(&info.subresource).is_none_or(|sub| sub.kind.is_none());
    if let Some(text) = served.deprecation.as_deref().filter(|_| shows_its_own_kind) {
        call.warn(text);
    }
    if served.namespaced
        && info.namespace.is_empty()
        && !matches!(info.verb, "list" | "watch" | "deletecollection")
        && (info.verb != "create" || served.has_verb("get"))
    {
        return Err(ApiError::unknown_resource());
    }
    if !served.namespaced && !info.namespace.is_empty() && &*served.plural != "namespaces" {
        return Err(ApiError::unknown_resource());
    }
    if !info.subresource.is_empty() {
        return subresource::handle(call, served, body, upgrade).await;
    }
    if !served.has_verb(info.verb) {
        return Err(ApiError::method_not_supported(served.group_resource(), info.verb));
    }
    if info.name.is_empty() && matches!(info.verb, "update" | "patch") {
        return Err(ApiError::method_not_allowed());
    }
    main(call, served, body).await
}

async fn main(call: &Call, served: &Arc<Served>, body: RequestBody) -> ApiResult<Reply> {
    let is_virtual = served.stored.builtin.is_some_and(|row| row.is_virtual());
    if is_virtual {
        let bytes = body::read(&call.headers, body).await?;
        return crate::review::handle(call, served, bytes).await;
    }
    match call.info.verb {
        "get" => list::get(call, served).await,
        "list" => list::list(call, served).await,
        "watch" => watch::watch(call, served).await,
        "create" => {
            if !call.info.name.is_empty() {
                return Err(ApiError::method_not_allowed());
            }
            let bytes = body::read(&call.headers, body).await?;
            create::create(call, served, bytes).await
        }
        "update" => {
            let bytes = body::read(&call.headers, body).await?;
            update::update(call, served, &write::MAIN, bytes).await
        }
        "patch" => {
            let bytes = body::read(&call.headers, body).await?;
            patch::patch(call, served, &write::MAIN, bytes).await
        }
        "delete" => {
            let bytes = body::read(&call.headers, body).await?;
            delete::delete(call, served, &bytes).await
        }
        "deletecollection" => {
            let bytes = body::read(&call.headers, body).await?;
            delete::collection(call, served, &bytes).await
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// Paths that are not resources.
async fn other(call: &Call) -> ApiResult<Reply> {
    let path = call.info.path.trim_end_matches('/');
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    if !matches!(call.method, Method::GET | Method::HEAD) {
        return Err(ApiError::method_not_allowed());
    }
    match parts.as_slice() {
        [""] => Ok(body::json_reply(StatusCode::OK, &paths(call))),
        ["version"] => Ok(body::json_reply(StatusCode::OK, &health::version())),
        [endpoint @ ("healthz" | "livez" | "readyz"), single @ ..] => {
            health::check(call, endpoint, &single.join("/")).ok_or_else(ApiError::unknown_resource)
        }
        ["metrics"] => Ok(body::reply(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            call.core.metrics.render(&call.core),
        )),
        ["api"] => discovery::root(call, true),
        ["apis"] => discovery::root(call, false),
        ["api", version] => discovery::version(call, "", version),
        ["apis", group] => discovery::group(call, group),
        ["apis", group, version] => discovery::version(call, group, version),
        ["openapi", rest @ ..] => crate::openapi::handle(call, rest),
        [".well-known", "openid-configuration"] => openid(call, |docs| &docs.0),
        ["openid", "v1", "jwks"] => openid(call, |docs| &docs.1),
        _ => Err(ApiError::unknown_resource()),
    }
}

fn openid(
    call: &Call,
    pick: fn(&(serde_json::Value, serde_json::Value)) -> &serde_json::Value,
) -> ApiResult<Reply> {
    let documents = call.core.config.openid.as_ref().ok_or_else(ApiError::unknown_resource)?;
    Ok(body::json_reply(StatusCode::OK, pick(documents)))
}

/// The paths that `/` lists.
fn paths(call: &Call) -> serde_json::Value {
    let mut all: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .to_vec();
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
    serde_json::json!({ "paths": all })
}
