//! How often the validation of a kind looks at the metadata of an update, after what all kinds have in common has
//! looked once. Each look leaves its causes in the answer, so that one bad label may stand there four times.

use crate::{strategy::Strategy, table::Resource};

/// The looks of a kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Looks {
    /// At what the update changes.
    pub changes: u8,
    /// At all of the metadata, with the kind's rule for names.
    pub wholes: u8,
}

const fn looks(changes: u8, wholes: u8) -> Looks {
    Looks { changes, wholes }
}

/// Of most: the update is judged, and within it what it makes of the object.
const USUAL: Looks = looks(1, 1);
/// Of most subresources, and of kinds whose updates are judged by the specification alone.
const CHANGE: Looks = looks(1, 0);
/// Of kinds whose updates are judged as new objects are.
const WHOLE: Looks = looks(0, 1);
const NONE: Looks = looks(0, 0);

/// Group, plural and subresource, where it is not [`USUAL`], and [`CHANGE`] of subresources.
const TABLE: &[(&str, &str, &str, Looks)] = &[
    ("", "limitranges", "", WHOLE),
    ("", "persistentvolumes", "", looks(0, 2)),
    ("", "pods", "ephemeralcontainers", USUAL),
    ("", "pods", "resize", USUAL),
    ("", "podtemplates", "", CHANGE),
    ("", "replicationcontrollers", "", CHANGE),
    ("", "resourcequotas", "", CHANGE),
    ("", "services", "", CHANGE),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicies", "", WHOLE),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicybindings", "", WHOLE),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", "", WHOLE),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", "", WHOLE),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", "status", NONE),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings", "", WHOLE),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", "", WHOLE),
    ("apiextensions.k8s.io", "customresourcedefinitions", "", CHANGE),
    ("apps", "daemonsets", "", CHANGE),
    ("apps", "deployments", "", CHANGE),
    ("apps", "replicasets", "", CHANGE),
    ("apps", "statefulsets", "", CHANGE),
    ("autoscaling", "horizontalpodautoscalers", "", CHANGE),
    ("batch", "cronjobs", "", CHANGE),
    ("batch", "cronjobs", "status", NONE),
    ("certificates.k8s.io", "certificatesigningrequests", "approval", USUAL),
    ("certificates.k8s.io", "certificatesigningrequests", "status", USUAL),
    ("certificates.k8s.io", "podcertificaterequests", "", CHANGE),
    ("coordination.k8s.io", "leasecandidates", "", CHANGE),
    ("coordination.k8s.io", "leases", "", CHANGE),
    ("discovery.k8s.io", "endpointslices", "", WHOLE),
    ("flowcontrol.apiserver.k8s.io", "flowschemas", "", WHOLE),
    ("flowcontrol.apiserver.k8s.io", "flowschemas", "status", NONE),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", "", WHOLE),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", "status", NONE),
    ("internal.apiserver.k8s.io", "storageversions", "", NONE),
    ("internal.apiserver.k8s.io", "storageversions", "status", NONE),
    ("networking.k8s.io", "networkpolicies", "", CHANGE),
    ("networking.k8s.io", "servicecidrs", "", CHANGE),
    ("policy", "poddisruptionbudgets", "", NONE),
    ("policy", "poddisruptionbudgets", "status", NONE),
    ("resource.k8s.io", "devicetaintrules", "", CHANGE),
    ("resource.k8s.io", "resourcepoolstatusrequests", "", CHANGE),
    ("resource.k8s.io", "resourceslices", "", CHANGE),
    ("scheduling.k8s.io", "podgroups", "", CHANGE),
    ("scheduling.k8s.io", "priorityclasses", "", CHANGE),
    ("scheduling.k8s.io", "workloads", "", CHANGE),
    ("storage.k8s.io", "csidrivers", "", CHANGE),
    ("storage.k8s.io", "csinodes", "", WHOLE),
    ("storage.k8s.io", "volumeattachments", "", WHOLE),
    ("storage.k8s.io", "volumeattachments", "status", WHOLE),
];

/// The looks at an update through a resource or one of its subresources. `strategy`: that of the group that is asked.
pub fn of(resource: &Resource, subresource: &str, strategy: &dyn Strategy) -> Looks {
    // A scale is an update of what is scaled.
    let subresource = if subresource == "scale" { "" } else { subresource };
    if resource.kind == "Event" {
        return if strategy.judges_metadata() { CHANGE } else { NONE };
    }
    let row = TABLE.iter().find(|(group, plural, of, _)| {
        *of == subresource && *plural == resource.plural && *group == resource.group
    });
    match row {
        Some((.., looks)) => *looks,
        None if subresource.is_empty() => USUAL,
        None => CHANGE,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::table::{RESOURCES, find_kind};

    #[test]
    fn rows_speak_of_what_there_is() {
        for (group, plural, subresource, _) in TABLE {
            let row = RESOURCES.iter().find(|r| (r.group, r.plural) == (*group, *plural));
            let row = row.unwrap_or_else(|| panic!("{plural}.{group}"));
            assert!(
                subresource.is_empty() || row.subresource(subresource).is_some(),
                "{plural}/{subresource}"
            );
        }
    }

    #[test]
    fn each_look_leaves_its_causes() {
        let old = |row: &Resource| {
            let namespace = if row.is_namespaced() { json!("n") } else { json!(null) };
            json!({"metadata": {"name": "a", "namespace": namespace, "uid": "u"}})
        };
        // Causes of a bad label, a bad finalizer, another UID, and a bad beginning of names.
        let cases = [
            ("", "ConfigMap", "", [4, 2, 2, 1]),
            ("", "LimitRange", "", [3, 1, 1, 1]),
            ("", "Pod", "status", [3, 1, 2, 0]),
            ("", "Event", "", [2, 0, 1, 0]),
            ("", "PersistentVolume", "", [4, 2, 1, 2]),
            ("apps", "Deployment", "scale", [3, 1, 2, 0]),
            ("batch", "CronJob", "status", [2, 0, 1, 0]),
            ("coordination.k8s.io", "Lease", "", [3, 0, 2, 0]),
            ("policy", "PodDisruptionBudget", "", [2, 0, 1, 0]),
        ];
        for (group, kind, subresource, expected) in cases {
            let row = find_kind(group, kind).expect("the table has the kind");
            let old = old(row);
            let count = |(field, value): (&str, serde_json::Value)| {
                let mut new = old.clone();
                new["metadata"][field] = value;
                row.validate_metadata_update(subresource, row.strategy, &new, &old).len()
            };
            let found = [
                count(("labels", json!({"a": "A B"}))),
                count(("finalizers", json!(["x"]))),
                count(("uid", json!("v"))),
                count(("generateName", json!("A B"))),
            ];
            assert_eq!(found, expected, "{kind} {subresource}");
        }
    }
}
