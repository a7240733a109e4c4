//! Graceful node shutdown: the machine goes down, and its pods stop in time, the least important first.
//!
//! In: logind's word that a shutdown begins or was called off ([`logind`], over [`dbus`]). Out: the node is not ready
//! and takes no pods, its pods fail with upstream's reason, and when they are gone or their time is over, logind's
//! lock is let go and the machine goes on shutting down. Words and order are upstream's
//! (`pkg/kubelet/nodeshutdown`).

mod dbus;
pub(crate) mod groups;
mod logind;
mod record;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::oneshot;
use yare_client::EventKind;

use crate::kubelet::Kubelet;
use crate::pod::mailbox::Eviction;
use crate::view::Pod;

use groups::Period;
pub use logind::Logind;
use logind::Session;

/// What becomes of pods.
const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// Why new ones are refused.
pub(crate) const REJECTED: (&str, &str) = ("NodeShutdown", "Pod was rejected as the node is shutting down.");
/// Between attempts to reach logind.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How long the last word on pods may take to reach the API server.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Waits for shutdowns for as long as the node runs.
pub(crate) async fn run(kubelet: Arc<Kubelet>, place: Logind) {
    let periods = groups::periods(kubelet.config.settings(), kubelet.config.gates());
    if periods.is_empty() {
        return;
    }
    record::restore(&kubelet);
    let mut wait = RETRY_MIN;
    loop {
        let mut connected = false;
        let Err(error) = follow(&kubelet, &place, &periods, &mut connected).await;
        if connected {
            wait = RETRY_MIN;
        }
        tracing::warn!(%error, "shutdowns of this machine are not waited with: logind; will retry");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// Follows logind until the connection ends.
async fn follow(
    kubelet: &Arc<Kubelet>,
    place: &Logind,
    periods: &[Period],
    connected: &mut bool,
) -> io::Result<std::convert::Infallible> {
    let mut session = Session::connect(place).await?;
    let wanted: u64 = periods.iter().map(|p| u64::try_from(p.grace_s).unwrap_or(0)).sum();
    session.allow(Duration::from_secs(wanted)).await?;
    let mut lock = Some(session.inhibit().await?);
    session.subscribe().await?;
    *connected = true;
    tracing::info!(wanted_s = wanted, "shutdowns of this machine wait for pods");
    loop {
        let begins = session.news().await?;
        let text = match begins {
            true => "Shutdown manager detected shutdown event",
            false => "Shutdown manager detected shutdown cancellation",
        };
        kubelet.node_event(EventKind::Normal, "NodeShutdown", text.to_owned());
        kubelet.shutting_down.send_replace(begins);
        if begins {
            let shutdown = record::Shutdown::begin(kubelet);
            stop_pods(kubelet, periods).await;
            shutdown.end(kubelet);
            lock = None;
            tracing::info!("pods have stopped; the machine goes on shutting down");
        } else {
            // The new one first: no moment is without.
            lock.replace(session.inhibit().await?);
        }
    }
}

/// Stops the pods of one period after another.
async fn stop_pods(kubelet: &Arc<Kubelet>, periods: &[Period]) {
    let pods = kubelet.active_pods(|state| state.pod.clone());
    let mut groups: Vec<Vec<Arc<Pod>>> = periods.iter().map(|_| Vec::new()).collect();
    for pod in pods {
        groups[groups::of(periods, pod.spec.priority.unwrap_or(0))].push(pod);
    }
    for (period, pods) in periods.iter().zip(groups).filter(|(_, pods)| !pods.is_empty()) {
        let gone: Vec<_> = pods.iter().map(|pod| stop(kubelet, pod, period.grace_s)).collect();
        let time = Duration::from_secs(u64::try_from(period.grace_s).unwrap_or(0));
        if tokio::time::timeout(time, join_all(gone)).await.is_err() {
            tracing::warn!(
                priority = period.priority,
                "pods are still there after their time; the next ones go"
            );
        }
        let told = join_all(pods.iter().map(|pod| kubelet.writer.flush(&pod.metadata.uid)));
        // Without an API server the pods have stopped all the same.
        let _ = tokio::time::timeout(LAST_WORD, told).await;
    }
}

/// Tells a pod to go; resolves when it is gone.
fn stop(kubelet: &Kubelet, pod: &Pod, most_s: i64) -> oneshot::Receiver<()> {
    let (done, gone) = oneshot::channel();
    let eviction = Eviction {
        reason: REASON.to_owned(),
        message: MESSAGE.to_owned(),
        grace_s: pod.spec.termination_grace_period_seconds.map_or(most_s, |own| own.min(most_s)),
        disrupted: true,
        done: Some(done),
    };
    kubelet.evict(&pod.metadata.uid, eviction);
    gone
}
