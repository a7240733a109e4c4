//! Fields that a request through a resource or one of its subresources cannot set. What is listed here is put
//! back by such a request, and whoever asked for it does not come to own it.

use serde_json::Value;

use crate::view::ViewMut;

/// Names on the way to a field.
pub type FieldPath = &'static [&'static str];

/// What a request cannot set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reset {
    /// These fields with all below them.
    Fields(&'static [FieldPath]),
    /// All but these fields and what is below them; `*` stands for any step.
    AllBut(&'static [FieldPath]),
}

use Reset::{AllBut, Fields};

const STATUS: Reset = Fields(&[&["status"]]);
const SPEC: Reset = Fields(&[&["spec"]]);
/// Where a status is written without touching metadata.
const SPEC_AND_METADATA: Reset = Fields(&[&["metadata"], &["spec"]]);

/// Group, plural and subresource, where it is not the status that the object itself resets and the
/// specification that its `status` resets.
const TABLE: &[(&str, &str, &str, Reset)] = &[
    ("", "namespaces", "finalize", STATUS),
    ("", "pods", "ephemeralcontainers", AllBut(&[&["spec", "ephemeralContainers"]])),
    (
        "",
        "pods",
        "resize",
        AllBut(&[
            &["spec", "containers", "*", "resources"],
            &["spec", "containers", "*", "resizePolicy"],
            &["spec", "initContainers", "*", "resources"],
            &["spec", "initContainers", "*", "resizePolicy"],
        ]),
    ),
    (
        "",
        "pods",
        "status",
        Fields(&[&["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"], &["spec"]]),
    ),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", "status", SPEC_AND_METADATA),
    ("apiregistration.k8s.io", "apiservices", "status", SPEC_AND_METADATA),
    ("apps", "deployments", "status", Fields(&[&["metadata", "labels"], &["spec"]])),
    ("certificates.k8s.io", "certificatesigningrequests", "", Fields(&[&["spec"], &["status"]])),
    (
        "certificates.k8s.io",
        "certificatesigningrequests",
        "approval",
        Fields(&[&["spec"], &["status", "certificate"]]),
    ),
    (
        "certificates.k8s.io",
        "certificatesigningrequests",
        "status",
        Fields(&[&["spec"], &["status", "conditions"]]),
    ),
    ("certificates.k8s.io", "podcertificaterequests", "", Fields(&[])),
    ("flowcontrol.apiserver.k8s.io", "flowschemas", "status", SPEC_AND_METADATA),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", "status", SPEC_AND_METADATA),
    ("internal.apiserver.k8s.io", "storageversions", "status", SPEC_AND_METADATA),
    ("networking.k8s.io", "servicecidrs", "status", SPEC_AND_METADATA),
    ("resource.k8s.io", "devicetaintrules", "status", SPEC_AND_METADATA),
    ("resource.k8s.io", "resourceclaims", "status", SPEC_AND_METADATA),
    ("resource.k8s.io", "resourcepoolstatusrequests", "status", SPEC_AND_METADATA),
    ("scheduling.k8s.io", "podgroups", "", Fields(&[])),
    ("scheduling.k8s.io", "podgroups", "status", SPEC_AND_METADATA),
    ("storage.k8s.io", "volumeattachments", "status", SPEC_AND_METADATA),
    ("storagemigration.k8s.io", "storageversionmigrations", "status", SPEC_AND_METADATA),
];

/// The rows of one resource.
#[derive(Debug)]
pub struct Rows(Box<[(&'static str, Reset)]>);

/// The rows of a built-in resource.
pub fn of(group: &str, plural: &str) -> Rows {
    let own = TABLE.iter().filter(|(g, p, ..)| (*g, *p) == (group, plural));
    Rows(own.map(|(.., subresource, reset)| (*subresource, *reset)).collect())
}

/// The rows of a custom resource.
pub fn of_custom() -> Rows {
    Rows([("status", SPEC_AND_METADATA)].into())
}

impl Rows {
    /// What a request for a subresource (empty: the object itself) cannot set. `has_status`: it is a subresource.
    pub fn at(&self, subresource: &str, has_status: bool) -> Option<Reset> {
        let row = self.0.iter().find(|(name, _)| *name == subresource);
        match (row, subresource) {
            (Some((_, reset)), _) => Some(*reset),
            (None, "") => has_status.then_some(STATUS),
            (None, "status") => Some(SPEC),
            (None, _) => None,
        }
    }
}

/// Metadata that belongs to the writers of the object itself.
const METADATA: &[&str] = &[
    "metadata.deletionTimestamp",
    "metadata.generation",
    "metadata.labels",
    "metadata.annotations",
    "metadata.finalizers",
    "metadata.ownerReferences",
];

/// Puts back the metadata that a request cannot set.
pub fn restore_metadata(reset: Reset, new: &mut Value, old: &Value) {
    let Fields(fields) = reset else { return };
    for field in fields {
        match field {
            ["metadata"] => METADATA.iter().for_each(|path| new.copy_from(old, path)),
            ["metadata", name] => new.copy_from(old, &format!("metadata.{name}")),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::table::RESOURCES;

    #[test]
    fn rows_speak_of_what_there_is() {
        for (group, plural, subresource, _) in TABLE {
            let row = RESOURCES.iter().find(|r| (r.group, r.plural) == (*group, *plural));
            let row = row.unwrap_or_else(|| panic!("{plural}.{group}"));
            let known = subresource.is_empty() || row.subresources.iter().any(|s| s.name == *subresource);
            assert!(known, "{plural}/{subresource}");
        }
    }

    #[test]
    fn metadata_is_put_back() {
        let old = json!({"metadata": {"labels": {"a": "b"}, "name": "n"}});
        let new = json!({"metadata": {"labels": {"a": "c"}, "annotations": {"x": "y"}, "name": "n", "managedFields": [1]}});
        for (reset, expect) in [
            (SPEC_AND_METADATA, json!({"labels": {"a": "b"}, "name": "n", "managedFields": [1]})),
            (
                Fields(&[&["metadata", "labels"]]),
                json!({"labels": {"a": "b"}, "annotations": {"x": "y"}, "name": "n", "managedFields": [1]}),
            ),
            (SPEC, new["metadata"].clone()),
        ] {
            let mut put_back = new.clone();
            restore_metadata(reset, &mut put_back, &old);
            assert_eq!(put_back["metadata"], expect, "{reset:?}");
        }
    }
}
