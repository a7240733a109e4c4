//! Priority: a pod's priority is the one of its class; there is one default class.

use serde::Deserialize;
use serde_json::Value;
use yare_kinds::view::{View, ViewMut};

use super::{Attributes, Operation};
use crate::status::ApiResult;

const CLASSES: &str = "scheduling.k8s.io/priorityclasses";

/// As much of a class as is read of all of them for each pod: hardly ever is one the default.
#[derive(Deserialize)]
struct Class {
    #[serde(default, rename = "globalDefault")]
    global_default: bool,
}

/// The class of pods that name none. Of several (a race while they were made) the lowest is the safe one.
fn default_class(attributes: &Attributes<'_>) -> Option<Value> {
    let snapshot = attributes.call.core.store().snapshot(CLASSES);
    snapshot
        .range(std::ops::Bound::Unbounded, "")
        .filter(|row| serde_json::from_slice(&row.bytes).is_ok_and(|class: Class| class.global_default))
        .filter_map(|row| serde_json::from_slice::<Value>(&row.bytes).ok())
        .min_by_key(|class| class.int_at("value"))
}

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
    let name = object.str_at("spec.priorityClassName").to_owned();
    let class = if name.is_empty() {
        let class = default_class(attributes);
        if let Some(class) = &class {
            object.set("spec.priorityClassName", class.str_at("metadata.name"));
        }
        class
    } else {
        match attributes.call.core.read(CLASSES, &name) {
            Some(class) => Some(class),
            None => {
                let why = format!("no PriorityClass with name {name} was found");
                return Err(attributes.forbidden_object(object, why));
            }
        }
    };
    let value = class.as_ref().map_or(0, |c| c.int_at("value"));
    if object.has("spec.priority") && object.int_at("spec.priority") != value {
        return Err(attributes.forbidden_object(object, format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            object.int_at("spec.priority")
        )));
    }
    object.set("spec.priority", value);
    let policy = match &class {
        Some(class) => class.str_opt("preemptionPolicy").map(str::to_owned),
        None => Some("PreemptLowerPriority".into()),
    };
    let Some(policy) = policy else { return Ok(()) };
    if let Some(given) = object.str_opt("spec.preemptionPolicy")
        && given != policy
    {
        return Err(attributes.forbidden_object(object, format!(
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
    match default_class(attributes) {
        Some(other) if other.str_at("metadata.name") != class.str_at("metadata.name") => Err(attributes
            .forbidden_object(
                class,
                format!(
                    "PriorityClass {} is already marked as default. Only one default can exist",
                    other.str_at("metadata.name")
                ),
            )),
        _ => Ok(()),
    }
}
