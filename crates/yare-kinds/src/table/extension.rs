//! Rows of what extends and protects the API itself: `admissionregistration.k8s.io`, `apiextensions.k8s.io`,
//! `apiregistration.k8s.io`, `flowcontrol.apiserver.k8s.io`, `internal.apiserver.k8s.io`,
//! `storagemigration.k8s.io`.

use super::{API_EXTENSIONS, Resource, STATUS, V1, Version, cluster, off, off_stored, served};
use crate::{
    printers,
    strategy::{admissionregistration as admission, apiextensions, apiregistration, flowcontrol, internal},
};

const ADMISSION: &str = "admissionregistration.k8s.io";
/// New in 1.36 as `v1`; stored as `v1beta1` for one release, so that a downgrade can read it.
const MUTATING_POLICY: &[Version] =
    &[served("v1").since(36), off_stored("v1beta1").since(34), off("v1alpha1")];
const FLOWCONTROL: &str = "flowcontrol.apiserver.k8s.io";

pub(super) const ROWS: &[Resource] = &[
    cluster(
        ADMISSION,
        MUTATING_POLICY,
        "MutatingAdmissionPolicy",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicy",
    )
    .in_category(API_EXTENSIONS)
    .print(printers::MUTATING_ADMISSION_POLICY)
    .does(admission::MUTATING_ADMISSION_POLICY),
    cluster(
        ADMISSION,
        MUTATING_POLICY,
        "MutatingAdmissionPolicyBinding",
        "mutatingadmissionpolicybindings",
        "mutatingadmissionpolicybinding",
    )
    .in_category(API_EXTENSIONS)
    .print(printers::ADMISSION_POLICY_BINDING)
    .does(admission::MUTATING_ADMISSION_POLICY_BINDING),
    cluster(
        ADMISSION,
        V1,
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        "mutatingwebhookconfiguration",
    )
    .in_category(API_EXTENSIONS)
    .print(printers::WEBHOOK_CONFIGURATION)
    .does(admission::MUTATING_WEBHOOK_CONFIGURATION),
    cluster(
        ADMISSION,
        V1,
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        "validatingadmissionpolicy",
    )
    .in_category(API_EXTENSIONS)
    .sub(&[STATUS])
    .print(printers::VALIDATING_ADMISSION_POLICY)
    .does(admission::VALIDATING_ADMISSION_POLICY),
    cluster(
        ADMISSION,
        V1,
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding",
    )
    .in_category(API_EXTENSIONS)
    .print(printers::ADMISSION_POLICY_BINDING)
    .does(admission::VALIDATING_ADMISSION_POLICY_BINDING),
    cluster(
        ADMISSION,
        V1,
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        "validatingwebhookconfiguration",
    )
    .in_category(API_EXTENSIONS)
    .print(printers::WEBHOOK_CONFIGURATION)
    .does(admission::VALIDATING_WEBHOOK_CONFIGURATION),
    cluster(
        "apiextensions.k8s.io",
        V1,
        "CustomResourceDefinition",
        "customresourcedefinitions",
        "customresourcedefinition",
    )
    .short(&["crd", "crds"])
    .in_category(API_EXTENSIONS)
    .sub(&[STATUS])
    .does(apiextensions::CUSTOM_RESOURCE_DEFINITION),
    cluster("apiregistration.k8s.io", V1, "APIService", "apiservices", "apiservice")
        .in_category(API_EXTENSIONS)
        .sub(&[STATUS])
        .print(printers::API_SERVICE)
        .does(apiregistration::API_SERVICE),
    cluster(FLOWCONTROL, V1, "FlowSchema", "flowschemas", "flowschema")
        .sub(&[STATUS])
        .print(printers::FLOW_SCHEMA)
        .does(flowcontrol::FLOW_SCHEMA),
    cluster(
        FLOWCONTROL,
        V1,
        "PriorityLevelConfiguration",
        "prioritylevelconfigurations",
        "prioritylevelconfiguration",
    )
    .sub(&[STATUS])
    .print(printers::PRIORITY_LEVEL_CONFIGURATION)
    .does(flowcontrol::PRIORITY_LEVEL_CONFIGURATION),
    cluster(
        "internal.apiserver.k8s.io",
        &[off_stored("v1alpha1")],
        "StorageVersion",
        "storageversions",
        "storageversion",
    )
    .sub(&[STATUS])
    .print(printers::STORAGE_VERSION)
    .does(internal::STORAGE_VERSION),
    cluster(
        "storagemigration.k8s.io",
        &[off_stored("v1beta1").since(35)],
        "StorageVersionMigration",
        "storageversionmigrations",
        "storageversionmigration",
    )
    .sub(&[STATUS])
    .print(printers::STORAGE_VERSION_MIGRATION)
    .does(internal::STORAGE_VERSION_MIGRATION)
    .gated("StorageVersionMigrator"),
];
