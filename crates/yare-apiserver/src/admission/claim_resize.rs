//! PersistentVolumeClaimResize: only bound claims grow, and only where their class lets volumes grow.

use serde_json::Value;
use yare_kinds::view::View;
use yare_schema::quantity::Quantity;

use super::Attributes;
use crate::status::ApiResult;

const CLASSES: &str = "storage.k8s.io/storageclasses";

fn size(claim: &Value) -> Quantity {
    Quantity::from_value(claim.at("spec.resources.requests.storage")).unwrap_or_default()
}

/// The class of a claim: the annotation that was there before the field goes first.
pub fn class(claim: &Value) -> &str {
    let annotation = claim.at("metadata.annotations").get("volume.beta.kubernetes.io/storage-class");
    annotation.and_then(Value::as_str).unwrap_or_else(|| claim.str_at("spec.storageClassName"))
}

/// Refuses growth that nobody will bring about.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> ApiResult<()> {
    let (Some(new), Some(old)) = (object, old) else { return Ok(()) };
    if size(new) <= size(old) {
        return Ok(());
    }
    if old.str_at("status.phase") != "Bound" {
        return Err(attributes.forbidden("Only bound persistent volume claims can be expanded"));
    }
    let name = class(new);
    let may = !name.is_empty()
        && name == class(old)
        && attributes.call.core.read(CLASSES, name).is_some_and(|c| c.bool_at("allowVolumeExpansion"));
    if may {
        return Ok(());
    }
    Err(attributes.forbidden(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    ))
}
