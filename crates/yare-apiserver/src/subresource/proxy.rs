//! `proxy` of nodes, pods and services, and the forwarding that all streams share: a connection of its own per
//! request, headers passed on, and after an upgrade bytes spliced both ways.

use std::{net::IpAddr, sync::Arc};

use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::oneshot;
use yare_kinds::view::View;

use crate::{
    body::{Body, Reply, RequestBody},
    core::{Call, Core},
    outbound::{self, Dialer, egress::Network, shown::Kubelets},
    registry::Served,
    status::{ApiError, ApiResult, GroupResource},
    subresource::{kubelet, page::Place},
};

/// The addresses a request came through, the client's first.
const FORWARDED_FOR: &str = "x-forwarded-for";
/// Headers that are between two neighbours only (RFC 9110, 7.6.1).
const HOP_BY_HOP: [&str; 7] = [
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "proxy-connection",
];

/// Something to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// A kubelet: the server shows its client certificate.
    pub kubelet: bool,
    /// Over TLS.
    pub tls: bool,
}

/// Percent-encodes a query value.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Proxies to a node's kubelet, a pod's port or a service's endpoint.
pub async fn handle(
    call: &Call,
    served: &Arc<Served>,
    body: RequestBody,
    upgrade: &mut Extensions,
) -> ApiResult<Reply> {
    let info = &call.info;
    let (scheme, name, port) = split_name(&info.name)?;
    let mut endpoint = match &*served.plural {
        "nodes" => node(call, name, port)?,
        "pods" => pod(call, scheme, name, port)?,
        _ => choose(&call.core, &call.info.namespace, name, port, |e| is_pod(call, e))?,
    };
    if !scheme.is_empty() && !endpoint.kubelet {
        endpoint.tls = scheme == "https";
    }
    // `…/proxy` without a slash is a page whose relative links would go astray.
    if info.rest.is_empty() && !info.path.ends_with('/') && matches!(call.method, Method::GET | Method::HEAD)
    {
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        let query = call.query_text().map(|q| format!("?{q}")).unwrap_or_default();
        if let Ok(location) = HeaderValue::from_str(&format!("{}/{query}", info.path)) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        return Ok(response);
    }
    let mut target = format!("/{}", info.rest);
    if let Some(query) = call.query_text() {
        target.push('?');
        target.push_str(query);
    }
    let prefix = info.path.strip_suffix(&info.rest).unwrap_or(&info.path).trim_end_matches('/');
    let place = Place {
        prefix: prefix.to_owned(),
        backend: outbound::authority(&endpoint.host, endpoint.port),
        requested: call.host().unwrap_or_default().to_owned(),
    };
    let page = HeaderValue::from_str(&info.path).map_err(ApiError::internal)?;
    let decorate = |headers: &mut HeaderMap| {
        headers.insert("x-forwarded-uri", page);
        // Backends that have several names are asked for the one that the client asked for.
        if let Some(host) = call.host().and_then(|h| HeaderValue::from_str(h).ok()) {
            headers.insert(header::HOST, host);
        }
        // Behind those of the proxies before this one.
        let before = headers.get_all(FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok());
        let chain = before.map(str::to_owned).chain(call.peer.map(|ip| ip.to_string())).collect::<Vec<_>>();
        if let Ok(chain) = HeaderValue::from_str(&chain.join(", "))
            && !chain.is_empty()
        {
            headers.insert(FORWARDED_FOR, chain);
        }
    };
    let reply = send(call, &endpoint, call.method.clone(), &target, body, upgrade, decorate).await?;
    if reply.status() == StatusCode::SWITCHING_PROTOCOLS { Ok(reply) } else { place.rewrite(reply).await }
}

/// `[scheme:]name[:port]`
fn split_name(text: &str) -> ApiResult<(&str, &str, &str)> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [name] => Ok(("", name, "")),
        [name, port] => Ok(("", name, port)),
        [scheme @ ("http" | "https" | ""), name, port] => Ok((scheme, name, port)),
        _ => Err(ApiError::bad_request(format!("invalid proxy request {text:?}"))),
    }
}

fn node(call: &Call, name: &str, port: &str) -> ApiResult<Endpoint> {
    let mut endpoint = kubelet::node_endpoint(call, name)?;
    if let Ok(port) = port.parse::<u16>()
        && port != endpoint.port
    {
        endpoint.port = port;
        endpoint.kubelet = false;
        endpoint.tls = false;
    }
    Ok(endpoint)
}

