//! A node whose API server is away: pods run on, and everything is told when it is back.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Cluster, condition};
use futures::StreamExt as _;
use http_body_util::{BodyStream, StreamBody};
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt as _;
use yare_apiserver::User;
use yare_client::{Client, in_process};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The way to the server: while it is away nobody is answered, and answers that were on their way end.
fn client(cluster: &Cluster, away: &watch::Sender<bool>) -> Client {
    let (server, away) = (cluster.api.service(User::admin()), away.subscribe());
    Client::new(in_process(tower::service_fn(move |request| {
        let (server, mut away) = (server.clone(), away.clone());
        async move {
            if *away.borrow() {
                return Err(BoxError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)));
            }
            let answer = server.oneshot(request).await.map_err(BoxError::from)?;
            let gone = Box::pin(async move { drop(away.wait_for(|away| *away).await) });
            Ok(answer.map(|body| StreamBody::new(BodyStream::new(body).take_until(gone))))
        }
    })))
}

/// How long the server is away.
fn outage() -> Duration {
    let seconds = std::env::var("YARE_AWAY_S").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

fn one(name: &str, command: Value) -> Value {
    json!({"containers": [{"name": name, "image": "present:1", "command": command}], "terminationGracePeriodSeconds": 1})
}

/// Waits until the runtime has what is wanted of it.
async fn until(what: &str, cluster: &Cluster, done: impl Fn(&Cluster) -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !done(cluster) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}: {:#?}", cluster.runtime.calls());
}

fn attempt(cluster: &Cluster, name: &str) -> Option<u32> {
    cluster.runtime.container_named(name).map(|(status, _)| status.attempt)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_run_on_and_everything_is_told_afterwards() {
    let mut cluster = Cluster::without_node().await;
    let away = watch::Sender::new(false);
    let through = client(&cluster, &away);
    cluster.start_node(|config| config.client = through).await;
    let mut ends = one("ends", json!(["run"]));
    ends["restartPolicy"] = json!("Never");
    let mut probed = one("probed", json!(["run"]));
    probed["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["alive"]}, "periodSeconds": 1, "failureThreshold": 1});
    for (name, spec) in [
        ("steady", one("steady", json!(["run"]))),
        ("ends", ends),
        ("again", one("again", json!(["run"]))),
        ("probed", probed),
        ("leaves", one("leaves", json!(["run"]))),
    ] {
        cluster.pod(name, spec).await;
        cluster.wait_ready(name).await;
    }
    let before = cluster.get("/api/v1/namespaces/default/pods/steady").await;

    away.send_replace(true);
    // The node goes on alone …
    cluster.runtime.exit("ends", 3);
    cluster.runtime.exit("again", 1);
    cluster.runtime.set_exec("alive", 1);
    until("a container starts again", &cluster, |c| attempt(c, "again") == Some(1)).await;
    until("a probe ends a container", &cluster, |c| attempt(c, "probed") >= Some(1)).await;
    cluster.runtime.set_exec("alive", 0);
    // … and the cluster without it.
    cluster.delete_pod("leaves", 0).await;
    cluster.pod("comes", one("comes", json!(["run"]))).await;
    tokio::time::sleep(outage()).await;
    let told = cluster.get("/api/v1/namespaces/default/pods/again").await;
    assert_eq!(told["status"]["containerStatuses"][0]["restartCount"], 0, "nobody can have told");
    assert!(attempt(&cluster, "comes").is_none() && attempt(&cluster, "leaves").is_some());

    away.send_replace(false);
    let pod = cluster.wait_phase("ends", "Failed").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    for name in ["again", "probed"] {
        cluster
            .wait_pod(name, "restart", |p| {
                p["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
                    && condition(p, "Ready") == "True"
            })
            .await;
    }
    cluster.wait_ready("comes").await;
    until("what was deleted stops", &cluster, |c| attempt(c, "leaves").is_none()).await;
    let event = cluster.wait_event("probed", "Killing").await;
    assert_eq!(event["message"], "Container probed failed liveness probe, will be restarted");
    let after = cluster.get("/api/v1/namespaces/default/pods/steady").await;
    assert_eq!(after["status"]["containerStatuses"], before["status"]["containerStatuses"]);
    let starts = cluster.runtime.calls().iter().filter(|c| *c == "start steady").count();
    assert_eq!(starts, 1);
    // Changes come through as before.
    cluster.delete_pod("steady", 1).await;
    cluster.wait_gone("steady").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_alone_leaves_pods_as_they_are() {
    let mut cluster = Cluster::start().await;
    for name in ["stays", "goes"] {
        cluster.pod(name, one(name, json!(["run"]))).await;
        cluster.wait_ready(name).await;
    }
    cluster.stop_node().await;
    let away = watch::Sender::new(true);
    let through = client(&cluster, &away);
    cluster.start_node(|config| config.client = through).await;
    cluster.delete_pod("goes", 0).await;
    tokio::time::sleep(outage()).await;
    let stops = |c: &Cluster| c.runtime.calls().iter().filter(|c| c.starts_with("stop")).count();
    assert_eq!(
        (stops(&cluster), cluster.runtime.counts()),
        (0, (2, 2)),
        "whose pods these are is not known yet"
    );
    away.send_replace(false);
    until("what was deleted stops", &cluster, |c| c.runtime.counts() == (1, 1)).await;
    cluster.wait_ready("stays").await;
    assert_eq!(attempt(&cluster, "stays"), Some(0));
}
