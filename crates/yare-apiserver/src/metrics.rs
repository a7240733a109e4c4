//! Counters and histograms under upstream's names, written by hand. What belongs to one part of the server is
//! counted there; here is what is counted of requests, watches and the process, and the page with all of it.

mod process;
mod requests;
pub mod slis;
pub mod text;
pub mod timing;
mod watches;

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use process::Process;
pub use requests::{Ended, Labels, Requests};
pub use slis::Checks;
use text::Page;
pub use watches::{WatchEvents, Watched};

use crate::{core::Core, registry::Served};

/// All metrics of a server.
#[derive(Default)]
pub struct Metrics {
    /// Requests.
    pub requests: Requests,
    /// Events that were sent to watchers.
    pub watches: WatchEvents,
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
        objects(core, &mut page);
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
        for (gate, on) in core.config.gates.iter() {
            let labels = [("name", gate.name), ("stage", gate.now().stage.label())];
            page.sample(name, &labels, u8::from(on));
        }
        Process::read().expose(&mut page);
        let mut out = page.finish();
        core.admission.metrics.render(&mut out);
        crate::aggregation::metrics::render(core, &mut out);
        out
    }
}

fn objects(core: &Core, page: &mut Page) {
    let kinds = core.store().kinds();
    let name = "apiserver_resource_objects";
    page.family(name, "gauge", "[ALPHA] Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.");
    for (kind, count) in &kinds {
        let (group, plural) = kind.split_once('/').unwrap_or(("", kind));
        page.sample(name, &[("group", group), ("resource", plural)], count);
    }
    let name = "apiserver_storage_objects";
    page.family(name, "gauge", "[STABLE] [DEPRECATED, consider using apiserver_resource_objects instead] Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.");
    for (kind, count) in &kinds {
        let (group, plural) = kind.split_once('/').unwrap_or(("", kind));
        let dot = if group.is_empty() { "" } else { "." };
        page.sample(name, &[("resource", &format!("{plural}{dot}{group}"))], count);
    }
}
