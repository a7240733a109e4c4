//! How custom resources behave: what the definition's schema says, and nothing else.

use serde_json::Value;
use yare_kinds::{
    names,
    strategy::{Context, Strategy},
    view::{View, ViewMut, same},
};
use yare_schema::{defaults, field::FieldError, validate};

use crate::registry::TypeHandle;

/// The strategy of one definition.
pub struct CustomStrategy {
    /// The storage version's type.
    pub ty: TypeHandle,
    /// Whether `status` is a subresource.
    pub status: bool,
}

/// Everything but what the server and status writers own.
fn body(object: &Value, status: bool) -> Value {
    let mut object = object.clone();
    for field in ["apiVersion", "kind", "metadata"] {
        object.remove(field);
    }
    if status {
        object.remove("status");
    }
    object
}

impl Strategy for CustomStrategy {
    fn default(&self, object: &mut Value) {
        defaults::apply(self.ty.at(), object);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        yare_kinds::meta::prepare_for_update(new, old, self.status, false);
        new.copy_from(old, "metadata.generation");
        if !same(&body(new, self.status), &body(old, self.status)) {
            yare_kinds::meta::bump_generation(new, old);
        }
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        // Of metadata, only the record of owners is the status writer's.
        let managed = new.at("metadata.managedFields").clone();
        let status = new.at("status").clone();
        *new = old.clone();
        if status.is_null() {
            new.remove("status");
        } else {
            new.set("status", status);
        }
        if !managed.is_null() {
            new.set("metadata.managedFields", managed);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        validate::validate(self.ty.at(), object)
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        validate::validate(self.ty.at(), new)
    }

    fn has_status(&self) -> bool {
        self.status
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}
