//! Sends a request on to the server that its version belongs to, under the name of whoever sent it.
//!
//! What comes in is streamed, as is what comes back: watches, bodies of any size, and after an upgrade the
//! bytes of both sides. Errors of this step are plain text, as upstream's are, so that a client can tell them
//! from the other server's own.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;

use super::{backend::Backend, resolve};
use crate::{
    auth::User,
    body::{self, Body, Reply, RequestBody},
    core::Call,
    status::{ApiError, ApiResult},
    subresource::proxy::{copy_headers, splice},
    trace,
};

/// How long a server may take over its list of resources, for which clients ask at every turn.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(5);

const USER: HeaderName = HeaderName::from_static("x-remote-user");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA_PREFIX: &str = "x-remote-extra-";
const FORWARDED_FOR: &str = "x-forwarded-for";

/// An answer of this server in plain text.
fn plain(code: StatusCode, text: &str) -> Reply {
    let mut reply = body::text_reply(code, format!("{text}\n"));
    reply.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

/// Names the user in headers that only the front proxy's certificate gives weight to. Whatever a client put
/// there is gone.
pub fn identify(headers: &mut HeaderMap, user: &User) {
    let forged: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-remote-")).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
    let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).ok();
    if let Some(name) = value(&user.name) {
        headers.insert(USER, name);
    }
    if !user.uid.is_empty()
        && let Some(uid) = value(&user.uid)
    {
        headers.insert(UID, uid);
    }
    for group in user.groups.iter().filter_map(|g| value(g)) {
        headers.append(GROUP, group);
    }
    for (key, values) in &user.extra {
        let Ok(name) = HeaderName::try_from(format!("{EXTRA_PREFIX}{}", escape(key))) else { continue };
        for value in values.iter().filter_map(|v| value(v)) {
            headers.append(name.clone(), value);
        }
    }
}