fn pod(call: &Call, scheme: &str, name: &str, port: &str) -> ApiResult<Endpoint> {
    let namespace = &call.info.namespace;
    let Some(pod) = call.core.read("pods", &format!("{namespace}/{name}")) else {
        return Err(ApiError::not_found(GroupResource { group: "", resource: "pods" }, name));
    };
    let host = pod.str_at("status.podIP").to_owned();
    if !host.parse().is_ok_and(is_global_unicast) {
        return Err(ApiError::bad_request("address not allowed"));
    }
    let ports = || pod.items("spec.containers").iter().flat_map(|c| c.items("ports"));
    let number = if port.is_empty() {
        ports().next().map_or(if scheme == "https" { 443 } else { 80 }, |p| p.int_at("containerPort"))
    } else {
        port.parse::<i64>()
            .ok()
            .or_else(|| ports().find(|p| p.str_at("name") == port).map(|p| p.int_at("containerPort")))
            .ok_or_else(|| ApiError::bad_request(format!("pod {name} has no port {port:?}")))?
    };
    Ok(Endpoint { host, port: u16::try_from(number).unwrap_or(0), kubelet: false, tls: false })
}

/// Whether pods may have the address: not this machine's own, nor one that means many.
fn is_global_unicast(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_link_local)
}

/// Whether an endpoint is a pod that has this address: whoever may write endpoints must not make the server
/// call just anybody.
fn is_pod(call: &Call, endpoint: &Value) -> bool {
    let target = endpoint.at("targetRef");
    let namespace = &call.info.namespace;
    if target.str_at("kind") != "Pod" || target.str_at("namespace") != namespace {
        return false;
    }
    let Some(pod) = call.core.read("pods", &format!("{namespace}/{}", target.str_at("name"))) else {
        return false;
    };
    let has = |address: &str| pod.items("status.podIPs").iter().any(|ip| ip.str_at("ip") == address);
    endpoint.strings("addresses").first().is_some_and(|a| has(a))
}

/// A ready endpoint of a service, chosen at random. `port`: name or number; empty: the only one.
pub fn service_endpoint(core: &Core, namespace: &str, name: &str, port: &str) -> ApiResult<Endpoint> {
    choose(core, namespace, name, port, |_| true)
}

/// The same among the endpoints that `may` be.
fn choose(
    core: &Core,
    namespace: &str,
    name: &str,
    port: &str,
    may: impl Fn(&Value) -> bool,
) -> ApiResult<Endpoint> {
    let unavailable = |why: &str| ApiError::unavailable(format!("{why} for service {name:?}"));
    let Some(service) = core.read("services", &format!("{namespace}/{name}")) else {
        return Err(ApiError::not_found(GroupResource { group: "", resource: "services" }, name));
    };
    let ports = service.items("spec.ports");
    let chosen = if port.is_empty() {
        ports.first().filter(|_| ports.len() == 1)
    } else {
        ports.iter().find(|p| p.str_at("name") == port || p.int_at("port").to_string() == port)
    };
    let Some(chosen) = chosen else { return Err(unavailable(&format!("no service port {port:?} found"))) };
    let port_name = chosen.str_at("name");
    let snapshot = core.store().snapshot("discovery.k8s.io/endpointslices");
    let mut found: Vec<Endpoint> = Vec::new();
    for slice in snapshot.range(std::ops::Bound::Unbounded, &format!("{namespace}/")) {
        if slice.attrs.label("kubernetes.io/service-name") != Some(name) {
            continue;
        }
        let Ok(slice) = serde_json::from_slice::<Value>(&slice.bytes) else { continue };
        let Some(port) = slice
            .items("ports")
            .iter()
            .find(|p| p.str_at("name") == port_name)
            .and_then(|p| u16::try_from(p.int_at("port")).ok())
        else {
            continue;
        };
        for endpoint in slice.items("endpoints") {
            if endpoint.bool_opt("conditions.ready").unwrap_or(true) && may(endpoint) {
                found.extend(endpoint.strings("addresses").first().map(|a| Endpoint {
                    host: (*a).to_owned(),
                    port,
                    kubelet: false,
                    tls: false,
                }));
            }
        }
    }
    if found.is_empty() {
        return Err(unavailable("no endpoints available"));
    }
    let mut byte = [0u8; 2];
    core.config.random.fill(&mut byte);
    let at = usize::from(u16::from_le_bytes(byte)) % found.len();
    Ok(found.swap_remove(at))
}

