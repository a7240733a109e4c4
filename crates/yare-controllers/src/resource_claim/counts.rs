//! How many claims there are, by what upstream tells apart: for administrators or not, allocated or not, and who
//! made them.

use serde::Deserialize;
use yare_client::Informer;
use yare_metrics::table::Counts;

use super::{ClaimStatus, EXTENDED, POD_CLAIM};
use crate::{
    metrics,
    views::{Meta, nullable},
};

/// Counts the claims that there are now.
pub(super) fn tell(claims: &Informer, counts: &Counts) {
    for claim in claims.list() {
        // What cannot be read is no claim that anybody could use.
        if let Ok(claim) = claim.view::<Claim>() {
            counts.count(&metrics::CLAIMS, &claim.labels());
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Claim {
    metadata: Meta,
    spec: Spec,
    status: ClaimStatus,
}

/// What a claim asks for.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Spec {
    devices: Devices,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Devices {
    #[serde(deserialize_with = "nullable")]
    requests: Vec<Request>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Request {
    exactly: Option<Exactly>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Exactly {
    #[serde(deserialize_with = "nullable")]
    admin_access: bool,
}

impl Claim {
    /// `admin_access`, `allocated`, `source`.
    fn labels(&self) -> [&'static str; 3] {
        let word = |is: bool| if is { "true" } else { "false" };
        let annotation = |name: &str| self.metadata.annotations.get(name).map(String::as_str);
        let source = match (annotation(EXTENDED), annotation(POD_CLAIM)) {
            (Some("true"), _) => "extended_resource",
            (_, Some(entry)) if !entry.is_empty() => "resource_claim_template",
            _ => "",
        };
        [word(self.spec.has_admin_access()), word(self.status.allocation.is_some()), source]
    }
}

impl Spec {
    /// Whether it asks for devices that others may have too.
    pub(super) fn has_admin_access(&self) -> bool {
        self.devices.requests.iter().any(|r| r.exactly.as_ref().is_some_and(|e| e.admin_access))
    }
}
