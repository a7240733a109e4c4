//! The Container Storage Interface, version 1: its messages, and its methods by path.
//!
//! Fields and numbers are those of the CSI specification. What is left out a node never sends, and a driver of
//! the tests never answers.

use std::collections::HashMap;

use prost::{Enumeration, Message, Oneof};

/// A method of the identity service.
macro_rules! methods {
    ($($service:literal { $($name:ident $method:literal)* })*) => {
        $($(
            #[doc = concat!("`", $service, ".", $method, "`")]
            pub const $name: &str = concat!("/csi.v1.", $service, "/", $method);
        )*)*
    };
}

methods! {
    "Identity" {
        GET_PLUGIN_INFO "GetPluginInfo"
        GET_PLUGIN_CAPABILITIES "GetPluginCapabilities"
        PROBE "Probe"
    }
    "Controller" {
        CREATE_VOLUME "CreateVolume"
        DELETE_VOLUME "DeleteVolume"
        CONTROLLER_PUBLISH_VOLUME "ControllerPublishVolume"
        CONTROLLER_UNPUBLISH_VOLUME "ControllerUnpublishVolume"
        VALIDATE_VOLUME_CAPABILITIES "ValidateVolumeCapabilities"
        GET_CAPACITY "GetCapacity"
        CONTROLLER_GET_CAPABILITIES "ControllerGetCapabilities"
        CONTROLLER_EXPAND_VOLUME "ControllerExpandVolume"
    }
    "Node" {
        NODE_STAGE_VOLUME "NodeStageVolume"
        NODE_UNSTAGE_VOLUME "NodeUnstageVolume"
        NODE_PUBLISH_VOLUME "NodePublishVolume"
        NODE_UNPUBLISH_VOLUME "NodeUnpublishVolume"
        NODE_GET_VOLUME_STATS "NodeGetVolumeStats"
        NODE_EXPAND_VOLUME "NodeExpandVolume"
        NODE_GET_CAPABILITIES "NodeGetCapabilities"
        NODE_GET_INFO "NodeGetInfo"
    }
}

/// Strings by strings.
pub type Map = HashMap<String, String>;

/// A request or response without fields.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Nothing {}

/// `GetPluginInfoResponse`
#[derive(Clone, PartialEq, Message)]
pub struct PluginInfo {
    /// The driver's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub vendor_version: String,
    /// More about it.
    #[prost(map = "string, string", tag = "3")]
    pub manifest: Map,
}

/// A capability of any service: `{ one of: { type } }`.
#[derive(Clone, PartialEq, Message)]
pub struct Capability {
    /// An RPC, or of the identity service a service.
    #[prost(message, optional, tag = "1")]
    pub rpc: Option<CapabilityType>,
    /// Of the identity service: how volumes are expanded.
    #[prost(message, optional, tag = "2")]
    pub volume_expansion: Option<CapabilityType>,
}

/// The number inside a [`Capability`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CapabilityType {
    /// A [`NodeCapability`], [`ControllerCapability`] or [`PluginService`].
    #[prost(int32, tag = "1")]
    pub kind: i32,
}

impl Capability {
    /// The capability with this number.
    pub fn rpc(kind: i32) -> Self {
        Capability { rpc: Some(CapabilityType { kind }), volume_expansion: None }
    }
}

/// Capabilities of any service.
#[derive(Clone, PartialEq, Message)]
pub struct Capabilities {
    /// One entry each.
    #[prost(message, repeated, tag = "1")]
    pub capabilities: Vec<Capability>,
}

/// `PluginCapability.Service.Type`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
#[allow(missing_docs, reason = "CSI's own names")]
pub enum PluginService {
    Unknown = 0,
    ControllerService = 1,
    VolumeAccessibilityConstraints = 2,
}

