//! Custom resources: from a CustomResourceDefinition to something that is served like everything else.
//!
//! [`compile`] turns a definition into [`Served`] resources, one per version; [`controller`] follows the
//! definitions in the store and swaps the registry.

mod controller;
mod conversion;
mod strategy;

use std::sync::{Arc, Weak};

use serde_json::Value;
use yare_kinds::view::{View, ViewMut};
use yare_schema::{
    crd,
    field::{FieldError, Path},
};

use self::strategy::CustomStrategy;
pub use self::{controller::start, conversion::Conversion};
use crate::{
    convert::Convert,
    core::{Call, Core},
    registry::{Served, Stored, StrategyRef, Sub, TypeHandle, api_version, store_kind},
    status::{ApiError, ApiResult, GroupResource},
};

/// Kind of definitions in the store.
pub const DEFINITIONS: &str = "apiextensions.k8s.io/customresourcedefinitions";

/// One printer column.
#[derive(Clone, Debug)]
pub struct Column {
    /// Heading.
    pub name: String,
    /// OpenAPI type.
    pub kind: String,
    /// OpenAPI format.
    pub format: String,
    /// Help.
    pub description: String,
    /// 0: always; 1: with `-o wide`.
    pub priority: i32,
    /// Where the value stands.
    pub json_path: String,
}

/// Where a custom resource keeps its replicas.
#[derive(Clone, Debug)]
pub struct ScalePaths {
    /// `.spec.replicas`
    pub spec_replicas: String,
    /// `.status.replicas`
    pub status_replicas: String,
    /// Path of a selector as text.
    pub label_selector: Option<String>,
}

/// One version of a custom resource.
pub struct CustomVersion {
    /// `v1`
    pub name: String,
    /// The `scale` subresource.
    pub scale: Option<ScalePaths>,
    /// Printer columns beside the name.
    pub columns: Vec<Column>,
    /// Selectable fields: name (`spec.x`) and path (`.spec.x`).
    pub selectable: Vec<(String, String)>,
}

/// What a definition says beyond what is in [`Served`].
pub struct Custom {
    /// Name of the definition.
    pub definition: String,
    /// Its versions.
    pub versions: Vec<CustomVersion>,
    /// Fields that the schema does not know are kept.
    pub preserve_unknown: bool,
    /// The definition is going: nothing new may be created.
    pub terminating: bool,
    /// The revision at which the definition became what it is: objects written before it may lack its
    /// defaults and have fields that it no longer knows.
    pub since: u64,
    /// The webhook that converts between its versions.
    pub conversion: Option<Arc<Conversion>>,
}

impl Custom {
    /// The version of this name.
    pub fn version(&self, name: &str) -> Option<&CustomVersion> {
        self.versions.iter().find(|v| v.name == name)
    }

    /// Printer columns of a version beside the name.
    pub fn columns(&self, version: &str) -> &[Column] {
        self.version(version).map_or(&[], |v| &v.columns)
    }

    /// The path of a selectable field.
    pub fn selectable_path(&self, version: &str, field: &str) -> Option<&str> {
        self.version(version)?.selectable.iter().find(|(f, _)| f == field).map(|(_, p)| p.as_str())
    }
}

/// The resources a stored definition defines; empty where it makes no sense. `since`: the revision of its
/// specification.
pub fn compile(definition: &Value, since: u64, core: Weak<Core>) -> Vec<Served> {
    let spec = definition.at("spec");
    let names = definition.at("status.acceptedNames");
    let name = |field: &str| {
        let accepted = names.str_at(field);
        let wanted = spec.at("names").str_at(field);
        if accepted.is_empty() { wanted.to_owned() } else { accepted.to_owned() }
    };
    let list = |field: &str| -> Vec<Box<str>> {
        spec.at("names").strings(field).into_iter().map(Box::from).collect()
    };
    let group = spec.str_at("group");
    let (kind, plural) = (name("kind"), name("plural"));
    let versions = spec.items("versions");
    let Some(storage) = versions.iter().find(|v| v.bool_at("storage")) else { return Vec::new() };
    let namespaced = spec.str_at("scope") == "Namespaced";
    let handle = |version: &Value| {
        let compiled = crd::load(version.at("schema.openAPIV3Schema"));
        TypeHandle::Owned(compiled.schema, compiled.root)
    };
    let conversion = Conversion::of(definition, core).map(Arc::new);
    let custom = Arc::new(Custom {
        definition: definition.str_at("metadata.name").to_owned(),
        versions: versions.iter().map(version).collect(),
        preserve_unknown: spec.bool_at("preserveUnknownFields"),
        terminating: definition.has("metadata.deletionTimestamp"),
        since,
        conversion: conversion.clone(),
    });
    let ty = handle(storage);
    let stored = Arc::new(Stored {
        kind_key: store_kind(group, &plural),
        group: group.into(),
        version: storage.str_at("name").into(),
        api_version: api_version(group, storage.str_at("name")),
        kind: kind.as_str().into(),
        plural: plural.as_str().into(),
        namespaced,
        strategy: StrategyRef::Owned(Arc::new(CustomStrategy {
            ty: ty.clone(),
            status: storage.has("subresources.status"),
        })),
        ty: ty.clone(),
        builtin: None,
        custom: Some(custom),
    });
    let verbs = || -> Vec<Box<str>> {
        ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]
            .map(Box::from)
            .into()
    };
    let list_kind = name("listKind");
    versions
        .iter()
        .filter(|v| v.bool_at("served"))
        .map(|version| {
            let is_storage = version.str_at("name") == &*stored.version;
            Served {
                group: group.into(),
                version: version.str_at("name").into(),
                api_version: api_version(group, version.str_at("name")),
                kind: kind.as_str().into(),
                list_kind: if list_kind.is_empty() {
                    format!("{kind}List").into()
                } else {
                    list_kind.as_str().into()
                },
                plural: plural.as_str().into(),
                singular: name("singular").into(),
                namespaced,
                short_names: list("shortNames"),
                categories: list("categories"),
                verbs: verbs(),
                subresources: subresources(version),
                ty: if is_storage { ty.clone() } else { handle(version) },
                stored: stored.clone(),
                convert: match &conversion {
                    _ if is_storage => Convert::None,
                    None => Convert::Same,
                    Some(webhook) => Convert::Webhook(webhook.clone()),
                },
            }
        })
        .collect()
}

