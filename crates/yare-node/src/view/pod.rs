//! A pod as its node sees it: metadata, spec, status.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    Container, EphemeralContainer, PodStatus, ResourceRequirements, SeccompProfile, Volume, nullable,
};

/// `v1.Pod`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    /// Name, identity, deletion.
    pub metadata: Metadata,
    /// What should run.
    pub spec: PodSpec,
    /// What the API server last heard of it.
    pub status: PodStatus,
}

/// `metav1.ObjectMeta`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Metadata {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    pub generation: i64,
    pub creation_timestamp: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    pub deletion_timestamp: Option<String>,
    pub deletion_grace_period_seconds: Option<i64>,
    #[serde(deserialize_with = "nullable")]
    pub finalizers: Vec<String>,
}

/// `v1.PodSpec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct PodSpec {
    pub node_name: String,
    pub restart_policy: String,
    pub termination_grace_period_seconds: Option<i64>,
    pub active_deadline_seconds: Option<i64>,
    pub dns_policy: String,
    pub dns_config: Option<PodDnsConfig>,
    #[serde(deserialize_with = "nullable")]
    pub node_selector: BTreeMap<String, String>,
    pub affinity: Option<serde_json::Value>,
    pub service_account_name: String,
    pub runtime_class_name: Option<String>,
    pub host_network: bool,
    #[serde(rename = "hostPID")]
    pub host_pid: bool,
    #[serde(rename = "hostIPC")]
    pub host_ipc: bool,
    pub host_users: Option<bool>,
    pub share_process_namespace: Option<bool>,
    pub hostname: String,
    pub hostname_override: Option<String>,
    pub subdomain: String,
    #[serde(rename = "setHostnameAsFQDN")]
    pub set_hostname_as_fqdn: Option<bool>,
    pub enable_service_links: Option<bool>,
    pub priority: Option<i32>,
    pub priority_class_name: String,
    #[serde(deserialize_with = "nullable")]
    pub containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    pub init_containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    pub ephemeral_containers: Vec<EphemeralContainer>,
    #[serde(deserialize_with = "nullable")]
    pub volumes: Vec<Volume>,
    pub security_context: Option<PodSecurityContext>,
    #[serde(deserialize_with = "nullable")]
    pub image_pull_secrets: Vec<LocalReference>,
    #[serde(deserialize_with = "nullable")]
    pub host_aliases: Vec<HostAlias>,
    #[serde(deserialize_with = "nullable")]
    pub readiness_gates: Vec<ReadinessGate>,
    #[serde(deserialize_with = "nullable")]
    pub tolerations: Vec<Toleration>,
    #[serde(deserialize_with = "nullable")]
    pub overhead: BTreeMap<String, String>,
    pub resources: Option<ResourceRequirements>,
    pub os: Option<PodOs>,
    #[serde(deserialize_with = "nullable")]
    pub resource_claims: Vec<PodResourceClaim>,
}

/// `v1.PodResourceClaim`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct PodResourceClaim {
    pub name: String,
    pub resource_claim_name: Option<String>,
    pub resource_claim_template_name: Option<String>,
}

/// `v1.PodDNSConfig`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct PodDnsConfig {
    #[serde(deserialize_with = "nullable")]
    pub nameservers: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub searches: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub options: Vec<DnsOption>,
}

/// One resolver option, `name` or `name:value`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct DnsOption {
    pub name: String,
    pub value: Option<String>,
}

/// `v1.HostAlias`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct HostAlias {
    pub ip: String,
    #[serde(deserialize_with = "nullable")]
    pub hostnames: Vec<String>,
}

/// `v1.PodReadinessGate`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct ReadinessGate {
    pub condition_type: String,
}

/// `v1.LocalObjectReference`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct LocalReference {
    pub name: String,
}

/// `v1.Toleration`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Toleration {
    pub key: String,
    pub operator: String,
    pub value: String,
    pub effect: String,
}

/// `v1.PodOS`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct PodOs {
    pub name: String,
}

/// `v1.PodSecurityContext`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct PodSecurityContext {
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_non_root: Option<bool>,
    #[serde(deserialize_with = "nullable")]
    pub supplemental_groups: Vec<i64>,
    pub supplemental_groups_policy: Option<String>,
    pub fs_group: Option<i64>,
    pub fs_group_change_policy: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub sysctls: Vec<Sysctl>,
    pub seccomp_profile: Option<SeccompProfile>,
    pub app_armor_profile: Option<SeccompProfile>,
}

/// `v1.Sysctl`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "Kubernetes' own field names")]
pub struct Sysctl {
    pub name: String,
    pub value: String,
}

impl Pod {
    /// `name_namespace(uid)`, the form in kubelet's messages.
    pub fn full_name(&self) -> String {
        format!("{}_{}({})", self.metadata.name, self.metadata.namespace, self.metadata.uid)
    }

    /// Whether it comes from a manifest of this node and not from the API server.
    pub fn is_static(&self) -> bool {
        self.metadata.annotations.get("kubernetes.io/config.source").is_some_and(|source| source != "api")
    }

    /// Whether deletion was asked for.
    pub fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Whether the API server already holds a final phase.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// The container of any kind with this name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.all_containers().find(|c| c.name == name)
    }

    /// Init, main, then ephemeral containers.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec
            .init_containers
            .iter()
            .chain(&self.spec.containers)
            .chain(self.spec.ephemeral_containers.iter().map(|e| &e.common))
    }

    /// Whether `name` is an init container that keeps running beside the main ones (a sidecar).
    pub fn is_sidecar(&self, name: &str) -> bool {
        self.spec.init_containers.iter().any(|c| c.name == name && c.is_sidecar())
    }

    /// Seconds the pod has to stop, from the deletion or else the spec; never negative.
    pub fn grace_period_s(&self) -> i64 {
        let grace = match (self.is_deleting(), self.metadata.deletion_grace_period_seconds) {
            (true, Some(seconds)) => seconds,
            _ => self.spec.termination_grace_period_seconds.unwrap_or(30),
        };
        grace.max(0)
    }

    /// The pod's restart policy; absent means `Always`, its default.
    pub fn restart_policy(&self) -> &str {
        if self.spec.restart_policy.is_empty() { "Always" } else { &self.spec.restart_policy }
    }
}
