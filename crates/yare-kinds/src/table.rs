//! The table of built-in resources: a newcomer reads here what Kubernetes serves.
//!
//! Rows stand in one file per family of groups under `table/`; each names its columns (`printers`), its field
//! selectors (`selectors`) and its behaviour (`strategy`). To add a resource: write a strategy, add a row.

use serde_json::Value;
use yare_schema::field::FieldError;

use crate::{
    gated, looks, meta, pod,
    printers::{self, Printer},
    strategy::{Context, Neutral, Strategy},
    view::View,
};

mod auth;
mod core;
mod extension;
mod infrastructure;
mod workloads;

/// Where objects of a kind live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// Beside the namespaces.
    Cluster,
}

/// One built-in resource.
#[derive(Clone, Copy)]
pub struct Resource {
    /// API group, empty for core.
    pub group: &'static str,
    /// Versions, preferred first.
    pub versions: &'static [Version],
    /// `Deployment`
    pub kind: &'static str,
    /// `deployments`
    pub plural: &'static str,
    /// `deployment`
    pub singular: &'static str,
    /// Where its objects live.
    pub scope: Scope,
    /// `deploy`
    pub short_names: &'static [&'static str],
    /// `all`
    pub categories: &'static [&'static str],
    /// The operations of the main resource. Without `get`, nothing is stored: the resource is a question
    /// that `create` answers ([`Resource::is_virtual`]).
    pub verbs: &'static [&'static str],
    /// Subresources.
    pub subresources: &'static [Subresource],
    /// Columns of `kubectl get`.
    pub columns: &'static [Column],
    /// The cells of one row, one for each of `columns`. `now_s`: Unix seconds, for ages.
    pub row: fn(&Value, i64) -> Vec<Value>,
    /// Field selectors beside `metadata.name` and `metadata.namespace`: name and how it is read.
    pub selectable: &'static [Selectable],
    /// Defaults, validation, update rules.
    pub strategy: &'static dyn Strategy,
    /// The resource (group, plural) whose objects these are in another shape: `events.k8s.io` events are
    /// core's. [`crate::convert`] goes between the shapes; strategy, columns and selectors see the other's.
    pub stored_as: Option<(&'static str, &'static str)>,
    /// The feature gate without which it is not served in any version.
    pub gate: Option<&'static str>,
}

/// One version of a [`Resource`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// `v1`
    pub name: &'static str,
    /// Served unless configured otherwise.
    pub served: bool,
    /// The version objects are stored in (exactly one is).
    pub storage: bool,
    /// The release that brought it, as the number behind `1.`; 0 for all that are older than any that is emulated.
    pub since_minor: u16,
}

impl Version {
    const fn since(mut self, minor: u16) -> Self {
        self.since_minor = minor;
        self
    }
}

/// One subresource.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subresource {
    /// `status`, `scale`, `log`, …
    pub name: &'static str,
    /// Group, version and kind of its body where that is not the parent's: `("autoscaling", "v1", "Scale")`.
    pub kind: Option<(&'static str, &'static str, &'static str)>,
    /// Its operations.
    pub verbs: &'static [&'static str],
}

/// One column of `kubectl get`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `date`, …
    pub kind: &'static str,
    /// OpenAPI format; `name` marks the name column.
    pub format: &'static str,
    /// Shown in `kubectl explain`-like help of the table.
    pub description: &'static str,
    /// 0: always; 1: with `-o wide`.
    pub priority: i32,
}

/// One field selector.
#[derive(Clone, Copy)]
pub struct Selectable {
    /// `spec.nodeName`
    pub name: &'static str,
    /// Value of the field; the empty string where it is absent.
    pub read: fn(&Value) -> String,
}

/// Resources whose deletion answers with the object.
const RETURNED: [(&str, &str); 18] = [
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("", "pods"),
    ("", "podtemplates"),
    ("", "resourcequotas"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("resource.k8s.io", "deviceclasses"),
    ("resource.k8s.io", "devicetaintrules"),
    ("resource.k8s.io", "resourceclaims"),
    ("resource.k8s.io", "resourceclaimtemplates"),
    ("resource.k8s.io", "resourcepoolstatusrequests"),
    ("resource.k8s.io", "resourceslices"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
    ("storage.k8s.io", "volumeattributesclasses"),
];

const FAMILIES: &[&[Resource]] =
    &[core::ROWS, workloads::ROWS, auth::ROWS, infrastructure::ROWS, extension::ROWS];

/// Every built-in resource, by family of groups.
pub static RESOURCES: &[Resource] = &concat::<{ count() }>();

const fn count() -> usize {
    let (mut n, mut i) = (0, 0);
    while i < FAMILIES.len() {
        n += FAMILIES[i].len();
        i += 1;
    }
    n
}

const fn concat<const N: usize>() -> [Resource; N] {
    let mut out = [FAMILIES[0][0]; N];
    let (mut n, mut i) = (0, 0);
    while i < FAMILIES.len() {
        let mut j = 0;
        while j < FAMILIES[i].len() {
            out[n] = FAMILIES[i][j];
            n += 1;
            j += 1;
        }
        i += 1;
    }
    out
}

/// The resource with this group and plural name.
pub fn find(group: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.group == group && r.plural == plural)
}

/// The resource with this group and kind.
pub fn find_kind(group: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.group == group && r.kind == kind)
}

