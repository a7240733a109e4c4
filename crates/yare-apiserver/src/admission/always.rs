//! AlwaysDeny: nothing is written any more.

use serde_json::Value;

use super::Attributes;
use crate::status::ApiResult;

/// Refuses.
pub fn deny_change(attributes: &Attributes<'_>, object: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    deny(attributes, Some(object), None)
}

/// Refuses.
pub fn deny(attributes: &Attributes<'_>, _object: Option<&Value>, _old: Option<&Value>) -> ApiResult<()> {
    Err(attributes.forbidden("admission control is denying all modifications"))
}
