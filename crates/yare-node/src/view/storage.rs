//! Claims, volumes and drivers, as far as a node follows and mounts them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{HostPath, Metadata, nullable};

/// `v1.PersistentVolumeClaim`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Claim {
    pub metadata: ClaimMetadata,
    pub spec: ClaimSpec,
    pub status: ClaimStatus,
}

/// A claim's identity, and what keeps it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct ClaimMetadata {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    pub deletion_timestamp: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub finalizers: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub owner_references: Vec<Owner>,
}

/// `metav1.OwnerReference`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Owner {
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controller: Option<bool>,
}

/// The bound volume's name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct ClaimSpec {
    pub volume_name: String,
    #[serde(deserialize_with = "nullable")]
    pub access_modes: Vec<String>,
    pub resources: Requests,
}

/// `v1.VolumeResourceRequirements`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Requests {
    #[serde(deserialize_with = "nullable")]
    pub requests: BTreeMap<String, String>,
}

/// Whether it is bound, and how large it is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct ClaimStatus {
    pub phase: String,
    #[serde(deserialize_with = "nullable")]
    pub capacity: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub allocated_resources: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub allocated_resource_statuses: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<serde_json::Value>,
}

/// `v1.PersistentVolume`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct PersistentVolume {
    pub metadata: Metadata,
    pub spec: PersistentVolumeSpec,
}

/// The volume's source, and how it may be used.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct PersistentVolumeSpec {
    #[serde(deserialize_with = "nullable")]
    pub capacity: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub access_modes: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub mount_options: Vec<String>,
    pub volume_mode: Option<String>,
    pub claim_ref: Option<ClaimReference>,
    pub persistent_volume_reclaim_policy: String,
    pub node_affinity: Option<VolumeNodeAffinity>,
    pub host_path: Option<HostPath>,
    pub local: Option<LocalVolume>,
    pub nfs: Option<Nfs>,
    pub iscsi: Option<Iscsi>,
    pub csi: Option<CsiSource>,
}

/// The claim a volume is bound to.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct ClaimReference {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// `v1.VolumeNodeAffinity`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct VolumeNodeAffinity {
    pub required: Option<serde_json::Value>,
}

/// `v1.LocalVolumeSource`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct LocalVolume {
    pub path: String,
    pub fs_type: Option<String>,
}

/// `v1.NFSVolumeSource`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Nfs {
    pub server: String,
    pub path: String,
    pub read_only: bool,
}

/// `v1.ISCSIVolumeSource` and `v1.ISCSIPersistentVolumeSource`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Iscsi {
    pub target_portal: String,
    #[serde(deserialize_with = "nullable")]
    pub portals: Vec<String>,
    pub iqn: String,
    pub lun: i32,
    pub iscsi_interface: String,
    pub fs_type: String,
    pub read_only: bool,
    pub chap_auth_discovery: bool,
    pub chap_auth_session: bool,
    pub secret_ref: Option<SecretReference>,
    pub initiator_name: Option<String>,
}

/// `v1.SecretReference`; inside a pod the namespace is the pod's.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct SecretReference {
    pub name: String,
    pub namespace: String,
}

/// `v1.CSIPersistentVolumeSource`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct CsiSource {
    pub driver: String,
    pub volume_handle: String,
    pub read_only: bool,
    pub fs_type: String,
    #[serde(deserialize_with = "nullable")]
    pub volume_attributes: BTreeMap<String, String>,
    pub node_stage_secret_ref: Option<SecretReference>,
    pub node_publish_secret_ref: Option<SecretReference>,
    pub node_expand_secret_ref: Option<SecretReference>,
}

/// `v1.CSIVolumeSource`: a volume that lives as long as its pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct CsiInline {
    pub driver: String,
    pub read_only: Option<bool>,
    pub fs_type: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub volume_attributes: BTreeMap<String, String>,
    pub node_publish_secret_ref: Option<SecretReference>,
}

/// `storage.k8s.io/v1` CSIDriver.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct CsiDriver {
    pub spec: CsiDriverSpec,
}

/// What a driver wants.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct CsiDriverSpec {
    pub attach_required: Option<bool>,
    pub pod_info_on_mount: Option<bool>,
    #[serde(deserialize_with = "nullable")]
    pub volume_lifecycle_modes: Vec<String>,
    pub fs_group_policy: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub token_requests: Vec<CsiTokenRequest>,
    pub requires_republish: Option<bool>,
    pub node_allocatable_update_period_seconds: Option<i64>,
    pub service_account_token_in_secrets: Option<bool>,
}

/// `storage.k8s.io/v1` TokenRequest.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct CsiTokenRequest {
    pub audience: String,
    pub expiration_seconds: Option<i64>,
}

/// `storage.k8s.io/v1` VolumeAttachment.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct VolumeAttachment {
    pub metadata: Metadata,
    pub status: VolumeAttachmentStatus,
}

/// Whether it is attached.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct VolumeAttachmentStatus {
    pub attached: bool,
    #[serde(deserialize_with = "nullable")]
    pub attachment_metadata: BTreeMap<String, String>,
    pub attach_error: Option<VolumeError>,
}

/// `storage.k8s.io/v1` VolumeError.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct VolumeError {
    pub message: String,
    pub error_code: Option<i32>,
}

/// `v1.AttachedVolume`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct AttachedVolume {
    pub name: String,
    pub device_path: String,
}
