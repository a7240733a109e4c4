//! PodTolerationRestriction: a namespace's annotations (or the cluster's configuration) say what its pods
//! tolerate by default and what they may tolerate at all.

use serde_json::{Value, json};
use yare_kinds::{
    quota,
    view::{View, ViewMut},
};

use super::{Attributes, Operation, tolerations};
use crate::status::{ApiError, ApiResult};

const DEFAULTS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const ALLOWED: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";

/// The list in a namespace's annotation; `None` where it has none.
fn annotated(attributes: &Attributes<'_>, key: &str) -> ApiResult<Option<Vec<Value>>> {
    let namespace = attributes.call.core.read("namespaces", attributes.namespace).unwrap_or_default();
    match namespace.at("metadata.annotations").get(key).and_then(Value::as_str) {
        None => Ok(None),
        Some("") => Ok(Some(Vec::new())),
        Some(text) => serde_json::from_str(text).map(Some).map_err(ApiError::internal),
    }
}

/// Adds the default tolerations, and that of memory pressure to pods that ask for memory.
pub fn mutate(attributes: &Attributes<'_>, pod: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    let mut extra = Vec::new();
    if attributes.operation == Operation::Create {
        extra = annotated(attributes, DEFAULTS)?
            .unwrap_or_else(|| attributes.settings().default_tolerations.clone());
    }
    if !quota::is_best_effort(pod) {
        extra.push(json!({
            "key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule",
        }));
    }
    if !extra.is_empty() {
        let merged = tolerations::merge(pod.items("spec.tolerations"), &extra);
        pod.set("spec.tolerations", merged);
    }
    Ok(())
}

/// Refuses what the namespace may not tolerate.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, _old: Option<&Value>) -> ApiResult<()> {
    let Some(pod) = object.filter(|pod| !pod.items("spec.tolerations").is_empty()) else { return Ok(()) };
    let (allowed, scope) = match annotated(attributes, ALLOWED)? {
        Some(list) => (list, "namespace"),
        None => (attributes.settings().allowed_tolerations.clone(), "cluster"),
    };
    if allowed.is_empty() || tolerations::all_within(pod.items("spec.tolerations"), &allowed) {
        return Ok(());
    }
    Err(ApiError::internal(format!(
        "pod tolerations (possibly merged with namespace default tolerations) conflict with its {scope} whitelist"
    )))
}
