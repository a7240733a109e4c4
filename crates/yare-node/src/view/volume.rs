//! Volumes and where their content comes from.

use serde::Deserialize;

use super::container::pull_policy;
use super::{CsiInline, FieldRef, Iscsi, Nfs, ResourceFieldRef, nullable};

/// `v1.Volume`: a name and one source.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Volume {
    pub name: String,
    pub config_map: Option<ConfigMapSource>,
    pub secret: Option<SecretSource>,
    pub empty_dir: Option<EmptyDir>,
    pub host_path: Option<HostPath>,
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<DownwardApi>,
    pub projected: Option<Projected>,
    pub persistent_volume_claim: Option<ClaimSource>,
    pub ephemeral: Option<serde_json::Value>,
    pub csi: Option<CsiInline>,
    pub nfs: Option<Nfs>,
    pub iscsi: Option<Iscsi>,
    pub image: Option<ImageSource>,
    /// Every other source, so that an unsupported one is named in the error.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// `v1.ImageVolumeSource`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct ImageSource {
    pub reference: String,
    pub pull_policy: String,
}

impl ImageSource {
    /// The pull policy, its default applied.
    pub fn pull_policy(&self) -> &str {
        pull_policy(&self.pull_policy, &self.reference)
    }
}

/// `v1.KeyToPath`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct KeyToPath {
    pub key: String,
    pub path: String,
    pub mode: Option<u32>,
}

/// `v1.ConfigMapVolumeSource`, also inside `projected`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct ConfigMapSource {
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub items: Vec<KeyToPath>,
    pub default_mode: Option<u32>,
    pub optional: Option<bool>,
}

/// `v1.SecretVolumeSource`, also inside `projected` (there the name is `name`).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct SecretSource {
    #[serde(alias = "name")]
    pub secret_name: String,
    #[serde(deserialize_with = "nullable")]
    pub items: Vec<KeyToPath>,
    pub default_mode: Option<u32>,
    pub optional: Option<bool>,
}

/// `v1.EmptyDirVolumeSource`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct EmptyDir {
    pub medium: String,
    pub size_limit: Option<String>,
}

/// `v1.HostPathVolumeSource`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct HostPath {
    pub path: String,
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

/// `v1.DownwardAPIVolumeSource`, also inside `projected`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct DownwardApi {
    #[serde(deserialize_with = "nullable")]
    pub items: Vec<DownwardItem>,
    pub default_mode: Option<u32>,
}

/// `v1.DownwardAPIVolumeFile`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct DownwardItem {
    pub path: String,
    pub field_ref: Option<FieldRef>,
    pub resource_field_ref: Option<ResourceFieldRef>,
    pub mode: Option<u32>,
}

/// `v1.ProjectedVolumeSource`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Projected {
    #[serde(deserialize_with = "nullable")]
    pub sources: Vec<Projection>,
    pub default_mode: Option<u32>,
}

/// `v1.VolumeProjection`: one is set.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Projection {
    pub config_map: Option<ConfigMapSource>,
    pub secret: Option<SecretSource>,
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<DownwardApi>,
    pub service_account_token: Option<TokenProjection>,
    pub cluster_trust_bundle: Option<TrustBundleProjection>,
    pub pod_certificate: Option<PodCertificateProjection>,
}

/// `v1.ClusterTrustBundleProjection`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct TrustBundleProjection {
    pub name: Option<String>,
    pub signer_name: Option<String>,
    pub label_selector: Option<serde_json::Value>,
    pub optional: Option<bool>,
    pub path: String,
}

/// `v1.PodCertificateProjection`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct PodCertificateProjection {
    pub signer_name: String,
    pub key_type: String,
    pub max_expiration_seconds: Option<i64>,
    pub credential_bundle_path: String,
    pub key_path: String,
    pub certificate_chain_path: String,
    #[serde(deserialize_with = "nullable")]
    pub user_annotations: std::collections::BTreeMap<String, String>,
}

/// `v1.ServiceAccountTokenProjection`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct TokenProjection {
    pub audience: String,
    pub expiration_seconds: Option<i64>,
    pub path: String,
}

/// `v1.PersistentVolumeClaimVolumeSource`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct ClaimSource {
    pub claim_name: String,
    pub read_only: bool,
}