/// `NodeServiceCapability.RPC.Type`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
#[allow(missing_docs, reason = "CSI's own names")]
pub enum NodeCapability {
    Unknown = 0,
    StageUnstageVolume = 1,
    GetVolumeStats = 2,
    ExpandVolume = 3,
    VolumeCondition = 4,
    SingleNodeMultiWriter = 5,
    VolumeMountGroup = 6,
}

/// `ControllerServiceCapability.RPC.Type`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
#[allow(missing_docs, reason = "CSI's own names")]
pub enum ControllerCapability {
    Unknown = 0,
    CreateDeleteVolume = 1,
    PublishUnpublishVolume = 2,
    GetCapacity = 4,
    ExpandVolume = 9,
}

/// `ProbeResponse`
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Readiness {
    /// Absent means ready.
    #[prost(message, optional, tag = "1")]
    pub ready: Option<BoolValue>,
}

/// `google.protobuf.BoolValue`
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct BoolValue {
    /// The value.
    #[prost(bool, tag = "1")]
    pub value: bool,
}

/// `VolumeCapability`
#[derive(Clone, PartialEq, Message)]
pub struct VolumeCapability {
    /// As what it is used.
    #[prost(oneof = "AccessType", tags = "1, 2")]
    pub access_type: Option<AccessType>,
    /// By whom.
    #[prost(message, optional, tag = "3")]
    pub access_mode: Option<AccessModeMessage>,
}

/// As what a volume is used.
#[derive(Clone, PartialEq, Oneof)]
pub enum AccessType {
    /// A block device.
    #[prost(message, tag = "1")]
    Block(Nothing),
    /// A file system.
    #[prost(message, tag = "2")]
    Mount(MountVolume),
}

/// `VolumeCapability.MountVolume`
#[derive(Clone, PartialEq, Message)]
pub struct MountVolume {
    /// `ext4`; empty: the driver's choice.
    #[prost(string, tag = "1")]
    pub fs_type: String,
    /// Mount options.
    #[prost(string, repeated, tag = "2")]
    pub mount_flags: Vec<String>,
    /// The group that may use it, as a number; only for drivers with [`NodeCapability::VolumeMountGroup`].
    #[prost(string, tag = "3")]
    pub volume_mount_group: String,
}

/// `VolumeCapability.AccessMode`
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct AccessModeMessage {
    /// The mode.
    #[prost(enumeration = "AccessMode", tag = "1")]
    pub mode: i32,
}

/// `VolumeCapability.AccessMode.Mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
#[allow(missing_docs, reason = "CSI's own names")]
pub enum AccessMode {
    Unknown = 0,
    SingleNodeWriter = 1,
    SingleNodeReaderOnly = 2,
    MultiNodeReaderOnly = 3,
    MultiNodeSingleWriter = 4,
    MultiNodeMultiWriter = 5,
    SingleNodeSingleWriter = 6,
    SingleNodeMultiWriter = 7,
}

/// `CapacityRange`
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CapacityRange {
    /// At least.
    #[prost(int64, tag = "1")]
    pub required_bytes: i64,
    /// At most; 0: no limit.
    #[prost(int64, tag = "2")]
    pub limit_bytes: i64,
}

/// `Topology`
#[derive(Clone, PartialEq, Message)]
pub struct Topology {
    /// Keys and values, which become labels of the node.
    #[prost(map = "string, string", tag = "1")]
    pub segments: Map,
}

/// `TopologyRequirement`
#[derive(Clone, PartialEq, Message)]
pub struct TopologyRequirement {
    /// One of these.
    #[prost(message, repeated, tag = "1")]
    pub requisite: Vec<Topology>,
    /// The best first.
    #[prost(message, repeated, tag = "2")]
    pub preferred: Vec<Topology>,
}

/// `VolumeContentSource`, of a volume.
#[derive(Clone, PartialEq, Message)]
pub struct VolumeContentSource {
    /// The volume whose content a new one gets.
    #[prost(message, optional, tag = "2")]
    pub volume: Option<VolumeSource>,
}

