//! Environment variables and what they can be read from.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::volumes::check_no_backsteps;
use crate::{
    check::{Check, Errors, quantity},
    names,
    view::View,
};

/// Fields of the pod that an environment variable can hold.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const CONTAINER_RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
];

const DIVISORS: &[&str] =
    &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// Fields that the downward API knows, in a variable or a file.
const DOWNWARD_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Where a variable's value can come from, in the order in which upstream looks.
const SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];

/// Errors in a container's `env`.
pub fn check_env(errs: &mut Errors, path: &Path<'_>, vars: &[Value]) {
    for (i, var) in vars.iter().enumerate() {
        let p = path.index(i);
        errs.name(&p.child("name"), var.str_at("name"), names::env_var_name);
        if var.has("valueFrom") {
            check_value_from(errs, &p.child("valueFrom"), var);
        }
    }
}

fn check_value_from(errs: &mut Errors, path: &Path<'_>, var: &Value) {
    let from = var.at("valueFrom");
    let mut sources = 0;
    for source in SOURCES.iter().filter(|source| from.has(source)) {
        let (p, value) = (path.child(source), from.at(source));
        match *source {
            "fieldRef" => check_field_ref(errs, &p, value, ENV_FIELDS),
            "resourceFieldRef" => check_resource_ref(errs, &p, value, false),
            "fileKeyRef" => check_file_ref(errs, &p, value),
            _ => check_key_ref(errs, &p, value),
        }
        sources += 1;
    }
    if sources == 0 {
        errs.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if !var.str_at("value").is_empty() {
        errs.invalid(path, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        errs.invalid(path, "", "may not have more than one field specified at a time");
    }
}

/// Errors in an `ObjectFieldSelector` that may lead to one of `fields`, or to one label or annotation.
pub fn check_field_ref(errs: &mut Errors, path: &Path<'_>, selector: &Value, fields: &[&str]) {
    let (version, field) = (selector.str_at("apiVersion"), selector.str_at("fieldPath"));
    if version.is_empty() {
        return errs.required(&path.child("apiVersion"), "");
    }
    if field.is_empty() {
        return errs.required(&path.child("fieldPath"), "");
    }
    let (whole, subscript) = match field.strip_suffix("']").and_then(|f| f.split_once("['")) {
        Some((whole, subscript)) if !whole.is_empty() => (whole, Some(subscript)),
        _ => (field, None),
    };
    let mut unknown = |why: String| {
        errs.invalid(&path.child("fieldPath"), field, format!("error converting fieldPath: {why}"))
    };
    if version != "v1" {
        return unknown(format!("unsupported pod version: {version}"));
    }
    if subscript.is_some() && !matches!(whole, "metadata.annotations" | "metadata.labels") {
        return unknown(format!("field label does not support subscript: {field}"));
    }
    // What the first clients called the node.
    let whole = if whole == "spec.host" { "spec.nodeName" } else { whole };
    if !DOWNWARD_FIELDS.contains(&whole) {
        return unknown(format!("field label not supported: {field}"));
    }
    match (whole, subscript) {
        ("metadata.annotations", Some(key)) => {
            errs.each(path, key.to_lowercase(), names::qualified_name(&key.to_lowercase()));
        }
        ("metadata.labels", Some(key)) => errs.each(path, key, names::qualified_name(key)),
        _ => errs.one_of(&path.child("fieldPath"), whole, fields),
    }
}

/// Errors in a `ResourceFieldSelector`; in a volume it names its container.
pub fn check_resource_ref(errs: &mut Errors, path: &Path<'_>, selector: &Value, in_volume: bool) {
    let resource = selector.str_at("resource");
    let huge_page = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if in_volume && selector.str_at("containerName").is_empty() {
        errs.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        errs.required(&path.child("resource"), "");
    } else if !huge_page {
        errs.one_of(&path.child("resource"), resource, CONTAINER_RESOURCES);
    }
    let divisor = quantity(selector.at("divisor"));
    if divisor.is_zero() {
        return;
    }
    let divisor = divisor.to_string();
    let of = resource.strip_prefix("limits.").or_else(|| resource.strip_prefix("requests."));
    let (allowed, what) = match of.unwrap_or_default() {
        "cpu" => (&["1m", "1"][..], "divisor's values 1m and 1 are supported with the cpu"),
        "memory" => (
            DIVISORS,
            "divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory",
        ),
        "ephemeral-storage" => (
            DIVISORS,
            "divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local ephemeral storage",
        ),
        _ if huge_page => (
            DIVISORS,
            "divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the hugepages",
        ),
        _ => return,
    };
    if !allowed.contains(&divisor.as_str()) {
        errs.invalid(&path.child("divisor"), resource, format!("only {what} resource"));
    }
}

fn check_key_ref(errs: &mut Errors, path: &Path<'_>, selector: &Value) {
    let name = selector.str_at("name");
    errs.each(&path.child("name"), name, names::dns1123_subdomain(name));
    errs.name(&path.child("key"), selector.str_at("key"), names::config_map_key);
}

fn check_file_ref(errs: &mut Errors, path: &Path<'_>, selector: &Value) {
    errs.name(&path.child("key"), selector.str_at("key"), names::env_var_name);
    errs.name(&path.child("volumeName"), selector.str_at("volumeName"), names::dns1123_label);
    let p = path.child("path");
    match selector.str_at("path") {
        "" => errs.required(&p, ""),
        file => check_no_backsteps(errs, &p, file),
    }
}

/// Errors in a container's `envFrom`.
pub fn check_env_from(errs: &mut Errors, path: &Path<'_>, sources: &[Value]) {
    for (i, source) in sources.iter().enumerate() {
        let p = path.index(i);
        let prefix = source.str_at("prefix");
        if !prefix.is_empty() {
            errs.each(&p.child("prefix"), prefix, names::env_var_name(prefix));
        }
        let mut count = 0;
        for field in ["configMapRef", "secretRef"] {
            if source.has(field) {
                count += 1;
                let name = source.at(field).str_at("name");
                let p = p.child(field);
                errs.name(&p.child("name"), name, |name| {
                    names::dns1123_subdomain(&names::mask_trailing_dash(name))
                });
            }
        }
        match count {
            0 => errs.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errs.invalid(path, "", "may not have more than one field specified at a time"),
        }
    }
}

/// Variables that are read from a file need an `emptyDir` volume for it.
pub fn check_file_volumes(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    for (list, containers) in
        super::defaults::CONTAINER_LISTS.iter().map(|list| (path.child(list), spec.items(list)))
    {
        for (i, container) in containers.iter().enumerate() {
            let p = list.index(i);
            let p = p.child("env");
            for (j, var) in container.items("env").iter().enumerate() {
                if !var.has("valueFrom.fileKeyRef") {
                    continue;
                }
                let name = var.str_at("valueFrom.fileKeyRef.volumeName");
                let p = p.index(j);
                let p = p.child("valueFrom");
                let p = p.child("fileKeyRef");
                let p = p.child("volumeName");
                match spec.items("volumes").iter().find(|v| v.str_at("name") == name) {
                    None => errs.push(FieldError::not_found(&p, name)),
                    Some(volume) if !volume.has("emptyDir") => {
                        errs.invalid(&p, name, "referenced volume must be of type emptyDir");
                    }
                    Some(_) => {}
                }
            }
        }
    }
}
