//! `PersistentVolume`.

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use super::claim::{CLASS_ANNOTATION, check_access_modes};
use crate::{
    check::{Check, Errors, annotation, quantity},
    meta, names,
    pod::{
        affinity::check_node_selector_form,
        defaults::{round_up_resources, storage_source},
        update::difference,
        volumes::{SourceOf, as_second, check_network_source},
        warnings::node_term,
    },
    shown::{VOLUME_AFFINITY, show},
    strategy::{Context, Strategy},
    view::{View, ViewMut, same},
};

pub(super) struct PersistentVolume;

/// Every kind of storage, in the order in which upstream looks for them.
pub const SOURCES: &[&str] = &[
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

const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";

/// Kinds that are mounted with options.
const MOUNTED: &[&str] = &[
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "nfs",
    "rbd",
    "quobyte",
    "iscsi",
    "cinder",
    "cephfs",
    "azureFile",
    "vsphereVolume",
    "azureDisk",
    "photonPersistentDisk",
];

/// Fields for kinds of storage that are on their way out, and what is said of them.
const DEPRECATED: &[(&str, &str, &str)] = &[
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
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
        check(&mut errs, object, &Value::Null);
        check_mount_options(&mut errs, object);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check(&mut errs, new, old);
        check_mount_options(&mut errs, new);
        // Upstream judges it twice.
        check(&mut errs, new, old);
        let path = Path::new("spec");
        let (now, before) = (source(new, old), source(old, old));
        if !same(&now, &before) {
            errs.forbidden(
                &path.child("persistentvolumesource"),
                format!(
                    "spec.persistentvolumesource is immutable after creation\n{}",
                    difference(&now, &before)
                ),
            );
        }
        errs.immutable(&Path::new("volumeMode"), new.at("spec.volumeMode"), old.at("spec.volumeMode"));
        if old.has("spec.nodeAffinity") && !ctx.gates.is_on("MutablePVNodeAffinity") {
            let (now, before) = (new.at("spec.nodeAffinity"), old.at("spec.nodeAffinity"));
            if !same(now, &with_new_labels(before, now)) {
                const DETAIL: &str = "field is immutable, except for updating from beta label to GA";
                let error = FieldError::invalid(&Path::new("nodeAffinity"), Value::Null, DETAIL);
                errs.push(if now.is_null() { error } else { error.showing(show(now, VOLUME_AFFINITY)) });
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
        for (key, text) in [
            (CLASS_ANNOTATION, "deprecated since v1.8; use \"storageClassName\" attribute instead"),
            (MOUNT_OPTIONS, "deprecated since v1.31; use \"mountOptions\" attribute instead"),
        ] {
            if annotation(new, key).is_some() {
                out.push(format!("metadata.annotations[{key}]: {text}"));
            }
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
        let old_kinds = DEPRECATED.iter().filter(|(field, ..)| new.at("spec").has(field));
        out.extend(old_kinds.map(|(_, name, text)| format!("spec.{name}: {text}")));
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

/// A node affinity with the names that labels have today, where `now` has them.
fn with_new_labels(affinity: &Value, now: &Value) -> Value {
    let mut out = affinity.clone();
    for (i, term) in out.items_mut("required.nodeSelectorTerms").iter_mut().enumerate() {
        let now = now.items("required.nodeSelectorTerms").get(i).unwrap_or(&Value::Null);
        for list in ["matchExpressions", "matchFields"] {
            for (j, requirement) in term.items_mut(list).iter_mut().enumerate() {
                let key = now.items(list).get(j).map_or("", |r| r.str_at("key"));
                if RENAMED_LABELS.contains(&(requirement.str_at("key"), key)) {
                    requirement.set("key", key);
                }
            }
        }
    }
    out
}

fn check(errs: &mut Errors, volume: &Value, old: &Value) {
    const REQUIRED: &str = "spec.nodeAffinity.required";
    let bad_values = |volume: &Value| {
        let (mut strict, mut loose) = (Errors::new(), Errors::new());
        check_node_selector_form(&mut strict, &Path::ROOT, volume.at(REQUIRED), true);
        check_node_selector_form(&mut loose, &Path::ROOT, volume.at(REQUIRED), false);
        strict.len() > loose.len()
    };
    let strict = !(old.has(REQUIRED) && bad_values(old));
    check_spec(errs, &Path::new("spec"), volume.at("spec"), volume.str_at("metadata.name"), strict);
}

fn check_mount_options(errs: &mut Errors, volume: &Value) {
    if annotation(volume, MOUNT_OPTIONS).is_some() && !MOUNTED.iter().any(|kind| volume.at("spec").has(kind))
    {
        let path = Path::new("metadata");
        errs.forbidden(
            &path.child("annotations").child(MOUNT_OPTIONS),
            "may not specify mount options for this volume type",
        );
    }
}

fn check_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value, name: &str, strict_values: bool) {
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
            check_node_selector_form(errs, &p, spec.at("nodeAffinity.required"), strict_values);
        } else {
            errs.required(&p, "must specify required node constraints");
        }
    }
    let mut first = true;
    for kind in SOURCES.iter().filter(|k| spec.has(k)) {
        // A flexVolume beside another kind has never been an error.
        if !first && *kind != "flexVolume" {
            errs.forbidden(&path.child(as_second(kind)), "may not specify more than 1 volume type");
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