fn subresources(version: &Value) -> Vec<Sub> {
    let verbs = || ["get", "patch", "update"].map(Box::from).into();
    let mut out = Vec::new();
    if version.has("subresources.status") {
        out.push(Sub { name: "status".into(), kind: None, verbs: verbs() });
    }
    if version.has("subresources.scale") {
        let kind = Some(("autoscaling".into(), "v1".into(), "Scale".into()));
        out.push(Sub { name: "scale".into(), kind, verbs: verbs() });
    }
    out
}

fn version(version: &Value) -> CustomVersion {
    let mut columns: Vec<Column> = version
        .items("additionalPrinterColumns")
        .iter()
        .map(|c| Column {
            name: c.str_at("name").to_owned(),
            kind: c.str_at("type").to_owned(),
            format: c.str_at("format").to_owned(),
            description: c.str_at("description").to_owned(),
            priority: i32::try_from(c.int_at("priority")).unwrap_or(0),
            json_path: c.str_at("jsonPath").to_owned(),
        })
        .collect();
    if columns.is_empty() {
        columns.push(Column {
            name: "Age".into(),
            kind: "date".into(),
            format: String::new(),
            description:
                "CreationTimestamp is a timestamp representing the server time when this object was created."
                    .into(),
            priority: 0,
            json_path: ".metadata.creationTimestamp".into(),
        });
    }
    let scale = version.has("subresources.scale").then(|| {
        let scale = version.at("subresources.scale");
        ScalePaths {
            spec_replicas: scale.str_at("specReplicasPath").to_owned(),
            status_replicas: scale.str_at("statusReplicasPath").to_owned(),
            label_selector: scale.str_opt("labelSelectorPath").map(str::to_owned),
        }
    });
    let selectable = version
        .items("selectableFields")
        .iter()
        .map(|f| {
            let path = f.str_at("jsonPath").to_owned();
            (path.trim_start_matches('.').to_owned(), path)
        })
        .collect();
    CustomVersion { name: version.str_at("name").to_owned(), scale, columns, selectable }
}

/// Completes and checks a definition that is being written.
pub fn admit(definition: &mut Value) -> ApiResult<()> {
    let kind = definition.str_at("spec.names.kind").to_owned();
    definition.default_zero("spec.names.singular", kind.to_lowercase());
    definition.default_zero("spec.names.listKind", format!("{kind}List"));
    definition.default_absent("spec.conversion.strategy", "None");
    let name = definition.str_at("metadata.name").to_owned();
    let mut errors = Vec::new();
    let spec = Path::new("spec");
    let wanted = format!("{}.{}", definition.str_at("spec.names.plural"), definition.str_at("spec.group"));
    if name != wanted {
        let metadata = Path::new("metadata");
        errors.push(FieldError::invalid(
            &metadata.child("name"),
            name.as_str(),
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    let versions = spec.child("versions");
    let list = definition.items("spec.versions");
    if list.iter().filter(|v| v.bool_at("storage")).count() != 1 {
        errors.push(FieldError::invalid(
            &versions,
            definition.at("spec.versions").clone(),
            "must have exactly one version marked as storage version",
        ));
    }
    for (i, version) in list.iter().enumerate() {
        let at = versions.index(i);
        let at = at.child("schema");
        let at = at.child("openAPIV3Schema");
        if !version.has("schema.openAPIV3Schema") {
            errors.push(FieldError::required(&at, "schemas are required"));
        } else if let Err(wrong) = crd::compile(version.at("schema.openAPIV3Schema"), &at) {
            errors.extend(wrong);
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    let what = GroupResource { group: "apiextensions.k8s.io", resource: "CustomResourceDefinition" };
    Err(ApiError::invalid(what, &name, &errors))
}

/// The storage version goes on record, so that nobody drops a version that objects rest in.
pub fn record_storage_version(definition: &mut Value) {
    let Some(storage) = definition
        .items("spec.versions")
        .iter()
        .find(|v| v.bool_at("storage"))
        .map(|v| v.str_at("name").to_owned())
    else {
        return;
    };
    let mut stored = definition.items("status.storedVersions").to_vec();
    if !stored.iter().any(|v| *v == *storage) {
        stored.push(storage.into());
        definition.set("status.storedVersions", stored);
    }
}

/// Refuses new objects of a definition that is going.
pub fn check_create(call: &Call, served: &Served) -> ApiResult<()> {
    let _ = call;
    if served.stored.custom.as_ref().is_some_and(|c| c.terminating) {
        return Err(ApiError::new(
            405,
            "MethodNotAllowed",
            "create not allowed while custom resource definition is terminating",
        ));
    }
    Ok(())
}
