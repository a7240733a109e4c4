//! DenyServiceExternalIPs: no service claims addresses outside of the cluster that it has not had before.

use serde_json::Value;
use yare_kinds::view::View;

use super::Attributes;
use crate::status::ApiResult;

/// Refuses new external addresses.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> ApiResult<()> {
    let had = old.map(|o| o.strings("spec.externalIPs")).unwrap_or_default();
    let wanted = object.map(|o| o.strings("spec.externalIPs")).unwrap_or_default();
    if wanted.iter().all(|ip| had.contains(ip)) {
        return Ok(());
    }
    Err(attributes.forbidden("Use of external IPs is denied by admission control"))
}
