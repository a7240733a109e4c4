//! How the proxy itself is: whether its rules follow what it hears, for load balancers (`/healthz`) and for those who
//! would start it anew (`/livez`), and how it works (`/proxyMode`).

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;
use yare_client::{Client, Informer, NODES, ObjectKey, Selection};

use super::answer::{self, Answer, JSON, NOT_FOUND, OK, TEXT, UNAVAILABLE};

/// Two of the periods in which upstream's proxy sets all rules.
const LATE: Duration = Duration::from_secs(60);
/// A node with this taint is about to go: it should get no new traffic.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Where it is asked; nowhere where that is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// `/healthz`, `/livez`
    pub healthz: Option<SocketAddr>,
    /// `/proxyMode`, `/healthz`
    pub metrics: Option<SocketAddr>,
}

/// How far the rules are behind.
#[derive(Debug, Default)]
pub struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Since when something is to be set.
    behind: Option<Instant>,
    /// When all was set.
    updated: Option<Timestamp>,
}

impl State {
    fn is_healthy(&self, now: Instant) -> bool {
        self.behind.is_none_or(|since| now.duration_since(since) < LATE)
    }
}

impl Progress {
    /// Something is to be set.
    pub fn heard(&self) {
        self.0.lock().behind.get_or_insert_with(Instant::now);
    }

    /// All is set.
    pub fn done(&self) {
        *self.0.lock() = State { behind: None, updated: Some(Timestamp::now()) };
    }

    /// Whether nothing waits for too long.
    pub fn is_healthy(&self, now: Instant) -> bool {
        self.0.lock().is_healthy(now)
    }

    /// Whether it is well, and what is said of it; `families` are those it serves.
    fn report(&self, families: &[&str], now: Instant, time: Timestamp) -> (bool, Map<String, Value>) {
        let state = self.0.lock();
        let healthy = state.is_healthy(now);
        let updated = state.updated.map(|t| t.to_string());
        let status: Map<String, Value> = updated
            .iter()
            .flat_map(|t| {
                families.iter().map(move |f| ((*f).to_owned(), json!({"lastUpdated": t, "healthy": healthy})))
            })
            .collect();
        let mut report = Map::from_iter([
            // Of one that is well, readers expect a recent time.
            ("lastUpdated".to_owned(), if healthy { json!(time.to_string()) } else { json!(updated) }),
            ("currentTime".to_owned(), json!(time.to_string())),
            ("healthy".to_owned(), json!(healthy)),
        ]);
        if !status.is_empty() {
            report.insert("status".to_owned(), status.into());
        }
        (healthy, report)
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeView {
    spec: NodeSpec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeSpec {
    taints: Option<Vec<Taint>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Taint {
    key: String,
}

/// Whether the node should get traffic: it is there, and not about to go.
fn eligible(nodes: &Informer, name: &str) -> bool {
    let Some(node) = nodes.get(&ObjectKey::cluster(name)) else { return false };
    let view: NodeView = node.view().unwrap_or_default();
    node.deletion_timestamp().is_none()
        && !view.spec.taints.unwrap_or_default().iter().any(|taint| taint.key == TO_BE_DELETED)
}

/// The running servers; they end when dropped.
pub(super) struct Servers(Vec<JoinHandle<()>>);

impl Drop for Servers {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl Servers {
    pub fn start(
        client: &Client,
        listen: Listen,
        node: &str,
        families: Vec<&'static str>,
        progress: Arc<Progress>,
    ) -> Self {
        let fields = Some(format!("metadata.name={node}"));
        let nodes = client.informers().select(NODES, Selection { fields, ..Selection::default() });
        let node = node.to_owned();
        let health = Arc::new(move |path: &str| {
            let (mut healthy, mut report) = progress.report(&families, Instant::now(), Timestamp::now());
            match path {
                "/livez" => {}
                "/healthz" => {
                    let eligible = eligible(&nodes, &node);
                    healthy &= eligible;
                    report.insert("nodeEligible".to_owned(), eligible.into());
                }
                _ => return unknown(),
            }
            let status = if healthy { OK } else { UNAVAILABLE };
            Answer { status, kind: JSON, headers: String::new(), body: Value::from(report).to_string() }
        });
        let mode = Arc::new(|path: &str| match path {
            "/proxyMode" => plain(OK, "nftables"),
            "/healthz" => plain(OK, "ok"),
            _ => unknown(),
        });
        let healthz = listen
            .healthz
            .map(|at| tokio::spawn(answer::serve("health of the service proxy".to_owned(), at, health)));
        let metrics = listen
            .metrics
            .map(|at| tokio::spawn(answer::serve("mode of the service proxy".to_owned(), at, mode)));
        Self(healthz.into_iter().chain(metrics).collect())
    }
}

fn plain(status: &'static str, body: &str) -> Answer {
    Answer { status, kind: TEXT, headers: String::new(), body: body.to_owned() }
}

fn unknown() -> Answer {
    plain(NOT_FOUND, "404 page not found\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_stay_behind_for_a_minute_are_not_well() {
        let progress = Progress::default();
        let (now, time) = (Instant::now(), Timestamp::now());
        let healthy = |after_s: u64| progress.report(&["IPv4"], now + Duration::from_secs(after_s), time);
        assert!(healthy(600).0, "nothing was heard");
        progress.done();
        let (well, report) = healthy(600);
        assert!(well && report["status"]["IPv4"]["healthy"] == true, "{report:?}");
        progress.heard();
        assert!(healthy(50).0);
        let (well, report) = healthy(70);
        assert!(!well && report["status"]["IPv4"]["healthy"] == false, "{report:?}");
        assert_ne!(report["lastUpdated"], time.to_string(), "the time of the last update");
        // What is heard further does not make it younger.
        progress.heard();
        assert!(!healthy(70).0);
        progress.done();
        assert!(healthy(70).0);
    }
}
