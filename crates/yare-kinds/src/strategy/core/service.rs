//! `Service`.
//!
//! Addresses and node ports are given out by the API server, before it validates; what a client leaves out
//! of an update keeps its value here.

use std::collections::HashSet;

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use super::endpoints::check_endpoint_ip;
use crate::{
    check::{Check, Errors, annotation},
    meta::{self, validate_labels},
    names, net,
    strategy::{Context, Strategy},
    view::{View, ViewMut, same},
};

mod addresses;
pub mod families;
mod ports;

pub(super) struct Service;

const DEFAULT_AFFINITY_TIMEOUT_S: i64 = 10_800;
const MAX_AFFINITY_TIMEOUT_S: i64 = 86_400;
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const ONLY_BALANCED: &str = "may only be used when `type` is 'LoadBalancer'";
const INTERNAL_POLICIES: [&str; 2] = ["Cluster", "Local"];
const MODE: &str = "service.kubernetes.io/topology-mode";

/// Whether the service has no address of its own.
pub fn is_headless(service: &Value) -> bool {
    service.strings("spec.clusterIPs") == ["None"]
}

/// Whether the service can be reached from outside the cluster.
pub fn is_external(service: &Value) -> bool {
    match service.str_at("spec.type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => service.is_set("spec.externalIPs"),
        _ => false,
    }
}

/// Whether the service has a port on every node at which load balancers see whether that node has endpoints.
pub fn needs_health_check(service: &Value) -> bool {
    service.str_at("spec.type") == "LoadBalancer" && service.str_at("spec.externalTrafficPolicy") == "Local"
}

/// Whether the service has ports on every node.
pub fn needs_node_ports(service: &Value) -> bool {
    match service.str_at("spec.type") {
        "NodePort" => true,
        "LoadBalancer" => service.bool_opt("spec.allocateLoadBalancerNodePorts").unwrap_or(true),
        _ => false,
    }
}

fn needs_cluster_ip(service: &Value) -> bool {
    service.str_at("spec.type") != "ExternalName"
}

impl Strategy for Service {
    fn default(&self, service: &mut Value) {
        service.default_zero("spec.sessionAffinity", "None");
        if service.str_at("spec.sessionAffinity") == "None" {
            service.remove("spec.sessionAffinityConfig");
        } else if service.str_at("spec.sessionAffinity") == "ClientIP" {
            service.default_absent(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                DEFAULT_AFFINITY_TIMEOUT_S,
            );
        }
        service.default_zero("spec.type", "ClusterIP");
        for port in service.items_mut("spec.ports") {
            port.default_zero("protocol", "TCP");
            let number = port.int_at("port");
            port.default_zero("targetPort", number);
        }
        if is_external(service) {
            service.default_zero("spec.externalTrafficPolicy", "Cluster");
        }
        let kind = service.str_at("spec.type").to_owned();
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
            service.default_absent("spec.internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            service.default_absent("spec.allocateLoadBalancerNodePorts", true);
            for ingress in service.items_mut("status.loadBalancer.ingress") {
                if ingress.is_set("ip") {
                    ingress.default_absent("ipMode", "VIP");
                }
            }
        }
    }

