//! LimitPodHardAntiAffinityTopology: pods keep each other off nodes, not off whole zones.

use serde_json::Value;
use yare_kinds::view::View;

use super::Attributes;
use crate::status::ApiResult;

const HOSTNAME: &str = "kubernetes.io/hostname";

/// Refuses required anti-affinity over anything but nodes.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, _old: Option<&Value>) -> ApiResult<()> {
    let Some(pod) = object else { return Ok(()) };
    let terms = pod.items("spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution");
    match terms.iter().map(|t| t.str_at("topologyKey")).find(|key| *key != HOSTNAME) {
        Some(key) => Err(attributes.forbidden_object(
            pod,
            format!(
                "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {HOSTNAME} is allowed"
            ),
        )),
        None => Ok(()),
    }
}
