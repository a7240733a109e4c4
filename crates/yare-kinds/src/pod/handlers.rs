//! Probes and lifecycle hooks.

use serde_json::Value;
use yare_schema::field::Path;

use crate::{
    check::{Check, Errors},
    names,
    view::View,
};

const SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMAX-1",
    "SIGRTMAX-10",
    "SIGRTMAX-11",
    "SIGRTMAX-12",
    "SIGRTMAX-13",
    "SIGRTMAX-14",
    "SIGRTMAX-2",
    "SIGRTMAX-3",
    "SIGRTMAX-4",
    "SIGRTMAX-5",
    "SIGRTMAX-6",
    "SIGRTMAX-7",
    "SIGRTMAX-8",
    "SIGRTMAX-9",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

/// Errors in a container's three probes.
pub fn check_probes(errs: &mut Errors, path: &Path<'_>, container: &Value, grace_s: Option<i64>) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.at(name);
        if probe.is_null() {
            continue;
        }
        let p = path.child(name);
        check_handler(errs, &p, probe, &["exec", "httpGet", "tcpSocket", "grpc"], grace_s);
        for field in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            errs.non_negative(&p.child(field), probe.int_at(field));
        }
        let own_grace = probe.int_opt("terminationGracePeriodSeconds");
        let grace_path = p.child("terminationGracePeriodSeconds");
        if own_grace.is_some_and(|s| s <= 0) {
            errs.invalid(&grace_path, own_grace, "must be greater than 0");
        }
        if name == "readinessProbe" {
            if own_grace.is_some() {
                errs.invalid(&grace_path, own_grace, "must not be set for readinessProbes");
            }
        } else if probe.int_at("successThreshold") != 1 {
            errs.invalid(&p.child("successThreshold"), probe.int_at("successThreshold"), "must be 1");
        }
    }
}

/// Errors in a container's `lifecycle`.
pub fn check_lifecycle(
    errs: &mut Errors,
    path: &Path<'_>,
    lifecycle: &Value,
    grace_s: Option<i64>,
    os: Option<&str>,
) {
    for name in ["postStart", "preStop"] {
        if lifecycle.has(name) {
            let kinds = &["exec", "httpGet", "tcpSocket", "sleep"];
            check_handler(errs, &path.child(name), lifecycle.at(name), kinds, grace_s);
        }
    }
    if let Some(signal) = lifecycle.str_opt("stopSignal") {
        let p = path.child("stopSignal");
        match os {
            None => errs.forbidden(&p, "may not be set for containers with empty `spec.os.name`"),
            Some("windows") => errs.one_of(&p, signal, &["SIGKILL", "SIGTERM"]),
            Some("linux") => errs.one_of(&p, signal, SIGNALS),
            Some(_) => {}
        }
    }
}

fn check_handler(errs: &mut Errors, path: &Path<'_>, handler: &Value, kinds: &[&str], grace_s: Option<i64>) {
    let mut count = 0;
    for kind in kinds.iter().filter(|k| handler.has(k)) {
        let p = path.child(kind);
        count += 1;
        if count > 1 {
            errs.forbidden(&p, "may not specify more than 1 handler type");
            continue;
        }
        let action = handler.at(kind);
        match *kind {
            "exec" => {
                if !action.is_set("command") {
                    errs.required(&p.child("command"), "");
                }
            }
            "httpGet" => check_http_get(errs, &p, action),
            "sleep" => check_sleep(errs, &p, action.int_at("seconds"), grace_s),
            _ => errs.port(&p.child("port"), action.at("port")),
        }
    }
    if count == 0 {
        errs.required(path, "must specify a handler type");
    }
}

fn check_http_get(errs: &mut Errors, path: &Path<'_>, get: &Value) {
    errs.non_empty(&path.child("path"), get.str_at("path"));
    errs.port(&path.child("port"), get.at("port"));
    errs.one_of(&path.child("scheme"), get.str_at("scheme"), &["HTTP", "HTTPS"]);
    for header in get.items("httpHeaders") {
        let name = header.str_at("name");
        errs.each(&path.child("httpHeaders"), name, names::http_header_name(name));
    }
}

fn check_sleep(errs: &mut Errors, path: &Path<'_>, seconds: i64, grace_s: Option<i64>) {
    if let Some(grace_s) = grace_s
        && !(0..=grace_s).contains(&seconds)
    {
        errs.invalid(
            path,
            seconds,
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace_s})"),
        );
    }
}
