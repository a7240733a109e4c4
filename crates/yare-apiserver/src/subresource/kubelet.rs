//! `log`, `exec`, `attach` and `portforward` of pods: forwarded to the kubelet of the pod's node, the upgrade
//! and everything behind it untouched. Logs are a plain answer of the kubelet's; to a client that wants them over
//! WebSocket the API server brings them so.

use http::{Extensions, Method, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use yare_kinds::view::View;
use yare_schema::field::{FieldError, Path};

use crate::{
    body::{Body, Reply, RequestBody},
    core::Call,
    metrics::seldom,
    negotiate, outbound, render,
    status::{ApiError, ApiResult, GroupResource},
    subresource::{
        proxy::{self, Endpoint},
        websocket,
    },
};

/// A kubelet's refusals are read up to this size.
const REFUSAL_MAX_BYTES: usize = 64 << 10;
const PODS: GroupResource<'_> = GroupResource { group: "", resource: "pods" };

/// Which of the kubelet's streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// `/containerLogs`
    Log,
    /// `/exec`
    Exec,
    /// `/attach`
    Attach,
    /// `/portForward`
    PortForward,
}

/// Parameters of logs that the kubelet takes as they are.
const LOG_PARAMETERS: [&str; 8] =
    ["follow", "previous", "timestamps", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"];
/// What a container says on which stream.
const STREAMS: [&str; 3] = ["Stdout", "Stderr", "All"];
/// Parameters of exec and attach: the API's name and the kubelet's.
const STREAM_PARAMETERS: [(&str, &str); 4] =
    [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];

/// Forwards the request.
pub async fn handle(
    call: &Call,
    stream: Stream,
    body: RequestBody,
    upgrade: &mut Extensions,
) -> ApiResult<Reply> {
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    let counts = &call.core.metrics.seldom;
    match stream {
        Stream::Log => {
            // A client that takes text alone is refused still: upstream looks for an encoding as if of an object.
            negotiate::accept(&call.headers, &call.query, render::offer(call))?;
            // A kubelet has to prove itself, whatever the client says of that.
            counts.count(&seldom::LOGS, &["enforce_tls"]);
            check_log_options(call)?;
        }
        Stream::PortForward => check_ports(call)?,
        Stream::Exec | Stream::Attach => {}
    }
    let Some(pod) = call.core.read("pods", &format!("{namespace}/{name}")) else {
        return Err(ApiError::not_found(PODS, name));
    };
    let container = if stream == Stream::PortForward { String::new() } else { container(call, &pod)? };
    let node = pod.str_at("spec.nodeName");
    if node.is_empty() {
        if stream == Stream::Log {
            // A pod that runs nowhere has said nothing.
            let mut nothing = Response::new(Body::default());
            *nothing.status_mut() = StatusCode::NO_CONTENT;
            return Ok(nothing);
        }
        return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let endpoint = node_endpoint(call, node)?;
    let mut query: Vec<String> = Vec::new();
    let path = match stream {
        Stream::Log => {
            for parameter in LOG_PARAMETERS {
                if let Some(value) = call.query.get(parameter) {
                    query.push(format!("{parameter}={}", proxy::encode(value)));
                }
            }
            format!("/containerLogs/{namespace}/{name}/{container}")
        }
        Stream::Exec | Stream::Attach => {
            for (ours, theirs) in STREAM_PARAMETERS {
                if call.query.flag(ours) {
                    query.push(format!("{theirs}=1"));
                }
            }
            if stream == Stream::Exec {
                query.extend(call.query.all("command").map(|c| format!("command={}", proxy::encode(c))));
                format!("/exec/{namespace}/{name}/{container}")
            } else {
                format!("/attach/{namespace}/{name}/{container}")
            }
        }
        Stream::PortForward => {
            query.extend(call.query.all("ports").map(|p| format!("port={}", proxy::encode(p))));
            format!("/portForward/{namespace}/{name}")
        }
    };
    let target = if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) };
    if stream != Stream::Log {
        if websocket::requested(&call.headers) {
            counts.count(&seldom::STREAMS, &["proxied_to_kubelet", &call.info.subresource]);
        }
        return proxy::forward(call, &endpoint, call.method.clone(), &target, body, upgrade).await;
    }
    // Without the connection's upgrade: the kubelet is asked for a plain answer.
    let mut extensions = Extensions::new();
    let asked = proxy::forward(call, &endpoint, Method::GET, &target, body, &mut extensions).await;
    let mut reply = asked.inspect_err(|error| {
        if outbound::is_untrusted(&error.message) {
            counts.count(&seldom::LOGS_UNTRUSTED, &[]);
        }
    })?;
    if !reply.status().is_success() {
        return Err(refused(reply, name).await);
    }
    if websocket::requested(&call.headers) {
        return websocket::answer(&call.headers, upgrade, reply.into_body());
    }
    // Whatever the kubelet says it is, logs are text to clients.
    reply.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    Ok(reply)
}

