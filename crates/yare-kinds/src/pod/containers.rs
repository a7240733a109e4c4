//! Containers: regular, init, sidecar and ephemeral.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{env, handlers, resources, security, volumes};
use crate::{
    check::{Check, Errors},
    names,
    view::View,
};

/// What a container's rules need to know of its pod.
pub struct PodFacts<'a> {
    /// Volumes that have no errors of their own.
    pub volumes: HashMap<&'a str, &'a Value>,
    /// Names of `spec.resourceClaims`.
    pub claims: Vec<&'a str>,
    /// `spec.terminationGracePeriodSeconds`
    pub grace_s: Option<i64>,
    /// `spec.os.name`
    pub os: Option<&'a str>,
    /// `spec.restartPolicy`
    pub restart_policy: &'a str,
    /// Whether the pod shares the host's user namespace.
    pub host_users: bool,
}

const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];

/// Fields that make no sense in a container of a pod that runs already.
const NOT_EPHEMERAL: &[&str] = &[
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];

/// Errors in `containers`.
pub fn check_containers(errs: &mut Errors, path: &Path<'_>, containers: &[Value], pod: &PodFacts<'_>) {
    if containers.is_empty() {
        return errs.required(path, "");
    }
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, container) in containers.iter().enumerate() {
        let p = path.index(i);
        check_common(errs, &p, container, pod);
        let name = container.str_at("name");
        if seen.contains(&name) {
            errs.duplicate(&p.child("name"), name);
        }
        seen.insert(name);
        if container.has("lifecycle") {
            handlers::check_lifecycle(
                errs,
                &p.child("lifecycle"),
                container.at("lifecycle"),
                pod.grace_s,
                pod.os,
            );
        }
        handlers::check_probes(errs, &p, container, pod.grace_s);
        check_restart_policy(errs, &p, container);
    }
    check_host_ports(errs, path, containers);
}

/// Errors in `initContainers`.
pub fn check_init_containers(
    errs: &mut Errors,
    path: &Path<'_>,
    containers: &[Value],
    regular: &[Value],
    pod: &PodFacts<'_>,
) {
    let mut seen: HashSet<&str> = regular.iter().map(|c| c.str_at("name")).collect();
    for (i, container) in containers.iter().enumerate() {
        let p = path.index(i);
        check_common(errs, &p, container, pod);
        if container.has("restartPolicy") {
            check_restart_policy(errs, &p, container);
        } else if container.is_set("restartPolicyRules") {
            errs.required(
                &p.child("restartPolicy"),
                "must specify restartPolicy when restart rules are used",
            );
        }
        let name = container.str_at("name");
        if seen.contains(&name) {
            errs.duplicate(&p.child("name"), name);
        } else if !name.is_empty() {
            seen.insert(name);
        }
        check_host_ports(errs, path, std::slice::from_ref(container));
        let sidecar = container.str_at("restartPolicy") == "Always";
        if sidecar {
            if container.has("lifecycle") {
                handlers::check_lifecycle(
                    errs,
                    &p.child("lifecycle"),
                    container.at("lifecycle"),
                    pod.grace_s,
                    pod.os,
                );
            }
            handlers::check_probes(errs, &p, container, pod.grace_s);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if container.has(field) {
                errs.forbidden(
                    &p.child(field),
                    "may not be set for init containers without restartPolicy=Always",
                );
            }
        }
    }
}

/// Errors in `ephemeralContainers`.
pub fn check_ephemeral_containers(errs: &mut Errors, path: &Path<'_>, spec: &Value, pod: &PodFacts<'_>) {
    let others: HashSet<&str> = spec
        .items("containers")
        .iter()
        .chain(spec.items("initContainers"))
        .map(|c| c.str_at("name"))
        .collect();
    let mut seen = others.clone();
    for (i, container) in spec.items("ephemeralContainers").iter().enumerate() {
        let p = path.index(i);
        check_common(errs, &p, container, pod);
        check_image_padding(errs, &p, container);
        let name = container.str_at("name");
        if seen.contains(&name) {
            errs.duplicate(&p.child("name"), name);
        }
        seen.insert(name);
        let target = container.str_at("targetContainerName");
        if !target.is_empty() && !others.contains(&target) {
            errs.not_found(&p.child("targetContainerName"), target);
        }
        for field in NOT_EPHEMERAL {
            let optional =
                matches!(*field, "livenessProbe" | "readinessProbe" | "startupProbe" | "lifecycle");
            if container.is_set(field) || (optional && container.has(field)) {
                errs.forbidden(&p.child(field), "cannot be set for an Ephemeral Container");
            }
        }
        let list = p.child("volumeMounts");
        for (j, mount) in container.items("volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if mount.is_set(field) {
                    errs.forbidden(&list.index(j).child(field), "cannot be set for an Ephemeral Container");
                }
            }
        }
    }
}

