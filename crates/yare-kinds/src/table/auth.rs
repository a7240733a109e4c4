//! Rows of who may do what: `authentication.k8s.io`, `authorization.k8s.io`, `rbac.authorization.k8s.io`,
//! `certificates.k8s.io`.

use super::{CREATE, Resource, STATUS, V1, WRITE_STATUS, cluster, namespaced, off, off_stored, sub};
use crate::{
    printers, selectors,
    strategy::{authentication, authorization, certificates, rbac},
};

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const CERTIFICATES: &str = "certificates.k8s.io";

pub(super) const ROWS: &[Resource] = &[
    cluster(AUTHENTICATION, V1, "SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview")
        .verbs(CREATE)
        .does(authentication::SELF_SUBJECT_REVIEW),
    cluster(AUTHENTICATION, V1, "TokenReview", "tokenreviews", "tokenreview")
        .verbs(CREATE)
        .does(authentication::TOKEN_REVIEW),
    namespaced(
        AUTHORIZATION,
        V1,
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
    )
    .verbs(CREATE)
    .does(authorization::LOCAL_SUBJECT_ACCESS_REVIEW),
    cluster(
        AUTHORIZATION,
        V1,
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
    )
    .verbs(CREATE)
    .does(authorization::SELF_SUBJECT_ACCESS_REVIEW),
    cluster(AUTHORIZATION, V1, "SelfSubjectRulesReview", "selfsubjectrulesreviews", "selfsubjectrulesreview")
        .verbs(CREATE)
        .does(authorization::SELF_SUBJECT_RULES_REVIEW),
    cluster(AUTHORIZATION, V1, "SubjectAccessReview", "subjectaccessreviews", "subjectaccessreview")
        .verbs(CREATE)
        .does(authorization::SUBJECT_ACCESS_REVIEW),
    cluster(RBAC, V1, "ClusterRoleBinding", "clusterrolebindings", "clusterrolebinding")
        .print(printers::ROLE_BINDING)
        .does(rbac::CLUSTER_ROLE_BINDING),
    cluster(RBAC, V1, "ClusterRole", "clusterroles", "clusterrole").does(rbac::CLUSTER_ROLE),
    namespaced(RBAC, V1, "RoleBinding", "rolebindings", "rolebinding")
        .print(printers::ROLE_BINDING)
        .does(rbac::ROLE_BINDING),
    namespaced(RBAC, V1, "Role", "roles", "role").does(rbac::ROLE),
    cluster(
        CERTIFICATES,
        V1,
        "CertificateSigningRequest",
        "certificatesigningrequests",
        "certificatesigningrequest",
    )
    .short(&["csr"])
    .sub(&[sub("approval", WRITE_STATUS), STATUS])
    .print(printers::CERTIFICATE_SIGNING_REQUEST)
    .select(selectors::SIGNER)
    .does(certificates::CERTIFICATE_SIGNING_REQUEST),
    cluster(
        CERTIFICATES,
        &[off_stored("v1beta1"), off("v1alpha1")],
        "ClusterTrustBundle",
        "clustertrustbundles",
        "clustertrustbundle",
    )
    .print(printers::CLUSTER_TRUST_BUNDLE)
    .select(selectors::SIGNER)
    .does(certificates::CLUSTER_TRUST_BUNDLE)
    .gated("ClusterTrustBundle"),
    namespaced(
        CERTIFICATES,
        &[off_stored("v1beta1").since(35)],
        "PodCertificateRequest",
        "podcertificaterequests",
        "podcertificaterequest",
    )
    .sub(&[STATUS])
    .print(printers::POD_CERTIFICATE_REQUEST)
    .select(selectors::POD_CERTIFICATE_REQUEST)
    .does(certificates::POD_CERTIFICATE_REQUEST)
    .gated("PodCertificateRequest"),
];
