//! Counters and histograms under upstream's names, written by hand. What belongs to one part of the server is
//! counted there; here is what is counted of requests, watches and the process, and the page with all of it.

mod bodies;
mod cel;
pub mod csr;
mod deprecated;
mod filters;
pub mod pods;
mod requests;
pub mod seldom;
mod stored;
mod watches;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

pub use bodies::Bodies;
pub use cel::Cel;
pub use deprecated::Deprecated;
pub use filters::{Filter, Filters};
use parking_lot::Mutex;
pub use requests::{Ended, Labels, Requests};
pub use stored::Lists;
pub use watches::{Scope, Sharded, WatchEvents, Watched};
use yare_kinds::view::View;
pub use yare_metrics::slis::Checks;
use yare_metrics::{process::Process, table::Counts, text::Page};
pub use yare_metrics::{text, timing};

use crate::{core::Core, registry::Served};

/// All metrics of a server.
#[derive(Default)]
pub struct Metrics {
    /// Requests.
    pub requests: Requests,
    /// Steps on their way.
    pub filters: Filters,
    /// Their bodies.
    pub bodies: Bodies,
    /// Events that were sent to watchers.
    pub watches: WatchEvents,
    /// Lists.
    pub lists: Lists,
    /// Rules of custom resources.
    pub cel: Cel,
    /// Versions on their way out that somebody used.
    pub deprecated: Deprecated,
    /// What happens seldom.
    pub seldom: Counts,
    /// Results of health checks.
    pub checks: Mutex<Checks>,
    /// TLS handshakes that failed.
    pub handshake_errors: AtomicU64,
    writes: AtomicU64,
}

impl Metrics {
    /// Counts a committed write.
    pub fn written(&self, _served: &Served, _verb: &'static str) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self, core: &Core) -> String {
        let mut page = Page::new();
        self.requests.expose(&mut page);
        self.filters.expose(&mut page);
        self.bodies.expose(&mut page);
        core.flow.expose(&mut page);
        self.watches.expose(&mut page);
        core.config.auth.expose(&mut page);
        if let Some(audit) = &core.config.audit {
            audit.expose(&mut page);
        }
        if let Some(encryption) = &core.config.encryption {
            encryption.expose(&mut page);
        }
        page.single(
            "apiserver_tls_handshake_errors_total",
            "counter",
            "[ALPHA] Number of requests dropped with 'TLS handshake error from' error",
            self.handshake_errors.load(Ordering::Relaxed),
        );
        stored::expose(core, &mut page);
        self.deprecated.expose(&mut page);
        self.cel.expose(&mut page);
        seldom::expose(&self.seldom, &mut page);
        core.config.calls.expose(&mut page);
        page.single(
            "yare_store_writes_total",
            "counter",
            "Committed writes of objects.",
            self.writes.load(Ordering::Relaxed),
        );
        let name = "kubernetes_feature_enabled";
        page.family(
            name,
            "gauge",
            "[BETA] This metric records the data about the stage and enablement of a k8s feature.",
        );
        for (gate, stage, on) in core.config.gates.iter() {
            let labels = [("name", gate.name), ("stage", stage.label())];
            page.sample(name, &labels, u8::from(on));
        }
        Process::read().expose(&mut page);
        build(&mut page, core);
        core.aggregation.metrics.expose(core, &mut page);
        core.allocators.expose(core, &mut page);
        core.admission.expose(&mut page);
        if let Some(egress) = &core.config.egress {
            egress.expose(&mut page);
        }
        for other in &core.config.metrics {
            other(&mut page);
        }
        let mut out = page.finish();
        registered(&mut out);
        out
    }
}

/// What this server is, as `/version` says it.
fn build(page: &mut Page, core: &Core) {
    let version = crate::health::version(core);
    let labels = [
        ("build_date", "buildDate"),
        ("compiler", "compiler"),
        ("git_commit", "gitCommit"),
        ("git_tree_state", "gitTreeState"),
        ("git_version", "gitVersion"),
        ("go_version", "goVersion"),
        ("major", "major"),
        ("minor", "minor"),
        ("platform", "platform"),
    ]
    .map(|(label, field)| (label, version.str_at(field)));
    let name = "kubernetes_build_info";
    page.family(name, "gauge", "[BETA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.");
    page.sample(name, &labels, 1);
    let pair = |major, minor| format!("{}.{}", version.str_at(major), version.str_at(minor));
    let labels = [
        ("binary", &*pair("major", "minor")),
        ("component", "kube"),
        ("emulation", &pair("emulationMajor", "emulationMinor")),
        ("min_compat", &pair("minCompatibilityMajor", "minCompatibilityMinor")),
    ];
    let name = "version_info";
    page.family(name, "gauge", "[ALPHA] Provides the compatibility version info of the component. The component label is the name of the component, usually kube, but is relevant for aggregated-apiservers.");
    page.sample(name, &labels, 1);
}

/// How many families a page has, by their stability and since when they are on their way out.
fn registered(out: &mut String) {
    let helps =
        out.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(" [")?.1.split_once(']'));
    let mut counts: BTreeMap<[&str; 2], u64> = BTreeMap::new();
    for (stability, help) in helps {
        let since = help.strip_prefix(" (Deprecated since ").and_then(|rest| rest.split(')').next());
        *counts.entry([since.unwrap_or_default(), stability]).or_default() += 1;
    }
    let mut page = Page::new();
    let name = "registered_metrics_total";
    page.family(
        name,
        "counter",
        "[BETA] The count of registered metrics broken by stability level and deprecation version.",
    );
    for ([since, stability], count) in counts {
        page.sample(name, &[("deprecated_version", since), ("stability_level", stability)], count);
    }
    // None can be switched off here, and none is old enough to be hidden.
    page.single("disabled_metrics_total", "counter", "[BETA] The count of disabled metrics.", 0);
    page.single("hidden_metrics_total", "counter", "[BETA] The count of hidden metrics.", 0);
    out.push_str(&page.finish());
}