/// A kubelet's refusal, which is text, as the `Status` that clients show.
async fn refused(reply: Reply, name: &str) -> ApiError {
    let status = reply.status();
    let text = match Limited::new(reply.into_body(), REFUSAL_MAX_BYTES).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim_end().to_owned(),
        Err(error) => format!("the kubelet answered {status}, but its message cannot be read: {error}"),
    };
    match status {
        StatusCode::BAD_REQUEST => ApiError::bad_request(text),
        StatusCode::NOT_FOUND => {
            let error = ApiError::not_found(PODS, name);
            ApiError::new(404, "NotFound", format!("{error}: {text}"))
        }
        StatusCode::INTERNAL_SERVER_ERROR => ApiError::internal(text),
        other => ApiError::unavailable(format!("the kubelet of pod {name:?} answered {other}: {text}")),
    }
}

fn check_ports(call: &Call) -> ApiResult<()> {
    match call.query.all("ports").find(|port| port.parse::<u32>().is_err()) {
        Some(port) => Err(ApiError::bad_request(format!(
            "cannot convert to []int32: strconv.ParseUint: parsing {port:?}: invalid syntax"
        ))),
        None => Ok(()),
    }
}

fn check_log_options(call: &Call) -> ApiResult<()> {
    let mut errors = Vec::new();
    let number = |name: &str| -> ApiResult<Option<i64>> {
        let parse = |text: &str| {
            text.parse::<i64>().map_err(|_| {
                ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
            })
        };
        call.query.get(name).map(parse).transpose()
    };
    let (tail, limit, since) = (number("tailLines")?, number("limitBytes")?, number("sinceSeconds")?);
    let mut at_least = |name: &str, value: Option<i64>, least: i64, why: &str| {
        if let Some(value) = value.filter(|value| *value < least) {
            errors.push(FieldError::invalid(&Path::new(name), value, why));
        }
    };
    at_least("tailLines", tail, 0, "must be greater than or equal to 0");
    at_least("limitBytes", limit, 1, "must be greater than 0");
    if call.query.get("sinceTime").is_none() {
        at_least("sinceSeconds", since, 1, "must be greater than 0");
    } else if since.is_some() {
        errors.push(FieldError::forbidden(
            &Path::WHOLE,
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    let wanted = call.query.get("stream");
    if call.core.config.gates.is_on("PodLogsQuerySplitStreams") {
        let wanted = wanted.unwrap_or("All");
        if !STREAMS.contains(&wanted) {
            errors.push(FieldError::not_listed(&Path::new("stream"), wanted, &STREAMS));
        }
        if wanted != "All" && tail.is_some() {
            const WHY: &str = "`tailLines` and specific `stream` are mutually exclusive for now";
            errors.push(FieldError::forbidden(&Path::WHOLE, WHY));
        }
    } else if wanted.is_some() {
        errors.push(FieldError::forbidden(&Path::new("stream"), "may not be specified"));
    }
    let kind = GroupResource { group: "", resource: "PodLogOptions" };
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(kind, &call.info.name, &errors)) }
}

/// The container that is meant: named, or the only one there is.
fn container(call: &Call, pod: &Value) -> ApiResult<String> {
    let name = call.info.name.as_str();
    let names = |path: &str| -> Vec<&str> { pod.items(path).iter().map(|c| c.str_at("name")).collect() };
    let main = names("spec.containers");
    let init = names("spec.initContainers");
    match call.query.get("container") {
        Some(wanted) => {
            let ephemeral = names("spec.ephemeralContainers");
            if [&main, &init, &ephemeral].iter().any(|list| list.contains(&wanted)) {
                return Ok(wanted.to_owned());
            }
            Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {name}")))
        }
        None => match main.as_slice() {
            [one] => Ok((*one).to_owned()),
            [] => Err(ApiError::bad_request(format!("a container name must be specified for pod {name}"))),
            _ => {
                let all = [init, main, names("spec.ephemeralContainers")].concat().join(" ");
                Err(ApiError::bad_request(format!(
                    "a container name must be specified for pod {name}, choose one of: [{all}]"
                )))
            }
        },
    }
}

/// Where a node's kubelet listens.
pub fn node_endpoint(call: &Call, name: &str) -> ApiResult<Endpoint> {
    let Some(node) = call.core.read("nodes", name) else {
        // As upstream says it, which looks for the node in the name of what was asked for.
        let what = GroupResource { group: &call.info.group, resource: &call.info.resource };
        return Err(ApiError::not_found(what, name));
    };
    let address = call.core.config.kubelet_addresses.iter().find_map(|kind| {
        node.items("status.addresses")
            .iter()
            .find(|a| a.str_at("type") == kind)
            .map(|a| a.str_at("address").to_owned())
    });
    let Some(host) = address else {
        return Err(ApiError::internal(format!(
            "no preferred addresses found; known addresses of node {name}: []"
        )));
    };
    let port = u16::try_from(node.int_at("status.daemonEndpoints.kubeletEndpoint.Port")).unwrap_or(0);
    Ok(Endpoint { host, port: if port == 0 { 10250 } else { port }, kubelet: true, tls: true })
}
