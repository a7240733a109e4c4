//! Priority: a pod's priority is the one of its class; there is one default class.

use serde_json::Value;
use yare_kinds::view::{View, ViewMut};

use super::{Attributes, Operation};
use crate::status::{ApiError, ApiResult};

const CLASSES: &str = "scheduling.k8s.io/priorityclasses";

/// Computes a pod's priority.
pub fn mutate(attributes: &Attributes<'_>, object: &mut Value, old: Option<&Value>) -> ApiResult<()> {
    if !attributes.is("", "pods") {
        return Ok(());
    }
    if attributes.operation == Operation::Update {
        // The priority is fixed at creation; what an update leaves out stays.
        if let Some(old) = old {
            for field in ["spec.priority", "spec.preemptionPolicy"] {
                if !object.has(field) {
                    object.copy_from(old, field);
                }
            }
        }
        return Ok(());
    }
    let store = attributes.call.core.store();
    let name = object.str_at("spec.priorityClassName").to_owned();
    let class = if name.is_empty() {
        let snapshot = store.snapshot(CLASSES);
        let mut best: Option<Value> = None;
        for row in snapshot.range(std::ops::Bound::Unbounded, "") {
            let Ok(class) = serde_json::from_slice::<Value>(&row.bytes) else { continue };
            // Of several defaults (a race while they were made) the lowest is the safe one.
            if class.bool_at("globalDefault")
                && best.as_ref().is_none_or(|b| class.int_at("value") < b.int_at("value"))
            {
                best = Some(class);
            }
        }
        if let Some(class) = &best {
            object.set("spec.priorityClassName", class.str_at("metadata.name"));
        }
        best
    } else {
        match attributes.call.core.read(CLASSES, &name) {
            Some(class) => Some(class),
            None => return Err(attributes.forbidden(format!("no PriorityClass with name {name} was found"))),
        }
    };
    let (value, policy) = class
        .as_ref()
        .map_or((0, None), |c| (c.int_at("value"), c.str_opt("preemptionPolicy").map(str::to_owned)));
    if object.has("spec.priority") && object.int_at("spec.priority") != value {
        return Err(attributes.forbidden(format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            object.int_at("spec.priority")
        )));
    }
    object.set("spec.priority", value);
    let policy = policy.unwrap_or_else(|| "PreemptLowerPriority".into());
    if let Some(given) = object.str_opt("spec.preemptionPolicy")
        && given != policy
    {
        return Err(attributes.forbidden(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        )));
    }
    object.set("spec.preemptionPolicy", policy);
    Ok(())
}

/// Refuses a second default class.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, _old: Option<&Value>) -> ApiResult<()> {
    let Some(class) = object.filter(|_| attributes.is("scheduling.k8s.io", "priorityclasses")) else {
        return Ok(());
    };
    if !class.bool_at("globalDefault") {
        return Ok(());
    }
    let snapshot = attributes.call.core.store().snapshot(CLASSES);
    for row in snapshot.range(std::ops::Bound::Unbounded, "") {
        let Ok(other) = serde_json::from_slice::<Value>(&row.bytes) else { continue };
        if other.bool_at("globalDefault") && *row.key != *class.str_at("metadata.name") {
            return Err(ApiError::forbidden(
                attributes.served.group_resource(),
                class.str_at("metadata.name"),
                format!("PriorityClass {} is already marked as default. Only one default can exist", row.key),
            ));
        }
    }
    Ok(())
}
