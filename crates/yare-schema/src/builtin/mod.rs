//! The built-in kinds: the tables in `tables/` read into one [`Schema`], once, when first asked for.
//!
//! [`read`] says what a table looks like.

mod read;

use std::{collections::HashMap, sync::LazyLock};

use crate::model::{Schema, TypeId, TypeRef};

/// The text of every table; `build.rs` lists them.
const TABLES: &[&str] = include!(concat!(env!("OUT_DIR"), "/tables.rs"));

/// A release, such as (1, 36).
pub type Release = (u16, u16);

/// Names and sums of the packages that the tables were written from.
const SOURCES: &str = include_str!("../../tables/SOURCES");

/// The Kubernetes release that the tables are of.
pub fn release() -> Release {
    // Upstream's Go modules count 0.N where the release counts 1.N.
    let minor = SOURCES
        .split_once("golang-k8s-api-dev_0.")
        .and_then(|(_, rest)| rest.split('.').next()?.parse().ok());
    (1, minor.expect("tables/SOURCES names the package golang-k8s-api-dev"))
}

/// How settled a version is, read off its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stability {
    /// `v1alpha1`
    Alpha,
    /// `v1beta1`
    Beta,
    /// `v1`
    Stable,
}

/// A registered kind.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// API group, empty for core. `*` (with version `*`): every group version has this kind.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Kind; ends in `List` for lists.
    pub kind: &'static str,
    /// Its type in the built-in schema.
    pub ty: TypeId,
    /// The type of the items, for ordinary lists.
    pub item: Option<TypeId>,
    /// First release with it.
    pub introduced: Option<Release>,
    /// First release in which its use draws a warning.
    pub deprecated: Option<Release>,
    /// First release without it.
    pub removed: Option<Release>,
    /// Group, version and kind to use instead.
    pub replacement: Option<(&'static str, &'static str, &'static str)>,
}

impl Kind {
    /// Whether the release that the tables are of no longer serves the kind.
    pub fn is_removed(&self) -> bool {
        self.removed.is_some_and(|r| r <= release())
    }

    /// Whether use of the kind draws a warning in the release that the tables are of.
    pub fn is_deprecated(&self) -> bool {
        self.deprecated.is_some_and(|r| r <= release())
    }

    /// How settled the version is.
    pub fn stability(&self) -> Stability {
        if self.version.contains("alpha") {
            Stability::Alpha
        } else if self.version.contains("beta") {
            Stability::Beta
        } else {
            Stability::Stable
        }
    }
}

/// The built-in kinds and their shapes.
#[derive(Debug)]
pub struct Builtin {
    schema: Schema,
    kinds: Vec<Kind>,
    by_name: HashMap<(&'static str, &'static str, &'static str), u32>,
    definitions: HashMap<Box<str>, TypeId>,
}

static BUILTIN: LazyLock<Builtin> = LazyLock::new(|| {
    let mut reader = read::Reader::default();
    match reader.read(TABLES.iter().copied()) {
        Ok(()) => reader.finish(),
        // The tables are part of the program and a test reads them all.
        Err(message) => unreachable!("schema tables: {message}"),
    }
});

/// The built-in kinds, read from the tables at the first call.
pub fn builtin() -> &'static Builtin {
    &BUILTIN
}

impl Builtin {
    /// The arena that all built-in types live in.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// A walkable reference to a type of this schema.
    pub fn at(&self, id: TypeId) -> TypeRef<'_> {
        self.schema.at(id)
    }

    /// The shape of a kind; lists (`PodList`) and the kinds that every group version has
    /// (`DeleteOptions`, `WatchEvent`) included.
    pub fn lookup(&self, group: &str, version: &str, kind: &str) -> Option<TypeRef<'_>> {
        self.kind(group, version, kind).map(|k| self.schema.at(k.ty))
    }

    /// What is known of a kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Kind> {
        let by_name: &HashMap<(&str, &str, &str), u32> = &self.by_name;
        let at = by_name.get(&(group, version, kind)).or_else(|| by_name.get(&("*", "*", kind)))?;
        Some(&self.kinds[*at as usize])
    }

    /// Every registered kind, group by group.
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// The type with this OpenAPI definition name, for example `io.k8s.api.core.v1.PodSpec`.
    pub fn definition(&self, name: &str) -> Option<TypeRef<'_>> {
        self.definitions.get(name).map(|&id| self.schema.at(id))
    }

    /// `ObjectMeta`, which CustomResourceDefinitions share.
    pub fn object_meta(&self) -> TypeRef<'_> {
        self.definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
            .expect("meta.txt declares ObjectMeta")
    }

    /// `ListMeta`, which lists of CustomResourceDefinitions share.
    pub fn list_meta(&self) -> TypeRef<'_> {
        self.definition("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta").expect("meta.txt declares ListMeta")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ListKind, Shape};

    #[test]
    fn kinds_are_found() {
        let b = builtin();
        for (group, version, kind) in [
            ("", "v1", "Pod"),
            ("", "v1", "PodList"),
            ("apps", "v1", "Deployment"),
            ("apps", "v1", "DeleteOptions"),
            ("", "v1", "Status"),
            ("meta.k8s.io", "v1", "Table"),
            ("apiregistration.k8s.io", "v1", "APIServiceList"),
            ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
            ("autoscaling", "v1", "Scale"),
            ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList"),
            ("", "v1", "List"),
        ] {
            assert!(b.lookup(group, version, kind).is_some(), "{group}/{version} {kind}");
        }
        assert!(b.lookup("", "v1", "Nonsense").is_none());
        let removed = b.kind("apps", "v1beta1", "Deployment").unwrap();
        assert_eq!(removed.removed, Some((1, 16)));
        assert_eq!(removed.replacement, Some(("apps", "v1", "Deployment")));
        assert_eq!(removed.stability(), Stability::Beta);
        assert!(removed.is_removed() && removed.is_deprecated());
        assert_eq!(release(), (1, 36));
        let deployment = b.kind("apps", "v1", "Deployment").unwrap();
        assert!(!deployment.is_removed() && !deployment.is_deprecated());
    }

    #[test]
    fn shapes_are_upstreams() {
        let b = builtin();
        let spec = b.definition("io.k8s.api.core.v1.PodSpec").unwrap();
        let Shape::List(containers) = spec.member("containers").unwrap().shape() else { panic!() };
        assert_eq!(containers.kind, ListKind::Map(["name".into()].into()));
        let volume = b.definition("io.k8s.api.core.v1.Volume").unwrap();
        assert_eq!(&*volume.field("hostPath").unwrap().proto, &[2, 1]);
        let port = b.definition("io.k8s.api.core.v1.ContainerPort").unwrap();
        assert_eq!(port.field("protocol").unwrap().slot.default.as_deref(), Some(&serde_json::json!("TCP")));
        let claim =
            b.definition("io.k8s.api.core.v1.PersistentVolumeSpec").unwrap().member("claimRef").unwrap();
        assert!(!claim.as_struct().unwrap().atomic);
        assert!(b.definition("io.k8s.api.core.v1.ObjectReference").unwrap().as_struct().unwrap().atomic);
    }
}
