//! Subresources. [`TABLE`] says what each one does; a row is found by the name and, where it matters, the
//! resource. What is only another way to update an object is a [`Target`]; the rest has a file of its own.

use std::sync::Arc;

use http::{Extensions, Method};
use yare_kinds::view::ViewMut;

use crate::{
    admission::{self, Attributes, Operation},
    body::{Reply, RequestBody},
    core::Call,
    negotiate,
    path::percent_decode,
    registry::Served,
    status::{ApiError, ApiResult},
    verbs::{list, patch, update, write, write::Target},
};

pub mod binding;
mod eviction;
mod kubelet;
mod page;
pub mod proxy;
mod scale;
mod token;
mod websocket;

/// What a subresource does.
enum Does {
    /// Reads and writes a part of the object.
    Writes(Target),
    /// Answers with something else.
    Scale,
    /// Assigns a pod to a node.
    Binding,
    /// Deletes a pod if its disruption budget allows.
    Eviction,
    /// Issues a token.
    Token,
    /// Connects to the kubelet of the pod's node.
    Kubelet(kubelet::Stream),
    /// Connects to a pod, service or node.
    Proxy,
}

/// Resource (empty: any), subresource, and what it does.
const TABLE: &[((&str, &str), &str, Does)] = &[
    (("", "pods"), "attach", Does::Kubelet(kubelet::Stream::Attach)),
    (("", "pods"), "binding", Does::Binding),
    (("", "pods"), "ephemeralcontainers", Does::Writes(EPHEMERAL_CONTAINERS)),
    (("", "pods"), "eviction", Does::Eviction),
    (("", "pods"), "exec", Does::Kubelet(kubelet::Stream::Exec)),
    (("", "pods"), "log", Does::Kubelet(kubelet::Stream::Log)),
    (("", "pods"), "portforward", Does::Kubelet(kubelet::Stream::PortForward)),
    (("", "pods"), "resize", Does::Writes(RESIZE)),
    (("", "serviceaccounts"), "token", Does::Token),
    (("", "namespaces"), "finalize", Does::Writes(FINALIZE)),
    (("certificates.k8s.io", "certificatesigningrequests"), "approval", Does::Writes(APPROVAL)),
    (("", ""), "proxy", Does::Proxy),
    (("", ""), "scale", Does::Scale),
    (("", ""), "status", Does::Writes(write::STATUS)),
];

const EPHEMERAL_CONTAINERS: Target = Target {
    subresource: "ephemeralcontainers",
    prepare: |served, new, old, ctx| {
        served.stored.strategy.prepare_for_subresource_update("ephemeralcontainers", new, old, ctx);
    },
    validate: |served, new, old, ctx, warnings| {
        served.stored.strategy.judge_update("ephemeralcontainers", new, old, ctx, warnings)
    },
};

const RESIZE: Target = Target {
    subresource: "resize",
    prepare: |served, new, old, ctx| {
        served.stored.strategy.prepare_for_subresource_update("resize", new, old, ctx);
    },
    validate: |served, new, old, ctx, warnings| {
        served.stored.strategy.judge_update("resize", new, old, ctx, warnings)
    },
};

const FINALIZE: Target = Target {
    subresource: "finalize",
    prepare: |served, new, old, ctx| {
        served.stored.strategy.prepare_for_subresource_update("finalize", new, old, ctx);
    },
    validate: |served, new, old, ctx, warnings| {
        served.stored.strategy.judge_update("finalize", new, old, ctx, warnings)
    },
};

const APPROVAL: Target = Target {
    subresource: "approval",
    prepare: |served, new, old, ctx| {
        served.stored.strategy.prepare_for_subresource_update("approval", new, old, ctx);
    },
    validate: |served, new, old, ctx, warnings| {
        served.stored.strategy.judge_update("approval", new, old, ctx, warnings)
    },
};

