//! What is counted of reading files, under upstream's names.

use jiff::Timestamp;
use parking_lot::Mutex;
use yare_metrics::text::Page;

use super::Manifests;
use crate::auth::metrics::server_hash;

const STATUSES: [&str; 2] = ["success", "failure"];

/// How often files were read with news in them, and what came of it.
#[derive(Default)]
pub struct Counts(Mutex<State>);

#[derive(Default)]
struct State {
    /// Reads that took effect, and those that did not: how many, and when the last one was in Unix seconds.
    outcomes: [(u64, f64); 2],
    /// Of what is in force.
    hash: Option<String>,
}

impl Counts {
    /// Files were read at `now`: their hash, if they are in force now.
    pub fn reloaded(&self, hash: Option<&str>, now: Timestamp) {
        let mut state = self.0.lock();
        let outcome = &mut state.outcomes[usize::from(hash.is_none())];
        *outcome = (outcome.0 + 1, now.as_millisecond() as f64 / 1e3);
        if let Some(hash) = hash {
            state.hash = Some(hash.to_owned());
        }
    }

    /// Whether the files of this hash are what is in force.
    pub fn is_in_force(&self, hash: &str) -> bool {
        self.0.lock().hash.as_deref() == Some(hash)
    }
}

/// Adds the metrics, where there are such directories.
pub fn expose(manifests: &Manifests, page: &mut Page) {
    if manifests.0.is_empty() {
        return;
    }
    let id = server_hash();
    let rows = || {
        manifests.0.iter().flat_map(|source| {
            let outcomes = source.counts.0.lock().outcomes;
            STATUSES.into_iter().zip(outcomes).filter(|(_, (count, _))| *count > 0).map(
                |(status, outcome)| {
                    ([("status", status), ("plugin", source.plugin.name), ("apiserver_id_hash", id)], outcome)
                },
            )
        })
    };
    let name = "apiserver_manifest_admission_config_controller_automatic_reloads_total";
    page.family(name, "counter", "[ALPHA] Total number of automatic reloads of admission manifest configuration split by status, plugin, and apiserver identity.");
    for (labels, (count, _)) in rows() {
        page.sample(name, &labels, count);
    }
    let name = "apiserver_manifest_admission_config_controller_automatic_reload_last_timestamp_seconds";
    page.family(name, "gauge", "[ALPHA] Timestamp of the last automatic reload of admission manifest configuration split by status, plugin, and apiserver identity.");
    for (labels, (_, seconds)) in rows() {
        page.sample(name, &labels, seconds);
    }
    let name = "apiserver_manifest_admission_config_controller_last_config_info";
    page.family(name, "gauge", "[ALPHA] Information about the last applied admission manifest configuration with hash as label, split by plugin and apiserver identity.");
    for source in &manifests.0 {
        if let Some(hash) = &source.counts.0.lock().hash {
            page.sample(
                name,
                &[("plugin", source.plugin.name), ("apiserver_id_hash", id), ("hash", hash)],
                1,
            );
        }
    }
}