/// Sends the request on and brings the answer back. An answer of 101 connects the two ends for good.
pub async fn forward(
    call: &Call,
    endpoint: &Endpoint,
    method: Method,
    target: &str,
    body: RequestBody,
    upgrade: &mut Extensions,
) -> ApiResult<Reply> {
    send(call, endpoint, method, target, body, upgrade, |_| {}).await
}

/// The same with headers that `decorate` sets last.
async fn send(
    call: &Call,
    endpoint: &Endpoint,
    method: Method,
    target: &str,
    body: RequestBody,
    upgrade: &mut Extensions,
    decorate: impl FnOnce(&mut HeaderMap),
) -> ApiResult<Reply> {
    let place = format!("{}:{}", endpoint.host, endpoint.port);
    let failed =
        |e: &dyn std::fmt::Display| ApiError::unavailable(format!("error trying to reach {place}: {e}"));
    let uri: Uri = target.parse().map_err(|_| ApiError::bad_request(format!("{target:?} is not a path")))?;
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let wants_upgrade = call.headers.contains_key(header::UPGRADE) && upgrade.get::<OnUpgrade>().is_some();
    copy_headers(&call.headers, request.headers_mut(), wants_upgrade);
    let host =
        HeaderValue::from_str(&outbound::authority(&endpoint.host, endpoint.port)).map_err(|e| failed(&e))?;
    request.headers_mut().insert(header::HOST, host);
    decorate(request.headers_mut());
    let dialer = if endpoint.tls {
        let tls =
            if endpoint.kubelet {
                call.core.config.kubelets.as_ref().map(Kubelets::tls).ok_or_else(|| {
                    ApiError::unavailable("this server has no client certificate for kubelets")
                })?
            } else {
                yare_auth::tls::unverified().map_err(ApiError::internal)?
            };
        Dialer::tls(tls, &endpoint.host).map_err(|e| failed(&e))?
    } else {
        Dialer::plain()
    };
    let dialer = dialer.through(call.core.config.route(Network::Cluster));
    let stream = dialer.connect(&endpoint.host, endpoint.port).await.map_err(|e| failed(&e))?;
    let mut response = outbound::exchange(stream.io(), request).await.map_err(|e| failed(&e))?;
    let mut reply = Response::new(Body::default());
    *reply.status_mut() = response.status();
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    copy_headers(response.headers(), reply.headers_mut(), switching);
    if switching {
        let Some(client) = upgrade.remove::<OnUpgrade>() else {
            return Err(ApiError::bad_request("this connection cannot be upgraded"));
        };
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(splice(client, backend, call.take_over()));
        return Ok(reply);
    }
    *reply.body_mut() = Body::foreign(response.into_body());
    Ok(reply)
}

/// Copies bytes both ways until either side ends. `_open`: dropped then.
pub async fn splice(client: OnUpgrade, backend: OnUpgrade, _open: oneshot::Sender<()>) {
    let (Ok(client), Ok(backend)) = tokio::join!(client, backend) else { return };
    let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
    // Either side may go at any time; that is how these streams end.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
}

/// Copies headers that go beyond two neighbours, without credentials.
pub fn copy_headers(from: &HeaderMap, to: &mut HeaderMap, upgrade: bool) {
    let listed = from.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let listed: Vec<String> =
        listed.flat_map(|names| names.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect();
    for (name, value) in from {
        // What a side says is between it and its neighbour goes no further.
        let neighbours = !is_connection(name) && listed.iter().any(|listed| listed == name.as_str());
        let skip = neighbours
            || HOP_BY_HOP.contains(&name.as_str())
            || *name == header::AUTHORIZATION
            || name.as_str().starts_with("impersonate-")
            || *name == header::HOST
            || (!upgrade && is_connection(name));
        if !skip {
            to.append(name.clone(), value.clone());
        }
    }
}

fn is_connection(name: &HeaderName) -> bool {
    *name == header::CONNECTION || *name == header::UPGRADE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(split_name("a").ok(), Some(("", "a", "")));
        assert_eq!(split_name("a:80").ok(), Some(("", "a", "80")));
        assert_eq!(split_name("https:a:443").ok(), Some(("https", "a", "443")));
        assert!(split_name("ftp:a:1").is_err());
        assert_eq!(encode("a b/ü"), "a%20b%2F%C3%BC");
    }

    #[test]
    fn addresses() {
        for (ip, may) in [
            ("10.42.0.3", true),
            ("fd00::3", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("255.255.255.255", false),
            ("224.0.0.1", false),
            ("::1", false),
            ("fe80::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_global_unicast(ip.parse().unwrap()), may, "{ip}");
        }
    }
}
