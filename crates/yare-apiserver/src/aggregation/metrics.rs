//! Metrics of the aggregation layer, under upstream's names.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use parking_lot::Mutex;

use crate::{core::Core, metrics::text::Page};

/// How often APIServices became unavailable: name and reason.
#[derive(Default)]
pub struct Unavailable {
    counts: Mutex<BTreeMap<(String, String), u64>>,
}

impl Unavailable {
    /// One became unavailable.
    pub fn count(&self, name: &str, reason: &str) {
        *self.counts.lock().entry((name.to_owned(), reason.to_owned())).or_default() += 1;
    }

    /// One is gone.
    pub fn forget(&self, name: &str) {
        self.counts.lock().retain(|(n, _), _| n != name);
    }

    /// Adds the layer's metrics.
    pub fn expose(&self, core: &Core, page: &mut Page) {
        let name = "aggregator_unavailable_apiservice";
        page.family(
            name,
            "gauge",
            "[ALPHA] Gauge of APIServices which are marked as unavailable broken down by APIService name.",
        );
        for (group, version, entry) in core.aggregation.table.load().all() {
            let down = entry.backend.as_ref().is_some_and(|b| !b.available.load(Ordering::Acquire));
            page.sample(name, &[("name", &format!("{version}.{group}"))], u8::from(down));
        }
        let name = "aggregator_unavailable_apiservice_total";
        page.family(name, "counter", "[ALPHA] Counter of APIServices which are marked as unavailable broken down by APIService name and reason.");
        for ((service, reason), count) in self.counts.lock().iter() {
            page.sample(name, &[("name", service), ("reason", reason)], count);
        }
    }
}
