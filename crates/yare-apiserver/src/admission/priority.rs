//! Priority: that of a pod, or of a group of them, is the one of its class; there is one default class.

use serde::Deserialize;
use serde_json::Value;
use yare_kinds::view::{View, ViewMut};

use super::{Attributes, Operation};
use crate::status::ApiResult;

const CLASSES: &str = "scheduling.k8s.io/priorityclasses";
/// With it, groups of pods have a priority too.
const GROUP_GATE: &str = "WorkloadAwarePreemption";

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

/// The class that a new object names; where it names none, it takes the default one's name.
fn class_of(attributes: &Attributes<'_>, object: &mut Value) -> ApiResult<Option<Value>> {
    let name = object.str_at("spec.priorityClassName").to_owned();
    if name.is_empty() {
        let class = default_class(attributes);
        if let Some(class) = &class {
            object.set("spec.priorityClassName", class.str_at("metadata.name"));
        }
        return Ok(class);
    }
    match attributes.call.core.read(CLASSES, &name) {
        Some(class) => Ok(Some(class)),
        None => {
            let why = format!("no PriorityClass with name {name} was found");
            Err(attributes.forbidden_object(object, why))
        }
    }
}

/// The value of an object's class, and whether the object says another.
fn value_of(class: Option<&Value>, object: &Value) -> (i64, bool) {
    let value = class.map_or(0, |class| class.int_at("value"));
    (value, object.has("spec.priority") && object.int_at("spec.priority") != value)
}

/// Computes a new group's priority.
fn mutate_group(attributes: &Attributes<'_>, group: &mut Value) -> ApiResult<()> {
    if attributes.operation != Operation::Create || !attributes.call.core.config.gates.is_on(GROUP_GATE) {
        return Ok(());
    }
    let class = class_of(attributes, group)?;
    let (value, is_another) = value_of(class.as_ref(), group);
    if is_another {
        return Err(attributes.forbidden_object(group, format!(
            "priority set in the pod group ({}) must match the priority computed ({value}) based on the priority class set in the spec",
            group.int_at("spec.priority")
        )));
    }
    group.set("spec.priority", value);
    Ok(())
}

/// Computes a pod's priority.
pub fn mutate(attributes: &Attributes<'_>, object: &mut Value, old: Option<&Value>) -> ApiResult<()> {
    if attributes.is("scheduling.k8s.io", "podgroups") {
        return mutate_group(attributes, object);
    }
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
    let class = class_of(attributes, object)?;
    let (value, is_another) = value_of(class.as_ref(), object);
    if is_another {
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
