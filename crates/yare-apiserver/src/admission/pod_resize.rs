//! PodResizeValidator: a running pod does not grow beyond what its node has.

use serde_json::Value;
use yare_kinds::{quota, view::View};
use yare_schema::quantity::Quantity;

use super::Attributes;
use crate::status::{ApiError, ApiResult, Cause};

/// Refuses a size that the pod's node can never give.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> ApiResult<()> {
    let (Some(pod), Some(old)) = (object, old) else { return Ok(()) };
    let name = pod.str_at("spec.nodeName");
    // The generation counts changes of the specification.
    if name.is_empty() || pod.int_at("metadata.generation") == old.int_at("metadata.generation") {
        return Ok(());
    }
    let Some(node) = attributes.call.core.read("nodes", name) else {
        return Err(attributes.forbidden(format!("node {name:?} not found")));
    };
    let refused = |why: String, reason: &str| -> ApiError {
        let mut error = attributes.forbidden(why);
        error.details.causes.push(Cause { reason: reason.into(), ..Cause::default() });
        error
    };
    let labels = node.at("metadata.labels");
    if let Some(os) = labels.get("kubernetes.io/os").and_then(Value::as_str).filter(|os| *os != "linux") {
        let why = format!("pod resize is only supported on linux nodes, node {name:?} is {os:?}");
        return Err(refused(why, "UnsupportedPlatform"));
    }
    let requests = quota::pod_requests_of_spec(pod);
    let mut short = Vec::new();
    for resource in ["cpu", "memory"] {
        let wanted = requests.get(resource).copied().unwrap_or_default();
        let have = Quantity::from_value(&node.at("status.allocatable")[resource]).unwrap_or_default();
        if wanted > have {
            let (wanted, have) = match resource {
                "cpu" => (wanted.milli_value(), have.milli_value()),
                _ => (wanted.value(), have.value()),
            };
            short.push(format!("{resource}, requested: {wanted}, allocatable: {have}"));
        }
    }
    if short.is_empty() {
        return Ok(());
    }
    let why = format!("node didn't have enough allocatable resources: {}", short.join("; "));
    Err(refused(why, "NodeCapacity"))
}
