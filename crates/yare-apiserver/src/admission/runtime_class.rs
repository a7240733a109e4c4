//! RuntimeClass: a pod's runtime class exists, and gives the pod its overhead and where it can run.

use serde_json::{Map, Value};
use yare_kinds::view::{View, ViewMut};

use super::Attributes;
use crate::status::ApiResult;

const CLASSES: &str = "node.k8s.io/runtimeclasses";

/// Completes a pod from its runtime class.
pub fn mutate(attributes: &Attributes<'_>, pod: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    let name = pod.str_at("spec.runtimeClassName").to_owned();
    if name.is_empty() {
        if pod.is_set("spec.overhead") {
            return Err(attributes.forbidden(
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            ));
        }
        return Ok(());
    }
    let Some(class) = attributes.call.core.read(CLASSES, &name) else {
        return Err(attributes.forbidden(format!("pod rejected: RuntimeClass {name:?} not found")));
    };
    let overhead = class.at("overhead.podFixed");
    if pod.is_set("spec.overhead") {
        if pod.at("spec.overhead") != overhead {
            return Err(attributes
                .forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
        }
    } else if !overhead.is_null() {
        pod.set("spec.overhead", overhead.clone());
    }
    for (key, value) in class.entries("scheduling.nodeSelector") {
        match pod.at("spec.nodeSelector").get(key) {
            Some(have) if have != value => {
                return Err(attributes.forbidden(format!(
                    "pod rejected: conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
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
        let mut tolerations = pod.items("spec.tolerations").to_vec();
        for toleration in wanted {
            if !tolerations.contains(toleration) {
                tolerations.push(toleration.clone());
            }
        }
        pod.set("spec.tolerations", tolerations);
    }
    Ok(())
}
