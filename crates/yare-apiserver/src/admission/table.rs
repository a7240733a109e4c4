//! The table of admission plugins: what there is, in which order, and what each sees.

use futures::future::BoxFuture;
use serde_json::Value;

use super::{
    Attributes,
    Operation::{self, Connect, Create, Delete, Update},
    always, always_pull_images, certificates, claim_resize, default_classes, default_toleration_seconds,
    deny_external_ips, event_rate_limit, extended_resource_toleration, hard_anti_affinity, image_policy,
    job_validation, limit_ranger, namespace_exists, namespace_lifecycle, node_declared_features,
    node_restriction, owner_references, pod_groups, pod_node_selector, pod_resize, pod_security,
    pod_toleration_restriction, pod_topology_labels, priority, runtime_class, service_account,
    storage_in_use, taint_nodes,
};
use crate::status::ApiResult;

type Mutate = fn(&Attributes<'_>, &mut Value, Option<&Value>) -> ApiResult<()>;
type Validate = fn(&Attributes<'_>, Option<&Value>, Option<&Value>) -> ApiResult<()>;
type Ask = for<'a> fn(
    &'a Attributes<'a>,
    Option<&'a Value>,
    Option<&'a Value>,
) -> Option<BoxFuture<'a, ApiResult<()>>>;

/// One admission plugin.
pub struct Row {
    /// Upstream's name, by which it is switched on and off.
    pub name: &'static str,
    /// Runs unless it is switched off.
    pub on: bool,
    /// Group and plural of what it sees; empty: everything.
    pub resources: &'static [(&'static str, &'static str)],
    /// Subresources it sees; the object itself is `""`, all of them are `*`.
    pub subresources: &'static [&'static str],
    /// Operations it sees.
    pub operations: &'static [Operation],
    /// Changes the object.
    pub mutate: Option<Mutate>,
    /// Refuses it.
    pub validate: Option<Validate>,
    /// Refuses it after asking somebody (the authorizers) or looking at much; `None` where there is nothing to
    /// ask.
    pub ask: Option<Ask>,
}

const WRITES: &[Operation] = &[Create, Update];
const ALL: &[Operation] = &[Create, Update, Delete, Connect];
const PODS: &[(&str, &str)] = &[("", "pods")];
const CLAIMS: &[(&str, &str)] = &[("", "persistentvolumeclaims")];
const REQUESTS: &[(&str, &str)] = &[("certificates.k8s.io", "certificatesigningrequests")];

/// A row that sees new objects.
const ROW: Row = Row {
    name: "",
    on: true,
    resources: &[],
    subresources: &[""],
    operations: &[Create],
    mutate: None,
    validate: None,
    ask: None,
};
/// A row that has to be switched on.
const OFF: Row = Row { on: false, ..ROW };

