//! ExtendedResourceToleration: nodes with special devices are tainted by the devices' names, and whoever asks
//! for a device tolerates the taint.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use yare_kinds::{
    quota,
    view::{View, ViewMut},
};

use super::{Attributes, tolerations};
use crate::status::ApiResult;

/// Adds a toleration for each extended resource that containers ask for.
pub fn mutate(_attributes: &Attributes<'_>, pod: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    let wanted: BTreeSet<String> = ["spec.containers", "spec.initContainers"]
        .iter()
        .flat_map(|list| pod.items(list))
        .flat_map(|c| c.at("resources").entries("requests"))
        .map(|(name, _)| name)
        .filter(|name| quota::is_extended_resource(name))
        .map(str::to_owned)
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let added: Vec<Value> = wanted
        .into_iter()
        .map(|key| json!({ "key": key, "operator": "Exists", "effect": "NoSchedule" }))
        .collect();
    // One that is there already, word for word, stays the only one.
    let have = pod.items("spec.tolerations").to_vec();
    let missing: Vec<Value> =
        added.into_iter().filter(|t| !tolerations::all_within(std::slice::from_ref(t), &have)).collect();
    pod.set("spec.tolerations", [have, missing].concat());
    Ok(())
}
