//! StorageObjectInUseProtection: volumes, claims and attribute classes go only when nobody uses them any more.

use serde_json::Value;
use yare_kinds::view::{View, ViewMut};

use super::Attributes;
use crate::status::ApiResult;

/// What is protected.
pub const RESOURCES: &[(&str, &str)] = &[
    ("", "persistentvolumes"),
    ("", "persistentvolumeclaims"),
    ("storage.k8s.io", "volumeattributesclasses"),
];

/// Adds the finalizer that the resource's controller takes off.
pub fn mutate(attributes: &Attributes<'_>, object: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    let finalizer = match &*attributes.served.stored.plural {
        "persistentvolumes" => "kubernetes.io/pv-protection",
        "persistentvolumeclaims" => "kubernetes.io/pvc-protection",
        _ => "kubernetes.io/vac-protection",
    };
    protect(object, finalizer);
    Ok(())
}

/// Adds a finalizer.
pub(super) fn protect(object: &mut Value, finalizer: &str) {
    let mut finalizers = object.items("metadata.finalizers").to_vec();
    if !finalizers.iter().any(|f| f == finalizer) {
        finalizers.push(finalizer.into());
        object.set("metadata.finalizers", finalizers);
    }
}
