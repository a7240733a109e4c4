//! Strategies of the kinds of the core group.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{Context, Flags, Strategy};
use crate::{
    check::{Check, Errors},
    view::View,
};

pub mod claim;
mod config;
pub mod endpoints;
mod event;
mod namespace;
mod node;
mod pod;
mod quota;
mod replication;
pub mod service;
mod tls;
pub mod volume;

/// `ComponentStatus`
pub const COMPONENT_STATUS: &dyn Strategy = &Flags::new();
/// `Binding`
pub const BINDING: &dyn Strategy = &Binding;
/// `ConfigMap`
pub const CONFIG_MAP: &dyn Strategy = &config::ConfigMap;
/// `Endpoints`
pub const ENDPOINTS: &dyn Strategy = &endpoints::Endpoints;
/// `Event` of the core group
pub const EVENT: &dyn Strategy = &event::Event { strict: false };
/// `Event` of `events.k8s.io`, whose rules are stricter
pub const NEW_EVENT: &dyn Strategy = &event::Event { strict: true };
/// `LimitRange`
pub const LIMIT_RANGE: &dyn Strategy = &quota::LimitRange;
/// `Namespace`
pub const NAMESPACE: &dyn Strategy = &namespace::Namespace;
/// `Node`
pub const NODE: &dyn Strategy = &node::Node;
/// `PersistentVolume`
pub const PERSISTENT_VOLUME: &dyn Strategy = &volume::PersistentVolume;
/// `PersistentVolumeClaim`
pub const PERSISTENT_VOLUME_CLAIM: &dyn Strategy = &claim::PersistentVolumeClaim;
/// `Pod`
pub const POD: &dyn Strategy = &pod::Pod;
/// `PodTemplate`
pub const POD_TEMPLATE: &dyn Strategy = &replication::PodTemplate;
/// `ReplicationController`
pub const REPLICATION_CONTROLLER: &dyn Strategy = &replication::ReplicationController;
/// `ResourceQuota`
pub const RESOURCE_QUOTA: &dyn Strategy = &quota::ResourceQuota;
/// `Secret`
pub const SECRET: &dyn Strategy = &config::Secret;
/// `Service`
pub const SERVICE: &dyn Strategy = &service::Service;
/// `ServiceAccount`
pub const SERVICE_ACCOUNT: &dyn Strategy = &config::ServiceAccount;

/// `Binding`: the request to run a pod on a node.
struct Binding;

impl Strategy for Binding {
    fn validate(&self, binding: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("target");
        let kind = binding.str_at("target.kind");
        if !kind.is_empty() && kind != "Node" {
            errs.one_listed(&path.child("kind"), kind, &["Node", "<empty>"]);
        }
        errs.non_empty(&path.child("name"), binding.str_at("target.name"));
        errs
    }
}
