//! `PersistentVolumeClaim`, and the claim specification that ephemeral volumes and StatefulSets also hold.

use serde_json::{Value, json};
use yare_schema::{
    features::Gates,
    field::{FieldError, Path},
};

use crate::{
    check::{Check, Errors, annotation, quantity},
    meta, names,
    pod::{defaults, resources::check_amount, update::difference, warnings},
    strategy::{Context, Strategy},
    view::{View, ViewMut, same},
};

pub(super) struct PersistentVolumeClaim;

/// The storage class as it was before it became a field.
pub const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

impl Strategy for PersistentVolumeClaim {
    fn default(&self, object: &mut Value) {
        object.default_zero("status.phase", "Pending");
        if let Some(spec) = object.at_mut("spec") {
            defaults::claim_spec(spec);
        }
    }

    fn prepare_for_create(&self, object: &mut Value, ctx: &Context<'_>) {
        object.set("status", json!({"phase": "Pending"}));
        if let Some(spec) = object.at_mut("spec") {
            drop_foreign_source(spec, &Value::Null, ctx.gates);
            drop_unknown_source(spec, &Value::Null);
            both_data_sources(spec);
        }
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, true, false);
        if let Some(spec) = new.at_mut("spec") {
            drop_foreign_source(spec, old.at("spec"), ctx.gates);
            drop_unknown_source(spec, old.at("spec"));
            both_data_sources(spec);
        }
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_spec(&mut errs, &Path::new("spec"), object.at("spec"));
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_changed_spec(&mut errs, &Path::new("spec"), new.at("spec"), old.at("spec"));
        check_update(&mut errs, new, old);
        errs
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_status(&mut errs, new.at("status"));
        errs
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if annotation(new, CLASS_ANNOTATION).is_some() {
            out.push(format!(
                "metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
            ));
        }
        warnings::claim(&mut out, &Path::new("spec"), new.at("spec"));
        out
    }

    fn has_status(&self) -> bool {
        true
    }
}

/// `dataSource` alone only ever meant claims and snapshots; anything else in it is dropped.
fn drop_unknown_source(spec: &mut Value, old: &Value) {
    let in_use = old.has("dataSource") || old.has("dataSourceRef");
    if in_use || spec.has("dataSourceRef") || !spec.has("dataSource") {
        return;
    }
    let (group, kind) = (spec.str_at("dataSource.apiGroup"), spec.str_at("dataSource.kind"));
    let known = matches!(
        (group, kind),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    );
    if !known {
        spec.remove("dataSource");
    }
}

/// A source in another namespace comes with a gate (KEP-3294).
fn drop_foreign_source(spec: &mut Value, old: &Value, gates: &Gates) {
    let foreign = |spec: &Value| spec.is_set("dataSourceRef.namespace");
    if foreign(spec) && !old.has("dataSourceRef") && !gates.is_on("CrossNamespaceVolumeDataSource") {
        spec.remove("dataSourceRef");
    }
}

/// `dataSource` and its newer form `dataSourceRef` say the same, except for other namespaces.
fn both_data_sources(spec: &mut Value) {
    let copy = |from: &Value| {
        let mut to = json!({"kind": from.str_at("kind"), "name": from.str_at("name")});
        to.copy_from(from, "apiGroup");
        to
    };
    if spec.has("dataSource") && !spec.has("dataSourceRef") {
        let reference = copy(spec.at("dataSource"));
        spec.set("dataSourceRef", reference);
    } else if spec.has("dataSourceRef") && !spec.has("dataSource") && !spec.is_set("dataSourceRef.namespace")
    {
        let source = copy(spec.at("dataSourceRef"));
        spec.set("dataSource", source);
    }
}

/// Errors in `accessModes`, of claims and volumes.
pub fn check_access_modes(errs: &mut Errors, path: &Path<'_>, modes: &[&str]) {
    const MODES: &[&str] = &["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"];
    for mode in modes {
        errs.one_of(path, mode, MODES);
    }
    let single = modes.contains(&"ReadWriteOncePod");
    if single && modes.iter().any(|m| *m != "ReadWriteOncePod" && MODES.contains(m)) {
        errs.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}

/// Errors in a `PersistentVolumeClaimSpec`.
pub fn check_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    check_changed_spec(errs, path, spec, &Value::Null);
}

/// [`check_spec`], where what the specification `old` breaks may stay broken.
fn check_changed_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value, old: &Value) {
    let modes = spec.strings("accessModes");
    let p = path.child("accessModes");
    if modes.is_empty() {
        errs.required(&p, "at least 1 access mode is required");
    }
    let judge = meta::judge_selectors_after([old.at("selector")]);
    errs.extend(judge(spec.at("selector"), &path.child("selector")));
    check_access_modes(errs, &p, &modes);
    let p = path.child("resources");
    let p = p.key("storage");
    match spec.at("resources.requests").get("storage") {
        None => errs.required(&p, ""),
        Some(amount) => {
            let amount = quantity(amount);
            if amount.signum() <= 0 {
                errs.invalid(&p, amount.to_string(), "must be greater than zero");
            } else {
                check_amount(errs, &p, "storage", amount);
            }
        }
    }
    let check_class = |errs: &mut Errors, field: &str| {
        let class = spec.str_at(field);
        if !class.is_empty() {
            errs.each(&path.child(field), class, names::dns1123_subdomain(class));
        }
    };
    check_class(errs, "storageClassName");
    if let Some(mode) = spec.str_opt("volumeMode") {
        errs.one_of(&path.child("volumeMode"), mode, &["Block", "Filesystem"]);
    }
    let any_group = ["dataSource.apiGroup", "dataSourceRef.apiGroup"].iter().any(|at| old.has(at));
    for field in ["dataSource", "dataSourceRef"].iter().filter(|f| spec.has(f)) {
        check_data_source(errs, &path.child(field), spec.at(field), any_group);
    }
    let (source, reference) = (spec.at("dataSource"), spec.at("dataSourceRef"));
    if !source.is_null() && !reference.is_null() {
        // Upstream shows a path where a value belongs, which has nothing to show.
        let refuse = |detail: &str| FieldError::invalid(path, Value::Null, detail).showing("{}".to_owned());
        if reference.is_set("namespace") {
            errs.push(refuse("may not be specified when dataSourceRef.namespace is specified"));
        } else if source.at("apiGroup") != reference.at("apiGroup")
            || ["kind", "name"].iter().any(|f| source.str_at(f) != reference.str_at(f))
        {
            errs.push(refuse("must match dataSourceRef"));
        }
    }
    check_class(errs, "volumeAttributesClassName");
}

