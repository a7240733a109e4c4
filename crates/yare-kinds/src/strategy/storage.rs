//! Strategies of the kinds of `storage.k8s.io`.

use super::{Flags, Strategy};

/// `CSIDriver`
pub const CSI_DRIVER: &dyn Strategy = &Flags::new().generation().conditional_update();

/// `CSINode`
pub const CSI_NODE: &dyn Strategy = &Flags::new().conditional_update();

/// `CSIStorageCapacity`
pub const CSI_STORAGE_CAPACITY: &dyn Strategy = &Flags::new().conditional_update();

/// `StorageClass`
pub const STORAGE_CLASS: &dyn Strategy = &Flags::new();

/// `VolumeAttachment`
pub const VOLUME_ATTACHMENT: &dyn Strategy = &Flags::new().status().conditional_update();

/// `VolumeAttributesClass`
pub const VOLUME_ATTRIBUTES_CLASS: &dyn Strategy = &Flags::new();
