//! Strategies of the kinds of `storage.k8s.io`.

use super::Strategy;

mod attachment;
mod class;
mod csi;
mod inline;
#[cfg(test)]
mod tests;

/// `CSIDriver`
pub const CSI_DRIVER: &dyn Strategy = &csi::CsiDriver;

/// `CSINode`
pub const CSI_NODE: &dyn Strategy = &csi::CsiNode;

/// `CSIStorageCapacity`
pub const CSI_STORAGE_CAPACITY: &dyn Strategy = &csi::CsiStorageCapacity;

/// `StorageClass`
pub const STORAGE_CLASS: &dyn Strategy = &class::StorageClass;

/// `VolumeAttachment`
pub const VOLUME_ATTACHMENT: &dyn Strategy = &attachment::VolumeAttachment;

/// `VolumeAttributesClass`
pub const VOLUME_ATTRIBUTES_CLASS: &dyn Strategy = &class::VolumeAttributesClass;
