//! `Ingress`.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors, annotation},
    names, net,
    strategy::{Context, Strategy, rules::check_reference},
    view::View,
};

pub(super) struct Ingress;

const RELAXED: &str = "RelaxedServiceNameValidation";
const CLASS: &str = "kubernetes.io/ingress.class";
const BAD_SEQUENCES: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const BAD_SUFFIXES: [&str; 2] = ["/..", "/."];

/// What of the rules an update is spared, because the object breaks them already.
#[derive(Clone, Copy, Default)]
struct Spared {
    secrets: bool,
    wildcard_rules: bool,
    /// Names of services may start with a digit (KEP-5311).
    relaxed_services: bool,
}

impl Strategy for Ingress {
    fn validate(&self, ingress: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let spared = Spared { relaxed_services: ctx.gates.is_on(RELAXED), ..Spared::default() };
        check_spec(&mut errs, &Path::new("spec"), ingress.at("spec"), spared);
        if let (Some(old), Some(new)) = (annotation(ingress, CLASS), ingress.str_opt("spec.ingressClassName"))
            && old != new
        {
            let path = Path::new("annotations");
            errs.invalid(&path.child(CLASS), old, "must match `ingressClassName` when both are specified");
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let spared = Spared {
            secrets: old
                .items("spec.tls")
                .iter()
                .any(|tls| !secret_messages(tls.str_at("secretName")).is_empty()),
            wildcard_rules: old.items("spec.rules").iter().any(|rule| {
                let mut errs = Errors::new();
                check_http(&mut errs, &Path::ROOT, rule.at("http"), false);
                rule.str_at("host").contains('*') && !errs.is_empty()
            }),
            relaxed_services: ctx.gates.is_on(RELAXED) || has_relaxed_service(old.at("spec")),
        };
        let mut errs = Errors::new();
        check_spec(&mut errs, &Path::new("spec"), new.at("spec"), spared);
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let list = Path::new("status.loadBalancer.ingress");
        const FIELD: &str = "status.loadBalancer.ingress";
        let before: Vec<&str> =
            old.items(FIELD).iter().map(|i| i.str_at("ip")).filter(|ip| !ip.is_empty()).collect();
        for (i, ingress) in new.items(FIELD).iter().enumerate() {
            let path = list.index(i);
            let (ip, host) = (ingress.str_at("ip"), ingress.str_at("hostname"));
            if !ip.is_empty() {
                net::check_legacy_ip(&mut errs, &path.child("ip"), ip, &before);
            }
            if !host.is_empty() {
                let p = path.child("hostname");
                errs.each(&p, host, names::dns1123_subdomain(host));
                if net::parse_ip_sloppy(host).is_some() {
                    errs.invalid(&p, host, "must be a DNS name, not an IP address");
                }
            }
        }
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let by_annotation = annotation(new, CLASS).is_some() && !new.has("spec.ingressClassName");
        if old.is_none() && by_annotation {
            return vec![format!(
                "annotation {CLASS:?} is deprecated, please use 'spec.ingressClassName' instead"
            )];
        }
        Vec::new()
    }

    fn subresource_warnings(&self, subresource: &str, new: &Value) -> Vec<String> {
        let mut out = Vec::new();
        if subresource == "status" {
            let list = Path::new("status.loadBalancer.ingress");
            for (i, point) in new.items("status.loadBalancer.ingress").iter().enumerate() {
                let ip = point.str_at("ip");
                if !ip.is_empty() {
                    out.extend(net::ip_warnings(&list.index(i), ip));
                }
            }
        }
        out
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn secret_messages(name: &str) -> Vec<String> {
    if name.is_empty() { Vec::new() } else { names::dns1123_subdomain(name) }
}

fn check_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value, spared: Spared) {
    let rules = spec.items("rules");
    if rules.is_empty() && !spec.has("defaultBackend") {
        errs.invalid(path, spec.at("rules").clone(), "either `defaultBackend` or `rules` must be specified");
    }
    if spec.has("defaultBackend") {
        check_backend(
            errs,
            &path.child("defaultBackend"),
            spec.at("defaultBackend"),
            spared.relaxed_services,
        );
    }
    let list = path.child("rules");
    for (i, rule) in rules.iter().enumerate() {
        let path = list.index(i);
        let (p, host) = (path.child("host"), rule.str_at("host"));
        if !host.is_empty() {
            if net::parse_ip_sloppy(host).is_some() {
                errs.invalid(&p, host, "must be a DNS name, not an IP address");
            }
            check_host(errs, &p, host);
        }
        if !host.contains('*') || !spared.wildcard_rules {
            check_http(errs, &path.child("http"), rule.at("http"), spared.relaxed_services);
        }
    }
    let list = path.child("tls");
    for (i, tls) in spec.items("tls").iter().enumerate() {
        let path = list.index(i);
        let p = path.child("hosts");
        for (j, host) in tls.strings("hosts").iter().enumerate() {
            check_host(errs, &p.index(j), host);
        }
        if !spared.secrets {
            let name = tls.str_at("secretName");
            errs.each(&path.child("secretName"), name, secret_messages(name));
        }
    }
    if let Some(class) = spec.str_opt("ingressClassName") {
        errs.each(&path.child("ingressClassName"), class, names::dns1123_subdomain(class));
    }
}

fn check_host(errs: &mut Errors, path: &Path<'_>, host: &str) {
    let rule = if host.contains('*') { names::wildcard_dns1123_subdomain } else { names::dns1123_subdomain };
    errs.each(path, host, rule(host));
}

fn check_http(errs: &mut Errors, path: &Path<'_>, http: &Value, relaxed: bool) {
    if http.is_null() {
        return;
    }
    let list = path.child("paths");
    let paths = http.items("paths");
    if paths.is_empty() {
        errs.required(&list, "");
    }
    for (i, rule) in paths.iter().enumerate() {
        let path = list.index(i);
        let Some(kind) = rule.str_opt("pathType") else {
            errs.required(&path.child("pathType"), "pathType must be specified");
            continue;
        };
        let (p, text) = (path.child("path"), rule.str_at("path"));
        let mut absolute = || {
            if !text.starts_with('/') {
                errs.invalid(&p, text, "must be an absolute path");
            }
        };
        match kind {
            "Exact" | "Prefix" => {
                absolute();
                for bad in BAD_SEQUENCES.iter().filter(|bad| text.contains(**bad)) {
                    errs.invalid(&p, text, format!("must not contain '{bad}'"));
                }
                for bad in BAD_SUFFIXES.iter().filter(|bad| text.ends_with(**bad)) {
                    errs.invalid(&p, text, format!("cannot end with '{bad}'"));
                }
            }
            "ImplementationSpecific" if !text.is_empty() => absolute(),
            _ => errs.one_of(&path.child("pathType"), kind, &["Exact", "ImplementationSpecific", "Prefix"]),
        }
        check_backend(errs, &path.child("backend"), rule.at("backend"), relaxed);
    }
}

/// Whether a service is named as only the newer rule allows.
fn has_relaxed_service(spec: &Value) -> bool {
    let relaxed = |backend: &Value| {
        let name = backend.str_at("service.name");
        names::dns1123_label(name).is_empty() && !names::dns1035_label(name).is_empty()
    };
    let paths = spec.items("rules").iter().flat_map(|rule| rule.items("http.paths"));
    relaxed(spec.at("defaultBackend")) || paths.map(|path| path.at("backend")).any(relaxed)
}

fn check_backend(errs: &mut Errors, path: &Path<'_>, backend: &Value, relaxed: bool) {
    match (backend.has("resource"), backend.has("service")) {
        (true, true) => errs.invalid(path, "", "cannot set both resource and service backends"),
        (false, false) => errs.invalid(path, "", "resource or service backend is required"),
        (true, false) => {
            check_reference(errs, &path.child("resource"), backend.at("resource"), &["kind", "name"]);
        }
        (false, true) => {
            let (p, service) = (path.child("service"), backend.at("service"));
            let rule = if relaxed { names::dns1123_label } else { names::dns1035_label };
            errs.name(&p.child("name"), service.str_at("name"), rule);
            let (name, number) = (service.str_at("port.name"), service.int_at("port.number"));
            match (!name.is_empty(), number != 0) {
                (true, true) => errs.invalid(path, "", "cannot set both port name & port number"),
                (true, false) => errs.each(&p.child("port.name"), name, names::port_name(name)),
                (false, true) => errs.each(&p.child("port.number"), number, names::port_number(number)),
                (false, false) => errs.required(path, "port name or number is required"),
            }
        }
    }
}
