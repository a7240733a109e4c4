//! TaintNodesByCondition: a new node takes no pods until it says it is ready.

use serde_json::{Value, json};
use yare_kinds::view::{View, ViewMut};

use super::Attributes;
use crate::status::ApiResult;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// Adds the not-ready taint.
pub fn mutate(_attributes: &Attributes<'_>, node: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    let mut taints = node.items("spec.taints").to_vec();
    if !taints.iter().any(|t| t.str_at("key") == NOT_READY && t.str_at("effect") == "NoSchedule") {
        taints.push(json!({ "key": NOT_READY, "effect": "NoSchedule" }));
        node.set("spec.taints", taints);
    }
    Ok(())
}
