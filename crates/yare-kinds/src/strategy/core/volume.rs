//! `PersistentVolume`.

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use super::claim::{CLASS_ANNOTATION, check_access_modes};
use crate::{
    check::{Check, Errors, annotation, quantity},
    meta, names,
    pod::{
        affinity::check_node_selector,
        defaults::{round_up_resources, storage_source},
        volumes::{SourceOf, check_network_source},
        warnings::node_term,
    },
    strategy::{Context, Strategy},
    view::{View, ViewMut, same},
};

pub struct PersistentVolume;

/// Every kind of storage, in the order in which upstream looks for them.
const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

const RENAMED_LABELS: &[(&str, &str)] = &[
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
];

impl Strategy for PersistentVolume {
    fn default(&self, object: &mut Value) {
        object.default_zero("status.phase", "Pending");
        object.default_zero("spec.persistentVolumeReclaimPolicy", "Retain");
        object.default_absent("spec.volumeMode", "Filesystem");
        round_up_resources(object, "spec.capacity");
        if let Some(spec) = object.at_mut("spec") {
            storage_source(spec);
        }
    }

    fn prepare_for_create(&self, object: &mut Value, ctx: &Context<'_>) {
        object.set("status", json!({"phase": "Pending", "lastPhaseTransitionTime": ctx.now}));
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value, ctx: &Context<'_>) {
        meta::prepare_for_status_update(new, old);
        const TIME: &str = "status.lastPhaseTransitionTime";
        let moved = new.str_at("status.phase") != old.str_at("status.phase");
        if moved && (!new.has(TIME) || new.at(TIME) == old.at(TIME)) {
            new.set(TIME, ctx.now);
        } else if !moved && !new.has(TIME) {
            new.copy_from(old, TIME);
        }
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_spec(&mut errs, &Path::new("spec"), object.at("spec"), object.str_at("metadata.name"));
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        let path = Path::new("spec");
        if !same(&source(new, old), &source(old, old)) {
            errs.forbidden(
                &path.child("persistentvolumesource"),
                "spec.persistentvolumesource is immutable after creation",
            );
        }
        errs.immutable(&Path::new("volumeMode"), new.at("spec.volumeMode"), old.at("spec.volumeMode"));
        if old.has("spec.nodeAffinity") && !ctx.gates.is_on("MutablePVNodeAffinity") {
            let (now, before) = (new.at("spec.nodeAffinity"), old.at("spec.nodeAffinity"));
            if !same(&with_new_labels(now), &with_new_labels(before)) {
                errs.invalid(
                    &Path::new("nodeAffinity"),
                    now.clone(),
                    "field is immutable, except for updating from beta label to GA",
                );
            }
        }
        const CLASS: &str = "spec.volumeAttributesClassName";
        if old.has(CLASS) && !new.has(CLASS) {
            errs.forbidden(
                &path.child("volumeAttributesClassName"),
                "update from non-nil value to nil is forbidden",
            );
        }
        errs
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if annotation(new, CLASS_ANNOTATION).is_some() {
            out.push(format!(
                "metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
            ));
        }
        if new.str_at("spec.persistentVolumeReclaimPolicy") == "Recycle" {
            out.push(
                "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning."
                    .to_owned(),
            );
        }
        let path = Path::new("spec");
        let path = path.child("nodeAffinity");
        let path = path.child("required");
        let path = path.child("nodeSelectorTerms");
        for (i, term) in new.items("spec.nodeAffinity.required.nodeSelectorTerms").iter().enumerate() {
            node_term(&mut out, &path.index(i), term);
        }
        out
    }

    fn has_status(&self) -> bool {
        true
    }
}

/// The storage of `object` alone. A secret for growing may still be added to what `old` has.
fn source(object: &Value, old: &Value) -> Value {
    let spec = object.at("spec");
    let mut out = json!({});
    for kind in SOURCES {
        out.copy_from(spec, kind);
    }
    if old.has("spec.csi") && !old.has("spec.csi.controllerExpandSecretRef") {
        out.remove("csi.controllerExpandSecretRef");
    }
    out
}

