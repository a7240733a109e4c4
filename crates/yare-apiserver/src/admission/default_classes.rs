//! DefaultStorageClass and DefaultIngressClass: what names no class gets the one marked as default.

use serde_json::Value;
use yare_kinds::view::{View, ViewMut};

use super::Attributes;
use crate::status::ApiResult;

/// The newest class that carries the annotation; of equally old ones the first by name.
fn default_class(attributes: &Attributes<'_>, kind: &str, annotations: &[&str]) -> Option<String> {
    let snapshot = attributes.call.core.store().snapshot(kind);
    let mut best: Option<(String, String)> = None;
    for object in snapshot.range(std::ops::Bound::Unbounded, "") {
        let Ok(class) = serde_json::from_slice::<Value>(&object.bytes) else { continue };
        let marked = annotations.iter().any(|a| class.at("metadata.annotations")[*a] == "true");
        let created = class.str_at("metadata.creationTimestamp").to_owned();
        if marked && best.as_ref().is_none_or(|(b, _)| created > *b) {
            best = Some((created, class.str_at("metadata.name").to_owned()));
        }
    }
    best.map(|(_, name)| name)
}

/// A claim without a class. An empty class name is a choice and stays.
pub fn storage(attributes: &Attributes<'_>, claim: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    let chosen = claim.has("spec.storageClassName")
        || claim.at("metadata.annotations").get("volume.beta.kubernetes.io/storage-class").is_some();
    let annotations =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    if !chosen && let Some(class) = default_class(attributes, "storage.k8s.io/storageclasses", &annotations) {
        claim.set("spec.storageClassName", class);
    }
    Ok(())
}

/// An ingress without a class.
pub fn ingress(attributes: &Attributes<'_>, ingress: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    let chosen = ingress.has("spec.ingressClassName")
        || ingress.at("metadata.annotations").get("kubernetes.io/ingress.class").is_some();
    let annotations = ["ingressclass.kubernetes.io/is-default-class"];
    if !chosen
        && let Some(class) = default_class(attributes, "networking.k8s.io/ingressclasses", &annotations)
    {
        ingress.set("spec.ingressClassName", class);
    }
    Ok(())
}