/// Admission plugins in upstream's order. Rows without behaviour wait for others or belong to the transaction: this
/// module runs them at their place.
pub const TABLE: &[Row] = &[
    Row { name: "AlwaysAdmit", ..OFF },
    Row { name: PROVISION, operations: &[], ..OFF },
    Row {
        name: "NamespaceLifecycle",
        resources: &[("", "namespaces")],
        operations: &[Delete],
        validate: Some(namespace_lifecycle::validate),
        ..ROW
    },
    Row {
        name: "NamespaceExists",
        subresources: &["*"],
        operations: &[Create, Update, Delete],
        validate: Some(namespace_exists::validate),
        ..OFF
    },
    Row {
        name: "LimitPodHardAntiAffinityTopology",
        resources: PODS,
        operations: WRITES,
        validate: Some(hard_anti_affinity::validate),
        ..OFF
    },
    Row {
        name: "LimitRanger",
        resources: &[("", "pods"), ("", "persistentvolumeclaims")],
        subresources: &["", "resize"],
        operations: WRITES,
        mutate: Some(limit_ranger::mutate),
        validate: Some(limit_ranger::validate),
        ..ROW
    },
    Row {
        name: "ServiceAccount",
        resources: PODS,
        subresources: &["", "ephemeralcontainers"],
        operations: WRITES,
        mutate: Some(service_account::mutate),
        validate: Some(service_account::validate),
        ..ROW
    },
    // Off in upstream's own list, on in every cluster that upstream's tools make.
    Row {
        name: "NodeRestriction",
        subresources: &["*"],
        operations: &[Create, Update, Delete],
        validate: Some(node_restriction::validate),
        ask: Some(node_restriction::ask),
        ..ROW
    },
    Row {
        name: "TaintNodesByCondition",
        resources: &[("", "nodes")],
        mutate: Some(taint_nodes::mutate),
        ..ROW
    },
    Row {
        name: "AlwaysPullImages",
        resources: PODS,
        operations: WRITES,
        mutate: Some(always_pull_images::mutate),
        validate: Some(always_pull_images::validate),
        ..OFF
    },
    Row {
        name: IMAGE_POLICY,
        resources: PODS,
        subresources: &["", "ephemeralcontainers"],
        operations: WRITES,
        ask: Some(image_policy::ask),
        ..OFF
    },
    Row {
        name: "PodSecurity",
        resources: pod_security::RESOURCES,
        subresources: &["", "ephemeralcontainers", "resize"],
        operations: WRITES,
        validate: Some(pod_security::validate),
        ask: Some(pod_security::ask),
        ..ROW
    },
    Row {
        name: "PodNodeSelector",
        resources: PODS,
        mutate: Some(pod_node_selector::mutate),
        validate: Some(pod_node_selector::validate),
        ..OFF
    },
    Row {
        name: "Priority",
        resources: &[
            ("", "pods"),
            ("scheduling.k8s.io", "priorityclasses"),
            ("scheduling.k8s.io", "podgroups"),
        ],
        operations: WRITES,
        mutate: Some(priority::mutate),
        validate: Some(priority::validate),
        ..ROW
    },
    Row {
        name: "DefaultTolerationSeconds",
        resources: PODS,
        operations: WRITES,
        mutate: Some(default_toleration_seconds::mutate),
        ..ROW
    },
    Row {
        name: "PodTolerationRestriction",
        resources: PODS,
        operations: WRITES,
        mutate: Some(pod_toleration_restriction::mutate),
        validate: Some(pod_toleration_restriction::validate),
        ..OFF
    },
    Row {
        name: "EventRateLimit",
        resources: &[("", "events")],
        operations: WRITES,
        validate: Some(event_rate_limit::validate),
        ..OFF
    },
    Row {
        name: "ExtendedResourceToleration",
        resources: PODS,
        operations: WRITES,
        mutate: Some(extended_resource_toleration::mutate),
        ..OFF
    },
    Row { name: "DefaultStorageClass", resources: CLAIMS, mutate: Some(default_classes::storage), ..ROW },
    Row {
        name: "StorageObjectInUseProtection",
        resources: storage_in_use::RESOURCES,
        mutate: Some(storage_in_use::mutate),
        ..ROW
    },
    Row {
        name: "PodGroupProtection",
        resources: pod_groups::RESOURCES,
        mutate: Some(pod_groups::mutate),
        ..ROW
    },
    Row {
        name: "OwnerReferencesPermissionEnforcement",
        subresources: &["*"],
        operations: WRITES,
        ask: Some(owner_references::ask),
        ..OFF
    },
    Row {
        name: "PersistentVolumeClaimResize",
        resources: CLAIMS,
        operations: &[Update],
        validate: Some(claim_resize::validate),
        ..ROW
    },
    Row {
        name: "RuntimeClass",
        resources: PODS,
        mutate: Some(runtime_class::mutate),
        validate: Some(runtime_class::validate),
        ..ROW
    },
    Row {
        name: "CertificateApproval",
        resources: REQUESTS,
        subresources: &["approval"],
        operations: &[Update],
        ask: Some(certificates::approval),
        ..ROW
    },
    Row {
        name: "CertificateSigning",
        resources: REQUESTS,
        subresources: &["status"],
        operations: &[Update],
        ask: Some(certificates::signing),
        ..ROW
    },
    Row {
        name: "ClusterTrustBundleAttest",
        resources: &[("certificates.k8s.io", "clustertrustbundles")],
        operations: WRITES,
        ask: Some(certificates::attest),
        ..ROW
    },
    Row {
        name: "CertificateSubjectRestriction",
        resources: REQUESTS,
        validate: Some(certificates::subject),
        ..ROW
    },
    Row {
        name: "DefaultIngressClass",
        resources: &[("networking.k8s.io", "ingresses")],
        mutate: Some(default_classes::ingress),
        ..ROW
    },
    Row {
        name: "DenyServiceExternalIPs",
        resources: &[("", "services")],
        operations: WRITES,
        validate: Some(deny_external_ips::validate),
        ..OFF
    },
    Row {
        name: "PodTopologyLabels",
        resources: PODS,
        subresources: &["", "binding"],
        mutate: Some(pod_topology_labels::mutate),
        ..ROW
    },
    Row {
        name: "PodGroupWorkloadExists",
        resources: pod_groups::RESOURCES,
        validate: Some(pod_groups::validate),
        ..ROW
    },
    Row {
        name: "NodeDeclaredFeatureValidator",
        resources: PODS,
        subresources: &["", "resize"],
        operations: &[Update],
        validate: Some(node_declared_features::validate),
        ..ROW
    },
    Row {
        name: "JobValidation",
        resources: &[("batch", "jobs")],
        operations: &[Update],
        validate: Some(job_validation::validate),
        ..ROW
    },
    Row {
        name: "PodResizeValidator",
        resources: PODS,
        subresources: &["resize"],
        operations: &[Update],
        validate: Some(pod_resize::validate),
        ..ROW
    },
    Row { name: MUTATING_POLICIES, operations: &[], ..ROW },
    Row { name: MUTATING_WEBHOOKS, operations: &[], ..ROW },
    Row { name: VALIDATING_POLICIES, operations: &[], ..ROW },
    Row { name: VALIDATING_WEBHOOKS, operations: &[], ..ROW },
    Row { name: RESOURCE_QUOTA, operations: &[], ..ROW },
    Row {
        name: "AlwaysDeny",
        subresources: &["*"],
        operations: ALL,
        mutate: Some(always::deny_change),
        validate: Some(always::deny),
        ..OFF
    },
];

pub(super) const IMAGE_POLICY: &str = "ImagePolicyWebhook";
pub(super) const PROVISION: &str = "NamespaceAutoProvision";
pub(super) const MUTATING_POLICIES: &str = "MutatingAdmissionPolicy";
pub(super) const MUTATING_WEBHOOKS: &str = "MutatingAdmissionWebhook";
pub(super) const VALIDATING_POLICIES: &str = "ValidatingAdmissionPolicy";
pub(super) const VALIDATING_WEBHOOKS: &str = "ValidatingAdmissionWebhook";
pub(super) const RESOURCE_QUOTA: &str = "ResourceQuota";

impl Row {
    /// Whether the row has a say in the request.
    pub(super) fn sees(&self, attributes: &Attributes<'_>) -> bool {
        self.operations.contains(&attributes.operation)
            && self.subresources.iter().any(|s| *s == "*" || *s == attributes.subresource)
    }
}
