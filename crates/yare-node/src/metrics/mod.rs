//! What the node agent counts and measures, under upstream's names: [`table`] has a row per family, `now` what is
//! only known when somebody asks, `runtime` what the container runtime is asked.

mod now;
mod runtime;
pub(crate) mod table;

use std::sync::Arc;
use std::time::Duration;

use yare_metrics::process::Process;
use yare_metrics::table::{Counts, Family};
use yare_metrics::text::Page;

pub(crate) use now::page;
pub(crate) use runtime::Measured;

use crate::config::Configuration;
use crate::view::Pod;

/// The numbers. Clones count into the same ones.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    counts: Arc<Counts>,
    probes: Arc<Counts>,
}

impl Metrics {
    /// Something happened.
    pub(crate) fn count(&self, family: &'static Family, labels: &[&str]) {
        self.counts.count(family, labels);
    }

    /// Something is so from now on.
    pub(crate) fn set(&self, family: &'static Family, labels: &[&str], value: f64) {
        self.counts.set(family, labels, value);
    }

    /// Something began (1.0) or ended (-1.0).
    pub(crate) fn add(&self, family: &'static Family, labels: &[&str], by: f64) {
        self.counts.add(family, labels, by);
    }

    /// A value was seen.
    pub(crate) fn observe(&self, family: &'static Family, labels: &[&str], value: f64) {
        self.counts.observe(family, labels, value);
    }

    /// Something took so long.
    pub(crate) fn took(&self, family: &'static Family, labels: &[&str], time: Duration) {
        self.counts.observe(family, labels, time.as_secs_f64());
    }

    /// A probe (`Liveness`, `Readiness`, `Startup`) gave a result.
    pub(crate) fn probed(&self, pod: &Pod, container: &str, probe: &str, is_good: bool, took: Duration) {
        let m = &pod.metadata;
        let result = if is_good { "successful" } else { "failed" };
        let labels = [container, &m.namespace, &m.name, &m.uid, probe, result];
        self.probes.count(&table::probes::TOTAL, &labels);
        // Upstream measures no failures.
        if is_good {
            let labels = [container, &m.namespace, &m.name, probe];
            self.probes.observe(&table::probes::DURATION, &labels, took.as_secs_f64());
        }
    }

    /// A pod is gone, and what its probes said with it.
    pub(crate) fn forget(&self, pod: &Pod) {
        let m = &pod.metadata;
        self.probes.retain(&table::probes::TOTAL, |labels| *labels[3] != *m.uid);
        self.probes
            .retain(&table::probes::DURATION, |labels| *labels[1] != *m.namespace || *labels[2] != *m.name);
    }

    /// Everything of this process; `now` has what is counted when somebody asks.
    pub(crate) fn expose(&self, now: &Counts, config: &Configuration, page: &mut Page) {
        yare_metrics::table::expose(&[&self.counts, now], table::TABLE, page);
        let name = "kubernetes_feature_enabled";
        page.family(
            name,
            "gauge",
            "[BETA] This metric records the data about the stage and enablement of a k8s feature.",
        );
        for (gate, stage, on) in config.gates().iter() {
            let labels = [("name", gate.name), ("stage", stage.label())];
            page.sample(name, &labels, u8::from(on));
        }
        Process::read().expose(page);
    }

    /// What probes said.
    pub(crate) fn expose_probes(&self, page: &mut Page) {
        self.probes.expose(table::probes::TABLE, page);
        Process::read().expose_start(page);
    }
}

/// Upstream's word for how large an image is.
pub(crate) fn size_bucket(bytes: u64) -> &'static str {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const BUCKETS: [(u64, &str); 12] = [
        (100 * GIB, "GT100GB"),
        (60 * GIB, "60GB-100GB"),
        (40 * GIB, "40GB-60GB"),
        (30 * GIB, "30GB-40GB"),
        (20 * GIB, "20GB-30GB"),
        (10 * GIB, "10GB-20GB"),
        (5 * GIB, "5GB-10GB"),
        (GIB, "1GB-5GB"),
        (500 * MIB, "500MB-1GB"),
        (100 * MIB, "100MB-500MB"),
        (10 * MIB, "10MB-100MB"),
        (0, "0-10MB"),
    ];
    BUCKETS.iter().find(|(above, _)| bytes > *above).map_or("N/A", |(_, label)| label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_sizes() {
        for (bytes, label) in [
            (0, "N/A"),
            (1, "0-10MB"),
            (10 << 20, "0-10MB"),
            (11 << 20, "10MB-100MB"),
            (200 << 30, "GT100GB"),
        ] {
            assert_eq!(size_bucket(bytes), label, "{bytes}");
        }
    }

    #[test]
    fn probes_are_forgotten_with_their_pod() {
        let metrics = Metrics::default();
        let pod: Pod =
            serde_json::from_str(r#"{"metadata":{"name":"p","namespace":"n","uid":"u"}}"#).unwrap();
        let text = |metrics: &Metrics| {
            let mut page = Page::new();
            metrics.expose_probes(&mut page);
            page.finish()
        };
        for is_good in [true, false, false] {
            metrics.probed(&pod, "c", "Liveness", is_good, Duration::from_millis(3));
        }
        let told = text(&metrics);
        let labels = r#"container="c",namespace="n",pod="p""#;
        for line in [
            format!(
                "prober_probe_total{{{labels},pod_uid=\"u\",probe_type=\"Liveness\",result=\"failed\"}} 2\n"
            ),
            format!("prober_probe_duration_seconds_count{{{labels},probe_type=\"Liveness\"}} 1\n"),
            "process_start_time_seconds ".to_owned(),
        ] {
            assert!(told.contains(&line), "{line}\n{told}");
        }
        metrics.forget(&pod);
        assert!(!text(&metrics).contains("prober"));
    }
}
