//! What in a pod works, or is ignored, but should be written otherwise.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use yare_schema::field::Path;

use super::{
    annotations::{APP_ARMOR, POD_SECCOMP, SECCOMP},
    overlaps,
    security::{app_armor_of, each_container},
};
use crate::{
    check::{annotation, quantity},
    names, net, shown,
    view::View,
};

/// Labels that have other names now.
const DEPRECATED_LABELS: &[(&str, &str)] = &[
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
];

const DEPRECATED_ANNOTATIONS: &[(&str, &str)] = &[
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];

const DEPRECATED_VOLUMES: &[(&str, &str)] = &[
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("ephemeral", ""),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// The text of what a label's name should be instead, where it is an old one.
pub fn deprecated_label(key: &str) -> Option<&'static str> {
    DEPRECATED_LABELS.iter().find(|(k, _)| *k == key).map(|(_, text)| *text)
}

/// Warnings about a pod or pod template (`owner`), which stands at `path`.
pub fn of(owner: &Value, path: &Path<'_>) -> Vec<String> {
    let mut out = Vec::new();
    let spec = owner.at("spec");
    let root = path;
    let path = &root.child("spec");
    let selector = path.child("nodeSelector");
    for (key, _) in spec.entries("nodeSelector") {
        if let Some(text) = deprecated_label(key) {
            out.push(format!("{}: {text}", selector.key(key)));
        }
    }
    node_affinity(&mut out, path, spec);
    spread(&mut out, path, spec);
    let metadata = root.child("metadata");
    let annotations = metadata.child("annotations");
    for (key, text) in DEPRECATED_ANNOTATIONS {
        if owner.at("metadata.annotations").get(key).is_some() {
            out.push(format!("{}: {text}", annotations.key(key)));
        }
    }
    let list = path.child("volumes");
    for (i, volume) in spec.items("volumes").iter().enumerate() {
        for (kind, text) in DEPRECATED_VOLUMES.iter().filter(|(kind, _)| volume.has(kind)) {
            if *kind == "ephemeral" {
                let p = list.index(i);
                let p = p.child("ephemeral");
                let p = p.child("volumeClaimTemplate");
                claim(&mut out, &p.child("spec"), volume.at("ephemeral.volumeClaimTemplate.spec"));
                continue;
            }
            // Upstream spells this one kind otherwise here than in the API.
            let name = if *kind == "storageos" { "storageOS" } else { kind };
            out.push(format!("{}: {text}", list.index(i).child(name)));
        }
    }
    out.extend(overlaps::warnings(spec));
    duplicates(&mut out, path, spec);
    let is_template = root.to_string() != Path::ROOT.to_string();
    containers(&mut out, path, spec, &annotations, owner, is_template);
    ports(&mut out, path, spec);
    if spec.int_at("terminationGracePeriodSeconds") < 0 {
        out.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            path.child("terminationGracePeriodSeconds")
        ));
    }
    pod_affinity(&mut out, path, spec);
    let config = path.child("dnsConfig");
    let servers = config.child("nameservers");
    for (i, server) in spec.strings("dnsConfig.nameservers").iter().enumerate() {
        out.extend(net::ip_warnings(&servers.index(i), server));
    }
    let aliases = path.child("hostAliases");
    for (i, alias) in spec.items("hostAliases").iter().enumerate() {
        out.extend(net::ip_warnings(&aliases.index(i).child("ip"), alias.str_at("ip")));
    }
    out
}

/// What a profile of AppArmor in the annotation at `path` is told.
pub fn app_armor(path: &Path<'_>) -> String {
    format!("{path}: deprecated since v1.30; use the \"appArmorProfile\" field instead")
}

/// Warnings about parts of bytes in a `PersistentVolumeClaimSpec`.
pub fn claim(out: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    let p = path.child("resources");
    for list in ["requests", "limits"] {
        let amount = quantity(spec.at("resources").at(list).at("storage"));
        if amount.milli_value() % 1000 != 0 {
            out.push(format!(
                "{}: fractional byte value {:?} is invalid, must be an integer",
                p.child(list).key("storage"),
                amount.to_string()
            ));
        }
    }
}