/// Errors that pods have and templates, whose objects may be older than the rule, have not.
pub fn check_image_padding(errs: &mut Errors, path: &Path<'_>, container: &Value) {
    let image = container.str_at("image");
    if image.trim() != image {
        errs.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
}

fn check_common(errs: &mut Errors, path: &Path<'_>, container: &Value, pod: &PodFacts<'_>) {
    errs.name(&path.child("name"), container.str_at("name"), names::dns1123_label);
    errs.non_empty(&path.child("image"), container.str_at("image"));
    errs.required_one_listed(
        &path.child("terminationMessagePolicy"),
        container.str_at("terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
    );
    check_ports(errs, &path.child("ports"), container.items("ports"));
    env::check_env(errs, &path.child("env"), container.items("env"));
    env::check_env_from(errs, &path.child("envFrom"), container.items("envFrom"));
    volumes::check_mounts(errs, &path.child("volumeMounts"), container, &pod.volumes);
    volumes::check_devices(errs, &path.child("volumeDevices"), container, &pod.volumes);
    errs.required_one_of(&path.child("imagePullPolicy"), container.str_at("imagePullPolicy"), PULL_POLICIES);
    resources::check_container(errs, &path.child("resources"), container.at("resources"), &pod.claims);
    check_resize_policy(
        errs,
        &path.child("resizePolicy"),
        container.items("resizePolicy"),
        pod.restart_policy,
    );
    security::check_container(
        errs,
        &path.child("securityContext"),
        container.at("securityContext"),
        pod.host_users,
    );
}

/// Errors in an `imagePullPolicy`.
pub fn check_pull_policy(errs: &mut Errors, path: &Path<'_>, policy: &str) {
    errs.required_one_of(path, policy, PULL_POLICIES);
}

fn check_ports(errs: &mut Errors, path: &Path<'_>, ports: &[Value]) {
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let p = path.index(i);
        let name = port.str_at("name");
        if !name.is_empty() {
            let messages = names::port_name(name);
            if !messages.is_empty() {
                errs.each(&p.child("name"), name, messages);
            } else if seen.contains(&name) {
                errs.duplicate(&p.child("name"), name);
            } else {
                seen.insert(name);
            }
        }
        match port.int_at("containerPort") {
            0 => errs.required(&p.child("containerPort"), ""),
            number => errs.each(&p.child("containerPort"), number, names::port_number(number)),
        }
        let host_port = port.int_at("hostPort");
        if host_port != 0 {
            errs.each(&p.child("hostPort"), host_port, names::port_number(host_port));
        }
        errs.required_one_of(&p.child("protocol"), port.str_at("protocol"), &["TCP", "UDP", "SCTP"]);
    }
}

fn check_host_ports(errs: &mut Errors, path: &Path<'_>, containers: &[Value]) {
    let mut seen: HashSet<String> = HashSet::new();
    for (i, container) in containers.iter().enumerate() {
        let p = path.index(i);
        let p = p.child("ports");
        for (j, port) in container.items("ports").iter().enumerate() {
            let number = port.int_at("hostPort");
            if number == 0 {
                continue;
            }
            let key = format!("{}/{}/{number}", port.str_at("protocol"), port.str_at("hostIP"));
            if seen.contains(&key) {
                errs.duplicate(&p.index(j).child("hostPort"), key);
            } else {
                seen.insert(key);
            }
        }
    }
}

fn check_resize_policy(errs: &mut Errors, path: &Path<'_>, policies: &[Value], restart_policy: &str) {
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, policy) in policies.iter().enumerate() {
        let (resource, restart) = (policy.str_at("resourceName"), policy.str_at("restartPolicy"));
        if seen.contains(&resource) {
            errs.duplicate(&path.index(i), resource);
        }
        seen.insert(resource);
        errs.required_one_of(path, resource, &["cpu", "memory"]);
        errs.required_one_of(path, restart, &["NotRequired", "RestartContainer"]);
        if restart_policy == "Never" && restart != "NotRequired" {
            errs.invalid(path, restart, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

/// Errors in a container's own `restartPolicy` and `restartPolicyRules` (KEP-5307).
fn check_restart_policy(errs: &mut Errors, path: &Path<'_>, container: &Value) {
    let rules = container.items("restartPolicyRules");
    match container.str_opt("restartPolicy") {
        None if rules.is_empty() => return,
        None => errs
            .required(&path.child("restartPolicy"), "must specify restartPolicy when restart rules are used"),
        Some(policy) => {
            errs.one_of(&path.child("restartPolicy"), policy, &["Always", "Never", "OnFailure"]);
        }
    }
    let list = path.child("restartPolicyRules");
    if rules.len() > 20 {
        errs.push(FieldError::too_many(&list, rules.len(), 20));
    }
    for (i, rule) in rules.iter().enumerate() {
        let p = list.index(i);
        errs.one_of(&p.child("action"), rule.str_at("action"), &["Restart", "RestartAllContainers"]);
        let p = p.child("exitCodes");
        if rule.has("exitCodes") {
            errs.one_of(&p.child("operator"), rule.str_at("exitCodes.operator"), &["In", "NotIn"]);
            let values = rule.items("exitCodes.values");
            if values.len() > 255 {
                errs.push(FieldError::too_many(&p.child("values"), values.len(), 255));
            }
        } else {
            errs.required(&p, "must be specified");
        }
    }
}
