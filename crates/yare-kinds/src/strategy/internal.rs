//! Strategies of the kinds of `internal.apiserver.k8s.io and storagemigration.k8s.io`.

use super::{Flags, Strategy};

/// `StorageVersion`
pub const STORAGE_VERSION: &dyn Strategy = &Flags::new().status().conditional_update();

/// `StorageVersionMigration`
pub const STORAGE_VERSION_MIGRATION: &dyn Strategy = &Flags::new().status().conditional_update();