impl Resource {
    /// The version objects are stored in.
    pub fn storage_version(&self) -> &'static str {
        self.versions.iter().find(|v| v.storage).map_or(self.versions[0].name, |v| v.name)
    }

    /// Whether nothing of it is stored (`TokenReview`, `Binding`, `ComponentStatus`, …).
    pub fn is_virtual(&self) -> bool {
        !self.verbs.contains(&"watch")
    }

    /// Whether its objects live in namespaces.
    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// Whether a deletion answers with the object, and not with a `Status`.
    pub fn returns_deleted(&self) -> bool {
        RETURNED.contains(&(self.group, self.plural))
    }

    /// The subresource of this name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Every error of a new object, metadata included (what is not stored needs none).
    pub fn validate_create(&self, object: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        if self.is_virtual() {
            return self.strategy.validate(object, ctx);
        }
        let mut errs = meta::validate_create(object, self.is_namespaced(), self.strategy);
        errs.extend(self.check_finalizers(object, self.strategy));
        errs.extend(self.strategy.validate(object, ctx));
        errs.extend(self.check_switched(object, None, ctx));
        errs
    }

    /// Errors in finalizers beyond those that every object may have. The groups that upstream keeps apart from the rest
    /// have no such errors (`customresourcecleanup.apiextensions.k8s.io` has no domain before a slash), nor have events
    /// of the core group. `strategy`: that of the group that is asked.
    pub fn check_finalizers(&self, object: &Value, strategy: &dyn Strategy) -> Vec<FieldError> {
        const APART: [&str; 6] = [
            "admissionregistration.k8s.io",
            "apiextensions.k8s.io",
            "apiregistration.k8s.io",
            "coordination.k8s.io",
            "node.k8s.io",
            "policy",
        ];
        if APART.contains(&self.group) || !strategy.judges_metadata() {
            Vec::new()
        } else {
            meta::validate_kube_finalizers(object)
        }
    }

    /// Errors by rules that gates switch and that all specifications of pods share.
    pub fn check_switched(&self, new: &Value, old: Option<&Value>, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Vec::new();
        if let Some(at) = gated::pod_spec_of(self) {
            let as_one = self.strategy.judges_selectors_as_one();
            let selector = old.filter(|_| as_one).map(|old| old.at("spec.selector"));
            pod::switched::check(&mut errs, at, new, old, selector, ctx.gates);
        }
        errs
    }

    /// Errors in the metadata of an update through the resource or a subresource: those of all kinds, and those
    /// that the kind's own looks find. `strategy`: that of the group that is asked.
    pub fn validate_metadata_update(
        &self,
        subresource: &str,
        strategy: &dyn Strategy,
        new: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errs = meta::validate_update(new, old, self.is_namespaced());
        let looks = looks::of(self, subresource, strategy);
        for _ in 0..looks.changes {
            errs.extend(meta::validate_change(new, old));
            errs.extend(self.check_finalizers(new, strategy));
        }
        for _ in 0..looks.wholes {
            errs.extend(meta::validate_own(new, self.is_namespaced(), strategy));
            errs.extend(self.check_finalizers(new, strategy));
        }
        errs
    }

    /// Every error of an update, metadata included.
    pub fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate_metadata_update("", self.strategy, new, old);
        errs.extend(self.strategy.validate_update(new, old, ctx));
        errs.extend(self.check_switched(new, Some(old), ctx));
        errs
    }

    /// Every error of an update of `status`, metadata included.
    pub fn validate_status_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        self.validate_subresource_update("status", new, old, ctx)
    }

    /// Every error of an update of a subresource that is a view of the object, metadata included.
    pub fn validate_subresource_update(
        &self,
        subresource: &str,
        new: &Value,
        old: &Value,
        ctx: &Context<'_>,
    ) -> Vec<FieldError> {
        let mut errs = self.validate_metadata_update(subresource, self.strategy, new, old);
        errs.extend(self.strategy.validate_subresource_update(subresource, new, old, ctx));
        errs.extend(self.check_switched(new, Some(old), ctx));
        errs
    }
}

// What follows is the vocabulary of the rows.