    fn prepare_for_create(&self, service: &mut Value, _ctx: &Context<'_>) {
        service.set("status", json!({"loadBalancer": {}}));
        if service.is_set("spec.clusterIP") && !service.is_set("spec.clusterIPs") {
            let ip = service.at("spec.clusterIP").clone();
            service.set("spec.clusterIPs", json!([ip]));
        }
        drop_internal_policy(service);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, true, false);
        keep_allocated(new, old);
        agree_cluster_ips(new, old);
        drop_what_the_type_lacks(new, old);
        drop_internal_policy(new);
    }

    fn validate(&self, service: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_strict_name(&mut errs, service, ctx);
        check(&mut errs, service, &Value::Null, is_strict(ctx));
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        addresses::check_update(&mut errs, new, old);
        let path = Path::new("spec");
        let both_balanced = [new, old].iter().all(|s| s.str_at("spec.type") == "LoadBalancer");
        if both_balanced && new.at("spec.loadBalancerClass") != old.at("spec.loadBalancerClass") {
            errs.invalid(
                &path.child("loadBalancerClass"),
                new.at("spec.loadBalancerClass").clone(),
                "may not change once set",
            );
        }
        check_class(&mut errs, &path, new.at("spec"));
        let both_checked = needs_health_check(new) && needs_health_check(old);
        if both_checked && new.at("spec.healthCheckNodePort") != old.at("spec.healthCheckNodePort") {
            errs.forbidden(&path.child("healthCheckNodePort"), "field is immutable");
        }
        check(&mut errs, new, old, is_strict(ctx));
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_status(&mut errs, new, old, is_strict(ctx));
        errs
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        warnings(new)
    }

    fn subresource_warnings(&self, _subresource: &str, new: &Value) -> Vec<String> {
        let path = Path::new("status");
        let path = path.child("loadBalancer");
        let path = path.child("ingress");
        let points = new.items("status.loadBalancer.ingress").iter().enumerate();
        let set = points.filter(|(_, point)| point.is_set("ip"));
        set.filter_map(|(i, point)| net::ip_warnings(&path.index(i), point.str_at("ip"))).collect()
    }

    fn has_status(&self) -> bool {
        true
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_label(name)
    }
}

/// Names outside of the cluster have no traffic inside of it. What no such policy can be stays, to be refused.
/// (Upstream stores the field and leaves it out whenever it shows the service.)
fn drop_internal_policy(service: &mut Value) {
    if service.str_at("spec.type") == "ExternalName"
        && INTERNAL_POLICIES.contains(&service.str_at("spec.internalTrafficPolicy"))
    {
        service.remove("spec.internalTrafficPolicy");
    }
}

fn is_strict(ctx: &Context<'_>) -> bool {
    ctx.gates.is_on("StrictIPCIDRValidation")
}

/// Without a gate, names of services do not start with a digit (KEP-5311). What breaks the rule for labels
/// too has its error from there.
fn check_strict_name(errs: &mut Errors, service: &Value, ctx: &Context<'_>) {
    let name = service.str_at("metadata.name");
    if !ctx.gates.is_on("RelaxedServiceNameValidation") && names::dns1123_label(name).is_empty() {
        errs.each(&Path::new("metadata.name"), name, names::dns1035_label(name));
    }
}

/// Values that were given out stay where an update leaves them out.
fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(new) && needs_cluster_ip(old) {
        new.default_zero("spec.clusterIP", old.at("spec.clusterIP").clone());
        new.default_zero("spec.clusterIPs", old.at("spec.clusterIPs").clone());
    }
    if needs_node_ports(new) && needs_node_ports(old) {
        let used = |s: &Value| -> Vec<i64> {
            s.items("spec.ports").iter().map(|p| p.int_at("nodePort")).filter(|p| *p != 0).collect()
        };
        let now = used(new);
        let taken: Vec<i64> = used(old).into_iter().filter(|p| now.contains(p)).collect();
        for port in new.items_mut("spec.ports") {
            let before = old.items("spec.ports").iter().rfind(|p| p.str_at("name") == port.str_at("name"));
            let before = before.map_or(0, |p| p.int_at("nodePort"));
            if before != 0 && !taken.contains(&before) {
                port.default_zero("nodePort", before);
            }
        }
    }
    if needs_health_check(new) && needs_health_check(old) {
        new.default_zero("spec.healthCheckNodePort", old.at("spec.healthCheckNodePort").clone());
    }
}

/// `clusterIP` is the first of `clusterIPs`; a client may change either alone.
fn agree_cluster_ips(new: &mut Value, old: &Value) {
    let (now, before) = (new.str_at("spec.clusterIP").to_owned(), old.str_at("spec.clusterIP"));
    let list_kept = same(new.at("spec.clusterIPs"), old.at("spec.clusterIPs"));
    if !new.is_set("spec.clusterIPs") && old.is_set("spec.clusterIPs") && now == before {
        new.copy_from(old, "spec.clusterIPs");
    }
    if now != before && list_kept {
        if now.is_empty() {
            new.remove("spec.clusterIPs");
        } else {
            new.set("spec.clusterIPs", json!([now]));
        }
    }
}