/// Admission of a connection: its options are the object that webhooks see. Logs are read, not connected to.
async fn connect(call: &Call, served: &Arc<Served>) -> ApiResult<()> {
    let info = &call.info;
    let kind = match (&*served.plural, info.subresource.as_str()) {
        ("pods", "exec") => "PodExecOptions",
        ("pods", "attach") => "PodAttachOptions",
        ("pods", "portforward") => "PodPortForwardOptions",
        ("pods", "proxy") => "PodProxyOptions",
        ("services", "proxy") => "ServiceProxyOptions",
        ("nodes", "proxy") => "NodeProxyOptions",
        _ => return Ok(()),
    };
    if call.query.has("dryRun") {
        return Err(ApiError::bad_request("dryRun is not supported"));
    }
    let mut options = serde_json::json!({ "kind": kind, "apiVersion": "v1" });
    for flag in ["stdin", "stdout", "stderr", "tty"] {
        if call.query.flag(flag) {
            options.set(flag, true);
        }
    }
    if let Some(container) = call.query.get("container") {
        options.set("container", container);
    }
    let command: Vec<&str> = call.query.all("command").collect();
    if !command.is_empty() {
        options.set("command", command);
    }
    if kind.ends_with("ProxyOptions") {
        options.set("path", format!("/{}", percent_decode(info.rest.trim_end_matches('/'), false)));
    }
    let ports: Vec<i64> = call.query.all("ports").filter_map(|p| p.parse().ok()).collect();
    if kind == "PodPortForwardOptions" && !ports.is_empty() {
        options.set("ports", ports);
    }
    let attributes = Attributes::new(call, served, Operation::Connect, false);
    admission::validate(&attributes, Some(&options), None).await
}

/// Answers a request for a subresource.
pub async fn handle(
    call: &Call,
    served: &Arc<Served>,
    body: RequestBody,
    upgrade: &mut Extensions,
) -> ApiResult<Reply> {
    let info = &call.info;
    let is_built_in = served.stored.builtin.is_some();
    let Some(sub) = served.sub(&info.subresource) else {
        return Err(match is_built_in {
            true => ApiError::unknown_resource(),
            false => ApiError::not_found(served.group_resource(), &info.name),
        });
    };
    // A proxied request may have any method.
    let proxied = info.subresource == "proxy";
    let may = sub.verbs.iter().any(|v| **v == *info.verb) && !(is_built_in && call.method == Method::HEAD);
    if !proxied && !may {
        return Err(match is_built_in {
            true => ApiError::method_not_allowed(),
            false => ApiError::method_not_supported(served.group_resource(), info.verb),
        });
    }
    let here = (&*served.stored.group, &*served.stored.plural);
    let row = TABLE.iter().find(|(resource, name, _)| {
        (*resource == here || resource.1.is_empty()) && *name == info.subresource
    });
    let Some((_, _, does)) = row else { return Err(ApiError::unknown_resource()) };
    // What connects passes on whatever comes back; logs are text.
    let special: Option<&[&'static str]> = match does {
        Does::Kubelet(kubelet::Stream::Log) => Some(&["text/plain"]),
        Does::Kubelet(_) | Does::Proxy => None,
        _ => Some(&[]),
    };
    if let Some(special) = special.filter(|_| is_built_in) {
        if info.verb == "patch" {
            patch::media_type(call, false)?;
        }
        negotiate::route(&call.headers, special, false, &call.core.config.gates)?;
    }
    match does {
        Does::Kubelet(stream) => {
            connect(call, served).await?;
            return kubelet::handle(call, *stream, body, upgrade).await;
        }
        Does::Proxy => {
            connect(call, served).await?;
            return proxy::handle(call, served, body, upgrade).await;
        }
        _ => {}
    }
    let bytes = crate::dispatch::read(call, served, body).await?;
    match does {
        Does::Writes(target) => match info.verb {
            "get" => list::get(call, served).await,
            "update" => update::update(call, served, target, bytes).await,
            _ => patch::patch(call, served, target, bytes).await,
        },
        Does::Scale => scale::handle(call, served, bytes).await,
        Does::Binding => binding::create(call, served, &bytes).await,
        Does::Eviction => eviction::create(call, served, &bytes).await,
        Does::Token => token::create(call, served, &bytes).await,
        Does::Kubelet(_) | Does::Proxy => Err(ApiError::unknown_resource()),
    }
}
