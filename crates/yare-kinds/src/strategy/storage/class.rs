//! `StorageClass` and `VolumeAttributesClass`.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors, repeated},
    names,
    pod::warnings::deprecated_label,
    strategy::{Context, Strategy},
    view::{View, ViewMut},
};

pub(super) struct StorageClass;

const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETERS_B: usize = 256 * 1024;
const IMMUTABLE: [&str; 4] = ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"];

impl Strategy for StorageClass {
    fn default(&self, class: &mut Value) {
        class.default_absent("reclaimPolicy", "Delete");
        class.default_absent("volumeBindingMode", "Immediate");
    }

    fn validate(&self, class: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_provisioner(&mut errs, &Path::new("provisioner"), class.str_at("provisioner"));
        check_parameters(&mut errs, class, true);
        let policy = class.str_at("reclaimPolicy");
        if !policy.is_empty() {
            errs.one_of(&Path::new("reclaimPolicy"), policy, &["Delete", "Retain"]);
        }
        let path = Path::new("volumeBindingMode");
        match class.str_opt("volumeBindingMode") {
            None => errs.required(&path, ""),
            Some(mode) => errs.one_of(&path, mode, &["Immediate", "WaitForFirstConsumer"]),
        }
        check_topologies(&mut errs, &Path::new("allowedTopologies"), class.items("allowedTopologies"));
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        for field in IMMUTABLE {
            errs.immutable(&Path::new(field), new.at(field), old.at(field));
        }
        errs
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        for (i, term) in new.items("allowedTopologies").iter().enumerate() {
            for (j, requirement) in term.items("matchLabelExpressions").iter().enumerate() {
                if let Some(text) = deprecated_label(requirement.str_at("key")) {
                    out.push(format!("allowedTopologies[{i}].matchLabelExpressions[{j}].key: {text}"));
                }
            }
        }
        out
    }
}

pub(super) struct VolumeAttributesClass;

impl Strategy for VolumeAttributesClass {
    fn validate(&self, class: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_provisioner(&mut errs, &Path::new("driverName"), class.str_at("driverName"));
        check_parameters(&mut errs, class, false);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        for field in ["driverName", "parameters"] {
            if new.at(field) != old.at(field) {
                errs.forbidden(&Path::new(field), format!("updates to {field} are forbidden."));
            }
        }
        errs.extend(self.validate(new, ctx));
        errs
    }
}

fn check_provisioner(errs: &mut Errors, path: &Path<'_>, name: &str) {
    if name.is_empty() {
        errs.required(path, "");
    } else {
        let name = name.to_lowercase();
        errs.each(path, name.as_str(), names::qualified_name(&name));
    }
}

fn check_parameters(errs: &mut Errors, class: &Value, may_be_empty: bool) {
    let path = Path::new("parameters");
    let count = class.entries("parameters").count();
    if count > MAX_PARAMETERS {
        return errs.push(FieldError::too_long(&path, MAX_PARAMETERS));
    }
    let mut size_b = 0;
    for (key, value) in class.entries("parameters") {
        if key.is_empty() {
            errs.invalid(&path, key, "field can not be empty.");
        }
        size_b += key.len() + value.as_str().map_or(0, str::len);
    }
    if size_b > MAX_PARAMETERS_B {
        errs.push(FieldError::too_long(&path, MAX_PARAMETERS_B));
    }
    if count == 0 && !may_be_empty {
        errs.required(&path, "must contain at least one key/value pair");
    }
}

/// A term as a set of labels, each with its set of values.
fn as_sets(term: &Value) -> Vec<(&str, Vec<&str>)> {
    let mut sets: Vec<(&str, Vec<&str>)> = Vec::new();
    for requirement in term.items("matchLabelExpressions") {
        let key = requirement.str_at("key");
        let mut values = requirement.strings("values");
        values.sort_unstable();
        values.dedup();
        // The last of two requirements with the same key is the one that counts.
        sets.retain(|(k, _)| *k != key);
        sets.push((key, values));
    }
    sets.sort_unstable();
    sets
}

fn check_topologies(errs: &mut Errors, path: &Path<'_>, terms: &[Value]) {
    for (i, term) in terms.iter().enumerate() {
        let path = path.index(i);
        let list = path.child("matchLabelExpressions");
        let mut keys: HashSet<&str> = HashSet::new();
        for (j, requirement) in term.items("matchLabelExpressions").iter().enumerate() {
            let path = list.index(j);
            let (p, values) = (path.child("values"), requirement.strings("values"));
            if values.is_empty() {
                errs.required(&p, "");
            }
            for (k, value) in repeated(&values) {
                errs.duplicate(&p.index(k), value);
            }
            let (p, key) = (path.child("key"), requirement.str_at("key"));
            errs.each(&p, key, names::qualified_name(key));
            if keys.contains(&key) {
                errs.duplicate(&p, key);
            }
            keys.insert(key);
        }
        let sets = as_sets(term);
        // Upstream compares with as many empty terms too.
        if sets.is_empty() || terms[..i].iter().any(|t| as_sets(t) == sets) {
            errs.duplicate(&list, "");
        }
    }
}