/// A node affinity with the names that labels have today.
fn with_new_labels(affinity: &Value) -> Value {
    let mut out = affinity.clone();
    for term in out.items_mut("required.nodeSelectorTerms") {
        for requirement in term.items_mut("matchExpressions") {
            let renamed = RENAMED_LABELS.iter().find(|(old, _)| *old == requirement.str_at("key"));
            if let Some((_, new)) = renamed {
                requirement.set("key", *new);
            }
        }
    }
    out
}

fn check_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value, name: &str) {
    let modes = spec.strings("accessModes");
    let p = path.child("accessModes");
    if modes.is_empty() {
        errs.required(&p, "");
    }
    check_access_modes(errs, &p, &modes);
    check_capacity(errs, &path.child("capacity"), spec.at("capacity"));
    let policy = spec.str_at("persistentVolumeReclaimPolicy");
    let policy_path = path.child("persistentVolumeReclaimPolicy");
    if !policy.is_empty() {
        errs.one_of(&policy_path, policy, &["Delete", "Recycle", "Retain"]);
    }
    let affinity_path = path.child("nodeAffinity");
    if spec.has("nodeAffinity") {
        let p = affinity_path.child("required");
        if spec.has("nodeAffinity.required") {
            check_node_selector(errs, &p, spec.at("nodeAffinity.required"));
        } else {
            errs.required(&p, "must specify required node constraints");
        }
    }
    let mut first = true;
    for kind in SOURCES.iter().filter(|k| spec.has(k)) {
        // A flexVolume beside another kind has never been an error.
        if !first && *kind != "flexVolume" {
            errs.forbidden(&path.child(kind), "may not specify more than 1 volume type");
            continue;
        }
        first = false;
        check_network_source(errs, path, kind, spec.at(kind), SourceOf::PersistentVolume { name });
        if *kind == "local" && !spec.has("nodeAffinity") {
            errs.required(&affinity_path, "Local volume requires node affinity");
        }
    }
    if first {
        errs.required(path, "must specify a volume type");
    }
    let root = spec.str_at("hostPath.path").split('/').all(|part| part.is_empty() || part == ".");
    if spec.is_set("hostPath.path") && root && policy == "Recycle" {
        errs.forbidden(&policy_path, "may not be 'recycle' for a hostPath mount of '/'");
    }
    let class = spec.str_at("storageClassName");
    if !class.is_empty() {
        errs.each(&path.child("storageClassName"), class, names::dns1123_subdomain(class));
    }
    if let Some(mode) = spec.str_opt("volumeMode") {
        errs.one_of(&path.child("volumeMode"), mode, &["Block", "Filesystem"]);
    }
    if let Some(class) = spec.str_opt("volumeAttributesClassName") {
        let p = path.child("volumeAttributesClassName");
        if class.is_empty() {
            errs.required(&p, "an empty string is disallowed");
        } else {
            errs.each(&p, class, names::dns1123_subdomain(class));
        }
        if !spec.has("csi") {
            errs.required(&path.child("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
}

fn check_capacity(errs: &mut Errors, path: &Path<'_>, capacity: &Value) {
    let count = capacity.entries("").count();
    if count == 0 {
        errs.required(path, "");
    }
    if capacity.get("storage").is_none() || count > 1 {
        errs.push(FieldError::not_supported(path, capacity.clone(), &["storage"]));
    }
    for (name, amount) in capacity.entries("") {
        let amount = quantity(amount);
        let p = path.key(name);
        if amount.value() < 0 {
            errs.invalid(&p, amount.value(), "must be a valid resource quantity");
        }
        if amount.signum() <= 0 {
            errs.invalid(&p, amount.to_string(), "must be greater than zero");
        }
    }
}
