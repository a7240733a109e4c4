//! Where groups and versions stand in discovery: the numbers of the APIServices that the server makes for what
//! it serves itself (`cmd/kube-apiserver/app/aggregator.go`). A higher number comes first.

/// `groupPriorityMinimum` and `versionPriority`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority {
    /// Of the group among groups.
    pub group: i64,
    /// Of the version in its group.
    pub version: i64,
}

/// Groups of CustomResourceDefinitions.
pub const CUSTOM: Priority = Priority { group: 1000, version: 100 };
/// A built-in version that has no row: after all others, before custom resources.
const UNLISTED: Priority = Priority { group: 1500, version: 9 };
/// The group of APIServices stands before everything: nothing else may take its names.
const REGISTRATION: Priority = Priority { group: 20_001, version: 15 };

/// Group, its priority, and its versions with theirs.
type Row = (&'static str, i64, &'static [(&'static str, i64)]);

const TABLE: &[Row] = &[
    ("", 18_000, &[("v1", 1)]),
    ("apps", 17_800, &[("v1", 15)]),
    ("events.k8s.io", 17_750, &[("v1", 15), ("v1beta1", 5)]),
    ("authentication.k8s.io", 17_700, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("authorization.k8s.io", 17_600, &[("v1", 15)]),
    ("autoscaling", 17_500, &[("v2", 30), ("v1", 15)]),
    ("batch", 17_400, &[("v1", 15), ("v1beta1", 9)]),
    ("certificates.k8s.io", 17_300, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("networking.k8s.io", 17_200, &[("v1", 15), ("v1beta1", 9)]),
    ("policy", 17_100, &[("v1", 15), ("v1beta1", 9)]),
    ("rbac.authorization.k8s.io", 17_000, &[("v1", 15)]),
    ("storage.k8s.io", 16_800, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("apiextensions.k8s.io", 16_700, &[("v1", 15)]),
    ("admissionregistration.k8s.io", 16_700, &[("v1", 15), ("v1beta1", 12), ("v1alpha1", 9)]),
    ("scheduling.k8s.io", 16_600, &[("v1", 15), ("v1alpha2", 2)]),
    ("coordination.k8s.io", 16_500, &[("v1", 15), ("v1beta1", 13), ("v1alpha2", 12)]),
    ("node.k8s.io", 16_300, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("discovery.k8s.io", 16_200, &[("v1", 15), ("v1beta1", 12)]),
    ("resource.k8s.io", 16_200, &[("v1", 21), ("v1beta2", 15), ("v1beta1", 9), ("v1alpha3", 1)]),
    (
        "flowcontrol.apiserver.k8s.io",
        16_100,
        &[("v1", 21), ("v1beta3", 18), ("v1beta2", 15), ("v1beta1", 12), ("v1alpha1", 9)],
    ),
    ("internal.apiserver.k8s.io", 16_000, &[("v1alpha1", 9)]),
    ("storagemigration.k8s.io", 15_800, &[("v1beta1", 9)]),
];

/// The group of APIServices, which has none for itself.
pub const GROUP: &str = "apiregistration.k8s.io";

/// Where a built-in version stands.
pub fn builtin(group: &str, version: &str) -> Priority {
    if group == GROUP {
        return REGISTRATION;
    }
    let row = TABLE.iter().find(|(name, ..)| *name == group);
    let found = row.and_then(|(_, priority, versions)| {
        let (_, version) = versions.iter().find(|(name, _)| *name == version)?;
        Some(Priority { group: *priority, version: *version })
    });
    found.unwrap_or(Priority { group: row.map_or(UNLISTED.group, |(_, group, _)| *group), ..UNLISTED })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        assert_eq!(builtin("autoscaling", "v2"), Priority { group: 17_500, version: 30 });
        assert_eq!(builtin("", "v1").group, 18_000);
        assert_eq!(builtin("apps", "v7"), Priority { group: 17_800, version: 9 });
        assert!(builtin("new.k8s.io", "v1").group > CUSTOM.group);
        assert!(builtin(GROUP, "v1").group > builtin("", "v1").group);
    }

    /// What the built-in table serves stands here too, so that upgrades do not shuffle discovery.
    #[test]
    fn every_served_version_has_a_row() {
        for row in yare_kinds::table::RESOURCES.iter().filter(|r| r.group != GROUP) {
            for version in row.versions.iter().filter(|v| v.served) {
                let listed = TABLE.iter().any(|(g, _, versions)| {
                    *g == row.group && versions.iter().any(|(v, _)| *v == version.name)
                });
                assert!(listed, "{}/{}", row.group, version.name);
            }
        }
    }
}
