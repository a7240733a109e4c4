//! Objects that pods refer to: ConfigMaps, Secrets, Services, and the node itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AttachedVolume, Metadata, nullable};

/// `v1.ConfigMap`; `binaryData` is base64 as served.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct ConfigMap {
    #[serde(deserialize_with = "nullable")]
    pub data: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub binary_data: BTreeMap<String, String>,
}

/// `v1.Secret`; `data` is base64 as served.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Secret {
    pub metadata: Metadata,
    #[serde(deserialize_with = "nullable")]
    pub data: BTreeMap<String, String>,
    #[serde(rename = "type")]
    pub kind: String,
}

/// `v1.Service`, for the environment variables of its clients.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Service {
    pub metadata: Metadata,
    pub spec: ServiceSpec,
}

/// `v1.ServiceSpec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ServicePort>,
}

/// `v1.ServicePort`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    pub protocol: String,
}

/// `v1.Node`, as far as its own kubelet reads it back.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct NodeView {
    pub metadata: Metadata,
    pub spec: NodeSpecView,
    pub status: NodeStatusView,
}

/// `v1.NodeSpec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct NodeSpecView {
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    #[serde(deserialize_with = "nullable")]
    pub taints: Vec<Taint>,
}

/// `v1.NodeStatus`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct NodeStatusView {
    #[serde(deserialize_with = "nullable")]
    pub capacity: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub allocatable: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<NodeCondition>,
    /// `None` where the attach/detach controller has not spoken yet.
    pub volumes_attached: Option<Vec<AttachedVolume>>,
}

/// `v1.NodeCondition`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct NodeCondition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub last_heartbeat_time: Option<String>,
    pub last_transition_time: Option<String>,
    pub reason: String,
    pub message: String,
}

/// `v1.Taint`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Taint {
    pub key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    pub effect: String,
}
