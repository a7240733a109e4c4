//! Rows of `rbac.authorization.k8s.io` and `certificates.k8s.io`.

use serde_json::Value;

use super::{
    AGE, NAME, Printer, cells,
    format::{self, age},
    name, text,
};
use crate::view::View;

/// `RoleBinding` and `ClusterRoleBinding`
pub const ROLE_BINDING: Printer = Printer {
    columns: &[
        NAME,
        text("Role", "The role that is granted."),
        AGE,
        text("Users", "Users in the binding").wide(),
        text("Groups", "Groups in the binding").wide(),
        text("ServiceAccounts", "ServiceAccounts in the binding").wide(),
    ],
    row: |o, now_s| {
        let subjects = |kind: &str| {
            let all: Vec<String> = o
                .items("subjects")
                .iter()
                .filter(|s| s.str_at("kind") == kind)
                .map(|s| match kind {
                    "ServiceAccount" => format!("{}/{}", s.str_at("namespace"), s.str_at("name")),
                    _ => s.str_at("name").to_owned(),
                })
                .collect();
            all.join(", ")
        };
        cells![
            name(o),
            format!("{}/{}", o.str_at("roleRef.kind"), o.str_at("roleRef.name")),
            age(o, now_s),
            subjects("User"),
            subjects("Group"),
            subjects("ServiceAccount"),
        ]
    },
};

/// `CertificateSigningRequest`
pub const CERTIFICATE_SIGNING_REQUEST: Printer = Printer {
    columns: &[
        NAME,
        AGE,
        text("SignerName", "Who should sign."),
        text("Requestor", "Who asks."),
        text("RequestedDuration", "How long the certificate should be valid."),
        text("Condition", "How far the request has come."),
    ],
    row: |o, now_s| {
        let duration =
            o.int_opt("spec.expirationSeconds").map_or_else(|| "<none>".to_owned(), format::human_duration);
        cells![
            name(o),
            age(o, now_s),
            format::or(o, "spec.signerName", "<none>"),
            o.str_at("spec.username"),
            duration,
            condition(o),
        ]
    },
};

fn condition(o: &Value) -> String {
    let has = |kind: &str| o.items("status.conditions").iter().any(|c| c.str_at("type") == kind);
    let mut text = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        text.push_str(",Failed");
    }
    if o.is_set("status.certificate") {
        text.push_str(",Issued");
    }
    text
}

/// `ClusterTrustBundle`
pub const CLUSTER_TRUST_BUNDLE: Printer = Printer {
    columns: &[NAME, text("SignerName", "Signer whose certificates the bundle trusts.")],
    row: |o, _| cells![name(o), format::or(o, "spec.signerName", "<none>")],
};

/// `PodCertificateRequest`
pub const POD_CERTIFICATE_REQUEST: Printer = Printer {
    columns: &[
        NAME,
        text("PodName", "Pod that asks."),
        text("ServiceAccountName", "Service account of the pod."),
        text("NodeName", "Node of the pod."),
        text("SignerName", "Who should sign."),
        text("State", "Is the request Pending, Issued, Denied, or Failed?"),
        text("UnverifiedUserAnnotations", "What the pod's author adds, unchecked."),
    ],
    row: |o, _| {
        let state = o
            .items("status.conditions")
            .iter()
            .map(|c| c.str_at("type"))
            .rfind(|t| matches!(*t, "Issued" | "Denied" | "Failed"))
            .unwrap_or("Pending");
        cells![
            name(o),
            o.str_at("spec.podName"),
            o.str_at("spec.serviceAccountName"),
            o.str_at("spec.nodeName"),
            o.str_at("spec.signerName"),
            state,
            format::labels(o.at("spec.unverifiedUserAnnotations")),
        ]
    },
};