const NULL_SELECTOR: &str = "a null labelSelector results in matching no pod";

fn spread(out: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    let list = path.child("topologySpreadConstraints");
    for (i, constraint) in spec.items("topologySpreadConstraints").iter().enumerate() {
        let p = list.index(i);
        let key = constraint.str_at("topologyKey");
        if let Some(text) = deprecated_label(key) {
            out.push(format!("{}: {key} is {text}", p.child("topologyKey")));
        }
        if !constraint.has("labelSelector") {
            out.push(format!("{}: {NULL_SELECTOR}", p.child("labelSelector")));
        }
    }
}

fn node_affinity(out: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    let affinity = path.child("affinity");
    let node = affinity.child("nodeAffinity");
    let required = node.child("requiredDuringSchedulingIgnoredDuringExecution");
    let terms = required.child("nodeSelectorTerms");
    let own = spec.at("affinity.nodeAffinity");
    for (i, term) in
        own.items("requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms").iter().enumerate()
    {
        node_term(out, &terms.index(i), term);
    }
    let preferred = node.child("preferredDuringSchedulingIgnoredDuringExecution");
    for (i, term) in own.items("preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
        let p = preferred.index(i);
        let p = p.child("preference");
        let list = p.child("matchExpressions");
        for (j, requirement) in term.items("preference.matchExpressions").iter().enumerate() {
            let p = list.index(j);
            node_key(out, &p, requirement);
            let values = p.child("values");
            for (k, value) in requirement.strings("values").iter().enumerate() {
                let messages = names::label_value(value);
                out.extend(messages.iter().map(|m| format!("{}: {value} is invalid, {m}", values.index(k))));
            }
        }
    }
}

fn pod_affinity(out: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    let affinity = path.child("affinity");
    for kind in ["podAffinity", "podAntiAffinity"] {
        let p = affinity.child(kind);
        for (field, inner) in [
            ("requiredDuringSchedulingIgnoredDuringExecution", ""),
            ("preferredDuringSchedulingIgnoredDuringExecution", "podAffinityTerm"),
        ] {
            let list = p.child(field);
            for (i, term) in spec.at("affinity").at(kind).items(field).iter().enumerate() {
                if !term.at(inner).has("labelSelector") {
                    let p = list.index(i);
                    let place = if inner.is_empty() {
                        p.child("labelSelector").to_string()
                    } else {
                        p.child(inner).child("labelSelector").to_string()
                    };
                    out.push(format!("{place}: {NULL_SELECTOR}"));
                }
            }
        }
    }
}

/// Warnings about old names of labels in a `NodeSelectorTerm`.
pub fn node_term(out: &mut Vec<String>, path: &Path<'_>, term: &Value) {
    let list = path.child("matchExpressions");
    for (i, requirement) in term.items("matchExpressions").iter().enumerate() {
        node_key(out, &list.index(i), requirement);
    }
}

fn node_key(out: &mut Vec<String>, path: &Path<'_>, requirement: &Value) {
    let key = requirement.str_at("key");
    if let Some(text) = deprecated_label(key) {
        out.push(format!("{}: {key} is {text}", path.child("key")));
    }
}

fn duplicates(out: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    for (list, field, word) in [("hostAliases", "ip", "ip"), ("imagePullSecrets", "name", "name")] {
        let p = path.child(list);
        let values: Vec<&str> = spec.items(list).iter().map(|v| v.str_at(field)).collect();
        for (i, value) in crate::check::repeated(&values) {
            out.push(format!("{}: duplicate {word} {value:?}", p.index(i).child(field)));
        }
        if list == "imagePullSecrets" {
            for (i, _) in values.iter().enumerate().filter(|(_, v)| v.is_empty()) {
                out.push(format!("{}: invalid empty name \"\"", p.index(i).child(field)));
            }
        }
    }
}

