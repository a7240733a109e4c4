//! Managed fields: who owns which field of an object. The rules are the schema's (`yare_schema::managed`);
//! here they meet the versions a resource is served in.

use serde_json::Value;
use yare_kinds::{
    reset::Reset,
    view::{View, ViewMut},
};
use yare_schema::{
    managed::{self, ApplyError, Kind, ManagerInfo, ResetFields, Set},
    model::TypeRef,
};

use crate::{
    core::Call,
    options::WriteOptions,
    registry::{Registry, Served},
    status::{ApiError, ApiResult, Cause},
};

/// A resource in all its versions.
struct Versions<'a> {
    registry: &'a Registry,
    served: &'a Served,
}

impl Versions<'_> {
    fn version(&self, api_version: &str) -> Option<&Served> {
        if *self.served.api_version == *api_version {
            return Some(self.served);
        }
        self.registry
            .versions_of(&self.served.stored.kind_key)
            .iter()
            .find(|s| *s.api_version == *api_version)
            .map(|s| &**s)
    }
}

impl Kind for Versions<'_> {
    fn type_in(&self, api_version: &str) -> Option<TypeRef<'_>> {
        self.version(api_version).map(|s| s.ty.at())
    }

    fn convert(&self, object: &Value, api_version: &str) -> Result<Option<Value>, String> {
        let from = self.version(object.str_at("apiVersion"));
        let (Some(from), Some(to)) = (from, self.version(api_version)) else { return Ok(None) };
        let mut object = object.clone();
        from.to_storage(&mut object)
            .and_then(|()| to.from_storage(&mut object))
            .map_err(|e| e.to_string())?;
        Ok(Some(object))
    }

    fn evolves(&self) -> bool {
        self.served.stored.custom.is_some()
    }
}

fn info<'a>(
    served: &'a Served,
    options: &'a WriteOptions,
    subresource: &'a str,
    now: &'a str,
) -> ManagerInfo<'a> {
    ManagerInfo { manager: &options.field_manager, api_version: &served.api_version, subresource, time: now }
}

/// Fields that a request cannot set, and so does not own.
fn reset(served: &Served, subresource: &str) -> Option<ResetFields> {
    reset_of(served, subresource).map(|reset| match reset {
        Reset::Fields(fields) => ResetFields::Exclude(Set::of_fields(fields)),
        Reset::AllBut(patterns) => ResetFields::Only(patterns),
    })
}

/// The same, as the table of resources says it.
pub fn reset_of(served: &Served, subresource: &str) -> Option<Reset> {
    served.stored.resets.at(subresource, served.strategy.has_status())
}

/// Records an update or create in `new`'s managed fields. Both objects are of the storage version.
pub fn update(
    call: &Call,
    served: &Served,
    old: Option<&Value>,
    new: &mut Value,
    options: &WriteOptions,
    subresource: &str,
    now: &str,
) {
    let registry = call.core.registry.load();
    let versions = Versions { registry: &registry, served };
    let info = info(served, options, subresource, now);
    let reset = reset(served, subresource);
    if served.is_storage() {
        managed::update(&versions, old, new, &info, reset.as_ref());
    } else {
        let shown = |object: &Value| {
            let mut object = object.clone();
            // A webhook that fails here, just after it converted the object, leaves the record as it was.
            if let Err(error) = served.from_storage(&mut object) {
                tracing::warn!(%error, "managed fields are not updated");
            }
            object
        };
        let mut copy = shown(new);
        managed::update(&versions, old.map(shown).as_ref(), &mut copy, &info, reset.as_ref());
        new.copy_from(&copy, "metadata.managedFields");
    }
}

/// Leaves the old record where only its times would change.
pub fn settle(old: &Value, new: &mut Value) {
    managed::ignore_timestamps(old, new);
}

/// The object that applying `config` to `current` makes; both are of the served version.
pub fn apply(
    call: &Call,
    served: &Served,
    current: Option<&Value>,
    config: &Value,
    options: &WriteOptions,
    subresource: &str,
    now: &str,
) -> ApiResult<Value> {
    let registry = call.core.registry.load();
    let versions = Versions { registry: &registry, served };
    let info = info(served, options, subresource, now);
    let reset = reset(served, subresource);
    managed::apply(&versions, current, config, &info, options.force, reset.as_ref())
        .map(|applied| applied.object)
        .map_err(refused)
}

/// Takes what admission made of an object, but not a record that it broke.
pub fn replace(call: &Call, object: &mut Value, mut changed: Value) {
    if let Err(why) = managed::check_entries(&changed) {
        changed.copy_from(object, "metadata.managedFields");
        call.warn(format!(
            ".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: {why}"
        ));
    }
    *object = changed;
}

/// The answer to a configuration that cannot be applied.
pub fn refused(error: ApplyError) -> ApiError {
    let message = error.to_string();
    match error {
        ApplyError::Conflicts(conflicts) => ApiError::apply_conflict(
            message,
            conflicts
                .iter()
                .map(|c| Cause {
                    reason: "FieldManagerConflict".into(),
                    message: c.message(),
                    field: c.field.clone(),
                })
                .collect(),
        ),
        ApplyError::BadRequest(message) => ApiError::bad_request(message),
        ApplyError::Typed { .. } | ApplyError::Conversion(_) | ApplyError::ManagedFields(_) => {
            ApiError::new(500, "", message)
        }
    }
}
