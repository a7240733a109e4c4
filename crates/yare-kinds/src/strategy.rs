//! What of a kind cannot be read off its shape: defaults, validation, and what an update may change.
//!
//! Strategies see objects as JSON of the storage version, after decoding against the schema (so types are
//! right and unknown fields are gone). They do no I/O.

use serde_json::Value;
use yare_schema::{features::Gates, field::FieldError};

use crate::view::ViewMut;

pub mod admissionregistration;
pub mod apiextensions;
pub mod apiregistration;
pub mod apps;
pub mod authentication;
pub mod authorization;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
pub mod coordination;
pub mod core;
mod declared;
pub mod discovery;
pub mod flowcontrol;
pub mod internal;
pub mod networking;
pub mod node;
pub mod policy;
pub mod rbac;
pub mod resource;
mod rules;
pub mod scheduling;
pub mod storage;
#[cfg(test)]
pub(crate) mod testing;
mod webhook;
mod workload;

/// What is known about the request beside the object.
pub struct Context<'a> {
    /// Now, as RFC 3339 with seconds.
    pub now: &'a str,
    /// The namespace, empty for cluster-scoped kinds.
    pub namespace: &'a str,
    /// The user who asks. (Cluster-wide facts such as service address ranges live in admission, not here.)
    pub user: &'a str,
    /// Which features are on.
    pub gates: &'a Gates,
}

/// The behaviour of one kind. Every method has the neutral default, so a kind implements what it needs.
pub trait Strategy: Sync + Send {
    /// Sets defaults; runs on create, update, patch and on objects read from older storage.
    fn default(&self, _object: &mut Value) {}

    /// Sets the defaults that a feature brings or that tell the time; runs after the others, on what is written.
    fn default_in(&self, _object: &mut Value, _ctx: &Context<'_>) {}

    /// Clears what a client may not set on create (`status`), sets `generation` and the like.
    fn prepare_for_create(&self, object: &mut Value, _ctx: &Context<'_>) {
        if self.has_status() {
            object.remove("status");
        }
        if self.has_generation() {
            object.set("metadata.generation", 1);
        }
    }

    /// Restores what an update of the main resource may not change (`status`); bumps `generation` where the
    /// specification changed.
    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        crate::meta::prepare_for_update(new, old, self.has_status(), self.has_generation());
    }