/// A key as part of a header's name: what may not stand there is percent-encoded.
fn escape(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
        // Names arrive in lower case: an upper-case letter would come out as another key.
        if plain && !byte.is_ascii_uppercase() {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Says what becomes of the request in which audit's records, and whom it comes from. `host`: where it goes to; absent
/// where the connection becomes the client's own, of which upstream says less.
fn say_where_from(headers: &mut HeaderMap, call: &Call, host: Option<&str>) {
    let mut say = |name: &'static str, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    say("audit-id", call.audit_id());
    if let Some(peer) = call.peer {
        let before = call.headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        let all: Vec<String> = before.map(str::to_owned).chain([peer.to_string()]).collect();
        say(FORWARDED_FOR, &all.join(", "));
    }
    if let Some(host) = host {
        say("x-forwarded-uri", &cleaned(&call.info.path));
        say("x-forwarded-host", host);
        say("x-forwarded-proto", "https");
    }
}

/// The path without steps that lead nowhere.
fn cleaned(path: &str) -> String {
    let mut steps: Vec<&str> = Vec::new();
    for step in path.split('/') {
        match step {
            "" | "." => {}
            ".." => drop(steps.pop()),
            step => steps.push(step),
        }
    }
    let end = if path.len() > 1 && path.ends_with('/') { "/" } else { "" };
    format!("/{}{end}", steps.join("/"))
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.to_ascii_lowercase().contains("upgrade"))
}

/// Sends the request on and brings the answer back.
pub async fn forward(
    call: &Call,
    backend: &Arc<Backend>,
    body: RequestBody,
    upgrade: &mut Extensions,
) -> ApiResult<Reply> {
    if !backend.available.load(Ordering::Acquire) {
        return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "service unavailable"));
    }
    let way = backend.way(&call.core);
    let transport = match way.transport() {
        Ok(transport) => transport,
        Err(error) => return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, error)),
    };
    let targets = match resolve::targets(&call.core, &backend.service) {
        Ok(targets) => targets,
        Err(error) => {
            tracing::warn!(error, apiservice = backend.name, "cannot resolve the service of an APIService");
            return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "service unavailable"));
        }
    };
    let mut target = call.info.path.clone();
    if let Some(query) = call.query_text() {
        target.push('?');
        target.push_str(query);
    }
    let mut request = Request::new(body);
    *request.method_mut() = call.method.clone();
    *request.uri_mut() =
        target.parse().map_err(|_| ApiError::bad_request(format!("{target:?} is not a path")))?;
    let upgrading = wants_upgrade(&call.headers) && upgrade.get::<OnUpgrade>().is_some();
    copy_headers(&call.headers, request.headers_mut(), upgrading);
    identify(request.headers_mut(), &call.user);
    let host = targets.first().map(resolve::Target::authority).unwrap_or_default();
    say_where_from(request.headers_mut(), call, (!upgrading).then_some(host.as_str()));
    let mut span = trace::calls(&call.method, || {
        format!("https://{}{target}", targets.first().map(resolve::Target::authority).unwrap_or_default())
    });
    yare_trace::inside(span.as_ref().map(yare_trace::Span::active), || {
        yare_trace::inject(request.headers_mut())
    });

    let sent = async {
        if upgrading {
            transport.send_upgrade(&targets, request).await
        } else {
            transport.send(&targets, request).await
        }
    };
    let listing = !call.info.is_resource && call.info.path.trim_matches('/').split('/').count() == 3;
    let answer = if listing {
        tokio::time::timeout(DISCOVERY_TIMEOUT, sent)
            .await
            .unwrap_or_else(|_| Err("context deadline exceeded".into()))
    } else {
        sent.await
    };
    if let Some(span) = &mut span {
        trace::called(
            span,
            answer.as_ref().map(|response| response.status().as_u16()).map_err(|e| e.as_str()),
        );
    }
    let mut response = match answer {
        Ok(response) => response,
        Err(error) => {
            let what = if upgrading { "error dialing backend" } else { "error trying to reach service" };
            let text = format!("{what}: {error}");
            return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, &text));
        }
    };
    let code = response.status();
    if code.is_redirection() && response.headers().contains_key(header::LOCATION) {
        // Where it leads, the client would go with its credentials.
        let mut reply = Response::new(Body::full(
            "the backend attempted to redirect this request, which is not permitted",
        ));
        *reply.status_mut() = StatusCode::BAD_GATEWAY;
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        reply.headers_mut().insert(header::CONTENT_TYPE, text);
        return Ok(reply);
    }
    let mut reply = Response::new(Body::default());
    *reply.status_mut() = code;
    let switching = code == StatusCode::SWITCHING_PROTOCOLS;
    copy_headers(response.headers(), reply.headers_mut(), switching);
    if switching {
        let Some(client) = upgrade.remove::<OnUpgrade>() else {
            return Err(ApiError::bad_request("this connection cannot be upgraded"));
        };
        tokio::spawn(splice(client, hyper::upgrade::on(&mut response), call.take_over()));
        return Ok(reply);
    }
    *reply.body_mut() = Body::foreign(response.into_body());
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        for (path, want) in
            [("/", "/"), ("/a//b", "/a/b"), ("/a/", "/a/"), ("/a/../b/./c", "/b/c"), ("/..", "/")]
        {
            assert_eq!(cleaned(path), want);
        }
    }

    #[test]
    fn identities() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-remote-user", "root"),
            ("x-remote-group", "system:masters"),
            ("x-remote-extra-scopes", "all"),
            ("x-other", "stays"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let mut user = User::new("jürgen", &["a", "b"]);
        user.uid = "u-1".into();
        user.extra.insert("example.org/Key".into(), vec!["1".into(), "2".into()]);
        identify(&mut headers, &user);
        let all = |name: &str| {
            headers
                .get_all(name)
                .iter()
                .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
                .collect::<Vec<_>>()
                .join(",")
        };
        assert_eq!(all("x-remote-user"), "jürgen");
        assert_eq!(all("x-remote-uid"), "u-1");
        assert_eq!(all("x-remote-group"), "a,b,system:authenticated");
        assert_eq!(all("x-remote-extra-example.org%2f%4bey"), "1,2");
        assert_eq!(all("x-remote-extra-scopes"), "");
        assert_eq!(all("x-other"), "stays");
    }
}