fn check_data_source(errs: &mut Errors, path: &Path<'_>, source: &Value, any_group: bool) {
    errs.non_empty(&path.child("name"), source.str_at("name"));
    let (group, kind) = (source.str_at("apiGroup"), source.str_at("kind"));
    errs.non_empty(&path.child("kind"), kind);
    if group.is_empty() {
        if kind != "PersistentVolumeClaim" {
            errs.invalid(path, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
        }
    } else if !any_group {
        errs.each(&path.child("apiGroup"), group, names::dns1123_subdomain(group));
    }
    let namespace = source.str_at("namespace");
    if !namespace.is_empty() {
        errs.each(&path.child("namespace"), namespace, names::dns1123_label(namespace));
    }
}

fn check_update(errs: &mut Errors, new: &Value, old: &Value) {
    let path = Path::new("spec");
    let (mut now, mut before) = (new.at("spec").clone(), old.at("spec").clone());
    both_data_sources(&mut before);
    if !before.is_set("volumeName") {
        before.copy_from(new.at("spec"), "volumeName");
    }
    // The class may move from its annotation to the field, and be set once where it was open.
    let (old_class, new_class) = (annotation(old, CLASS_ANNOTATION), annotation(new, CLASS_ANNOTATION));
    let set_once = !before.has("storageClassName") && now.has("storageClassName");
    let to_field = set_once && old_class.is_some_and(|c| now.str_at("storageClassName") == c);
    if to_field && (new_class.is_none() || new_class == old_class) {
        now.remove("storageClassName");
    } else {
        if old_class.unwrap_or_default() != new_class.unwrap_or_default() {
            let meta_path = Path::new("metadata");
            let p = meta_path.child("annotations");
            errs.invalid(&p.child(CLASS_ANNOTATION), new_class.unwrap_or_default(), "field is immutable");
        }
        if set_once && old_class.is_none_or(|c| now.str_at("storageClassName") == c) {
            now.copy_from(old.at("spec"), "storageClassName");
        }
    }
    if new.str_at("status.phase") == "Bound" {
        if now.has("resources.requests") {
            now.copy_from(old.at("spec"), "resources.requests.storage");
        }
        now.copy_from(old.at("spec"), "volumeAttributesClassName");
    }
    if !same(&now, &before) {
        errs.forbidden(
            &path,
            format!(
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{}",
                difference(&now, &before)
            ),
        );
    }
    let size = |object: &Value, at: &str| quantity(object.at(at));
    let wanted = size(new, "spec.resources.requests.storage");
    if wanted < size(old, "spec.resources.requests.storage") && wanted <= size(old, "status.capacity.storage")
    {
        let p = path.child("resources");
        let p = p.child("requests");
        errs.forbidden(&p.child("storage"), "field can not be less than status.capacity");
    }
    errs.immutable(&Path::new("volumeMode"), new.at("spec.volumeMode"), old.at("spec.volumeMode"));
    let (class, old_class) =
        (new.at("spec.volumeAttributesClassName"), old.at("spec.volumeAttributesClassName"));
    if class != old_class && old.has("status.currentVolumeAttributesClassName") {
        let p = path.child("volumeAttributesClassName");
        const DETAIL: &str = "is forbidden when status.currentVolumeAttributesClassName is not nil";
        if class.is_null() {
            errs.forbidden(&p, format!("update to nil {DETAIL}"));
        } else if class == "" {
            errs.forbidden(&p, format!("update to empty string {DETAIL}"));
        }
    }
}

fn check_status(errs: &mut Errors, status: &Value) {
    const STATES: &[&str] = &[
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizePending",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
    ];
    let path = Path::new("status");
    let key = |errs: &mut Errors, path: &Path<'_>, name: &str| -> bool {
        let before = errs.len();
        errs.each(path, name, names::qualified_name(name));
        if errs.len() == before && crate::pod::resources::is_native(name) {
            errs.one_of(path, name, &["storage"]);
        }
        errs.len() == before
    };
    let p = path.child("capacity");
    for (name, amount) in status.entries("capacity") {
        let amount = quantity(amount);
        if amount.signum() < 0 {
            errs.invalid(&p.key(name), amount.value(), "must be a valid resource quantity");
        }
    }
    let p = path.child("allocatedResourceStatuses");
    for (name, state) in status.entries("allocatedResourceStatuses") {
        key(errs, &p, name);
        if !STATES.contains(&state.as_str().unwrap_or_default()) {
            errs.push(FieldError::not_supported(&p, name, STATES));
        }
    }
    let p = path.child("allocatedResources");
    for (name, amount) in status.entries("allocatedResources") {
        if key(errs, &p, name) {
            let amount = quantity(amount);
            if amount.signum() < 0 {
                errs.invalid(&p.key(name), amount.value(), "must be a valid resource quantity");
            } else {
                check_amount(errs, &p.key(name), "storage", amount);
            }
        }
    }
}
