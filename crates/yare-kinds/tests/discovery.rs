//! The table of resources says what Kubernetes' own discovery documents say (`discovery.txt`).

use yare_kinds::table::{RESOURCES, Resource, Scope, find};

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

fn verbs(verbs: &[&str]) -> String {
    if verbs == ALL { "*".to_owned() } else { verbs.join(",") }
}

fn line(r: &Resource) -> String {
    let versions: Vec<&str> = r.versions.iter().map(|v| v.name).collect();
    let mut fields = vec![
        if r.group.is_empty() { "core".to_owned() } else { r.group.to_owned() },
        r.plural.to_owned(),
        r.kind.to_owned(),
        match r.scope {
            Scope::Namespaced => "Namespaced".to_owned(),
            Scope::Cluster => "Cluster".to_owned(),
        },
        versions.join(","),
        format!("short:{}", r.short_names.join(",")),
        format!("in:{}", r.categories.join(",")),
        verbs(r.verbs),
    ];
    fields.extend(r.subresources.iter().map(|s| {
        let kind = s.kind.map_or_else(String::new, |(g, v, k)| format!("={g}/{v}/{k}"));
        format!("{}{kind}:{}", s.name, verbs(s.verbs))
    }));
    fields.join(" ")
}

#[test]
fn the_table_is_complete() {
    let mut ours: Vec<String> = RESOURCES.iter().map(line).collect();
    ours.sort_unstable();
    let theirs: Vec<&str> = include_str!("discovery.txt").lines().filter(|l| !l.starts_with('#')).collect();
    let missing: Vec<_> = theirs.iter().filter(|l| !ours.iter().any(|o| o == *l)).collect();
    let extra: Vec<_> = ours.iter().filter(|o| !theirs.contains(&o.as_str())).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nextra: {extra:#?}");
}

#[test]
fn only_stable_versions_are_served() {
    for r in RESOURCES {
        for v in r.versions {
            let stable = !v.name.contains("alpha") && !v.name.contains("beta");
            assert_eq!(v.served, stable, "{} {} {}", r.group, r.plural, v.name);
        }
    }
}

#[test]
fn storage_lags_a_release_behind_new_versions() {
    let stored = |group, plural| find(group, plural).map(Resource::storage_version);
    assert_eq!(stored("autoscaling", "horizontalpodautoscalers"), Some("v2"));
    assert_eq!(stored("admissionregistration.k8s.io", "mutatingadmissionpolicies"), Some("v1beta1"));
    assert_eq!(stored("resource.k8s.io", "devicetaintrules"), Some("v1alpha3"));
}
