//! Custom resources: from a CustomResourceDefinition to something that is served like everything else.
//!
//! [`compile`] turns a definition into [`Served`] resources, one per version; [`controller`] follows the
//! definitions in the store and swaps the registry.

mod controller;
mod conversion;
mod lazy;
mod names;
mod removal;
mod strategy;

use std::sync::{Arc, Weak};

use serde_json::Value;
use yare_kinds::{gated, reset, view::View};

use self::strategy::CustomStrategy;
pub use self::{
    controller::{mark_for_deletion, start},
    conversion::Conversion,
    lazy::CustomType,
};
use crate::{
    convert::Convert,
    core::{Call, Core},
    discovery::compare_versions,
    hooks,
    registry::{Deprecation, Served, Stored, StrategyRef, Sub, TypeHandle, api_version, store_kind},
    status::{ApiError, ApiResult},
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

/// The resources a stored definition defines; empty where it makes no sense. `names`: those it has been given.
/// `since`: the revision of its specification.
pub fn compile(definition: &Value, names: &Value, since: u64, core: Weak<Core>) -> Vec<Served> {
    let spec = definition.at("spec");
    let name = |field: &str| names.str_at(field).to_owned();
    let list = |field: &str| -> Vec<Box<str>> { names.strings(field).into_iter().map(Box::from).collect() };
    let group = spec.str_at("group");
    let (kind, plural) = (name("kind"), name("plural"));
    let versions = spec.items("versions");
    let Some(storage_at) = versions.iter().position(|v| v.bool_at("storage")) else { return Vec::new() };
    let storage = &versions[storage_at];
    let namespaced = spec.str_at("scope") == "Namespaced";
    let types = types(definition.str_at("metadata.name"), versions, &core);
    let conversion = Conversion::of(definition, core).map(Arc::new);
    let custom = Arc::new(Custom {
        definition: definition.str_at("metadata.name").to_owned(),
        versions: versions.iter().map(version).collect(),
        preserve_unknown: spec.bool_at("preserveUnknownFields"),
        terminating: definition.has("metadata.deletionTimestamp"),
        since,
        conversion: conversion.clone(),
    });
    let strategy = |at: usize| {
        StrategyRef::Owned(Arc::new(CustomStrategy {
            ty: types[at].clone(),
            status: versions[at].has("subresources.status"),
            scale: scale(&versions[at]),
        }))
    };
    let stored = Arc::new(Stored {
        kind_key: store_kind(group, &plural),
        group: group.into(),
        version: storage.str_at("name").into(),
        api_version: api_version(group, storage.str_at("name")),
        kind: kind.as_str().into(),
        plural: plural.as_str().into(),
        namespaced,
        strategy: strategy(storage_at),
        ty: TypeHandle::Owned(types[storage_at].clone()),
        gated: gated::Rows::default(),
        resets: reset::of_custom(),
        hooks: hooks::row(group, &plural),
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
        .enumerate()
        .filter(|(_, v)| v.bool_at("served"))
        .map(|(at, version)| {
            let is_storage = at == storage_at;
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
                ty: TypeHandle::Owned(types[at].clone()),
                strategy: if is_storage { stored.strategy.clone() } else { strategy(at) },
                stored: stored.clone(),
                convert: match &conversion {
                    _ if is_storage => Convert::None,
                    None => Convert::Same,
                    Some(webhook) => Convert::Webhook(webhook.clone()),
                },
                deprecation: deprecation(spec, version, &kind)
                    .map(|warning| Deprecation { warning, removed: Box::default() }),
            }
        })
        .collect()
}

/// The type of each version. Versions that say the same share it.
fn types(definition: &str, versions: &[Value], core: &Weak<Core>) -> Vec<Arc<CustomType>> {
    let mut out: Vec<Arc<CustomType>> = Vec::with_capacity(versions.len());
    for (at, version) in versions.iter().enumerate() {
        let schema = version.at("schema.openAPIV3Schema");
        let same = versions[..at].iter().position(|v| v.at("schema.openAPIV3Schema") == schema);
        let ty = match same {
            Some(same) => out[same].clone(),
            None => Arc::new(CustomType::new(core.clone(), definition, version.str_at("name"))),
        };
        out.push(ty);
    }
    out
}

/// What users of a deprecated version are told.
fn deprecation(spec: &Value, version: &Value, kind: &str) -> Option<Box<str>> {
    if !version.bool_at("deprecated") {
        return None;
    }
    if let Some(text) = version.str_opt("deprecationWarning") {
        return Some(text.into());
    }
    let (group, name) = (spec.str_at("group"), version.str_at("name"));
    let newest = spec
        .items("versions")
        .iter()
        .filter(|v| v.bool_at("served") && !v.bool_at("deprecated"))
        .map(|v| v.str_at("name"))
        .min_by(|a, b| compare_versions(a, b))
        .filter(|newest| compare_versions(newest, name).is_lt());
    let instead = newest.map_or_else(String::new, |newest| format!("; use {group}/{newest} {kind}"));
    Some(format!("{group}/{name} {kind} is deprecated{instead}").into())
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
            description: match c.str_at("description") {
                "" => format!(
                    "Custom resource definition column (in JSONPath format): {}",
                    c.str_at("jsonPath")
                ),
                given => given.to_owned(),
            },
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
    let selectable = version
        .items("selectableFields")
        .iter()
        .map(|f| {
            let path = f.str_at("jsonPath").to_owned();
            (path.trim_start_matches('.').to_owned(), path)
        })
        .collect();
    CustomVersion { name: version.str_at("name").to_owned(), scale: scale(version), columns, selectable }
}

fn scale(version: &Value) -> Option<ScalePaths> {
    let scale = version.at("subresources.scale");
    (!scale.is_null()).then(|| ScalePaths {
        spec_replicas: scale.str_at("specReplicasPath").to_owned(),
        status_replicas: scale.str_at("statusReplicasPath").to_owned(),
        label_selector: scale.str_opt("labelSelectorPath").map(str::to_owned),
    })
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
