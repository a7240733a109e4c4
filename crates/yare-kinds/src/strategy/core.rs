//! Strategies of the kinds of the core group.

use super::{Flags, Strategy};

/// `Pod`
pub const POD: &dyn Strategy = &Flags::new().status().generation();

/// `PodTemplate`
pub const POD_TEMPLATE: &dyn Strategy = &Flags::new().generation();

/// `Service`
pub const SERVICE: &dyn Strategy = &Flags::new().status().create_on_update().named(crate::names::dns1035_label);

/// `Endpoints`
pub const ENDPOINTS: &dyn Strategy = &Flags::new().create_on_update();

/// `Node`
pub const NODE: &dyn Strategy = &Flags::new().status();

/// `Namespace`
pub const NAMESPACE: &dyn Strategy = &Flags::new().status().named(crate::names::dns1123_label);

/// `ConfigMap`
pub const CONFIG_MAP: &dyn Strategy = &Flags::new();

/// `Secret`
pub const SECRET: &dyn Strategy = &Flags::new();

/// `ServiceAccount`
pub const SERVICE_ACCOUNT: &dyn Strategy = &Flags::new();

/// `PersistentVolume`
pub const PERSISTENT_VOLUME: &dyn Strategy = &Flags::new().status();

/// `PersistentVolumeClaim`
pub const PERSISTENT_VOLUME_CLAIM: &dyn Strategy = &Flags::new().status();

/// `ReplicationController`
pub const REPLICATION_CONTROLLER: &dyn Strategy = &Flags::new().status().generation();

/// `Event`
pub const EVENT: &dyn Strategy = &Flags::new().create_on_update();

/// `LimitRange`
pub const LIMIT_RANGE: &dyn Strategy = &Flags::new().create_on_update();

/// `ResourceQuota`
pub const RESOURCE_QUOTA: &dyn Strategy = &Flags::new().status();

/// `Binding`
pub const BINDING: &dyn Strategy = &Flags::new();

/// `ComponentStatus`
pub const COMPONENT_STATUS: &dyn Strategy = &Flags::new();
