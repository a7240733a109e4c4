//! Rows about a server that is offered far more than ten times what it can carry: how long requests of high-priority levels
//! take meanwhile, and whether every request is answered.
//!
//! The server gets few seats, so that it is its flow control that carries it and not the machine. A flood of
//! lists comes from a service account (`workload-low`); leases are renewed by a node (`node-high`), pods read
//! by the scheduler (`workload-high`), and the administrator looks in (`exempt`).

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::{
    Scale, api,
    client::{ANSWER_TIMEOUT, Access, Connection},
    server::Server,
    table::{Table, quantile},
};

const NAMESPACE: &str = "overload";
const FLOODER: &str = "system:serviceaccount:overload:default";
/// Seats of the server, and requests that the flood has under way: twenty for each seat, which is more than its
/// flow's queues hold, so that some are refused.
const SEATS: usize = 24;
const FLOOD: usize = SEATS * 20;
/// Objects in a list of the flood.
const LISTED: usize = 500;

/// What came back, by kind.
#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    served: AtomicU64,
    refused: AtomicU64,
    other: AtomicU64,
    unanswered: AtomicU64,
}

/// Who is measured: what it is called, as whom it comes, and what it asks for.
const IMPORTANT: [(&str, &str, &str, &str); 3] = [
    ("node-high", "system:node:bench", "system:nodes", "/api/v1/nodes/bench"),
    (
        "workload-high",
        "system:kube-scheduler",
        "system:authenticated",
        "/api/v1/namespaces/overload/configmaps/c-0",
    ),
    ("exempt", "", "", "/api/v1/namespaces/overload/configmaps/c-1"),
];

/// Floods one control plane and measures what others feel of it.
pub async fn measure(binary: &Path, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
    let half = (SEATS / 2).to_string();
    let flags = ["--max-requests-inflight", &half, "--max-mutating-requests-inflight", &half];
    let mut server = Server::start_with(binary, false, &flags)?;
    let (mut connection, _) = server.ready().await?;
    let access = server.access()?;
    api::prepare(&mut connection, NAMESPACE).await?;
    fill(&mut connection).await?;
    run(&access, scale, table).await.with_context(|| server.log_tail())
}

async fn fill(connection: &mut Connection) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    for number in 0..LISTED {
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c-{number}")},
            "data": {"payload": "x".repeat(1500)},
        });
        connection.post(&path, body.to_string()).await?;
    }
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bench"}});
    connection.post("/api/v1/nodes", node.to_string()).await?;
    // The flooder may read.
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "overload"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [
            {"kind": "ServiceAccount", "name": "default", "namespace": NAMESPACE},
            {"kind": "User", "name": "system:kube-scheduler", "apiGroup": "rbac.authorization.k8s.io"},
        ],
    });
    connection.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding.to_string()).await
}

async fn run(access: &Access, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
    let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
    let mut flood = Vec::new();
    for _ in 0..FLOOD {
        let (connection, counts, stop) = (access.connect().await?, counts.clone(), stop.clone());
        flood.push(tokio::spawn(flooder(connection, counts, stop)));
    }
    sleep(Duration::from_secs(1)).await;
    let mut measured = Vec::new();
    for (level, user, group, path) in IMPORTANT {
        let (connection, stop) = (access.connect().await?, stop.clone());
        measured.push((level, tokio::spawn(important(connection, stop, user, group, path))));
    }
    sleep(Duration::from_secs(scale.overload_s)).await;
    stop.store(true, Ordering::Relaxed);
    for (level, task) in measured {
        let (mut took_ms, failed) = task.await??;
        took_ms.sort_by(f64::total_cmp);
        let what = format!("overload, {level}");
        table.note(format!("{what}: p50"), quantile(&took_ms, 0.5), "ms");
        table.at_most(format!("{what}: p99"), quantile(&took_ms, 0.99), 1000.0, "ms");
        table.at_most(format!("{what}: refused of {}", took_ms.len()), failed as f64, 0.0, "");
    }
    for task in flood {
        task.await??;
    }
    let read = |n: &AtomicU64| n.load(Ordering::Relaxed) as f64;
    table.note("overload, the flood: served", read(&counts.served), "");
    table.note("overload, the flood: told to come again", read(&counts.refused), "");
    table.at_most("overload, the flood: answered otherwise", read(&counts.other), 0.0, "");
    table.at_most("overload, the flood: not answered", read(&counts.unanswered), 0.0, "");
    let answered = read(&counts.served) + read(&counts.refused) + read(&counts.other);
    table.at_least("overload, the flood: answered of those sent", answered, read(&counts.sent), "");
    Ok(())
}

async fn flooder(
    mut connection: Connection,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let groups = "system:serviceaccounts";
    while !stop.load(Ordering::Relaxed) {
        counts.sent.fetch_add(1, Ordering::Relaxed);
        let answer = connection.send_as(Method::GET, &path, FLOODER, groups).await;
        let count = match answer {
            Ok((status, body)) => match timeout(ANSWER_TIMEOUT, body.collect()).await {
                Ok(Ok(_)) if status.is_success() => &counts.served,
                Ok(Ok(_)) if status.as_u16() == 429 => &counts.refused,
                Ok(Ok(_)) => &counts.other,
                _ => &counts.unanswered,
            },
            Err(_) => &counts.unanswered,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Times of requests, in milliseconds, and how many were not served.
async fn important(
    mut connection: Connection,
    stop: Arc<AtomicBool>,
    user: &'static str,
    group: &'static str,
    path: &'static str,
) -> anyhow::Result<(Vec<f64>, usize)> {
    let (mut took_ms, mut failed) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let (status, body) = connection.send_as(Method::GET, path, user, group).await?;
        timeout(ANSWER_TIMEOUT, body.collect()).await??;
        took_ms.push(start.elapsed().as_secs_f64() * 1e3);
        failed += usize::from(!status.is_success());
        sleep(Duration::from_millis(5)).await;
    }
    Ok((took_ms, failed))
}