/// A row with everything the shape alone says; the methods below add the rest.
const fn row(
    group: &'static str,
    versions: &'static [Version],
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    scope: Scope,
) -> Resource {
    Resource {
        group,
        versions,
        kind,
        plural,
        singular,
        scope,
        short_names: &[],
        categories: &[],
        verbs: FULL,
        subresources: &[],
        columns: printers::DEFAULT.columns,
        row: printers::DEFAULT.row,
        selectable: &[],
        strategy: &Neutral,
        stored_as: None,
        gate: None,
    }
}

const fn namespaced(
    group: &'static str,
    versions: &'static [Version],
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Resource {
    row(group, versions, kind, plural, singular, Scope::Namespaced)
}

const fn cluster(
    group: &'static str,
    versions: &'static [Version],
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Resource {
    row(group, versions, kind, plural, singular, Scope::Cluster)
}

impl Resource {
    const fn short(mut self, names: &'static [&'static str]) -> Self {
        self.short_names = names;
        self
    }

    const fn in_category(mut self, categories: &'static [&'static str]) -> Self {
        self.categories = categories;
        self
    }

    const fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }

    const fn sub(mut self, subresources: &'static [Subresource]) -> Self {
        self.subresources = subresources;
        self
    }

    const fn print(mut self, printer: Printer) -> Self {
        self.columns = printer.columns;
        self.row = printer.row;
        self
    }

    const fn select(mut self, selectable: &'static [Selectable]) -> Self {
        self.selectable = selectable;
        self
    }

    const fn does(mut self, strategy: &'static dyn Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    const fn stored_as(mut self, group: &'static str, plural: &'static str) -> Self {
        self.stored_as = Some((group, plural));
        self
    }

    const fn gated(mut self, gate: &'static str) -> Self {
        self.gate = Some(gate);
        self
    }
}

const FULL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const WRITE_STATUS: &[&str] = &["get", "patch", "update"];
const CREATE: &[&str] = &["create"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

const ALL: &[&str] = &["all"];
const API_EXTENSIONS: &[&str] = &["api-extensions"];

/// Served by default, and the version of storage.
const fn stored(name: &'static str) -> Version {
    Version { name, served: true, storage: true, since_minor: 0 }
}

/// Served by default.
const fn served(name: &'static str) -> Version {
    Version { name, served: true, storage: false, since_minor: 0 }
}

/// Known, but served only where configured.
const fn off(name: &'static str) -> Version {
    Version { name, served: false, storage: false, since_minor: 0 }
}

/// The version of storage, served only where configured.
const fn off_stored(name: &'static str) -> Version {
    Version { name, served: false, storage: true, since_minor: 0 }
}

const V1: &[Version] = &[stored("v1")];

const STATUS: Subresource = sub("status", WRITE_STATUS);
const SCALE: Subresource = sub("scale", WRITE_STATUS).of("autoscaling", "v1", "Scale");

const fn sub(name: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, kind: None, verbs }
}

impl Subresource {
    const fn of(mut self, group: &'static str, version: &'static str, kind: &'static str) -> Self {
        self.kind = Some((group, version, kind));
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn rows_are_consistent() {
        let mut seen = HashSet::new();
        for r in RESOURCES {
            assert!(seen.insert((r.group, r.plural)), "{} {} stands twice", r.group, r.plural);
            assert_eq!(
                r.versions.iter().filter(|v| v.storage).count(),
                1,
                "{}: versions of storage",
                r.plural
            );
            assert_eq!(r.singular, r.kind.to_lowercase(), "{}", r.plural);
            let sorted = |v: &[&str]| v.is_sorted();
            assert!(sorted(r.verbs) && r.subresources.iter().all(|s| sorted(s.verbs)), "{}: verbs", r.plural);
            let cells = (r.row)(&serde_json::json!({"metadata": {"name": "x"}}), 0);
            assert_eq!(cells.len(), r.columns.len(), "{}: cells and columns", r.plural);
            assert!(r.columns.iter().any(|c| c.format == "name"), "{}: name column", r.plural);
            assert_eq!(r.strategy.has_status(), r.subresource("status").is_some(), "{}: status", r.plural);
            assert!(r.gate.is_none_or(|g| yare_schema::features::find(g).is_some()), "{}: gate", r.plural);
        }
    }

    #[test]
    fn finds() {
        assert_eq!(find("apps", "deployments").map(|r| r.kind), Some("Deployment"));
        assert_eq!(find_kind("", "Pod").map(|r| r.plural), Some("pods"));
        assert_eq!(
            find("autoscaling", "horizontalpodautoscalers").map(Resource::storage_version),
            Some("v2")
        );
        assert!(find("authentication.k8s.io", "tokenreviews").is_some_and(Resource::is_virtual));
    }
}
