//! What traces say of requests: a span for each that a known caller sends, and in it one for the verb. The names and
//! attributes are upstream's, which are OpenTelemetry's for HTTP.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header, request::Parts};
use yare_auth::{
    User,
    config::tracing::{Endpoint, TracingConfiguration},
};
use yare_grpc::Client;
pub use yare_trace::Tracer;
use yare_trace::{Context, DELAY, Kind, Parent, Source, Span};

use crate::{
    core::{Call, Clock, Core, Random},
    metrics::Labels,
    options::APPLY_PATCH,
    outbound::{
        USER_AGENT,
        egress::{Egress, Network},
    },
    path::RequestInfo,
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Whose traces go on here as they began elsewhere; all others' begin anew.
const TRUSTED: [&str; 2] = ["system:masters", "system:monitoring"];
/// What goes out at the end may take so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

struct Seat {
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
}

impl Source for Seat {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.clock.now().as_nanosecond()).unwrap_or(0)
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.random.fill(bytes);
    }
}

/// Begins to send traces. `server`: which server this is. `delay`: how long spans wait for others to go with them;
/// absent: as OpenTelemetry has it.
pub fn start(
    configuration: &TracingConfiguration,
    server: &str,
    egress: Option<&Egress>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    delay: Option<Duration>,
) -> Tracer {
    let collector = match configuration.place() {
        Endpoint::Socket(path) => Client::unix(path),
        Endpoint::Address(authority) => match egress.and_then(|e| e.route(Network::ControlPlane)) {
            None => Client::tcp(&authority),
            Some(route) => Client::dialing(move || {
                let (route, authority) = (route.clone(), authority.clone());
                async move {
                    let (host, port) = host_port(&authority);
                    let port = port
                        .ok_or_else(|| format!("dial tcp: address {authority}: missing port in address"))?;
                    route.open(host, port).await
                }
            }),
        },
    };
    let resource = [("service.name", "apiserver"), ("service.instance.id", server)];
    let rate = configuration.sampling_rate_per_million.and_then(|rate| u32::try_from(rate).ok());
    let seat = Arc::new(Seat { clock, random });
    let collector = collector.user_agent(USER_AGENT);
    Tracer::start(collector, &resource, rate.unwrap_or(0), seat, delay.unwrap_or(DELAY))
}

/// What is known of a request before it is carried out.
pub(crate) struct Seen<'a> {
    pub core: &'a Core,
    pub parts: &'a Parts,
    pub info: &'a RequestInfo,
    pub received: tokio::time::Instant,
    pub peer: Option<IpAddr>,
    pub id: &'a HeaderValue,
}

/// The span of a request by `user`.
pub(crate) fn request(tracer: &Tracer, seen: &Seen<'_>, user: &User) -> Span {
    let Seen { core, parts, info, received, peer, id } = seen;
    let context = Context::of(&parts.headers);
    let trusted = user.groups.iter().any(|group| TRUSTED.contains(&group.as_str()));
    let parent = match &context {
        None => Parent::None,
        Some(context) if trusted => Parent::Of(context),
        Some(context) => Parent::Linked(context),
    };
    let now = core.now().as_nanosecond();
    let passed = i128::try_from(received.elapsed().as_nanos()).unwrap_or(0);
    let mut span =
        tracer.server(&name(&parts.method, info), parent, u64::try_from(now - passed).unwrap_or(0));
    if !span.is_recorded() {
        return span;
    }
    let secure = core.config.tls.is_some();
    let host = text(&parts.headers, &header::HOST)
        .or_else(|| parts.uri.authority().map(|authority| authority.as_str()))
        .unwrap_or_default();
    let (host, port) = host_port(host);
    span.set("server.address", host);
    span.set("http.request.method", parts.method.as_str());
    span.set("url.scheme", if secure { "https" } else { "http" });
    if let Some(port) = port.filter(|port| *port != if secure { 443 } else { 80 }) {
        span.set("server.port", i64::from(port));
    }
    let peer = peer.map(|peer| peer.to_string());
    if let Some(peer) = &peer {
        span.set("network.peer.address", peer.as_str());
    }
    if let Some(agent) = text(&parts.headers, &header::USER_AGENT) {
        span.set("user_agent.original", agent);
    }
    let forwarded = text(&parts.headers, &FORWARDED_FOR).and_then(|list| list.split(',').next());
    if let Some(client) = forwarded.or(peer.as_deref()) {
        span.set("client.address", client.trim());
    }
    span.set("url.path", parts.uri.path());
    span.set("network.protocol.version", if parts.version == Version::HTTP_2 { "2" } else { "1.1" });
    span.set("http.target", parts.uri.path_and_query().map_or("/", |target| target.as_str()));
    span.set("audit-id", id.to_str().unwrap_or_default());
    span
}

