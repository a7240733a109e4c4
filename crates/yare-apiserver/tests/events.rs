//! Events go some time after they were written last.

mod common;

use std::{sync::Arc, time::Duration};

use common::{Server, open};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::time::{Instant, sleep};
use yare_apiserver::{ApiServer, Clock, Config};

const EVENTS: &str = "/api/v1/namespaces/default/events";

fn event(name: &str) -> serde_json::Value {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({"metadata": {"name": name}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "R", "type": "Normal", "firstTimestamp": now, "lastTimestamp": now, "count": 1})
}

/// Waits until an event is gone; how long that took.
async fn gone(server: &Server, name: &str, since: Instant) -> Duration {
    for _ in 0..600 {
        if server.get(&format!("{EVENTS}/{name}")).await.code == 404 {
            return since.elapsed();
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("{name} stays");
}

#[tokio::test]
async fn what_is_not_written_again_goes() {
    let server = Server::with(|config| config.event_ttl = Duration::from_secs(2)).await;
    let mut events = server.watch(&format!("{EVENTS}?watch=true")).await;
    let begun = Instant::now();
    server.post(EVENTS, &event("once")).await.expect(201);
    // Through the other API, too.
    server.get("/apis/events.k8s.io/v1/namespaces/default/events/once").await.expect(200);
    server.post(EVENTS, &event("again")).await.expect(201);
    sleep(Duration::from_millis(600)).await;
    server.patch("merge", &format!("{EVENTS}/again"), &json!({"count": 2})).await.expect(200);
    let once = gone(&server, "once", begun).await;
    assert!(once >= Duration::from_secs(2), "{once:?}");
    let again = gone(&server, "again", begun).await;
    assert!(again >= Duration::from_millis(2600), "{again:?}");
    for expect in ["ADDED once", "ADDED again", "MODIFIED again", "DELETED once", "DELETED again"] {
        assert_eq!(events.brief().await, expect);
    }
    // Nothing else goes, and what comes later goes later.
    server.get("/api/v1/namespaces/default").await.expect(200);
    let begun = Instant::now();
    server.post(EVENTS, &event("late")).await.expect(201);
    assert!(gone(&server, "late", begun).await >= Duration::from_secs(2));
}

/// Tells another time.
struct Later(SignedDuration);

impl Clock for Later {
    fn now(&self) -> Timestamp {
        Timestamp::now() + self.0
    }
}

#[tokio::test]
async fn a_restart_makes_no_event_younger() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new(open(&dir.path().join("store")).await);
    assert_eq!(config.event_ttl, Duration::from_secs(3600));
    let server = Server { api: ApiServer::start(config).await.unwrap(), dir };
    server.post(EVENTS, &event("old")).await.expect(201);
    let store = server.api.core().store().clone();
    server.api.shutdown().await;
    let mut config = Config::new(store);
    config.event_ttl = Duration::from_secs(100);
    config.clock = Arc::new(Later(SignedDuration::from_secs(99)));
    let server = Server { api: ApiServer::start(config).await.unwrap(), dir: server.dir };
    server.get(&format!("{EVENTS}/old")).await.expect(200);
    server.post(EVENTS, &event("new")).await.expect(201);
    gone(&server, "old", Instant::now()).await;
    server.get(&format!("{EVENTS}/new")).await.expect(200);
}