/// `VolumeContentSource.VolumeSource`
#[derive(Clone, PartialEq, Message)]
pub struct VolumeSource {
    /// Its id.
    #[prost(string, tag = "1")]
    pub volume_id: String,
}

/// `CreateVolumeRequest`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct CreateVolume {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub capacity_range: Option<CapacityRange>,
    #[prost(message, repeated, tag = "3")]
    pub volume_capabilities: Vec<VolumeCapability>,
    #[prost(map = "string, string", tag = "4")]
    pub parameters: Map,
    #[prost(map = "string, string", tag = "5")]
    pub secrets: Map,
    #[prost(message, optional, tag = "6")]
    pub volume_content_source: Option<VolumeContentSource>,
    #[prost(message, optional, tag = "7")]
    pub accessibility_requirements: Option<TopologyRequirement>,
}

/// `CreateVolumeResponse`
#[derive(Clone, PartialEq, Message)]
pub struct CreatedVolume {
    /// The volume.
    #[prost(message, optional, tag = "1")]
    pub volume: Option<Volume>,
}

/// `Volume`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct Volume {
    #[prost(int64, tag = "1")]
    pub capacity_bytes: i64,
    #[prost(string, tag = "2")]
    pub volume_id: String,
    #[prost(map = "string, string", tag = "3")]
    pub volume_context: Map,
    #[prost(message, optional, tag = "4")]
    pub content_source: Option<VolumeContentSource>,
    #[prost(message, repeated, tag = "5")]
    pub accessible_topology: Vec<Topology>,
}

/// `DeleteVolumeRequest`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct DeleteVolume {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(map = "string, string", tag = "2")]
    pub secrets: Map,
}

/// `ControllerPublishVolumeRequest`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct ControllerPublish {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub node_id: String,
    #[prost(message, optional, tag = "3")]
    pub volume_capability: Option<VolumeCapability>,
    #[prost(bool, tag = "4")]
    pub readonly: bool,
    #[prost(map = "string, string", tag = "5")]
    pub secrets: Map,
    #[prost(map = "string, string", tag = "6")]
    pub volume_context: Map,
}

/// `ControllerPublishVolumeResponse`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct ControllerPublished {
    #[prost(map = "string, string", tag = "1")]
    pub publish_context: Map,
}

/// `ControllerUnpublishVolumeRequest`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct ControllerUnpublish {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub node_id: String,
    #[prost(map = "string, string", tag = "3")]
    pub secrets: Map,
}

/// `ValidateVolumeCapabilitiesRequest`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct ValidateVolumeCapabilities {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(map = "string, string", tag = "2")]
    pub volume_context: Map,
    #[prost(message, repeated, tag = "3")]
    pub volume_capabilities: Vec<VolumeCapability>,
}

/// `ValidateVolumeCapabilitiesResponse`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct ValidatedVolumeCapabilities {
    #[prost(message, optional, tag = "1")]
    pub confirmed: Option<Confirmed>,
    #[prost(string, tag = "2")]
    pub message: String,
}

/// `ValidateVolumeCapabilitiesResponse.Confirmed`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct Confirmed {
    #[prost(map = "string, string", tag = "1")]
    pub volume_context: Map,
    #[prost(message, repeated, tag = "2")]
    pub volume_capabilities: Vec<VolumeCapability>,
}

/// `GetCapacityRequest`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct GetCapacity {
    #[prost(message, repeated, tag = "1")]
    pub volume_capabilities: Vec<VolumeCapability>,
    #[prost(map = "string, string", tag = "2")]
    pub parameters: Map,
    #[prost(message, optional, tag = "3")]
    pub accessible_topology: Option<Topology>,
}

/// `GetCapacityResponse`
#[derive(Clone, Copy, PartialEq, Eq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct AvailableCapacity {
    #[prost(int64, tag = "1")]
    pub available_capacity: i64,
}

