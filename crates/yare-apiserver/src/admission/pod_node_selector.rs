//! PodNodeSelector: a namespace (or the cluster's configuration) says on which nodes its pods run.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use yare_kinds::view::{View, ViewMut};

use super::Attributes;
use crate::status::{ApiError, ApiResult};

const ANNOTATION: &str = "scheduler.alpha.kubernetes.io/node-selector";
/// The namespaces' default in the configuration.
const DEFAULT: &str = "clusterDefaultNodeSelector";

/// `a=b,c=d` as a map.
pub fn labels(selector: &str) -> Result<BTreeMap<String, String>, String> {
    selector
        .split(',')
        .filter(|_| !selector.trim().is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
            None => Err(format!("invalid selector: {pair}")),
        })
        .collect()
}

fn selector_of(attributes: &Attributes<'_>) -> ApiResult<BTreeMap<String, String>> {
    let namespace = attributes.call.core.read("namespaces", attributes.namespace).unwrap_or_default();
    let configured = &attributes.settings().node_selectors;
    let text = match namespace.at("metadata.annotations").get(ANNOTATION).and_then(Value::as_str) {
        Some(text) => text,
        None => configured.get(DEFAULT).map_or("", String::as_str),
    };
    labels(text).map_err(ApiError::internal)
}

fn conflicts(selector: &BTreeMap<String, String>, pod: &Value) -> bool {
    pod.entries("spec.nodeSelector")
        .any(|(k, v)| selector.get(k).is_some_and(|wanted| v.as_str() != Some(wanted)))
}

fn conflict(attributes: &Attributes<'_>, pod: &Value) -> ApiError {
    attributes
        .forbidden_object(pod, "pod node label selector conflicts with its namespace node label selector")
}

/// Adds the namespace's selector.
pub fn mutate(attributes: &Attributes<'_>, pod: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    let selector = selector_of(attributes)?;
    if conflicts(&selector, pod) {
        return Err(conflict(attributes, pod));
    }
    if selector.is_empty() {
        return Ok(());
    }
    if !pod.has("spec.nodeSelector") {
        pod.set("spec.nodeSelector", Map::new());
    }
    if let Some(map) = pod.at_mut("spec.nodeSelector").and_then(Value::as_object_mut) {
        map.extend(selector.into_iter().map(|(k, v)| (k, v.into())));
    }
    Ok(())
}

/// Refuses what the namespace may not choose.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, _old: Option<&Value>) -> ApiResult<()> {
    let Some(pod) = object else { return Ok(()) };
    if conflicts(&selector_of(attributes)?, pod) {
        return Err(conflict(attributes, pod));
    }
    let allowed = attributes.settings().node_selectors.get(attributes.namespace);
    let allowed = labels(allowed.map_or("", String::as_str)).map_err(ApiError::internal)?;
    let within = allowed.is_empty()
        || pod
            .entries("spec.nodeSelector")
            .all(|(k, v)| allowed.get(k).is_some_and(|wanted| v.as_str() == Some(wanted)));
    if within {
        return Ok(());
    }
    Err(attributes
        .forbidden_object(pod, "pod node label selector labels conflict with its namespace whitelist"))
}
