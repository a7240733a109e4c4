//! When the machine's last graceful shutdown began and ended. A shutdown is followed by a restart, and only then asks
//! anybody: so the times are in a file, in upstream's form, and metrics tell of them from the start.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::kubelet::Kubelet;
use crate::managers::checkpoint::{self, Unusable};
use crate::metrics::table;

/// Go's time that was never set.
const NEVER: &str = "0001-01-01T00:00:00Z";
const FILE: &str = "graceful_node_shutdown_state";

/// The times, RFC 3339.
#[derive(Serialize, Deserialize, Clone)]
#[serde(rename_all = "camelCase", default)]
struct Times {
    start_time: String,
    end_time: String,
}

impl Default for Times {
    fn default() -> Self {
        Self { start_time: NEVER.into(), end_time: NEVER.into() }
    }
}

fn path(kubelet: &Kubelet) -> PathBuf {
    kubelet.data_dir.join(FILE)
}

fn is_kept(kubelet: &Kubelet) -> bool {
    kubelet.config.gates().is_on("GracefulNodeShutdownBasedOnPodPriority")
}

/// Tells of the shutdown before this start.
pub(super) fn restore(kubelet: &Kubelet) {
    if !is_kept(kubelet) {
        return;
    }
    match checkpoint::read(&path(kubelet)).map(serde_json::from_value::<Times>) {
        Ok(Ok(times)) => tell(kubelet, &times),
        Ok(Err(error)) => tracing::warn!(%error, "{FILE} is not read"),
        Err(Unusable::NotFound) => {}
        Err(error) => tracing::warn!(%error, "{FILE} is not read"),
    }
}

/// A shutdown that is under way.
pub(super) struct Shutdown(Times);

impl Shutdown {
    pub(super) fn begin(kubelet: &Kubelet) -> Self {
        let times = Times { start_time: kubelet.seams.now_text(), ..Times::default() };
        keep(kubelet, &times);
        Self(times)
    }

    /// All pods have stopped, or had their time.
    pub(super) fn end(mut self, kubelet: &Kubelet) {
        self.0.end_time = kubelet.seams.now_text();
        keep(kubelet, &self.0);
    }
}

fn keep(kubelet: &Kubelet, times: &Times) {
    if !is_kept(kubelet) {
        return;
    }
    let written = serde_json::to_vec(times).map_err(Into::into);
    if let Err(error) = written.and_then(|bytes| checkpoint::write(&path(kubelet), &bytes)) {
        tracing::warn!(%error, "{FILE} is not written");
    }
    tell(kubelet, times);
}

fn tell(kubelet: &Kubelet, times: &Times) {
    for (family, text) in
        [(&table::SHUTDOWN_START, &times.start_time), (&table::SHUTDOWN_END, &times.end_time)]
    {
        let second = text.parse::<Timestamp>().map_or(0, |time| time.as_second().max(0));
        kubelet.metrics.set(family, &[], second as f64);
    }
}