/// How it was answered.
pub(crate) fn answered(span: &mut Span, code: u16, bytes: u64) {
    if bytes > 0 {
        span.set("http.response.body.size", i64::try_from(bytes).unwrap_or(i64::MAX));
    }
    span.set("http.response.status_code", i64::from(code));
    if code >= 500 {
        span.failed("");
    }
}

/// The span of a verb, in the request's.
pub(crate) fn verb(call: &Call, id: &HeaderValue) -> Option<Span> {
    let name = match call.info.verb {
        "get" => "Get",
        "list" => "List",
        "create" => "Create",
        "update" => "Update",
        "patch" => "Patch",
        "delete" | "deletecollection" => "Delete",
        _ => return None,
    };
    call.core.config.tracer.as_ref()?;
    let info = &call.info;
    let header = |name| text(&call.headers, name).unwrap_or_default();
    let apply = header(&header::CONTENT_TYPE) == APPLY_PATCH;
    let labels = Labels::new(&call.method, info, &call.query, apply, true);
    // What becomes something else has no span of its own.
    if labels.verb() == "CONNECT" {
        return None;
    }
    let mut span = yare_trace::child(name, Kind::Internal).filter(Span::is_recorded)?;
    span.set("accept", header(&header::ACCEPT));
    span.set("audit-id", id.to_str().unwrap_or_default());
    span.set("client", call.peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string()));
    span.set("api-group", info.group.as_str());
    span.set("api-version", info.version.as_str());
    span.set("name", info.name.as_str());
    span.set("subresource", info.subresource.as_str());
    span.set("namespace", info.namespace.as_str());
    span.set("protocol", if call.version == Version::HTTP_2 { "HTTP/2.0" } else { "HTTP/1.1" });
    span.set("resource", info.resource.as_str());
    span.set("scope", labels.scope());
    span.set("url", info.path.as_str());
    span.set("user-agent", header(&header::USER_AGENT));
    span.set("verb", labels.verb());
    Some(span)
}

/// `GET /api/v1/namespaces/{:namespace}/pods/{:name}`: what is asked for, without the names in it.
fn name(method: &Method, info: &RequestInfo) -> String {
    if !info.is_resource {
        return method.to_string();
    }
    let mut name = format!("{method} {}", if info.group.is_empty() { "/api" } else { "/apis" });
    let mut step = |part: &str| {
        if !part.is_empty() {
            name.push('/');
            name.push_str(part);
        }
    };
    step(&info.group);
    step(&info.version);
    if !info.namespace.is_empty() {
        step("namespaces");
        step("{:namespace}");
    }
    step(&info.resource);
    if !info.name.is_empty() {
        step("{:name}");
    }
    step(&info.subresource);
    name
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().filter(|text| !text.is_empty())
}

/// A host without brackets, and the port if it is said.
fn host_port(authority: &str) -> (&str, Option<u16>) {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()),
        _ => (authority, None),
    };
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Query;

    #[test]
    fn names() {
        for (method, uri, expected) in [
            (Method::GET, "/healthz", "GET"),
            (Method::GET, "/api/v1/pods", "GET /api/v1/pods"),
            (Method::GET, "/api/v1/namespaces", "GET /api/v1/namespaces"),
            (Method::POST, "/api/v1/namespaces/a/pods", "POST /api/v1/namespaces/{:namespace}/pods"),
            (
                Method::PUT,
                "/apis/apps/v1/namespaces/a/deployments/b/status",
                "PUT /apis/apps/v1/namespaces/{:namespace}/deployments/{:name}/status",
            ),
            (Method::GET, "/api/v1/nodes/n", "GET /api/v1/nodes/{:name}"),
        ] {
            let uri = uri.parse().unwrap();
            let info = RequestInfo::parse(&method, &uri, &Query::parse(None));
            assert_eq!(name(&method, &info), expected);
        }
    }

    #[test]
    fn hosts() {
        for (text, expected) in [
            ("a", ("a", None)),
            ("a:6443", ("a", Some(6443))),
            ("10.0.0.1:443", ("10.0.0.1", Some(443))),
            ("[::1]:6443", ("::1", Some(6443))),
            ("[::1]", ("::1", None)),
            ("::1", ("::1", None)),
            ("", ("", None)),
        ] {
            assert_eq!(host_port(text), expected, "{text}");
        }
    }
}
