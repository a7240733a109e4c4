//! Strategies of the kinds of `apps`.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{Context, Strategy};
use crate::{
    check::{Check, Errors},
    view::View,
};

mod daemon_set;
mod deployment;
mod replica_set;
mod stateful_set;
#[cfg(test)]
mod tests;

/// `ControllerRevision`
pub const CONTROLLER_REVISION: &dyn Strategy = &ControllerRevision;

/// `DaemonSet`
pub const DAEMON_SET: &dyn Strategy = &daemon_set::DaemonSet;

/// `Deployment`
pub const DEPLOYMENT: &dyn Strategy = &deployment::Deployment;

/// `ReplicaSet`
pub const REPLICA_SET: &dyn Strategy = &replica_set::ReplicaSet;

/// `StatefulSet`
pub const STATEFUL_SET: &dyn Strategy = &stateful_set::StatefulSet;

/// `ControllerRevision`: one state of a template, which never changes.
struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn validate(&self, revision: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        errs.non_negative(&Path::new("revision"), revision.int_at("revision"));
        match revision.at("data") {
            Value::Object(_) => {}
            Value::Null => errs.required(&Path::new("data"), "data is mandatory"),
            _ => errs.required(&Path::new("data"), "data must be a valid JSON object"),
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        errs.non_negative(&Path::new("revision"), new.int_at("revision"));
        errs.immutable(&Path::new("data"), new.at("data"), old.at("data"));
        errs
    }
}