/// A change of the type clears what the new type has no use for, unless the client changes that too.
fn drop_what_the_type_lacks(new: &mut Value, old: &Value) {
    let balanced = |s: &Value| s.str_at("spec.type") == "LoadBalancer";
    let lost = |new: &Value, needs: fn(&Value) -> bool| needs(old) && !needs(new);
    let mut drop: Vec<&str> = Vec::new();
    if lost(new, needs_cluster_ip) {
        let kept = ["spec.clusterIP", "spec.clusterIPs"].iter().all(|p| same(new.at(p), old.at(p)));
        if kept {
            new.remove("spec.clusterIP");
            new.remove("spec.clusterIPs");
        }
        drop.extend(["spec.ipFamilies", "spec.ipFamilyPolicy"]);
    }
    if lost(new, needs_health_check) {
        drop.push("spec.healthCheckNodePort");
    }
    if balanced(old) && !balanced(new) {
        drop.extend(["spec.allocateLoadBalancerNodePorts", "spec.loadBalancerClass"]);
    }
    if lost(new, is_external) {
        drop.push("spec.externalTrafficPolicy");
    }
    let ports = |s: &Value| -> HashSet<i64> {
        s.items("spec.ports").iter().map(|p| p.int_at("nodePort")).filter(|p| *p != 0).collect()
    };
    let on_nodes = |s: &Value| matches!(s.str_at("spec.type"), "NodePort" | "LoadBalancer");
    if on_nodes(old) && !on_nodes(new) && ports(new).is_subset(&ports(old)) {
        for port in new.items_mut("spec.ports") {
            port.remove("nodePort");
        }
    }
    for path in drop {
        if same(new.at(path), old.at(path)) {
            new.remove(path);
        }
    }
    if !balanced(new) {
        new.set("status.loadBalancer", json!({}));
    }
}

fn check(errs: &mut Errors, service: &Value, old: &Value, strict: bool) {
    let path = Path::new("spec");
    let spec = service.at("spec");
    let kind = spec.str_at("type");
    let headless = is_headless(service);
    if let (Some(mode), Some(hints)) = (annotation(service, MODE), annotation(service, HINTS))
        && mode != hints
    {
        let meta_path = Path::new("metadata");
        errs.invalid(
            &meta_path.child("annotations").key(MODE),
            mode,
            format!("must match annotations[{HINTS}] when both are specified"),
        );
    }
    let ports = spec.items("ports");
    let ports_path = path.child("ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errs.required(&ports_path, "");
    }
    if headless && matches!(kind, "LoadBalancer" | "NodePort") {
        errs.invalid(
            &path.child("clusterIPs").index(0),
            "None",
            format!("may not be set to 'None' for {kind} services"),
        );
    }
    if kind == "ExternalName" {
        for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if spec.is_set(field) {
                errs.forbidden(&path.child(field), "may not be set for ExternalName services");
            }
        }
        let name = spec.str_at("externalName");
        errs.name(
            &path.child("externalName"),
            name.strip_suffix('.').unwrap_or(name),
            names::dns1123_subdomain,
        );
    }
    ports::check_each(errs, &ports_path, ports);
    errs.extend(validate_labels(spec.at("selector"), &path.child("selector")));
    check_affinity(errs, &path, spec);
    if kind != "ExternalName" {
        addresses::check(errs, &path, spec, old.at("spec"), strict);
    }
    let list = path.child("externalIPs");
    let existing = old.strings("spec.externalIPs");
    for (i, ip) in spec.strings("externalIPs").iter().enumerate() {
        let before = errs.len();
        net::check_old_ip(errs, &list.index(i), ip, &existing, strict);
        if errs.len() == before {
            check_endpoint_ip(errs, &list.index(i), ip);
        }
    }
    let kinds = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
    errs.required_one_of(&path.child("type"), kind, &kinds);
    ports::check_all(errs, &ports_path, ports, kind);
    check_source_ranges(errs, &path, service, old, strict);
    check_load_balancer(errs, &path, spec);
    check_traffic(errs, &path, service);
}