fn containers(
    out: &mut Vec<String>,
    path: &Path<'_>,
    spec: &Value,
    annotations: &Path<'_>,
    owner: &Value,
    is_template: bool,
) {
    const INSTEAD: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    fractions(out, path, spec, &["overhead"]);
    if !spec.has("securityContext.seccompProfile") && annotation(owner, POD_SECCOMP).is_some() {
        out.push(format!("{}: {INSTEAD}", annotations.key(POD_SECCOMP)));
    }
    let whole = spec.at("securityContext.appArmorProfile");
    each_container(spec, path, |container, p| {
        let key = format!("{SECCOMP}{}", container.str_at("name"));
        if !container.has("securityContext.seccompProfile") && annotation(owner, &key).is_some() {
            out.push(format!("{}: {INSTEAD}", annotations.key(&key)));
        }
        // Of a pod this is said before its annotations become fields.
        let key = format!("{APP_ARMOR}{}", container.str_at("name"));
        if is_template
            && !container.has("securityContext.appArmorProfile")
            && let Some(text) = annotation(owner, &key)
            && app_armor_of(text).as_ref() != Some(whole)
        {
            out.push(app_armor(&annotations.key(&key)));
        }
        fractions(out, &p.child("resources"), container.at("resources"), &["limits", "requests"]);
        let env = container.items("env");
        let list = p.child("env");
        let mut earlier = HashSet::new();
        for (i, var) in env.iter().enumerate() {
            let name = var.str_at("name");
            let reference = format!("$({name})");
            let value = var.str_at("value");
            let extends = !var.has("valueFrom") && value.contains(&reference) && value != reference;
            if !earlier.insert(name) && !extends {
                out.push(format!(
                    "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                    list.index(i)
                ));
            }
        }
    });
}

fn fractions(out: &mut Vec<String>, path: &Path<'_>, of: &Value, lists: &[&str]) {
    for name in ["memory", "ephemeral-storage"] {
        for list in lists {
            if let Some(amount) = of.at(list).get(name).map(quantity)
                && amount.milli_value() % 1000 != 0
            {
                out.push(format!(
                    "{}: fractional byte value {:?} is invalid, must be an integer",
                    path.child(list).key(name),
                    amount.to_string()
                ));
            }
        }
    }
}

/// Each port is compared with so many before it, and pairs are not reported beyond so many warnings: the
/// number of pairs grows with the square of a list that a request may make long.
const MAX_PORTS: usize = 1000;
const MAX_WARNINGS: usize = 1000;

fn ports(out: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    let mut seen: Vec<(&Value, String)> = Vec::new();
    let mut names: HashMap<&str, String> = HashMap::new();
    let mut named_out = Vec::new();
    each_container(spec, path, |container, p| {
        let list = p.child("ports");
        for (i, port) in container.items("ports").iter().enumerate() {
            let place = list.index(i).to_string();
            let (host_ip, host_port) = (port.str_at("hostIP"), port.int_at("hostPort"));
            if !host_ip.is_empty() && host_port == 0 {
                out.push(format!("{place}: hostIP set without hostPort: {}", shown::container_port(port)));
            }
            for (other, other_place) in &seen {
                if out.len() >= MAX_WARNINGS {
                    break;
                }
                let same_port = other.int_at("containerPort") == port.int_at("containerPort")
                    && other.str_at("protocol") == port.str_at("protocol");
                if !same_port {
                    continue;
                }
                let (other_ip, other_host) = (other.str_at("hostIP"), other.int_at("hostPort"));
                let how = if host_ip == other_ip && host_port == other_host {
                    "duplicate"
                } else if host_port == 0 || other_host == 0 {
                    "overlapping"
                } else if host_port == other_host && host_ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                out.push(format!("{place}: {how} port definition with {other_place}"));
            }
            let name = port.str_at("name");
            if !name.is_empty() {
                match names.get(name) {
                    Some(other) => named_out.push(format!(
                        "{place}: duplicate port name {name:?} with {other}, services and probes that select ports by name will use {other}"
                    )),
                    None => drop(names.insert(name, place.clone())),
                }
            }
            if seen.len() < MAX_PORTS {
                seen.push((port, place));
            }
        }
    });
    out.extend(named_out);
}
