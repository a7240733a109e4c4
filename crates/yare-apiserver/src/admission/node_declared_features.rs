//! NodeDeclaredFeatureValidator (KEP-5328): a running pod is not changed into something that its node does not
//! say it can do.

use serde_json::Value;
use yare_kinds::view::{View, same};

use super::Attributes;
use crate::status::ApiResult;

/// A feature and whether the change of a pod (new, old) needs it.
type Needs = fn(&Value, &Value) -> bool;

/// Features that updates can need, in upstream's order.
const FEATURES: [(&str, Needs); 2] = [
    ("InPlacePodLevelResourcesVerticalScaling", |new, old| {
        !same(new.at("spec.resources"), old.at("spec.resources"))
    }),
    ("InPlacePodVerticalScalingInitContainers", |new, old| {
        let pairs = old.items("spec.initContainers").iter().zip(new.items("spec.initContainers"));
        pairs.into_iter().any(|(old, new)| {
            old.str_at("restartPolicy") != "Always" && !same(old.at("resources"), new.at("resources"))
        })
    }),
];

/// Refuses what the node has not declared.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> ApiResult<()> {
    let (Some(pod), Some(old)) = (object, old) else { return Ok(()) };
    let name = pod.str_at("spec.nodeName");
    if name.is_empty() || pod.int_at("metadata.generation") == old.int_at("metadata.generation") {
        return Ok(());
    }
    let mut needed = FEATURES.iter().filter(|(_, needs)| needs(pod, old)).map(|(name, _)| *name).peekable();
    if needed.peek().is_none() {
        return Ok(());
    }
    let Some(node) = attributes.call.core.read("nodes", name) else {
        return Err(attributes.forbidden(format!("node {name:?} not found")));
    };
    let declared = node.strings("status.declaredFeatures");
    let missing: Vec<&str> = needed.filter(|f| !declared.contains(f)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(attributes.forbidden(format!(
        "pod update requires features {} which are not available on node {name:?}",
        missing.join(", ")
    )))
}
