//! Strategies of the kinds of `rbac.authorization.k8s.io`.

use super::{Flags, Strategy};

/// `ClusterRole`
pub const CLUSTER_ROLE: &dyn Strategy = &Flags::new().create_on_update().named(crate::names::path_segment);

/// `ClusterRoleBinding`
pub const CLUSTER_ROLE_BINDING: &dyn Strategy = &Flags::new().create_on_update().named(crate::names::path_segment);

/// `Role`
pub const ROLE: &dyn Strategy = &Flags::new().create_on_update().named(crate::names::path_segment);

/// `RoleBinding`
pub const ROLE_BINDING: &dyn Strategy = &Flags::new().create_on_update().named(crate::names::path_segment);