fn check_affinity(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let affinity = spec.str_at("sessionAffinity");
    errs.required_one_of(&path.child("sessionAffinity"), affinity, &["ClientIP", "None"]);
    let p = path.child("sessionAffinityConfig");
    match affinity {
        "ClientIP" => {
            const DETAIL: &str = "when session affinity type is ClientIP";
            let client = p.child("clientIP");
            let timeout = client.child("timeoutSeconds");
            if !spec.has("sessionAffinityConfig") {
                errs.required(&p, DETAIL);
            } else if !spec.has("sessionAffinityConfig.clientIP") {
                errs.required(&client, DETAIL);
            } else {
                match spec.int_opt("sessionAffinityConfig.clientIP.timeoutSeconds") {
                    None => errs.required(&timeout, DETAIL),
                    Some(seconds) if !(1..=MAX_AFFINITY_TIMEOUT_S).contains(&seconds) => errs.invalid(
                        &timeout,
                        seconds,
                        format!("must be greater than 0 and less than {MAX_AFFINITY_TIMEOUT_S}"),
                    ),
                    Some(_) => {}
                }
            }
        }
        "None" if spec.has("sessionAffinityConfig") => {
            errs.forbidden(&p, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn check_source_ranges(errs: &mut Errors, path: &Path<'_>, service: &Value, old: &Value, strict: bool) {
    let balanced = service.str_at("spec.type") == "LoadBalancer";
    let ranges = service.strings("spec.loadBalancerSourceRanges");
    if !ranges.is_empty() {
        // Upstream writes this path so.
        let p = path.child("LoadBalancerSourceRanges");
        if !balanced {
            errs.forbidden(&p, ONLY_BALANCED);
        }
        let existing: Vec<&str> =
            old.strings("spec.loadBalancerSourceRanges").into_iter().map(str::trim).collect();
        for (i, range) in ranges.iter().enumerate() {
            net::check_old_cidr(errs, &p.index(i), range.trim(), &existing, strict);
        }
    } else if let Some(ranges) = annotation(service, SOURCE_RANGES) {
        let p = Path::new("metadata");
        let p = p.child("annotations");
        let p = p.key(SOURCE_RANGES);
        if !balanced {
            errs.forbidden(&p, ONLY_BALANCED);
        }
        if annotation(old, SOURCE_RANGES) != Some(ranges) && !ranges.trim().is_empty() {
            for range in ranges.trim().split(',') {
                net::check_old_cidr(errs, &p, range.trim(), &[], strict);
            }
        }
    }
}

fn check_load_balancer(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let balanced = spec.str_at("type") == "LoadBalancer";
    match (balanced, spec.has("allocateLoadBalancerNodePorts")) {
        (false, true) => errs.forbidden(&path.child("allocateLoadBalancerNodePorts"), ONLY_BALANCED),
        (true, false) => errs.required(&Path::new("allocateLoadBalancerNodePorts"), ""),
        _ => {}
    }
    check_class(errs, path, spec);
}

fn check_class(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    if let Some(class) = spec.str_opt("loadBalancerClass") {
        let p = path.child("loadBalancerClass");
        if spec.str_at("type") == "LoadBalancer" {
            errs.each(&p, class, names::qualified_name(class));
        } else {
            errs.forbidden(&p, ONLY_BALANCED);
        }
    }
}

fn check_traffic(errs: &mut Errors, path: &Path<'_>, service: &Value) {
    let spec = service.at("spec");
    let external = spec.str_at("externalTrafficPolicy");
    let p = path.child("externalTrafficPolicy");
    if is_external(service) {
        errs.required_one_of(&p, external, &["Cluster", "Local"]);
    } else if !external.is_empty() {
        errs.invalid(&p, external, "may only be set for externally-accessible services");
    }
    let port = spec.int_at("healthCheckNodePort");
    let p = path.child("healthCheckNodePort");
    if !needs_health_check(service) {
        if port != 0 {
            errs.invalid(
                &p,
                port,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            );
        }
    } else if port == 0 {
        errs.required(&p, "");
    } else {
        errs.each(&p, port, names::port_number(port));
    }
    let p = path.child("internalTrafficPolicy");
    match spec.str_opt("internalTrafficPolicy") {
        None if matches!(spec.str_at("type"), "NodePort" | "LoadBalancer" | "ClusterIP") => {
            errs.required(&p, "");
        }
        None => {}
        Some(policy) => errs.one_of(&p, policy, &INTERNAL_POLICIES),
    }
    if let Some(distribution) = spec.str_opt("trafficDistribution") {
        let p = path.child("trafficDistribution");
        errs.one_listed(&p, distribution, &["PreferClose", "PreferSameZone", "PreferSameNode"]);
    }
}

fn check_status(errs: &mut Errors, new: &Value, old: &Value, strict: bool) {
    let path = Path::new("status");
    let path = path.child("loadBalancer");
    let path = path.child("ingress");
    let ingress = new.items("status.loadBalancer.ingress");
    if new.str_at("spec.type") != "LoadBalancer" && !ingress.is_empty() {
        return errs.forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'");
    }
    check_ingress_points(errs, &path, ingress, old.items("status.loadBalancer.ingress"), strict);
}

/// Errors in the addresses of a load balancer, of a Service.
fn check_ingress_points(errs: &mut Errors, path: &Path<'_>, points: &[Value], old: &[Value], strict: bool) {
    let existing: Vec<&str> = old.iter().map(|i| i.str_at("ip")).filter(|ip| !ip.is_empty()).collect();
    for (i, point) in points.iter().enumerate() {
        let p = path.index(i);
        let ip = point.str_at("ip");
        if !ip.is_empty() {
            net::check_old_ip(errs, &p.child("ip"), ip, &existing, strict);
        }
        let mode_path = p.child("ipMode");
        match (point.str_opt("ipMode"), ip.is_empty()) {
            (None, false) => errs.required(&mode_path, "must be specified when `ip` is set"),
            (Some(_), true) => errs.forbidden(&mode_path, "may not be specified when `ip` is not set"),
            (Some(mode), false) => errs.one_of(&mode_path, mode, &["Proxy", "VIP"]),
            (None, true) => {}
        }
        let hostname = point.str_at("hostname");
        if !hostname.is_empty() {
            let p = p.child("hostname");
            errs.each(&p, hostname, names::dns1123_subdomain(hostname));
            if net::parse_ip_sloppy(hostname).is_some() {
                errs.invalid(&p, hostname, "must be a DNS name, not an IP address");
            }
        }
    }
}

fn warnings(service: &Value) -> Vec<String> {
    let spec = service.at("spec");
    let path = Path::new("spec");
    let mut out = Vec::new();
    if annotation(service, HINTS).is_some() {
        out.push(format!("annotation {HINTS} is deprecated, please use {MODE} instead"));
    }
    let headless = spec.str_at("type") == "ClusterIP" && spec.str_at("clusterIP") == "None";
    if headless {
        for (path, holds) in [
            ("spec.loadBalancerIP", spec.is_set("loadBalancerIP")),
            ("spec.externalIPs", spec.is_set("externalIPs")),
            ("spec.SessionAffinity", spec.str_at("sessionAffinity") != "None"),
        ] {
            if holds {
                out.push(format!("{path} is ignored for headless services"));
            }
        }
    } else if spec.is_set("clusterIP") {
        let p = path.child("clusterIPs");
        for (i, ip) in spec.strings("clusterIPs").iter().enumerate() {
            out.extend(net::ip_warnings(&p.index(i), ip));
        }
    }
    let p = path.child("externalIPs");
    for (i, ip) in spec.strings("externalIPs").iter().enumerate() {
        out.extend(net::ip_warnings(&p.index(i), ip));
    }
    let by_name = spec.str_at("type") == "ExternalName";
    if spec.is_set("externalIPs") && !headless && !by_name {
        out.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned(),
        );
    }
    if spec.is_set("loadBalancerIP") {
        out.extend(net::ip_warnings(&path.child("loadBalancerIP"), spec.str_at("loadBalancerIP")));
    }
    let p = path.child("loadBalancerSourceRanges");
    for (i, range) in spec.strings("loadBalancerSourceRanges").iter().enumerate() {
        out.extend(net::cidr_warnings(&p.index(i), range));
    }
    if by_name && spec.is_set("externalIPs") {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !by_name && spec.is_set("externalName") {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.str_at("trafficDistribution") == "PreferClose" {
        out.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned(),
        );
    }
    out
}