/// `ControllerExpandVolumeRequest`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct ControllerExpand {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(message, optional, tag = "2")]
    pub capacity_range: Option<CapacityRange>,
    #[prost(map = "string, string", tag = "3")]
    pub secrets: Map,
    #[prost(message, optional, tag = "4")]
    pub volume_capability: Option<VolumeCapability>,
}

/// `ControllerExpandVolumeResponse`
#[derive(Clone, Copy, PartialEq, Eq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct ControllerExpanded {
    #[prost(int64, tag = "1")]
    pub capacity_bytes: i64,
    #[prost(bool, tag = "2")]
    pub node_expansion_required: bool,
}

/// `NodeStageVolumeRequest`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct NodeStage {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(map = "string, string", tag = "2")]
    pub publish_context: Map,
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    #[prost(message, optional, tag = "4")]
    pub volume_capability: Option<VolumeCapability>,
    #[prost(map = "string, string", tag = "5")]
    pub secrets: Map,
    #[prost(map = "string, string", tag = "6")]
    pub volume_context: Map,
}

/// `NodeUnstageVolumeRequest`
#[derive(Clone, PartialEq, Eq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct NodeUnstage {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub staging_target_path: String,
}

/// `NodePublishVolumeRequest`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct NodePublish {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(map = "string, string", tag = "2")]
    pub publish_context: Map,
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    #[prost(string, tag = "4")]
    pub target_path: String,
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    #[prost(map = "string, string", tag = "7")]
    pub secrets: Map,
    #[prost(map = "string, string", tag = "8")]
    pub volume_context: Map,
}

/// `NodeUnpublishVolumeRequest`
#[derive(Clone, PartialEq, Eq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct NodeUnpublish {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub target_path: String,
}

/// `NodeGetVolumeStatsRequest`
#[derive(Clone, PartialEq, Eq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct NodeGetVolumeStats {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub volume_path: String,
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
}

/// `NodeGetVolumeStatsResponse`
#[derive(Clone, PartialEq, Eq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct VolumeStats {
    #[prost(message, repeated, tag = "1")]
    pub usage: Vec<VolumeUsage>,
    #[prost(message, optional, tag = "2")]
    pub volume_condition: Option<VolumeCondition>,
}

/// `VolumeUsage`
#[derive(Clone, Copy, PartialEq, Eq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct VolumeUsage {
    #[prost(int64, tag = "1")]
    pub available: i64,
    #[prost(int64, tag = "2")]
    pub total: i64,
    #[prost(int64, tag = "3")]
    pub used: i64,
    #[prost(enumeration = "UsageUnit", tag = "4")]
    pub unit: i32,
}

/// `VolumeUsage.Unit`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
#[allow(missing_docs, reason = "CSI's own names")]
pub enum UsageUnit {
    Unknown = 0,
    Bytes = 1,
    Inodes = 2,
}

/// `VolumeCondition`
#[derive(Clone, PartialEq, Eq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct VolumeCondition {
    #[prost(bool, tag = "1")]
    pub abnormal: bool,
    #[prost(string, tag = "2")]
    pub message: String,
}

/// `NodeGetInfoResponse`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct NodeInfo {
    #[prost(string, tag = "1")]
    pub node_id: String,
    #[prost(int64, tag = "2")]
    pub max_volumes_per_node: i64,
    #[prost(message, optional, tag = "3")]
    pub accessible_topology: Option<Topology>,
}

/// `NodeExpandVolumeRequest`
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct NodeExpand {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub volume_path: String,
    #[prost(message, optional, tag = "3")]
    pub capacity_range: Option<CapacityRange>,
    #[prost(string, tag = "4")]
    pub staging_target_path: String,
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    #[prost(map = "string, string", tag = "6")]
    pub secrets: Map,
}

/// `NodeExpandVolumeResponse`
#[derive(Clone, Copy, PartialEq, Eq, Message)]
#[allow(missing_docs, reason = "CSI's own names")]
pub struct NodeExpanded {
    #[prost(int64, tag = "1")]
    pub capacity_bytes: i64,
}
