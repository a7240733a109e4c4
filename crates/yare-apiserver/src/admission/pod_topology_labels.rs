//! PodTopologyLabels (KEP-4742): a pod carries the zone and the region of its node, so that what runs in it can
//! be told by the downward API.

use serde_json::{Map, Value};
use yare_kinds::view::{View, ViewMut};

use super::Attributes;
use crate::status::ApiResult;

const LABELS: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

/// Copies the node's labels onto a binding, from where they come to the pod, or onto a pod made for its node.
pub fn mutate(attributes: &Attributes<'_>, object: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    let node = if attributes.subresource == "binding" {
        if object.str_at("target.kind") != "Node" {
            return Ok(());
        }
        object.str_at("target.name")
    } else {
        object.str_at("spec.nodeName")
    };
    if node.is_empty() {
        return Ok(());
    }
    // A node that is not there yet says nothing.
    let Some(node) = attributes.call.core.store().get("nodes", node) else { return Ok(()) };
    for label in LABELS {
        let Some(value) = node.attrs.label(label) else { continue };
        if !object.has("metadata.labels") {
            object.set("metadata.labels", Map::new());
        }
        if let Some(labels) = object.at_mut("metadata.labels").and_then(Value::as_object_mut) {
            labels.insert(label.to_owned(), value.into());
        }
    }
    Ok(())
}
