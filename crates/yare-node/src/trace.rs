//! Traces of the agent's work (`tracing` in the configuration): looks at pods, calls of the container runtime, requests
//! to the agent's API. Names and attributes are upstream's, which are OpenTelemetry's where it has some.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, Request, header};
use jiff::Timestamp;
use ring::rand::SecureRandom as _;
use yare_auth::config::tracing::Endpoint;
use yare_grpc::{Client, Ended, Observer, Status, code_name};
use yare_schema::kubernetes_minor;
use yare_trace::{Context, DELAY, Kind, Parent, Source, Span};

pub use yare_trace::Tracer;

use crate::config::Configuration;
use crate::view::Pod;

/// What the agent's collector is told of who sends.
const USER_AGENT: &str = concat!("yare-kubelet/", kubernetes_minor!());

struct Machine(ring::rand::SystemRandom);

impl Source for Machine {
    fn now_ns(&self) -> u64 {
        u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0)
    }

    fn fill(&self, bytes: &mut [u8]) {
        // The kernel always has some; names that are all zero are mended by who asks.
        let _ = self.0.fill(bytes);
    }
}

/// Begins to send traces, where the configuration says so. Must be called within a tokio runtime.
pub fn start(configuration: &Configuration, node_name: &str) -> Option<Tracer> {
    let tracing = &configuration.settings().tracing;
    if tracing.endpoint.is_none() && tracing.sampling_rate_per_million.is_none() {
        return None;
    }
    let collector = match tracing.place() {
        Endpoint::Socket(path) => Client::unix(path),
        Endpoint::Address(authority) => Client::tcp(&authority),
    };
    let resource = [("service.name", "kubelet"), ("host.name", node_name)];
    let rate = tracing.sampling_rate_per_million.and_then(|rate| u32::try_from(rate).ok()).unwrap_or(0);
    let source = Arc::new(Machine(ring::rand::SystemRandom::new()));
    Some(Tracer::start(collector.user_agent(USER_AGENT), &resource, rate, source, DELAY))
}

/// Has calls of a runtime behind CRI traced, and the runtime told which span each belongs to.
pub fn of_runtime(tracer: &Tracer) -> Arc<dyn Observer> {
    Arc::new(Calls(tracer.clone()))
}

struct Calls(Tracer);

impl Observer for Calls {
    fn begins(&self, method: &'static str, headers: &mut HeaderMap) -> Ended {
        let name = method.trim_start_matches('/');
        let mut span = self.0.own(name, Kind::Client);
        span.set("rpc.method", name);
        span.set("rpc.system.name", "grpc");
        span.inject(headers);
        Box::new(move |status: Option<&Status>| {
            if let Some(status) = status {
                span.failed(status.message());
            }
            let code = status.map_or("OK", |status| code_name(status.code()));
            span.set("rpc.response.status_code", shouted(code));
        })
    }
}

/// `DeadlineExceeded` as OpenTelemetry has it, `DEADLINE_EXCEEDED`.
fn shouted(code: &str) -> String {
    if code == "OK" {
        return code.to_owned();
    }
    let mut text = String::with_capacity(code.len() + 4);
    for c in code.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    // The only one that is spelled differently there.
    if text == "CANCELED" { "CANCELLED".to_owned() } else { text }
}

/// The span of a look at a pod.
pub(crate) fn of_pod(tracer: &Tracer, pod: &Pod, leaves: bool, kind: &'static str) -> Span {
    let m = &pod.metadata;
    let mut span = tracer.own(if leaves { "syncTerminatingPod" } else { "syncPod" }, Kind::Internal);
    if span.is_recorded() {
        span.set("k8s.pod.uid", m.uid.as_str());
        span.set("k8s.pod", format!("{}/{}", m.namespace, m.name));
        span.set("k8s.pod.name", m.name.as_str());
        if !leaves {
            span.set("k8s.pod.update_type", kind);
        }
        span.set("k8s.namespace.name", m.namespace.as_str());
    }
    span
}

/// The span of a request to the agent's API, on a path of this form. Everybody may come to the main port: what is
/// traced elsewhere is only mentioned there.
pub(crate) fn of_request<B>(
    tracer: &Tracer,
    request: &Request<B>,
    route: &str,
    peer: Option<IpAddr>,
    is_public: bool,
) -> Span {
    let context = Context::of(request.headers());
    let parent = match &context {
        None => Parent::None,
        Some(context) if is_public => Parent::Linked(context),
        Some(context) => Parent::Of(context),
    };
    let now = u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0);
    let mut span = tracer.server(route, parent, now);
    if !span.is_recorded() {
        return span;
    }
    span.set("server.address", "kubelet");
    span.set("http.request.method", request.method().as_str());
    span.set("url.scheme", if is_public { "https" } else { "http" });
    if let Some(peer) = peer {
        span.set("network.peer.address", peer.to_string());
        span.set("client.address", peer.to_string());
    }
    if let Some(agent) = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()) {
        span.set("user_agent.original", agent);
    }
    span.set("url.path", request.uri().path());
    span.set("network.protocol.version", "1.1");
    span.set("http.route", route);
    span
}

/// How a request was answered.
pub(crate) fn answered(span: &mut Span, code: http::StatusCode) {
    span.set("http.response.status_code", i64::from(code.as_u16()));
    if code.is_server_error() {
        span.failed("");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        for (code, want) in [
            ("OK", "OK"),
            ("Canceled", "CANCELLED"),
            ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
            ("Unavailable", "UNAVAILABLE"),
        ] {
            assert_eq!(shouted(code), want);
        }
    }
}