    /// Restores what an update of the `status` subresource may not change (everything but status and some
    /// metadata).
    fn prepare_for_status_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        crate::meta::prepare_for_status_update(new, old);
        if self.status_leaves_metadata() {
            crate::meta::restore_client_metadata(new, old);
        }
    }

    /// Errors of a new object, beyond its metadata.
    fn validate(&self, _object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        Vec::new()
    }

    /// Errors of an update, beyond its metadata.
    fn validate_update(&self, new: &Value, _old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        self.validate(new, ctx)
    }

    /// Errors of a `status` update.
    fn validate_status_update(&self, _new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        Vec::new()
    }

    /// [`Strategy::prepare_for_status_update`] for any subresource that is a view of the object (`status`,
    /// `resize`, `ephemeralcontainers`, `finalize`, `approval`).
    fn prepare_for_subresource_update(
        &self,
        subresource: &str,
        new: &mut Value,
        old: &Value,
        ctx: &Context<'_>,
    ) {
        if subresource == "status" {
            self.prepare_for_status_update(new, old, ctx);
        } else {
            self.prepare_for_update(new, old, ctx);
        }
    }

    /// [`Strategy::validate_status_update`] for any subresource that is a view of the object.
    fn validate_subresource_update(
        &self,
        subresource: &str,
        new: &Value,
        old: &Value,
        ctx: &Context<'_>,
    ) -> Vec<FieldError> {
        if subresource == "status" {
            self.validate_status_update(new, old, ctx)
        } else {
            self.validate_update(new, old, ctx)
        }
    }

    /// Errors of an update, of the object (`subresource` is empty) or of a view of it. `warnings` takes what is
    /// wrong with the object, but was before and is not held against the update.
    fn judge_update(
        &self,
        subresource: &str,
        new: &Value,
        old: &Value,
        ctx: &Context<'_>,
        _warnings: &mut Vec<String>,
    ) -> Vec<FieldError> {
        if subresource.is_empty() {
            self.validate_update(new, old, ctx)
        } else {
            self.validate_subresource_update(subresource, new, old, ctx)
        }
    }

    /// Whether the values of the object's own selector and of its pods' affinity are judged as one: where one of
    /// them was wrong before, an update may keep the others wrong too.
    fn judges_selectors_as_one(&self) -> bool {
        false
    }

    /// Warnings for the client (`Warning: 299`), for example of deprecated fields.
    fn warnings(&self, _new: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// [`Strategy::warnings`] about what [`Strategy::prepare_for_create`] is about to change.
    fn notes_on_create(&self, _new: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Whether a new object that comes without a name is called by a new UUID.
    fn names_itself(&self) -> bool {
        false
    }

    /// Whether errors in the metadata of a new object stand beside those in the rest of it.
    fn judges_metadata(&self) -> bool {
        true
    }

    /// [`Strategy::warnings`] of an update through a subresource: of most there are none.
    fn subresource_warnings(&self, _subresource: &str, _new: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Whether the kind has a `status` subresource whose field the main resource must not write.
    fn has_status(&self) -> bool {
        false
    }

    /// Whether an update of `status` cannot write metadata: labels, annotations, finalizers and owners stay.
    fn status_leaves_metadata(&self) -> bool {
        false
    }

    /// Whether `metadata.generation` counts the changes of the specification.
    fn has_generation(&self) -> bool {
        false
    }

    /// Whether an update may create the object that is absent (Lease, …).
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// Whether an update without a `resourceVersion` is allowed.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// The default grace period of a graceful deletion in seconds; `None`: the kind is deleted at once.
    /// `Some(0)`: the kind has graceful deletion, but this object is deleted at once, whatever the client asks.
    fn graceful_deletion_s(&self, _object: &Value) -> Option<i64> {
        None
    }

    /// Rules for `metadata.name`.
    fn validate_name(&self, name: &str) -> Vec<String> {
        crate::names::dns1123_subdomain(name)
    }

    /// [`Strategy::validate_name`] where the rule depends on the object.
    fn validate_name_of(&self, name: &str, _object: &Value) -> Vec<String> {
        self.validate_name(name)
    }

    /// Whether what a name is to begin with (`metadata.generateName`) must follow the rule for names, too.
    fn judges_prefix(&self) -> bool {
        true
    }
}

/// The strategy of kinds whose shape says everything.
pub struct Neutral;

impl Strategy for Neutral {}

/// A strategy that consists of its flags: no rules beyond the shape, or not yet.
#[derive(Clone, Copy)]
pub struct Flags {
    status: bool,
    generation: bool,
    create_on_update: bool,
    unconditional_update: bool,
    name: fn(&str) -> Vec<String>,
}

impl Flags {
    /// The neutral strategy; the methods add to it.
    pub const fn new() -> Self {
        Self {
            status: false,
            generation: false,
            create_on_update: false,
            unconditional_update: true,
            name: crate::names::dns1123_subdomain,
        }
    }

    /// With a `status` that only its subresource writes.
    pub const fn status(mut self) -> Self {
        self.status = true;
        self
    }

    /// With a counted `generation`.
    pub const fn generation(mut self) -> Self {
        self.generation = true;
        self
    }

    /// An update may create the object.
    pub const fn create_on_update(mut self) -> Self {
        self.create_on_update = true;
        self
    }

    /// An update needs a `resourceVersion`.
    pub const fn conditional_update(mut self) -> Self {
        self.unconditional_update = false;
        self
    }

    /// The rule for names, where it is not [`crate::names::dns1123_subdomain`].
    pub const fn named(mut self, rule: fn(&str) -> Vec<String>) -> Self {
        self.name = rule;
        self
    }
}

impl Default for Flags {
    fn default() -> Self {
        Self::new()
    }
}

impl Strategy for Flags {
    fn has_status(&self) -> bool {
        self.status
    }

    fn has_generation(&self) -> bool {
        self.generation
    }

    fn allow_create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn allow_unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        (self.name)(name)
    }
}
