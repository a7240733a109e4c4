//! The whole of a pod's specification, and the templates that hold one.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{affinity, annotations, containers, containers::PodFacts, env, resources, security, volumes};
use crate::{
    check::{Check, Errors},
    meta::{validate_annotations, validate_labels},
    names, net, shown,
    view::View,
};

pub use super::annotations::check as check_annotations;

/// What the specification belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// A pod.
    Pod,
    /// A template, which may leave open what only a pod has to have.
    Template,
}

/// Errors in a `PodTemplateSpec`.
pub fn check_template(errs: &mut Errors, path: &Path<'_>, template: &Value) {
    // Upstream reports a template's metadata at the template itself.
    let metadata = template.at("metadata");
    let p = path.child("annotations");
    errs.extend(validate_labels(metadata.at("labels"), &path.child("labels")));
    errs.extend(validate_annotations(metadata.at("annotations"), &p));
    annotations::check(errs, &p, template);
    let spec_path = path.child("spec");
    check(errs, &spec_path, template, Of::Template);
    annotations::check_agree(errs, &spec_path, template);
    if template.is_set("spec.ephemeralContainers") {
        errs.forbidden(
            &spec_path.child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

/// Errors in the `spec` of `owner` (a pod or a template), which stands at `path`.
pub fn check(errs: &mut Errors, path: &Path<'_>, owner: &Value, of: Of) {
    let spec = owner.at("spec");
    let pod_name = if of == Of::Pod { owner.str_at("metadata.name") } else { "" };
    let grace_s = spec.int_opt("terminationGracePeriodSeconds");
    if grace_s.is_none() {
        errs.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let volumes =
        volumes::check_volumes(errs, &path.child("volumes"), spec.items("volumes"), pod_name, of == Of::Pod);
    let claims = spec.items("resourceClaims");
    check_claims(errs, &path.child("resourceClaims"), owner);
    let pod = PodFacts {
        volumes,
        claims: claims.iter().map(|c| c.str_at("name")).filter(|n| !n.is_empty()).collect(),
        grace_s,
        os: spec.str_opt("os.name"),
        restart_policy: spec.str_at("restartPolicy"),
        host_users: spec.bool_opt("hostUsers").unwrap_or(true),
    };
    let regular = spec.items("containers");
    containers::check_containers(errs, &path.child("containers"), regular, &pod);
    let init = spec.items("initContainers");
    containers::check_init_containers(errs, &path.child("initContainers"), init, regular, &pod);
    containers::check_ephemeral_containers(errs, &path.child("ephemeralContainers"), spec, &pod);
    resources::check_pod(errs, path, spec, &pod.claims);
    check_host_network(errs, path, spec, of);
    let policies = ["Always", "OnFailure", "Never"];
    errs.required_one_listed(&path.child("restartPolicy"), pod.restart_policy, &policies);
    let dns_policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    errs.required_one_listed(&path.child("dnsPolicy"), spec.str_at("dnsPolicy"), &dns_policies);
    affinity::check_node_labels(errs, &path.child("nodeSelector"), spec.at("nodeSelector"));
    security::check_pod(errs, path, spec);
    affinity::check_affinity(errs, &path.child("affinity"), spec.at("affinity"));
    check_dns(errs, &path.child("dnsConfig"), spec);
    check_gates(errs, path, spec);
    let spread = spec.items("topologySpreadConstraints");
    affinity::check_topology_spread(errs, &path.child("topologySpreadConstraints"), spread);
    security::check_host_process(errs, path, spec);
    security::check_host_users(errs, path, spec);
    check_hostname_override(errs, path, spec);
    check_plain_fields(errs, path, spec);
    security::check_os(errs, path, spec);
    check_scheduling_group(errs, path, spec);
    env::check_file_volumes(errs, path, spec);
}

/// Fields that stand for themselves, in the order in which upstream looks at them.
fn check_plain_fields(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let named = |errs: &mut Errors, field: &str, rule: fn(&str) -> Vec<String>| {
        let value = spec.str_at(field);
        if !value.is_empty() {
            errs.each(&path.child(field), value, rule(value));
        }
    };
    named(errs, "serviceAccountName", names::dns1123_subdomain);
    named(errs, "nodeName", names::dns1123_subdomain);
    if let Some(deadline_s) = spec.int_opt("activeDeadlineSeconds") {
        errs.in_range(&path.child("activeDeadlineSeconds"), deadline_s, 1, i64::from(i32::MAX));
    }
    named(errs, "hostname", names::dns1123_label);
    named(errs, "subdomain", names::dns1123_label);
    affinity::check_tolerations(errs, &path.child("tolerations"), spec.items("tolerations"));
    check_host_aliases(errs, &path.child("hostAliases"), spec.items("hostAliases"));
    named(errs, "priorityClassName", names::dns1123_subdomain);
    if let Some(name) = spec.str_opt("runtimeClassName") {
        errs.each(&path.child("runtimeClassName"), name, names::dns1123_subdomain(name));
    }
    if let Some(policy) = spec.str_opt("preemptionPolicy") {
        let p = path.child("preemptionPolicy");
        errs.required_one_listed(&p, policy, &["PreemptLowerPriority", "Never"]);
    }
    if spec.has("overhead") {
        let overhead = serde_json::json!({"limits": spec.at("overhead")});
        resources::check_container(errs, &path.child("overhead"), &overhead, &[]);
    }
}

/// Errors that the whole of a pod has beyond its metadata and specification.
pub fn check_pod(errs: &mut Errors, pod: &Value) {
    let metadata = Path::new("metadata");
    annotations::check(errs, &metadata.child("annotations"), pod);
    let path = Path::new("spec");
    check(errs, &path, pod, Of::Pod);
    let spec = pod.at("spec");
    if spec.str_at("serviceAccountName").is_empty() {
        let list = path.child("volumes");
        for (i, volume) in spec.items("volumes").iter().enumerate() {
            let p = list.index(i);
            let p = p.child("projected");
            let p = p.child("sources");
            for (j, source) in volume.items("projected.sources").iter().enumerate() {
                if source.has("serviceAccountToken") {
                    errs.forbidden(
                        &p.index(j).child("serviceAccountToken"),
                        "must not be specified when serviceAccountName is not set",
                    );
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        let p = path.child(list);
        for (i, container) in spec.items(list).iter().enumerate() {
            containers::check_image_padding(errs, &p.index(i), container);
        }
    }
}

fn check_claims(errs: &mut Errors, path: &Path<'_>, owner: &Value) {
    let mirror = crate::check::annotation(owner, "kubernetes.io/config.mirror").is_some();
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, claim) in owner.items("spec.resourceClaims").iter().enumerate() {
        if mirror {
            errs.forbidden(&Path::WHOLE, "static pods do not support resource claims");
            continue;
        }
        let p = path.index(i);
        let name = claim.str_at("name");
        if seen.contains(&name) && !name.is_empty() {
            errs.duplicate(&p.child("name"), name);
        } else {
            errs.name(&p.child("name"), name, names::dns1123_label);
            seen.insert(name);
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        let detail = match sources.iter().filter(|s| claim.has(s)).count() {
            0 => "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            1 => "",
            _ => "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
        };
        if !detail.is_empty() {
            let shown = shown::show(claim, shown::POD_CLAIM);
            errs.push(FieldError::invalid(&p, Value::Null, detail).showing(shown));
        }
        for source in sources {
            if let Some(name) = claim.str_opt(source) {
                errs.each(&p.child(source), name, names::dns1123_subdomain(name));
            }
        }
    }
}

fn check_host_network(errs: &mut Errors, path: &Path<'_>, spec: &Value, of: Of) {
    if !spec.bool_at("hostNetwork") {
        return;
    }
    let list = path.child("containers");
    for (i, container) in spec.items("containers").iter().enumerate() {
        let p = list.index(i);
        let p = p.child("ports");
        for (j, port) in container.items("ports").iter().enumerate() {
            let (host, own) = (port.int_at("hostPort"), port.int_at("containerPort"));
            if (of == Of::Pod || host != 0) && host != own {
                errs.invalid(
                    &p.index(j).child("hostPort"),
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                );
            }
        }
    }
}

fn check_dns(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let config = spec.at("dnsConfig");
    let servers = config.strings("nameservers");
    let servers_path = path.child("nameservers");
    if spec.str_at("dnsPolicy") == "None" {
        if config.is_null() {
            return errs.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if servers.is_empty() {
            return errs.required(
                &servers_path,
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
        }
    }
    if servers.len() > 3 {
        errs.invalid(&servers_path, servers.clone(), "must not have more than 3 nameservers");
    }
    for (i, server) in servers.iter().enumerate() {
        // Whether an unusual form is refused depends on a gate: `switched` judges that.
        net::check_old_ip(errs, &servers_path.index(i), server, &[], false);
    }
    let searches = config.strings("searches");
    let p = path.child("searches");
    if searches.len() > 32 {
        errs.invalid(&p, searches.clone(), "must not have more than 32 search paths");
    }
    if searches.join(" ").len() > 2048 {
        errs.invalid(
            &p,
            searches.clone(),
            "must not have more than 2048 characters (including spaces) in the search list",
        );
    }
    for (i, search) in searches.iter().enumerate().filter(|(_, s)| **s != ".") {
        let name = search.strip_suffix('.').unwrap_or(search);
        errs.each(&p.index(i), name, names::dns1123_subdomain_with_underscore(name));
    }
    let p = path.child("options");
    for (i, option) in config.items("options").iter().enumerate() {
        if option.str_at("name").is_empty() {
            errs.required(&p.index(i), "must not be empty");
        }
    }
}

fn check_gates(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let p = path.child("readinessGates");
    for (i, gate) in spec.items("readinessGates").iter().enumerate() {
        let kind = gate.str_at("conditionType");
        errs.each(&p.index(i).child("conditionType"), kind, names::qualified_name(kind));
    }
    let p = path.child("schedulingGates");
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, gate) in spec.items("schedulingGates").iter().enumerate() {
        let name = gate.str_at("name");
        errs.each(&p.index(i), name, names::qualified_name(name));
        if seen.contains(&name) {
            errs.duplicate(&p.index(i), name);
        }
        seen.insert(name);
    }
}

fn check_hostname_override(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let Some(name) = spec.str_opt("hostnameOverride") else { return };
    let p = path.child("hostnameOverride");
    if spec.bool_at("setHostnameAsFQDN") {
        errs.forbidden(&p, "may not be specified when setHostnameAsFQDN is true");
    }
    if spec.bool_at("hostNetwork") {
        errs.forbidden(&p, "may not be specified when hostNetwork is true");
    }
    if name.len() > 64 {
        errs.push(FieldError::too_long(&p, 64));
    }
    errs.each(&p, name, names::dns1123_subdomain(name));
}

fn check_scheduling_group(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    if spec.has("schedulingGroup") {
        let p = path.child("schedulingGroup");
        let p = p.child("podGroupName");
        match spec.str_opt("schedulingGroup.podGroupName") {
            None => errs.invalid(&p, Value::Null, "must specify one of: `podGroupName`"),
            Some(name) => errs.each(&p, name, names::dns1123_subdomain(name)),
        }
    }
}

fn check_host_aliases(errs: &mut Errors, path: &Path<'_>, aliases: &[Value]) {
    for (i, alias) in aliases.iter().enumerate() {
        let p = path.index(i);
        net::check_old_ip(errs, &p.child("ip"), alias.str_at("ip"), &[], false);
        let list = p.child("hostnames");
        for (j, name) in alias.strings("hostnames").iter().enumerate() {
            errs.each(&list.index(j), *name, names::dns1123_subdomain(name));
        }
    }
}

/// Whether `value` is what it costs to delete a pod: a 32-bit number without a plus sign or, where it is positive,
/// leading zeros.
pub fn is_deletion_cost(value: &str) -> bool {
    let padded = value.len() > 1 && value.starts_with('0');
    value.parse::<i32>().is_ok() && !value.starts_with('+') && !padded
}
