//! Metrics of the aggregation layer, under upstream's names.

use std::{collections::BTreeMap, fmt::Write as _, sync::atomic::Ordering};

use parking_lot::Mutex;

use crate::core::Core;

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
}

/// Adds the layer's metrics to a page in Prometheus' text form.
pub fn render(core: &Core, out: &mut String) {
    // Writing to a string cannot fail.
    let table = core.aggregation.table.load();
    let _ = writeln!(
        out,
        "# HELP aggregator_unavailable_apiservice [ALPHA] Gauge of APIServices which are marked as unavailable broken down by APIService name.\n# TYPE aggregator_unavailable_apiservice gauge"
    );
    for (group, version, entry) in table.all() {
        let down = entry.backend.as_ref().is_some_and(|b| !b.available.load(Ordering::Acquire));
        let _ = writeln!(
            out,
            "aggregator_unavailable_apiservice{{name=\"{version}.{group}\"}} {}",
            i32::from(down)
        );
    }
    let counts = core.aggregation.metrics.counts.lock();
    if !counts.is_empty() {
        let _ = writeln!(
            out,
            "# HELP aggregator_unavailable_apiservice_total [ALPHA] Counter of APIServices which are marked as unavailable broken down by APIService name and reason.\n# TYPE aggregator_unavailable_apiservice_total counter"
        );
    }
    for ((name, reason), count) in counts.iter() {
        let _ = writeln!(
            out,
            "aggregator_unavailable_apiservice_total{{name=\"{name}\",reason=\"{reason}\"}} {count}"
        );
    }
}
