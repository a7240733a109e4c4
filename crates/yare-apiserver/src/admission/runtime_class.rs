//! RuntimeClass: a pod's runtime class exists, and gives the pod its overhead and where it can run.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use yare_kinds::view::{View, ViewMut};
use yare_schema::quantity::Quantity;

use super::{Attributes, tolerations};
use crate::status::{ApiError, ApiResult};

const CLASSES: &str = "node.k8s.io/runtimeclasses";

/// The class that the pod names.
fn class_of(attributes: &Attributes<'_>, pod: &Value) -> ApiResult<Option<Value>> {
    let Some(name) = pod.str_opt("spec.runtimeClassName") else { return Ok(None) };
    match attributes.call.core.read(CLASSES, name) {
        Some(class) => Ok(Some(class)),
        None => {
            Err(attributes.forbidden_object(pod, format!("pod rejected: RuntimeClass {name:?} not found")))
        }
    }
}

fn mismatch(attributes: &Attributes<'_>, pod: &Value) -> ApiError {
    attributes
        .forbidden_object(pod, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
}

/// Completes a pod from its runtime class.
pub fn mutate(attributes: &Attributes<'_>, pod: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    let Some(class) = class_of(attributes, pod)? else { return Ok(()) };
    if class.has("overhead") {
        let overhead = class.at("overhead.podFixed");
        if pod.is_set("spec.overhead") && !same_amounts(overhead, pod.at("spec.overhead")) {
            return Err(mismatch(attributes, pod));
        }
        if overhead.is_null() {
            pod.remove("spec.overhead");
        } else {
            pod.set("spec.overhead", overhead.clone());
        }
    }
    for (key, value) in class.entries("scheduling.nodeSelector") {
        match pod.at("spec.nodeSelector").get(key) {
            Some(have) if have != value => {
                return Err(attributes.forbidden_object(pod, format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    value.as_str().unwrap_or_default(),
                    have.as_str().unwrap_or_default()
                )));
            }
            _ => {}
        }
        if !pod.has("spec.nodeSelector") {
            pod.set("spec.nodeSelector", Map::new());
        }
        if let Some(map) = pod.at_mut("spec.nodeSelector").and_then(Value::as_object_mut) {
            map.insert(key.to_owned(), value.clone());
        }
    }
    let wanted = class.items("scheduling.tolerations");
    if !wanted.is_empty() {
        let merged = tolerations::merge(pod.items("spec.tolerations"), wanted);
        pod.set("spec.tolerations", merged);
    }
    Ok(())
}

/// Refuses overhead that is not the class's.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, _old: Option<&Value>) -> ApiResult<()> {
    let Some(pod) = object else { return Ok(()) };
    match class_of(attributes, pod)? {
        Some(class) if class.has("overhead") => {
            if same_amounts(class.at("overhead.podFixed"), pod.at("spec.overhead")) {
                Ok(())
            } else {
                Err(mismatch(attributes, pod))
            }
        }
        _ if pod.has("spec.overhead") => Err(attributes.forbidden_object(
            pod,
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
        )),
        _ => Ok(()),
    }
}

/// Whether both are the same amounts, however they are written.
fn same_amounts(a: &Value, b: &Value) -> bool {
    let amounts = |v: &Value| -> BTreeMap<String, Option<Quantity>> {
        v.entries("").map(|(k, v)| (k.to_owned(), Quantity::from_value(v).ok())).collect()
    };
    amounts(a) == amounts(b)
}
