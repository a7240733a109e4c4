//! PodGroupProtection and PodGroupWorkloadExists (KEP-4671): a PodGroup stays while pods belong to it, and what it
//! says it is made from is there.

use serde_json::Value;
use yare_kinds::view::View;

use super::{Attributes, storage_in_use::protect};
use crate::status::ApiResult;

const GATE: &str = "GenericWorkload";
const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

/// What both see.
pub const RESOURCES: &[(&str, &str)] = &[("scheduling.k8s.io", "podgroups")];

fn is_on(attributes: &Attributes<'_>) -> bool {
    attributes.call.core.config.gates.is_on(GATE)
}

/// Adds the finalizer that the controller takes off.
pub fn mutate(attributes: &Attributes<'_>, group: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    if is_on(attributes) {
        protect(group, FINALIZER);
    }
    Ok(())
}

/// Refuses a group of a Workload, or of a template in it, that is not there.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, _old: Option<&Value>) -> ApiResult<()> {
    let Some(of) = object.map(|group| group.at("spec.podGroupTemplateRef.workload")) else { return Ok(()) };
    if of.is_null() || !is_on(attributes) {
        return Ok(());
    }
    let (name, template) = (of.str_at("workloadName"), of.str_at("podGroupTemplateName"));
    let rejected = |why: String| Err(attributes.forbidden(format!("PodGroup rejected: {why}")));
    let core = &attributes.call.core;
    match core.read("scheduling.k8s.io/workloads", &format!("{}/{name}", attributes.namespace)) {
        None => rejected(format!("Workload {name:?} not found")),
        Some(workload) if workload.has("metadata.deletionTimestamp") => {
            rejected(format!("Workload {name:?} is being deleted"))
        }
        Some(workload) => {
            let templates = workload.items("spec.podGroupTemplates");
            if templates.iter().any(|t| t.str_at("name") == template) {
                return Ok(());
            }
            rejected(format!("PodGroupTemplate {template:?} not found in Workload {name:?}"))
        }
    }
}
