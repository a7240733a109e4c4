//! JobValidation (KEP-5547): a Job whose pods are scheduled all or none keeps as many as its PodGroup asks for.

use std::ops::Bound;

use serde_json::Value;
use yare_kinds::view::View;

use super::Attributes;
use crate::status::ApiResult;

/// Either brings PodGroups.
const GATES: [&str; 2] = ["GenericWorkload", "WorkloadWithJob"];
const GROUPS: &str = "scheduling.k8s.io/podgroups";

/// Refuses another parallelism of such a Job.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> ApiResult<()> {
    let (Some(job), Some(old)) = (object, old) else { return Ok(()) };
    const PARALLELISM: &str = "spec.parallelism";
    let core = &attributes.call.core;
    if !GATES.iter().any(|gate| core.config.gates.is_on(gate)) || job.at(PARALLELISM) == old.at(PARALLELISM) {
        return Ok(());
    }
    let namespace = attributes.namespace;
    let group = match old.str_opt("spec.template.spec.schedulingGroup.podGroupName") {
        Some(name) => core.read(GROUPS, &format!("{namespace}/{name}")).filter(is_gang),
        None => {
            let uid = old.str_at("metadata.uid");
            let is_of = |group: &Value| {
                let owners = group.items("metadata.ownerReferences");
                owners.iter().any(|o| o.bool_at("controller") && o.str_at("uid") == uid)
            };
            let groups = core.store().snapshot(GROUPS);
            groups
                .range(Bound::Unbounded, &format!("{namespace}/"))
                .filter_map(|o| serde_json::from_slice::<Value>(&o.bytes).ok())
                .find(|group| is_of(group) && is_gang(group))
        }
    };
    let Some(group) = group else { return Ok(()) };
    Err(attributes.forbidden(format!(
        "cannot change parallelism for a Job referencing gang-scheduled PodGroup {:?}",
        group.str_at("metadata.name")
    )))
}

fn is_gang(group: &Value) -> bool {
    group.has("spec.schedulingPolicy.gang")
}
